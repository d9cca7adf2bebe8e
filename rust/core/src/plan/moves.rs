//! What a plan does with requests beside stepping their lane and computing their prompt: they are parked, join a lane again,
//! change their queue or are refused, and some are preempted (preemption.rs). It is rare, and all of it out of line.

use super::{HoldReason, Plan, Refusal};
use crate::model::Slot;
use crate::state::{Phase, View};

impl Plan {
    /// Takes a request out of its lane; it keeps its KV, and may join another lane in the same plan.
    pub fn park(&mut self, view: &View, slot: Slot) {
        self.plain = false;
        self.parked.push(slot);
        self.retract_decode(view, slot);
    }

    /// Takes back that a member of a lane was to decode, or will be.
    pub(super) fn retract_decode(&mut self, view: &View, slot: Slot) {
        let (lane, blocks) = (usize::from(view.request(slot).lane), view.next_blocks(slot));
        if self.runs(lane) {
            self.take(-blocks);
            self.set_decodes(self.decodes - 1);
        } else {
            let (members, before) = &mut self.taken_out[lane];
            (*members, *before) = (*members + 1, *before + blocks);
        }
    }

    /// A parked request joins `lane`, which runs, and decodes with it.
    pub fn unpark(&mut self, view: &View, slot: Slot, lane: usize) {
        debug_assert!(self.runs(lane), "lane {lane} stands");
        self.plain = false;
        self.unparked.push((slot, lane as u16));
        self.step(slot, view.kv(slot), view.blocks(slot), view.next_blocks(slot));
        self.set_decodes(self.decodes + 1);
    }

    /// A waiting request goes to another queue; it may be admitted by the same plan.
    pub fn change_queue(&mut self, slot: Slot, queue: usize) {
        self.plain = false;
        self.moved.push((slot, queue));
    }

    /// Refuses a waiting request, which would have waited so long for its first token.
    pub fn refuse(&mut self, view: &View, slot: Slot, reason: HoldReason, predicted_wait_ns: u64) {
        self.plain = false;
        self.refused.push(Refusal { slot, id: view.request(slot).id, reason, predicted_wait_ns });
    }

    #[cold]
    pub(super) fn clear_moves(&mut self) {
        self.preempted.clear();
        self.parked.clear();
        self.unparked.clear();
        self.moved.clear();
        self.refused.clear();
        self.taken_out.fill((0, 0));
        self.plain = true;
    }

    /// KV tokens of the decodes that are not their lane's, and those of members of a running lane that do not decode.
    #[cold]
    pub(super) fn moved_kv(&self, view: &View) -> (u64, u64) {
        let in_running_lane = |slot: Slot| {
            let request = view.request(slot);
            request.phase == Phase::Decoding && self.runs(usize::from(request.lane))
        };
        let after = |slot: Slot| u64::from(view.kv(slot)) + 1;
        let out = self.preempted.iter().map(|&(slot, _)| slot).chain(self.parked.iter().copied());
        let lost = out.filter(|&slot| in_running_lane(slot)).map(after).sum();
        (self.unparked.iter().map(|&(slot, _)| after(slot)).sum(), lost)
    }
}
