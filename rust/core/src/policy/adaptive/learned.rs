//! What was learned of the output lengths that nobody knows in advance, handed to the forecast now and then.
//!
//! Requests with a class label, and requests of about the same predicted length, have a curve of their own. It leans on
//! the curve of all where the class has seen little, given the prediction and its stated error by Bayes' rule: so an exact
//! prediction is used from the first request on, a useless one says nothing, and a misstated error is found out.

use serde::{Deserialize, Serialize};

use crate::config::Part;
use crate::forecast::{CERTAIN, Forecast, POOLED};
use crate::lengths::{Curve, Survival};
use crate::request::LengthHint;

/// Iterations between two updates of the curves.
const REFRESH: i64 = 64;
/// Passages of a row that are remembered.
const MEMORY: f64 = 100.0;
/// Most classes with a curve of their own; requests of others count as unlabelled.
const MOST_CLASSES: usize = 128;
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
struct Class {
    key: Key,
    survival: Survival,
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
    #[serde(skip)]
    refreshed: Option<i64>,
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
        if hint.exact().is_some() {
            return CERTAIN;
        }
        let known = self.key(label, hint).and_then(|key| self.classes.iter().position(|class| class.key == key));
        known.map_or(POOLED, |at| POOLED + 1 + at)
    }

    /// A request has come: its class begins, if it is the first.
    pub(super) fn arrived(&mut self, label: Option<u16>, hint: LengthHint, forecast: &mut Forecast) {
        let Some(key) = self.key(label, hint) else { return };
        if self.class(label, hint) == POOLED && self.classes.len() < MOST_CLASSES {
            self.classes.push(Class { key, survival: Survival::default() });
            let class = forecast.add_class();
            forecast.set_curve(class, key.prior(forecast.curve(POOLED)));
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

    /// Brings the curves of the forecast up to date, now and then.
    pub(super) fn refresh(&mut self, forecast: &mut Forecast) {
        let tick = forecast.tick();
        if self.refreshed.is_some_and(|at| tick - at < REFRESH) {
            return;
        }
        self.refreshed = Some(tick);
        let memory = if self.without.contains(&Part::Forgetting) { f64::INFINITY } else { MEMORY };
        forecast.drain_exposure(POOLED, |row, stages| self.pool.expose(row, stages));
        for (at, class) in self.classes.iter_mut().enumerate() {
            forecast.drain_exposure(POOLED + 1 + at, |row, stages| {
                self.pool.expose(row, stages);
                class.survival.expose(row, stages);
            });
            class.survival.fade(memory);
        }
        self.pool.fade(memory);
        let pool = self.pool.curve();
        for (at, class) in self.classes.iter().enumerate() {
            forecast.set_curve(POOLED + 1 + at, class.survival.leaning(&class.key.prior(&pool)));
        }
        forecast.set_curve(POOLED, pool);
    }

    /// Whether it could have been learned.
    fn is_sound(&self) -> bool {
        let survivals = self.classes.iter().map(|class| &class.survival);
        self.classes.len() <= MOST_CLASSES && survivals.chain([&self.pool]).all(Survival::is_sound)
    }

    /// Takes over what another scheduler has learned, and gives a new forecast its curves; false if nobody can have
    /// learned that.
    pub(super) fn take_over(&mut self, other: Self, forecast: &mut Forecast) -> bool {
        if !other.is_sound() {
            return false;
        }
        *self = Self { without: std::mem::take(&mut self.without), refreshed: None, ..other };
        self.classes.iter().for_each(|_| _ = forecast.add_class());
        self.refresh(forecast);
        true
    }
}
