//! `Planner` and `SafetyBuffer`: the formulas of planning for one workload on one GPU. Results are dictionaries.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyDictMethods};
use serde::Serialize;
use wait_core::error::{Error, Violation};
use wait_core::fluid::goodput::{Objective, goodput_bound};
use wait_core::fluid::{
    FluidEquilibrium, GpuLimits, NestedSetting, NestedThresholds, Protection, SafetyBuffer as Buffer, Segments,
    Setting, StageCaps, Thresholds, capacity_bound, largest_stable_rate, load,
};
use wait_core::model::{IterationTime, RequestType, StageConvention, Workload};

use crate::convert;
use crate::error::{WaitCoreError, planning};

type Answer<'py> = PyResult<Bound<'py, PyAny>>;

fn refused<T>(result: Result<T, Error>) -> PyResult<T> {
    result.map_err(|error| planning(&error))
}

fn value<'py, T: Serialize + ?Sized>(py: Python<'py>, value: &T) -> Answer<'py> {
    pythonize::pythonize(py, value).map_err(|error| WaitCoreError::new_err(error.to_string()))
}

/// A serialised result, with the inequalities that fail and further figures.
fn thresholds<'py>(py: Python<'py>, result: &impl Serialize, violations: &[Violation]) -> PyResult<Bound<'py, PyDict>> {
    let dict = value(py, result)?.cast_into::<PyDict>()?;
    dict.set_item("feasible", violations.is_empty())?;
    dict.set_item("violations", explained(py, violations)?)?;
    Ok(dict)
}

fn explained<'py>(py: Python<'py>, violations: &[Violation]) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let each = |violation: &Violation| {
        let dict = PyDict::new(py);
        dict.set_item("condition", &violation.condition)?;
        dict.set_item("left", violation.left)?;
        dict.set_item("right", violation.right)?;
        dict.set_item("excess", violation.excess())?;
        dict.set_item("remedy", &violation.remedy)?;
        Ok(dict)
    };
    violations.iter().map(each).collect()
}

/// One workload on one GPU, and what follows from them: arXiv 2504.11320 §3 to §5 and the capacity bound.
///
/// `types` are (prompt, output, rate) in tokens and 1/s. `capacity` is C in KV tokens, `max_running` the most residents,
/// `token_budget` the most tokens in an iteration. The convention says whether the prefill emits the first token
/// ("vllm") or none ("paper"), or that requests come with the KV of their prompts ("decode-only"). Times are
/// seconds, memory KV tokens.
///
/// `windows` are more types, one list for each further window of a workload that changes over time: segments, Nested
/// WAIT's thresholds and the safety buffer then hold in every window; all else is about `types`.
///
/// Here and in its methods, `WaitCoreError` names the argument that is refused.
#[pyclass(frozen, module = "wait_core")]
pub(crate) struct Planner {
    workload: Workload,
    /// The other windows of a workload that changes over time.
    windows: Vec<Workload>,
    law: IterationTime,
    convention: StageConvention,
    limits: GpuLimits,
}

impl Planner {
    fn setting(&self) -> Setting<'_> {
        Setting { workload: &self.workload, law: &self.law, convention: self.convention, limits: self.limits }
    }

    /// Segments that end at the boundaries; or `count` of equal decode range; or one per output length. They hold for
    /// every window.
    fn cut(&self, boundaries: Option<Vec<u32>>, count: Option<u32>) -> PyResult<Segments> {
        let boundaries = match (boundaries, count) {
            (Some(_), Some(_)) => return Err(WaitCoreError::new_err("count: boundaries are given, which are exact")),
            (None, Some(count)) if self.windows.is_empty() => {
                return refused(Segments::equal_ranges(&self.workload, count, self.convention));
            }
            (None, Some(_)) => return Err(WaitCoreError::new_err("count: windows share boundaries, give these")),
            (Some(boundaries), None) => boundaries,
            (None, None) => self.outputs(),
        };
        let window = |workload| Segments::coarse(workload, &boundaries, self.convention);
        let windows: Result<Vec<_>, _> = std::iter::once(&self.workload).chain(&self.windows).map(window).collect();
        refused(windows.and_then(|windows| Segments::worst_window(&windows)))
    }

    /// The distinct output lengths of all windows.
    fn outputs(&self) -> Vec<u32> {
        let types = std::iter::once(&self.workload).chain(&self.windows).flat_map(Workload::types);
        let mut outputs: Vec<u32> = types.filter(|t| t.rate > 0.0).map(|t| t.output).collect();
        outputs.sort_unstable();
        outputs.dedup();
        outputs
    }
}

#[pymethods]
impl Planner {
    #[new]
    #[pyo3(signature = (types, law, *, capacity, max_running = None, token_budget = None, convention = "vllm",
        windows = Vec::new()))]
    fn new(
        #[pyo3(from_py_with = convert::ranged)] types: Vec<(u32, u32, f64)>,
        law: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = convert::ranged)] capacity: u64,
        #[pyo3(from_py_with = convert::ranged)] max_running: Option<u32>,
        #[pyo3(from_py_with = convert::ranged)] token_budget: Option<u64>,
        convention: &str,
        #[pyo3(from_py_with = convert::ranged)] windows: Vec<Vec<(u32, u32, f64)>>,
    ) -> PyResult<Self> {
        let of = |types: Vec<(u32, u32, f64)>| {
            let types = types.into_iter().map(|(prompt, output, rate)| RequestType { prompt, output, rate });
            refused(Workload::new(types.collect()))
        };
        let convention = match convention {
            "vllm" => StageConvention::Vllm,
            "paper" => StageConvention::Paper,
            "decode-only" => StageConvention::DecodeOnly,
            other => return Err(WaitCoreError::new_err(format!("convention = {other:?}: vllm, paper or decode-only"))),
        };
        let planner = Self {
            workload: of(types)?,
            windows: windows.into_iter().map(of).collect::<PyResult<_>>()?,
            law: convert::json(law, "iteration_time")?,
            convention,
            limits: GpuLimits { capacity, max_running, token_budget },
        };
        // The first query would find a bad limit or a workload without arrivals; here its name is still the caller's.
        refused(largest_stable_rate(&planner.setting()))?;
        Ok(planner)
    }

    /// x: the share of the GPU's time that the workload needs; stable with enough memory if and only if below 1.
    #[getter]
    fn load(&self) -> f64 {
        load(&self.workload.demand(self.convention), &self.law)
    }

    /// E[A]: KV tokens · iterations of a request.
    #[getter]
    fn mean_token_iterations(&self) -> f64 {
        self.workload.mean_token_iterations(self.convention)
    }

    /// The fluid equilibrium, or None where x ≥ 1: iteration_time (s), memory (KV tokens), resident (requests).
    fn equilibrium<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Ok(equilibrium) = FluidEquilibrium::new(&self.workload, &self.law, self.convention) else {
            return Ok(None);
        };
        let dict = value(py, &equilibrium)?.cast_into::<PyDict>()?;
        dict.set_item("fits", equilibrium.fits(&self.limits))?;
        Ok(Some(dict))
    }

    /// The largest rate of this mix inside the stability region (requests, throughput in output tokens: both 1/s), and
    /// what binds there.
    fn largest_stable_rate<'py>(&self, py: Python<'py>) -> Answer<'py> {
        value(py, &refused(largest_stable_rate(&self.setting()))?)
    }

    /// The largest rate that any schedule can serve, in the same terms: the linear program over compositions.
    fn capacity_bound<'py>(&self, py: Python<'py>) -> Answer<'py> {
        value(py, &refused(capacity_bound(&self.setting()))?)
    }

    /// The most requests of this workload that any schedule can serve within an objective, ms (goodput: their share,
    /// requests: 1/s): the same program with an accept variable for each type.
    #[pyo3(signature = (*, slo_ttft_ms = None, slo_tpot_ms = None))]
    fn goodput_bound<'py>(&self, py: Python<'py>, slo_ttft_ms: Option<f64>, slo_tpot_ms: Option<f64>) -> Answer<'py> {
        for (name, limit) in [("slo_ttft_ms", slo_ttft_ms), ("slo_tpot_ms", slo_tpot_ms)] {
            if let Some(ms) = limit.filter(|ms| ms.is_nan() || *ms <= 0.0) {
                return Err(WaitCoreError::new_err(format!("{name} = {ms}: must be above 0 ms")));
            }
        }
        let seconds = |limit: Option<f64>| limit.map_or(f64::INFINITY, |ms| 1e-3 * ms);
        let objective = Objective { ttft: seconds(slo_ttft_ms), tpot: seconds(slo_tpot_ms) };
        value(py, &refused(py.detach(|| goodput_bound(&self.setting(), objective)))?)
    }

    /// WAIT's thresholds: those given by type; those with this spacing (n = λ Δ'); those that serve the most, as caps,
    /// in KV blocks of `block_size` tokens; or, with no argument, the feasible ones with the least latency.
    #[pyo3(signature = (per_type = None, *, spacing = None, block_size = None))]
    fn thresholds<'py>(
        &self,
        py: Python<'py>,
        per_type: Option<Vec<f64>>,
        spacing: Option<f64>,
        #[pyo3(from_py_with = convert::ranged)] block_size: Option<u32>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let setting = self.setting();
        let found = refused(match (per_type, spacing, block_size) {
            (Some(per_type), None, None) => Thresholds::evaluate(per_type, &setting),
            (None, Some(spacing), None) => Thresholds::with_spacing(spacing, &setting),
            (None, None, Some(block_size)) => Thresholds::most_throughput(&setting, block_size),
            (None, None, None) => Thresholds::plan(&setting),
            _ => return Err(WaitCoreError::new_err("give one of per_type, spacing and block_size")),
        })?;
        let dict = thresholds(py, &found, &found.violations)?;
        dict.set_item("slack", found.slack(&setting))?;
        dict.set_item("delays", value(py, &found.delays(&setting))?)?;
        dict.set_item("rounded", found.rounded(&setting).map(|rounded| rounded.per_type))?;
        Ok(dict)
    }

    /// Segments of the workload: at these boundaries, or `count` of equal range, or one per output length.
    #[pyo3(signature = (boundaries = None, *, count = None))]
    fn segments<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = convert::ranged)] boundaries: Option<Vec<u32>>,
        #[pyo3(from_py_with = convert::ranged)] count: Option<u32>,
    ) -> Answer<'py> {
        value(py, self.cut(boundaries, count)?.as_slice())
    }

    /// Nested WAIT's thresholds: those given by segment, or the chain with this margin that has the least latency.
    ///
    /// With a failure probability they are those whose safety buffer, in KV blocks of block_size tokens, fits as well.
    /// Where no chain is feasible, per_segment is None and the violations say why.
    #[pyo3(signature = (boundaries = None, *, count = None, per_segment = None, margin = 0.05, failure_probability = None,
        horizon = 0.0, block_size = 1))]
    #[allow(clippy::too_many_arguments)] // one keyword per choice
    fn nested<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = convert::ranged)] boundaries: Option<Vec<u32>>,
        #[pyo3(from_py_with = convert::ranged)] count: Option<u32>,
        per_segment: Option<Vec<f64>>,
        margin: f64,
        failure_probability: Option<f64>,
        horizon: f64,
        block_size: u32,
    ) -> PyResult<Bound<'py, PyDict>> {
        let segments = self.cut(boundaries, count)?;
        let protection = failure_probability.map(|failure_probability| Protection { failure_probability, horizon });
        let setting =
            NestedSetting { segments: &segments, law: &self.law, limits: self.limits, protection, block_size };
        let found = match per_segment {
            Some(per_segment) => NestedThresholds::evaluate(per_segment, &setting),
            None => NestedThresholds::best(&setting, margin),
        };
        let (message, violations) = match found {
            Ok(found) => {
                let dict = thresholds(py, &found, &found.violations)?;
                dict.set_item("latency", found.latency(&setting))?;
                return Ok(dict);
            }
            Err(Error::Infeasible { violations }) => (None, violations),
            Err(error @ Error::Unstable { .. }) => (Some(error.to_string()), Vec::new()),
            Err(error) => return Err(planning(&error)),
        };
        let dict = PyDict::new(py);
        dict.set_item("per_segment", py.None())?;
        dict.set_item("feasible", false)?;
        dict.set_item("violations", explained(py, &violations)?)?;
        dict.set_item("unstable", message)?;
        Ok(dict)
    }

    /// The paper's experimental construction: `total` requests in service, spread over segments and stages; caps in
    /// requests a stage.
    #[pyo3(signature = (total, boundaries = None, *, count = None, margin = 0.05))]
    fn stage_caps<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = convert::ranged)] total: u32,
        #[pyo3(from_py_with = convert::ranged)] boundaries: Option<Vec<u32>>,
        #[pyo3(from_py_with = convert::ranged)] count: Option<u32>,
        margin: f64,
    ) -> Answer<'py> {
        value(py, &refused(StageCaps::spread(total, &self.cut(boundaries, count)?, margin))?)
    }

    /// The safety buffer of thresholds by segment, in KV blocks of `block_size` tokens.
    #[pyo3(signature = (per_segment, boundaries = None, *, count = None, block_size = 1))]
    #[allow(clippy::needless_pass_by_value)] // extracted from a Python list
    fn safety_buffer(
        &self,
        per_segment: Vec<f64>,
        #[pyo3(from_py_with = convert::ranged)] boundaries: Option<Vec<u32>>,
        #[pyo3(from_py_with = convert::ranged)] count: Option<u32>,
        #[pyo3(from_py_with = convert::ranged)] block_size: u32,
    ) -> PyResult<SafetyBuffer> {
        let segments = self.cut(boundaries, count)?;
        Ok(SafetyBuffer { inner: refused(Buffer::new(&per_segment, &segments, &self.law, block_size))? })
    }
}

/// Memory for the queues at the segment boundaries, as a function of how rarely it may overflow (§5).
#[pyclass(frozen, module = "wait_core")]
pub(crate) struct SafetyBuffer {
    inner: Buffer,
}

#[pymethods]
impl SafetyBuffer {
    /// θ_k of the queue before each segment 2, 3, …
    #[getter]
    fn theta(&self) -> Vec<f64> {
        self.inner.segments.iter().filter_map(|segment| Some(segment.queue?.theta)).collect()
    }

    /// KV tokens to keep free for this probability of an overflow within a horizon in seconds.
    fn tokens(&self, failure_probability: f64, horizon: f64) -> PyResult<f64> {
        refused(self.inner.tokens(&Protection { failure_probability, horizon }))
    }

    /// Most requests resident at once under that protection, boundary queues included.
    fn residents(&self, failure_probability: f64, horizon: f64) -> PyResult<f64> {
        refused(self.inner.residents(&Protection { failure_probability, horizon }))
    }

    /// Requests that the queue before each segment 2, 3, … may hold under that protection.
    fn queue_bounds(&self, failure_probability: f64, horizon: f64) -> PyResult<Vec<f64>> {
        refused(self.inner.queue_bounds(&Protection { failure_probability, horizon }))
    }

    /// The bound on the probability of an overflow that this many tokens give over a horizon in seconds.
    fn failure_probability(&self, tokens: f64, horizon: f64) -> PyResult<f64> {
        refused(self.inner.failure_probability(tokens, horizon))
    }

    /// The longest horizon in seconds over which this many tokens keep that probability.
    fn horizon(&self, tokens: f64, failure_probability: f64) -> PyResult<f64> {
        refused(self.inner.horizon(tokens, failure_probability))
    }
}
