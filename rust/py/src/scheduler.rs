//! `Scheduler`: the core, embedded in a serving loop.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use wait_core::policy::{LearnedLaw, Policy};
use wait_core::{Config, Hit, HoldReason, LengthHint, Report, Request, StepTime};

use crate::convert::{self, HitOf};
use crate::error::{self, WaitCoreError};
use crate::plan::{Hold, Plan};

/// The scheduling core of one engine: add, plan, complete, abort.
///
/// Settings are keyword arguments, listed below; `wait-core settings` and docs/settings.md have them as a table. All ids are
/// integers chosen by the caller. Not thread-safe by design: one engine loop owns it, and a second thread gets an exception.
///
/// Raises `WaitCoreError` where a setting is unknown or out of its range; the message names it.
#[doc = include_str!("settings.txt")]
#[pyclass(module = "wait_core")]
pub(crate) struct Scheduler {
    inner: wait_core::Scheduler,
    config: Config,
}

#[pymethods]
impl Scheduler {
    #[new]
    #[pyo3(signature = (policy = "adaptive".to_owned(), **settings), text_signature = "(policy='adaptive', **settings)")]
    #[allow(clippy::needless_pass_by_value)] // extracted from a Python text
    fn new(
        #[pyo3(from_py_with = convert::ranged)] policy: String,
        settings: Option<&Bound<'_, PyDict>>,
        py: Python<'_>,
    ) -> PyResult<Self> {
        let all = match settings {
            Some(settings) => settings.copy()?,
            None => PyDict::new(py),
        };
        all.set_item("policy", &policy)?;
        let config = convert::config(Some(&all))?;
        let inner = wait_core::Scheduler::new(&config).map_err(error::core)?;
        Ok(Self { inner, config })
    }

    /// Every setting in force, defaults included, under the names that the constructor takes; `kv_blocks` as
    /// `set_capacity` left it.
    #[getter]
    fn settings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let config = Config { kv_blocks: self.inner.view().pool().capacity(), ..self.config.clone() };
        pythonize::pythonize(py, &config).map_err(|error| WaitCoreError::new_err(error.to_string()))
    }

    /// Puts a request in the queue. Lengths in tokens, `now_ns` is its arrival on the caller's clock, ns.
    ///
    /// `max_tokens`: most output tokens (None: what the model allows); `output_tokens`: their exact number, if known;
    /// `predicted_tokens`: a prediction, with the standard deviation `predicted_log_error` of ln(true / predicted);
    /// `type_id`: index into `types`, or a class label; `priority`: lower goes first; `tenant`: index into
    /// `tenant_weights`.
    ///
    /// `computed_tokens` of the prompt need not be computed: their KV is cached, or comes from elsewhere. Residents
    /// hold the blocks of `shared_prefix` of these tokens: they are not charged again, while `free_blocks` is reported.
    /// With `prefix_caching` the scheduler looks both up by `block_hashes`, one integer for each full block of the
    /// prompt (and of the output as far as it is known in advance) that identifies all tokens up to there. A request
    /// with `receives` set holds its memory once admitted and computes nothing until `complete(received=...)` names it.
    /// `encoder_blocks`: KV blocks that it holds beside those of its tokens from its admission to its end, in a model with
    /// cross-attention.
    ///
    /// Raises `CapacityError` if it could not run even alone, `DuplicateIdError` if the id is in use, `QueueFullError`
    /// at the bounds `max_queued_requests` and `max_queued_tokens`, `DeadlineError` if its predicted wait for admission
    /// is longer than `max_wait_ns`, or, with `late = "refuse"`, its predicted time to first token longer than
    /// `ttft_target`, and `WaitCoreError` for any other value that is refused. Nothing has changed then.
    #[pyo3(signature = (request_id, prompt_tokens, max_tokens = None, *, output_tokens = None, predicted_tokens = None,
        predicted_log_error = 0.0, type_id = None, priority = 0, tenant = 0, computed_tokens = 0, shared_prefix = 0,
        block_hashes = Vec::new(), receives = false, encoder_blocks = 0, max_wait_ns = None, now_ns = 0))]
    #[allow(clippy::too_many_arguments)] // one keyword per property, as Python callers expect
    fn add(
        &mut self,
        #[pyo3(from_py_with = convert::ranged)] request_id: u64,
        #[pyo3(from_py_with = convert::ranged)] prompt_tokens: u32,
        #[pyo3(from_py_with = convert::ranged)] max_tokens: Option<u32>,
        #[pyo3(from_py_with = convert::ranged)] output_tokens: Option<u32>,
        #[pyo3(from_py_with = convert::ranged)] predicted_tokens: Option<u32>,
        predicted_log_error: f32,
        #[pyo3(from_py_with = convert::ranged)] type_id: Option<u16>,
        #[pyo3(from_py_with = convert::ranged)] priority: i64,
        #[pyo3(from_py_with = convert::ranged)] tenant: u16,
        #[pyo3(from_py_with = convert::ranged)] computed_tokens: u32,
        #[pyo3(from_py_with = convert::ranged)] shared_prefix: u32,
        #[pyo3(from_py_with = convert::ranged)] block_hashes: Vec<u64>,
        receives: bool,
        #[pyo3(from_py_with = convert::ranged)] encoder_blocks: u32,
        #[pyo3(from_py_with = convert::ranged)] max_wait_ns: Option<u64>,
        #[pyo3(from_py_with = convert::ranged)] now_ns: u64,
    ) -> PyResult<()> {
        let output = match (output_tokens, predicted_tokens) {
            (Some(_), Some(_)) => {
                return Err(WaitCoreError::new_err("predicted_tokens: output_tokens is given, which is exact"));
            }
            (Some(tokens), None) => LengthHint::Exact(tokens),
            (None, Some(tokens)) => LengthHint::Predicted { tokens, log_error: predicted_log_error },
            (None, None) => LengthHint::Unknown,
        };
        let request = Request {
            id: request_id,
            prompt: prompt_tokens,
            max_tokens,
            output,
            type_id,
            priority,
            tenant,
            hit: Hit { computed: computed_tokens.max(shared_prefix), shared: shared_prefix, evicted: 0 },
            block_hashes,
            receives,
            encoder_blocks,
            arrival_ns: now_ns,
            max_wait_ns,
        };
        self.inner.add(&request).map_err(error::core)
    }

    /// Plans the next iteration and assumes that it happens; `now_ns` is the time on the caller's clock, ns.
    ///
    /// `free_blocks`, `step_ns` and `iteration` are reported first, as by `complete`: a host whose iterations go as planned,
    /// as nearly all do, needs one call for each. Raises `WaitCoreError` as that does, and plans nothing then.
    #[pyo3(signature = (now_ns = 0, *, free_blocks = None, step_ns = None, iteration = None))]
    fn plan(
        &mut self,
        #[pyo3(from_py_with = convert::ranged)] now_ns: u64,
        #[pyo3(from_py_with = convert::ranged)] free_blocks: Option<u32>,
        #[pyo3(from_py_with = convert::ranged)] step_ns: Option<u64>,
        #[pyo3(from_py_with = convert::ranged)] iteration: Option<u64>,
    ) -> PyResult<Plan> {
        if free_blocks.is_some() || step_ns.is_some() {
            let step = step_ns.map(|ns| StepTime { ns, iteration });
            self.inner.complete(&Report { free_blocks, step, ..Report::default() }).map_err(error::core)?;
        }
        self.inner.plan(now_ns);
        Ok(Plan::of(&self.inner))
    }

    /// Reports what turned out differently from the plan, and what has finished. Ids that are unknown are counted and
    /// ignored.
    ///
    /// `finished`, `preempted`, `refused`: ids of requests that ended, that the host preempted by itself, and whose
    /// admission it did not carry out; `progress`: (id, KV tokens it holds) where the plan assumed otherwise;
    /// `receiving`: (id, KV tokens that come) of requests that the host has admitted and whose KV it fetches;
    /// `received`: those whose KV has arrived from elsewhere; `hits`: (id, computed tokens, shared tokens) of waiting
    /// requests: how much of the prompt is cached, and how much of that residents hold; optionally, as a
    /// fourth number, the tokens behind those that were cached before and have been evicted: "adaptive" learns from it;
    /// `free_blocks`: the host's count of free KV blocks, which takes precedence. Raises `WaitCoreError` for an
    /// impossible report, and changes nothing then.
    ///
    /// `step_ns` is how long an iteration took on the host's clock, ns: from when it could begin (its inputs were
    /// ready, the previous iteration had ended) to when its outputs were ready. "adaptive" learns the iteration-time
    /// law from it (`iteration_time`); None, 0 and other policies: nothing. It belongs to the oldest plan with
    /// something to compute whose time was not reported, so the next plan may be made before; a host that does not
    /// report every iteration gives its number, `iteration=plan.iteration`. An iteration that differed from its plan
    /// (`preempted`, `refused`, `progress`) is not learned from.
    #[pyo3(signature = (*, finished = Vec::new(), preempted = Vec::new(), refused = Vec::new(), progress = Vec::new(),
        receiving = Vec::new(), received = Vec::new(), hits = Vec::new(), free_blocks = None, step_ns = None, iteration = None))]
    #[allow(clippy::needless_pass_by_value, clippy::too_many_arguments)] // keywords, extracted from Python lists
    fn complete(
        &mut self,
        #[pyo3(from_py_with = convert::ranged)] finished: Vec<u64>,
        #[pyo3(from_py_with = convert::ranged)] preempted: Vec<u64>,
        #[pyo3(from_py_with = convert::ranged)] refused: Vec<u64>,
        #[pyo3(from_py_with = convert::ranged)] progress: Vec<(u64, u32)>,
        #[pyo3(from_py_with = convert::ranged)] receiving: Vec<(u64, u32)>,
        #[pyo3(from_py_with = convert::ranged)] received: Vec<u64>,
        #[pyo3(from_py_with = convert::ranged)] hits: Vec<HitOf>,
        #[pyo3(from_py_with = convert::ranged)] free_blocks: Option<u32>,
        #[pyo3(from_py_with = convert::ranged)] step_ns: Option<u64>,
        #[pyo3(from_py_with = convert::ranged)] iteration: Option<u64>,
    ) -> PyResult<()> {
        let hits: Vec<_> = hits.into_iter().map(|HitOf(id, hit)| (id, hit)).collect();
        let report = Report {
            finished: &finished,
            preempted: &preempted,
            refused: &refused,
            progress: &progress,
            receiving: &receiving,
            received: &received,
            hits: &hits,
            free_blocks,
            step: step_ns.map(|ns| StepTime { ns, iteration }),
        };
        self.inner.complete(&report).map_err(error::core)
    }

    /// The first `count` of each queue, the preempted before the others: (request, prompt tokens known to
    /// be computed, those of them whose blocks residents hold).
    fn first_in_queue(&self, #[pyo3(from_py_with = convert::ranged)] count: usize) -> Vec<(u64, u32, u32)> {
        self.inner.first_in_queue(count).map(|(id, hit)| (id, hit.computed, hit.shared)).collect()
    }

    /// Aborts a request, in whatever state it is; False if no request has this id.
    fn abort(&mut self, #[pyo3(from_py_with = convert::ranged)] request_id: u64) -> bool {
        self.inner.abort(request_id)
    }

    /// Changes the number of usable KV blocks, and with it what follows from it: the blocks of `watermark`, and the
    /// longest request where no `max_model_len` was set. Requests present keep their `max_tokens`. Raises
    /// `WaitCoreError` if it is out of the range of `kv_blocks`.
    fn set_capacity(&mut self, #[pyo3(from_py_with = convert::ranged)] kv_blocks: u32) -> PyResult<()> {
        self.inner.set_capacity(kv_blocks).map_err(error::core)
    }

    /// Empties the prefix cache that the scheduler keeps (`prefix_caching`), as after a change of the model's
    /// weights. False, and nothing changes, while a request is resident.
    fn reset_prefix_cache(&mut self) -> bool {
        self.inner.reset_prefix_cache()
    }

    /// No more arrivals will come: thresholds no longer wait for more requests.
    fn drain(&mut self) {
        self.inner.drain();
    }

    /// A paused engine plans empty iterations and keeps everything.
    fn set_paused(&mut self, paused: bool) {
        self.inner.set_paused(paused);
    }

    /// What the policy has learned from the traffic, as JSON-compatible data; None where it learns nothing.
    fn learned<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let state = self.inner.learned().map(|state| pythonize::pythonize(py, &state));
        state.transpose().map_err(|error| WaitCoreError::new_err(error.to_string()))
    }

    /// Restores what another scheduler of this policy had learned, while no request is present.
    ///
    /// Raises `WaitCoreError` if a request is present, the policy is another, or the state is damaged.
    fn restore(&mut self, learned: &Bound<'_, PyAny>) -> PyResult<()> {
        let state: serde_json::Value = convert::json(learned, "learned")?;
        self.inner.restore(&state).map_err(error::core)
    }

    /// The KV tokens that the residents are expected to hold if no request is admitted after them: (iterations ahead, mean,
    /// standard deviation, probability of an overflow up to then); empty where the policy forecasts nothing.
    fn kv_forecast(&mut self) -> Vec<(u32, f64, f64, f64)> {
        self.inner.kv_forecast().iter().map(|at| (at.horizon, at.mean, at.deviation, at.overflow)).collect()
    }

    /// The iteration-time law learned from `complete(step_ns=...)`; None for policies that learn none.
    ///
    /// `law`: in the form of the setting of this name, None before 64 iterations; `error`: mean relative error of the
    /// last 512 iterations, each predicted before it was learned from, None before the first; `observations`:
    /// iterations learned from; `used`: whether it is used, which it is once 256 iterations were predicted with an
    /// error of at most 0.2 and no law was given as a setting.
    #[getter]
    fn iteration_time<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        self.inner.learned_law().map(|learned| learned_law(py, &learned)).transpose()
    }

    /// How busy the engine is, for a router that compares it with others (`wait_core.fleet.Router.report`): a
    /// dictionary of a dozen numbers, whatever the number of requests. Does not affect any decision.
    ///
    /// `waiting` and `residents`: requests outside and in the KV cache; `waiting_tokens`, `prefill_tokens`: prompt
    /// tokens that these have still to compute; `kv_tokens`: KV tokens that residents hold; `free_blocks`;
    /// `admission_gap_ns`: mean time between two admissions while a request waited, 0 if none has. Where the policy
    /// learns them also `kv_peak` and `kv_deviation`: the most KV tokens that the residents are expected to hold, and
    /// its standard deviation; `mean_output`, tokens.
    fn load<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        pythonize::pythonize(py, &self.inner.load()).map_err(|error| WaitCoreError::new_err(error.to_string()))
    }

    /// How long a request that joined the queue now would wait for its admission, ns; 0 while no request waits.
    #[getter]
    fn predicted_wait_ns(&self) -> u64 {
        self.inner.predicted_wait_ns()
    }

    /// What one more request ahead adds to `predicted_wait_ns`: the mean gap between the last admissions out of a queue, ns;
    /// 0 as long as no request has waited.
    #[getter]
    fn admission_gap_ns(&self) -> u64 {
        self.inner.admission_gap_ns()
    }

    /// Why a request waits, by the last plan; None if it does not wait.
    fn explain(&self, #[pyo3(from_py_with = convert::ranged)] request_id: u64) -> Option<Hold> {
        self.inner.explain(request_id).map(Hold::from)
    }

    /// Output tokens of a resident or preempted request, as far as the core knows; None for unknown ids.
    fn stage(&self, #[pyo3(from_py_with = convert::ranged)] request_id: u64) -> Option<u32> {
        let view = self.inner.view();
        view.slot(request_id).map(|slot| view.stage(slot))
    }

    /// Requests present, waiting or resident.
    fn __len__(&self) -> usize {
        self.inner.view().len()
    }

    /// True if the request is present.
    fn __contains__(&self, #[pyo3(from_py_with = convert::ranged)] request_id: u64) -> bool {
        self.inner.view().slot(request_id).is_some()
    }

    /// Requests outside the KV cache.
    #[getter]
    fn num_waiting(&self) -> u32 {
        self.inner.view().waiting_total()
    }

    /// Tokens of prompts, and of outputs lost to preemption, that the requests outside the KV cache bring, cached or not.
    #[getter]
    fn waiting_tokens(&self) -> u64 {
        self.inner.view().waiting_tokens()
    }

    /// Requests in the KV cache.
    #[getter]
    fn num_resident(&self) -> u32 {
        self.inner.view().residents()
    }

    /// KV blocks in use; the host's last correction included.
    #[getter]
    fn used_blocks(&self) -> i64 {
        self.inner.view().pool().used()
    }

    /// The thresholds in force, requests per service: one a type (wait) or segment (nested-wait), else none. One that is
    /// not an integer accrues as credit.
    #[getter]
    fn thresholds(&self) -> Vec<f64> {
        self.inner.policy().thresholds()
    }

    /// Counters since the start: iterations, admitted, finished, aborted, refused, preemptions, recomputed_tokens,
    /// unknown_ids, and holds, a dictionary by reason.
    #[getter]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (stats, dict) = (self.inner.stats(), PyDict::new(py));
        dict.set_item("iterations", stats.iterations)?;
        dict.set_item("admitted", stats.admitted)?;
        dict.set_item("finished", stats.finished)?;
        dict.set_item("aborted", stats.aborted)?;
        dict.set_item("refused", stats.refused)?;
        dict.set_item("preemptions", stats.preemptions)?;
        dict.set_item("recomputed_tokens", stats.recomputed_tokens)?;
        dict.set_item("unknown_ids", stats.unknown_ids)?;
        dict.set_item("corrected_plans", stats.corrected_plans)?;
        let holds = PyDict::new(py);
        for reason in HoldReason::ALL {
            holds.set_item(reason.name(), stats.holds[reason as usize])?;
        }
        dict.set_item("holds", holds)?;
        Ok(dict)
    }
}

/// A learned law as a dictionary.
pub(crate) fn learned_law<'py>(py: Python<'py>, learned: &LearnedLaw) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let law = learned.law.as_ref().map(|law| pythonize::pythonize(py, law)).transpose();
    dict.set_item("law", law.map_err(|error| WaitCoreError::new_err(error.to_string()))?)?;
    dict.set_item("error", learned.error)?;
    dict.set_item("observations", learned.observations)?;
    dict.set_item("used", learned.used)?;
    Ok(dict)
}
