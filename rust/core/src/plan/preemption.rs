//! Preemption: the residents admitted last leave until what is planned fits.

use super::Plan;
use crate::model::Slot;
use crate::state::{Phase, View};

impl Plan {
    /// Preempts the residents admitted last until what is planned fits; the paper's and vLLM's order.
    pub fn make_room(&mut self, view: &View) {
        while self.free < 0 && self.preempt_last(view) {}
    }

    /// The resident admitted last that the plan does not preempt.
    pub fn last_resident(&self, view: &View) -> Option<Slot> {
        match self.preempted.last() {
            Some(&(slot, _)) => view.resident_before(slot),
            None => view.last_resident(),
        }
    }

    /// Preempts the resident admitted last. False if there is none, or preemptions are the host's business.
    pub fn preempt_last(&mut self, view: &View) -> bool {
        let victim = self.last_resident(view).filter(|_| !view.limits().host_preempts);
        if let Some(victim) = victim {
            self.preempt(view, victim);
        }
        victim.is_some()
    }

    fn preempt(&mut self, view: &View, slot: Slot) {
        let request = view.request(slot);
        self.preempted.push((slot, request.id));
        self.residents -= 1;
        if let Some(at) = self.parked.iter().position(|&other| other == slot) {
            // Its token was taken back when it was parked.
            self.parked.remove(at);
        } else if request.phase == Phase::Decoding {
            self.retract_decode(view, slot);
        }
        if let Some(at) = self.unparked.iter().position(|&(other, _)| other == slot) {
            self.unparked.remove(at);
            self.take(-view.next_blocks(slot));
            self.tokens -= 1;
            self.decodes -= 1;
        }
        let (mut blocks, mut kv) = (view.blocks(slot), view.kv(slot));
        if let Some(at) = self.chunks.iter().position(|chunk| chunk.slot == slot) {
            let chunk = self.chunks.remove(at);
            self.tokens -= chunk.tokens;
            (blocks, kv) = (chunk.blocks, chunk.start + chunk.tokens);
        }
        self.release(view, slot, blocks, kv);
    }

    /// A resident's blocks come back, but for those that others hold.
    fn release(&mut self, view: &View, slot: Slot, blocks: u32, kv: u32) {
        if let Some(prefixes) = &mut self.prefixes {
            let before = prefixes.held();
            prefixes.release(slot, blocks, kv);
            self.free += before - prefixes.held();
            return;
        }
        let pool = view.pool();
        let kept = pool.stays_charged(blocks, view.request(slot).shared_blocks(view.layout()), self.unclaimed);
        // None are unclaimed while the host is taken at its word.
        self.unclaimed = (self.unclaimed - kept).max(0);
        // No more can be free than there are, whatever was said to be shared.
        self.free = (self.free + i64::from(blocks) - kept).min(i64::from(pool.capacity()));
    }
}
