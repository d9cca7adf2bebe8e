//! A run of the simulator and its results. Columns come back as numpy arrays.

use std::ops::ControlFlow;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyType};
use wait_sim::{Lengths, Prefixes, Requests, Setup, Slo, StepTimes, Summary};

use crate::columns::{self, arrivals, followed, hints};
use crate::convert;
use crate::error::{self, WaitCoreError};
use crate::fleet::served;
use crate::scheduler::learned_law;
use crate::simulation::Column;

/// One finished simulation; the constructor restores a pickled one.
#[pyclass(frozen, module = "wait_core._core")]
pub(crate) struct Run {
    inner: wait_sim::Run,
    served: Option<wait_sim::Served>,
}

/// Simulates all arrivals to their end. Columns have one entry a request, by rising arrival (ns, tokens);
/// `callback(completed)` is called at intervals, and an exception that it raises ends the run. Raises `StalledError`
/// where requests would wait forever, `WaitCoreError` where a value is refused.
#[pyfunction]
#[pyo3(signature = (settings, law, arrival_ns, prompt, output, labels, *, lengths_known, typed, max_tokens, max_concurrency,
    overhead_ns, step_jitter = 0.0, seed = 0, steps_reported = false, learned = None, predicted = None,
    predicted_log_error = 0.0, classes = None, priorities = None, tenants = None, follows = None, system = None,
    hash_ids = None, acceptance = Vec::new(), transfer = None, fleet = None, callback = None))]
#[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)] // the private interface of `simulate`
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
    follows: Option<(PyReadonlyArray1<'_, i64>, PyReadonlyArray1<'_, u64>)>,
    #[pyo3(from_py_with = convert::ranged)] system: Option<u32>,
    hash_ids: Option<(PyReadonlyArray1<'_, u64>, PyReadonlyArray1<'_, u64>, u32)>,
    acceptance: Vec<f64>,
    transfer: Option<(f64, f64, f64)>,
    fleet: Option<&Bound<'_, PyDict>>,
    callback: Option<Py<PyAny>>,
) -> PyResult<Run> {
    let arrivals = arrivals(&arrival_ns, &prompt, &output, Some(&labels))?;
    let follows = match &follows {
        Some((after, think_ns)) => followed(after.as_slice()?, think_ns.as_slice()?)?,
        None => Vec::new(),
    };
    let prefixes = match (&hash_ids, system) {
        (Some((ids, offsets, tokens)), _) => {
            Prefixes::Named { ids: ids.as_slice()?, offsets: offsets.as_slice()?, tokens: *tokens }
        }
        (None, Some(system)) => Prefixes::Conversations { system },
        (None, None) => Prefixes::Distinct,
    };
    let setup = Setup {
        lengths: if lengths_known { Lengths::Known } else { Lengths::Hidden },
        typed,
        max_tokens,
        max_concurrency,
        hints: hints(
            arrivals.len(),
            predicted.as_deref(),
            predicted_log_error,
            classes.as_deref(),
            priorities.as_deref(),
            tenants.as_deref(),
        )?,
        overhead_ns,
        learned: learned.map(|state| convert::json(state, "learned")).transpose()?,
        steps: StepTimes { jitter: step_jitter, seed, reported: steps_reported },
        acceptance,
        transfer: transfer.map(columns::transfer),
        ..Setup::new(convert::config(Some(settings))?, convert::json(law, "iteration_time")?)
    };
    let mut raised = None;
    // A run takes seconds: other threads continue, and Ctrl-C is checked at every callback.
    let requests = Requests { arrivals: &arrivals, follows: &follows, prefixes };
    let fleet = fleet.map(|fleet| crate::fleet::fleet(fleet, &setup)).transpose()?;
    let result = py.detach(|| {
        let watch = |completed| {
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
        };
        match &fleet {
            None => wait_sim::run(&setup, requests, watch).map(|inner| Run { inner, served: None }),
            Some(fleet) => wait_sim::fleet(fleet, requests, watch)
                .map(|found| Run { inner: found.run, served: Some(found.served) }),
        }
    });
    match (result, raised) {
        (_, Some(error)) => Err(error),
        (result, None) => result.map_err(error::simulation),
    }
}

#[pymethods]
impl Run {
    #[new]
    fn new(state: &[u8]) -> PyResult<Self> {
        // Its keys reveal a state of another version, so nothing is misread.
        match serde_json::from_slice(state) {
            Ok((inner, served)) => Ok(Run { inner, served }),
            Err(error) => Err(WaitCoreError::new_err(format!("state: not one of a Run ({error})"))),
        }
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyType>, (Bound<'py, PyBytes>,))> {
        match serde_json::to_vec(&(&self.inner, &self.served)) {
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
        // It sorts every gap between tokens: other threads continue.
        let summary = py.detach(|| Summary::new(&self.inner, slo));
        for (key, value) in summary.items() {
            let whole = matches!(key.as_str(), "completed" | "finished_by_length" | "failed")
                || key.starts_with("total_") && !key.ends_with("throughput");
            if whole { dict.set_item(key, value as u64)? } else { dict.set_item(key, value)? }
        }
        dict.update(self.counts(py)?.as_mapping())?;
        Ok(dict)
    }

    /// The part of the summary that was counted during the run, and is free to read.
    #[getter]
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        counts(py, &self.inner)
    }

    /// Of a fleet: which replica served each request (`replica_of`, 2^32 − 1 where none did), when the router predicted
    /// its first token (`predicted_ttft_s`, after it was sent on; -1 without a prediction), the counters of each
    /// replica (`replicas`, a list of dictionaries as `counts`, with `completed`), how often requests were sent again
    /// because their replica was gone (`resent`), how many were held at the router's door (`held`) and for how long in
    /// total (`held_s`). None of a single engine.
    #[getter]
    fn fleet<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        self.served.as_ref().map(|found| served(py, found)).transpose()
    }

    /// What the policy has learned, as in `Scheduler.learned`.
    #[getter]
    fn learned<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let state = self.inner.learned.as_ref().map(|state| pythonize::pythonize(py, state));
        state.transpose().map_err(|error| WaitCoreError::new_err(error.to_string()))
    }

    /// The iteration-time law that the policy has learned, as in `Scheduler.iteration_time`.
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

    /// Each request's predicted wait for admission when it arrived, ns.
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

/// What was counted during a run.
pub(crate) fn counts<'py>(py: Python<'py>, run: &wait_sim::Run) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let stats = &run.stats;
    dict.set_item("preemptions", stats.preemptions)?;
    dict.set_item("recomputed_tokens", run.recomputed_tokens())?;
    dict.set_item("prompt_tokens", run.prompt_tokens)?;
    dict.set_item("cached_tokens", run.cached_tokens)?;
    dict.set_item("draft_tokens", run.draft_tokens)?;
    dict.set_item("accepted_tokens", run.accepted_tokens)?;
    dict.set_item("peak_kv_blocks", run.peak_blocks)?;
    if !run.peak_by_group.is_empty() {
        dict.set_item("peak_kv_blocks_by_group", run.peak_by_group.clone())?;
    }
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
