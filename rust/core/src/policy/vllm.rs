//! vLLM V1, the default scheduler of vLLM.
//!
//! Running requests go first, in the order of their admission, as far as the token budget reaches: a decode takes one
//! token and its drafts, a prefill what is left of its prompt. Out of blocks: preempt the request admitted last. In an iteration that
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
        make_room_in_order(view, plan);
        plan.decode(view, 0);
        share_budget(view, plan);
        for &slot in view.prefilling() {
            plan.prefill(view, slot);
        }
        if plan.preempted().is_empty() {
            admit_in_order(view, plan);
        }
    }
}

/// Prompt tokens that a prefill computes if there are as many in the budget.
fn chunk(view: &View, slot: Slot) -> u32 {
    (view.request(slot).prefill_target() - view.kv(slot)).min(view.prefill_chunk())
}

/// Blocks that a running resident takes in this iteration if it computes all it can.
fn demand(view: &View, slot: Slot) -> i64 {
    match view.request(slot).phase {
        Phase::Prefilling => {
            let (layout, start) = (view.layout(), view.kv(slot));
            i64::from(layout.after(start, start + chunk(view, slot))) - i64::from(layout.after(start, start))
        }
        Phase::Decoding => view.next_blocks(slot),
        Phase::Parked | Phase::Receiving | Phase::Waiting => 0,
    }
}

/// Preempts until each resident finds its blocks at its turn. Where there is room for everything, no request is preempted;
/// where all have their tokens and none gives blocks back, it is enough to take from the total what the last would take.
fn make_room_in_order(view: &View, plan: &mut Plan) {
    let lane = &view.lanes()[0];
    let mut total = lane.blocks_taken() + view.prefilling().iter().map(|&slot| demand(view, slot)).sum::<i64>();
    if total <= plan.free() {
        return;
    }
    let decodes = lane.len().saturating_mul(view.limits().decode_tokens);
    let tokens = view.prefilling().iter().map(|&slot| chunk(view, slot)).fold(decodes, u32::saturating_add);
    let alike = view.layout().groups().is_empty() && view.parked().is_empty();
    if !alike || tokens > view.limits().token_budget {
        return preempt_in_order(view, plan);
    }
    while total > plan.free() {
        total -= plan.last_resident(view).map_or(0, |slot| demand(view, slot));
        if !plan.preempt_last(view) {
            return;
        }
    }
}

/// Blocks that a later resident frees outside its window come too late for those before it, and so do tokens.
#[cold]
fn preempt_in_order(view: &View, plan: &mut Plan) {
    let layout = view.layout();
    let (mut free, mut left) = (plan.free(), view.limits().token_budget);
    let drafts = view.limits().decode_tokens - 1;
    for slot in view.iter_residents() {
        let (tokens, ahead) = match view.request(slot).phase {
            Phase::Prefilling => (chunk(view, slot).min(left), 0),
            Phase::Decoding | Phase::Parked => (1.min(left), layout.lookahead()),
            Phase::Receiving | Phase::Waiting => (0, 0),
        };
        if tokens == 0 {
            continue;
        }
        left -= tokens;
        if ahead > 0 {
            left -= drafts.min(left);
        }
        let start = view.kv(slot);
        let kept = i64::from(layout.after(start, start + ahead));
        let taken = i64::from(layout.after(start, start + tokens + ahead)) - kept;
        free += i64::from(view.blocks(slot)) - kept - taken - plan.leave(view, slot);
        while free < 0 {
            let (before, last) = (plan.free(), plan.last_resident(view));
            if !plan.preempt_last(view) || last == Some(slot) {
                return;
            }
            free += plan.free() - before;
        }
        if plan.last_resident(view) == Some(slot) {
            return;
        }
    }
}

/// Stops the decodes for which those admitted before them leave no token, and resumes those for which they do.
///
/// A prefill that does not fill the budget is the last of the residents, unless its chunks are cut short: so there are
/// almost never fewer tokens than the decodes and all chunks need, and there is nothing to do.
fn share_budget(view: &View, plan: &mut Plan) {
    let asked = view.prefilling().iter().map(|&slot| chunk(view, slot)).fold(0, u32::saturating_add);
    let last = matches!(*view.prefilling(), [slot] if view.last_resident() == Some(slot));
    let enough = plan.tokens() <= view.limits().token_budget && (last || asked <= plan.tokens_left());
    if !(enough && view.parked().is_empty()) {
        share_budget_in_order(view, plan);
    }
}

#[cold]
fn share_budget_in_order(view: &View, plan: &mut Plan) {
    let mut left = view.limits().token_budget;
    // The last of them has fewer drafts verified, or none.
    let decode = view.limits().decode_tokens;
    for slot in view.iter_residents().take(plan.residents() as usize) {
        match view.request(slot).phase {
            Phase::Prefilling => left -= chunk(view, slot).min(left),
            Phase::Decoding if left == 0 => plan.park(view, slot),
            Phase::Parked if left > 0 => {
                plan.unpark(view, slot, 0);
                left -= decode.min(left);
            }
            Phase::Decoding => left -= decode.min(left),
            Phase::Parked | Phase::Receiving | Phase::Waiting => {}
        }
    }
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
