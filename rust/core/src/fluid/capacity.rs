//! The capacity of a GPU for a length distribution: a linear program over compositions of an iteration.
//!
//! A composition is a pair (prefill tokens P, decodes D). Over any long run that finishes what arrives without preempting,
//! let g be the iterations per second of demand with each composition. Then, whatever the schedule and whatever it knows,
//!
//! 1. Σ g P covers the prompt tokens, 2. Σ g D the decodes;
//! 3. Σ over D > 0 of g · C covers the KV tokens that the decodes read, as no iteration reads more than C;
//! 4. Σ g · C covers the KV token-iterations Σ λ A, for resident requests hold at least that;
//! 5. Σ g · `max_running` covers the iterations of the requests, each of which needs one per stage;
//!
//! (a decode replica, which receives KV, has one prompt token of each request to compute: `StageConvention::DecodeOnly`)
//! and the time is Σ g · (token cost of P + D, plus the costs once per batch) + the attention costs, which depend on
//! the demand alone, not on how it is batched (a chunked prompt costs at least its attention). So the least time under
//! 1 to 5 bounds the rate of every schedule from above. Preemptions only add demand. Each stair of the law is a line,
//! so it is enough to consider the corners of the stairs; mixing them can beat every constant composition.

use serde::{Deserialize, Serialize};

use crate::error::{Error, invalid};
use crate::fluid::{Setting, kv};
use crate::model::FluidShape;

mod simplex;
#[cfg(test)]
mod tests;

/// An upper bound on what one GPU carries, and the mixture of compositions that attains it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CapacityBound {
    /// Factor on the workload's rates.
    pub scale: f64,
    /// Requests per second.
    pub requests: f64,
    /// Output tokens per second.
    pub throughput: f64,
    /// The compositions of the best mixture; with the attention costs they fill every second.
    pub mixture: Vec<Composition>,
    /// What one unit of each requirement costs at the optimum, in seconds: 0 where it does not bind.
    pub prices: Prices,
}

/// One composition of an iteration and its share of the best mixture.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Composition {
    /// P: prompt tokens.
    pub prefill_tokens: u64,
    /// D: decodes.
    pub decodes: u64,
    /// Iterations of this composition per second, at the bound.
    pub iterations: f64,
    /// Seconds of one such iteration, without what is proportional to the attention.
    pub base_seconds: f64,
}

/// Shadow prices of the five requirements, in seconds per unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Prices {
    /// Per prompt token.
    pub prefill_token: f64,
    /// Per decode.
    pub decode: f64,
    /// Per KV token read by a decode.
    pub decode_kv: f64,
    /// Per KV token · iteration held.
    pub memory: f64,
    /// Per iteration of a request.
    pub residence: f64,
}

/// The most requests per second, of the workload's mix, that any schedule can carry within the limits.
///
/// ```
/// use wait_core::fluid::{GpuLimits, Setting, capacity_bound, largest_stable_rate};
/// use wait_core::model::{IterationTime, RequestType, StageConvention, Workload};
///
/// let workload = Workload::new(vec![RequestType { prompt: 100, output: 50, rate: 20.0 }])?;
/// let setting = Setting {
///     workload: &workload,
///     law: &IterationTime::A100,
///     convention: StageConvention::Vllm,
///     limits: GpuLimits { capacity: 100_000, max_running: Some(256), token_budget: Some(2048) },
/// };
/// let bound = capacity_bound(&setting)?;
/// assert!(bound.requests > workload.rate());
/// // What one composition of the batch can carry, and what mixtures of several, chosen by any schedule, cannot exceed.
/// assert!(largest_stable_rate(&setting)?.requests <= bound.requests);
/// # Ok::<(), wait_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Invalid`] if every rate is 0, a limit is out of range, or no request fits the memory.
pub fn capacity_bound(setting: &Setting) -> Result<CapacityBound, Error> {
    setting.limits.validate()?;
    let Setting { workload, law, convention, limits } = *setting;
    if workload.rate() <= 0.0 {
        return Err(invalid("Σ rate", &workload.rate(), "above 0"));
    }
    let demand = workload.demand(convention);
    let prompts = workload.types().iter().filter(|t| t.rate > 0.0).map(|t| u64::from(t.prompt));
    let shortest = prompts.min().unwrap_or(1);
    if shortest > limits.capacity {
        return Err(invalid("capacity", &limits.capacity, "at least the shortest prompt"));
    }
    let running = limits.max_running.map_or(u64::MAX, u64::from);
    let memory = limits.capacity as f64;
    // A decode holds its prompt and a token at least, and every token computed holds KV.
    let columns = compositions(
        setting,
        running.min(limits.capacity / (shortest + 1)),
        limits.token_budget.unwrap_or(u64::MAX).min(limits.capacity),
    );
    let supply = |c: &Composition| {
        let decoding = if c.decodes > 0 { memory } else { 0.0 };
        [c.prefill_tokens as f64, c.decodes as f64, decoding, memory, running as f64]
    };
    let residence = if limits.max_running.is_some() { workload.iteration_rate(convention) } else { 0.0 };
    let needs = [demand.prefill_tokens, demand.decodes, demand.decode_kv, kv(&demand), residence];
    // Each requirement is divided by its size, so that the program is well scaled; those of size 0 are empty.
    let rows: Vec<[f64; 5]> = columns
        .iter()
        .map(|c| {
            let mut supplied = supply(c);
            for (value, need) in supplied.iter_mut().zip(needs) {
                *value = if need > 0.0 { *value / need } else { 0.0 };
            }
            supplied
        })
        .collect();
    let costs: Vec<f64> = columns.iter().map(|c| c.base_seconds).collect();
    let solution = simplex::cover(&rows, &costs, needs.map(|need| need > 0.0));
    let Some(solution) = solution else {
        return Err(invalid("limits", &format!("{limits:?}"), "enough for one decode of the shortest prompt"));
    };
    let seconds = solution.cost + law.attention().variable_ns(&demand) * 1e-9;
    let scale = 1.0 / seconds;
    let used = columns.into_iter().zip(solution.shares).filter(|&(_, share)| share > 0.0);
    let [prefill_token, decode, decode_kv, memory, residence] =
        std::array::from_fn(|r| if needs[r] > 0.0 { solution.prices[r] / needs[r] } else { 0.0 });
    Ok(CapacityBound {
        scale,
        requests: workload.rate() * scale,
        throughput: workload.output_rate() * scale,
        mixture: used.map(|(c, share)| Composition { iterations: share * scale, ..c }).collect(),
        prices: Prices { prefill_token, decode, decode_kv, memory, residence },
    })
}

/// The corners of every stair: prefill alone, decodes alone, and one or as many decodes as possible filled up with
/// prefill, at the first and last padded count of the stair and where the limits cut it.
pub(super) fn compositions(setting: &Setting, most_decodes: u64, most_tokens: u64) -> Vec<Composition> {
    let law = setting.law;
    let round = law.round_to();
    let pad = |n: u64| n.div_ceil(round).saturating_mul(round);
    let ends = law.stairs().into_iter().flat_map(|stair| [stair.first, stair.last]);
    let mut counts: Vec<u64> = ends
        .chain([most_tokens / round * round, most_tokens])
        .chain([most_decodes, most_decodes + 1].into_iter().flat_map(|d| [d / round * round, pad(d)]))
        .map(|n| n.min(most_tokens))
        .filter(|&n| n > 0)
        .collect();
    counts.sort_unstable();
    counts.dedup();
    let costs = law.attention();
    let mut all = Vec::new();
    for n in counts {
        let decodes = n.min(most_decodes);
        for (prefill_tokens, decodes) in
            [(n, 0), (0, decodes), (n.saturating_sub(1), 1.min(decodes)), (n - decodes, decodes)]
        {
            let shape =
                FluidShape { prefill_tokens: prefill_tokens as f64, decodes: decodes as f64, ..FluidShape::default() };
            let tokens = prefill_tokens + decodes;
            if tokens > 0 {
                let base_seconds = law.token_seconds(tokens) + costs.base_ns(&shape) * 1e-9;
                all.push(Composition { prefill_tokens, decodes, iterations: 0.0, base_seconds });
            }
        }
    }
    all.sort_unstable_by_key(|c| (c.prefill_tokens, c.decodes));
    all.dedup_by_key(|c| (c.prefill_tokens, c.decodes));
    all
}
