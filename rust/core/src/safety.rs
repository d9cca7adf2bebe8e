//! Nested WAIT's safety buffer (arXiv 2504.11320 §5): memory for the queues of requests that wait, resident, at the
//! segment boundaries, so that memory overflows within a horizon with probability at most δ.
//!
//! The queue before segment k follows W' = max(`n_k`, W + Bin(`n_{k−1}`, `p_k`) − `n_k`), and P(W ≥ c) ≤ e^(−θ(c − `n_k`)) for the
//! θ > 0 that makes e^(θ (Bin − `n_k`)) a martingale (Doob's inequality).

use serde::{Deserialize, Serialize};

use crate::cost::IterationTime;
use crate::planning_error::{PlanningError, invalid, non_negative, positive};
use crate::segment::Segments;

#[cfg(test)]
mod tests;

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
    pub(crate) fn validate(&self) -> Result<(), PlanningError> {
        check_probability("failure_probability", self.failure_probability)?;
        non_negative("horizon", self.horizon)?;
        Ok(())
    }
}

fn check_probability(name: &str, value: f64) -> Result<(), PlanningError> {
    if value > 0.0 && value < 1.0 { Ok(()) } else { Err(invalid(name, &value, "strictly between 0 and 1")) }
}

/// θ > 0 with e^(−θ n) (1 − p + p e^θ)^(before) = 1: the decay rate of the queue that receives Bin(`before`, `p`) requests
/// and lets `n` through per iteration. It is at least 8 (n − before · p)/before (Hoeffding).
///
/// # Errors
/// [`PlanningError::InvalidArgument`] unless 0 < p < n/before < 1, which is where θ exists.
pub fn theta(before: f64, n: f64, p: f64) -> Result<f64, PlanningError> {
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
/// [`PlanningError::InvalidArgument`] where [`theta`] does not exist, or `steps` is below 1, or δ is outside (0, 1).
pub fn queue_bound(before: f64, n: f64, p: f64, steps: f64, failure_probability: f64) -> Result<f64, PlanningError> {
    check_probability("failure_probability", failure_probability)?;
    if !steps.is_finite() || steps < 1.0 {
        return Err(invalid("steps", &steps, "finite and at least 1"));
    }
    Ok(n + libm::log(steps / failure_probability) / theta(before, n, p)?)
}

/// One boundary queue.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BoundaryQueue {
    /// KV tokens of a request that waits there: l + `l'_{k−1}`.
    pub tokens_per_request: f64,
    /// `n_k`.
    pub threshold: f64,
    /// `θ_k`.
    pub theta: f64,
}

/// The buffer that given thresholds need, as a function of δ and the horizon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SafetyBuffer {
    /// The queues before segments 2, 3, …
    pub queues: Vec<BoundaryQueue>,
    /// m: number of segments.
    pub segments: usize,
    /// Shortest iteration, seconds: d0, which bounds the iterations in a horizon T by 1 + T/d0.
    pub least_iteration: f64,
}

impl SafetyBuffer {
    /// The buffer of Nested WAIT with thresholds `n`, one per segment.
    ///
    /// # Errors
    /// [`PlanningError::InvalidArgument`] if the numbers do not match or some `θ_k` does not exist.
    pub fn new(n: &[f64], segments: &Segments, law: &IterationTime) -> Result<Self, PlanningError> {
        let all = segments.as_slice();
        if n.len() != all.len() {
            return Err(invalid("number of thresholds", &n.len(), "the number of segments"));
        }
        let queue = |(pair, segment): (&[f64], &crate::segment::Segment)| {
            let theta = theta(pair[0], pair[1], segment.survival)?;
            let tokens_per_request = segment.prompt + f64::from(segment.first_stage - 1);
            Ok(BoundaryQueue { tokens_per_request, threshold: pair[1], theta })
        };
        let queues = n.windows(2).zip(&all[1..]).map(queue).collect::<Result<_, PlanningError>>()?;
        Ok(Self { queues, segments: all.len(), least_iteration: law.least_seconds() })
    }

    /// KV tokens to keep free above M^π: Σ (l + `l'_{k−1}`) [`n_k` + ln(m (1 + T/d0)/δ)/`θ_k`].
    ///
    /// # Errors
    /// [`PlanningError::InvalidArgument`] if δ or the horizon is out of range.
    pub fn tokens(&self, protection: &Protection) -> Result<f64, PlanningError> {
        let bounds = self.queue_bounds(protection)?;
        Ok(self.queues.iter().zip(bounds).fold(0.0, |sum, (queue, bound)| sum + queue.tokens_per_request * bound))
    }

    /// Requests that the queue before each segment 2, 3, … may hold under that protection.
    ///
    /// # Errors
    /// [`PlanningError::InvalidArgument`] if δ or the horizon is out of range.
    pub fn queue_bounds(&self, protection: &Protection) -> Result<Vec<f64>, PlanningError> {
        protection.validate()?;
        let exponent = libm::log(self.union(protection.horizon) / protection.failure_probability);
        Ok(self.queues.iter().map(|queue| queue.threshold + exponent / queue.theta).collect())
    }

    /// The inverse: the bound on δ that `tokens` of buffer give over `horizon` seconds; 1 where the bound says nothing, 0
    /// where there is no boundary.
    ///
    /// # Errors
    /// [`PlanningError::InvalidArgument`] if an argument is negative or not finite.
    pub fn failure_probability(&self, tokens: f64, horizon: f64) -> Result<f64, PlanningError> {
        non_negative("tokens", tokens)?;
        non_negative("horizon", horizon)?;
        if self.queues.is_empty() {
            return Ok(0.0);
        }
        Ok((self.union(horizon) * libm::exp(-self.exponent(tokens))).min(1.0))
    }

    /// The inverse in time: the longest horizon, in seconds, over which `tokens` of buffer keep the failure probability at
    /// or below δ; 0 if there is none, infinite where there is no boundary.
    ///
    /// # Errors
    /// [`PlanningError::InvalidArgument`] if an argument is out of range.
    pub fn horizon(&self, tokens: f64, failure_probability: f64) -> Result<f64, PlanningError> {
        non_negative("tokens", tokens)?;
        check_probability("failure_probability", failure_probability)?;
        if self.queues.is_empty() {
            return Ok(f64::INFINITY);
        }
        let steps = failure_probability * libm::exp(self.exponent(tokens)) / self.segments as f64;
        Ok((self.least_iteration * (steps - 1.0)).max(0.0))
    }

    /// m (1 + T/d0): queues times iterations, over which the union bound runs.
    fn union(&self, horizon: f64) -> f64 {
        self.segments as f64 * (1.0 + horizon / self.least_iteration)
    }

    /// The logarithm that `tokens` of buffer pay for.
    fn exponent(&self, tokens: f64) -> f64 {
        let thresholds: f64 = self.queues.iter().map(|q| q.tokens_per_request * q.threshold).sum();
        let per_unit: f64 = self.queues.iter().map(|q| q.tokens_per_request / q.theta).sum();
        (tokens - thresholds) / per_unit
    }
}
