//! Every setting, and the one validator that Python keywords, settings files and vLLM's JSON pass through.
#![allow(rustdoc::broken_intra_doc_links)] // brackets hold the range and unit of a setting, not a link

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, from_json, nearest};
use crate::fluid::Protection;
use crate::memory::{KvGroup, KvLayout};
use crate::model::{IterationTime, MAX_LENGTH, RequestType, StageConvention, Workload};

mod validate;

pub(crate) use validate::check_thresholds;

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
    /// Output lengths known, never preempts.
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

/// A part of `adaptive` that can be disabled, to measure what it gains.
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

/// What happens to a request that can no longer meet `ttft_target`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Late {
    /// It waits until serving it delays no request that is still in time.
    #[default]
    Park,
    /// It is refused on arrival, or as soon as it is found to be late.
    Refuse,
}

/// What happens to the output of a preempted request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preemption {
    /// It is kept, and recomputed as part of the prompt (vLLM, Vidur).
    #[default]
    Recompute,
    /// It is lost: the request starts over (the paper).
    Restart,
}

/// All settings of a scheduler. Deserialised from a map; an absent key takes the default shown.
///
/// Each is described in one form, from which `scripts/settings.py` makes the table that users see: what it means (what holds
/// where it is absent). [range and unit; the policies that use it, unless all do]
///
/// ```
/// use wait_core::Config;
/// use wait_core::config::PolicyName;
///
/// let config = Config { policy: PolicyName::Vllm, kv_blocks: 1000, ..Config::default() };
/// config.validate()?;
///
/// // From a settings file: an unknown key is refused, and the nearest one suggested.
/// let mut settings = serde_json::Map::new();
/// settings.insert("kv_block".to_owned(), 1000.into());
/// let error = Config::from_map(settings).unwrap_err().to_string();
/// assert!(error.contains("kv_blocks"), "{error}");
/// # Ok::<(), wait_core::Error>(())
/// ```
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
    /// Whether the scheduler keeps the prefix cache itself, for requests that carry the hashes of their blocks of
    /// `block_size` tokens: it knows what is cached in each group, and counts a shared block once. Where the host has a
    /// prefix cache of its own, it reports the hit of each request instead (false).
    pub prefix_caching: bool,
    /// Draft tokens that a decode verifies, as in vLLM's setting of that name: each takes one more token of the budget,
    /// and one more slot (0). [0 to 1,024 tokens]
    pub num_speculative_tokens: u32,
    /// KV slots that a decode allocates ahead of what it computes, as a draft model needs them (0). [0 to 1,024 tokens]
    pub num_lookahead_tokens: u32,
    /// Most resident requests (256). [1 to 2^30 requests]
    pub max_num_seqs: u32,
    /// Most tokens in one iteration, at least `max_num_seqs` (2,048). [1 to 2^30 tokens]
    pub token_budget: u32,
    /// Most prompt tokens of one request in one iteration, as vLLM's flag of that name (no bound). [1 to 2^30 tokens]
    pub long_prefill_token_threshold: Option<u32>,
    /// Most tokens of prompt and output together, where the KV cache holds as many (what it holds). [1 to 2^30 tokens]
    pub max_model_len: Option<u32>,
    /// Share of the blocks that admission leaves free (0). [0 to below 1; vllm, sarathi, prefill-first]
    pub watermark: f64,
    /// What happens to the output of a preempted request (`recompute`).
    pub preemption: Preemption,
    /// The host preempts by itself and reports it (false).
    pub host_preempts: bool,
    /// Most waiting requests; `add` refuses more (no bound). [at least 1 requests]
    pub max_queued_requests: Option<u32>,
    /// Most prompt tokens of waiting requests; `add` refuses more (no bound). [at least 1 tokens]
    pub max_queued_tokens: Option<u64>,
    /// Whether the prefill emits the first token, as in vLLM, or none, as in the paper (`vllm`).
    pub convention: StageConvention,
    /// Request types, in the order of their ids: those of `wait`, and those that `nested-wait` is planned from (none).
    /// [at most 4,096 types; wait, nested-wait]
    pub types: Vec<RequestType>,
    /// Thresholds, one a type (`wait`) or segment (`nested-wait`) (planned from the types' rates). [each above 0 to 2^30
    /// requests; wait, nested-wait]
    pub thresholds: Option<Vec<f64>>,
    /// Output lengths l'_1 < l'_2 < … at which `nested-wait`'s segments end (each distinct output of the types). [each at
    /// least 1 tokens; nested-wait]
    pub boundaries: Option<Vec<u32>>,
    /// η: by how much planned thresholds of `nested-wait` exceed the share of requests that continue (0.05). [at least
    /// 0; nested-wait]
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
    /// waiting outweighs a level, so a request of low priority may wait forever (30). [0 to 1e9 s; adaptive]
    pub ageing: Option<f64>,
    /// How many requests behind a head that does not fit in memory `adaptive` considers for admission (0). [at least 0
    /// requests; adaptive]
    pub skip_ahead: u32,
    /// Longest iteration in seconds that an admission or a prefill may cause under `adaptive`. It applies once the law
    /// of iteration times is known: `iteration_time`, or what is learned from the times that the host reports (none).
    /// [above 0 s; adaptive]
    pub tpot_target: Option<f64>,
    /// Longest time to first token in seconds: under `adaptive` a request that can no longer meet it is late (none). [above
    /// 0 s; adaptive]
    pub ttft_target: Option<f64>,
    /// What happens to a late request; refusing it requires a `ttft_target` (`park`). [adaptive]
    pub late: Late,
    /// Weights of the tenants, numbered from 0, among which `adaptive` shares the tokens it serves while they wait (all
    /// requests are of one tenant). [each 1e-6 to 1e6; adaptive]
    pub tenant_weights: Vec<f64>,
    /// δ: largest probability that the residents overflow memory at a horizon, when `adaptive` admits (chosen for every
    /// decision and horizon so that idle memory and recomputation together cost the least time). [above 0 to below 1;
    /// adaptive]
    pub overflow_probability: Option<f64>,
    /// Parts of `adaptive` to disable, to measure what each gains (none). [adaptive]
    pub without: Vec<Part>,
    /// Thresholds are caps, decodes never pause, nothing is held while the GPU would idle (true). [wait, nested-wait]
    pub work_conserving: bool,
    /// `nested-wait` passes a boundary as Algorithm 2 is printed, one service later than it needs to; up to n_k more
    /// requests then wait before segment k, for which the safety buffer of `protection` has no room (false).
    /// [nested-wait]
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
            num_speculative_tokens: 0,
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
        let config: Self = from_json(&value, "")?;
        match config.validate() {
            Err(Error::Invalid { name, .. }) if name == "kv_blocks" && value.get("kv_blocks").is_none() => {
                Err(Error::invalid(name, "none", "must be given, there is no default"))
            }
            validated => validated.map(|()| config),
        }
    }

    /// The names of all settings.
    pub fn keys() -> Vec<String> {
        match serde_json::to_value(Self::default()) {
            Ok(serde_json::Value::Object(map)) => map.into_iter().map(|(key, _)| key).collect(),
            _ => unreachable!("a struct serialises to a map"),
        }
    }

    /// How many blocks a request needs.
    pub(crate) fn kv_layout(&self) -> KvLayout {
        // That policy computes a prompt whole, even if it is longer than the budget.
        let step_tokens = if self.policy == PolicyName::PrefillFirst { MAX_LENGTH } else { self.token_budget };
        let lookahead = self.num_speculative_tokens + self.num_lookahead_tokens;
        KvLayout::new(self.block_size, &self.kv_groups, step_tokens, lookahead)
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
