//! Why a request waits, with the number that limits it, or is refused.

use crate::model::{RequestId, Slot};

/// Why a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HoldReason {
    /// Its prompt needs more KV blocks than are free (above the watermark).
    NoBlocks,
    /// Its type or segment has fewer requests than the threshold, or the threshold's share is used up.
    BelowThreshold,
    /// The forecast of KV use plus the safety buffer exceeds the capacity.
    ForecastOverflow,
    /// Admission would break the target for time per output token.
    TpotTarget,
    /// It is too late for the target for the time to first token, and those in time go first.
    TtftTarget,
    /// Another tenant that waits was served less for its weight.
    TenantShare,
    /// `max_num_seqs` or the token budget of the iteration is reached.
    BatchCap,
    /// It is resident, and its segment is not served.
    PausedAtBoundary,
    /// It is resident, and its KV is on the way from elsewhere.
    KvTransfer,
    /// The engine is paused: no plan admits anything.
    EnginePaused,
}

impl HoldReason {
    /// All reasons, in the order of their counters.
    pub const ALL: [Self; 10] = [
        Self::NoBlocks,
        Self::BelowThreshold,
        Self::ForecastOverflow,
        Self::TpotTarget,
        Self::TtftTarget,
        Self::TenantShare,
        Self::BatchCap,
        Self::PausedAtBoundary,
        Self::KvTransfer,
        Self::EnginePaused,
    ];

    /// Its name in reports, logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoBlocks => "no_blocks",
            Self::BelowThreshold => "below_threshold",
            Self::ForecastOverflow => "forecast_overflow",
            Self::TpotTarget => "tpot_target",
            Self::TtftTarget => "ttft_target",
            Self::TenantShare => "tenant_share",
            Self::BatchCap => "batch_cap",
            Self::PausedAtBoundary => "paused_at_boundary",
            Self::KvTransfer => "kv_transfer",
            Self::EnginePaused => "engine_paused",
        }
    }
}

/// A hold: the reason, what the request would need, and the number that limits it, both in the reason's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hold {
    /// Why.
    pub reason: HoldReason,
    /// What it would take (blocks, requests, seconds).
    pub needs: f64,
    /// What there is.
    pub limit: f64,
}

impl Hold {
    /// A hold of the given reason.
    pub fn new(reason: HoldReason, needs: impl Into<f64>, limit: impl Into<f64>) -> Self {
        Self { reason, needs: needs.into(), limit: limit.into() }
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
