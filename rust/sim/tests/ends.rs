//! Every policy ends every run, however small the cache and whatever the order of arrivals, and is deterministic.

use std::ops::ControlFlow;

use proptest::prelude::*;
use serde_json::{Value, json};
use wait_core::Config;
use wait_core::config::Preemption;
use wait_core::model::IterationTime;
use wait_sim::{Arrival, Lengths, NEVER_NS, Run, Setup, Transfer};

fn policies() -> Vec<Value> {
    let types = json!([{"prompt": 6, "output": 4, "rate": 2.0}, {"prompt": 20, "output": 12, "rate": 1.0}]);
    let boundaries = json!([2, 5, 11]);
    vec![
        json!({"policy": "vllm", "watermark": 0.3}),
        json!({"policy": "prefill-first", "watermark": 0.1}),
        json!({"policy": "adaptive"}),
        json!({"policy": "adaptive", "iteration_time": {"law": "a100"}}),
        json!({"policy": "sarathi", "watermark": 0.1}),
        json!({"policy": "wait", "types": types}),
        json!({"policy": "wait", "types": types, "work_conserving": false}),
        json!({"policy": "wait", "types": types, "thresholds": [3.0, 0.4], "work_conserving": false, "max_hold": 0.002}),
        json!({"policy": "nested-wait", "types": types}),
        json!({"policy": "nested-wait", "types": types, "work_conserving": false}),
        json!({"policy": "nested-wait", "boundaries": boundaries, "thresholds": [4.0, 2.0, 0.5], "work_conserving": false}),
        json!({"policy": "nested-wait", "boundaries": boundaries, "thresholds": [2.0, 1.4, 1.0], "work_conserving": false,
            "max_hold": 0.002}),
        json!({"policy": "clairvoyant"}),
        json!({"policy": "clairvoyant", "order": "paced"}),
        json!({"policy": "clairvoyant", "order": "srpt"}),
    ]
}

fn simulate(setup: &Setup, arrivals: &[Arrival]) -> Run {
    let mut calls = 0;
    let patience = |_| {
        calls += 1;
        if calls < 20 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    wait_sim::run(setup, arrivals, patience).expect("a run of a few requests ends")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_policy_ends_every_run(
        policy in 0..policies().len(),
        (blocks, block_size, seats, more) in (3..24u32, prop_oneof![Just(1), Just(4), Just(16)], 1..9u32, 0..40u32),
        (restart, hidden, paper) in (any::<bool>(), any::<bool>(), any::<bool>()),
        drafts in prop::option::weighted(0.3, prop::collection::vec(0.0..1.0, 1..4)),
        transfer_ms in prop::option::weighted(0.3, 0..4u32),
        max_concurrency in prop::option::weighted(0.2, 1..6usize),
        rows in prop::collection::vec((prop_oneof![0..3_000_000u64, Just(0)], 1..30u32, 1..20u32, 0..2u16), 1..50),
    ) {
        // These count an iteration that computes nothing as one in which nothing was admitted.
        let name = policies()[policy]["policy"].as_str().unwrap().to_owned();
        let transfer_ms = transfer_ms.filter(|_| !["prefill-first", "wait", "nested-wait"].contains(&name.as_str()));
        let predictable = drafts.is_none() && transfer_ms.is_none();
        let mut acceptance = drafts.unwrap_or_default();
        acceptance.sort_unstable_by(|a: &f64, b| b.total_cmp(a));
        // One token alone needs its slot and those of its drafts.
        let blocks = blocks + acceptance.len() as u32;
        let mut settings = json!({
            "num_speculative_tokens": acceptance.len(),
            "kv_blocks": blocks,
            "block_size": block_size,
            "max_num_seqs": seats,
            "token_budget": seats + more,
            "preemption": if restart { "restart" } else { "recompute" },
            "convention": if paper { "paper" } else { "vllm" },
        });
        settings.as_object_mut().unwrap().extend(policies()[policy].as_object().unwrap().clone());
        let config = Config::from_map(settings.as_object().unwrap().clone()).unwrap();
        let setup = Setup {
            lengths: if hidden { Lengths::Hidden } else { Lengths::Known },
            max_concurrency,
            acceptance: acceptance.clone(),
            transfer: transfer_ms.map(|ms| Transfer { latency_s: f64::from(ms) * 1e-3, ..Transfer::INSTANT }),
            ..Setup::new(config, IterationTime::linear(1e-3, 1e-6).unwrap())
        };
        let mut at_ns = 0;
        let arrival = |&(gap, prompt, output, label): &(u64, u32, u32, u16)| {
            at_ns += gap;
            Arrival { at_ns, prompt, output, label }
        };
        let arrivals: Vec<Arrival> = rows.iter().map(arrival).collect();
        let run = simulate(&setup, &arrivals);
        prop_assert_eq!(run.completed + run.failed, arrivals.len());
        let iterations = |arrival: &Arrival| arrival.output + u32::from(paper);
        let mut gaps = 0;
        for (i, arrival) in arrivals.iter().enumerate() {
            let slots = arrival.prompt + iterations(arrival) + setup.config.num_speculative_tokens;
            let fits = slots <= blocks * block_size;
            prop_assert_eq!(run.finished_ns[i] < NEVER_NS, fits);
            if fits {
                let times = [run.arrival_ns[i], run.admitted_ns[i], run.first_token_ns[i], run.finished_ns[i]];
                prop_assert!(times.is_sorted() && times[1] < times[2], "{:?}", times);
                gaps += u64::from(iterations(arrival)) - 1;
            }
        }
        if setup.config.preemption == Preemption::Recompute {
            let counted: u64 = run.gaps.iter().map(|&(_, times)| u64::from(times)).sum();
            prop_assert_eq!(counted + run.accepted_tokens, gaps, "a gap for every token that comes after another");
            let total: u64 = run.gaps.iter().map(|&(gap, times)| gap * u64::from(times)).sum();
            let done = (0..arrivals.len()).filter(|&i| run.finished_ns[i] < NEVER_NS);
            let spans: u64 = done.map(|i| run.finished_ns[i] - run.first_token_ns[i]).sum();
            prop_assert_eq!(total, spans, "gaps fill the time from first to last token");
        }
        prop_assert!(run.peak_blocks <= blocks);
        if setup.config.policy == wait_core::config::PolicyName::Clairvoyant && !hidden && predictable {
            prop_assert_eq!(run.stats.preemptions, 0, "with known lengths it never preempts");
        }
        prop_assert_eq!(&run, &simulate(&setup, &arrivals));
    }
}
