//! vLLM V1, the default scheduler of vLLM.
//!
//! Running requests go first, in the order of their admission, as far as the token budget reaches: a decode takes one
//! token and its drafts, a prefill what is left of its prompt. Out of blocks: preempt the request of the lowest priority,
//! among equals the one admitted last. In an iteration that preempted nothing, admit by priority, first come, first served
//! among equals, while a seat, tokens and the blocks of the WHOLE prompt are free above the watermark (which an idle engine
//! ignores); only the blocks of the first chunk are taken.
//!
//! This covers both of vLLM's scheduling policies: `priority` orders by (priority, arrival), and where no request has a
//! priority that is `fcfs`. Among equals, running requests arrived before waiting ones and were admitted in that order.

use self::turns::Turns;
use super::{Policy, admission};
use crate::model::{Request, Slot};
use crate::plan::{Hold, Plan};
use crate::state::{Phase, View};

mod turns;

/// vLLM V1's scheduler.
#[derive(Clone, Debug, Default)]
pub struct Vllm {
    turns: Turns,
}

impl Policy for Vllm {
    fn reserves_prompts(&self) -> bool {
        false
    }

    fn resumes_by_rank(&self) -> bool {
        true
    }

    fn rank(&self, _view: &View, request: &Request, _max_tokens: u32) -> i64 {
        request.priority
    }

    fn plan(&mut self, view: &View, plan: &mut Plan) {
        let demands = |slots: &[Slot]| slots.iter().map(|&slot| demand(view, slot).max(0)).sum::<i64>();
        let mut taken = view.lanes()[0].blocks_taken() + demands(view.prefilling());
        if !view.parked().is_empty() {
            taken += demands(view.parked());
        }
        if taken > plan.free() && !view.limits().host_preempts && !preempt_last(view, plan, taken) {
            self.turns.plan(view, plan);
        } else {
            plan.decode(view, 0);
            share_budget(view, plan);
            for &slot in view.prefilling() {
                plan.prefill(view, slot, u32::MAX);
            }
        }
        if plan.preempted().is_empty() {
            if view.ranks() && view.resuming() > 0 {
                admit_by_rank(view, plan);
            } else {
                admit_in_order(view, plan);
            }
        }
    }
}

/// Where the token budget is enough for all, none gives blocks back and the victims are those admitted last, no turns are
/// needed: each victim reduces `taken`, the blocks that all residents take, by its own. Returns false, and preempts nothing,
/// where any of this does not hold.
fn preempt_last(view: &View, plan: &mut Plan, mut taken: i64) -> bool {
    let decodes = view.lanes()[0].len().saturating_mul(view.limits().decode_tokens);
    let tokens = view.prefilling().iter().map(|&slot| chunk(view, slot)).fold(decodes, u32::saturating_add);
    let alike = view.layout().groups().is_empty() && view.parked().is_empty() && !view.ranks();
    if !alike || tokens > view.limits().token_budget {
        return false;
    }
    while taken > plan.free() {
        taken -= plan.victim(view).map_or(0, |slot| demand(view, slot));
        if !plan.preempt_last(view) {
            break;
        }
    }
    true
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
        Phase::Decoding | Phase::Parked => view.next_blocks(slot),
        Phase::Receiving | Phase::Waiting => 0,
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

/// Admits first come, first served while a seat, tokens and the blocks of the whole prompt are free above the watermark.
pub(super) fn admit_in_order(view: &View, plan: &mut Plan) {
    admission::in_order(view, plan, admission::preempted_first(view), |plan, slot| admit(view, plan, slot));
}

#[cold]
fn admit_by_rank(view: &View, plan: &mut Plan) {
    admission::by_rank(view, plan, |plan, slot| admit(view, plan, slot));
}

#[inline(always)]
fn admit(view: &View, plan: &mut Plan, slot: Slot) -> Result<(), Hold> {
    plan.seat(view)?;
    plan.fits_above_watermark(view, slot)?;
    plan.admit(view, slot, plan.tokens_left());
    Ok(())
}
