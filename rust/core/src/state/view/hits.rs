//! How much of a waiting request is in the KV cache already, by the host's report or the prefix cache.

use super::View;
use crate::config::MAX_COUNT;
use crate::model::{Hit, Slot};
use crate::state::Prefixes;

/// Requests of each queue whose hits are looked up before a plan is made.
const LOOKED_AT: usize = 8;

impl View {
    /// Sets how much of a waiting request is in the KV cache; at least one token is left to compute.
    pub(crate) fn set_hit(&mut self, slot: Slot, hit: Hit) {
        let target = self.request(slot).prefill_target();
        self.table[slot as usize].hit = self.trusted(hit, target);
    }

    /// The part of a hit that is trusted, for a request that has `target` tokens to compute.
    #[inline]
    pub(super) fn trusted(&self, hit: Hit, target: u32) -> Hit {
        if hit == Hit::default() {
            return hit;
        }
        let computed = hit.computed.min(target - 1);
        let evicted = hit.evicted.min(target - computed);
        Hit { computed, shared: if self.pool.trusts_shares() { hit.shared.min(computed) } else { 0 }, evicted }
    }

    /// Looks up the hits of the first requests of each queue in the prefix cache.
    pub(crate) fn look_up_hits(&mut self) {
        let Some(prefixes) = &self.prefixes else { return };
        for queue in 0..self.queues.len() {
            let mut slot = self.queues[queue].list().head();
            for _ in 0..LOOKED_AT {
                let Some(at) = slot else { break };
                let target = self.request(at).prefill_target();
                if let Some(hit) = prefixes.hit(at, target) {
                    self.table[at as usize].hit = hit;
                }
                slot = self.behind(at);
            }
        }
    }

    /// Blocks that a request holds by name.
    pub(crate) fn named_blocks(&self, slot: Slot) -> u32 {
        self.prefixes.as_ref().map_or(0, |prefixes| prefixes.named(slot))
    }

    /// Hands the prefix cache to a plan that is being made.
    #[inline]
    pub(crate) fn lend_prefixes(&mut self, to: &mut Option<Box<Prefixes>>) {
        std::mem::swap(&mut self.prefixes, to);
    }

    /// The plan is applied: the prefix cache comes back.
    #[inline]
    pub(crate) fn take_back_prefixes(&mut self, from: &mut Option<Box<Prefixes>>) {
        std::mem::swap(&mut self.prefixes, from);
        if let Some(prefixes) = &self.prefixes {
            self.pool.count_once(prefixes.held());
        }
    }

    /// Empties the prefix cache; false while a request is resident.
    pub(crate) fn reset_prefixes(&mut self) -> bool {
        self.prefixes.as_mut().is_none_or(|prefixes| prefixes.reset())
    }

    /// Changes the number of usable blocks.
    pub(crate) fn set_capacity(&mut self, blocks: u32) {
        self.pool.set_capacity(blocks);
        self.largest = self.layout.largest(blocks, MAX_COUNT);
        self.ever_largest = self.ever_largest.max(self.largest);
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.set_capacity(blocks);
        }
    }
}
