//! What a step gives back of a prefix cache with several groups. A block that leaves a window stays cached, and stays held
//! where another request holds it too, so that only the cache knows how many become free.

use super::Plan;
use crate::model::Slot;
use crate::state::{Found, Phase, View};

impl Plan {
    /// A step of a resident of `held` blocks that begins with `start` tokens, and takes `blocks` blocks less those that leave
    /// its windows.
    #[inline]
    pub(super) fn step(&mut self, slot: Slot, start: u32, held: u32, blocks: i64) {
        match &mut self.prefixes {
            Some(prefixes) if prefixes.has_groups() => {
                let before = prefixes.held();
                let left = prefixes.leave_groups(slot, start, held) + std::mem::take(&mut self.owed);
                prefixes.take(blocks + i64::from(left));
                self.free -= prefixes.held() - before;
            }
            _ => self.take(blocks),
        }
    }

    /// The members of a lane decode, those excepted that the plan has taken out of it; together they take `blocks` blocks of
    /// a cache that keeps prefixes.
    #[cold]
    pub(super) fn step_cached(&mut self, view: &View, lane: usize, blocks: i64) {
        let Some(prefixes) = self.prefixes.as_mut().filter(|prefixes| prefixes.has_groups()) else {
            return self.take(blocks);
        };
        let before = prefixes.held();
        let mut left = std::mem::take(&mut self.owed);
        for slot in view.iter_residents() {
            let request = view.request(slot);
            let stays = request.phase == Phase::Decoding && usize::from(request.lane) == lane;
            let out = || self.parked.contains(&slot) || self.preempted.iter().any(|&(other, _)| other == slot);
            if stays && (self.plain || !out()) {
                left += prefixes.leave_groups(slot, view.kv(slot), view.blocks(slot));
            }
        }
        prefixes.take(blocks + i64::from(left));
        self.free -= prefixes.held() - before;
    }

    /// A resident gives back what leaves its windows before others are preempted, whose blocks are then reused later. Its
    /// step, or that of its lane, has to follow. Returns how many of the blocks stay, because others hold them.
    #[inline]
    pub(crate) fn leave(&mut self, view: &View, slot: Slot) -> i64 {
        if self.prefixes.is_some() { self.leave_cached(view, slot) } else { 0 }
    }

    #[cold]
    fn leave_cached(&mut self, view: &View, slot: Slot) -> i64 {
        let Some(prefixes) = self.prefixes.as_mut().filter(|prefixes| prefixes.has_groups()) else { return 0 };
        let before = prefixes.held();
        let left = prefixes.leave_groups(slot, view.kv(slot), view.blocks(slot));
        let freed = before - prefixes.held();
        self.owed += left;
        self.free += freed;
        i64::from(left) - freed
    }

    /// As `own_blocks`: the blocks of the whole prompt behind what is found, and those that it finds and no request holds. A
    /// policy that does not reserve the prompt's blocks does not ask for those that are spared by the hit and would have
    /// left the window meanwhile, but for those of the first chunk.
    #[cold]
    pub(super) fn own_blocks_of_groups(&self, view: &View, slot: Slot) -> u32 {
        let (request, layout) = (view.request(slot), view.layout());
        let target = request.prefill_target();
        let found = self.prefixes.as_ref().and_then(|prefixes| prefixes.find_in_groups(slot, target));
        let Some(Found { tokens, held }) = found else { return request.own_blocks(layout) };
        let chunk = (target - tokens).min(self.tokens_left()).min(view.prefill_chunk());
        let first = layout.after(tokens, tokens + chunk);
        let whole = if view.limits().reserves_prompts {
            layout.demand(target)
        } else {
            layout.demand_behind(tokens, target) + layout.filled(tokens)
        };
        whole.max(first) - held + request.encoder_blocks
    }
}
