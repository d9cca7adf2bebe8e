//! What the host saw: corrections to the plans that the scheduler assumed.

use crate::error::{Error, Result};
use crate::model::{Hit, RequestId, Slot};
use crate::plan::HoldReason;
use crate::policy::{Event, Policy, Step};
use crate::scheduler::Scheduler;
use crate::scheduler::apply::{join, preempt};
use crate::state::Phase;

/// What the host saw, where it differs from the plan. All ids unknown to the scheduler are ignored and counted.
///
/// ```
/// use wait_core::{Config, Report, Request, Scheduler, StepTime};
///
/// let mut scheduler = Scheduler::new(&Config { kv_blocks: 1000, ..Config::default() })?;
/// for id in 0..2 {
///     scheduler.add(&Request { id, prompt: 100, ..Request::default() })?;
/// }
/// scheduler.plan(0);
/// scheduler.plan(10_000_000);
/// // The second iteration took 12 ms. Request 0 ended with it; request 1 had two drafts accepted, and holds 103 tokens.
/// scheduler.complete(&Report {
///     finished: &[0],
///     progress: &[(1, 103)],
///     step: Some(StepTime { ns: 12_000_000, iteration: Some(2) }),
///     ..Report::default()
/// })?;
/// let view = scheduler.view();
/// assert_eq!(view.slot(0), None);
/// assert_eq!(view.slot(1).map(|slot| view.kv(slot)), Some(103));
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Report<'a> {
    /// Requests whose output ended.
    pub finished: &'a [RequestId],
    /// Requests the host preempted in the last planned iteration instead of running them.
    pub preempted: &'a [RequestId],
    /// Requests that one of the last 16 plans admitted and the host did not.
    pub refused: &'a [RequestId],
    /// KV tokens that a request holds after the last planned iteration, where the plan assumed otherwise. One that
    /// waited has been admitted by the host on its own.
    pub progress: &'a [(RequestId, u32)],
    /// Requests whose KV the host fetches from elsewhere since it admitted them, in one of the last 16 plans or on its own,
    /// and the KV tokens that come of each: nothing of them is computed until they are received.
    pub receiving: &'a [(RequestId, u32)],
    /// Requests whose KV has arrived from elsewhere: they are computed from now on.
    pub received: &'a [RequestId],
    /// How much of a waiting request's prompt is in the KV cache now.
    pub hits: &'a [(RequestId, Hit)],
    /// The host's count of free KV blocks.
    pub free_blocks: Option<u32>,
    /// How long an iteration took.
    pub step: Option<StepTime>,
}

/// How long an iteration took, by the host's clock: from when it could begin (its inputs were ready and the previous
/// iteration had ended) to when its outputs were ready. A report that comes after later plans names its own.
///
/// ```
/// use wait_core::{Config, Report, Request, Scheduler, StepTime};
///
/// let mut scheduler = Scheduler::new(&Config { kv_blocks: 1000, ..Config::default() })?;
/// scheduler.add(&Request { id: 1, prompt: 100, ..Request::default() })?;
/// for iteration in 1..=64 {
///     scheduler.plan(iteration * 9_000_000);
///     let step = StepTime { ns: 9_000_000, iteration: Some(iteration) };
///     scheduler.complete(&Report { step: Some(step), ..Report::default() })?;
/// }
/// // `adaptive` learns the iteration-time law from them, 64 iterations at a time.
/// assert_eq!(scheduler.learned_law().map(|learned| learned.observations), Some(64));
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepTime {
    /// ns; 0 is ignored.
    pub ns: u64,
    /// Number of its plan, from 1 ([`crate::Stats::iterations`] when it was made); absent: the oldest plan with
    /// something to compute whose time was not reported. A host that does not report all iterations gives the numbers.
    pub iteration: Option<u64>,
}

/// Plans by which a host's refusal may be late; an older one names a request that has run since.
const MAX_LAG: u32 = 16;

impl Scheduler {
    /// Applies what the host saw of the iterations planned so far. May come late, in parts, or not at all.
    ///
    /// # Errors
    /// [`Error::Invalid`] names what is impossible: more free blocks than there are, a request longer than the model
    /// allows, a hit beyond its prompt, a request reported both as finished and as preempted. Nothing changes then.
    pub fn complete(&mut self, report: &Report) -> Result<()> {
        let moved = report.refused.len() + report.preempted.len() + report.progress.len() + report.receiving.len();
        let corrects = moved > 0;
        self.check_report(report, corrects)?;
        if corrects {
            self.policy.step(Step::Corrected);
        }
        if let Some(StepTime { ns, iteration }) = report.step {
            self.policy.step(Step::Took { iteration, ns });
        }
        if corrects {
            self.correct(report);
        }
        for &id in report.received {
            if let Some(slot) = self.resident(id)
                && !self.view.received(slot)
            {
                self.stats.unknown_ids += 1;
            }
        }
        for &id in report.finished {
            if self.leave(id, Event::Finished) {
                self.stats.finished += 1;
            }
        }
        if let Some(free) = report.free_blocks {
            self.view.pool_mut().reconcile(free);
        }
        for &(id, hit) in report.hits {
            match self.view.slot(id) {
                Some(slot) if self.view.request(slot).phase == Phase::Waiting => self.view.set_hit(slot, hit),
                Some(_) => {} // it is resident already
                None => self.stats.unknown_ids += 1,
            }
        }
        if cfg!(debug_assertions) {
            self.view.check();
        }
        Ok(())
    }

    /// Follows what the host did other than planned.
    #[cold]
    fn correct(&mut self, report: &Report) {
        // Refused admissions go back in reverse, so that the queue keeps its order.
        for &id in report.refused.iter().rev() {
            self.take_back(id);
        }
        for &id in report.preempted {
            if let Some(slot) = self.resident(id) {
                let (stage, kv) = self.before_last_plan(slot);
                preempt(&mut self.view, &mut self.policy, &mut self.stats, self.preemption, slot, stage, kv);
            }
        }
        self.follow(report.progress);
        self.expect(report.receiving);
    }

    /// Rejects a report that contradicts itself, before anything changes.
    fn check_report(&self, report: &Report, corrects: bool) -> Result<()> {
        let capacity = self.view.pool().capacity();
        if let Some(free) = report.free_blocks.filter(|&free| free > capacity) {
            let rule = format!("must be at most the {capacity} blocks of the cache");
            return Err(Error::invalid("free_blocks", free, rule));
        }
        if corrects {
            self.check_corrections(report)?;
        }
        for &(id, hit) in report.hits {
            if hit.shared > hit.computed {
                let rule = format!("must be among the {} computed tokens", hit.computed);
                return Err(Error::invalid(format!("shared tokens of request {id}"), hit.shared, rule));
            }
        }
        Ok(())
    }

    #[cold]
    fn check_corrections(&self, report: &Report) -> Result<()> {
        let most = self.view.longest();
        for (what, placed) in [("progress", report.progress), ("receiving", report.receiving)] {
            if let Some(&(id, kv)) = placed.iter().find(|(_, kv)| *kv > most) {
                let rule = format!("must be at most the {most} tokens that max_model_len allows");
                return Err(Error::invalid(format!("{what} of request {id}"), kv, rule));
            }
        }
        if let Some(&(id, kv)) = report.receiving.first()
            && self.view.limits().caches_prefixes
        {
            let rule = "must be declared when the request is added, where the scheduler keeps the prefix cache";
            return Err(Error::invalid(format!("receiving of request {id}"), kv, rule));
        }
        match report.preempted.iter().chain(report.refused).find(|id| report.finished.contains(id)) {
            Some(id) => Err(Error::invalid("finished", id, "is said not to have run in the same report")),
            None => Ok(()),
        }
    }

    /// The host did not admit what a recent plan admitted.
    fn take_back(&mut self, id: RequestId) {
        if let Some(slot) = self.resident(id)
            && self.undo_admission(slot)
        {
            self.stats.holds[HoldReason::HostRefused as usize] += 1;
        }
    }

    /// A resident waits again, as if the plan that admitted it had not; false where it has run since.
    fn undo_admission(&mut self, slot: Slot) -> bool {
        if self.view.plans_since_admission(slot) > MAX_LAG {
            self.stats.unknown_ids += 1;
            return false;
        }
        let request = self.view.request(slot);
        let (found, kept, resumed) = (request.hit.computed, request.kept, request.preemptions > 0);
        self.stats.admitted -= u64::from(!resumed);
        self.policy.observe(&self.view, slot, Event::Refused);
        self.view.send_back(slot, found, kept, false);
        true
    }

    /// Places requests where the host says they are.
    fn follow(&mut self, progress: &[(RequestId, u32)]) {
        let mut relist = false;
        for &(id, kv) in progress {
            let Some(slot) = self.view.slot(id) else {
                self.stats.unknown_ids += 1;
                continue;
            };
            self.admit_unplanned(slot);
            relist |= self.place(slot, kv);
        }
        if relist {
            self.view.relist_prefilling();
        }
    }

    /// Requests that the host has admitted and whose KV it fetches: residents that compute nothing until it has arrived.
    fn expect(&mut self, receiving: &[(RequestId, u32)]) {
        for &(id, kv) in receiving {
            let Some(slot) = self.view.slot(id) else {
                self.stats.unknown_ids += 1;
                continue;
            };
            // What a plan has computed of it since its admission was not computed.
            if self.view.request(slot).phase != Phase::Waiting && !self.undo_admission(slot) {
                continue;
            }
            self.plan.forget(slot);
            self.view.expect(slot);
            self.admit_unplanned(slot);
            let kv = kv.min(self.view.request(slot).prefill_target() - 1);
            let blocks = self.view.layout().after(kv.saturating_sub(1), kv);
            self.view.set_computed(slot, kv, blocks);
        }
    }

    /// The host has admitted a request that waited.
    fn admit_unplanned(&mut self, slot: Slot) {
        if self.view.request(slot).phase != Phase::Waiting {
            return;
        }
        self.stats.admitted += u64::from(self.view.request(slot).preemptions == 0);
        let cached = self.view.limits().caches_prefixes;
        let hit = if cached { Hit::default() } else { self.view.request(slot).hit };
        self.view.admit(slot, hit, false);
        self.policy.observe(&self.view, slot, Event::Admitted);
    }

    /// The first `count` of each queue, the preempted before the others, each with the hit known for it: the requests
    /// whose hits a host with a prefix cache should report.
    pub fn first_in_queue(&self, count: usize) -> impl Iterator<Item = (RequestId, Hit)> + '_ {
        let queues = (0..=self.view.queues()).rev();
        let first = queues.flat_map(move |queue| self.view.iter_waiting(queue).take(count));
        first.map(|slot| self.view.request(slot)).map(|request| (request.id, request.hit))
    }

    fn resident(&mut self, id: RequestId) -> Option<Slot> {
        let slot = self.view.slot(id).filter(|&slot| self.view.request(slot).phase != Phase::Waiting);
        self.stats.unknown_ids += u64::from(slot.is_none());
        slot
    }

    /// Output tokens and KV tokens a request had before the last plan, which assumed more if it ran it.
    fn before_last_plan(&self, slot: Slot) -> (u32, u32) {
        let (request, stage, kv) = (self.view.request(slot), self.view.stage(slot), self.view.kv(slot));
        let chunk = self.plan.chunks().iter().find(|chunk| chunk.slot == slot && chunk.id == request.id);
        let decodes = request.phase == Phase::Decoding;
        // A request that the host has placed since is found elsewhere than where its chunk ended, or where it joined
        // its lane.
        match chunk {
            Some(chunk) if kv == chunk.start + chunk.tokens => (stage - u32::from(decodes), chunk.start),
            None if decodes && kv > request.computed && self.plan.runs(request.lane.into()) => (stage - 1, kv - 1),
            _ => (stage, kv),
        }
    }

    fn stays_in_lane(&self, slot: Slot, kv: u32) -> bool {
        let request = self.view.request(slot);
        self.policy.lane(request, kv + 1 - request.prompt) == usize::from(request.lane)
    }

    /// Places a resident where the host says it is: `kv` tokens in the cache, at most as many as its output allows. True if
    /// the list of prefills may have changed.
    fn place(&mut self, slot: Slot, kv: u32) -> bool {
        let request = self.view.request(slot);
        let kv = kv.min(request.prompt + request.max_tokens);
        let complete = kv >= request.prefill_target();
        match request.phase {
            Phase::Decoding if complete && self.stays_in_lane(slot, kv) => {
                self.view.shift(slot, kv);
                self.policy.observe(&self.view, slot, Event::Joined);
                return false;
            }
            Phase::Decoding => self.view.leave_lane(slot, Phase::Prefilling),
            Phase::Parked if !complete => return false,
            Phase::Waiting | Phase::Receiving => return false,
            Phase::Parked | Phase::Prefilling => {}
        }
        let blocks = self.view.layout().after(kv.saturating_sub(1), kv);
        self.view.set_computed(slot, kv, blocks);
        if complete && self.view.request(slot).phase == Phase::Prefilling {
            join(&mut self.view, &mut self.policy, slot);
        }
        self.view.request(slot).phase != Phase::Parked
    }
}
