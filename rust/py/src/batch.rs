//! Many runs of one setting, each cut at a horizon.

use std::ops::ControlFlow;

use numpy::IntoPyArray;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use wait_sim::{Batch, Lengths, Outcome, Setup};

use crate::{convert, error};

/// Simulates a synthetic dataset once for each seed in `first_seed .. first_seed + runs`, up to `horizon_ns`; arrivals
/// continue beyond it. Returns columns with one entry a run: arrived, completed, output_tokens (of the completed),
/// latency_s and ttft_s (means over the arrived, cut at the horizon), peak_kv_blocks, peak_parked, preemptions,
/// iterations.
#[pyfunction]
#[pyo3(signature = (settings, law, dataset, *, request_rate, horizon_ns, runs, first_seed, lengths_known, typed,
    threads = 1))]
#[allow(clippy::too_many_arguments)] // the private border of `repeat`
pub(crate) fn batch<'py>(
    py: Python<'py>,
    settings: &Bound<'py, PyDict>,
    law: &Bound<'py, PyAny>,
    dataset: &Bound<'py, PyAny>,
    request_rate: f64,
    #[pyo3(from_py_with = convert::ranged)] horizon_ns: u64,
    #[pyo3(from_py_with = convert::ranged)] runs: u32,
    #[pyo3(from_py_with = convert::ranged)] first_seed: u64,
    lengths_known: bool,
    typed: bool,
    #[pyo3(from_py_with = convert::ranged)] threads: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let setup = Setup {
        lengths: if lengths_known { Lengths::Known } else { Lengths::Hidden },
        typed,
        ..Setup::new(convert::config(Some(settings))?, convert::json(law, "iteration_time")?)
    };
    let dataset = convert::json(dataset, "dataset")?;
    let task = Batch { setup, dataset, request_rate, horizon_ns, threads };
    let seeds = first_seed..first_seed.saturating_add(u64::from(runs));
    let mut raised = None;
    #[allow(clippy::redundant_closure_for_method_calls)] // the path is not general enough in its lifetime
    let signals = || Python::attach(|py| py.check_signals());
    // Minutes of work: other threads continue, and Ctrl-C is checked after every run.
    let result = py.detach(|| {
        wait_sim::batch(&task, seeds, |_| match signals() {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                raised = Some(error);
                ControlFlow::Break(())
            }
        })
    });
    if let Some(error) = raised {
        return Err(error);
    }
    columns(py, &result.map_err(error::simulation)?)
}

fn columns<'py>(py: Python<'py>, outcomes: &[Outcome]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let counts = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).collect::<Vec<_>>().into_pyarray(py);
    let seconds = |of: fn(&Outcome) -> f64| outcomes.iter().map(of).collect::<Vec<_>>().into_pyarray(py);
    dict.set_item("arrived", counts(|o| o.arrived))?;
    dict.set_item("completed", counts(|o| o.completed))?;
    dict.set_item("output_tokens", counts(|o| o.output_tokens))?;
    dict.set_item("latency_s", seconds(|o| o.latency_s))?;
    dict.set_item("ttft_s", seconds(|o| o.ttft_s))?;
    dict.set_item("peak_kv_blocks", counts(|o| u64::from(o.peak_blocks)))?;
    dict.set_item("peak_parked", counts(|o| u64::from(o.peak_parked)))?;
    dict.set_item("preemptions", counts(|o| o.preemptions))?;
    dict.set_item("iterations", counts(|o| o.iterations))?;
    Ok(dict)
}
