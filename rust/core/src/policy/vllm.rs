//! vLLM V1, what people run now.
//!
//! Running requests go first: every decode one token, then unfinished prefills in the order of their admission, as far
//! as the token budget reaches. Out of blocks: preempt the request admitted last. In an iteration that preempted
//! nothing, admit first come first served while a seat, tokens and the blocks of the WHOLE prompt are free above the
//! watermark (which an idle engine ignores); only the blocks of the first chunk are taken.

use super::Policy;
use crate::model::Slot;
use crate::plan::{Hold, Plan};
use crate::state::View;

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
        plan.continue_prefills(view);
        if plan.preempted().is_empty() {
            admit_in_order(view, plan, |plan, slot| plan.fits_above_watermark(view, slot));
        }
    }
}

/// First come, first served, the preempted before all others: admits until a request does not pass `gate`, a seat or
/// the budget is missing; that hold is stated for all behind it.
pub(super) fn admit_in_order(view: &View, plan: &mut Plan, mut gate: impl FnMut(&Plan, Slot) -> Result<(), Hold>) {
    for queue in [view.queues(), 0] {
        for slot in view.iter_waiting(queue) {
            if let Err(hold) = plan.seat(view).and_then(|()| gate(plan, slot)) {
                plan.hold_queue(queue, hold);
                plan.hold_queue(0, hold);
                return;
            }
            plan.admit(view, slot, plan.tokens_left());
        }
    }
}
