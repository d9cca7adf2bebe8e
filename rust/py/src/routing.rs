//! `Router`: which replica a request goes to. Replicas and requests are named by strings; the core knows them by
//! number.

use std::collections::HashMap;

use pyo3::prelude::*;
use wait_core::routing::{self, Incoming, Load, Replica};

use crate::convert;
use crate::error;
use crate::fleet::GivenRouting;

/// Strings by number, and numbers by string.
#[derive(Default)]
struct Names {
    numbers: HashMap<String, u64>,
    texts: HashMap<u64, String>,
    next: u64,
}

impl Names {
    fn number(&self, text: &str) -> Option<u64> {
        self.numbers.get(text).copied()
    }

    /// The number of a string, or the next free one.
    fn number_or_next(&self, text: &str) -> u64 {
        self.number(text).unwrap_or(self.next)
    }

    fn keep(&mut self, text: &str, number: u64) {
        if self.texts.contains_key(&number) {
            return;
        }
        self.numbers.insert(text.to_owned(), number);
        self.texts.insert(number, text.to_owned());
        self.next = self.next.max(number + 1);
    }

    fn forget(&mut self, number: u64) -> Option<String> {
        let text = self.texts.remove(&number)?;
        self.numbers.remove(&text);
        Some(text)
    }
}

/// Where a request goes.
#[pyclass(frozen, module = "wait_core.fleet")]
pub(crate) struct Choice {
    /// The replica; None: the request is held at the door, to be routed again when a replica has reported or another
    /// request has ended.
    #[pyo3(get)]
    replica: Option<String>,
    /// Why it is held: "no-replica"; "all-full": no replica could start it soon; or "late": none could start it in time any
    /// more, and it yields to those that can be. None if it is not.
    #[pyo3(get)]
    hold: Option<&'static str>,
    /// Which router decided: "power-of-two" where the configured one knew too little.
    #[pyo3(get)]
    by: &'static str,
    /// When its first token is predicted, s from now; None if not predicted.
    #[pyo3(get)]
    predicted_ttft_s: Option<f64>,
    /// The probability that the replica's KV cache overflows with it; None if not predicted.
    #[pyo3(get)]
    overflow: Option<f64>,
    /// Prompt tokens that are assumed to be cached on the replica.
    #[pyo3(get)]
    cached_tokens: u32,
}

#[pymethods]
impl Choice {
    fn __repr__(&self) -> String {
        let (where_to, by) = match (&self.replica, self.hold) {
            (Some(replica), _) => (format!("replica={replica:?}"), self.by),
            (None, hold) => (format!("hold={:?}", hold.unwrap_or_default()), self.by),
        };
        format!("Choice({where_to}, by={by:?})")
    }
}

/// Chooses the replica for each request, from what the replicas report and what it has sent itself since.
///
/// `router` is one of `wait_core.fleet.ROUTERS`. Times are ns on one clock, the caller's, by which replicas report too;
/// replicas and requests are named by strings. Not thread-safe by design: one thread routes, and a second gets an
/// exception.
///
/// `seed`: seed of the random choices. `stale_after`: age from which a report is stale, s; such a replica is judged by
/// what was sent to it, and while no report is younger, a router that reads reports falls back to power of two.
/// `affinity_load`: by how much a replica that "prefix-affinity" chooses may exceed the mean number of requests, a
/// factor. `longest_queue`: "forecast" holds a request at the door while it would wait longer than this on every
/// replica, s.
/// `ttft_target`: longest time to first token that "forecast" keeps where it can, s; none by default. Requests are then
/// held at the door, where those that can be in time go first, and not in the queues of the replicas.
///
/// Raises `WaitCoreError` where a name is unknown or a value out of its range; the message names it.
#[pyclass(module = "wait_core.fleet")]
pub(crate) struct Router {
    inner: routing::Router,
    replicas: Names,
    requests: Names,
}

#[pymethods]
impl Router {
    #[new]
    #[pyo3(signature = (router = "forecast", *, seed = 0, stale_after = None, affinity_load = None, longest_queue = None,
        ttft_target = None))]
    fn new(
        router: &str,
        #[pyo3(from_py_with = convert::ranged)] seed: u64,
        stale_after: Option<f64>,
        affinity_load: Option<f64>,
        longest_queue: Option<f64>,
        ttft_target: Option<f64>,
    ) -> PyResult<Self> {
        let settings = GivenRouting { stale_after, affinity_load, longest_queue, ttft_target }.of(router, seed)?;
        let inner = routing::Router::new(settings).map_err(error::core)?;
        Ok(Self { inner, replicas: Names::default(), requests: Names::default() })
    }

    /// Adds a replica, or updates one that is present, as when its iteration-time law was learned.
    ///
    /// `kv_blocks`, `block_size`, `max_num_seqs`, `token_budget`: as the settings of its scheduler. `iteration_time`:
    /// its law, given or learned; without it "forecast" assumes a nominal one. `ttft_target`: the target by which it
    /// orders its own queue, if it does; no request is then held at the door for its sake. `receives`: prompts come with
    /// their KV, as to a decode replica. `model`: the same for all replicas of a router.
    ///
    /// Raises `WaitCoreError` for a size of 0 or a model other than that of the others; nothing has changed then.
    #[pyo3(signature = (replica, *, kv_blocks, block_size = 16, max_num_seqs = 256, token_budget = 2048,
        iteration_time = None, ttft_target = None, receives = false, model = ""))]
    #[allow(clippy::too_many_arguments)] // one keyword per property, as Python callers expect
    fn add_replica(
        &mut self,
        replica: &str,
        #[pyo3(from_py_with = convert::ranged)] kv_blocks: u32,
        #[pyo3(from_py_with = convert::ranged)] block_size: u32,
        #[pyo3(from_py_with = convert::ranged)] max_num_seqs: u32,
        #[pyo3(from_py_with = convert::ranged)] token_budget: u32,
        iteration_time: Option<&Bound<'_, PyAny>>,
        ttft_target: Option<f64>,
        receives: bool,
        model: &str,
    ) -> PyResult<()> {
        let iteration_time = iteration_time.map(|law| convert::json(law, "iteration_time")).transpose()?;
        let what = Replica {
            model: model.to_owned(),
            kv_blocks,
            block_size,
            max_num_seqs,
            token_budget,
            iteration_time,
            ttft_target,
            receives,
        };
        let number = self.replicas.number_or_next(replica);
        self.inner.add_replica(number, what).map_err(error::core)?;
        self.replicas.keep(replica, number);
        Ok(())
    }

    /// A replica accepts no more requests, and finishes those it has; False if there is no such replica.
    fn drain_replica(&mut self, replica: &str) -> bool {
        self.replicas.number(replica).is_some_and(|number| self.inner.drain_replica(number))
    }

    /// A replica is gone. Returns the requests that were sent to it and have not ended, for the caller to route again.
    fn remove_replica(&mut self, replica: &str) -> Vec<String> {
        let Some(number) = self.replicas.number(replica) else { return Vec::new() };
        self.replicas.forget(number);
        let lost = self.inner.remove_replica(number);
        lost.into_iter().filter_map(|request| self.requests.forget(request)).collect()
    }

    /// The replicas present, draining ones included, in the order in which they were added.
    #[getter]
    fn replicas(&self) -> Vec<String> {
        self.inner.replicas().filter_map(|number| self.replicas.texts.get(&number).cloned()).collect()
    }

    /// The load of a replica at `at_ns`: a dictionary as `Scheduler.load()` returns it, of which any key may be absent.
    /// False, and nothing changes, if the replica is gone or a later report is known. Raises `WaitCoreError` for an
    /// invalid load.
    fn report(
        &mut self,
        replica: &str,
        #[pyo3(from_py_with = convert::ranged)] at_ns: u64,
        load: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let load: Load = convert::json(load, "load")?;
        match self.replicas.number(replica) {
            Some(number) => self.inner.report(number, at_ns, &load).map_err(error::core),
            None => Ok(false),
        }
    }

    /// Chooses a replica for a request, and counts it as sent there; a request that is already present moves.
    ///
    /// `block_hashes`: one integer for each full block of the prompt that identifies all tokens up to there, if known;
    /// `max_tokens`: most output tokens; `arrived_ns`: when it arrived, from where a target counts, by default when the
    /// router was first asked. Raises `WaitCoreError` for an empty prompt.
    #[pyo3(signature = (request, now_ns, *, prompt_tokens, max_tokens = None, block_hashes = Vec::new(), arrived_ns = None))]
    #[allow(clippy::needless_pass_by_value)] // extracted from a Python list
    fn route(
        &mut self,
        request: &str,
        #[pyo3(from_py_with = convert::ranged)] now_ns: u64,
        #[pyo3(from_py_with = convert::ranged)] prompt_tokens: u32,
        #[pyo3(from_py_with = convert::ranged)] max_tokens: Option<u32>,
        #[pyo3(from_py_with = convert::ranged)] block_hashes: Vec<u64>,
        #[pyo3(from_py_with = convert::ranged)] arrived_ns: Option<u64>,
    ) -> PyResult<Choice> {
        let id = self.requests.number_or_next(request);
        let incoming = Incoming { id, prompt: prompt_tokens, max_tokens, block_hashes: &block_hashes, arrived_ns };
        let choice = self.inner.route(now_ns, &incoming).map_err(error::core)?;
        if self.inner.knows(id) {
            self.requests.keep(request, id);
        } else {
            self.requests.forget(id);
        }
        Ok(Choice {
            replica: choice.replica.and_then(|number| self.replicas.texts.get(&number).cloned()),
            hold: choice.hold.map(routing::DoorHold::name),
            by: choice.by.name(),
            predicted_ttft_s: choice.ttft,
            overflow: choice.overflow,
            cached_tokens: choice.cached,
        })
    }

    /// A request has ended, in whatever way, also one held at the door whose client has left; False if it is not known.
    /// Without a target, requests at the door are not known.
    fn finished(&mut self, request: &str, #[pyo3(from_py_with = convert::ranged)] now_ns: u64) -> bool {
        let Some(number) = self.requests.number(request) else { return false };
        self.requests.forget(number);
        self.inner.finished(now_ns, number)
    }

    /// Reports of replicas that were gone, or older than one already known.
    #[getter]
    fn unknown_reports(&self) -> u64 {
        self.inner.unknown_reports()
    }
}
