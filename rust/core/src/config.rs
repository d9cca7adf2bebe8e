//! Every setting, and the one validator that Python keywords, settings files and vLLM's JSON pass through.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, nearest};
use crate::fluid::Protection;
use crate::memory::{KvGroup, KvLayout};
use crate::model::{IterationTime, MAX_LENGTH, RequestType, StageConvention, Workload};

/// Which policy decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyName {
    /// vLLM V1: FCFS under a token budget, preempts the last.
    Vllm,
    /// WAIT (arXiv 2504.11320, Algorithm 1).
    Wait,
    /// Nested WAIT (arXiv 2504.11320, Algorithm 2).
    NestedWait,
    /// vLLM before chunked prefill, as Vidur models it: prompts first, decodes stall.
    PrefillFirst,
    /// Sarathi-Serve, as Vidur models it: chunked prefills beside decodes.
    Sarathi,
    /// Output lengths known, never evicts.
    Clairvoyant,
    /// Output lengths learned online, KV use forecast.
    #[default]
    Adaptive,
}

/// In what order `clairvoyant` and `adaptive` admit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// First come, first served.
    #[default]
    Fcfs,
    /// First come, first served, at C/E[A] requests an iteration.
    Paced,
    /// Shortest first: least KV tokens · iterations, known (`clairvoyant`) or expected (`adaptive`).
    Srpt,
}

/// A part of `adaptive` that can be left out, to measure what it buys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Tokens of an iteration chosen from the iteration-time law.
    TokenBudget,
    /// Admission paced where lengths are alike.
    Pacing,
    /// Lengths seen long ago count less.
    Forgetting,
    /// Curves of their own for class labels and predictions.
    Classes,
    /// The margin over the expected KV: an overflow is then as likely as not at every horizon.
    Buffer,
    /// All horizons but the nearest.
    Horizons,
}

/// What becomes of a request that can no longer meet `ttft_target`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Late {
    /// It waits until it costs those in time nothing.
    #[default]
    Park,
    /// It is refused, when it comes or when it is found late.
    Refuse,
}

/// What becomes of the output of a preempted request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preemption {
    /// It is kept, and recomputed as part of the prompt (vLLM, Vidur).
    #[default]
    Recompute,
    /// It is lost: the request starts over (the paper).
    Restart,
}

/// All settings of a scheduler. Deserialised from a map; what is absent has the default shown.
///
/// Each is described in one form, from which `scripts/settings.py` makes the table that users see: what it means (what holds
/// where it is absent). [range and unit; the policies that heed it, where not all do]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools)] // settings that are on or off
pub struct Config {
    /// Which policy decides (`adaptive`).
    pub policy: PolicyName,
    /// Usable KV blocks (required). [1 to 2^30 blocks]
    pub kv_blocks: u32,
    /// Tokens per KV block (16). [1 to 65,536 tokens]
    pub block_size: u32,
    /// Groups of the KV cache, each with blocks of its own from `kv_blocks`: full attention, sliding windows, chunked-local
    /// attention, constant states (one group of full attention). [at most 1,024 groups]
    pub kv_groups: Vec<KvGroup>,
    /// Whether the scheduler keeps the prefix cache, of requests that come with the hashes of their blocks: it knows what is
    /// cached, and counts a block that several hold once. For one group of full attention; with others, or with a prefix
    /// cache of its own, the host reports what a request finds (false).
    pub prefix_caching: bool,
    /// Slots that a decode takes ahead of its token, for the drafts of speculative decoding (0). [0 to 1,024 tokens]
    pub num_lookahead_tokens: u32,
    /// Most resident requests (256). [1 to 2^30 requests]
    pub max_num_seqs: u32,
    /// Most tokens in one iteration, at least `max_num_seqs` (2,048). [1 to 2^30 tokens]
    pub token_budget: u32,
    /// Most prompt tokens of one request in one iteration, as vLLM's flag of that name (no bound). [1 to 2^30 tokens]
    pub long_prefill_token_threshold: Option<u32>,
    /// Most tokens of prompt and output together (what the KV cache holds). [1 to 2^30 tokens]
    pub max_model_len: Option<u32>,
    /// Share of the blocks that admission leaves free (0). [0 to below 1; vllm, sarathi, prefill-first]
    pub watermark: f64,
    /// What becomes of a preempted request's output (`recompute`).
    pub preemption: Preemption,
    /// The host evicts by itself and reports it (false).
    pub host_preempts: bool,
    /// Most requests that may wait; `add` refuses more (no bound). [at least 1 requests]
    pub max_queued_requests: Option<u32>,
    /// Most prompt tokens that may wait; `add` refuses more (no bound). [at least 1 tokens]
    pub max_queued_tokens: Option<u64>,
    /// Whether the prefill emits the first token, as in vLLM, or none, as in the paper (`vllm`).
    pub convention: StageConvention,
    /// Request types, in the order of their ids: `wait`'s, and what `nested-wait` is planned from (none). [at most 4,096
    /// types; wait, nested-wait]
    pub types: Vec<RequestType>,
    /// Thresholds, one a type (`wait`) or segment (`nested-wait`) (planned from the types' rates). [each above 0 to 2^30
    /// requests; wait, nested-wait]
    pub thresholds: Option<Vec<f64>>,
    /// Output lengths l'_1 < l'_2 < … at which `nested-wait`'s segments end (each distinct output of the types). [each at
    /// least 1 tokens; nested-wait]
    pub boundaries: Option<Vec<u32>>,
    /// η: by how much planned thresholds of `nested-wait` exceed the share of requests that go on (0.05). [at least 0;
    /// nested-wait]
    pub margin: f64,
    /// The iteration-time law of the GPU. Thresholds are planned with it (without it they are the largest that memory
    /// allows); `adaptive` chooses the tokens of an iteration by it (learned from `complete(step_ns=…)`). [wait,
    /// nested-wait, adaptive]
    pub iteration_time: Option<IterationTime>,
    /// How rarely memory may overflow: the safety buffer of planned, faithful `nested-wait` (none). [nested-wait]
    pub protection: Option<Protection>,
    /// In what order `clairvoyant` and `adaptive` admit (`fcfs`). [clairvoyant, adaptive]
    pub order: Order,
    /// Seconds of waiting that outweigh one level of priority, the longest expected work against the shortest (`order` =
    /// `srpt`), or a place behind the head (`skip_ahead`): how long `adaptive` lets a request be overtaken. Null: no
    /// waiting outweighs a level, so the least important may wait for ever (30). [0 to 1e9 s; adaptive]
    pub ageing: Option<f64>,
    /// How many behind a head that lacks memory `adaptive` looks at for one that fits (0). [at least 0 requests; adaptive]
    pub skip_ahead: u32,
    /// Longest iteration in seconds that `adaptive` lets an admission or a prefill make. It holds once the law of iteration
    /// times is known: `iteration_time`, or what is learned from the times that the host reports (none). [above 0 s;
    /// adaptive]
    pub tpot_target: Option<f64>,
    /// Longest time to first token in seconds: under `adaptive` a request that can no longer meet it is late (none). [above
    /// 0 s; adaptive]
    pub ttft_target: Option<f64>,
    /// What becomes of a late request; to refuse it takes a `ttft_target` (`park`). [adaptive]
    pub late: Late,
    /// Weights of the tenants, numbered from 0, among which `adaptive` shares the tokens it serves while they wait (tenants
    /// are not told apart). [each 1e-6 to 1e6; adaptive]
    pub tenant_weights: Vec<f64>,
    /// δ: how likely `adaptive` lets the residents overflow memory at a horizon when it admits (weighed anew for every
    /// decision and horizon, so that idle memory and recomputation together cost least time). [above 0 to below 1;
    /// adaptive]
    pub overflow_probability: Option<f64>,
    /// Parts of `adaptive` that are left out, to measure what each buys (none). [adaptive]
    pub without: Vec<Part>,
    /// Thresholds are caps, decodes never pause, nothing is held while the GPU would idle (true). [wait, nested-wait]
    pub work_conserving: bool,
    /// `nested-wait` passes a boundary as Algorithm 2 is printed, one service later than it needs to; up to n_k more
    /// requests then stand before segment k, for which the safety buffer of `protection` has no room (false). [nested-wait]
    pub literal_boundaries: bool,
    /// Longest time in seconds that a threshold may hold a request that fits (no bound). [at least 0 s; wait, nested-wait]
    pub max_hold: Option<f64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policy: PolicyName::default(),
            kv_blocks: 0,
            block_size: 16,
            kv_groups: Vec::new(),
            prefix_caching: false,
            num_lookahead_tokens: 0,
            max_num_seqs: 256,
            token_budget: 2048,
            long_prefill_token_threshold: None,
            max_model_len: None,
            watermark: 0.0,
            preemption: Preemption::default(),
            host_preempts: false,
            max_queued_requests: None,
            max_queued_tokens: None,
            convention: StageConvention::default(),
            types: Vec::new(),
            thresholds: None,
            boundaries: None,
            margin: 0.05,
            iteration_time: None,
            protection: None,
            order: Order::default(),
            ageing: Some(30.0),
            skip_ahead: 0,
            tpot_target: None,
            ttft_target: None,
            late: Late::default(),
            tenant_weights: Vec::new(),
            overflow_probability: None,
            without: Vec::new(),
            work_conserving: true,
            literal_boundaries: false,
            max_hold: None,
        }
    }
}

/// Largest count of blocks, tokens or requests: sums of them stay exact in every type used.
pub(crate) const MAX_COUNT: u32 = 1 << 30;
/// Largest block, tokens: a lane keeps a counter for each token of a block.
const MAX_BLOCK_SIZE: u32 = 1 << 16;
/// Most slots ahead of a token.
const MAX_LOOKAHEAD: u32 = 1 << 10;
/// Most types: each has its queue and its lane.
const MAX_TYPES: usize = 4096;

fn count(name: &str, value: u32, most: u32) -> Result<()> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(name, value, format!("must be between 1 and {most}")))
}

impl Config {
    /// Reads a map of settings and validates it.
    ///
    /// # Errors
    /// [`Error`] names the key and the value that was refused, and the nearest key for one that does not exist.
    pub fn from_map(settings: serde_json::Map<String, serde_json::Value>) -> Result<Self> {
        let known = Self::keys();
        for key in settings.keys() {
            if !known.contains(key) {
                let suggestion = nearest(key, known.iter().map(String::as_str)).map(str::to_owned);
                return Err(Error::UnknownKey { key: key.clone(), suggestion });
            }
        }
        let value = serde_json::Value::Object(settings);
        let config: Self = serde_path_to_error::deserialize(&value).map_err(|error| {
            let path = error.path().to_string();
            let pointer = format!("/{}", path.replace(['.', '['], "/").replace(']', ""));
            let given = value.pointer(&pointer).map_or_else(|| "?".to_owned(), ToString::to_string);
            Error::invalid(path, given, error.into_inner().to_string())
        })?;
        config.validate()?;
        Ok(config)
    }

    /// The names of all settings.
    pub fn keys() -> Vec<String> {
        match serde_json::to_value(Self::default()) {
            Ok(serde_json::Value::Object(map)) => map.into_iter().map(|(key, _)| key).collect(),
            _ => unreachable!("a struct serialises to a map"),
        }
    }

    /// Checks every value against its range.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the first that is outside.
    pub fn validate(&self) -> Result<()> {
        let tokens = self.validate_memory()?;
        count("max_num_seqs", self.max_num_seqs, MAX_COUNT)?;
        count("token_budget", self.token_budget, MAX_COUNT)?;
        count("long_prefill_token_threshold", self.long_prefill_token_threshold.unwrap_or(1), MAX_COUNT)?;
        if self.token_budget < self.max_num_seqs {
            let rule = format!("must be at least max_num_seqs ({}), or some decodes never run", self.max_num_seqs);
            return Err(Error::invalid("token_budget", self.token_budget, rule));
        }
        if let Some(length) = self.max_model_len.filter(|&length| length == 0 || u64::from(length) > tokens) {
            let rule = format!("must be between 1 and the {tokens} tokens that the KV cache holds");
            return Err(Error::invalid("max_model_len", length, rule));
        }
        if !(0.0..1.0).contains(&self.watermark) {
            return Err(Error::invalid("watermark", self.watermark, "must be at least 0 and below 1"));
        }
        if let Some(seconds) = self.max_hold.filter(|seconds| !(seconds.is_finite() && *seconds >= 0.0)) {
            return Err(Error::invalid("max_hold", seconds, "must be finite and at least 0 seconds"));
        }
        if let Some(seconds) = self.ageing.filter(|seconds| !(0.0..=1e9).contains(seconds)) {
            return Err(Error::invalid("ageing", seconds, "must be between 0 and 1e9 seconds, or null for no ageing"));
        }
        if let Some(delta) = self.overflow_probability.filter(|delta| !(*delta > 0.0 && *delta < 1.0)) {
            return Err(Error::invalid("overflow_probability", delta, "must be strictly between 0 and 1"));
        }
        if let Some(seconds) = self.tpot_target.filter(|seconds| !(seconds.is_finite() && *seconds > 0.0)) {
            return Err(Error::invalid("tpot_target", seconds, "must be finite and above 0 seconds"));
        }
        if let Some(seconds) = self.ttft_target.filter(|seconds| !(seconds.is_finite() && *seconds > 0.0)) {
            return Err(Error::invalid("ttft_target", seconds, "must be finite and above 0 seconds"));
        }
        if self.late == Late::Refuse && self.ttft_target.is_none() {
            return Err(Error::invalid("late", "\"refuse\"", "needs ttft_target, by which requests are late"));
        }
        if self.tenant_weights.len() > MAX_TYPES {
            return Err(Error::invalid("tenant_weights", self.tenant_weights.len(), format!("at most {MAX_TYPES}")));
        }
        if let Some(weight) = self.tenant_weights.iter().find(|weight| !(1e-6..=1e6).contains(*weight)) {
            return Err(Error::invalid("tenant_weights", weight, "each must be between 1e-6 and 1e6"));
        }
        if self.policy == PolicyName::Adaptive && self.order == Order::Paced {
            return Err(Error::invalid("order", "\"paced\"", "policy \"adaptive\" takes \"fcfs\" or \"srpt\""));
        }
        if self.max_queued_requests == Some(0) {
            return Err(Error::invalid("max_queued_requests", 0, "must be at least 1, or nothing is ever accepted"));
        }
        if self.max_queued_tokens == Some(0) {
            return Err(Error::invalid("max_queued_tokens", 0, "must be at least 1, or nothing is ever accepted"));
        }
        if self.types.len() > MAX_TYPES {
            return Err(Error::invalid("types", self.types.len(), format!("at most {MAX_TYPES} types")));
        }
        if !self.types.is_empty() {
            self.workload()?;
        }
        self.validate_thresholds()
    }

    /// Checks the KV cache; returns the tokens it holds.
    pub(crate) fn validate_memory(&self) -> Result<u64> {
        count("kv_blocks", self.kv_blocks, MAX_COUNT)?;
        count("block_size", self.block_size, MAX_BLOCK_SIZE)?;
        KvGroup::validate(&self.kv_groups, self.block_size)?;
        if self.prefix_caching && !self.kv_layout().groups().is_empty() {
            let rule = "needs one group of full attention; with others the host reports hits";
            return Err(Error::invalid("prefix_caching", true, rule));
        }
        if self.num_lookahead_tokens > MAX_LOOKAHEAD {
            let rule = format!("must be at most {MAX_LOOKAHEAD}");
            return Err(Error::invalid("num_lookahead_tokens", self.num_lookahead_tokens, rule));
        }
        let tokens = u64::from(self.kv_blocks) * u64::from(self.block_size);
        if tokens > u64::from(MAX_COUNT) {
            let rule = format!("with blocks of {} tokens must hold at most {MAX_COUNT} tokens", self.block_size);
            return Err(Error::invalid("kv_blocks", self.kv_blocks, rule));
        }
        let most = self.kv_layout().largest(self.kv_blocks, MAX_COUNT);
        if most == 0 {
            let rule = "must hold the blocks that one token needs in all groups";
            return Err(Error::invalid("kv_blocks", self.kv_blocks, rule));
        }
        Ok(u64::from(most))
    }

    /// How many blocks a request needs.
    pub(crate) fn kv_layout(&self) -> KvLayout {
        // A prompt longer than the budget goes whole there.
        let step_tokens = if self.policy == PolicyName::PrefillFirst { MAX_LENGTH } else { self.token_budget };
        KvLayout::new(self.block_size, &self.kv_groups, step_tokens, self.num_lookahead_tokens)
    }

    fn validate_thresholds(&self) -> Result<()> {
        if let Some(boundaries) = &self.boundaries {
            if boundaries.is_empty() || boundaries.len() > usize::from(u16::MAX) {
                return Err(Error::invalid("boundaries", boundaries.len(), "between 1 and 65,535 boundaries"));
            }
            for (k, &boundary) in boundaries.iter().enumerate() {
                let previous = k.checked_sub(1).map_or(0, |before| boundaries[before]);
                if boundary <= previous || boundary > MAX_LENGTH {
                    let rule = format!("must be above {previous} and at most {MAX_LENGTH} tokens");
                    return Err(Error::invalid(format!("boundaries[{k}]"), boundary, rule));
                }
            }
        }
        if !(self.margin.is_finite() && self.margin >= 0.0) {
            return Err(Error::invalid("margin", self.margin, "must be finite and at least 0"));
        }
        if let Some(protection) = &self.protection {
            protection.validate().map_err(|error| Error::invalid("protection", "…", error.to_string()))?;
        }
        match self.policy {
            PolicyName::Wait if self.types.is_empty() => {
                Err(Error::invalid("types", "[]", "policy \"wait\" needs at least one request type"))
            }
            PolicyName::Wait => self.thresholds.iter().try_for_each(|n| check_thresholds(n, self.types.len(), "type")),
            PolicyName::NestedWait
                if self.types.is_empty() && (self.boundaries.is_none() || self.thresholds.is_none()) =>
            {
                let rule = "policy \"nested-wait\" needs request types, or boundaries and thresholds";
                Err(Error::invalid("types", "[]", rule))
            }
            // Other policies do not read them, but a value that no policy takes is a mistake all the same.
            _ => self.thresholds.iter().try_for_each(|n| check_thresholds(n, n.len(), "type")),
        }
    }

    /// The types as a workload.
    pub(crate) fn workload(&self) -> Result<Workload> {
        Workload::new(self.types.clone()).map_err(|error| Error::invalid("types", "[…]", error.to_string()))
    }

    /// Longest hold, ns.
    pub(crate) fn max_hold_ns(&self) -> Option<u64> {
        self.max_hold.map(|seconds| (seconds * 1e9) as u64)
    }
}

/// Checks that there is one threshold for each of `count` types or segments, all of them above 0.
pub(crate) fn check_thresholds(thresholds: &[f64], count: usize, each: &str) -> Result<()> {
    if thresholds.len() != count {
        let rule = format!("one threshold a {each}: {count} expected");
        return Err(Error::invalid("thresholds", thresholds.len(), rule));
    }
    for (i, &n) in thresholds.iter().enumerate() {
        if !(n.is_finite() && n > 0.0 && n <= f64::from(MAX_COUNT)) {
            let rule = format!("must be finite, above 0 and at most {MAX_COUNT}");
            return Err(Error::invalid(format!("thresholds[{i}]"), n, rule));
        }
    }
    Ok(())
}
