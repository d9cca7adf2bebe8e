//! What was learned of the output lengths, which are not known in advance, passed to the forecast at intervals.
//!
//! Requests with a class label, and requests of about the same predicted length, have a curve of their own. Where the
//! class has few observations, its curve leans on the common one, combined with the prediction and its stated error by
//! Bayes' rule: so an exact prediction is used from the first request on, a useless one has no effect, and a misstated
//! error is detected.

use serde::{Deserialize, Serialize};

use crate::config::Part;
use crate::learn::{CERTAIN, Curve, Forecast, POOLED, Survival};
use crate::model::LengthHint;

/// Iterations between two updates of a curve.
const REFRESH: i64 = 64;
/// Classes updated in an iteration, so that no iteration pays for all: enough to update `MOST_CLASSES` in time.
const PER_ITERATION: usize = 2;
/// Passages of a row that are remembered.
const MEMORY: f64 = 100.0;
/// Most classes with a curve of their own; requests of others count as unlabelled.
const MOST_CLASSES: usize = 128;
/// Arrivals without one of a class after which the class is replaced by a new one: enough that classes which are all in
/// use do not push each other out.
const FORGOTTEN: u64 = 8 * MOST_CLASSES as u64;
/// Most arrivals that are counted.
const MOST_ARRIVALS: u64 = 1 << 53;
/// Share of the recent requests of known length that left before their end, above which no stated length is trusted.
const LEAVING: f64 = 0.05;
/// Classes of predicted lengths to the octave.
const PER_OCTAVE: f64 = 4.0;

/// Requests whose lengths are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Key {
    /// Of a label given by the host.
    Label(u16),
    /// Of a predicted length, in steps of the logarithm, and its stated error in hundredths.
    Predicted(u16, u16),
}

impl Key {
    fn of(label: Option<u16>, hint: LengthHint) -> Option<Self> {
        match hint {
            LengthHint::Predicted { tokens, log_error } => {
                let step = libm::round(PER_OCTAVE * libm::log2(f64::from(tokens)));
                Some(Self::Predicted(step as u16, (100.0 * log_error).min(f32::from(u16::MAX)) as u16))
            }
            _ => label.map(Self::Label),
        }
    }

    /// What the class leans on: all requests, or those of them that get this prediction.
    fn prior(self, pool: &Curve) -> Curve {
        match self {
            Self::Label(_) => pool.clone(),
            Self::Predicted(step, hundredths) => {
                // A step is wide: its lengths spread uniformly in the logarithm.
                let spread = core::f64::consts::LN_2 / PER_OCTAVE / libm::sqrt(12.0);
                let deviation = libm::hypot(f64::from(hundredths) / 100.0, spread);
                pool.given(libm::exp2(f64::from(step) / PER_OCTAVE), deviation)
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Class {
    key: Key,
    survival: Survival,
    /// Number of the last arrival of the class.
    seen: u64,
    /// Tick of the last update of its curve.
    #[serde(skip)]
    refreshed: i64,
}

/// The curves: of all requests, and of each class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Learned {
    /// Parts left out.
    #[serde(skip)]
    without: Vec<Part>,
    pool: Survival,
    /// In the order of the forecast's classes.
    classes: Vec<Class>,
    /// Arrivals with a class.
    arrivals: u64,
    /// Share of the requests of known length that left before their end; fades.
    #[serde(default)]
    left: f64,
    /// Tick of the last update of the common curve.
    #[serde(skip)]
    refreshed: Option<i64>,
    /// The next class to be updated.
    #[serde(skip)]
    next: usize,
}

impl Learned {
    pub(super) fn new(without: &[Part]) -> Self {
        Self { without: without.to_vec(), ..Self::default() }
    }

    fn key(&self, label: Option<u16>, hint: LengthHint) -> Option<Key> {
        Key::of(label, hint).filter(|_| !self.without.contains(&Part::Classes))
    }

    /// The forecast's class of a request.
    pub(super) fn class(&self, label: Option<u16>, hint: LengthHint) -> usize {
        if hint.exact().is_some() && self.left < LEAVING {
            return CERTAIN;
        }
        let known = self.key(label, hint).and_then(|key| self.classes.iter().position(|class| class.key == key));
        known.map_or(POOLED, |at| POOLED + 1 + at)
    }

    /// A request has arrived: its class begins, if this is its first request, if necessary in place of one no longer
    /// seen.
    pub(super) fn arrived(&mut self, label: Option<u16>, hint: LengthHint, forecast: &mut Forecast) {
        let Some(key) = self.key(label, hint).filter(|_| hint.exact().is_none()) else { return };
        self.arrivals += 1;
        let arrivals = self.arrivals;
        if let Some(class) = self.classes.iter_mut().find(|class| class.key == key) {
            class.seen = arrivals;
            return;
        }
        let class = Class { key, survival: Survival::default(), seen: arrivals, refreshed: forecast.tick() };
        let class_of = if self.classes.len() < MOST_CLASSES {
            self.classes.push(class);
            forecast.add_class()
        } else {
            let unused =
                |at: &usize| arrivals - self.classes[*at].seen > FORGOTTEN && forecast.population(POOLED + 1 + at) == 0;
            let least = (0..MOST_CLASSES).filter(unused).min_by_key(|&at| self.classes[at].seen);
            let Some(at) = least else { return };
            forecast.drain_exposure(POOLED + 1 + at, |row, stages| self.pool.expose(row, stages));
            self.classes[at] = class;
            POOLED + 1 + at
        };
        forecast.set_curve(class_of, key.prior(forecast.curve(POOLED)));
    }

    /// A request has left, by its end or `before` it. A client that goes away ends what its request holds, and so is
    /// learned from as an end; where requests of known length do so, the length is the most they hold, and no more.
    pub(super) fn left(&mut self, hint: LengthHint, before: bool) {
        if hint.exact().is_some() {
            self.left += (f64::from(u8::from(before)) - self.left) / MEMORY;
        }
    }

    /// An output of a class ended with the token after `stage`; lengths known in advance teach nothing.
    pub(super) fn end(&mut self, class: usize, stage: u32) {
        if class == CERTAIN {
            return;
        }
        self.pool.end(stage);
        if let Some(class) = class.checked_sub(POOLED + 1) {
            self.classes[class].survival.end(stage);
        }
    }

    /// Updates the curves of the forecast: the common one at intervals, and those of a few classes.
    pub(super) fn refresh(&mut self, forecast: &mut Forecast) {
        let tick = forecast.tick();
        if self.refreshed.is_none_or(|at| tick - at >= REFRESH) {
            self.refreshed = Some(tick);
            forecast.drain_exposure(POOLED, |row, stages| self.pool.expose(row, stages));
            self.pool.fade(self.memory());
            forecast.set_curve(POOLED, self.pool.curve());
        }
        for _ in 0..PER_ITERATION.min(self.classes.len()) {
            let at = self.next % self.classes.len();
            if tick - self.classes[at].refreshed < REFRESH {
                break;
            }
            self.next = at + 1;
            self.refresh_class(at, forecast);
        }
    }

    /// Moments of the common curve, if any output has taught it: where all lengths are known in advance none does.
    pub(super) fn moments(&self, forecast: &Forecast) -> Option<(f64, f64)> {
        self.pool.has_ends().then(|| forecast.curve(POOLED).moments())
    }

    /// Whether the forecast has a curve to rely on.
    pub(super) fn has_begun(&self) -> bool {
        self.refreshed.is_some()
    }

    fn memory(&self) -> f64 {
        if self.without.contains(&Part::Forgetting) { f64::INFINITY } else { MEMORY }
    }

    fn refresh_class(&mut self, at: usize, forecast: &mut Forecast) {
        let memory = self.memory();
        let class = &mut self.classes[at];
        class.refreshed = forecast.tick();
        forecast.drain_exposure(POOLED + 1 + at, |row, stages| {
            self.pool.expose(row, stages);
            class.survival.expose(row, stages);
        });
        class.survival.fade(memory);
        let curve = class.survival.leaning(&class.key.prior(forecast.curve(POOLED)));
        forecast.set_curve(POOLED + 1 + at, curve);
    }

    /// Whether it could have been learned.
    fn is_sound(&self) -> bool {
        let survivals = self.classes.iter().map(|class| &class.survival);
        let seen = self.classes.iter().all(|class| class.seen <= self.arrivals);
        (0.0..=1.0).contains(&self.left)
            && seen
            && self.arrivals <= MOST_ARRIVALS
            && self.classes.len() <= MOST_CLASSES
            && survivals.chain([&self.pool]).all(Survival::is_sound)
    }

    /// Restores what another scheduler has learned, and gives a new forecast its curves; false if no traffic could have
    /// taught it.
    pub(super) fn take_over(&mut self, other: Self, forecast: &mut Forecast) -> bool {
        if !other.is_sound() {
            return false;
        }
        *self = Self { without: std::mem::take(&mut self.without), refreshed: None, next: 0, ..other };
        self.classes.iter().for_each(|_| _ = forecast.add_class());
        self.refresh(forecast);
        (0..self.classes.len()).for_each(|at| self.refresh_class(at, forecast));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Footprint;

    fn arrive(learned: &mut Learned, forecast: &mut Forecast, label: u16) {
        learned.arrived(Some(label), LengthHint::Unknown, forecast);
    }

    #[test]
    fn an_iteration_refreshes_few_classes_and_all_have_their_turn() {
        let (mut learned, mut forecast) = (Learned::new(&[]), Forecast::new(Footprint::full(16)));
        for label in 0..64 {
            arrive(&mut learned, &mut forecast, label);
            let log_error = f32::from(label) / 50.0;
            learned.arrived(None, LengthHint::Predicted { tokens: 300, log_error }, &mut forecast);
        }
        let classes = learned.classes.len();
        assert_eq!(classes, MOST_CLASSES);
        let versions = |forecast: &Forecast| (1..classes + 2).map(|class| forecast.version(class)).collect::<Vec<_>>();
        let mut before = versions(&forecast);
        let first = before.clone();
        for _ in 0..2 * REFRESH {
            forecast.step();
            learned.refresh(&mut forecast);
            let after = versions(&forecast);
            let set: u64 = after.iter().zip(&before).map(|(a, b)| a - b).sum();
            assert!(set <= PER_ITERATION as u64 + 1, "{set} curves in an iteration");
            before = after;
        }
        assert!(before.iter().zip(first).all(|(a, b)| (1..=2).contains(&(a - b))), "each within 64 iterations, twice");
    }

    #[test]
    fn classes_no_longer_seen_make_room() {
        let (mut learned, mut forecast) = (Learned::new(&[]), Forecast::new(Footprint::full(16)));
        let most = MOST_CLASSES as u16;
        (0..most).for_each(|label| arrive(&mut learned, &mut forecast, label));
        let class = |learned: &Learned, label| learned.class(Some(label), LengthHint::Unknown);
        // More classes than there is room for, all in use: none is dropped.
        for round in 0..20 {
            (0..=most).for_each(|label| arrive(&mut learned, &mut forecast, label));
            assert_eq!(class(&learned, most), POOLED, "round {round}");
        }
        // Label 3 is seen no more, label 5 neither, but one of it still runs.
        let in_use = class(&learned, 5);
        let resident = crate::learn::Candidate { class: in_use, kv: 5, stage: 1, last: 99 };
        forecast.join(0, &resident);
        learned.end(class(&learned, 3), 40);
        let dropped = class(&learned, 3);
        for _ in 0..9 {
            (0..most)
                .filter(|label| ![3, 5].contains(label))
                .for_each(|label| arrive(&mut learned, &mut forecast, label));
        }
        arrive(&mut learned, &mut forecast, most);
        assert_eq!((class(&learned, most), class(&learned, 3)), (dropped, POOLED), "in the place of the other");
        assert_eq!(learned.classes[dropped - POOLED - 1].survival, Survival::default(), "and knows nothing of it");
        arrive(&mut learned, &mut forecast, most + 1);
        assert_eq!((class(&learned, most + 1), class(&learned, 5)), (POOLED, in_use), "its forecast is in use");
        forecast.leave(0);
        arrive(&mut learned, &mut forecast, most + 1);
        assert_eq!(class(&learned, most + 1), in_use);
        assert!(learned.is_sound());
    }
}
