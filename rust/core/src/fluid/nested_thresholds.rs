//! Thresholds of Nested WAIT: the conditions ΔT(n) < `n_1/Λ_1` and `p_k` < `n_k/n_{k−1}` < 1, and memory with its buffer.

use serde::{Deserialize, Serialize};

use super::Segments;
use crate::error::{Error, Violation, invalid, non_negative, positive};
use crate::fluid::prefill_mixture::iteration_seconds;
use crate::fluid::{
    GpuLimits, Protection, SafetyBuffer, candidates, equilibrium_time, exceeds, kv, last_edge, minimise, waiting,
};
use crate::model::IterationTime;

/// The condition under which arrivals do not outrun the first segment.
const KEEPS_UP: &str = "ΔT(n) < n_1/Λ_1";

/// A question about Nested WAIT on one GPU.
#[derive(Debug, Clone, Copy)]
pub struct NestedSetting<'a> {
    /// The segments of the workload.
    pub segments: &'a Segments,
    /// How long an iteration takes.
    pub law: &'a IterationTime,
    /// What the GPU allows.
    pub limits: GpuLimits,
    /// How rarely memory may overflow; without it there is no buffer.
    pub protection: Option<Protection>,
    /// Tokens per KV block, in which the buffer is counted.
    pub block_size: u32,
}

/// Thresholds of Nested WAIT, with what follows from them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NestedThresholds {
    /// `n_k`, by segment.
    pub per_segment: Vec<f64>,
    /// ΔT(n): seconds of an iteration with `n_k` requests at every stage of segment k; the mean where `n_1` is paced.
    pub iteration_time: f64,
    /// M^π = Σ `n_k` (l + `s̄_k`) `δ_k`: KV tokens without the buffer.
    pub memory: f64,
    /// KV tokens of the safety buffer, with which memory overflows as rarely as asked for (`safety/buffer.rs`); 0 without
    /// protection or where a chain condition fails.
    pub buffer: f64,
    /// The inequalities that fail; none if the thresholds are feasible.
    #[serde(skip)]
    pub violations: Vec<Violation>,
}

impl NestedThresholds {
    /// The chain `n_1` = `first`, `n_k` = `n_{k−1}` min(`p_k` + `margin`, 0.99).
    ///
    /// # Errors
    /// [`Error::Invalid`] if `first` is not above 0 or the margin is negative or not finite.
    pub fn chain(first: f64, segments: &Segments, margin: f64) -> Result<Vec<f64>, Error> {
        positive("first threshold", first)?;
        non_negative("margin", margin)?;
        let mut n = first;
        let later = segments.as_slice()[1..].iter().map(|segment| {
            n *= (segment.survival + margin).min(0.99);
            n
        });
        Ok(std::iter::once(first).chain(later).collect())
    }

    /// Evaluates given thresholds, by segment.
    ///
    /// # Errors
    /// [`Error::Invalid`] if their number is not the number of segments, one is not above 0, or the
    /// protection is out of range. Infeasible thresholds are no error: see `violations`.
    pub fn evaluate(per_segment: Vec<f64>, setting: &NestedSetting) -> Result<Self, Error> {
        setting.limits.validate()?;
        let segments = setting.segments.as_slice();
        if per_segment.len() != segments.len() {
            return Err(invalid("number of thresholds", &per_segment.len(), "the number of segments"));
        }
        for (k, &n) in per_segment.iter().enumerate() {
            positive(&format!("thresholds[{k}]"), n)?;
        }
        let batch = setting.segments.full_batch(&per_segment);
        let entries = std::iter::once((segments[0].prompt, per_segment[0]));
        let iteration_time = iteration_seconds(&batch, entries, setting.law, &setting.limits);
        let memory = kv(&batch);
        let mut violations = chain_violations(&per_segment, setting, iteration_time);
        let mut residents: f64 = segments.iter().zip(&per_segment).map(|(s, n)| n * f64::from(s.width())).sum();
        let (mut tokens, mut buffer) = (batch.tokens(), 0.0);
        if let Some(protection) = &setting.protection
            && let Ok(safety) = SafetyBuffer::new(&per_segment, setting.segments, setting.law, setting.block_size)
        {
            buffer = safety.tokens(protection)?;
            residents = safety.residents(protection)?;
            tokens = safety.iteration_tokens();
        }
        let mut require = |condition: &str, left: f64, right: f64, unit: &str| {
            if exceeds(left, right) {
                let remedy = format!("holds with {unit} = {:.0}", left.ceil());
                violations.push(Violation { condition: condition.to_owned(), left, right, remedy });
            }
        };
        require("M^π + buffer ≤ C", memory + buffer, setting.limits.capacity as f64, "C");
        // With protection these two are upper bounds, because a request that must wait for a slot or a chunk falls out
        // of step; without it they are means.
        if let Some(running) = setting.limits.max_running {
            let condition =
                if buffer > 0.0 { "Σ n · δ + queues ≤ max_running" } else { "Σ n · δ ≤ max_running" };
            require(condition, residents, f64::from(running), "max_running");
        }
        if let Some(budget) = setting.limits.token_budget {
            require("tokens per iteration ≤ token_budget", tokens, budget as f64, "token_budget");
        }
        Ok(Self { per_segment, iteration_time, memory, buffer, violations })
    }

    /// The chain with this margin whose first threshold gives the least expected latency.
    ///
    /// As for WAIT: every stage costs the spacing Δ' = `n_1/Λ_1`, so latency grows with it, while the queues before
    /// prefill and at the boundaries, with steps of variance `Λ_1 T` and `n_{k−1} p_k (1 − p_k)` and drifts `n_1` −
    /// `Λ_1 T` and `n_k` − `n_{k−1} p_k`, are longer the smaller the thresholds. The chain is searched over Δ' from the
    /// least with T ≤ Δ' to the largest that fits memory and buffer.
    ///
    /// # Errors
    /// [`Error::Unstable`] if the chain keeps up at no size, [`Error::Infeasible`] if none that keeps up
    /// fits, [`Error::Invalid`] if an argument is out of range.
    pub fn best(setting: &NestedSetting, margin: f64) -> Result<Self, Error> {
        setting.limits.validate()?;
        let rate = setting.segments.as_slice()[0].rate;
        // The batch at spacing Δ' is Δ' times this one, as in the fluid model.
        let demand = setting.segments.full_batch(&Self::chain(rate, setting.segments, margin)?);
        let least = equilibrium_time(&demand, setting.law)?;
        let at = |spacing: f64| {
            Self::chain(rate * spacing, setting.segments, margin).and_then(|n| Self::evaluate(n, setting))
        };
        let capacity = setting.limits.capacity as f64;
        let fits = |spacing: f64| at(spacing).is_ok_and(|n| !exceeds(n.memory + n.buffer, capacity));
        let largest = largest_where(fits, least, capacity / kv(&demand));
        let latency =
            |spacing: f64| at(spacing).ok().filter(Self::feasible).map_or(f64::INFINITY, |n| n.latency(setting));
        let spacing = minimise(latency, &candidates(&demand, setting.law, least, largest));
        let edge = last_edge(&demand, setting.law, spacing);
        let best = at(if spacing - edge < 1e-9 * spacing { edge } else { spacing })?;
        if best.feasible() {
            return Ok(best);
        }
        // The least size that keeps up shows what does not fit; that it just keeps up is not among the obstacles.
        let mut violations = at(least)?.violations;
        violations.retain(|v| exceeds(v.left, v.right) || v.condition != KEEPS_UP);
        Err(Error::Infeasible { violations: if violations.is_empty() { best.violations } else { violations } })
    }

    /// Whether every inequality holds.
    pub fn feasible(&self) -> bool {
        self.violations.is_empty()
    }

    /// Expected latency in seconds of a request, averaged over the arrivals: an estimate of the same kind as
    /// [`crate::fluid::Thresholds::delays`], in which a request that leaves a segment passed all of it.
    pub fn latency(&self, setting: &NestedSetting) -> f64 {
        let segments = setting.segments.as_slice();
        let (rate, time) = (segments[0].rate, self.iteration_time);
        let spacing = self.per_segment[0] / rate;
        let mut latency = waiting(self.per_segment[0], rate, time) + time - spacing;
        for (k, segment) in segments.iter().enumerate() {
            latency += segment.rate / rate * f64::from(segment.width()) * spacing;
            if k > 0 {
                let (before, n, p) = (self.per_segment[k - 1], self.per_segment[k], segment.survival);
                let drift = n - before * p;
                let queue = if drift > 0.0 { before * p * (1.0 - p) / (2.0 * drift) } else { f64::INFINITY };
                // The queue fills to n_k, half of it on average, and beyond by `queue`; Λ_k requests pass per second
                // (Little), of Λ_1 that arrive.
                latency += (0.5 * n + queue) / rate;
            }
        }
        latency
    }
}

/// The largest value in [low, high] that fits, by bisection; `low` if none does.
fn largest_where(fits: impl Fn(f64) -> bool, low: f64, high: f64) -> f64 {
    let (mut low, mut high) = (low, high.max(low));
    if fits(high) {
        return high;
    }
    for _ in 0..100 {
        let middle = f64::midpoint(low, high);
        if fits(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

fn chain_violations(n: &[f64], setting: &NestedSetting, iteration_time: f64) -> Vec<Violation> {
    let segments = setting.segments.as_slice();
    let mut failed = Vec::new();
    // Strict inequalities: equality is a queue without drift, whose length grows without bound.
    let mut require = |condition: String, left: f64, right: f64, remedy: String| {
        if left >= right {
            failed.push(Violation { condition, left, right, remedy });
        }
    };
    let needed = segments[0].rate * iteration_time;
    let remedy = format!("holds for n_1 above {needed:.6}, ΔT(n) being equal");
    require(KEEPS_UP.to_owned(), iteration_time, n[0] / segments[0].rate, remedy);
    for k in 1..n.len() {
        let (i, ratio, p) = (k + 1, n[k] / n[k - 1], segments[k].survival);
        let remedy = format!("holds for n_{i} above {:.6}", n[k - 1] * p);
        require(format!("p_{i} < n_{i}/n_{k}"), p, ratio, remedy);
        require(format!("n_{i}/n_{k} < 1"), ratio, 1.0, format!("holds for n_{i} below {:.6}", n[k - 1]));
    }
    failed
}
