//! The scheduler: asks the policy for a plan, applies it, and takes corrections from the host.
//!
//! `plan` assumes that the host does exactly what was planned, and advances every request at once, so the next
//! iteration can be planned before this one has completed. `complete` only reports what turned out differently (and
//! which requests finished); a decode that yields its one token is never reported.

use serde::{Deserialize, Serialize};

use crate::config::{Config, Late, PolicyName, Preemption};
use crate::error::{Error, Result};
use crate::learn::KvForecast;
use crate::model::RequestId;
use crate::plan::{Hold, HoldReason, Plan};
use crate::policy::{AnyPolicy, Event, LearnedLaw, Policy};
use crate::state::View;

mod add;
mod apply;
mod explain;
mod feedback;
mod load;
#[cfg(test)]
mod tests;
mod wait_estimate;

pub use self::feedback::{Report, StepTime};
use self::wait_estimate::WaitingTime;

/// Most counters of all lanes, each of which has one for each token of a block: 64 MiB.
const MAX_LANE_COUNTERS: u64 = 1 << 24;

/// Counters since the start.
///
/// ```
/// use wait_core::{Config, Request, Scheduler};
///
/// let mut scheduler = Scheduler::new(&Config { kv_blocks: 1000, ..Config::default() })?;
/// scheduler.add(&Request { id: 1, prompt: 100, ..Request::default() })?;
/// scheduler.plan(0);
/// assert!(scheduler.abort(1));
/// let stats = scheduler.stats();
/// assert_eq!((stats.iterations, stats.admitted, stats.aborted, stats.preemptions), (1, 1, 1, 0));
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Plans made.
    pub iterations: u64,
    /// Requests admitted, resumptions not counted.
    pub admitted: u64,
    /// Requests that finished.
    pub finished: u64,
    /// Requests aborted by the host.
    pub aborted: u64,
    /// Waiting requests that a plan refused.
    pub refused: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// KV tokens lost to preemptions, to be computed again.
    pub recomputed_tokens: u64,
    /// Ids in reports and aborts that no request had.
    pub unknown_ids: u64,
    /// Plans that broke a rule, and were replaced by one that serves first come, first served. 0 unless a policy has a
    /// bug.
    pub corrected_plans: u64,
    /// Plans that held a waiting request, by reason ([`HoldReason::ALL`]); and admissions that the host refused.
    pub holds: [u64; HoldReason::ALL.len()],
}

/// The scheduling core of one engine.
///
/// A serving loop plans, computes, and reports what differs from the plan:
///
/// ```
/// use wait_core::{Config, Report, Request, Scheduler};
///
/// let mut scheduler = Scheduler::new(&Config { kv_blocks: 1000, ..Config::default() })?;
/// scheduler.add(&Request { id: 7, prompt: 100, max_tokens: Some(20), ..Request::default() })?;
///
/// // The whole prompt in the first iteration, which emits the first token.
/// let plan = scheduler.plan(0);
/// assert_eq!((plan.tokens(), plan.chunks()[0].id, plan.chunks()[0].last), (100, 7, true));
/// // A decode is one token. The plan above was assumed to happen, so nothing is reported in between.
/// assert_eq!(scheduler.plan(10_000_000).decodes(), 1);
///
/// scheduler.complete(&Report { finished: &[7], ..Report::default() })?;
/// assert!(scheduler.view().is_empty());
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Scheduler {
    pub(crate) view: View,
    pub(crate) policy: AnyPolicy,
    pub(crate) plan: Plan,
    pub(crate) stats: Stats,
    pub(crate) preemption: Preemption,
    max_queued_requests: Option<u32>,
    max_queued_tokens: Option<u64>,
    /// How many tenants the policy distinguishes; none where it does not.
    tenants: Option<usize>,
    /// Whether it refuses late requests.
    refuses_late: bool,
    paused: bool,
    waiting_time: WaitingTime,
}

impl Scheduler {
    /// A scheduler with these settings and no requests.
    ///
    /// # Errors
    /// [`Error`] names the setting that is refused.
    pub fn new(config: &Config) -> Result<Self> {
        config.validate()?;
        let policy = AnyPolicy::new(config)?;
        let counters = policy.lanes() as u64 * u64::from(config.block_size);
        if counters > MAX_LANE_COUNTERS {
            let rule = format!("times {} types or segments must be at most {MAX_LANE_COUNTERS}", policy.lanes());
            return Err(Error::invalid("block_size", config.block_size, rule));
        }
        let view = View::new(config, policy.lanes(), policy.queues(), policy.reserves_prompts())
            .resuming_by_rank(policy.resumes_by_rank());
        let adaptive = config.policy == PolicyName::Adaptive;
        Ok(Self {
            plan: Plan::new(&view),
            view,
            policy,
            stats: Stats::default(),
            preemption: config.preemption,
            max_queued_requests: config.max_queued_requests,
            max_queued_tokens: config.max_queued_tokens,
            tenants: Some(config.tenant_weights.len()).filter(|&tenants| adaptive && tenants > 0),
            refuses_late: adaptive && config.late == Late::Refuse,
            paused: false,
            waiting_time: WaitingTime::default(),
        })
    }

    /// The state, read only.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The policy in use.
    pub fn policy(&self) -> &AnyPolicy {
        &self.policy
    }

    /// The last plan.
    pub fn last_plan(&self) -> &Plan {
        &self.plan
    }

    /// The KV tokens that the residents of the last plan are expected to hold, by horizon, without any other request
    /// admitted; none where the policy forecasts nothing. Does not affect any decision.
    pub fn kv_forecast(&mut self) -> Vec<KvForecast> {
        self.policy.kv_forecast(&self.view)
    }

    /// Counters since the start.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// How long a request that arrived now would wait for its admission if no request came after it, ns: the requests
    /// ahead times the mean gap between the last admissions from a queue. 0 while no request waits. All waiting
    /// requests are ahead; with a `ttft_target`, only those in time, unless its turn would then come after the target
    /// and most of the last requests were late.
    pub fn predicted_wait_ns(&self) -> u64 {
        self.policy.predicted_wait_ns(&self.view, &|ahead| self.waiting_time.predict_ns(ahead))
    }

    /// Mean gap between the last admissions out of a queue, ns: what one more request ahead adds to the predicted wait. 0 as
    /// long as no request has waited.
    pub fn admission_gap_ns(&self) -> u64 {
        self.waiting_time.gap_ns()
    }

    /// What the policy has learned from the traffic, to be restored in another scheduler; none where it learns nothing.
    pub fn learned(&self) -> Option<serde_json::Value> {
        self.policy.learned()
    }

    /// Restores what a scheduler of the same policy had learned. Nothing changes on error.
    ///
    /// # Errors
    /// [`Error::Invalid`] while requests are present, or for a state that cannot be used.
    pub fn restore(&mut self, state: &serde_json::Value) -> Result<()> {
        if !self.view.is_empty() {
            return Err(Error::invalid("learned", "…", "can be restored only while no request is present"));
        }
        self.policy.restore(&self.view, state).map_err(|rule| Error::invalid("learned", "…", rule))
    }

    /// The iteration-time law learned from the reports; none where the policy learns none.
    pub fn learned_law(&self) -> Option<LearnedLaw> {
        self.policy.learned_law()
    }

    /// Proposes the next iteration and assumes that it happens. This alone advances the clock: a request whose arrival
    /// is later than `now_ns` has waited for 0 ns until a plan reaches that time.
    pub fn plan(&mut self, now_ns: u64) -> &Plan {
        self.view.advance_clock(now_ns);
        self.view.count_plan();
        self.view.look_up_hits();
        self.plan.begin(&self.view);
        self.view.lend_prefixes(&mut self.plan.prefixes);
        if self.paused {
            self.hold_all();
        } else {
            self.policy.plan(&self.view, &mut self.plan);
            self.guard();
        }
        self.carry_out();
        &self.plan
    }

    /// Memory, the lists and the limits are the scheduler's to guard, whatever the policy proposed.
    #[inline]
    fn guard(&mut self) {
        if let Some(rule) = self.plan.guard(&self.view) {
            debug_assert!(false, "the policy's plan breaks a rule: {rule}");
            self.stats.corrected_plans += 1;
        }
    }

    fn hold_all(&mut self) {
        let waiting = self.view.waiting_total();
        for queue in 0..=self.view.queues() {
            self.plan.hold_queue(queue, Hold::new(HoldReason::EnginePaused, waiting, 0));
        }
    }

    /// Aborts a request, in whatever state it is. False if no request has this id.
    pub fn abort(&mut self, id: RequestId) -> bool {
        let known = self.leave(id, Event::Aborted);
        self.stats.aborted += u64::from(known);
        known
    }

    #[inline(always)]
    pub(crate) fn leave(&mut self, id: RequestId, event: Event) -> bool {
        let place = self.view.locate(id);
        let Some(slot) = place.number else {
            self.stats.unknown_ids += 1;
            return false;
        };
        self.policy.observe(&self.view, slot, event);
        self.view.remove(slot, place);
        true
    }

    /// Changes the number of usable KV blocks; if it falls below what is in use, the next plan preempts. Requests that
    /// are too large for the new number wait until it grows again. The watermark and, where none was set, the longest
    /// request follow.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number that `Config` would refuse.
    pub fn set_capacity(&mut self, kv_blocks: u32) -> Result<()> {
        Config { kv_blocks, block_size: self.view.pool().block_size(), ..Config::default() }.validate_memory()?;
        if self.view.layout().largest(kv_blocks, 1) == 0 {
            let rule = "must hold the blocks that one token needs in all groups";
            return Err(Error::invalid("kv_blocks", kv_blocks, rule));
        }
        self.view.set_capacity(kv_blocks);
        Ok(())
    }

    /// Empties the prefix cache that the scheduler keeps, as after a change of the model's weights. False, and
    /// nothing changes, while a request is resident.
    pub fn reset_prefix_cache(&mut self) -> bool {
        self.view.reset_prefixes()
    }

    /// No more arrivals will come: thresholds no longer wait for more requests.
    pub fn drain(&mut self) {
        self.view.set_draining();
    }

    /// A paused engine plans empty iterations and keeps everything.
    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }
}
