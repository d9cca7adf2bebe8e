//! What the configuration allows an iteration and the engine.

use crate::config::Config;

/// Limits of one iteration and of the engine, from the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most resident requests (running, prefilling and paused).
    pub max_num_seqs: u32,
    /// Most tokens in one iteration, decodes and prefill chunks together.
    pub token_budget: u32,
    /// Most prompt tokens of one request in one iteration.
    pub prefill_chunk: u32,
    /// Blocks that admission leaves free.
    pub watermark_blocks: u32,
    /// Most tokens of prompt and output together.
    pub max_model_len: u32,
    /// The scheduler keeps the prefix cache.
    pub caches_prefixes: bool,
    /// An admission takes the blocks of the whole prompt, not only those of its first chunk.
    pub reserves_prompts: bool,
    /// The host evicts by itself and reports it: plans never preempt.
    pub host_preempts: bool,
}

impl Limits {
    pub(super) fn new(config: &Config, reserves_prompts: bool) -> Self {
        Self {
            max_num_seqs: config.max_num_seqs,
            token_budget: config.token_budget,
            prefill_chunk: config.long_prefill_token_threshold.unwrap_or(u32::MAX),
            watermark_blocks: config.watermark_blocks(),
            max_model_len: config.model_len(),
            caches_prefixes: config.prefix_caching,
            reserves_prompts,
            host_preempts: config.host_preempts,
        }
    }
}
