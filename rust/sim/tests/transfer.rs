//! KV that is computed elsewhere: transfers, and decode-only serving.

use std::ops::ControlFlow;

use proptest::prelude::*;
use serde_json::{Value, json};
use wait_core::Config;
use wait_core::model::IterationTime;
use wait_sim::{Arrival, Run, Setup, Summary, Transfer};

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
fn a_link_carries_one_transfer_at_a_time() {
    let setup = Setup { transfer: Some(SLOW), ..setup(json!({"kv_blocks": 30, "block_size": 16})) };
    // 32 ms and 48 ms: the second comes at 80, while the first computes its last two tokens, and waits for their end.
    let arrivals = [arrival(0, 33, 6), arrival(0, 49, 2)];
    let found = run(&setup, &arrivals);
    let step = |tokens: u64| 10_000_000 + 1_000 * tokens;
    let first: u64 = 32_000_000 + (33..38).map(step).sum::<u64>();
    assert_eq!((found.admitted_ns.clone(), found.first_token_ns[0]), (vec![0; 2], 32_000_000 + step(33)));
    assert_eq!(found.first_token_ns[1], first + step(38 + 49));
    assert_eq!(found.finished_ns[0], found.first_token_ns[1]);
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
