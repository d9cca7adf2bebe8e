//! The goodput that no scheduler exceeds: the capacity's linear program with one accept variable for each type.
//!
//! x_i in [0, 1] is the share of type i that is served in time; what is not accepted costs nothing. The demand of the
//! five requirements is then Σ x_i of the types' own, the time is at most one second per second, and Σ `λ_i` `x_i` is
//! maximised. A type is rejected outright if its prompt, computed alone at the least time per token, or its decodes,
//! alone in the batch, take longer than the objective. What else an objective demands (requests that arrive together
//! cannot all be first) only lowers the goodput further.

use serde::{Deserialize, Serialize};

use super::capacity::{Composition, compositions};
use crate::error::{Error, invalid};
use crate::fluid::{Setting, kv};
use crate::model::RequestType;

mod bounded_simplex;
#[cfg(test)]
mod tests;

use self::bounded_simplex::{Column, maximise};

/// A service-level objective, s; infinite where there is none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// Longest time to first token.
    pub ttft: f64,
    /// Longest mean time per output token after the first.
    pub tpot: f64,
}

/// An upper bound on the goodput of one GPU at the workload's rates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GoodputBound {
    /// Share of the requests offered that meet the objective.
    pub goodput: f64,
    /// Requests per second that meet it.
    pub requests: f64,
    /// x: by type, the share that is accepted.
    pub accepted: Vec<f64>,
}

/// Most requests per second, of those the workload offers, that any schedule can serve within the objective.
///
/// Exact to a relative 1e-6. The time grows with the square of the number of types: a tenth of a second for 4,000.
///
/// # Errors
/// [`Error::Invalid`] if every rate is 0, a limit is out of range, no request fits the memory, or an
/// objective is not above 0.
pub fn goodput_bound(setting: &Setting, objective: Objective) -> Result<GoodputBound, Error> {
    setting.limits.validate()?;
    let Setting { workload, limits, .. } = *setting;
    for (name, seconds) in [("slo_ttft", objective.ttft), ("slo_tpot", objective.tpot)] {
        if seconds.is_nan() || seconds <= 0.0 {
            return Err(invalid(name, &seconds, "above 0 seconds"));
        }
    }
    let shortest = workload.types().iter().filter(|t| t.rate > 0.0).map(|t| u64::from(t.prompt)).min();
    let Some(shortest) = shortest else { return Err(invalid("Σ rate", &workload.rate(), "above 0")) };
    if shortest > limits.capacity {
        return Err(invalid("capacity", &limits.capacity, "at least the shortest prompt"));
    }
    let columns = compositions(
        setting,
        limits.max_running.map_or(u64::MAX, u64::from).min(limits.capacity / (shortest + 1)),
        limits.token_budget.unwrap_or(u64::MAX).min(limits.capacity),
    );
    let feasible: Vec<usize> = (0..workload.types().len())
        .filter(|&i| workload.types()[i].rate > 0.0 && meets(setting, &columns, &workload.types()[i], objective))
        .collect();
    let x = accept(setting, &columns, &feasible);
    let mut accepted = vec![0.0; workload.types().len()];
    feasible.iter().zip(x).for_each(|(&i, share)| accepted[i] = share);
    let requests = workload.types().iter().zip(&accepted).map(|(t, share)| t.rate * share).sum::<f64>();
    Ok(GoodputBound { goodput: requests / workload.rate(), requests, accepted })
}

/// Whether a request that has the GPU to itself meets the objective.
fn meets(setting: &Setting, columns: &[Composition], one: &RequestType, objective: Objective) -> bool {
    let Setting { law, convention, limits, .. } = *setting;
    let whole = one.total_shape(convention);
    if u64::from(one.prompt) + whole.decodes as u64 > limits.capacity {
        return false;
    }
    let least = |of: &dyn Fn(&Composition) -> f64| columns.iter().map(of).fold(f64::INFINITY, f64::min);
    let alone = |c: &Composition| c.decodes == 0;
    let token = least(&|c| if alone(c) { c.base_seconds / c.prefill_tokens as f64 } else { f64::INFINITY });
    let iteration = least(&|c| if alone(c) { c.base_seconds } else { f64::INFINITY });
    let decode = least(&|c| if c.decodes > 0 { c.base_seconds } else { f64::INFINITY });
    let attention = |decodes: f64, decode_kv: f64, prefill: f64| {
        let shape = crate::model::FluidShape {
            decodes,
            decode_kv,
            prefill_tokens: whole.prefill_tokens * prefill,
            prefill_kv: whole.prefill_kv * prefill,
            prefill_attention: whole.prefill_attention * prefill,
        };
        law.attention().variable_ns(&shape) * 1e-9
    };
    let ttft = (token * whole.prefill_tokens).max(iteration) + attention(0.0, 0.0, 1.0);
    let tpot = decode + attention(1.0, whole.decode_kv / whole.decodes.max(1.0), 0.0);
    ttft <= objective.ttft && (whole.decodes == 0.0 || tpot <= objective.tpot)
}

/// The best shares of the types with these numbers.
fn accept(setting: &Setting, columns: &[Composition], types: &[usize]) -> Vec<f64> {
    let Setting { workload, law, convention, limits } = *setting;
    let running = limits.max_running.map_or(0.0, f64::from);
    let memory = limits.capacity as f64;
    let demand = |&i: &usize| {
        let one = &workload.types()[i];
        let shape = one.total_shape(convention).scaled(one.rate);
        let iterations = one.rate * f64::from(convention.last_stage(one.output) + 1);
        let residence = if limits.max_running.is_some() { iterations } else { 0.0 };
        let time = law.attention().variable_ns(&shape) * 1e-9;
        [shape.prefill_tokens, shape.decodes, shape.decode_kv, kv(&shape), residence, time]
    };
    let demands: Vec<[f64; 6]> = types.iter().map(demand).collect();
    // Each requirement is divided by its size, so that the program is well scaled; those of size 0 are empty.
    let mut needs = [0.0; 6];
    for demand in &demands {
        (0..5).for_each(|r| needs[r] += demand[r]);
    }
    needs[5] = 1.0;
    let scaled = |values: [f64; 6]| std::array::from_fn(|r| if needs[r] > 0.0 { values[r] / needs[r] } else { 0.0 });
    let requests = types.iter().zip(&demands).map(|(&i, &demand)| Column {
        gain: workload.types()[i].rate / workload.rate(),
        most: 1.0,
        rows: scaled(demand),
    });
    let supplies = columns.iter().map(|c| {
        let decoding = if c.decodes > 0 { memory } else { 0.0 };
        let supply = [c.prefill_tokens as f64, c.decodes as f64, decoding, memory, running];
        let [a, b, c_kv, d, e] = supply.map(|value| -value);
        Column { gain: 0.0, most: f64::INFINITY, rows: scaled([a, b, c_kv, d, e, c.base_seconds]) }
    });
    let all: Vec<Column<6>> = requests.chain(supplies).collect();
    let mut solution = maximise(&all, [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    solution.truncate(types.len());
    solution
}
