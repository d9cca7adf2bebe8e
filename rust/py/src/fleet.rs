//! A fleet for the simulator, from Python values, and its results as Python values.

use std::num::NonZero;
use std::thread;

use numpy::IntoPyArray;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use serde::Deserialize;
use wait_core::Config;
use wait_core::model::IterationTime;
use wait_core::routing::{RouterName, Routing};
use wait_sim::{Change, PrefillPool, Served, Setup};

use crate::run::counts;
use crate::{convert, error};

/// The private border of `simulate`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    engines: Vec<(serde_json::Map<String, serde_json::Value>, IterationTime)>,
    router: String,
    /// Replicas that only compute prompts, and the router among them.
    #[serde(default)]
    prefill: Option<(usize, String)>,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    routing: GivenRouting,
    staleness_ns: u64,
    #[serde(default)]
    changes: Vec<Change>,
    routers: usize,
    #[serde(default)]
    sessions: Vec<u32>,
    #[serde(default)]
    threads: Option<usize>,
}

/// Settings of a router that may be left out.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GivenRouting {
    pub(crate) stale_after: Option<f64>,
    pub(crate) affinity_load: Option<f64>,
    pub(crate) longest_queue: Option<f64>,
    pub(crate) ttft_target: Option<f64>,
}

impl GivenRouting {
    /// Fills in the defaults.
    pub(crate) fn of(&self, router: &str, seed: u64) -> PyResult<Routing> {
        let unset = Routing::default();
        Ok(Routing {
            router: RouterName::parse(router).map_err(error::core)?,
            seed,
            stale_after: self.stale_after.unwrap_or(unset.stale_after),
            affinity_load: self.affinity_load.unwrap_or(unset.affinity_load),
            longest_queue: self.longest_queue.unwrap_or(unset.longest_queue),
            ttft_target: self.ttft_target,
        })
    }
}

/// The fleet that a dictionary describes: its engines as (settings, law), router, prefill, seed, routing,
/// staleness_ns, changes, routers, sessions, threads.
pub(crate) fn fleet(given: &Bound<'_, PyDict>, setup: &Setup) -> PyResult<wait_sim::Fleet> {
    let given: Given = convert::json(given.as_any(), "fleet")?;
    let engine = |(settings, law)| Ok((Config::from_map(settings).map_err(error::core)?, law));
    let prefill = given.prefill.map(|(replicas, router)| {
        Ok::<_, PyErr>(PrefillPool { replicas, routing: given.routing.of(&router, given.seed)? })
    });
    Ok(wait_sim::Fleet {
        setup: setup.clone(),
        engines: given.engines.into_iter().map(engine).collect::<PyResult<_>>()?,
        routing: given.routing.of(&given.router, given.seed)?,
        prefill: prefill.transpose()?,
        staleness_ns: given.staleness_ns,
        changes: given.changes,
        routers: given.routers,
        sessions: given.sessions,
        threads: given.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZero::get)),
    })
}

/// The results of a fleet, beside its run.
pub(crate) fn served<'py>(py: Python<'py>, found: &Served) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("replica_of", found.replica_of.clone().into_pyarray(py))?;
    dict.set_item("predicted_ttft_s", found.predicted_ttft_s.clone().into_pyarray(py))?;
    let replicas = PyList::empty(py);
    for run in &found.replicas {
        let counted = counts(py, run)?;
        counted.set_item("completed", run.completed)?;
        replicas.append(counted)?;
    }
    dict.set_item("replicas", replicas)?;
    dict.set_item("resent", found.resent)?;
    dict.set_item("held", found.held)?;
    dict.set_item("held_s", found.held_ns as f64 * 1e-9)?;
    Ok(dict)
}
