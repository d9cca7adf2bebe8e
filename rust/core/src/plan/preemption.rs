//! Preemption: residents leave until the plan fits, those admitted last unless the policy chooses others.

use super::Plan;
use crate::model::Slot;
use crate::state::{Phase, View};

impl Plan {
    /// Preempts one resident after the other until the plan fits: the last admitted, as the paper and vLLM do.
    #[inline(always)]
    pub fn make_room(&mut self, view: &View) {
        while self.free < 0 && self.preempt_last(view) {}
    }

    /// Which resident is preempted next: the one admitted last, and where priorities decide, of those of the lowest.
    pub fn victim(&self, view: &View) -> Option<Slot> {
        if !view.ranks() {
            return match self.preempted.last() {
                Some(&(slot, _)) => view.resident_before(slot),
                None => view.last_resident(),
            };
        }
        if view.resumes_by_rank() {
            let running = view.iter_residents().filter(|&slot| !self.preempts(slot));
            return running.max_by_key(|&slot| view.request(slot).rank());
        }
        let mut last = view.last_resident();
        while let Some(slot) = last.filter(|&slot| self.preempts(slot)) {
            last = view.resident_before(slot);
        }
        last
    }

    /// Whether the plan preempts this resident.
    pub fn preempts(&self, slot: Slot) -> bool {
        self.preempted.iter().any(|&(other, _)| other == slot)
    }

    /// Preempts the resident whose turn it is. False if there is none, or if the host preempts by itself.
    #[inline(never)]
    pub fn preempt_last(&mut self, view: &View) -> bool {
        let victim = self.victim(view).filter(|_| !view.limits().host_preempts);
        if let Some(victim) = victim {
            self.preempt(view, victim);
        }
        victim.is_some()
    }

    /// Preempts a resident that the plan does not preempt yet.
    pub fn preempt(&mut self, view: &View, slot: Slot) {
        let request = view.request(slot);
        self.plain = false;
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
            self.stop_decode(view, slot);
        }
        let blocks = view.blocks(slot);
        if let Some(at) = self.chunks.iter().position(|chunk| chunk.slot == slot) {
            let chunk = self.chunks.remove(at);
            self.prefill_tokens -= chunk.tokens;
            self.take(i64::from(blocks) - i64::from(chunk.blocks));
        }
        self.release(view, slot, blocks);
    }

    /// A resident's blocks become free, except those that others hold: as when the plan is applied, where the preempted
    /// leave before anything else happens.
    fn release(&mut self, view: &View, slot: Slot, blocks: u32) {
        let encoder_blocks = i64::from(view.request(slot).encoder_blocks);
        if let Some(prefixes) = &mut self.prefixes {
            let before = prefixes.held();
            prefixes.take(-encoder_blocks);
            prefixes.release(slot, blocks, view.kv(slot));
            self.free += before - prefixes.held();
            return;
        }
        let pool = self.left.get_or_insert_with(|| view.pool().clone());
        let before = pool.free();
        pool.take(-encoder_blocks);
        pool.release(blocks, view.request(slot).shared_blocks(view.layout()));
        self.free += pool.free() - before;
    }
}
