//! The settings and calls, drawn at random.

use proptest::prelude::*;
use serde_json::{Value, json};
use wait_core::{Config, Hit};

/// Settings of every policy, in the variants that decide differently.
pub(crate) fn policies() -> Vec<Value> {
    let types = json!([{"prompt": 6, "output": 4, "rate": 2.0}, {"prompt": 20, "output": 12, "rate": 1.0}]);
    vec![
        json!({"policy": "vllm"}),
        json!({"policy": "vllm", "watermark": 0.2, "preemption": "restart"}),
        json!({"policy": "vllm", "host_preempts": true}),
        json!({"policy": "wait", "types": types}),
        json!({"policy": "wait", "types": types, "thresholds": [2.5, 0.3], "preemption": "restart"}),
        json!({"policy": "wait", "types": types, "thresholds": [2.0, 1.0], "work_conserving": false}),
        json!({"policy": "wait", "types": types, "thresholds": [3.0, 0.4], "work_conserving": false, "max_hold": 1e-7}),
        json!({"policy": "nested-wait", "types": types}),
        json!({"policy": "nested-wait", "types": types, "work_conserving": false}),
        json!({"policy": "nested-wait", "boundaries": [1, 3, 7], "thresholds": [3.0, 1.4, 0.6], "host_preempts": true}),
        json!({"policy": "nested-wait", "boundaries": [2, 5], "thresholds": [2.0, 1.0], "work_conserving": false,
            "max_hold": 1e-7, "preemption": "restart"}),
        json!({"policy": "nested-wait", "boundaries": [1, 4], "thresholds": [1.5, 0.7], "literal_boundaries": true}),
        json!({"policy": "prefill-first"}),
        json!({"policy": "prefill-first", "watermark": 0.1, "host_preempts": true}),
        json!({"policy": "adaptive"}),
        json!({"policy": "adaptive", "iteration_time": {"law": "a100"}, "preemption": "restart"}),
        json!({"policy": "adaptive", "host_preempts": true}),
        json!({"policy": "adaptive", "order": "srpt", "ageing": 1e-7, "without": ["pacing", "forgetting", "buffer"]}),
        json!({"policy": "adaptive", "order": "srpt", "ageing": null}),
        json!({"policy": "adaptive", "skip_ahead": 3, "ageing": 1e-6, "iteration_time": {"law": "a100"},
            "tpot_target": 0.02, "without": ["token-budget", "classes"]}),
        json!({"policy": "adaptive", "ttft_target": 3e-7, "ageing": 1e-7}),
        json!({"policy": "adaptive", "ttft_target": 1e-7, "skip_ahead": 2, "order": "srpt", "host_preempts": true}),
        json!({"policy": "adaptive", "ttft_target": 2e-7, "late": "refuse"}),
        json!({"policy": "adaptive", "tenant_weights": [1.0, 3.0], "skip_ahead": 1}),
        json!({"policy": "adaptive", "tenant_weights": [1.0, 0.2], "ttft_target": 2e-7}),
        json!({"policy": "sarathi", "watermark": 0.1}),
        json!({"policy": "sarathi", "preemption": "restart"}),
        json!({"policy": "clairvoyant"}),
        json!({"policy": "clairvoyant", "order": "paced", "preemption": "restart"}),
        json!({"policy": "clairvoyant", "order": "srpt"}),
        json!({"policy": "clairvoyant", "host_preempts": true}),
    ]
}

/// A scheduler and a host that may lie to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) policy: usize,
    pub(crate) capacity: u32,
    pub(crate) block_size: u32,
    pub(crate) seats: u32,
    pub(crate) extra_budget: u32,
    pub(crate) prefill_chunk: Option<u32>,
    /// Tokens by which the model's limit falls short of the cache.
    pub(crate) shorter: Option<u32>,
    pub(crate) max_queued: (Option<u32>, Option<u64>),
    /// Which kinds of KV cache, and slots ahead of a decode.
    pub(crate) kinds: usize,
    pub(crate) lookahead: u32,
    pub(crate) caching: bool,
    pub(crate) lies: bool,
}

impl World {
    /// Thirteen blocks of four tokens, and a budget that prompts exceed.
    pub(crate) fn tight(policy: usize, seats: u32) -> Self {
        Self { policy, seats, capacity: 13, block_size: 4, extra_budget: 9, ..Self::default() }
    }

    /// Groups of one block each that hold a block's tokens.
    pub(crate) fn blocks_each(&self) -> u32 {
        let groups = self.groups();
        groups.iter().map(|group| group["count"].as_u64().unwrap_or(1) as u32).sum::<u32>().max(1)
    }

    fn groups(&self) -> Vec<Value> {
        let (half, b) = ((self.block_size / 2).max(1), self.block_size);
        match self.kinds {
            1 => vec![json!({"kind": "full"}), json!({"kind": "sliding_window", "window": 2 * b + 1, "count": 2})],
            2 => {
                vec![json!({"kind": "sliding_window", "window": 1}), json!({"kind": "state", "blocks": 1, "count": 2})]
            }
            3 => vec![json!({"kind": "full", "block_size": half}), json!({"kind": "chunked_local", "chunk": 2 * b})],
            4 => vec![
                json!({"kind": "full", "count": 2}),
                json!({"kind": "sliding_window", "window": 5, "block_size": half}),
            ],
            5 => vec![
                json!({"kind": "full", "block_size": 2 * b}),
                json!({"kind": "sliding_window", "window": 2 * b + 1}),
            ],
            6 => vec![json!({"kind": "full"}), json!({"kind": "chunked_local", "chunk": 2 * b, "count": 2})],
            7 => vec![json!({"kind": "state", "blocks": 1, "aligned": true, "count": 2}), json!({"kind": "full"})],
            _ => vec![],
        }
    }

    /// Whether the core can keep a prefix cache for these groups.
    fn cacheable(kinds: usize) -> bool {
        ![2, 3, 4].contains(&kinds)
    }

    pub(crate) fn config(&self) -> Config {
        let mut settings = policies()[self.policy].as_object().unwrap().clone();
        let tokens = self.capacity * self.block_size;
        // A cache of windows and states alone would hold contexts of any length.
        let shorter = self.shorter.or((self.kinds == 2).then_some(0));
        let sizes = json!({
            "kv_blocks": (self.capacity + self.lookahead) * self.blocks_each(),
            "block_size": self.block_size,
            "kv_groups": self.groups(),
            "num_lookahead_tokens": self.lookahead,
            "prefix_caching": self.caching,
            "max_num_seqs": self.seats,
            "token_budget": self.seats + self.extra_budget,
            "long_prefill_token_threshold": self.prefill_chunk,
            "max_model_len": shorter.map(|less| (tokens / 3).saturating_sub(less).max(1)),
            "max_queued_requests": self.max_queued.0,
            "max_queued_tokens": self.max_queued.1,
        });
        settings.extend(sizes.as_object().unwrap().clone());
        Config::from_map(settings).unwrap()
    }
}

pub(crate) fn world() -> impl Strategy<Value = World> {
    let rarely = |most: u32| prop::option::weighted(0.2, 1..most);
    let bounds = (rarely(12), prop::option::weighted(0.1, 20..200u64));
    let sizes = (2..24u32, prop_oneof![Just(1), Just(2), Just(4), Just(16)], 1..9u32, 0..40u32);
    let cache = (prop_oneof![3 => Just(0), 4 => 1..8usize], prop_oneof![5 => Just(0), 1 => 1..4u32], any::<bool>());
    (0..policies().len(), sizes, rarely(16), rarely(12), bounds, cache, any::<bool>()).prop_map(
        |(policy, (capacity, block_size, seats, extra_budget), prefill_chunk, shorter, max_queued, cache, lies)| {
            let (kinds, lookahead, caches) = cache;
            let caching = caches && World::cacheable(kinds);
            World {
                policy,
                capacity,
                block_size,
                seats,
                extra_budget,
                prefill_chunk,
                shorter,
                max_queued,
                kinds,
                lookahead,
                caching,
                lies,
            }
        },
    )
}

/// A request, occasionally with fields that `add` must refuse.
#[derive(Clone, Debug)]
pub(crate) struct Addition {
    pub(crate) prompt: u32,
    pub(crate) output: u32,
    /// What is declared of the length, see `Host::request`.
    pub(crate) hint: u8,
    pub(crate) priority: i64,
    pub(crate) tenant: u16,
    pub(crate) type_id: Option<u16>,
    pub(crate) hit: Hit,
    pub(crate) receives: bool,
    pub(crate) max_wait_ns: Option<u64>,
    /// By how much the host's clock lags.
    pub(crate) behind_ns: u64,
}

impl Addition {
    pub(crate) fn plain(prompt: u32, output: u32, hint: u8) -> Self {
        let (priority, tenant, type_id, max_wait_ns, behind_ns) = (0, 0, None, None, 0);
        let (hit, receives) = (Hit::default(), false);
        Self { prompt, output, hint, priority, tenant, type_id, hit, receives, max_wait_ns, behind_ns }
    }
}

fn hit() -> impl Strategy<Value = Hit> {
    let computed = || prop_oneof![20 => 0..40u32, 1 => any::<u32>()];
    let hit = (computed(), computed(), computed(), prop::bool::weighted(0.9));
    hit.prop_map(|(computed, shared, evicted, sound)| Hit {
        computed,
        shared: if sound { shared.min(computed) } else { shared },
        evicted,
    })
}

fn addition() -> impl Strategy<Value = Addition> {
    let lengths = (prop_oneof![40 => 1..40u32, 1 => Just(0), 1 => any::<u32>()], 1..24u32, 0..8u8);
    let priority = prop_oneof![12 => -1..2i64, 1 => Just(i64::MIN), 1 => Just(i64::MAX), 1 => any::<i64>()];
    let labels = (priority, 0..3u16, prop::option::weighted(0.4, prop_oneof![9 => 0..2u16, 1 => any::<u16>()]));
    let rest = (
        prop::option::weighted(0.3, hit()),
        prop::bool::weighted(0.1),
        prop::option::weighted(0.1, 0..60u64),
        0..20u64,
    );
    (lengths, labels, rest).prop_map(|(lengths, labels, (hit, receives, max_wait_ns, behind_ns))| {
        let hit = hit.unwrap_or_default();
        let ((prompt, output, hint), (priority, tenant, type_id)) = (lengths, labels);
        Addition { prompt, output, hint, priority, tenant, type_id, hit, receives, max_wait_ns, behind_ns }
    })
}

/// What a host reports besides the truth. Requests are named by their place among those present.
#[derive(Clone, Debug)]
pub(crate) struct Lies {
    pub(crate) finished: Vec<usize>,
    pub(crate) preempted: Vec<usize>,
    pub(crate) refused: Vec<usize>,
    pub(crate) progress: Vec<(usize, u32)>,
    pub(crate) receiving: Vec<(usize, u32)>,
    pub(crate) received: Vec<usize>,
    pub(crate) hits: Vec<(usize, Hit)>,
    pub(crate) free: Option<u32>,
    pub(crate) step: Option<(u64, Option<u64>)>,
    /// Some that have not run have finished as well.
    pub(crate) contradicts: bool,
}

fn lies() -> impl Strategy<Value = Lies> {
    let some = |p: f64| {
        let few = prop::collection::vec(any::<usize>(), 1..3);
        prop::option::weighted(p, few).prop_map(Option::unwrap_or_default)
    };
    let placed = |p: f64| {
        let few = prop::collection::vec((any::<usize>(), prop_oneof![20 => 0..60u32, 1 => any::<u32>()]), 1..3);
        prop::option::weighted(p, few).prop_map(Option::unwrap_or_default)
    };
    let progress = (placed(0.1), placed(0.1));
    let hits = prop::collection::vec((any::<usize>(), hit()), 1..4);
    let hits = prop::option::weighted(0.2, hits).prop_map(Option::unwrap_or_default);
    let step = (prop_oneof![9 => 0..1000u64, 1 => any::<u64>()], prop::option::weighted(0.3, 0..50u64));
    let free = prop::option::weighted(0.15, prop_oneof![9 => 0..26u32, 1 => any::<u32>()]);
    let lists = (some(0.04), some(0.1), some(0.1), some(0.3));
    let numbers = (free, prop::option::weighted(0.6, step), prop::bool::weighted(0.1));
    (lists, progress, hits, numbers).prop_map(|(lists, (progress, receiving), hits, (free, step, contradicts))| {
        let (finished, preempted, refused, received) = lists;
        Lies { finished, preempted, refused, progress, receiving, received, hits, free, step, contradicts }
    })
}

impl Lies {
    pub(crate) fn none() -> Self {
        let (finished, preempted, refused, received) = (vec![], vec![], vec![], vec![]);
        let (progress, receiving, hits) = (vec![], vec![], vec![]);
        let (free, step, contradicts) = (None, None, false);
        Self { finished, preempted, refused, progress, receiving, received, hits, free, step, contradicts }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Add(Addition),
    Plan { after_ns: u64 },
    Report(Lies),
    Abort(usize),
    AbortAll,
    Capacity(u32),
    Paused(bool),
    Drain,
    Ask(usize),
    Restore,
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let capacity = prop_oneof![20 => 1..25u32, 1 => Just(0), 1 => Just(u32::MAX)];
    prop_oneof![
        16 => addition().prop_map(Op::Add),
        24 => prop_oneof![9 => Just(7), 1 => 0..400u64].prop_map(|after_ns| Op::Plan { after_ns }),
        24 => lies().prop_map(Op::Report),
        2 => any::<usize>().prop_map(Op::Abort),
        2 => prop_oneof![20 => capacity.prop_map(Op::Capacity).boxed(), 1 => Just(Op::AbortAll).boxed(), 1 => Just(Op::Drain).boxed()],
        2 => prop_oneof![1 => Just(true), 2 => Just(false)].prop_map(Op::Paused),
        3 => (0..5usize).prop_map(Op::Ask),
        1 => Just(Op::Restore),
    ]
}
