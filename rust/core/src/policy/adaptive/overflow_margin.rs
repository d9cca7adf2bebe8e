//! The margin that the forecast keeps: an overflow is weighed against idle memory, time against time.
//!
//! A request that is not admitted leaves a slot of the batch idle, and each iteration then carries its fixed cost (reading
//! the weights, above all) for one decode fewer. A request that is admitted and preempted h iterations later computes its
//! KV again. It is the request admitted last that is preempted, so the overflow is paid for by the one that causes it, and
//! what is admitted after it cannot cause its preemption. It is admitted if at every horizon h
//!
//! ```text
//! P(overflow at h) · (KV it then holds) ≤ h · (what a slot is worth per iteration, in prompt tokens)
//! ```
//!
//! The near future must be almost certain and the far one may be unlikely. Where few requests fill the cache a slot is
//! worth many prompt tokens, and only the next iterations count; where hundreds share the fixed cost, it is worth one or
//! less, and all of them do. A stated probability is kept at every horizon instead.

use crate::config::{Config, Part};
use crate::learn::{HORIZONS, Span};

/// What a slot of the batch is worth per iteration where no law of iteration times is known, in prompt tokens, times the
/// decodes of the batch: the prompt tokens that take as long to compute as the weights take to be read, which is the
/// GPU's arithmetic rate over its memory bandwidth: some 150 for an A100 at 16 bits, 300 for an H100.
pub(super) const BALANCE: f64 = 200.0;

/// Least probability that is distinguished from certainty.
const LEAST: f64 = 1e-6;

/// Deviations from which on the margin is wider than any that is asked: more than `LEAST` corresponds to.
const CLEAR: f64 = 5.0;

/// The rule, and the horizons to which it is applied.
#[derive(Clone, Copy, Debug)]
pub(super) struct OverflowMargin {
    rule: Rule,
    /// Horizons looked at.
    horizons: usize,
}

#[derive(Clone, Copy, Debug)]
enum Rule {
    /// So many standard deviations at every horizon.
    Stated(f64),
    /// As many as the horizon, the request and the batch are worth.
    Weighed,
}

impl OverflowMargin {
    pub(super) fn new(config: &Config) -> Self {
        let without = |part| config.without.contains(&part);
        let rule = match config.overflow_probability {
            _ if without(Part::Buffer) => Rule::Stated(0.0),
            Some(delta) => Rule::Stated(deviations(delta)),
            None => Rule::Weighed,
        };
        Self { rule, horizons: if without(Part::Horizons) { 1 } else { usize::MAX } }
    }

    /// The margin for a request that holds `kv` tokens once its prompt is computed, where a slot is worth `worth` prompt
    /// tokens per iteration and the cache holds `capacity`.
    pub(super) fn of(self, kv: u32, worth: f64, capacity: f64) -> RequestMargin {
        RequestMargin { margin: self, kv: f64::from(kv), worth, capacity }
    }
}

/// What the margin asks for one request. Its tokens are what it would compute again; what is held is measured in tokens of
/// the first KV group, which for a cache of several groups is another thing.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestMargin {
    margin: OverflowMargin,
    kv: f64,
    worth: f64,
    capacity: f64,
}

impl RequestMargin {
    /// The probability of an overflow in h iterations that is no dearer than an idle slot; from 1 on all is allowed.
    fn allowed(&self, h: u32) -> f64 {
        let h = f64::from(h);
        self.worth * h / (self.kv + h)
    }

    /// Whether anything expected at a column, or at a later one, may keep the request out.
    pub(super) fn asks(&self, column: usize) -> bool {
        let weighed = matches!(self.margin.rule, Rule::Weighed);
        column < self.margin.horizons && !(weighed && self.allowed(HORIZONS[column]) >= 1.0)
    }

    /// Whether what is at most expected leaves a wider margin than any that is asked.
    pub(super) fn is_clear(&self, mean: f64, deviation: f64) -> bool {
        let z = match self.margin.rule {
            Rule::Stated(z) => z.max(0.0),
            Rule::Weighed => CLEAR,
        };
        mean + z * deviation <= self.capacity
    }

    /// What is needed, margin included, and the column at which that is most.
    pub(super) fn needs<const N: usize>(&self, span: &Span<N>) -> (f64, usize) {
        let mut most = (f64::NEG_INFINITY, span.first());
        for (j, (h, mean, deviation)) in span.moments().enumerate().take(self.margin.horizons) {
            let z = match self.margin.rule {
                Rule::Stated(z) => z,
                // The probability is next to nothing: spared a logarithm.
                Rule::Weighed if mean + CLEAR * deviation <= self.capacity => 0.0,
                Rule::Weighed => {
                    let allowed = self.allowed(h);
                    if allowed >= 1.0 {
                        break;
                    }
                    deviations(allowed.max(LEAST))
                }
            };
            if mean + z * deviation > most.0 {
                most = (mean + z * deviation, span.first() + j);
            }
        }
        most
    }
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
