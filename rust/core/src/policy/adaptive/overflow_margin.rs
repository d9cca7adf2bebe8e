//! The margin that the forecast keeps: an overflow is weighed against idle memory, time against time.
//!
//! A request that is not admitted leaves a slot of the batch idle, and each iteration then carries its fixed cost
//! (reading the weights, above all) for one decode fewer. A request that is admitted and preempted h iterations later
//! computes its KV again. The request admitted last is the one preempted, so the request that causes an overflow pays
//! for it, and no later admission can cause its preemption. It is admitted if at every horizon h
//!
//! ```text
//! P(overflow at h) · (KV it then holds) ≤ (what h iterations in the queue cost, in prompt tokens)
//! ```
//!
//! An idle slot costs its share of the fixed cost in each of them, and half of that where requests are always held: some
//! request then takes it long before, as soon as another leaves. And where what is held rises until h, no request that
//! waits will have been admitted before, and a first token comes h iterations later. Time lost, as by KV computed again,
//! delays all n requests that are present, so that an iteration of this wait costs an n-th of itself, times the weight
//! that first tokens have in the choice of the token budget. In a steady state what is held falls unless requests enter,
//! and the wait is short. Of a burst none leaves for long: where their prompts fit, its requests are admitted, and some of
//! them preempted later.
//!
//! The near future must be almost certain; the far future may be unlikely. Where few requests fill the cache a slot is
//! worth many prompt tokens, and only the next iterations count; where hundreds share the fixed cost, a slot is worth
//! one token or less, and all horizons count. A stated probability is kept at every horizon instead.
//!
//! What is held falls by whole requests that leave, and otherwise rises by one token per iteration for each. It can
//! therefore never exceed what is held if no request leaves; and where that is likelier than the overflow allowed, this
//! maximum must fit. In between, enough requests leave for what is held to be taken as normal.

use crate::config::{Config, Part};
use crate::learn::{HORIZONS, Moments, Span};

/// What a slot of the batch is worth per iteration where no law of iteration times is known, in prompt tokens, times the
/// decodes of the batch: the prompt tokens that take as long to compute as the weights take to be read, which is the
/// GPU's arithmetic rate over its memory bandwidth: some 150 for an A100 at 16 bits, 300 for an H100.
pub(super) const BALANCE: f64 = 200.0;

/// Least probability that is distinguished from certainty.
const LEAST: f64 = 1e-6;

/// Deviations from which on the margin is wider than any that is required: more than `LEAST` corresponds to.
const CLEAR: f64 = 5.0;

/// The rule, and the horizons to which it is applied.
#[derive(Clone, Copy, Debug)]
pub(super) struct OverflowMargin {
    rule: Rule,
    /// Horizons that are checked.
    horizons: usize,
}

#[derive(Clone, Copy, Debug)]
enum Rule {
    /// A probability at every horizon, and the standard deviations that it leaves above the mean.
    Stated { p: f64, z: f64 },
    /// As many as the horizon, the request and the batch are worth.
    Weighed,
}

impl OverflowMargin {
    pub(super) fn new(config: &Config) -> Self {
        let without = |part| config.without.contains(&part);
        let rule = match config.overflow_probability {
            // The mean alone.
            _ if without(Part::Buffer) => Rule::Stated { p: 1.0, z: 0.0 },
            Some(p) => Rule::Stated { p, z: deviations(p) },
            None => Rule::Weighed,
        };
        Self { rule, horizons: if without(Part::Horizons) { 1 } else { usize::MAX } }
    }

    /// The margin for a request that holds `kv` tokens once its prompt is computed, where the cache holds `capacity`, and
    /// at most `most` of it is held.
    pub(super) fn of(self, kv: u32, waiting: Waiting, capacity: f64, most: Most) -> RequestMargin {
        RequestMargin { margin: self, kv: f64::from(kv), waiting, capacity, most }
    }
}

/// What an iteration in the queue costs, in prompt tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    /// For the slot that is idle.
    pub(super) slot: f64,
    /// For the first token that waits; 0 where there has been one.
    pub(super) first: f64,
}

/// The most that is held, the request included: if no request leaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    /// Once the prompts are computed.
    pub(super) now: f64,
    /// More with each iteration.
    pub(super) growth: f64,
}

/// The margin for one request. Its tokens are what it would compute again; what is held is measured in tokens of the
/// first KV group, which differs for a cache of several groups.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestMargin {
    margin: OverflowMargin,
    kv: f64,
    waiting: Waiting,
    capacity: f64,
    most: Most,
}

impl RequestMargin {
    /// The probability of an overflow in h iterations that costs no more than waiting; at 1 or above any overflow is allowed.
    /// Where what is held `rises` until then, no request that waits will have been admitted before.
    fn allowed(&self, h: u32, rises: bool) -> f64 {
        let (h, Waiting { slot, first }) = (f64::from(h), self.waiting);
        h * (slot + if rises { first } else { 0.0 }) / (self.kv + h)
    }

    /// Whether the expectation at a column, or at a later one, may keep the request out.
    pub(super) fn asks(&self, column: usize) -> bool {
        let weighed = matches!(self.margin.rule, Rule::Weighed);
        column < self.margin.horizons && !(weighed && self.allowed(HORIZONS[column], false) >= 1.0)
    }

    /// Whether the most that is expected leaves a wider margin than any that is required.
    pub(super) fn is_clear(&self, mean: f64, deviation: f64) -> bool {
        let z = match self.margin.rule {
            Rule::Stated { z, .. } => z.max(0.0),
            Rule::Weighed => CLEAR,
        };
        mean + z * deviation <= self.capacity
    }

    /// What is needed, margin included, and the column at which that is most.
    pub(super) fn needs<const N: usize>(&self, span: &Span<N>) -> (f64, usize) {
        let mut most = (f64::NEG_INFINITY, span.first());
        for (j, held) in span.moments().enumerate().take(self.margin.horizons) {
            let Moments { horizon, mean, variance, deviation } = held;
            let all_stay = self.most.now + self.most.growth * f64::from(horizon);
            let (p, z) = match self.margin.rule {
                Rule::Stated { p, z } => (p, z),
                // The probability is next to nothing: skip the logarithm.
                Rule::Weighed if mean + CLEAR * deviation <= self.capacity => (1.0, 0.0),
                Rule::Weighed => {
                    let allowed = self.allowed(horizon, mean >= self.most.now);
                    if allowed >= 1.0 {
                        continue;
                    }
                    (allowed, deviations(allowed.max(LEAST)))
                }
            };
            // Nothing is likelier than 1: skip the exponential.
            let needs = if p < 1.0 && no_request_leaves(all_stay - mean, variance) > p {
                all_stay
            } else {
                all_stay.min(mean + z * deviation)
            };
            if needs > most.0 {
                most = (needs, span.first() + j);
            }
        }
        most
    }
}

/// The probability that no request leaves where `freed` is expected to be freed, with this variance: of a Poisson
/// number of requests of one size.
fn no_request_leaves(freed: f64, variance: f64) -> f64 {
    if freed > 0.0 { libm::exp(-freed * freed / variance) } else { 1.0 }
}

/// z with P(N > z) = p for a standard normal N, p in (0, 1), to 4.5e-4: Abramowitz and Stegun, 26.2.23.
fn deviations(p: f64) -> f64 {
    let tail = |p: f64| {
        let t = libm::sqrt(-2.0 * libm::log(p));
        let above = 2.515_517 + t * (0.802_853 + t * 0.010_328);
        let below = 1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308));
        t - above / below
    };
    if p <= 0.5 { tail(p) } else { -tail(1.0 - p) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stated_probability_is_kept() {
        for (delta, z) in [(0.5, 0.0), (0.158_655, 1.0), (0.022_750, 2.0), (0.001_35, 3.0), (0.977_25, -2.0)] {
            assert!((deviations(delta) - z).abs() < 1e-3, "{delta}: {}", deviations(delta));
        }
    }
}
