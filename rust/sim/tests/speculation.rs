//! Speculative decoding: what a decode yields and costs.

use std::ops::ControlFlow;

use proptest::prelude::*;
use serde_json::{Value, json};
use wait_core::Config;
use wait_core::model::IterationTime;
use wait_sim::{Arrival, Run, Setup};

fn setup(settings: Value, acceptance: &[f64]) -> Setup {
    let Value::Object(mut settings) = settings else { panic!("a map of settings") };
    settings.insert("num_speculative_tokens".into(), json!(acceptance.len()));
    let law = IterationTime::linear(0.01, 1e-6).unwrap();
    Setup { acceptance: acceptance.into(), ..Setup::new(Config::from_map(settings).unwrap(), law) }
}

fn run(setup: &Setup, arrivals: &[Arrival]) -> Run {
    wait_sim::run(setup, arrivals, |_| ControlFlow::Continue(())).unwrap()
}

fn arrival(at_ns: u64, prompt: u32, output: u32) -> Arrival {
    Arrival { at_ns, prompt, output, label: 0 }
}

#[test]
fn one_request_whose_drafts_are_all_accepted_by_hand() {
    let setup = setup(json!({"kv_blocks": 10}), &[1.0, 1.0]);
    let run = run(&setup, &[arrival(0, 20, 9)]);
    // 1 token of the prefill; 3 each at 21 and 24 tokens of KV; at 27 all are accepted and two are wanted.
    let ends = [10_020_000, 20_041_000, 30_065_000, 40_092_000];
    assert_eq!((run.first_token_ns[0], run.finished_ns[0], run.iterations), (ends[0], ends[3], 4));
    assert_eq!(run.gaps, [(10_021_000, 1), (10_024_000, 1), (10_027_000, 1)]);
    assert_eq!((run.decode_tokens, run.draft_tokens, run.accepted_tokens), (8, 6, 5));
}

#[test]
fn a_draft_costs_what_a_decoded_token_does() {
    let law: IterationTime = serde_json::from_value(json!({
        "law": "measured", "round_to": 1,
        "steps": [{"up_to": 1000, "base_ns": 1e6, "per_token_ns": 1e3}],
        "attention": {"decode_base_ns": 0.0, "per_decode_ns": 10.0, "per_decode_kv_ns": 1.0, "prefill_base_ns": 0.0,
            "per_prefill_token_ns": 0.0, "per_prefill_kv_ns": 0.0, "per_prefill_attention_ns": 0.0},
    }))
    .unwrap();
    let setup = Setup { law, ..setup(json!({"kv_blocks": 10}), &[0.0, 0.0, 0.0]) };
    let run = run(&setup, &[arrival(0, 20, 2)]);
    assert_eq!(run.first_token_ns, [1_020_000]);
    // Four tokens are computed, and the KV of 21 tokens is read once.
    assert_eq!(run.finished_ns, [1_020_000 + 1_000_000 + 4 * 1_010 + 21]);
}

#[test]
fn drafts_are_accepted_as_often_as_stated() {
    let setup = setup(json!({"kv_blocks": 20_000}), &[0.8, 0.5, 0.5]);
    let arrivals: Vec<Arrival> = (0..64).map(|i| arrival(i, 100, 2_000)).collect();
    let run = run(&setup, &arrivals);
    assert_eq!(run.decode_tokens, 64 * 1_999, "every token but the first of each is a decode's");
    let steps = run.decode_tokens - run.accepted_tokens;
    assert_eq!(run.draft_tokens, 3 * steps);
    let accepted = run.accepted_tokens as f64 / steps as f64;
    assert!((accepted / 1.8 - 1.0).abs() < 0.02, "{accepted} of 3 drafts");
}

#[test]
fn bad_probabilities_and_another_number_of_drafts_are_refused() {
    let refused = |acceptance: &[f64], drafts: u32| {
        let mut setup = setup(json!({"kv_blocks": 10}), acceptance);
        setup.config.num_speculative_tokens = drafts;
        wait_sim::run(&setup, &[arrival(0, 4, 4)], |_| ControlFlow::Continue(())).unwrap_err().to_string()
    };
    assert!(refused(&[0.5, 0.6], 2).starts_with("acceptance = [0.5, 0.6]: "));
    assert!(refused(&[1.5], 2).starts_with("acceptance = [1.5]: "));
    assert!(refused(&[f64::NAN], 2).starts_with("acceptance = [NaN]: "));
    assert!(refused(&[0.5, 0.4], 1).starts_with("num_speculative_tokens = 1: must be 2"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn drafts_that_are_never_accepted_change_no_time_under_a_law_that_counts_kv_alone(
        policy in 0..3usize,
        blocks in 8..40u32,
        rows in prop::collection::vec((0..30_000_000u64, 1..30u32, 1..20u32), 1..40),
    ) {
        let types = json!([{"prompt": 16, "output": 6, "rate": 2.0}, {"prompt": 16, "output": 16, "rate": 1.0}]);
        let policies = [
            json!({"policy": "vllm", "watermark": 0.2}),
            json!({"policy": "sarathi"}),
            json!({"policy": "nested-wait", "types": types}),
        ];
        let mut settings = policies[policy].clone();
        settings.as_object_mut().unwrap().extend([("kv_blocks".to_owned(), json!(blocks)), ("block_size".into(), json!(4))]);
        let mut at_ns = 0;
        let arrivals: Vec<Arrival> = rows.iter().map(|&(gap, prompt, output)| {
            at_ns += gap;
            arrival(at_ns, prompt.min(blocks), output.min(blocks))
        }).collect();
        let with = setup(settings, &[0.0, 0.0]);
        let mut without = Setup { acceptance: Vec::new(), ..with.clone() };
        // The same slots ahead, for no drafts.
        (without.config.num_speculative_tokens, without.config.num_lookahead_tokens) = (0, 2);
        let (with, without) = (run(&with, &arrivals), run(&without, &arrivals));
        let mut gaps = [with.gaps.clone(), without.gaps.clone()];
        for gaps in &mut gaps {
            gaps.sort_unstable();
        }
        prop_assert_eq!(&gaps[0], &gaps[1]);
        prop_assert_eq!(with.draft_tokens, 2 * with.decode_tokens);
        let tokens = |run: &Run| run.step_tokens.iter().zip(0..).map(|(&steps, tokens)| steps * tokens).sum::<u64>();
        prop_assert_eq!(tokens(&with), tokens(&without) + with.draft_tokens);
        let step_tokens = without.step_tokens.clone();
        let same = Run { gaps: without.gaps.clone(), draft_tokens: 0, step_tokens, ..with };
        prop_assert_eq!(same, without);
    }
}
