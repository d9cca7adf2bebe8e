//! Where a request is: `Waiting → Prefilling → Decoding → gone`.
//!
//! With two side paths: a `Parked` request keeps its KV and waits for its lane (Nested WAIT's boundary queue), a preempted
//! one is `Waiting` again, before all others or before its equals.

use super::linked_list::Link;
use crate::memory::KvLayout;
use crate::model::{Hit, LengthHint, RequestId};

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Outside the KV cache, in a queue.
    Waiting,
    /// In the KV cache, its prompt not yet fully computed.
    Prefilling,
    /// Member of a lane: one token each time the lane steps.
    Decoding,
    /// In the KV cache but in no lane: paused between two segments.
    Parked,
    /// Holds memory for KV that is being transferred from elsewhere, and computes nothing.
    Receiving,
}

/// A request as the core tracks it. Policies read it, only the scheduler writes it.
#[derive(Clone, Debug)]
pub struct Tracked {
    /// The host's id for it.
    pub id: RequestId,
    /// Arrival, ns.
    pub arrival_ns: u64,
    /// While decoding: the lane's tick minus the KV tokens held, constant between two reports (see `Lane`).
    pub(crate) base: i64,
    /// Prompt length, tokens.
    pub prompt: u32,
    /// Most output tokens, resolved against the model's limit.
    pub max_tokens: u32,
    /// What is known of the output length.
    pub output: LengthHint,
    /// Output tokens it had when it was last admitted; recomputed as prompt after a preemption.
    pub kept: u32,
    /// Tokens in the KV cache; while decoding, those it joined its lane with.
    pub(crate) computed: u32,
    /// KV blocks held for its tokens; while decoding, those it joined its lane with.
    pub(crate) blocks: u32,
    /// KV blocks that it holds beside those while it is resident, for what its encoder has read.
    pub encoder_blocks: u32,
    pub(crate) link: Link,
    /// Number of the plan that admitted it last.
    pub(crate) admitted: u32,
    /// Its place in the queue: lower goes first, first come first served among equals.
    pub(crate) rank: i64,
    /// How much of the prompt was in the KV cache when it was last admitted, or is while it waits.
    pub hit: Hit,
    /// Type or class, 0 where the policy knows only one.
    pub type_id: u16,
    /// Waiting queue that it is, or was, in, unless preempted.
    pub(crate) queue: u16,
    /// Lane, while decoding.
    pub lane: u16,
    /// Whether its KV has yet to arrive from elsewhere.
    pub receives: bool,
    /// Times it was preempted (saturating).
    pub preemptions: u16,
    /// Where it is.
    pub phase: Phase,
}

impl Tracked {
    /// Tokens that a prefill must compute before the next output token: the prompt, and the output kept so far.
    pub fn prefill_target(&self) -> u32 {
        self.prompt + self.kept
    }

    /// Waiting queue that it is in, or was in before it was admitted, unless it was preempted.
    pub fn queue(&self) -> u16 {
        self.queue
    }

    /// Its place in its queue: lower goes first, first come, first served among equals.
    pub fn rank(&self) -> i64 {
        self.rank
    }

    /// Tokens of it that need not be computed; at least one token is left.
    pub fn computed_on_admission(&self) -> u32 {
        self.hit.computed.min(self.prefill_target() - 1)
    }

    /// Blocks that this prefill takes at most, beside those that are shared; behind a hit it begins with copies of states.
    #[inline(always)]
    pub fn own_blocks(&self, layout: &KvLayout) -> u32 {
        let target = self.prefill_target();
        let blocks = if self.hit.computed > 0 { layout.prefill(target) } else { layout.demand(target) };
        blocks.saturating_sub(self.shared_blocks(layout)).saturating_add(self.encoder_blocks)
    }

    /// What it holds beside its tokens, in tokens of the first group.
    pub fn encoder_tokens(&self, layout: &KvLayout) -> u32 {
        self.encoder_blocks.saturating_mul(layout.block_size())
    }

    /// Blocks that are shared.
    pub fn shared_blocks(&self, layout: &KvLayout) -> u32 {
        layout.filled(self.hit.shared)
    }
}
