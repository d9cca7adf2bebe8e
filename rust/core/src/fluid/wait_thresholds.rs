//! WAIT's thresholds (arXiv 2504.11320 §4): the feasible set, the family n = λ Δ', and the best Δ' for latency.
//!
//! Thresholds n are feasible if ΔT(n) ≤ `n_j/λ_j` for every type and M* ≤ M^π = Σ `n_j A_j` ≤ C, where ΔT(n) is the time of
//! an iteration with `n_j` requests of type j at every stage. In the family `n_j = λ_j Δ'` every ratio is Δ', the spacing
//! of services, and the set is T(Δ') ≤ Δ' ≤ C/Σ λ A.
//!
//! The paper's thresholds are integers and its law is linear. A fraction is paced: of two services with n = ½, one takes
//! in a prompt and one does not. On a staircase the average of these two iterations is not the iteration of the average
//! batch, which may lie on an edge that no real batch meets; ΔT(n) is then the mean of the iterations (`prefill_mixture.rs`).

use serde::{Deserialize, Serialize};

use crate::error::{Error, Violation, invalid, non_negative, positive};
use crate::fluid::prefill_mixture::iteration_seconds;
use crate::fluid::{FluidEquilibrium, Setting, equilibrium_time, kv, largest_stable_rate, last_edge, load, stair_ends};
use crate::model::{FluidShape, IterationTime, RequestType};

mod paced;
#[cfg(test)]
mod tests;

/// Thresholds of WAIT, with what follows from them.
///
/// ```
/// use wait_core::fluid::{GpuLimits, Setting, Thresholds};
/// use wait_core::model::{IterationTime, RequestType, StageConvention, Workload};
///
/// let workload = Workload::new(vec![RequestType { prompt: 100, output: 50, rate: 20.0 }])?;
/// let setting = Setting {
///     workload: &workload,
///     law: &IterationTime::A100,
///     convention: StageConvention::Vllm,
///     limits: GpuLimits { capacity: 100_000, max_running: Some(256), token_budget: Some(2048) },
/// };
/// let thresholds = Thresholds::best(&setting)?;
/// assert!(thresholds.feasible());
/// // In each iteration n requests enter, which must be no fewer than arrive while it runs.
/// let served = thresholds.per_type[0] / thresholds.iteration_time;
/// assert!(served >= workload.rate());
/// assert!(thresholds.memory <= setting.limits.capacity as f64);
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// `n_j`, by type; 0 for a type that never arrives.
    pub per_type: Vec<f64>,
    /// ΔT(n): seconds of an iteration with `n_j` requests of every type at every stage; the mean where they are paced.
    pub iteration_time: f64,
    /// M^π = Σ `n_j A_j`: KV tokens, the peak memory of integer thresholds.
    pub memory: f64,
    /// Whether some `n_j` is not an integer: credit accrues and admission is paced, and M^π is an average.
    pub paced: bool,
    /// The inequalities that fail; none if the thresholds are feasible.
    #[serde(skip)]
    pub violations: Vec<Violation>,
}

/// Expected delays of one type, in seconds: an estimate, see [`Thresholds::delays`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Delays {
    /// Arrival to the end of prefill.
    pub ttft: f64,
    /// Between the output tokens that follow.
    pub tpot: f64,
    /// Arrival to completion.
    pub latency: f64,
}

/// Relative slack below which an inequality counts as met: rounding errors are not violations.
const TOLERANCE: f64 = 1e-9;

pub(crate) fn exceeds(left: f64, right: f64) -> bool {
    left > right * (1.0 + TOLERANCE)
}

impl Thresholds {
    /// Evaluates given thresholds, by type.
    ///
    /// # Errors
    /// [`Error::Invalid`] if their number is not the number of types, or one is negative or not finite.
    /// Infeasible thresholds are no error: see `violations`.
    pub fn evaluate(per_type: Vec<f64>, setting: &Setting) -> Result<Self, Error> {
        setting.limits.validate()?;
        let types = setting.workload.types();
        if per_type.len() != types.len() {
            return Err(invalid("number of thresholds", &per_type.len(), "the number of types"));
        }
        for (j, &n) in per_type.iter().enumerate() {
            non_negative(&format!("thresholds[{j}]"), n)?;
        }
        let batch = full_batch(&per_type, setting);
        let mut thresholds = Self {
            iteration_time: mean_time(&per_type, &batch, setting),
            memory: kv(&batch),
            paced: per_type.iter().any(|n| n.fract() != 0.0),
            per_type,
            violations: Vec::new(),
        };
        thresholds.violations = thresholds.check(&batch, setting);
        Ok(thresholds)
    }

    /// The member `n_j = λ_j Δ'` of the family, `spacing` = Δ' in seconds.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the spacing is not finite and above 0.
    pub fn with_spacing(spacing: f64, setting: &Setting) -> Result<Self, Error> {
        positive("spacing", spacing)?;
        Self::evaluate(setting.workload.types().iter().map(|t| t.rate * spacing).collect(), setting)
    }

    /// The member of the family with the least expected latency, by the estimate of [`Thresholds::delays`].
    ///
    /// Every decode step costs Δ', so latency grows with Δ'; but at the least feasible Δ' = ΔT* the queue before prefill
    /// has no slack and its delay diverges like T/(2λ(Δ' − T)). Under the paper's law the two meet where
    /// (Δ' − ΔT*)² = const · ΔT*/(1 − x); in general the minimum is searched for on a grid and refined.
    ///
    /// # Errors
    /// [`Error::Unstable`] if x ≥ 1, [`Error::Infeasible`] if no member is feasible.
    pub fn best(setting: &Setting) -> Result<Self, Error> {
        setting.limits.validate()?;
        require_arrivals(setting)?;
        let demand = setting.workload.demand(setting.convention);
        let least = equilibrium_time(&demand, setting.law)?;
        let (largest, _) = setting.largest_spacing(&demand);
        if exceeds(least, largest) {
            let violations = Self::with_spacing(largest, setting)?.violations;
            return Err(Error::Infeasible { violations });
        }
        let latency = |spacing: f64| mean_latency(spacing, setting, &demand);
        let spacing = minimise(latency, &candidates(&demand, setting.law, least, largest.max(least)));
        // The search may end a rounding error past an edge.
        let edge = last_edge(&demand, setting.law, spacing);
        let best = Self::with_spacing(if spacing - edge < spacing * TOLERANCE { edge } else { spacing }, setting)?;
        // A constant composition would keep up, but the paced one at its rates does not.
        if best.feasible() { Ok(best) } else { Err(Error::Infeasible { violations: best.violations }) }
    }

    /// [`Thresholds::best`] where that exists, and otherwise, in overload, the member that fits and serves the most: it
    /// keeps the GPU full and leaves the rest waiting. In the second case `violations` says what fails.
    ///
    /// # Errors
    /// [`Error::Invalid`] if nothing arrives or a limit is out of range.
    pub fn plan(setting: &Setting) -> Result<Self, Error> {
        match Self::best(setting) {
            Err(Error::Unstable { .. } | Error::Infeasible { .. }) => {
                let (largest, _) = setting.largest_spacing(&setting.workload.demand(setting.convention));
                Self::with_spacing(paced::most_efficient(setting, largest), setting)
            }
            result => result,
        }
    }

    /// Feasible integer thresholds near these: each rounded up, then raised to the least integers that keep
    /// ΔT(n) ≤ `n_j/λ_j`; where those do not fit, the least integer thresholds that satisfy it at all. `None` if even
    /// these do not fit, as when C < Σ `A_j`: then admission has to be paced.
    pub fn rounded(&self, setting: &Setting) -> Option<Self> {
        let up = |n: &f64| (n * (1.0 - TOLERANCE)).ceil();
        let one = |n: &f64| n.min(1.0).ceil();
        [self.per_type.iter().map(up).collect(), self.per_type.iter().map(one).collect::<Vec<_>>()]
            .into_iter()
            .filter_map(|start| Self::evaluate(raised(start, setting), setting).ok())
            .find(Self::feasible)
    }

    /// Whether every inequality holds.
    pub fn feasible(&self) -> bool {
        self.violations.is_empty()
    }

    /// How far the condition ΔT(n) ≤ `n_j/λ_j` is from binding, as a fraction of `n_j/λ_j`, least over the types: above 0
    /// delays stay bounded (Theorem 1), at 0 they grow with the square root of the horizon.
    pub fn slack(&self, setting: &Setting) -> f64 {
        let types = setting.workload.types().iter();
        let ratios = self.per_type.iter().zip(types).filter(|(_, t)| t.rate > 0.0).map(|(n, t)| n / t.rate);
        ratios.map(|ratio| 1.0 - self.iteration_time / ratio).fold(1.0, f64::min)
    }

    /// Expected delays by type when every type is served once per `n_j/λ_j` seconds, the pace of its arrivals.
    ///
    /// The estimate adds the wait for the threshold, (`n_j` − 1)/(2 `λ_j`); the queue beyond it, which is a random walk with
    /// step variance λT and drift n − λT per service, hence T/(2(n − λT)) seconds (infinite without slack); one
    /// iteration for the prefill and `n_j/λ_j` for each later stage. Measured against simulation it is an estimate, not
    /// a bound.
    pub fn delays(&self, setting: &Setting) -> Vec<Delays> {
        let time = self.iteration_time;
        let estimate = |(n, t): (&f64, &RequestType)| {
            let ttft = waiting(*n, t.rate, time) + time;
            let tpot = if t.rate > 0.0 { (n / t.rate).max(time) } else { time };
            let last = f64::from(setting.convention.last_stage(t.output));
            Delays { ttft, tpot, latency: ttft + last * tpot }
        };
        self.per_type.iter().zip(setting.workload.types()).map(estimate).collect()
    }

    fn check(&self, batch: &FluidShape, setting: &Setting) -> Vec<Violation> {
        let mut failed = Vec::new();
        let mut require = |condition: String, left: f64, right: f64, remedy: String| {
            if exceeds(left, right) {
                failed.push(Violation { condition, left, right, remedy });
            }
        };
        let demand = setting.workload.demand(setting.convention);
        let x = load(&demand, setting.law);
        let equilibrium = FluidEquilibrium::new(setting.workload, setting.law, setting.convention);
        // At x = 1 there is no equilibrium either.
        let x = if equilibrium.is_err() { x.max(1.0 + 2.0 * TOLERANCE) } else { x };
        let slower = largest_stable_rate(setting).map_or(0.0, |best| best.scale);
        require("x < 1".to_owned(), x, 1.0, format!("holds at {:.4} times the rates or less", 1.0 / x));
        let time = self.iteration_time;
        for (j, (&n, t)) in self.per_type.iter().zip(setting.workload.types()).enumerate() {
            if t.rate > 0.0 {
                let remedy = format!("holds for n_{j} ≥ {:.6}, ΔT(n) being equal", t.rate * time);
                require(format!("ΔT(n) ≤ n_{j}/λ_{j}"), time, n / t.rate, remedy);
            }
        }
        if let Ok(equilibrium) = &equilibrium {
            let remedy = "raise the thresholds".to_owned();
            require("M* ≤ M^π".to_owned(), equilibrium.memory, self.memory, remedy);
        }
        let limits = &setting.limits;
        let fits = |what: &str, value: f64| match &equilibrium {
            Ok(_) => format!("holds with {what} {:.0}, or at {slower:.4} times the rates", value.ceil()),
            Err(_) => format!("holds at {slower:.4} times the rates"),
        };
        require("M^π ≤ C".to_owned(), self.memory, limits.capacity as f64, fits("C =", self.memory));
        if let Some(running) = limits.max_running.map(f64::from) {
            let stages = |t: &RequestType| f64::from(setting.convention.last_stage(t.output)) + 1.0;
            let residents = self.per_type.iter().zip(setting.workload.types()).map(|(n, t)| n * stages(t)).sum();
            require("Σ n · stages ≤ max_running".to_owned(), residents, running, fits("max_running =", residents));
        }
        if let Some(budget) = limits.token_budget.map(|b| b as f64) {
            let tokens = batch.tokens();
            require("tokens per iteration ≤ token_budget".to_owned(), tokens, budget, fits("token_budget =", tokens));
        }
        failed
    }
}

pub(crate) fn require_arrivals(setting: &Setting) -> Result<(), Error> {
    let rate = setting.workload.rate();
    if rate > 0.0 { Ok(()) } else { Err(invalid("Σ rate", &rate, "above 0")) }
}

/// The batch with `n_j` requests of type j at every stage.
fn full_batch(per_type: &[f64], setting: &Setting) -> FluidShape {
    let types = setting.workload.types().iter().zip(per_type);
    types.fold(FluidShape::default(), |sum, (t, &n)| sum.plus(&t.total_shape(setting.convention).scaled(n)))
}

/// The least integers at or above `n` with `n_j ≥ λ_j ΔT(n)`, or the first ones found that exceed the memory. ΔT grows
/// with n, so raising one component never relaxes another, and the iteration ends at the least such point.
fn raised(mut n: Vec<f64>, setting: &Setting) -> Vec<f64> {
    loop {
        let batch = full_batch(&n, setting);
        let time = setting.law.fluid_seconds(&batch);
        let mut changed = false;
        for (n, t) in n.iter_mut().zip(setting.workload.types()) {
            let needed = (t.rate * time * (1.0 - TOLERANCE)).ceil();
            if needed > *n {
                (*n, changed) = (needed, true);
            }
        }
        if !changed || kv(&batch) > setting.limits.capacity as f64 {
            return n;
        }
    }
}

/// Seconds from arrival to the start of prefill; see [`Thresholds::delays`].
pub(crate) fn waiting(n: f64, rate: f64, iteration_time: f64) -> f64 {
    if rate <= 0.0 {
        return 0.0;
    }
    let slack = n - rate * iteration_time;
    let queue = if slack > 0.0 { iteration_time / (2.0 * slack) } else { f64::INFINITY };
    (n - 1.0).max(0.0) / (2.0 * rate) + queue
}

/// ΔT(n) of the batch with `n_j` requests of type j at every stage.
fn mean_time(per_type: &[f64], batch: &FluidShape, setting: &Setting) -> f64 {
    let entries = setting.workload.types().iter().zip(per_type).map(|(t, &n)| (f64::from(t.prompt), n));
    iteration_seconds(batch, entries, setting.law, &setting.limits)
}

/// Rate-weighted mean latency of the family's member; infinite where it has no slack.
fn mean_latency(spacing: f64, setting: &Setting, demand: &FluidShape) -> f64 {
    let per_type: Vec<f64> = setting.workload.types().iter().map(|t| t.rate * spacing).collect();
    let time = mean_time(&per_type, &demand.scaled(spacing), setting);
    if time >= spacing {
        return f64::INFINITY;
    }
    let latency = |t: &RequestType| {
        let last = f64::from(setting.convention.last_stage(t.output));
        t.rate * (waiting(t.rate * spacing, t.rate, time) + time + last * spacing)
    };
    setting.workload.types().iter().map(latency).sum::<f64>() / setting.workload.rate()
}

/// Candidate spacings in [low, high], ascending: a grid that is dense near `low`, where latency has its pole, the edge of
/// the staircase below each of its points, and the ends of the stairs, where slack is largest.
pub(crate) fn candidates(demand: &FluidShape, law: &IterationTime, low: f64, high: f64) -> Vec<f64> {
    const POINTS: u32 = 400;
    let grid = (0..=POINTS).map(|i| low + (high - low) * libm::pow(f64::from(i) / f64::from(POINTS), 3.0));
    let mut all: Vec<f64> = grid.flat_map(|u| [u, last_edge(demand, law, u)]).chain(stair_ends(demand, law)).collect();
    all.retain(|u| (low..=high).contains(u));
    all.sort_by(f64::total_cmp);
    all.dedup();
    all
}

/// The minimiser of `f`: golden sections between the neighbours of each of the lowest candidates that are no higher than
/// their neighbours, for on a staircase the lowest of them need not lie in the deepest valley. The first candidate if f is
/// infinite at all of them.
pub(crate) fn minimise(f: impl Fn(f64) -> f64, candidates: &[f64]) -> f64 {
    const VALLEYS: usize = 8;
    let values: Vec<f64> = candidates.iter().map(|&u| f(u)).collect();
    let next = |i: usize| (i + 1).min(candidates.len() - 1);
    let lowest = |&i: &usize| values[i] <= values[i.saturating_sub(1)] && values[i] <= values[next(i)];
    let mut valleys: Vec<usize> = (0..candidates.len()).filter(|i| values[*i].is_finite() && lowest(i)).collect();
    valleys.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let golden = (5f64.sqrt() - 1.0) / 2.0;
    let bottom = |&i: &usize| {
        let (mut left, mut right) = (candidates[i.saturating_sub(1)], candidates[next(i)]);
        for _ in 0..80 {
            let (a, b) = (right - golden * (right - left), left + golden * (right - left));
            if f(a) <= f(b) { right = b } else { left = a }
        }
        let refined = f64::midpoint(left, right);
        if f(refined) < values[i] { refined } else { candidates[i] }
    };
    let bottoms = valleys.iter().take(VALLEYS).map(bottom);
    bottoms.min_by(|&a, &b| f(a).total_cmp(&f(b))).unwrap_or(candidates[0])
}
