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
use crate::learn::Outlook;

/// What a slot of the batch is worth per iteration where no law of iteration times is known, in prompt tokens, times the
/// decodes of the batch: the prompt tokens that take as long to compute as the weights take to be read, which is the
/// GPU's arithmetic rate over its memory bandwidth: some 150 for an A100 at 16 bits, 300 for an H100.
pub(super) const BALANCE: f64 = 200.0;

/// Least probability that is told from certainty.
const LEAST: f64 = 1e-6;

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

    /// KV tokens needed, margin included, at the horizon at which it is most, for a request that holds `kv` tokens once
    /// its prompt is computed where a slot is worth `worth` prompt tokens per iteration.
    pub(super) fn needs(self, outlook: &Outlook, kv: f64, worth: f64, capacity: f64) -> f64 {
        let mut most = f64::NEG_INFINITY;
        for (h, mean, deviation) in outlook.moments().take(self.horizons) {
            let z = match self.rule {
                Rule::Stated(z) => z,
                // Far from the capacity the probability is next to nothing: spared a logarithm.
                Rule::Weighed if mean + 5.0 * deviation <= capacity => 0.0,
                Rule::Weighed => {
                    let h = f64::from(h);
                    let allowed = worth * h / (kv + h);
                    if allowed >= 1.0 {
                        continue;
                    }
                    deviations(allowed.max(LEAST))
                }
            };
            most = most.max(mean + z * deviation);
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
