//! The simulator: sampling, grouping, running. Columns come back as numpy arrays.

use std::ops::ControlFlow;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyType};
use wait_core::LengthHint;
use wait_core::model::{BatchShape, Grouping, IterationTime, RequestType};
use wait_sim::{Arrival, Dataset, Hint, Lengths, Setup, Slo, StepTimes, Summary};

use crate::convert;
use crate::error::{self, WaitCoreError};
use crate::scheduler::learned_law;

type Column<'py, T> = Bound<'py, PyArray1<T>>;
type Types = Vec<(u32, u32, f64)>;

/// Arrival times (ns), prompt and output lengths (tokens) and component labels of a synthetic dataset, each of shape
/// (num_requests,). Raises `WaitCoreError` where the dataset or a value is refused.
#[pyfunction]
#[allow(clippy::type_complexity)] // four columns
pub(crate) fn sample<'py>(
    py: Python<'py>,
    dataset: &Bound<'py, PyAny>,
    #[pyo3(from_py_with = convert::ranged)] num_requests: usize,
    request_rate: f64,
    #[pyo3(from_py_with = convert::ranged)] seed: u64,
) -> PyResult<(Column<'py, u64>, Column<'py, u32>, Column<'py, u32>, Column<'py, u16>)> {
    let dataset: Dataset = convert::json(dataset, "dataset")?;
    // Up to 10^8 requests: other threads go on.
    let rows = py.detach(|| dataset.sample(num_requests, request_rate, seed)).map_err(error::core)?.arrivals;
    Ok((
        rows.iter().map(|row| row.at_ns).collect::<Vec<_>>().into_pyarray(py),
        rows.iter().map(|row| row.prompt).collect::<Vec<_>>().into_pyarray(py),
        rows.iter().map(|row| row.output).collect::<Vec<_>>().into_pyarray(py),
        rows.iter().map(|row| row.label).collect::<Vec<_>>().into_pyarray(py),
    ))
}

/// Groups lengths that arrive at `rate` per second into at most `classes` types by quantiles of the output length.
///
/// Returns the types as (prompt, output, rate) and the type of each request. Where there are no more distinct pairs
/// than classes, the types are exactly these pairs.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)] // extracted from numpy arrays
pub(crate) fn group_types<'py>(
    py: Python<'py>,
    prompt: PyReadonlyArray1<'py, u32>,
    output: PyReadonlyArray1<'py, u32>,
    rate: f64,
    #[pyo3(from_py_with = convert::ranged)] classes: usize,
) -> PyResult<(Types, Column<'py, u16>)> {
    let (prompt, output) = same_length(&prompt, &output)?;
    let pairs: Vec<(u32, u32)> = prompt.iter().copied().zip(output.iter().copied()).collect();
    let (workload, labels) = Grouping::typed(&pairs, rate, classes).map_err(|error| error::planning(&error))?;
    let types = workload.types().iter().map(|&RequestType { prompt, output, rate }| (prompt, output, rate)).collect();
    Ok((types, labels.into_pyarray(py)))
}

fn same_length<'a>(
    prompt: &'a PyReadonlyArray1<'_, u32>,
    output: &'a PyReadonlyArray1<'_, u32>,
) -> PyResult<(&'a [u32], &'a [u32])> {
    let (prompt, output) = (prompt.as_slice()?, output.as_slice()?);
    if prompt.len() != output.len() {
        let message = format!("output: {} lengths for {} prompts", output.len(), prompt.len());
        return Err(WaitCoreError::new_err(message));
    }
    Ok((prompt, output))
}

/// Most tokens of anything in an iteration, all chunks together: the products of two stay exact, and their sum.
const MOST_TOKENS: u64 = 1 << 30;

/// Seconds that one iteration takes under a law: `decodes` requests that read `decode_kv` tokens, and prefill chunks
/// of (tokens, tokens computed before).
#[pyfunction]
#[pyo3(signature = (law, *, decodes = 0, decode_kv = 0, chunks = Vec::new()))]
pub(crate) fn iteration_seconds(
    law: &Bound<'_, PyAny>,
    #[pyo3(from_py_with = convert::ranged)] decodes: u64,
    #[pyo3(from_py_with = convert::ranged)] decode_kv: u64,
    #[pyo3(from_py_with = convert::ranged)] chunks: Vec<(u64, u64)>,
) -> PyResult<f64> {
    let law: IterationTime = convert::json(law, "iteration_time")?;
    let sum = |of: fn(&(u64, u64)) -> u64| chunks.iter().map(of).fold(0, u64::saturating_add);
    let most = decodes.max(decode_kv).max(sum(|chunk| chunk.0)).max(sum(|chunk| chunk.1));
    if most > MOST_TOKENS {
        let message = format!("tokens = {most}: an iteration has at most {MOST_TOKENS} in all");
        return Err(WaitCoreError::new_err(message));
    }
    let mut shape = BatchShape { decodes, decode_kv, ..BatchShape::default() };
    for (tokens, before) in chunks {
        shape.add_prefill(tokens, before);
    }
    Ok(law.nanos(&shape) as f64 * 1e-9)
}

/// The hints of each request, from columns that may be absent.
fn hints(
    requests: usize,
    predicted: Option<&[u32]>,
    log_error: f32,
    classes: Option<&[u16]>,
    priorities: Option<&[i32]>,
    tenants: Option<&[u16]>,
) -> PyResult<Vec<Hint>> {
    let sizes = [predicted.map(<[u32]>::len), classes.map(<[u16]>::len), priorities.map(<[i32]>::len)];
    let sizes = sizes.into_iter().chain([tenants.map(<[u16]>::len)]);
    if let Some(size) = sizes.clone().flatten().find(|&size| size != requests) {
        return Err(WaitCoreError::new_err(format!("hints: {size} values for {requests} requests")));
    }
    if sizes.flatten().next().is_none() {
        return Ok(Vec::new());
    }
    let hint = |i: usize| Hint {
        output: predicted.map_or(LengthHint::Unknown, |tokens| LengthHint::Predicted { tokens: tokens[i], log_error }),
        label: classes.map(|labels| labels[i]),
        priority: priorities.map_or(0, |levels| levels[i]),
        tenant: tenants.map_or(0, |tenants| tenants[i]),
    };
    Ok((0..requests).map(hint).collect())
}

/// One finished simulation; the constructor takes one up again from what pickling made of it.
#[pyclass(frozen, module = "wait_core._core")]
pub(crate) struct Run {
    inner: wait_sim::Run,
}

/// Simulates all arrivals to their end. Columns have one entry a request, by rising arrival (ns, tokens);
/// `callback(completed)` is called now and then, and what it raises ends the run. Raises `StalledError` where requests
/// would wait for ever, `WaitCoreError` where a value is refused.
#[pyfunction]
#[pyo3(signature = (settings, law, arrival_ns, prompt, output, labels, *, lengths_known, typed, max_tokens, max_concurrency,
    overhead_ns, step_jitter = 0.0, seed = 0, steps_reported = false, learned = None, predicted = None,
    predicted_log_error = 0.0, classes = None, priorities = None, tenants = None, callback = None))]
#[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)] // the private border of `simulate`
pub(crate) fn run(
    py: Python<'_>,
    settings: &Bound<'_, PyDict>,
    law: &Bound<'_, PyAny>,
    arrival_ns: PyReadonlyArray1<'_, u64>,
    prompt: PyReadonlyArray1<'_, u32>,
    output: PyReadonlyArray1<'_, u32>,
    labels: PyReadonlyArray1<'_, u16>,
    lengths_known: bool,
    typed: bool,
    #[pyo3(from_py_with = convert::ranged)] max_tokens: Option<u32>,
    #[pyo3(from_py_with = convert::ranged)] max_concurrency: Option<usize>,
    #[pyo3(from_py_with = convert::ranged)] overhead_ns: u64,
    step_jitter: f64,
    #[pyo3(from_py_with = convert::ranged)] seed: u64,
    steps_reported: bool,
    learned: Option<&Bound<'_, PyAny>>,
    #[pyo3(from_py_with = convert::ranged)] predicted: Option<Vec<u32>>,
    predicted_log_error: f32,
    #[pyo3(from_py_with = convert::ranged)] classes: Option<Vec<u16>>,
    #[pyo3(from_py_with = convert::ranged)] priorities: Option<Vec<i32>>,
    #[pyo3(from_py_with = convert::ranged)] tenants: Option<Vec<u16>>,
    callback: Option<Py<PyAny>>,
) -> PyResult<Run> {
    let (prompt, output) = same_length(&prompt, &output)?;
    let (times, labels) = (arrival_ns.as_slice()?, labels.as_slice()?);
    if times.len() != prompt.len() || labels.len() != prompt.len() {
        let message =
            format!("arrivals: {} times and {} labels for {} requests", times.len(), labels.len(), prompt.len());
        return Err(WaitCoreError::new_err(message));
    }
    let setup = Setup {
        lengths: if lengths_known { Lengths::Known } else { Lengths::Hidden },
        typed,
        max_tokens,
        max_concurrency,
        hints: hints(
            prompt.len(),
            predicted.as_deref(),
            predicted_log_error,
            classes.as_deref(),
            priorities.as_deref(),
            tenants.as_deref(),
        )?,
        overhead_ns,
        learned: learned.map(|state| convert::json(state, "learned")).transpose()?,
        steps: StepTimes { jitter: step_jitter, seed, reported: steps_reported },
        ..Setup::new(convert::config(Some(settings))?, convert::json(law, "iteration_time")?)
    };
    let mut raised = None;
    // A run takes seconds: other threads go on, and Ctrl-C is looked for at every callback.
    let result = py.detach(|| {
        let rows = times.iter().zip(prompt).zip(output).zip(labels);
        let arrivals: Vec<Arrival> =
            rows.map(|(((&at_ns, &prompt), &output), &label)| Arrival { at_ns, prompt, output, label }).collect();
        wait_sim::run(&setup, &arrivals, |completed| {
            let called = Python::attach(|py| {
                py.check_signals()?;
                callback.as_ref().map_or(Ok(()), |callback| callback.call1(py, (completed,)).map(drop))
            });
            match called {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    raised = Some(error);
                    ControlFlow::Break(())
                }
            }
        })
    });
    match (result, raised) {
        (_, Some(error)) => Err(error),
        (Err(error), None) => Err(error::simulation(error)),
        (Ok(inner), None) => Ok(Run { inner }),
    }
}

/// Forecasts of the residents' KV, one row a probe, and the truth beside them: see `wait_core.simulation.Forecasts`.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)] // extracted from numpy arrays
pub(crate) fn probe<'py>(
    py: Python<'py>,
    settings: &Bound<'py, PyDict>,
    law: &Bound<'py, PyAny>,
    arrival_ns: PyReadonlyArray1<'py, u64>,
    prompt: PyReadonlyArray1<'py, u32>,
    output: PyReadonlyArray1<'py, u32>,
    #[pyo3(from_py_with = convert::ranged)] every: u64,
) -> PyResult<Bound<'py, PyDict>> {
    let (prompt, output) = same_length(&prompt, &output)?;
    let rows = arrival_ns.as_slice()?.iter().zip(prompt).zip(output);
    let arrivals: Vec<Arrival> =
        rows.map(|((&at_ns, &prompt), &output)| Arrival { at_ns, prompt, output, label: 0 }).collect();
    let setup = Setup::new(convert::config(Some(settings))?, convert::json(law, "iteration_time")?);
    let probes = py.detach(|| wait_sim::probe(&setup, &arrivals, every)).map_err(error::simulation)?;
    let dict = PyDict::new(py);
    dict.set_item("completed", probes.completed.into_pyarray(py))?;
    dict.set_item("residents", probes.residents.into_pyarray(py))?;
    dict.set_item("held", probes.held.into_pyarray(py))?;
    dict.set_item("horizon", probes.horizon.into_pyarray(py))?;
    dict.set_item("mean", probes.mean.into_pyarray(py))?;
    dict.set_item("deviation", probes.deviation.into_pyarray(py))?;
    dict.set_item("overflow", probes.overflow.into_pyarray(py))?;
    dict.set_item("truth", probes.truth.into_pyarray(py))?;
    dict.set_item("peak", probes.peak.into_pyarray(py))?;
    Ok(dict)
}

#[pymethods]
impl Run {
    #[new]
    fn new(state: &[u8]) -> PyResult<Self> {
        // The names in it tell a state of another version: nothing is misread.
        match serde_json::from_slice(state) {
            Ok(inner) => Ok(Run { inner }),
            Err(error) => Err(WaitCoreError::new_err(format!("state: not one of a Run ({error})"))),
        }
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyType>, (Bound<'py, PyBytes>,))> {
        match serde_json::to_vec(&self.inner) {
            Ok(state) => Ok((py.get_type::<Run>(), (PyBytes::new(py, &state),))),
            Err(error) => Err(WaitCoreError::new_err(error.to_string())),
        }
    }

    /// The figures of the run under the keys of `vllm bench serve`: times in ms, rates in 1/s, lengths in tokens; NaN where
    /// nothing was observed.
    ///
    /// With an objective in ms, also request_goodput (requests/s that met it) and goodput (share of those offered).
    #[pyo3(signature = (slo_ttft_ms = None, slo_tpot_ms = None))]
    fn summary<'py>(
        &self,
        py: Python<'py>,
        slo_ttft_ms: Option<f64>,
        slo_tpot_ms: Option<f64>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let slo = match (slo_ttft_ms, slo_tpot_ms) {
            (None, None) => None,
            (ttft, tpot) => {
                let or_any = |limit: Option<f64>| limit.unwrap_or(f64::INFINITY);
                Some(Slo { ttft_ms: or_any(ttft), tpot_ms: or_any(tpot) })
            }
        };
        let dict = PyDict::new(py);
        // It sorts every gap between tokens: other threads go on.
        let summary = py.detach(|| Summary::new(&self.inner, slo));
        for (key, value) in summary.items() {
            let whole = matches!(key.as_str(), "completed" | "finished_by_length" | "failed")
                || key.starts_with("total_") && !key.ends_with("throughput");
            if whole { dict.set_item(key, value as u64)? } else { dict.set_item(key, value)? }
        }
        dict.update(self.counts(py)?.as_mapping())?;
        Ok(dict)
    }

    /// The part of the summary that was counted during the run, and costs nothing to read.
    #[getter]
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        let (run, stats) = (&self.inner, &self.inner.stats);
        dict.set_item("preemptions", stats.preemptions)?;
        dict.set_item("recomputed_tokens", run.recomputed_tokens())?;
        dict.set_item("prompt_tokens", run.prompt_tokens)?;
        dict.set_item("cached_tokens", run.cached_tokens)?;
        dict.set_item("draft_tokens", run.draft_tokens)?;
        dict.set_item("accepted_tokens", run.accepted_tokens)?;
        dict.set_item("peak_kv_blocks", run.peak_blocks)?;
        dict.set_item("kv_blocks", run.kv_blocks)?;
        dict.set_item("iterations", run.iterations)?;
        dict.set_item("decode_tokens", run.decode_tokens)?;
        dict.set_item("prefill_tokens", run.prefill_tokens)?;
        let holds = PyDict::new(py);
        for (reason, count) in run.holds() {
            holds.set_item(reason, count)?;
        }
        dict.set_item("holds", holds)?;
        Ok(dict)
    }

    /// What the policy has learned, as `Scheduler.learned` has it.
    #[getter]
    fn learned<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let state = self.inner.learned.as_ref().map(|state| pythonize::pythonize(py, state));
        state.transpose().map_err(|error| WaitCoreError::new_err(error.to_string()))
    }

    /// The iteration-time law that the policy has learned, as `Scheduler.iteration_time` has it.
    #[getter]
    fn iteration_time<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        self.inner.learned_law.as_ref().map(|learned| learned_law(py, learned)).transpose()
    }

    /// Arrival times, ns.
    #[getter]
    fn arrival_ns<'py>(&self, py: Python<'py>) -> Column<'py, u64> {
        PyArray1::from_slice(py, &self.inner.arrival_ns)
    }

    /// First admissions, ns; 2^64 − 1 where a request was refused.
    #[getter]
    fn admitted_ns<'py>(&self, py: Python<'py>) -> Column<'py, u64> {
        PyArray1::from_slice(py, &self.inner.admitted_ns)
    }

    /// How long each was expected to wait for its admission when it arrived, ns.
    #[getter]
    fn predicted_wait_ns<'py>(&self, py: Python<'py>) -> Column<'py, u64> {
        PyArray1::from_slice(py, &self.inner.predicted_wait_ns)
    }

    /// Ends of the prefills that gave the first tokens, ns.
    #[getter]
    fn first_token_ns<'py>(&self, py: Python<'py>) -> Column<'py, u64> {
        PyArray1::from_slice(py, &self.inner.first_token_ns)
    }

    /// Completions, ns; 2^64 − 1 where a request was refused.
    #[getter]
    fn finished_ns<'py>(&self, py: Python<'py>) -> Column<'py, u64> {
        PyArray1::from_slice(py, &self.inner.finished_ns)
    }

    /// Prompt lengths, tokens.
    #[getter]
    fn prompt<'py>(&self, py: Python<'py>) -> Column<'py, u32> {
        PyArray1::from_slice(py, &self.inner.prompt)
    }

    /// Output lengths, tokens.
    #[getter]
    fn output<'py>(&self, py: Python<'py>) -> Column<'py, u32> {
        PyArray1::from_slice(py, &self.inner.output)
    }

    /// Times each request was preempted.
    #[getter]
    fn preemptions<'py>(&self, py: Python<'py>) -> Column<'py, u32> {
        PyArray1::from_slice(py, &self.inner.preemptions)
    }

    /// The state over time: (end of iteration in ns, KV blocks in use, residents, waiting).
    #[getter]
    #[allow(clippy::type_complexity)] // four columns
    fn series<'py>(&self, py: Python<'py>) -> (Column<'py, u64>, Column<'py, u32>, Column<'py, u32>, Column<'py, u32>) {
        let series = &self.inner.series;
        (
            series.iter().map(|sample| sample.at_ns).collect::<Vec<_>>().into_pyarray(py),
            series.iter().map(|sample| sample.blocks).collect::<Vec<_>>().into_pyarray(py),
            series.iter().map(|sample| sample.residents).collect::<Vec<_>>().into_pyarray(py),
            series.iter().map(|sample| sample.waiting).collect::<Vec<_>>().into_pyarray(py),
        )
    }
}
