//! vLLM's walk over the running requests where blocks are short: each is given its tokens and blocks at its turn, and
//! others are preempted until there are enough.
//!
//! A victim gives back what it was given, its tokens too, and the requests after one that preempts itself have no turn.

use super::chunk;
use crate::model::Slot;
use crate::plan::Plan;
use crate::state::{Phase, View};

/// What a resident was given at its turn.
#[derive(Clone, Copy, Debug)]
struct Turn {
    slot: Slot,
    tokens: u32,
    /// What it takes of the token budget: its tokens and its drafts.
    budget: u32,
    /// Blocks that it gave back, less those that it took.
    freed: i64,
}

/// The turns of an iteration; empty between iterations, and kept so that none allocates.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns(Vec<Turn>);

impl Turns {
    /// Plans what the residents compute, and which of them are preempted.
    #[cold]
    pub(super) fn plan(&mut self, view: &View, plan: &mut Plan) {
        self.walk(view, plan);
        let mut turns = self.0.iter().peekable();
        for slot in view.iter_residents() {
            let runs = turns.next_if(|turn| turn.slot == slot).is_some();
            if !runs && view.request(slot).phase == Phase::Decoding && !plan.preempts(slot) {
                plan.park(view, slot);
            }
        }
        plan.decode(view, 0);
        for Turn { slot, tokens, .. } in self.0.drain(..) {
            match view.request(slot).phase {
                Phase::Prefilling => plan.prefill(view, slot, tokens),
                Phase::Parked => plan.unpark(view, slot, 0),
                Phase::Decoding | Phase::Receiving | Phase::Waiting => {}
            }
        }
    }

    /// Blocks that a later resident frees outside its window come too late for those before it, and so do tokens.
    fn walk(&mut self, view: &View, plan: &mut Plan) {
        let (layout, drafts) = (view.layout(), view.limits().decode_tokens - 1);
        let (mut free, mut left) = (plan.free(), view.limits().token_budget);
        for slot in view.iter_residents() {
            let (tokens, drafts, ahead) = match view.request(slot).phase {
                Phase::Prefilling => (chunk(view, slot).min(left), 0, 0),
                Phase::Decoding | Phase::Parked => (1.min(left), drafts, layout.lookahead()),
                Phase::Receiving | Phase::Waiting => (0, 0, 0),
            };
            if tokens == 0 || plan.preempts(slot) {
                continue;
            }
            let start = view.kv(slot);
            let kept = i64::from(layout.after(start, start + ahead));
            let taken = i64::from(layout.after(start, start + tokens + ahead)) - kept;
            let freed = i64::from(view.blocks(slot)) - kept - taken - plan.leave(view, slot);
            let budget = tokens + drafts.min(left - tokens);
            free += freed;
            while free < 0 {
                let Some(victim) = plan.victim(view) else { return };
                let before = plan.free();
                plan.preempt(view, victim);
                if victim == slot {
                    return;
                }
                free += plan.free() - before;
                if let Some(at) = self.0.iter().position(|turn| turn.slot == victim) {
                    let turn = self.0.remove(at);
                    free -= turn.freed;
                    left += turn.budget;
                }
            }
            left -= budget;
            self.0.push(Turn { slot, tokens, budget, freed });
        }
    }
}
