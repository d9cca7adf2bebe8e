//! The scheduler: asks the policy for a plan, applies it, and takes corrections from the host.
//!
//! How to think about it: `plan` assumes that the host does exactly what was planned, and advances every request at
//! once, so the next iteration can be planned before this one has completed. `complete` only reports what turned out
//! differently (and who finished); a decode that yields its one token is never mentioned.

use crate::config::{Config, Preemption};
use crate::error::{Error, Result};
use crate::forecast::KvForecast;
use crate::plan::{Hold, HoldReason, Origin, Plan};
use crate::policy::{AnyPolicy, Event, LearnedLaw, Policy, Step};
use crate::request::{LengthHint, Phase, Request, RequestId, Slot};
use crate::view::View;
use crate::waiting_time::WaitingTime;

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Plans made.
    pub iterations: u64,
    /// Requests admitted, resumptions not counted.
    pub admitted: u64,
    /// Requests that finished.
    pub finished: u64,
    /// Requests that the host took back.
    pub aborted: u64,
    /// Evictions.
    pub preemptions: u64,
    /// KV tokens lost to evictions, to be computed again.
    pub recomputed_tokens: u64,
    /// Ids in reports and aborts that no request had.
    pub unknown_ids: u64,
    /// Plans that held a waiting request, by reason ([`HoldReason::ALL`]).
    pub holds: [u64; HoldReason::ALL.len()],
}

/// The scheduling core of one engine.
#[derive(Clone, Debug)]
pub struct Scheduler {
    pub(crate) view: View,
    pub(crate) policy: AnyPolicy,
    pub(crate) plan: Plan,
    pub(crate) stats: Stats,
    pub(crate) preemption: Preemption,
    max_queued_requests: Option<u32>,
    max_queued_tokens: Option<u64>,
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
        let view = View::new(config, policy.lanes(), policy.queues());
        Ok(Self {
            view,
            policy,
            plan: Plan::default(),
            stats: Stats::default(),
            preemption: config.preemption,
            max_queued_requests: config.max_queued_requests,
            max_queued_tokens: config.max_queued_tokens,
            paused: false,
            waiting_time: WaitingTime::default(),
        })
    }

    /// The state, read only.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The policy in charge.
    pub fn policy(&self) -> &AnyPolicy {
        &self.policy
    }

    /// The plan made last.
    pub fn last_plan(&self) -> &Plan {
        &self.plan
    }

    /// The KV tokens that the residents of the last plan are expected to hold, by horizon, without anybody else admitted;
    /// none where the policy forecasts nothing. Asking changes no decision.
    pub fn kv_forecast(&mut self) -> Vec<KvForecast> {
        self.policy.kv_forecast(&self.view)
    }

    /// Counters since the start.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Puts a request in line.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths of zero, [`Error::DuplicateId`], [`Error::TooLarge`] for a request that could not
    /// run even alone, [`Error::QueueFull`] when a bound on the line is reached, [`Error::DeadlineUnreachable`] when it
    /// would wait longer than it may. Nothing changes then.
    pub fn add(&mut self, request: &Request) -> Result<()> {
        let max_tokens = self.admissible(request)?;
        let type_id = self.policy.classify(request);
        let types = self.policy.types();
        if let Some(types) = types.filter(|&types| usize::from(type_id) >= types) {
            return Err(Error::invalid("type_id", type_id, format!("must be below {types}, the number of types")));
        }
        let rank = self.policy.rank(&self.view, request, max_tokens);
        let slot = self.view.insert(request, max_tokens, type_id, if types.is_some() { type_id } else { 0 }, rank);
        self.view.advance_clock(request.arrival_ns);
        self.policy.observe(&self.view, slot, Event::Arrived);
        Ok(())
    }

    /// Checks a request; returns its `max_tokens` within the model's limit.
    fn admissible(&self, request: &Request) -> Result<u32> {
        let id = request.id;
        if request.prompt == 0 {
            return Err(Error::invalid("prompt_tokens", 0, "must be at least 1"));
        }
        if request.max_tokens == Some(0) {
            return Err(Error::invalid("max_tokens", 0, "must be at least 1 (leave it out for the model's limit)"));
        }
        match request.output {
            LengthHint::Exact(0) => return Err(Error::invalid("output_tokens", 0, "must be at least 1")),
            LengthHint::Predicted { tokens, log_error }
                if tokens == 0 || !(log_error.is_finite() && log_error >= 0.0) =>
            {
                let given = format!("{tokens} tokens, error {log_error}");
                return Err(Error::invalid("predicted_tokens", given, "at least 1, with a finite error of at least 0"));
            }
            _ => {}
        }
        if self.view.slot(id).is_some() {
            return Err(Error::DuplicateId { id });
        }
        let length = self.view.limits().max_model_len;
        let needs = u64::from(request.prompt) + u64::from(request.output.exact().unwrap_or(1));
        let (most, tokens) = (u64::from(length), self.view.pool().tokens());
        if needs > most {
            return Err(Error::TooLarge { id, needs, limit: most, what: "max_model_len allows" });
        }
        if needs > tokens {
            return Err(Error::TooLarge { id, needs, limit: tokens, what: "the KV cache holds" });
        }
        let room = length - request.prompt;
        // The lines are summed up only where there is a bound to compare with.
        if let Some(bound) = self.max_queued_requests {
            let queued = self.view.waiting_total();
            if queued >= bound {
                return Err(self.full(u64::from(queued), u64::from(bound), "requests"));
            }
        }
        if let Some(bound) = self.max_queued_tokens {
            let queued = self.view.waiting_tokens();
            if queued + u64::from(request.prompt) > bound {
                return Err(self.full(queued, bound, "tokens"));
            }
        }
        if let Some(max_wait_ns) = request.max_wait_ns {
            let predicted_wait_ns = self.predicted_wait_ns();
            if predicted_wait_ns > max_wait_ns {
                return Err(Error::DeadlineUnreachable { id, predicted_wait_ns, max_wait_ns });
            }
        }
        Ok(request.max_tokens.unwrap_or(room).min(room))
    }

    fn full(&self, queued: u64, bound: u64, unit: &'static str) -> Error {
        Error::QueueFull { queued, bound, unit, predicted_wait_ns: self.predicted_wait_ns() }
    }

    /// How long a request that arrived now would wait for its admission if nobody came after it, ns: those ahead times
    /// the mean gap between the last admissions out of a line. 0 while nobody waits. Ahead are all who wait; with a
    /// `ttft_target` those in time and the share of the late. If that takes longer than the target, a request has its turn
    /// in time, after others have become late, or goes behind all: the target, or the latter, whichever happened oftener.
    pub fn predicted_wait_ns(&self) -> u64 {
        self.policy.predicted_wait_ns(&self.view, &|ahead| self.waiting_time.predict_ns(ahead))
    }

    /// What the policy has learned from the traffic, to be restored in another scheduler; none where it learns nothing.
    pub fn learned(&self) -> Option<serde_json::Value> {
        self.policy.learned()
    }

    /// Takes over what a scheduler of the same policy had learned. Nothing changes on error.
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

    /// Proposes the next iteration and assumes that it happens.
    pub fn plan(&mut self, now_ns: u64) -> &Plan {
        self.view.advance_clock(now_ns);
        self.plan.begin(&self.view);
        if self.paused {
            self.hold_all();
        } else {
            self.policy.plan(&self.view, &mut self.plan);
            // Memory is the scheduler's to guard, whatever the policy proposed.
            self.plan.make_room(&self.view);
        }
        self.plan.measure(&self.view);
        if self.plan.tokens() > 0 {
            // Plans are numbered from 1.
            self.policy.step(Step::Planned { iteration: self.stats.iterations + 1, shape: self.plan.shape() });
        }
        let residents = self.view.residents() - self.plan.preempted().len() as u32;
        self.apply();
        let admitted = self.view.residents() - residents;
        self.waiting_time.step(self.view.now_ns(), self.view.waiting_total(), admitted);
        if cfg!(debug_assertions) {
            self.view.check();
        }
        &self.plan
    }

    fn hold_all(&mut self) {
        let waiting = self.view.waiting_total();
        for queue in 0..=self.view.queues() {
            self.plan.hold_queue(queue, Hold::new(HoldReason::EnginePaused, waiting, 0));
        }
    }

    fn apply(&mut self) {
        let Self { view, policy, plan, stats, preemption, .. } = self;
        stats.iterations += 1;
        for &(slot, _) in plan.preempted() {
            preempt(view, policy, stats, *preemption, slot, view.stage(slot), view.kv(slot));
        }
        for &(slot, line) in plan.moved() {
            view.change_line(slot, line);
        }
        for &slot in plan.parked() {
            view.park(slot);
        }
        for &(slot, lane) in plan.unparked() {
            view.join(slot, usize::from(lane));
        }
        for lane in 0..view.lanes().len() {
            if plan.runs(lane) {
                view.step_lane(lane);
            }
        }
        for chunk in plan.chunks() {
            if chunk.origin != Origin::Resident {
                view.admit(chunk.slot);
                stats.admitted += u64::from(chunk.origin == Origin::Admitted);
                policy.observe(view, chunk.slot, Event::Admitted);
            }
            view.set_computed(chunk.slot, chunk.start + chunk.tokens, chunk.blocks);
            if chunk.last {
                join(view, policy, chunk.slot);
            }
        }
        if !(plan.chunks().is_empty() && plan.unparked().is_empty()) {
            view.sweep();
        }
        let resuming = view.queues();
        // A half-open range: the loop over a closed one costs more than its body.
        for queue in 0..resuming + usize::from(view.resuming() > 0) {
            let Some(head) = view.head(queue) else { continue };
            // A policy that says nothing of a line left it behind the preempted, or spent the iteration on an eviction.
            let hold = plan.hold(queue).or_else(|| plan.hold(resuming)).unwrap_or_else(|| {
                let blocks = view.request(head).own_blocks(view.pool());
                Hold::new(HoldReason::NoBlocks, blocks, plan.free() as f64)
            });
            plan.hold_queue(queue, hold);
            stats.holds[hold.reason as usize] += 1;
        }
    }

    /// Takes a request back, in whatever state it is.  False if no request has this id.
    pub fn abort(&mut self, id: RequestId) -> bool {
        let known = self.leave(id, Event::Aborted);
        self.stats.aborted += u64::from(known);
        known
    }

    pub(crate) fn leave(&mut self, id: RequestId, event: Event) -> bool {
        let Some(slot) = self.view.slot(id) else {
            self.stats.unknown_ids += 1;
            return false;
        };
        self.policy.observe(&self.view, slot, event);
        self.view.remove(slot);
        true
    }

    /// Changes the number of usable KV blocks; if it falls below what is in use, the next plan evicts. What is present
    /// and too large for the new number waits until it grows again.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number that `Config` would refuse.
    pub fn set_capacity(&mut self, kv_blocks: u32) -> Result<()> {
        Config { kv_blocks, block_size: self.view.pool().block_size(), ..Config::default() }.validate_memory()?;
        self.view.pool_mut().set_capacity(kv_blocks);
        Ok(())
    }

    /// No more arrivals will come: thresholds stop waiting for company.
    pub fn drain(&mut self) {
        self.view.set_draining();
    }

    /// A paused engine plans empty iterations and keeps everything.
    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Why a request waits, by the plan made last; none if it does not wait, or was not looked at yet.
    pub fn explain(&self, id: RequestId) -> Option<Hold> {
        let slot = self.view.slot(id)?;
        if self.view.request(slot).phase == Phase::Waiting {
            return self.plan.hold(self.view.line_of(slot));
        }
        if self.runs(slot) {
            return None;
        }
        Some(match self.plan.hold(0) {
            Some(hold) if hold.reason == HoldReason::EnginePaused => hold,
            _ if self.plan.tokens_left() == 0 => {
                Hold::new(HoldReason::BatchCap, self.plan.tokens() + 1, self.plan.token_budget())
            }
            _ => Hold::new(HoldReason::PausedAtBoundary, 1, 0),
        })
    }

    /// Whether the last plan runs a resident.
    fn runs(&self, slot: Slot) -> bool {
        let request = self.view.request(slot);
        request.phase == Phase::Decoding && self.plan.runs(usize::from(request.lane))
            || self.plan.chunks().iter().any(|chunk| chunk.slot == slot)
    }

    /// Residents that the last plan does not run: members of a lane that stands, parked requests, waiting prefills.
    pub fn paused_ids(&self) -> Vec<RequestId> {
        if self.plan.decodes() as usize + self.plan.chunks().len() == self.plan.residents() as usize {
            return Vec::new();
        }
        let (view, plan) = (&self.view, &self.plan);
        let stands = |slot: &Slot| !self.runs(*slot);
        let id = |slot: Slot| view.request(slot).id;
        if view.lanes().iter().enumerate().any(|(lane, members)| !members.is_empty() && !plan.runs(lane)) {
            // The members of a lane are counted, not listed: they are found among the residents.
            return view.iter_residents().filter(stands).map(id).collect();
        }
        view.parked().iter().chain(view.prefilling()).copied().filter(stands).map(id).collect()
    }
}

pub(crate) fn join(view: &mut View, policy: &mut AnyPolicy, slot: Slot) {
    let request = view.request(slot);
    // The token emitted last has no KV yet.
    let lane = policy.lane(request, view.kv(slot) + 1 - request.prompt);
    view.join(slot, lane);
    policy.observe(view, slot, Event::Joined);
}

/// Evicts a request that had emitted `stage` tokens and held `kv` in the cache.
pub(crate) fn preempt(
    view: &mut View,
    policy: &mut AnyPolicy,
    stats: &mut Stats,
    mode: Preemption,
    slot: Slot,
    stage: u32,
    kv: u32,
) {
    stats.preemptions += 1;
    stats.recomputed_tokens += u64::from(kv);
    policy.observe(view, slot, Event::Preempted);
    let kept = if mode == Preemption::Recompute { stage } else { 0 };
    view.send_back(slot, kept, true);
}
