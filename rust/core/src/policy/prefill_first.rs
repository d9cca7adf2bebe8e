//! Prefill first: vLLM before chunked prefill, as Vidur models it; the paper's baseline "vLLM".
//!
//! Admit first come first served while the whole prompt leaves the watermark of the blocks free and a slot is free, as
//! long as (requests · longest prompt) stays within the token budget. If anything is admitted, the batch is prefill only
//! and decodes stall. Otherwise all running requests decode, in the order of arrival; out of blocks, the latest arrival
//! goes back to the front of the queue and keeps its tokens, to be recomputed.
//! A prompt longer than the budget, which Vidur's rule would never admit, goes alone.

use super::{Policy, admission};
use crate::model::Slot;
use crate::plan::{Hold, HoldReason, Plan};
use crate::state::{Phase, View};

/// Vidur's `vllm` scheduler.
#[derive(Clone, Debug)]
pub struct PrefillFirst;

impl Policy for PrefillFirst {
    fn plan(&mut self, view: &View, plan: &mut Plan) {
        let mut longest = 0;
        admission::in_order(view, plan, admission::preempted_first(view), |plan, slot| {
            let prompt = view.request(slot).prefill_target();
            longest = longest.max(prompt);
            seat(view, plan, longest)?;
            plan.fits_above_watermark(view, slot)?;
            plan.admit(view, slot, prompt);
            Ok(())
        });
        if plan.is_idle() {
            decode_all(view, plan);
            // The host may have cut a prompt into chunks.
            plan.continue_prefills(view);
        }
    }
}

/// A free slot, and room for one more in a batch that is padded to its longest prompt.
fn seat(view: &View, plan: &Plan, longest: u32) -> Result<(), Hold> {
    let (seats, budget) = (view.limits().max_num_seqs, plan.token_budget());
    if plan.residents() >= seats {
        return Err(Hold::new(HoldReason::BatchCap, plan.residents() + 1, seats));
    }
    let padded = (plan.chunks().len() as u64 + 1) * u64::from(longest);
    if padded > u64::from(budget) && !plan.chunks().is_empty() {
        return Err(Hold::new(HoldReason::BatchCap, padded as f64, budget));
    }
    Ok(())
}

/// Vidur's decode step: in the order of arrival every request must find a free block, whether it needs one or not; if
/// there is none, the latest arrival is preempted. The last request decides: those before it need no more than it
/// finds.
pub(super) fn decode_all(view: &View, plan: &mut Plan) {
    plan.decode(view, 0);
    while let Some(last) = last_decoding(view, plan) {
        let spare = i64::from(plan.residents() > 1 && view.next_blocks(last) <= 0);
        if plan.free() >= spare || !plan.preempt_last(view) {
            break;
        }
    }
}

fn last_decoding(view: &View, plan: &Plan) -> Option<Slot> {
    let mut last = plan.victim(view);
    while let Some(slot) = last.filter(|&slot| view.request(slot).phase != Phase::Decoding) {
        last = view.resident_before(slot);
    }
    last
}
