//! Why a request waits, with the number that limits it, or is refused.

use crate::model::{RequestId, Slot};

/// Why a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HoldReason {
    /// Its prompt needs more KV blocks than are free (above the watermark).
    NoBlocks,
    /// Its prompt needs more KV blocks than the cache has, since the capacity has shrunk or its output has grown:
    /// requests behind it overtake it.
    TooLarge,
    /// Its type or segment has fewer requests than the threshold, or the threshold's share is used up.
    BelowThreshold,
    /// The forecast of KV use plus the safety buffer exceeds the capacity.
    ForecastOverflow,
    /// Admission would break the target for time per output token.
    TpotTarget,
    /// It can no longer meet the target for the time to first token, and requests in time go first.
    TtftTarget,
    /// Another waiting tenant was served less, relative to its weight.
    TenantShare,
    /// `max_num_seqs` or the token budget of the iteration is reached.
    BatchCap,
    /// Other requests go before it: `needs` counts them.
    HeadOfLine,
    /// It is resident, and its segment is not served.
    PausedAtBoundary,
    /// It is resident, and its KV is being transferred from elsewhere.
    KvTransfer,
    /// The last plan admitted it, and the host refused it.
    HostRefused,
    /// The engine is paused: no plan admits anything.
    EnginePaused,
}

impl HoldReason {
    /// All reasons, in the order of their counters.
    pub const ALL: [Self; 13] = [
        Self::NoBlocks,
        Self::TooLarge,
        Self::BelowThreshold,
        Self::ForecastOverflow,
        Self::TpotTarget,
        Self::TtftTarget,
        Self::TenantShare,
        Self::BatchCap,
        Self::HeadOfLine,
        Self::PausedAtBoundary,
        Self::KvTransfer,
        Self::HostRefused,
        Self::EnginePaused,
    ];

    /// Its name in reports, logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoBlocks => "no_blocks",
            Self::TooLarge => "too_large",
            Self::BelowThreshold => "below_threshold",
            Self::ForecastOverflow => "forecast_overflow",
            Self::TpotTarget => "tpot_target",
            Self::TtftTarget => "ttft_target",
            Self::TenantShare => "tenant_share",
            Self::BatchCap => "batch_cap",
            Self::HeadOfLine => "head_of_line",
            Self::PausedAtBoundary => "paused_at_boundary",
            Self::KvTransfer => "kv_transfer",
            Self::HostRefused => "host_refused",
            Self::EnginePaused => "engine_paused",
        }
    }
}

/// A hold: the reason, what the request would need, and the number that limits it, both in the reason's unit.
///
/// ```
/// use wait_core::{Config, HoldReason, Request, Scheduler};
///
/// let mut scheduler = Scheduler::new(&Config { kv_blocks: 1000, max_num_seqs: 1, ..Config::default() })?;
/// for id in 0..2 {
///     scheduler.add(&Request { id, prompt: 100, ..Request::default() })?;
/// }
/// scheduler.plan(0);
/// assert_eq!(scheduler.explain(0), None, "it runs");
/// let hold = scheduler.explain(1).unwrap();
/// assert_eq!((hold.reason, hold.needs, hold.limit), (HoldReason::BatchCap, 2.0, 1.0));
/// assert_eq!(hold.reason.name(), "batch_cap");
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hold {
    /// Why.
    pub reason: HoldReason,
    /// What the request needs (blocks, requests, seconds).
    pub needs: f64,
    /// What is available; at least 0.
    pub limit: f64,
}

impl Hold {
    /// A hold of the given reason. A count of what is left may be temporarily below 0: nothing is left then.
    pub fn new(reason: HoldReason, needs: impl Into<f64>, limit: impl Into<f64>) -> Self {
        Self { reason, needs: needs.into(), limit: limit.into().max(0.0) }
    }
}

/// A waiting request that the policy refuses: it leaves the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The request.
    pub slot: Slot,
    /// Its id.
    pub id: RequestId,
    /// Why.
    pub reason: HoldReason,
    /// How long it would have waited for its first token since its arrival, ns.
    pub predicted_wait_ns: u64,
}
