//! Pacing: admission at no more than C/E[A] requests an iteration, the balanced composition of the fluid model.
//!
//! Requests of nearly equal length that enter together leave together: memory then swings between full and half empty
//! for ever, for the line refills it at once. A bucket of KV tokens · iterations that fills with C an iteration, and of
//! which each admission takes E[A], spreads them. How much it may hold grows with the variance of the lengths, for
//! different lengths disperse a cohort by themselves.

use serde::{Deserialize, Serialize};

/// Rate of the bucket over C: what is not used in one iteration may be in another.
const SLACK: f64 = 1.05;
/// What the bucket holds for equal lengths, and what it gains with their squared coefficient of variation, in C · E[l'].
/// It never owes more than the former, so that many who enter unasked (who come back, or whom the host takes by itself)
/// hold others up for a while, not for as long as they stay.
const BURST: f64 = 0.05;
const BURST_PER_VARIATION: f64 = 3.0;
/// Completions before anything is paced, and completions remembered.
const FIRST: f64 = 50.0;
const MEMORY: f64 = 500.0;

/// The bucket, and the means that set its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pace {
    /// Completions seen, and over the last of them the means of l', l'² and A.
    ended: f64,
    output: f64,
    output_squared: f64,
    cost: f64,
    /// What the bucket holds, KV tokens · iterations.
    credit: f64,
}

impl Pace {
    /// A request of `output` tokens has ended; it held `kv` tokens on average.
    pub(super) fn learn(&mut self, output: f64, kv: f64) {
        self.ended += 1.0;
        let weight = 1.0 / self.ended.min(MEMORY);
        self.output += weight * (output - self.output);
        self.output_squared += weight * (output * output - self.output_squared);
        self.cost += weight * (output * kv - self.cost);
    }

    /// Whether it could have been learned.
    pub(super) fn is_sound(&self) -> bool {
        let means = [self.ended, self.output, self.output_squared, self.cost];
        means.iter().all(|mean| mean.is_finite() && *mean >= 0.0) && self.credit.is_finite()
    }

    /// So many iterations with `capacity` KV tokens have passed.
    pub(super) fn fill(&mut self, iterations: i64, capacity: f64) {
        let squared = (self.output * self.output).max(f64::MIN_POSITIVE);
        let variation = (self.output_squared / squared - 1.0).max(0.0);
        let burst = capacity * self.output * BURST;
        let most = capacity * self.output * (BURST + BURST_PER_VARIATION * variation);
        let filled = self.credit.max(-burst) + SLACK * capacity * iterations as f64;
        self.credit = if self.ended < FIRST { most } else { filled.min(most) };
    }

    /// A request was admitted.
    pub(super) fn take(&mut self) {
        self.credit -= self.cost;
    }

    /// The host did not take it.
    pub(super) fn give_back(&mut self) {
        self.credit += self.cost;
    }

    /// Whether one more may enter after `pending` others.
    pub(super) fn admits(&self, pending: usize) -> bool {
        self.ended < FIRST || self.credit >= pending as f64 * self.cost
    }

    /// What the bucket holds, in admissions.
    pub(super) fn admissions(&self) -> f64 {
        self.credit / self.cost.max(1.0)
    }
}
