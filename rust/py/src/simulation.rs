//! What surrounds a run of the simulator: sampling, grouping, laws, forecasts. Columns come back as numpy arrays.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use wait_core::model::{BatchShape, Grouping, IterationTime, RequestType};
use wait_sim::{Arrival, Dataset, Setup};

use crate::convert;
use crate::error::{self, WaitCoreError};

pub(crate) type Column<'py, T> = Bound<'py, PyArray1<T>>;
type Types = Vec<(u32, u32, f64)>;

/// For each request the one it follows, or -1, and how long its user thinks after that one, ns.
type Follows<'py> = (Column<'py, i64>, Column<'py, u64>);

/// Arrival times (ns), prompt and output lengths (tokens) and component labels of a synthetic dataset, each of shape
/// (num_requests,); of conversations also which request each follows (or -1) and how long its user thinks after that one
/// (ns), and the tokens of the system prompt. Raises `WaitCoreError` where the dataset or a value is refused.
#[pyfunction]
#[allow(clippy::type_complexity)] // six columns
pub(crate) fn sample<'py>(
    py: Python<'py>,
    dataset: &Bound<'py, PyAny>,
    #[pyo3(from_py_with = convert::ranged)] num_requests: usize,
    request_rate: f64,
    #[pyo3(from_py_with = convert::ranged)] seed: u64,
) -> PyResult<(Column<'py, u64>, Column<'py, u32>, Column<'py, u32>, Column<'py, u16>, Option<Follows<'py>>, Option<u32>)>
{
    let dataset: Dataset = convert::json(dataset, "dataset")?;
    // Up to 10^8 requests: other threads continue.
    let sampled = py.detach(|| dataset.sample(num_requests, request_rate, seed)).map_err(error::core)?;
    let (rows, follows) = (&sampled.arrivals, &sampled.follows);
    let after = follows.iter().map(|follow| follow.map_or(-1, |follow| follow.after.into())).collect::<Vec<i64>>();
    let think_ns = follows.iter().map(|follow| follow.map_or(0, |follow| follow.think_ns)).collect::<Vec<_>>();
    Ok((
        rows.iter().map(|row| row.at_ns).collect::<Vec<_>>().into_pyarray(py),
        rows.iter().map(|row| row.prompt).collect::<Vec<_>>().into_pyarray(py),
        rows.iter().map(|row| row.output).collect::<Vec<_>>().into_pyarray(py),
        rows.iter().map(|row| row.label).collect::<Vec<_>>().into_pyarray(py),
        (!after.is_empty()).then(|| (after.into_pyarray(py), think_ns.into_pyarray(py))),
        sampled.system,
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

pub(crate) fn same_length<'a>(
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
