//! Sarathi-Serve: chunked prefills piggyback on decodes, as Vidur models it; the paper's second baseline.
//!
//! One token budget for the whole batch, the chunk size (`token_budget`, 512 in the paper). Decodes first, one token
//! each; then unfinished prefills, then new requests first come first served, each as far as the budget reaches. The
//! blocks of the whole prompt are reserved at admission, which leaves the watermark of the blocks free. Out of blocks,
//! the latest arrival goes back to the front of the queue and keeps its tokens, to be recomputed.

use super::Policy;
use super::prefill_first::decode_all;
use super::vllm::admit_in_order;
use crate::plan::Plan;
use crate::state::View;

/// Vidur's `sarathi` scheduler.
#[derive(Clone, Debug)]
pub struct Sarathi;

impl Policy for Sarathi {
    fn plan(&mut self, view: &View, plan: &mut Plan) {
        decode_all(view, plan);
        plan.continue_prefills(view);
        // After a preemption the victim is first in the queue, and needs more than it has just released.
        if plan.preempted().is_empty() {
            admit_in_order(view, plan);
        }
    }
}
