//! Requests, and where each of them is.
//!
//! `Waiting → Prefilling → Decoding → gone`, with two side paths: a `Parked` request keeps its KV and waits for its
//! lane (Nested WAIT's boundary queue), a preempted one is `Waiting` again, first in the queue.

/// A request's id, chosen by the host and unique among the requests that have not left.
pub type RequestId = u64;

/// Place of a request in the core's table; valid until the request leaves.
pub type Slot = u32;

/// What a policy may know of an output length before it ends, in tokens.
///
/// ```
/// use wait_core::LengthHint;
///
/// assert_eq!(LengthHint::Exact(200).exact(), Some(200));
/// // A predictor that is off by a factor of e^0.5 ≈ 1.6 in one standard deviation.
/// assert_eq!(LengthHint::Predicted { tokens: 200, log_error: 0.5 }.exact(), None);
/// assert_eq!(LengthHint::default(), LengthHint::Unknown);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum LengthHint {
    /// Nothing: the ordinary case of Nested WAIT and `adaptive`.
    #[default]
    Unknown,
    /// The true length: WAIT's assumption, and what `ignore_eos` with `max_tokens` gives.
    Exact(u32),
    /// A prediction, with the standard deviation of its natural logarithm (0 = trusted fully).
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

/// What of a prompt need not be computed: a prefix cache hit, or KV that is transferred from elsewhere.
///
/// ```
/// use wait_core::{Config, Hit, Report, Request, Scheduler};
///
/// let mut scheduler = Scheduler::new(&Config { kv_blocks: 1000, ..Config::default() })?;
/// scheduler.add(&Request { id: 1, prompt: 100, ..Request::default() })?;
/// // Before it is admitted the host finds 64 of its tokens in the prefix cache, in blocks that no resident holds.
/// scheduler.complete(&Report { hits: &[(1, Hit { computed: 64, shared: 0, evicted: 0 })], ..Report::default() })?;
/// let chunk = scheduler.plan(0).chunks()[0];
/// assert_eq!((chunk.start, chunk.tokens), (64, 36));
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hit {
    /// Prompt tokens whose KV is computed; at least one token is left to compute.
    pub computed: u32,
    /// Those of them in blocks that residents hold: they take no new block. Respected while the host reports its free
    /// blocks; otherwise all of them are charged.
    pub shared: u32,
    /// Tokens behind these that were computed for an earlier request and have been evicted since: with more memory they
    /// would be `computed`. No request is served differently for it; `adaptive` learns what memory is short of.
    pub evicted: u32,
}

/// A request as the host declares it.
///
/// ```
/// use wait_core::{Config, Error, LengthHint, Request, Scheduler};
///
/// let mut scheduler = Scheduler::new(&Config { kv_blocks: 10, ..Config::default() })?;
/// // A prompt of 100 tokens and an output of 30 whatever is generated (`ignore_eos`), 5 s after the clock began.
/// let request = Request {
///     id: 1,
///     prompt: 100,
///     max_tokens: Some(30),
///     output: LengthHint::Exact(30),
///     arrival_ns: 5_000_000_000,
///     ..Request::default()
/// };
/// scheduler.add(&request)?;
/// // 160 tokens fit the cache, so a prompt of 160 leaves no room for an output.
/// let refused = scheduler.add(&Request { id: 2, prompt: 160, ..Request::default() });
/// assert!(matches!(refused, Err(Error::TooLarge { id: 2, needs: 161, limit: 160, .. })));
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// Id, unique among the requests present.
    pub id: RequestId,
    /// Prompt length, tokens; at least 1.
    pub prompt: u32,
    /// Most output tokens; absent means up to the model's limit, never zero.
    pub max_tokens: Option<u32>,
    /// What is known of the output length.
    pub output: LengthHint,
    /// Type (WAIT) or class label (`adaptive`); absent: the policy classifies by lengths, or ignores it.
    pub type_id: Option<u16>,
    /// Lower goes first where the policy uses it: under `vllm` strictly, under `adaptive` a level counts as `ageing` seconds
    /// of waiting.
    pub priority: i64,
    /// Tenant, an index of `tenant_weights`.
    pub tenant: u16,
    /// What of the prompt is in the KV cache already. A report may change it while the request waits.
    pub hit: Hit,
    /// One for each full block of the prompt, and of the output as far as it is known in advance, each identifying all
    /// tokens up to there; with `prefix_caching` the core itself knows what is cached, and ignores `hit`.
    pub block_hashes: Vec<u64>,
    /// Its KV is being transferred from elsewhere: once admitted it holds memory for `hit.computed` tokens and computes
    /// nothing until the host reports the KV received.
    pub receives: bool,
    /// KV blocks that it holds from its admission to its end beside those of its tokens: those of the input that its encoder
    /// has read, in a model with cross-attention.
    pub encoder_blocks: u32,
    /// Arrival, ns on the host's clock. An arrival after the next plan's clock does not move the clock: the request is
    /// of age 0.
    pub arrival_ns: u64,
    /// Longest acceptable wait for admission, ns; `add` refuses the request if the predicted wait is longer.
    pub max_wait_ns: Option<u64>,
}
