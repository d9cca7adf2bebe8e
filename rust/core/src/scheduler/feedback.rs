//! What the host saw: corrections to the plans that the scheduler assumed.

use crate::model::{RequestId, Slot};
use crate::plan::HoldReason;
use crate::policy::{Event, Policy, Step};
use crate::scheduler::{Scheduler, join, preempt};
use crate::state::Phase;

/// What the host saw, where it differs from the plan. All ids unknown to the scheduler are ignored and counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report<'a> {
    /// Requests whose output ended.
    pub finished: &'a [RequestId],
    /// Requests the host evicted in the last planned iteration instead of running them.
    pub preempted: &'a [RequestId],
    /// Requests the plan admitted and the host did not.
    pub refused: &'a [RequestId],
    /// KV tokens that a request holds after the last planned iteration, where the plan assumed otherwise. One that
    /// waited has been admitted by the host on its own.
    pub progress: &'a [(RequestId, u32)],
    /// Prompt tokens of a waiting request whose blocks other residents hold now ([`crate::Request::shared_prefix`]).
    pub shared: &'a [(RequestId, u32)],
    /// The host's count of free KV blocks.
    pub free_blocks: Option<u32>,
    /// How long an iteration took.
    pub step: Option<StepTime>,
}

/// How long an iteration took, by the host's clock: from when it could begin (its inputs were there and the iteration
/// before it had ended) to when its outputs were. One that was followed by other plans is paired with its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepTime {
    /// ns; 0 says nothing.
    pub ns: u64,
    /// Number of its plan, from 1 ([`crate::Stats::iterations`] when it was made); absent: the oldest plan with something
    /// to compute whose time was not reported. A host that does not report all of them names them.
    pub iteration: Option<u64>,
}

impl Scheduler {
    /// Takes in what the host saw of the iterations planned so far. May come late, in parts, or not at all.
    pub fn complete(&mut self, report: &Report) {
        if !(report.refused.is_empty() && report.preempted.is_empty() && report.progress.is_empty()) {
            self.policy.step(Step::Corrected);
        }
        if let Some(StepTime { ns, iteration }) = report.step {
            self.policy.step(Step::Took { iteration, ns });
        }
        // Refused admissions go back in reverse, so that the queue keeps its order.
        for &id in report.refused.iter().rev() {
            if let Some(slot) = self.resident(id) {
                let (kept, resumed) = (self.view.request(slot).kept, self.view.request(slot).preemptions > 0);
                self.stats.admitted -= u64::from(!resumed);
                self.stats.holds[HoldReason::HostRefused as usize] += 1;
                self.policy.observe(&self.view, slot, Event::Refused);
                self.view.send_back(slot, kept, false);
            }
        }
        for &id in report.preempted {
            if let Some(slot) = self.resident(id) {
                let (stage, kv) = self.before_last_plan(slot);
                preempt(&mut self.view, &mut self.policy, &mut self.stats, self.preemption, slot, stage, kv);
            }
        }
        for &(id, kv) in report.progress {
            let Some(slot) = self.view.slot(id) else {
                self.stats.unknown_ids += 1;
                continue;
            };
            if self.view.request(slot).phase == Phase::Waiting {
                self.stats.admitted += u64::from(self.view.request(slot).preemptions == 0);
                self.view.admit(slot);
                self.policy.observe(&self.view, slot, Event::Admitted);
            }
            self.place(slot, kv);
        }
        for &id in report.finished {
            if self.leave(id, Event::Finished) {
                self.stats.finished += 1;
            }
        }
        for &(id, tokens) in report.shared {
            match self.view.slot(id) {
                Some(slot) if self.view.request(slot).phase == Phase::Waiting => self.view.share(slot, tokens),
                Some(_) => {} // it is resident already
                None => self.stats.unknown_ids += 1,
            }
        }
        if let Some(free) = report.free_blocks {
            self.view.pool_mut().reconcile(free);
        }
        if cfg!(debug_assertions) {
            self.view.check();
        }
    }

    /// The first `count` of each queue, the preempted before the others, each with the shared prefix it is known to have:
    /// those of whom a host with a prefix cache has news to report.
    pub fn first_in_queue(&self, count: usize) -> impl Iterator<Item = (RequestId, u32)> + '_ {
        let queues = (0..=self.view.queues()).rev();
        let first = queues.flat_map(move |queue| self.view.iter_waiting(queue).take(count));
        first.map(|slot| self.view.request(slot)).map(|request| (request.id, request.shared_prefix))
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
        match (request.phase, chunk) {
            (Phase::Prefilling, Some(chunk)) => (stage, kv.min(chunk.start)),
            (Phase::Decoding, Some(chunk)) if chunk.last => (stage - 1, kv.min(chunk.start)),
            (Phase::Decoding, None) if self.plan.runs(usize::from(request.lane)) => (stage - 1, kv - 1),
            _ => (stage, kv),
        }
    }

    /// Places a resident where the host says it is: `kv` tokens in the cache, at most as many as its output allows.
    fn place(&mut self, slot: Slot, kv: u32) {
        let kv = kv.min(self.view.request(slot).prompt + self.view.request(slot).max_tokens);
        let (request, blocks) = (self.view.request(slot), self.view.pool().blocks_for(kv));
        let complete = kv >= request.prefill_target();
        match request.phase {
            Phase::Decoding => self.view.leave_lane(slot, Phase::Prefilling),
            Phase::Parked if complete => return self.view.set_computed(slot, kv, blocks),
            Phase::Parked | Phase::Waiting => return,
            Phase::Prefilling => {}
        }
        self.view.set_computed(slot, kv, blocks);
        if complete {
            join(&mut self.view, &mut self.policy, slot);
        }
        self.view.relist_prefilling();
    }
}
