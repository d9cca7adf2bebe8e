//! What the configuration allows an iteration and the engine.

use super::View;
use crate::config::{Config, MAX_COUNT};

/// Limits of one iteration and of the engine, from the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most resident requests (running, prefilling and paused).
    pub max_num_seqs: u32,
    /// Most tokens in one iteration, decodes and prefill chunks together.
    pub token_budget: u32,
    /// Tokens of the budget that a decode takes: its own, and the drafts that it verifies.
    pub decode_tokens: u32,
    /// Most prompt tokens of one request in one iteration, while others are present.
    pub(super) prefill_chunk: u32,
    /// The scheduler keeps the prefix cache.
    pub caches_prefixes: bool,
    /// An admission takes the blocks of the whole prompt, not only those of its first chunk.
    pub reserves_prompts: bool,
    /// The host preempts by itself and reports it: plans never preempt.
    pub host_preempts: bool,
    /// Share of the blocks that admission leaves free.
    watermark: f64,
    /// Most tokens of prompt and output together, if set.
    max_model_len: Option<u32>,
}

impl Limits {
    pub(super) fn new(config: &Config, reserves_prompts: bool) -> Self {
        Self {
            max_num_seqs: config.max_num_seqs,
            token_budget: config.token_budget,
            decode_tokens: 1 + config.num_speculative_tokens,
            prefill_chunk: config.long_prefill_token_threshold.unwrap_or(u32::MAX),
            caches_prefixes: config.prefix_caching,
            reserves_prompts,
            host_preempts: config.host_preempts,
            watermark: config.watermark,
            max_model_len: config.max_model_len,
        }
    }
}

/// The limits that follow from the capacity, which may change.
impl View {
    /// Most prompt tokens of one request in one iteration. A long prompt is cut so that it does not starve other
    /// requests; one that is alone need not be (vLLM's rule for `long_prefill_token_threshold`).
    pub fn prefill_chunk(&self) -> u32 {
        if self.len() > 1 { self.limits.prefill_chunk } else { u32::MAX }
    }

    /// Blocks that admission leaves free.
    pub fn watermark_blocks(&self) -> u32 {
        (self.limits.watermark * f64::from(self.pool.capacity())) as u32
    }

    /// Most tokens of prompt and output together: what the KV cache holds, or the length that was set where that is less.
    pub fn max_model_len(&self) -> u32 {
        self.limits.max_model_len.map_or(self.largest, |length| length.min(self.largest))
    }

    /// Most tokens that any request present may have: accepted requests keep their length when the capacity shrinks.
    pub(crate) fn longest(&self) -> u32 {
        self.limits.max_model_len.unwrap_or(self.ever_largest)
    }

    /// Most tokens of a request that runs alone.
    pub fn largest(&self) -> u32 {
        self.largest
    }

    /// The same of one that holds this many blocks beside those of its tokens.
    pub(crate) fn largest_beside(&self, blocks: u32) -> u32 {
        match blocks {
            0 => self.largest,
            _ => self.layout.largest(self.pool.capacity().saturating_sub(blocks), MAX_COUNT),
        }
    }
}
