//! `Plan` and `Hold`: what one iteration should do, and why a request waits.

use pyo3::prelude::*;
use wait_core::Origin;

/// Why a request waits: the reason, what it needs and the number that limits it.
#[pyclass(frozen, get_all, eq, skip_from_py_object, module = "wait_core")]
#[derive(Clone, PartialEq)]
pub(crate) struct Hold {
    /// One of no_blocks, too_large (more blocks than the cache has now: other requests overtake it), below_threshold,
    /// forecast_overflow, tpot_target, ttft_target, tenant_share, batch_cap, head_of_line (others go before it),
    /// paused_at_boundary, host_refused (admitted by the last plan, and refused by the host), engine_paused.
    reason: &'static str,
    /// What the request needs, in the reason's unit (blocks, requests, seconds).
    needs: f64,
    /// What is available, in the same unit; at least 0.
    limit: f64,
}

impl From<wait_core::Hold> for Hold {
    fn from(hold: wait_core::Hold) -> Self {
        Self { reason: hold.reason.name(), needs: hold.needs, limit: hold.limit }
    }
}

#[pymethods]
impl Hold {
    fn __repr__(&self) -> String {
        format!("Hold(reason={:?}, needs={}, limit={})", self.reason, self.needs, self.limit)
    }
}

/// One planned iteration. Ids are those given to `Scheduler.add`.
#[pyclass(frozen, get_all, module = "wait_core")]
#[derive(Default)]
pub(crate) struct Plan {
    /// Number of the plan, from 1; see `Scheduler.complete(iteration=...)`.
    iteration: u64,
    /// Requests to admit, in order.
    admitted: Vec<u64>,
    /// Preempted requests to admit again, in order; they come before the admitted.
    resumed: Vec<u64>,
    /// Requests to preempt first, last admitted first.
    preempted: Vec<u64>,
    /// Prompt tokens to compute: (id, tokens), residents before admissions, and late requests last.
    prefill: Vec<(u64, u32)>,
    /// Prompt tokens of the admitted and the resumed that are in the cache already: (id, tokens), where there are any.
    cached: Vec<(u64, u32)>,
    /// Resident requests that must not run in this iteration; they keep their KV.
    paused: Vec<u64>,
    /// Waiting requests that are refused and have left: (id, reason, expected time to first token in ns).
    refused: Vec<(u64, &'static str, u64)>,
    /// Requests that decode one token each: all residents not listed elsewhere.
    num_decodes: u32,
    /// Most tokens to compute in this iteration.
    token_budget: u32,
    /// Requests outside the KV cache after this plan.
    held: u32,
    /// When to plan again even if no event occurs, ns; None if only events matter.
    wake_ns: Option<u64>,
}

#[pymethods]
impl Plan {
    /// True if there is nothing to compute.
    #[getter]
    fn is_empty(&self) -> bool {
        self.num_decodes == 0 && self.prefill.is_empty()
    }

    /// True if the residents decode a token each, and that is all: nothing is admitted, computed of a prompt, paused,
    /// preempted or refused.
    #[getter]
    fn only_decodes(&self) -> bool {
        let lists = [&self.admitted, &self.resumed, &self.preempted, &self.paused];
        lists.iter().all(|list| list.is_empty()) && self.prefill.is_empty() && self.refused.is_empty()
    }

    fn __repr__(&self) -> String {
        format!(
            "Plan(num_decodes={}, prefill={:?}, admitted={:?}, resumed={:?}, preempted={:?}, paused={:?}, held={})",
            self.num_decodes, self.prefill, self.admitted, self.resumed, self.preempted, self.paused, self.held
        )
    }
}

impl Plan {
    /// A copy of the plan the scheduler just made. Empty lists allocate nothing.
    pub(crate) fn of(scheduler: &wait_core::Scheduler) -> Self {
        let plan = scheduler.last_plan();
        let mut copy = Self {
            iteration: scheduler.stats().iterations,
            num_decodes: plan.decodes(),
            token_budget: plan.token_budget(),
            held: scheduler.view().waiting_total(),
            wake_ns: plan.wake_ns(),
            preempted: plan.preempted().iter().map(|&(_, id)| id).collect(),
            paused: scheduler.paused_ids(),
            refused: plan.refused().iter().map(|r| (r.id, r.reason.name(), r.predicted_wait_ns)).collect(),
            ..Self::default()
        };
        for chunk in plan.chunks() {
            if chunk.tokens > 0 {
                copy.prefill.push((chunk.id, chunk.tokens));
            }
            if chunk.origin != Origin::Resident && chunk.start > 0 {
                copy.cached.push((chunk.id, chunk.start));
            }
            match chunk.origin {
                Origin::Admitted => copy.admitted.push(chunk.id),
                Origin::Resumed => copy.resumed.push(chunk.id),
                Origin::Resident => {}
            }
        }
        copy
    }
}
