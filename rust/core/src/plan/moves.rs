//! What a plan does with requests beside stepping their lane and computing their prompt: they are parked, join a lane again,
//! change their queue or are refused, and some are preempted (preemption.rs). It is rare, and all of it out of line.

use super::{HoldReason, Plan, Refusal};
use crate::model::Slot;
use crate::state::View;

/// Members that were taken out of a lane.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TakenOut {
    pub(super) members: u32,
    /// Blocks that their decodes would have taken.
    pub(super) blocks: i64,
    /// KV tokens that they would have held then.
    pub(super) kv: u64,
}

impl Plan {
    /// Takes a request out of its lane; it keeps its KV, and may join another lane in the same plan.
    pub fn park(&mut self, view: &View, slot: Slot) {
        self.plain = false;
        self.parked.push(slot);
        self.retract_decode(view, slot);
    }

    /// Takes back that a member of a lane was to decode, or will be.
    pub(super) fn retract_decode(&mut self, view: &View, slot: Slot) {
        let lane = usize::from(view.request(slot).lane);
        if self.runs(lane) {
            self.stop_decode(view, slot);
        } else {
            let out = &mut self.taken_out[lane];
            out.members += 1;
            out.blocks += view.next_blocks(slot);
            out.kv += u64::from(view.kv(slot)) + 1;
        }
    }

    /// A request that was to decode does not.
    pub(super) fn stop_decode(&mut self, view: &View, slot: Slot) {
        let (kv, blocks) = (view.kv(slot), view.next_blocks(slot));
        self.take(-blocks);
        self.set_decodes(self.decodes - 1);
        self.decode_kv -= u64::from(kv) + 1;
    }

    /// A parked request joins `lane`, which runs, and decodes with it.
    pub fn unpark(&mut self, view: &View, slot: Slot, lane: usize) {
        debug_assert!(self.runs(lane), "lane {lane} stands");
        let (kv, held, blocks) = (view.kv(slot), view.blocks(slot), view.next_blocks(slot));
        self.plain = false;
        self.unparked.push((slot, lane as u16));
        self.step(slot, kv, held, blocks);
        self.set_decodes(self.decodes + 1);
        self.decode_kv += u64::from(kv) + 1;
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
        self.taken_out.fill(TakenOut::default());
        self.plain = true;
    }
}
