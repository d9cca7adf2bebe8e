//! The fluid benchmark of arXiv 2504.11320 §3: equilibrium, stability region, largest stable rate.
//!
//! In the fluid model every iteration is the same: with spacing u seconds between iterations at rates λ, a batch holds
//! `λ_j` u requests of type j at every stage, so its shape is u times the demand per second. The equilibrium is the least u
//! with T(u) = u, where T is the iteration-time law. For the paper's law this is d0/(1 − x) in closed form. For a
//! staircase law T is affine between padded token counts and the equation is solved piece by piece, exactly. What is
//! approximated there: the composition is the same in every iteration, while real batches fluctuate about it and a mixture
//! of compositions can do better (`capacity.rs`).

use serde::{Deserialize, Serialize};

use crate::error::{Error, invalid};
use crate::model::{FluidShape, IterationTime, StageConvention, Stair, Workload};

#[cfg(test)]
mod tests;

/// What one GPU allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuLimits {
    /// C: KV tokens.
    pub capacity: u64,
    /// Most requests resident at once (`max_num_seqs`); none if absent.
    #[serde(default)]
    pub max_running: Option<u32>,
    /// Most tokens computed in an iteration (`max_num_batched_tokens`); none if absent.
    #[serde(default)]
    pub token_budget: Option<u64>,
}

impl GpuLimits {
    /// Memory alone.
    pub fn memory(capacity: u64) -> Self {
        Self { capacity, max_running: None, token_budget: None }
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let fields = [
            ("capacity", Some(self.capacity)),
            ("max_running", self.max_running.map(u64::from)),
            ("token_budget", self.token_budget),
        ];
        for (name, value) in fields {
            if let Some(value) = value.filter(|v| !(1..=1 << 48).contains(v)) {
                return Err(invalid(name, &value, "between 1 and 2^48"));
            }
        }
        Ok(())
    }
}

/// The fluid equilibrium of a stable workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FluidEquilibrium {
    /// x: fraction of the GPU's time needed at the most efficient batch size, below 1. For the paper's law d1 Σ λ A; in
    /// general the infimum of T(u)/u.
    pub load: f64,
    /// ΔT*: seconds per iteration.
    pub iteration_time: f64,
    /// n*_j = `λ_j` ΔT*: requests of type j at each of its stages.
    pub in_service: Vec<f64>,
    /// M* = ΔT* Σ λ A: KV tokens.
    pub memory: f64,
    /// Requests resident, over all types and stages.
    pub resident: f64,
    /// throughput* = Σ λ l': output tokens per second, which no policy exceeds.
    pub throughput: f64,
    /// The batch of one iteration.
    #[serde(skip)]
    pub batch: FluidShape,
}

impl FluidEquilibrium {
    /// The equilibrium of a workload under a law.
    ///
    /// # Errors
    /// [`Error::Unstable`] if x ≥ 1.
    pub fn new(workload: &Workload, law: &IterationTime, convention: StageConvention) -> Result<Self, Error> {
        let demand = workload.demand(convention);
        let iteration_time = equilibrium_time(&demand, law)?;
        Ok(Self {
            load: load(&demand, law),
            iteration_time,
            in_service: workload.types().iter().map(|t| t.rate * iteration_time).collect(),
            memory: iteration_time * kv(&demand),
            resident: iteration_time * workload.iteration_rate(convention),
            throughput: workload.output_rate(),
            batch: demand.scaled(iteration_time),
        })
    }

    /// Whether the workload lies in the stability region of a GPU: M* ≤ C, and no more residents or tokens per iteration
    /// than it allows. (x < 1 holds already.)
    pub fn fits(&self, limits: &GpuLimits) -> bool {
        let within = |value: f64, limit: Option<f64>| limit.is_none_or(|limit| value <= limit * (1.0 + 1e-9));
        within(self.memory, Some(limits.capacity as f64))
            && within(self.resident, limits.max_running.map(f64::from))
            && within(self.batch.tokens(), limits.token_budget.map(|b| b as f64))
    }
}

/// A question about one workload on one GPU.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// What arrives.
    pub workload: &'a Workload,
    /// How long an iteration takes.
    pub law: &'a IterationTime,
    /// How iterations are counted.
    pub convention: StageConvention,
    /// What the GPU allows.
    pub limits: GpuLimits,
}

impl Setting<'_> {
    /// The largest u for which u seconds of demand fit the limits, and the limit that binds.
    pub(crate) fn largest_spacing(&self, demand: &FluidShape) -> (f64, Binding) {
        let GpuLimits { capacity, max_running, token_budget } = self.limits;
        let iterations = self.workload.iteration_rate(self.convention);
        let running = max_running.map(|r| (f64::from(r) / iterations, Binding::MaxRunning));
        let tokens = token_budget.map(|b| (b as f64 / demand.tokens(), Binding::TokenBudget));
        let memory = (capacity as f64 / kv(demand), Binding::Memory);
        [running, tokens].into_iter().flatten().fold(memory, |least, next| if next.0 < least.0 { next } else { least })
    }
}

/// What keeps a workload from a higher rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Binding {
    /// KV memory C.
    Memory,
    /// Requests resident at once.
    MaxRunning,
    /// Tokens per iteration.
    TokenBudget,
    /// A larger batch would fit but computes no faster: the right edge of a step is best.
    Compute,
}

/// The largest rate, of a given mix, inside the stability region.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LargestStableRate {
    /// Factor on the workload's rates.
    pub scale: f64,
    /// Requests per second.
    pub requests: f64,
    /// Output tokens per second.
    pub throughput: f64,
    /// Seconds per iteration at that rate.
    pub iteration_time: f64,
    /// KV tokens in use at that rate.
    pub memory: f64,
    /// What binds.
    pub binding: Binding,
}

/// The largest factor on the workload's rates at which its equilibrium fits the limits. For the paper's law and memory
/// alone it is C / ((d0 + d1 C) Σ λ A).
///
/// Only u = (rate factor) · (seconds per iteration) enters the batch, so the factor u/T(u) is maximised over the u that
/// fit; between padded token counts it grows with u, so the maximum is at one of those counts or at the largest u.
///
/// # Errors
/// [`Error::Invalid`] if every rate is 0 or a limit is 0.
pub fn largest_stable_rate(setting: &Setting) -> Result<LargestStableRate, Error> {
    let Setting { workload, law, convention, limits } = *setting;
    limits.validate()?;
    if workload.rate() <= 0.0 {
        return Err(invalid("Σ rate", &workload.rate(), "above 0"));
    }
    let demand = workload.demand(convention);
    let (largest, mut binding) = setting.largest_spacing(&demand);
    let time = |u: f64| law.fluid_seconds(&demand.scaled(u));
    let mut best = largest;
    for u in stair_ends(&demand, law).chain([last_edge(&demand, law, largest)]) {
        if u > 0.0 && u < largest && u / time(u) > best / time(best) * (1.0 + 1e-12) {
            (best, binding) = (u, Binding::Compute);
        }
    }
    let iteration_time = time(best);
    let scale = best / iteration_time;
    Ok(LargestStableRate {
        scale,
        requests: workload.rate() * scale,
        throughput: workload.output_rate() * scale,
        iteration_time,
        memory: best * kv(&demand),
        binding,
    })
}

/// x of a demand per second: the infimum over batch sizes of T(u)/u. The workload is stable with enough memory if and
/// only if it is below 1.
pub fn load(demand: &FluidShape, law: &IterationTime) -> f64 {
    let lines = Line::all(demand, law);
    let at_ends = lines.iter().flat_map(|line| line.ends().map(|u| line.base / u + line.slope));
    at_ends.fold(f64::INFINITY, f64::min)
}

/// ΔT* of a demand per second: the least u with T(u) ≤ u.
///
/// # Errors
/// [`Error::Unstable`] if there is none.
pub fn equilibrium_time(demand: &FluidShape, law: &IterationTime) -> Result<f64, Error> {
    let lines = Line::all(demand, law);
    let least = lines.iter().find_map(Line::least_root);
    least.ok_or_else(|| Error::Unstable { load: load(demand, law).max(1.0) })
}

/// Σ λ A: the KV of a demand.
pub(crate) fn kv(demand: &FluidShape) -> f64 {
    demand.decode_kv + demand.prefill_kv
}

/// The u at which a demand's token count is at the first and last padded count of each stair; infinite where a
/// stair has no end.
pub(crate) fn stair_ends(demand: &FluidShape, law: &IterationTime) -> impl Iterator<Item = f64> + use<> {
    Line::all(demand, law).into_iter().flat_map(|line| line.ends())
}

/// The largest u at or below this one whose token count is padded already; 0 if there is none.
pub(crate) fn last_edge(demand: &FluidShape, law: &IterationTime, u: f64) -> f64 {
    let per_edge = demand.tokens() / law.round_to() as f64;
    if per_edge > 0.0 { (u * per_edge * (1.0 + 1e-12)).floor() / per_edge } else { 0.0 }
}

/// T(u) on one stair of the law. At the edges, the u whose token count is a padded one, T(u) = `base` + `slope` · u;
/// between two edges the token count's part keeps the value of the next edge.
struct Line {
    /// Edges per second of u, or 0 where there are none because the token count does not matter.
    per_edge: f64,
    /// Indices of the first and the last edge.
    first: f64,
    last: f64,
    base: f64,
    slope: f64,
    /// The part of `slope` that comes from the token count, seconds per edge.
    per_step: f64,
}

impl Line {
    fn all(demand: &FluidShape, law: &IterationTime) -> Vec<Self> {
        let round = law.round_to() as f64;
        let costs = law.attention();
        let (base, slope) = (costs.base_ns(demand) * 1e-9, costs.variable_ns(demand) * 1e-9);
        let stairs = law.stairs();
        let tokens = if stairs.len() == 1 && stairs[0].slope == 0.0 { 0.0 } else { demand.tokens() };
        let line = |stair: &Stair| Self {
            per_edge: tokens / round,
            first: (stair.first as f64 / round).round(),
            last: if stair.last >= u64::MAX / 2 { f64::INFINITY } else { (stair.last as f64 / round).round() },
            base: stair.base + base,
            slope: slope + stair.slope * tokens,
            per_step: stair.slope * round,
        };
        if tokens > 0.0 { stairs.iter().map(line).collect() } else { vec![line(&stairs[0])] }
    }

    /// The two ends of the line, as u; infinite where there is no end.
    fn ends(&self) -> [f64; 2] {
        if self.per_edge > 0.0 { [self.first, self.last].map(|i| i / self.per_edge) } else { [f64::INFINITY; 2] }
    }

    /// The least u on this stair with T(u) ≤ u.
    fn least_root(&self) -> Option<f64> {
        let rising = 1.0 - self.slope;
        if self.per_edge <= 0.0 {
            return (rising > 0.0).then(|| self.base / rising);
        }
        // The first edge with T(u) ≤ u; if T grows faster than u, only the first edge can be it.
        let holds = |i: f64| self.base <= rising * i / self.per_edge * (1.0 + 1e-12);
        let edge = if rising > 0.0 { (self.base / rising * self.per_edge * (1.0 - 1e-12)).ceil() } else { self.first };
        let edge = edge.max(self.first);
        if edge > self.last || !holds(edge) {
            return None;
        }
        // In the interval that ends at this edge T has the edge's token part and the slope of the rest. Where T falls
        // from one stair to the next, the root lies before the interval, whose open left end is then returned for it.
        let rest = self.slope - self.per_step * self.per_edge;
        let left = (edge - 1.0) / self.per_edge * (1.0 + 1e-11);
        let root = (self.base + self.per_step * edge) / (1.0 - rest);
        Some(root.max(left).min(edge / self.per_edge))
    }
}
