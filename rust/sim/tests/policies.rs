//! Every policy, on random small workloads and engines: all requests finish, and each policy keeps its promises. Debug
//! builds recount the state of the core after every call.

use std::ops::ControlFlow;

use proptest::prelude::*;
use wait_core::Config;
use wait_core::config::{Order, PolicyName, Preemption};
use wait_core::model::{IterationTime, RequestType, StageConvention};
use wait_sim::{Arrival, Lengths, Run, Setup};

#[derive(Clone, Debug)]
struct Case {
    config: Config,
    arrivals: Vec<Arrival>,
    lengths: Lengths,
    /// A declared maximum that cuts no output short.
    max_tokens: u32,
}

fn types() -> impl Strategy<Value = Vec<RequestType>> {
    let kind = (1..20_u32, 1..12_u32, 1..40_u32).prop_map(|(prompt, output, rate)| RequestType {
        prompt,
        output,
        rate: f64::from(rate),
    });
    prop::collection::vec(kind, 1..4)
}

prop_compose! {
    fn case()(
        types in types(),
        rows in prop::collection::vec((0..3_usize, 0..40_u64), 1..60),
        block_size in 1..6_u32,
        slack in 0..60_u32,
        max_num_seqs in 1..20_u32,
        budget in 0..40_u32,
        watermark in prop_oneof![Just(0.0), 0.0..0.3],
        (known, restart, paper, work_conserving) in any::<(bool, bool, bool, bool)>(),
        max_hold in prop::option::of(0.0..0.3),
        cut in prop::option::of(0..12_u32),
    ) -> Case {
        let mut at_ns = 0;
        let arrivals: Vec<Arrival> = rows.iter().map(|&(label, gap_ms)| {
            at_ns += gap_ms * 1_000_000;
            let label = label % types.len();
            Arrival { at_ns, prompt: types[label].prompt, output: types[label].output, label: label as u16 }
        }).collect();
        // Every request fits alone.
        let longest = types.iter().map(|kind| kind.prompt + kind.output + 1).max().unwrap();
        let longest_output = types.iter().map(|kind| kind.output).max().unwrap();
        let boundaries = |cut| match cut {
            0 => vec![longest_output],
            _ if cut >= longest_output => vec![longest_output],
            _ => vec![cut, longest_output],
        };
        let config = Config {
            kv_blocks: (longest + slack).div_ceil(block_size),
            block_size,
            max_num_seqs,
            token_budget: max_num_seqs + budget,
            watermark,
            types,
            preemption: if restart { Preemption::Restart } else { Preemption::Recompute },
            convention: if paper { StageConvention::Paper } else { StageConvention::Vllm },
            boundaries: cut.map(boundaries),
            work_conserving,
            max_hold,
            ..Config::default()
        };
        let lengths = if known { Lengths::Known } else { Lengths::Hidden };
        Case { config, arrivals, lengths, max_tokens: longest_output + 1 }
    }
}

fn run(case: &Case, policy: PolicyName, lengths: Lengths, change: impl FnOnce(&mut Config)) -> Run {
    let mut config = Config { policy, ..case.config.clone() };
    change(&mut config);
    let setup = Setup {
        lengths,
        typed: true,
        max_tokens: Some(case.max_tokens),
        ..Setup::new(config, IterationTime::linear(0.01, 1e-4).unwrap())
    };
    // Sixty small requests take far fewer iterations, unless some preempt each other forever.
    let mut calls = 0;
    let mut limit = |_| {
        calls += 1;
        if calls > 20 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let run = wait_sim::run(&setup, &case.arrivals, &mut limit).unwrap();
    assert_eq!((run.completed, run.failed), (case.arrivals.len(), 0), "{policy:?}: every request finishes");
    assert!(run.peak_blocks <= run.kv_blocks, "{policy:?} stays within memory");
    run
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn baselines_finish_everything(case in case()) {
        for policy in [PolicyName::Vllm, PolicyName::PrefillFirst, PolicyName::Sarathi] {
            run(&case, policy, case.lengths, |_| {});
        }
    }

    #[test]
    fn wait_finishes_everything(case in case()) {
        run(&case, PolicyName::Wait, case.lengths, |_| {});
    }

    #[test]
    fn nested_wait_finishes_everything(case in case()) {
        run(&case, PolicyName::NestedWait, case.lengths, |_| {});
    }

    #[test]
    fn clairvoyant_never_evicts(case in case()) {
        for order in [Order::Fcfs, Order::Paced, Order::Srpt] {
            let known = run(&case, PolicyName::Clairvoyant, Lengths::Known, |config| config.order = order);
            prop_assert_eq!(known.stats.preemptions, 0, "lengths known, {:?}", order);
            // Upper bounds are enough where a prompt takes one iteration: requests only leave earlier than predicted.
            let bounded = run(&case, PolicyName::Clairvoyant, Lengths::Hidden, |config| {
                config.order = order;
                config.token_budget = 1 << 20;
            });
            prop_assert_eq!(bounded.stats.preemptions, 0, "lengths bounded, {:?}", order);
        }
    }

    #[test]
    fn integer_wait_within_memory_never_evicts(case in case(), thresholds in prop::collection::vec(1..4_u32, 3)) {
        let kinds = &case.config.types;
        let blocks = |tokens: u32| tokens.div_ceil(case.config.block_size);
        let stages = |kind: &RequestType| case.config.convention.last_stage(kind.output) + 1;
        let each: Vec<(&RequestType, u32)> = kinds.iter().zip(thresholds).collect();
        let sum = |f: &dyn Fn(&RequestType) -> u32| each.iter().map(|&(kind, n)| n * f(kind)).sum::<u32>();
        let peak = sum(&|kind| (0..stages(kind)).map(|s| blocks(kind.prompt + s)).sum());
        let (residents, prefill) = (sum(&stages), sum(&|kind| kind.prompt));
        let run = run(&case, PolicyName::Wait, Lengths::Known, |config| {
            config.thresholds = Some(each.iter().map(|&(_, n)| f64::from(n)).collect());
            config.kv_blocks = config.kv_blocks.max(peak);
            (config.max_num_seqs, config.token_budget) = (residents, residents + prefill);
            // Overdue requests enter beyond the threshold.
            config.max_hold = None;
        });
        prop_assert_eq!(run.stats.preemptions, 0);
        prop_assert!(run.peak_blocks <= peak, "peak {} above M^π = {}", run.peak_blocks, peak);
    }
}
