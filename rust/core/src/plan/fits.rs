//! What a request needs in order to enter, and whether the plan so far leaves it: the checks shared by all policies.

use super::{Hold, HoldReason, Plan};
use crate::model::Slot;
use crate::state::View;

impl Plan {
    /// The batch cap that every policy respects: a free slot and tokens left in the budget.
    ///
    /// # Errors
    /// The hold that says which of the two is missing.
    #[inline]
    pub fn seat(&self, view: &View) -> Result<(), Hold> {
        let seats = view.limits().max_num_seqs;
        if self.residents >= seats {
            return Err(Hold::new(HoldReason::BatchCap, self.residents + 1, seats));
        }
        if self.tokens_left() == 0 {
            return Err(Hold::new(HoldReason::BatchCap, self.tokens() + 1, self.budget));
        }
        Ok(())
    }

    /// Most blocks that admitting this request would take, beyond those that others hold.
    #[inline(always)]
    pub fn own_blocks(&self, view: &View, slot: Slot) -> u32 {
        let (request, layout) = (view.request(slot), view.layout());
        let Some(prefixes) = &self.prefixes else { return request.own_blocks(layout) };
        if prefixes.has_groups() {
            return self.own_blocks_of_groups(view, slot);
        }
        match prefixes.hit(slot, request.prefill_target()) {
            Some(hit) => layout.demand(request.prefill_target()) - layout.filled(hit.shared) + request.encoder_blocks,
            None => request.own_blocks(layout),
        }
    }

    /// The least memory check of every policy: the part of the whole prompt that is not shared fits, and `spare` blocks
    /// stay free.
    ///
    /// # Errors
    /// The hold that says how many blocks are missing.
    #[inline(always)]
    pub fn fits(&self, view: &View, slot: Slot, spare: u32) -> Result<(), Hold> {
        let blocks = self.own_blocks(view, slot);
        if i64::from(blocks + spare) > self.free {
            return Err(Hold::new(HoldReason::NoBlocks, blocks + spare, self.free as f64));
        }
        Ok(())
    }

    /// Whether the cache would hold its whole prompt if it were otherwise empty. `Scheduler::add` has checked, but
    /// since then the capacity may have shrunk, or the output of a preempted request have grown.
    ///
    /// # Errors
    /// The hold that says how many blocks it takes, and how many there are.
    #[inline]
    pub fn fits_alone(&self, view: &View, slot: Slot) -> Result<(), Hold> {
        let (target, encoder_blocks) = (view.request(slot).prefill_target(), view.request(slot).encoder_blocks);
        if target <= view.largest() && encoder_blocks == 0 {
            return Ok(());
        }
        let (blocks, capacity) = (view.layout().demand(target).saturating_add(encoder_blocks), view.pool().capacity());
        if blocks > capacity { Err(Hold::new(HoldReason::TooLarge, blocks, capacity)) } else { Ok(()) }
    }

    /// As `fits`, leaving the configured watermark free; an idle engine ignores it, or a long request would wait forever.
    ///
    /// # Errors
    /// The hold that says how many blocks are missing.
    #[inline(always)]
    pub fn fits_above_watermark(&self, view: &View, slot: Slot) -> Result<(), Hold> {
        self.fits(view, slot, if self.residents == 0 { 0 } else { view.watermark_blocks() })
    }
}
