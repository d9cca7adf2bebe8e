//! KV that is computed elsewhere: transfers, decode-only serving, and two pools in series.

use std::ops::ControlFlow;

use proptest::prelude::*;
use serde_json::{Value, json};
use wait_core::Config;
use wait_core::model::IterationTime;
use wait_sim::{Arrival, Follow, Hint, NEVER_NS, Pools, Requests, Run, Setup, SimError, Slo, Summary, Transfer};

fn setup(settings: Value) -> Setup {
    let Value::Object(settings) = settings else { panic!("a map of settings") };
    Setup::new(Config::from_map(settings).unwrap(), IterationTime::linear(0.01, 1e-6).unwrap())
}

fn run(setup: &Setup, arrivals: &[Arrival]) -> Run {
    wait_sim::run(setup, arrivals, |_| ControlFlow::Continue(())).unwrap()
}

fn arrival(at_ns: u64, prompt: u32, output: u32) -> Arrival {
    Arrival { at_ns, prompt, output, label: 0 }
}

/// 1 ms for each token.
const SLOW: Transfer = Transfer { bytes_per_token: 1e6, bandwidth: 1e9, latency_s: 0.0 };

#[test]
fn kv_comes_after_the_admission_and_memory_is_held_meanwhile() {
    let setup = Setup { transfer: Some(SLOW), ..setup(json!({"kv_blocks": 3, "block_size": 16})) };
    let run = run(&setup, &[arrival(5, 33, 2), arrival(6, 17, 2)]);
    // 32 ms for the first; the last token of its prompt and one decode: 33 and 34 tokens of KV. The second finds one block
    // of the two it needs: it is admitted when the first has ended.
    let (ready, ends) = (5 + 32_000_000, [10_033_000, 10_034_000]);
    let first_ends = ready + ends[0] + ends[1];
    assert_eq!((run.admitted_ns[0], run.first_token_ns[0], run.finished_ns[0]), (5, ready + ends[0], first_ends));
    assert_eq!(run.admitted_ns[1], first_ends);
    assert_eq!(run.first_token_ns[1], first_ends + 16_000_000 + 10_017_000);
    assert_eq!((run.prefill_tokens, run.cached_tokens, run.prompt_tokens, run.peak_blocks), (2, 48, 50, 3));
    assert!((Summary::new(&run, None).prefix_hit_rate - 0.96).abs() < 1e-12);
}

#[test]
fn bad_transfers_are_refused_by_name() {
    for (transfer, expected) in [
        (Transfer { bytes_per_token: -1.0, ..SLOW }, "transfer.bytes_per_token = -1: "),
        (Transfer { bandwidth: 0.0, ..SLOW }, "transfer.bandwidth = 0: "),
        (Transfer { bandwidth: f64::NAN, ..SLOW }, "transfer.bandwidth = NaN: "),
        (Transfer { latency_s: f64::INFINITY, ..SLOW }, "transfer.latency = inf: "),
    ] {
        let setup = Setup { transfer: Some(transfer), ..setup(json!({"kv_blocks": 10})) };
        let refused = wait_sim::run(&setup, &[arrival(0, 4, 4)], |_| ControlFlow::Continue(())).unwrap_err();
        assert!(refused.to_string().starts_with(expected), "{refused}");
    }
}

fn pools(prefill: &Setup, decode: &Setup, arrivals: &[Arrival]) -> Pools {
    wait_sim::pools(prefill, decode, arrivals).unwrap()
}

#[test]
fn one_request_through_both_pools_by_hand() {
    let prefill = setup(json!({"kv_blocks": 10}));
    let decode = Setup { transfer: Some(SLOW), ..prefill.clone() };
    let found = pools(&prefill, &decode, &[arrival(0, 20, 3), arrival(1_000_000_000, 10, 1)]);
    let first = 10_020_000;
    // The first engine hands over 20 tokens of KV; the other computes that of the first output token, and the third's input.
    let second = first + 20_000_000 + 10_021_000;
    let third = second + 10_022_000;
    assert_eq!(found.prefill.finished_ns, [first, 1_000_000_000 + 10_010_000]);
    let seen = found.decode;
    assert_eq!((seen.first_token_ns[0], seen.finished_ns[0], seen.admitted_ns[0]), (first, third, first));
    assert_eq!(seen.finished_ns[1], 1_000_000_000 + 10_010_000, "one token is all the first engine's");
    assert_eq!(seen.gaps, [(10_022_000, 1), (30_021_000, 1)]);
    assert_eq!((&seen.prompt, &seen.output, seen.completed), (&vec![20, 10], &vec![3, 1], 2));
    let summary = Summary::new(&seen, Some(Slo { ttft_ms: 10.02, tpot_ms: 25.1 }));
    assert_eq!((summary.goodput, summary.total_output_tokens), (Some(1.0), 4));
}

#[test]
fn what_either_engine_refuses_fails_and_outputs_end_at_max_tokens() {
    let prefill = setup(json!({"kv_blocks": 10}));
    let decode = Setup { transfer: Some(SLOW), max_tokens: Some(3), ..setup(json!({"kv_blocks": 4})) };
    let hint = |priority| Hint { priority, ..Hint::default() };
    let decode = Setup { hints: vec![hint(1), hint(2), hint(3)], ..decode };
    let found = pools(&prefill, &decode, &[arrival(0, 200, 3), arrival(0, 100, 3), arrival(0, 20, 9)]);
    assert_eq!((found.prefill.completed, found.prefill.failed), (2, 1));
    assert_eq!((found.decode.completed, found.decode.failed, found.decode.finished_by_length), (1, 2, 1));
    assert_eq!((found.decode.output[2], found.decode.finished_ns[1]), (3, NEVER_NS));
}

#[test]
fn what_cannot_run_in_series_is_refused() {
    let prefill = setup(json!({"kv_blocks": 10}));
    let decode = Setup { transfer: Some(SLOW), ..prefill.clone() };
    let refused = |prefill: &Setup, decode: &Setup, requests: Requests| {
        let error = wait_sim::pools(prefill, decode, requests).unwrap_err();
        assert!(matches!(error, SimError::Refused(_)));
        error.to_string()
    };
    let arrivals = [arrival(0, 4, 4), arrival(0, 10, 4)];
    let follows = [None, Some(Follow { after: 0, think_ns: 0 })];
    let closed = Requests { arrivals: &arrivals, follows: &follows, ..Requests::default() };
    assert!(refused(&prefill, &decode, closed).starts_with("follows = 2 requests: "));
    let few = Setup { max_concurrency: Some(3), ..decode.clone() };
    assert!(refused(&prefill, &few, (&arrivals).into()).starts_with("max_concurrency = 3: "));
    assert!(refused(&prefill, &prefill, (&arrivals).into()).starts_with("transfer = none: "));
    let hinted = Setup { hints: vec![Hint::default()], ..decode };
    assert!(refused(&prefill, &hinted, (&arrivals).into()).starts_with("decode.hints = 1: "));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// The paper's decode-only setting: under its law, which counts KV alone, the last token of a prompt costs what all of
    /// it does, so that KV which comes in no time changes nothing but the tokens computed.
    #[test]
    fn decode_only_is_an_instant_transfer(
        wait in any::<bool>(),
        blocks in 8..40u32,
        rows in prop::collection::vec((0..30_000_000u64, 1..30u32, 1..20u32), 1..40),
    ) {
        let types = json!([{"prompt": 16, "output": 20, "rate": 2.0}]);
        let policy = if wait { json!({"policy": "wait", "types": types}) } else { json!({"policy": "vllm"}) };
        // The budget holds all prompts; what is preempted computes as much in both.
        let mut settings = json!({"kv_blocks": blocks, "block_size": 4, "max_num_seqs": 40, "token_budget": 4_000});
        settings.as_object_mut().unwrap().extend(policy.as_object().unwrap().clone());
        let mut at_ns = 0;
        let arrivals: Vec<Arrival> = rows.iter().map(|&(gap, prompt, output)| {
            at_ns += gap;
            arrival(at_ns, prompt.min(blocks), output.min(blocks))
        }).collect();
        let whole = setup(settings);
        let decode_only = Setup { transfer: Some(Transfer::INSTANT), ..whole.clone() };
        let (whole, decode_only) = (run(&whole, &arrivals), run(&decode_only, &arrivals));
        let here: u64 = arrivals.iter().map(|arrival| u64::from(arrival.prompt) - 1).sum();
        prop_assert_eq!(decode_only.cached_tokens, here);
        prop_assert_eq!(decode_only.prefill_tokens + here, whole.prefill_tokens);
        prop_assert_eq!(&decode_only.finished_ns, &whole.finished_ns);
        prop_assert_eq!(&decode_only.first_token_ns, &whole.first_token_ns);
        prop_assert_eq!(decode_only.stats.preemptions, whole.stats.preemptions);
    }
}
