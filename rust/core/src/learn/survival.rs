//! Online survival of output lengths: the share of the requests at a stage that continue for h more tokens.
//!
//! Stages are cut into rows: width 1 below 16, eight to the octave above. For each row the estimator counts passages
//! (requests at risk: a running request counts for the part of the row behind it, so nothing is learned late and there
//! is no bias towards short outputs) and the outputs that ended there, with mean and spread of where in the row they
//! did, so that a fixed length stays a step. Both fade, so that the curve follows a shift. A row with few observations
//! leans on the row before it and on a prior, (1 + s/256)^-1.5: the longer a request has run, the longer it is expected
//! to run.

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// Rows to the octave.
pub(crate) const OCTAVE: u32 = 8;
/// Rows in all; the last one is open.
pub(crate) const ROWS: usize = 120;
/// Before anything is seen, the share that reaches stage s is (1 + s/tokens)^-shape. With this shape few outputs are very
/// long; with a shape of 1, whose mean is infinite, a cold start kept most of a small memory idle for them.
const PRIOR_TOKENS: f64 = 256.0;
const PRIOR_SHAPE: f64 = 1.5;
/// Weight of the prior: this many ended outputs, but at most this many passages.
const PRIOR_ENDS: f64 = 0.3;
const PRIOR_PASSAGES: f64 = 4.0;
/// Weight, in passages of a row, of the curve that a class leans on.
const LEAN: f64 = 6.0;
/// Share of the requests that may be of any length, whatever has been observed.
const UNSEEN: f64 = 1e-4;
/// Largest share of a row's requests that end in it: some always pass.
const MOST_ENDS: f64 = 0.999;
/// Most stages that are counted in a row.
const MOST_SEEN: f64 = (1_u64 << 40) as f64;
/// An end counts for no more passages than were observed, apart from the stages that a host passes at once, of which
/// one is counted, and those since the last update: two times 64 iterations of all decodes.
const MOST_AT_ONCE: f64 = 64.0;
const UNCOUNTED: f64 = (1 << 24) as f64;
/// Shares of requests below this count as 0.
const LEAST_ALIVE: f64 = 1e-200;

/// The row of a stage.
pub(crate) fn row_of(stage: u32) -> usize {
    if stage < 2 * OCTAVE {
        return stage as usize;
    }
    let shift = stage.ilog2() - OCTAVE.ilog2();
    ((shift * OCTAVE + (stage >> shift)) as usize).min(ROWS - 1)
}

/// First stage of a row.
pub(crate) const fn row_start(row: usize) -> u32 {
    let row = row as u32;
    if row < 2 * OCTAVE { row } else { (row % OCTAVE + OCTAVE) << (row / OCTAVE - 1) }
}

/// Stages in a row.
pub(crate) const fn row_width(row: usize) -> u32 {
    row_start(row + 1) - row_start(row)
}

/// Observations of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Seen {
    /// Stages passed in the row; a request that ended counts as if it had passed the whole row.
    exposure: f64,
    /// Outputs that ended in the row.
    ends: f64,
    /// Sum, and sum of squares, of where they ended, as a share of the row.
    place: f64,
    place_squared: f64,
}

/// Learned survival of the output lengths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Survival {
    rows: Vec<Seen>,
}

impl Default for Survival {
    fn default() -> Self {
        Self { rows: vec![Seen::default(); ROWS] }
    }
}

impl Survival {
    /// Requests passed this many stages of a row.
    pub(crate) fn expose(&mut self, row: usize, stages: f64) {
        self.rows[row].exposure += stages;
    }

    /// An output ended with the token after `stage`. One that ended with its prefill, at stage 0, never decoded and says
    /// nothing of those that do.
    pub(crate) fn end(&mut self, stage: u32) {
        if stage == 0 {
            return;
        }
        let row = row_of(stage);
        let (start, width) = (row_start(row), row_width(row));
        let place = ((f64::from(stage - start) + 0.5) / f64::from(width)).min(1.0);
        let seen = &mut self.rows[row];
        seen.ends += 1.0;
        seen.exposure += f64::from((start + width).saturating_sub(stage + 1));
        seen.place += place;
        seen.place_squared += place * place;
    }

    /// Whether any output has ended.
    pub(crate) fn has_ends(&self) -> bool {
        self.rows.iter().any(|seen| seen.ends > 0.0)
    }

    /// Forgets what is more than `memory` passages of a row ago.
    pub(crate) fn fade(&mut self, memory: f64) {
        for (row, seen) in self.rows.iter_mut().enumerate() {
            let most = memory * f64::from(row_width(row));
            if seen.exposure > most {
                let keep = most / seen.exposure;
                seen.exposure = most;
                seen.ends *= keep;
                seen.place *= keep;
                seen.place_squared *= keep;
            }
        }
    }

    /// Whether it could have been learned: the right number of rows, and only values that counting can give.
    pub(crate) fn is_sound(&self) -> bool {
        let sound = |(row, seen): (usize, &Seen)| {
            let ended = seen.ends * f64::from(row_width(row)) <= MOST_AT_ONCE * seen.exposure + UNCOUNTED;
            let sums = [seen.exposure, seen.ends, seen.place, seen.place_squared];
            let placed = seen.place <= seen.ends + 1e-9 && seen.place_squared <= seen.place + 1e-9;
            ended && placed && sums.iter().all(|sum| (0.0..=MOST_SEEN).contains(sum))
        };
        self.rows.len() == ROWS && self.rows.iter().enumerate().all(sound)
    }

    /// The estimate for a class of requests, which leans on another curve where the class has few observations.
    pub(crate) fn leaning(&self, on: &Curve) -> Curve {
        let mut curve = Curve::default();
        for (row, seen) in self.rows.iter().enumerate() {
            let expected = 1.0 - on.at[row + 1] / on.at[row];
            let passages = seen.exposure / f64::from(row_width(row));
            let ends = ((seen.ends + LEAN * expected) / (passages + LEAN)).min(MOST_ENDS);
            curve.at[row + 1] = (curve.at[row] * (1.0 - ends)).max(LEAST_ALIVE);
            curve.fall[row] = if seen.ends > 0.0 { seen.fall() } else { on.fall[row] };
        }
        curve
    }

    /// The estimate.
    pub(crate) fn curve(&self) -> Curve {
        let mut curve = Curve::default();
        // The hazard is carried from row to row as odds per stage, so that no exponential is needed.
        let mut before = PRIOR_SHAPE / PRIOR_TOKENS;
        for (row, seen) in self.rows.iter().enumerate() {
            let (start, width) = (f64::from(row_start(row)), f64::from(row_width(row)));
            let odds = width * libm::sqrt(before * PRIOR_SHAPE / (PRIOR_TOKENS + start));
            let expected = odds / (1.0 + odds);
            let passages = (PRIOR_ENDS / expected).min(PRIOR_PASSAGES);
            let ends = (seen.ends + passages * expected) / (seen.exposure / width + passages);
            let ends = ends.min(MOST_ENDS);
            before = ends / (1.0 - ends) / width * (PRIOR_TOKENS + start) / (PRIOR_TOKENS + start + width);
            curve.at[row + 1] = (curve.at[row] * (1.0 - ends)).max(LEAST_ALIVE);
            curve.fall[row] = seen.fall();
        }
        curve
    }
}

impl Seen {
    /// Where in the row the outputs end: uniformly over an interval with their mean and variance, to which a uniform
    /// one over the whole row is added as one observation.
    fn fall(&self) -> (f64, f64) {
        let count = self.ends + 1.0;
        let mean = (self.place + 0.5) / count;
        let variance = (self.place_squared + 1.0 / 3.0) / count - mean * mean;
        let half = libm::sqrt(3.0 * variance.max(0.0)).min(mean).min(1.0 - mean).max(0.005);
        (mean - half, 0.5 / half)
    }
}

/// Survival as a function of the stage.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    /// Share alive at the start of each row.
    at: [f64; ROWS + 1],
    /// Where the outputs that end in a row start to end, and how fast they then do, in shares of the row.
    fall: [(f64, f64); ROWS],
}

impl Default for Curve {
    fn default() -> Self {
        Self { at: [1.0; ROWS + 1], fall: [(0.0, 1.0); ROWS] }
    }
}

impl Curve {
    /// The lengths of those requests that get a prediction, by Bayes' rule: the predictions made for a length are
    /// lognormal around it, with the given deviation of the logarithm. A useless prediction leaves the common curve.
    pub(crate) fn given(&self, predicted: f64, deviation: f64) -> Self {
        let mut weights = [0.0; ROWS];
        let mut most = f64::NEG_INFINITY;
        for (row, weight) in weights.iter_mut().enumerate() {
            let middle = f64::from(row_start(row)) + 0.5 * f64::from(row_width(row)) + 0.5;
            let away = libm::log(middle / predicted) / deviation;
            let share = (1.0 - UNSEEN) * (self.at[row] - self.at[row + 1]) + UNSEEN / ROWS as f64;
            *weight = libm::log(share) - 0.5 * away * away;
            most = most.max(*weight);
        }
        let mut curve = Self { fall: self.fall, ..Self::default() };
        // Summed from the end, so that what is left beyond the likely lengths keeps its digits.
        let mut left = 0.0;
        for (row, weight) in weights.iter().enumerate().rev() {
            curve.at[row + 1] = left;
            left += libm::exp(weight - most);
        }
        for row in 0..ROWS {
            let least = curve.at[row] * (1.0 - MOST_ENDS);
            curve.at[row + 1] = (curve.at[row + 1] / left).max(least).max(LEAST_ALIVE);
        }
        curve
    }

    /// Mean of the lengths and of their squares, tokens.
    pub(crate) fn moments(&self) -> (f64, f64) {
        let (mut mean, mut squared) = (0.0, 0.0);
        for row in 0..ROWS {
            let (start, width) = (f64::from(row_start(row)), f64::from(row_width(row)));
            let alive = 0.5 * (self.at[row] + self.at[row + 1]) * width;
            mean += alive;
            squared += alive * (2.0 * start + width);
        }
        (mean, squared)
    }

    /// Share of the requests that reach a place in a row, `into` from 0 at its start to 1 at its end.
    pub(crate) fn alive(&self, row: usize, into: f64) -> f64 {
        let (from, slope) = self.fall[row];
        self.at[row] + (self.at[row + 1] - self.at[row]) * ((into - from) * slope).clamp(0.0, 1.0)
    }
}
