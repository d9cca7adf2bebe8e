//! Why a run ended early.

use wait_core::Error;

/// Why a run ended early.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SimError {
    /// A setting was refused.
    #[error(transparent)]
    Refused(#[from] Error),
    /// The caller's callback asked to stop.
    #[error("interrupted after {completed} of {offered} requests")]
    Interrupted {
        /// Requests completed.
        completed: usize,
        /// Requests offered.
        offered: usize,
    },
    /// Requests wait, nothing runs, and nothing will ever change: a policy's fault, never silent.
    #[error("policy stalled at {now_s:.3} s with {waiting} requests waiting and {resident} resident")]
    Stalled {
        /// Virtual time, s.
        now_s: f64,
        /// Requests outside the KV cache.
        waiting: u32,
        /// Requests in it.
        resident: u32,
    },
}
