//! vLLM V1, what people run now.
//!
//! Running requests go first: every decode one token, then unfinished prefills in the order of their admission, as far
//! as the token budget reaches. Out of blocks: preempt the request admitted last. In an iteration that preempted
//! nothing, admit first come first served while a seat, tokens and the blocks of the WHOLE prompt are free above the
//! watermark (which an idle engine ignores); only the blocks of the first chunk are taken.

use super::{Policy, admission};
use crate::plan::Plan;
use crate::state::View;

/// vLLM V1's scheduler.
#[derive(Clone, Debug)]
pub struct Vllm;

impl Policy for Vllm {
    fn plan(&mut self, view: &View, plan: &mut Plan) {
        plan.decode(view, 0);
        plan.make_room(view);
        plan.continue_prefills(view);
        if plan.preempted().is_empty() {
            admit_in_order(view, plan, false);
        }
    }
}

/// Admits while a seat, tokens and the blocks of the whole prompt are free above the watermark. `reserve` as in
/// `Plan::admit`.
pub(super) fn admit_in_order(view: &View, plan: &mut Plan, reserve: bool) {
    admission::in_order(view, plan, admission::preempted_first(view), |plan, slot| {
        plan.seat(view)?;
        plan.fits_above_watermark(view, slot)?;
        plan.admit(view, slot, plan.tokens_left(), reserve);
        Ok(())
    });
}
