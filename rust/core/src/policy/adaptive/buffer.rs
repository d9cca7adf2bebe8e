//! The safety buffer: how many standard deviations of the forecast stay free.
//!
//! A buffer of z σ keeps z σ tokens idle and lets memory overflow with probability 1 − Φ(z). If an overflow costs as much
//! as κ caches left idle, z σ + κ C (1 − Φ(z)) is least where φ(z) = σ/(κ C): z = √(2 ln(κ C/(σ √(2π)))). Where few
//! requests fill the cache σ is large and the buffer thin in deviations; it grows with the logarithm of what is at stake,
//! as the safety buffer of arXiv 2504.11320 §5 does with ln(1/δ). A stated δ is kept instead: z = Φ⁻¹(1 − δ).

use crate::config::{Config, Part};
use crate::forecast::Outlook;

/// κ. Set on the panel's seeds 1 to 5, to the evictions that it allows.
const OVERFLOW_COST: f64 = 1.75;
/// Most deviations that a weighed buffer has: where σ is 0.02 % of the cache.
const MOST: f64 = 4.0;

/// The rule for z, and where it is applied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    rule: Rule,
    /// Horizons looked at.
    horizons: usize,
}

#[derive(Clone, Copy, Debug)]
enum Rule {
    /// So many deviations.
    Fixed(f64),
    /// As many as cost least.
    Weighed,
}

impl Buffer {
    pub(super) fn new(config: &Config) -> Self {
        let without = |part| config.without.contains(&part);
        let rule = match config.overflow_probability {
            _ if without(Part::Buffer) => Rule::Fixed(0.0),
            Some(delta) => Rule::Fixed(quantile(delta)),
            None => Rule::Weighed,
        };
        Self { rule, horizons: if without(Part::Horizons) { 1 } else { usize::MAX } }
    }

    /// KV tokens needed, buffer included, at the horizon at which it is most.
    pub(super) fn needs(self, outlook: &Outlook, capacity: f64) -> f64 {
        let near = match self.rule {
            Rule::Fixed(z) => z,
            Rule::Weighed => MOST,
        };
        let mut most = f64::NEG_INFINITY;
        for (mean, deviation) in outlook.moments().take(self.horizons) {
            // Few horizons come near the most: the others are spared a logarithm.
            if mean + near * deviation > most {
                let z = match self.rule {
                    Rule::Weighed if deviation > 0.0 => weighed(OVERFLOW_COST * capacity / deviation).min(near),
                    _ => near,
                };
                most = most.max(mean + z * deviation);
            }
        }
        most
    }
}

/// z with φ(z) = σ/C, for C/σ; 0 where no z has.
fn weighed(ratio: f64) -> f64 {
    libm::sqrt(2.0 * libm::log(ratio / libm::sqrt(core::f64::consts::TAU)).max(0.0))
}

/// z with P(N > z) = δ for a standard normal N, δ in (0, 1): by bisection, once.
fn quantile(delta: f64) -> f64 {
    let (mut low, mut high) = (-40.0, 40.0);
    for _ in 0..64 {
        let z = f64::midpoint(low, high);
        let exceeds = 0.5 * libm::erfc(z / core::f64::consts::SQRT_2);
        if exceeds > delta { low = z } else { high = z }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stated_probability_is_kept() {
        for (delta, z) in [(0.5, 0.0), (0.158_655, 1.0), (0.022_750, 2.0), (0.001_35, 3.0), (0.977_25, -2.0)] {
            assert!((quantile(delta) - z).abs() < 1e-3, "{delta}: {}", quantile(delta));
        }
    }

    /// Idle memory and overflows, in caches: what the weighed buffer makes least.
    #[test]
    fn the_weighed_buffer_costs_least() {
        for spread in [0.001, 0.01, 0.05, 0.2, 0.5] {
            let cost = |z: f64| spread * z + OVERFLOW_COST * 0.5 * libm::erfc(z / core::f64::consts::SQRT_2);
            let best = (0..6_000).map(|i| 1e-3 * f64::from(i)).min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap();
            let z = weighed(OVERFLOW_COST / spread);
            assert!((z - best).abs() < 2e-3, "spread {spread}: {z}, least cost at {best}");
        }
    }
}
