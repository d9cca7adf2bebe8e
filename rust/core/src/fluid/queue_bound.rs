//! How rarely Nested WAIT overflows memory (arXiv 2504.11320 §5): the queues of requests that wait, resident, at the
//! segment boundaries, and the buffer that keeps an overflow within a horizon to probability δ (`safety_buffer.rs`).
//!
//! The queue before segment k follows W' = max(`n_k`, W + Bin(`n_{k−1}`, `p_k`) − `n_k`), and P(W ≥ c) ≤ e^(−θ(c − `n_k`)) for the
//! θ > 0 that makes e^(θ (Bin − `n_k`)) a martingale (Doob's inequality).

use serde::{Deserialize, Serialize};

use crate::error::{Error, invalid, non_negative, positive};

/// How rarely memory may overflow.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protection {
    /// δ: probability of an overflow within the horizon, in (0, 1).
    pub failure_probability: f64,
    /// T: seconds, at least 0.
    pub horizon: f64,
}

impl Protection {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        check_probability("failure_probability", self.failure_probability)?;
        non_negative("horizon", self.horizon)?;
        Ok(())
    }
}

pub(super) fn check_probability(name: &str, value: f64) -> Result<(), Error> {
    if value > 0.0 && value < 1.0 { Ok(()) } else { Err(invalid(name, &value, "strictly between 0 and 1")) }
}

/// θ > 0 with e^(−θ n) (1 − p + p e^θ)^(before) = 1: the decay rate of the queue that receives Bin(`before`, `p`) requests
/// and lets `n` through per iteration. It is at least 8 (n − before · p)/before (Hoeffding).
///
/// # Errors
/// [`Error::Invalid`] unless 0 < p < n/before < 1, which is where θ exists.
pub fn theta(before: f64, n: f64, p: f64) -> Result<f64, Error> {
    positive("n_{k-1}", before)?;
    positive("n_k", n)?;
    check_probability("p_k", p)?;
    let ratio = n / before;
    if ratio >= 1.0 {
        return Err(invalid("n_k/n_{k-1}", &ratio, "below 1"));
    }
    if ratio <= p {
        return Err(invalid("n_k/n_{k-1}", &ratio, "above p_k, the share of requests that go on"));
    }
    // g is convex with g(0) = 0 and g'(0) = p − ratio < 0, so it has one root above 0. Hoeffding's lemma bounds it from
    // below, log(1 − p + p e^θ) ≥ θ + log p from above; Newton from above stays above.
    let g = |x: f64| libm::log1p(p * libm::expm1(x)) - x * ratio;
    let slope = |x: f64| p / (p + (1.0 - p) * libm::exp(-x)) - ratio;
    let g = |x: f64| if x > 30.0 { x + libm::log(p + (1.0 - p) * libm::exp(-x)) - x * ratio } else { g(x) };
    let (mut low, mut high) = (8.0 * (ratio - p), -libm::log(p) / (1.0 - ratio));
    let mut x = high;
    for _ in 0..200 {
        let value = g(x);
        if value > 0.0 {
            high = high.min(x);
        } else {
            low = low.max(x);
        }
        let newton = x - value / slope(x);
        let next = if newton > low && newton < high { newton } else { f64::midpoint(low, high) };
        if (next - x).abs() <= 1e-15 * x {
            break;
        }
        x = next;
    }
    Ok(x.max(8.0 * (ratio - p)))
}

/// The queue length, in requests, that the boundary queue exceeds within `steps` iterations with probability at most
/// `failure_probability`: n + ln(steps/δ)/θ.
///
/// # Errors
/// [`Error::Invalid`] where [`theta`] does not exist, or `steps` is below 1, or δ is outside (0, 1).
pub fn queue_bound(before: f64, n: f64, p: f64, steps: f64, failure_probability: f64) -> Result<f64, Error> {
    check_probability("failure_probability", failure_probability)?;
    if !steps.is_finite() || steps < 1.0 {
        return Err(invalid("steps", &steps, "finite and at least 1"));
    }
    Ok(n + libm::log(steps / failure_probability) / theta(before, n, p)?)
}
