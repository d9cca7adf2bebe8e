//! The record of a run, as written by `recorder`; everything else is derived in `report`.

use serde::{Deserialize, Serialize};
use wait_core::policy::LearnedLaw;
use wait_core::{HoldReason, Stats};

/// Time of an event that has not happened.
pub const NEVER_NS: u64 = u64::MAX;

/// Everything recorded of one run; one entry a request in the columns, in the order in which they were offered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// When the client sent each request, ns; `NEVER_NS` where it followed one that was refused, or a run ended before.
    pub arrival_ns: Vec<u64>,
    /// Each request's predicted wait for admission, ns.
    pub predicted_wait_ns: Vec<u64>,
    /// Prompt lengths, tokens; shorter than offered where they hold outputs that `max_tokens` has cut.
    pub prompt: Vec<u32>,
    /// Output lengths, tokens; at most `max_tokens`.
    pub output: Vec<u32>,
    /// Start of the iteration that admitted it first, ns; `NEVER_NS` where the request was refused.
    pub admitted_ns: Vec<u64>,
    /// End of the prefill that gave the first token, ns.
    pub first_token_ns: Vec<u64>,
    /// End of the last iteration of the request, ns.
    pub finished_ns: Vec<u64>,
    /// Times it was preempted.
    pub preemptions: Vec<u32>,
    /// Gaps between the tokens of a request: (ns, how many requests had it).
    pub gaps: Vec<(u64, u32)>,
    /// The state after some of the iterations, evenly spread.
    pub series: Vec<Sample>,
    /// Requests completed.
    pub completed: usize,
    /// Those of them whose output `max_tokens` has cut: they finished by length.
    pub finished_by_length: usize,
    /// Requests refused, because they could never fit, or not in time; and those that were to follow them.
    pub failed: usize,
    /// Most KV blocks in use after an iteration.
    pub peak_blocks: u32,
    /// Which groups of the KV cache held them, by kind as settings name it; empty with one group of full attention.
    pub peak_by_group: Vec<(String, u64)>,
    /// Most requests parked between two segments after an iteration.
    pub peak_parked: u32,
    /// Usable KV blocks.
    pub kv_blocks: u32,
    /// When the gates opened because no more arrivals came; `NEVER_NS` if it was not needed.
    pub drained_ns: u64,
    /// Iterations that computed something.
    pub iterations: u64,
    /// Tokens that decodes yielded: one for each running request and iteration, and the accepted drafts.
    pub decode_tokens: u64,
    /// Tokens computed by prefills, recomputation included.
    pub prefill_tokens: u64,
    /// Prompt tokens of the admitted, each counted at its first admission.
    pub prompt_tokens: u64,
    /// Those of them that were not computed, because the cache held them or they came from elsewhere.
    pub cached_tokens: u64,
    /// KV tokens lost to preemptions that the cache still held when the request was admitted again.
    pub restored_tokens: u64,
    /// Drafts verified.
    pub draft_tokens: u64,
    /// Drafts accepted.
    pub accepted_tokens: u64,
    /// Iterations by the number of tokens they computed, drafts included: 0 to the most.
    pub step_tokens: Vec<u64>,
    /// The core's counters.
    pub stats: Stats,
    /// What the policy has learned of the traffic and the GPU.
    pub learned: Option<serde_json::Value>,
    /// The iteration-time law that the policy has learned.
    pub learned_law: Option<LearnedLaw>,
}

/// The state after an iteration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// End of the iteration, ns.
    pub at_ns: u64,
    /// KV blocks in use.
    pub blocks: u32,
    /// Resident requests.
    pub residents: u32,
    /// Waiting requests.
    pub waiting: u32,
}

impl Run {
    /// Plans that held a queue, by reason.
    pub fn holds(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        HoldReason::ALL.iter().map(|reason| (reason.name(), self.stats.holds[*reason as usize]))
    }

    /// KV tokens that were lost to preemptions, except for those that the cache still held.
    pub fn recomputed_tokens(&self) -> u64 {
        self.stats.recomputed_tokens.saturating_sub(self.restored_tokens)
    }

    /// Tokens that an iteration computed: mean, median and 99th percentile, the latter the least that the share does not
    /// exceed; NaN without iterations.
    pub fn tokens_per_step(&self) -> [f64; 3] {
        let counted = || self.step_tokens.iter().enumerate().map(|(tokens, &steps)| (tokens as f64, steps as f64));
        let steps: f64 = counted().map(|(_, steps)| steps).sum();
        let mean = counted().map(|(tokens, steps)| tokens * steps).sum::<f64>() / steps;
        let percentile = |share: f64| {
            let mut below = 0.0;
            let found = counted().find(|&(_, steps_here)| {
                below += steps_here;
                below > 0.0 && below >= share * steps
            });
            found.map_or(f64::NAN, |(tokens, _)| tokens)
        };
        [mean, percentile(0.5), percentile(0.99)]
    }
}
