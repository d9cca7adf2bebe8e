//! Runs over a KV cache of several groups: which of them hold the blocks.

use std::ops::ControlFlow;

use proptest::prelude::*;
use serde_json::{Value, json};
use wait_core::Config;
use wait_core::model::IterationTime;
use wait_sim::{Arrival, Run, Setup};

fn run(settings: &Value, arrivals: &[Arrival]) -> Run {
    let config = Config::from_map(settings.as_object().unwrap().clone()).unwrap();
    let setup = Setup::new(config, IterationTime::linear(0.01, 1e-6).unwrap());
    wait_sim::run(&setup, arrivals, |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn a_window_holds_its_tokens_and_full_attention_all() {
    let groups = json!([{"kind": "full"}, {"kind": "sliding_window", "window": 8, "count": 2}]);
    let settings = json!({"policy": "vllm", "kv_blocks": 100, "block_size": 4, "kv_groups": groups});
    let arrivals = [Arrival { at_ns: 0, prompt: 40, output: 21, label: 0 }];
    let found = run(&settings, &arrivals);
    // The prefill computes the prompt at once and holds all of it in each group: 10 blocks in 3; no decode holds as many.
    assert_eq!(
        (found.peak_blocks, found.peak_by_group),
        (30, vec![("full".into(), 10), ("sliding_window".into(), 20)])
    );
    let chunks = json!({"policy": "vllm", "kv_blocks": 100, "block_size": 4, "kv_groups": groups,
        "token_budget": 4, "max_num_seqs": 4});
    // In chunks of 4 tokens each window holds the chunk and the 7 tokens before it; at the last, of 60 tokens, full attention
    // holds 15 blocks, and a window those of the tokens 53 to 60.
    let found = run(&chunks, &arrivals);
    assert_eq!((found.peak_blocks, found.peak_by_group), (21, vec![("full".into(), 15), ("sliding_window".into(), 6)]));
}

#[test]
fn one_group_of_full_attention_is_not_divided() {
    let arrivals = [Arrival { at_ns: 0, prompt: 40, output: 21, label: 0 }];
    let found = run(&json!({"kv_blocks": 100, "kv_groups": [{"kind": "full"}]}), &arrivals);
    assert!(found.peak_blocks > 0 && found.peak_by_group.is_empty());
}

#[test]
fn the_copy_of_a_state_is_given_back_where_prompts_are_reserved() {
    let groups =
        json!([{"kind": "sliding_window", "window": 20, "count": 3}, {"kind": "state", "blocks": 2, "aligned": true}]);
    let settings = json!({"policy": "sarathi", "kv_blocks": 600, "block_size": 4, "kv_groups": groups,
        "token_budget": 37, "max_num_seqs": 24});
    let lengths = [
        (0, 61, 10),
        (0, 48, 19),
        (9_779_644, 66, 17),
        (9_779_644, 49, 15),
        (9_779_644, 70, 13),
        (9_779_644, 55, 5),
        (23_231_360, 41, 14),
        (23_231_360, 17, 11),
        (23_231_360, 11, 9),
        (23_231_360, 49, 8),
        (23_231_360, 87, 5),
        (41_950_017, 53, 3),
        (41_950_018, 32, 1),
        (47_829_492, 33, 1),
    ];
    let arrivals = lengths.map(|(at_ns, prompt, output)| Arrival { at_ns, prompt, output, label: 0 });
    let found = run(&settings, &arrivals);
    let sum: u64 = found.peak_by_group.iter().map(|&(_, blocks)| blocks).sum();
    assert_eq!(sum, u64::from(found.peak_blocks), "{:?}", found.peak_by_group);
}

fn group() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"kind": "full"})),
        Just(json!({"kind": "full", "block_size": 8, "count": 2})),
        (1..40u32).prop_map(|window| json!({"kind": "sliding_window", "window": window, "count": 3})),
        (1..6u32).prop_map(|chunk| json!({"kind": "chunked_local", "chunk": 4 * chunk})),
        any::<bool>().prop_map(|aligned| json!({"kind": "state", "blocks": 2, "aligned": aligned})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Prefills in chunks, decodes, preemptions: the groups together hold exactly what is in use at the peak.
    #[test]
    fn the_groups_hold_what_is_in_use_at_the_peak(
        groups in prop::collection::vec(group(), 2..4),
        lengths in prop::collection::vec((0..50_000_000u64, 1..90u32, 1..60u32), 1..24),
        policy in prop::sample::select(vec!["vllm", "adaptive", "sarathi", "prefill-first"]),
        budget in 24..80u32,
    ) {
        let mut arrivals: Vec<Arrival> =
            lengths.iter().map(|&(at_ns, prompt, output)| Arrival { at_ns, prompt, output, label: 0 }).collect();
        arrivals.sort_by_key(|arrival| arrival.at_ns);
        let settings = json!({"policy": policy, "kv_blocks": 600, "block_size": 4, "kv_groups": groups,
            "token_budget": budget, "max_num_seqs": 24});
        let found = run(&settings, &arrivals);
        let sum: u64 = found.peak_by_group.iter().map(|&(_, blocks)| blocks).sum();
        if !found.peak_by_group.is_empty() {
            prop_assert_eq!(sum, u64::from(found.peak_blocks), "{:?}", found.peak_by_group);
        }
    }
}
