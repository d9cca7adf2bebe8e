//! vLLM V1, what people run now.
//!
//! Running requests go first, in the order of their admission, as far as the token budget reaches: a decode takes one
//! token, a prefill what is left of its prompt. Out of blocks: preempt the request admitted last. In an iteration that
//! preempted nothing, admit first come first served while a seat, tokens and the blocks of the WHOLE prompt are free above
//! the watermark (which an idle engine ignores); only the blocks of the first chunk are taken.

use super::{Policy, admission};
use crate::model::Slot;
use crate::plan::Plan;
use crate::state::{Phase, View};

/// vLLM V1's scheduler.
#[derive(Clone, Debug)]
pub struct Vllm;

impl Policy for Vllm {
    fn reserves_prompts(&self) -> bool {
        false
    }

    fn plan(&mut self, view: &View, plan: &mut Plan) {
        plan.decode(view, 0);
        plan.make_room(view);
        share_budget(view, plan);
        plan.continue_prefills(view);
        if plan.preempted().is_empty() {
            admit_in_order(view, plan);
        }
    }
}

/// Lets the decodes stand for which those admitted before them leave no token, and those run again for which they do.
///
/// A prefill that does not fill the budget is the last of the residents, unless its chunks are cut short: so almost never
/// are there fewer tokens than the decodes and all chunks ask for, and nothing is to be done.
fn share_budget(view: &View, plan: &mut Plan) {
    let chunk = |slot: Slot| (view.request(slot).prefill_target() - view.kv(slot)).min(view.prefill_chunk());
    let asked = view.prefilling().iter().map(|&slot| chunk(slot)).fold(0, u32::saturating_add);
    let last = matches!(*view.prefilling(), [slot] if view.last_resident() == Some(slot));
    if view.parked().is_empty() && (last || asked <= plan.tokens_left()) {
        return;
    }
    let mut left = plan.token_budget();
    for slot in view.iter_residents().take(plan.residents() as usize) {
        match view.request(slot).phase {
            Phase::Prefilling => left -= chunk(slot).min(left),
            Phase::Decoding if left == 0 => plan.park(view, slot),
            Phase::Parked if left > 0 => {
                plan.unpark(view, slot, 0);
                left -= 1;
            }
            Phase::Decoding => left -= 1,
            Phase::Parked | Phase::Receiving | Phase::Waiting => {}
        }
    }
    plan.make_room(view);
}

/// Admits while a seat, tokens and the blocks of the whole prompt are free above the watermark.
pub(super) fn admit_in_order(view: &View, plan: &mut Plan) {
    admission::in_order(view, plan, admission::preempted_first(view), |plan, slot| {
        plan.seat(view)?;
        plan.fits_above_watermark(view, slot)?;
        plan.admit(view, slot, plan.tokens_left());
        Ok(())
    });
}
