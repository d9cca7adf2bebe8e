//! What a replica is, and what it reports about itself.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::IterationTime;

/// What a replica is.
#[derive(Clone, Debug, PartialEq)]
pub struct Replica {
    /// Name of the model it serves: that of all replicas of a router.
    pub model: String,
    /// Usable KV blocks.
    pub kv_blocks: u32,
    /// Tokens of a block.
    pub block_size: u32,
    /// Most requests in an iteration.
    pub max_num_seqs: u32,
    /// Most tokens in an iteration.
    pub token_budget: u32,
    /// How long its iterations take, given or learned; without it no times are predicted for the replica.
    pub iteration_time: Option<IterationTime>,
    /// The TTFT target, s, by which it orders its own queue and sets late requests aside: requests are better ordered
    /// in its queue than at the door, so none is held at the door for its sake.
    pub ttft_target: Option<f64>,
    /// Requests come to it with the KV of their prompts, as to the decode replicas of disaggregated serving: that takes
    /// memory, and no time to compute.
    pub receives: bool,
}

impl Default for Replica {
    /// A scheduler's defaults. `kv_blocks` is 0, which is refused: it must be given.
    fn default() -> Self {
        Self {
            model: String::new(),
            kv_blocks: 0,
            block_size: 16,
            max_num_seqs: 256,
            token_budget: 2048,
            iteration_time: None,
            ttft_target: None,
            receives: false,
        }
    }
}

impl Replica {
    pub(super) fn validate(&self) -> Result<()> {
        let sizes = [
            ("kv_blocks", self.kv_blocks),
            ("block_size", self.block_size),
            ("max_num_seqs", self.max_num_seqs),
            ("token_budget", self.token_budget),
        ];
        match sizes.into_iter().find(|&(_, size)| size == 0) {
            Some((name, _)) => Err(Error::invalid(name, 0, "must be at least 1")),
            None => Ok(()),
        }
    }

    /// Of a prompt of which so many tokens are cached there, the tokens that it has to compute: at least one.
    pub(super) fn uncomputed(&self, prompt: u32, cached: u32) -> u32 {
        if self.receives { 1 } else { prompt - cached.min(prompt - 1) }
    }

    /// Tokens that its KV cache holds.
    pub(super) fn tokens(&self) -> f64 {
        f64::from(self.kv_blocks) * f64::from(self.block_size)
    }
}

/// What a replica reports about itself: a dozen numbers, given by [`crate::Scheduler::load`]. Any host may fill in
/// those that it knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Load {
    /// Requests outside the KV cache.
    pub waiting: u32,
    /// Requests in it.
    pub residents: u32,
    /// Tokens that the waiting requests would prefill.
    pub waiting_tokens: u64,
    /// Tokens that the residents have still to prefill.
    pub prefill_tokens: u64,
    /// KV tokens that the residents hold.
    pub kv_tokens: u64,
    /// Free KV blocks.
    pub free_blocks: u32,
    /// Mean time between two admissions while a request waited, ns; 0 if none has waited.
    pub admission_gap_ns: u64,
    /// Most KV tokens that the residents are expected to hold, if none is admitted after them; absent where the policy
    /// forecasts nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_peak: Option<f64>,
    /// Standard deviation of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_deviation: Option<f64>,
    /// Mean learned output length, tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_output: Option<f64>,
}

impl Load {
    pub(super) fn validate(&self) -> Result<()> {
        let figures =
            [("kv_peak", self.kv_peak), ("kv_deviation", self.kv_deviation), ("mean_output", self.mean_output)];
        for (name, value) in figures {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value >= 0.0)) {
                return Err(Error::invalid(name, value, "must be finite and at least 0"));
            }
        }
        Ok(())
    }
}
