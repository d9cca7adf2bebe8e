//! Requests, and where each of them is.
//!
//! `Waiting → Prefilling → Decoding → gone`, with two ways aside: a `Parked` request keeps its KV and waits for its
//! lane (Nested WAIT's boundary queue), a preempted one is `Waiting` again, first in line.

use crate::list::Link;
use crate::memory::BlockPool;

/// A request's name, chosen by the host and unique among the requests it has not yet seen leave.
pub type RequestId = u64;

/// Place of a request in the core's table; valid until the request leaves.
pub type Slot = u32;

/// What a policy may know of an output length before it ends, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum LengthHint {
    /// Nothing: Nested WAIT's and `adaptive`'s ordinary case.
    #[default]
    Unknown,
    /// The true length: WAIT's assumption, and what `ignore_eos` with `max_tokens` gives.
    Exact(u32),
    /// A guess, with the standard deviation of its natural logarithm (0 = trusted fully).
    Predicted {
        /// Expected output tokens.
        tokens: u32,
        /// Standard deviation of ln(true / predicted).
        log_error: f32,
    },
}

impl LengthHint {
    /// The length, if it is known exactly.
    pub fn exact(self) -> Option<u32> {
        match self {
            Self::Exact(tokens) => Some(tokens),
            _ => None,
        }
    }
}

/// A request as the host declares it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// Name, unique among the requests present.
    pub id: RequestId,
    /// Prompt length, tokens; at least 1.
    pub prompt: u32,
    /// Most output tokens; absent means up to the model's limit, never zero.
    pub max_tokens: Option<u32>,
    /// What is known of the output length.
    pub output: LengthHint,
    /// Type (WAIT) or class label (`adaptive`); absent: the policy classifies by lengths, or does not care.
    pub type_id: Option<u16>,
    /// Lower goes first where the policy heeds it (`adaptive`): a level counts as `ageing` seconds of waiting.
    pub priority: i64,
    /// Tenant, an index of `tenant_weights`.
    pub tenant: u16,
    /// Tokens of the prompt whose KV blocks other residents hold (a prefix cache hit): they are neither computed nor
    /// charged again. While the request waits, a report may change it.
    pub shared_prefix: u32,
    /// Arrival, ns on the host's clock.
    pub arrival_ns: u64,
    /// Longest time it may be expected to wait for its admission, ns; `add` refuses it if the prediction is longer.
    pub max_wait_ns: Option<u64>,
}

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
}

/// A request as the core tracks it. Policies read it, only the scheduler writes it.
#[derive(Clone, Debug)]
pub struct Tracked {
    /// The host's name for it.
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
    /// Tokens in the KV cache, unless decoding.
    pub(crate) computed: u32,
    /// KV blocks held, unless decoding.
    pub(crate) blocks: u32,
    pub(crate) link: Link,
    /// Its place in line: lower goes first, first come first served among equals.
    pub(crate) rank: i64,
    /// Prompt tokens whose blocks are shared with a resident prefix.
    pub shared_prefix: u32,
    /// Type or class, 0 where the policy knows only one.
    pub type_id: u16,
    /// Waiting line in which it stands, or stood, unless preempted.
    pub(crate) line: u16,
    /// Lane, while decoding.
    pub lane: u16,
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

    /// Waiting line in which it stands, or stood before it was admitted, unless it was preempted.
    pub fn line(&self) -> u16 {
        self.line
    }

    /// Blocks that this prefill takes beside those that are shared.
    pub fn own_blocks(&self, pool: &BlockPool) -> u32 {
        pool.blocks_for(self.prefill_target()) - self.shared_blocks(pool)
    }

    /// Blocks that are shared.
    pub fn shared_blocks(&self, pool: &BlockPool) -> u32 {
        self.shared_prefix / pool.block_size()
    }
}
