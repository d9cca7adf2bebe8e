//! Applying a plan: the view and the policy learn that it happens.

use super::{Scheduler, Stats, explain};
use crate::config::Preemption;
use crate::model::Slot;
use crate::plan::{HoldReason, Origin, Plan};
use crate::policy::{AnyPolicy, Event, Policy, Step};
use crate::state::View;

impl Scheduler {
    /// Assumes that the plan happens.
    #[inline]
    pub(super) fn carry_out(&mut self) {
        self.plan.measure();
        if self.plan.tokens() > 0 {
            // Plans are numbered from 1.
            self.policy.step(Step::Planned { iteration: self.stats.iterations + 1, shape: self.plan.shape() });
        }
        let admitted_before = self.stats.admitted;
        if !self.plan.is_plain() {
            self.apply_moves();
        }
        self.apply();
        // Resumed requests were admitted before: they bring no waiting request nearer to its turn.
        let admitted = (self.stats.admitted - admitted_before) as u32;
        self.waiting_time.step(self.view.now_ns(), self.view.waiting_total(), admitted);
        if cfg!(debug_assertions) {
            self.view.check();
        }
    }

    /// Requests leave, and others change their queue or their lane, before anything is computed.
    #[cold]
    fn apply_moves(&mut self) {
        for at in 0..self.plan.refused().len() {
            self.abort(self.plan.refused()[at].id);
        }
        let Self { view, policy, plan, stats, preemption, .. } = self;
        // They leave as aborted requests do, and are counted separately.
        stats.aborted -= plan.refused().len() as u64;
        stats.refused += plan.refused().len() as u64;
        for &(slot, _) in plan.preempted() {
            preempt(view, policy, stats, *preemption, slot, view.stage(slot), view.kv(slot));
        }
        for &(slot, queue) in plan.moved() {
            view.change_queue(slot, queue);
        }
        for &slot in plan.parked() {
            view.park(slot);
        }
        for &(slot, lane) in plan.unparked() {
            view.join(slot, usize::from(lane));
        }
        view.sweep();
    }

    /// Lanes step, prompts are computed, and each waiting queue gets the reason of its hold.
    #[inline]
    fn apply(&mut self) {
        let Self { view, policy, plan, stats, .. } = self;
        stats.iterations += 1;
        view.step_lanes(|lane| plan.runs(lane));
        let mut ended = false;
        for chunk in plan.chunks() {
            let admits = chunk.origin != Origin::Resident;
            if admits {
                view.admit(chunk.slot, chunk.hit, chunk.last);
                stats.admitted += u64::from(chunk.origin == Origin::Admitted);
                policy.observe(view, chunk.slot, Event::Admitted);
            }
            view.set_computed(chunk.slot, chunk.start + chunk.tokens, chunk.blocks);
            if chunk.last {
                join(view, policy, chunk.slot);
                ended |= !admits;
            }
        }
        if ended {
            view.sweep();
        }
        view.take_back_prefixes(&mut plan.prefixes);
        let resuming = view.queues();
        // A half-open range: the loop over a closed one costs more than its body.
        for queue in 0..resuming + usize::from(view.resuming() > 0) {
            let Some(head) = view.head(queue) else { continue };
            let reason = match plan.hold(queue) {
                Some(hold) => hold.reason,
                None => find_hold(view, plan, queue, head),
            };
            stats.holds[reason as usize] += 1;
        }
    }
}

/// The hold of a waiting queue of which the policy said nothing.
#[cold]
fn find_hold(view: &View, plan: &mut Plan, queue: usize, head: Slot) -> HoldReason {
    let hold = explain::find_hold(view, plan, queue, head);
    plan.hold_queue(queue, hold);
    hold.reason
}

#[inline(always)]
pub(super) fn join(view: &mut View, policy: &mut AnyPolicy, slot: Slot) {
    let request = view.request(slot);
    // The token emitted last has no KV yet.
    let lane = policy.lane(request, request.computed + 1 - request.prompt);
    view.join(slot, lane);
    policy.observe(view, slot, Event::Joined);
}

/// Preempts a request that had emitted `stage` tokens and held `kv` in the cache.
pub(super) fn preempt(
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
    view.send_back(slot, kv, kept, true);
}
