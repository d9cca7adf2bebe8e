//! The part of a prompt that one iteration computes.

use crate::model::{Hit, RequestId, Slot};

/// Where a prefill chunk comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The request is resident already.
    Resident,
    /// It is admitted by this plan.
    Admitted,
    /// It was preempted, and is admitted again by this plan.
    Resumed,
}

/// Prompt tokens of one request to compute in this iteration.
///
/// ```
/// use wait_core::{Config, Origin, Request, Scheduler};
///
/// let config = Config { kv_blocks: 1000, token_budget: 64, max_num_seqs: 64, ..Config::default() };
/// let mut scheduler = Scheduler::new(&config)?;
/// scheduler.add(&Request { id: 1, prompt: 100, ..Request::default() })?;
/// let first = scheduler.plan(0).chunks()[0];
/// assert_eq!((first.start, first.tokens, first.blocks, first.last), (0, 64, 4, false));
/// let second = scheduler.plan(0).chunks()[0];
/// assert_eq!((second.start, second.tokens, second.blocks, second.last), (64, 36, 7, true));
/// assert_eq!((first.origin, second.origin), (Origin::Admitted, Origin::Resident));
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The request.
    pub slot: Slot,
    /// Its id.
    pub id: RequestId,
    /// How much of an admitted request was in the cache.
    pub hit: Hit,
    /// Tokens computed before.
    pub start: u32,
    /// Tokens to compute now; at least 1, but none of a request whose KV is being transferred from elsewhere.
    pub tokens: u32,
    /// Blocks it holds from now on.
    pub blocks: u32,
    /// Whether the prompt is complete afterwards: the iteration then emits a token.
    pub last: bool,
    /// Whether it is new, resumed or resident.
    pub origin: Origin,
}
