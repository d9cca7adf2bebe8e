//! The simulator against a loop that walks every request at every iteration: the same times, gaps and counts exactly.

use std::ops::ControlFlow;

use proptest::prelude::*;
use serde_json::{Value, json};
use wait_core::Config;
use wait_core::model::IterationTime;
use wait_sim::{Arrival, Lengths, NEVER_NS, Run, Setup, StepTimes};

#[path = "../../core/tests/oracle/mod.rs"]
mod oracle;

use oracle::{Engine, Request, Sizes, v1::V1, wait::Wait};

/// The law of all instances here, in whole nanoseconds: d0 = 1 ms, d1 = 1 µs per KV token, and 50 µs of overhead.
const D0_NS: u64 = 1_000_000;
const D1_NS: u64 = 1_000;
const OVERHEAD_NS: u64 = 50_000;

/// What a run must have recorded.
#[derive(Debug, Default)]
struct Book {
    admitted_ns: Vec<u64>,
    tokens_ns: Vec<Vec<u64>>,
    finished_ns: Vec<u64>,
    preemptions: Vec<u32>,
    failed: usize,
    iterations: u64,
    decode_tokens: u64,
    prefill_tokens: u64,
    peak_blocks: u32,
    drained_ns: u64,
}

/// `extra` is 1 where a request takes an iteration more than it has output tokens (the paper's convention); `gated`
/// engines drain when they evict after the last arrival.
fn walk(engine: &mut impl Engine, sizes: &Sizes, arrivals: &[Arrival], extra: u32, gated: bool) -> Book {
    let n = arrivals.len();
    let mut book = Book {
        admitted_ns: vec![NEVER_NS; n],
        tokens_ns: vec![Vec::new(); n],
        finished_ns: vec![NEVER_NS; n],
        preemptions: vec![0; n],
        drained_ns: NEVER_NS,
        ..Book::default()
    };
    let (mut now_ns, mut next) = (arrivals[0].at_ns, 0);
    loop {
        while next < n && arrivals[next].at_ns <= now_ns {
            let Arrival { at_ns: arrival_ns, prompt, output, label } = arrivals[next];
            let output = output + extra;
            if prompt + output > sizes.blocks * sizes.block_size {
                book.failed += 1;
            } else {
                let kind = usize::from(label);
                engine.add(Request { id: next as u64, kind, arrival_ns, prompt, output, ..Request::default() });
            }
            next += 1;
        }
        let step = engine.step(now_ns);
        if step.tokens() == 0 && step.preempted.is_empty() {
            let arrival = arrivals.get(next).map(|arrival| arrival.at_ns);
            let events = arrival.into_iter().chain(engine.wake_ns().filter(|&wake| wake > now_ns));
            if let Some(event) = events.min() {
                now_ns = event;
            } else if engine.running().is_empty() && engine.waiting() == 0 {
                return book;
            } else {
                assert_eq!(book.drained_ns, NEVER_NS, "the reference stalls");
                book.drained_ns = now_ns;
                engine.drain();
            }
            continue;
        }
        for &id in step.admitted.iter().chain(&step.resumed) {
            let at = &mut book.admitted_ns[id as usize];
            *at = now_ns.min(*at);
        }
        let last = arrivals.get(next).is_none_or(|arrival| arrival.at_ns <= now_ns);
        if step.tokens() > 0 {
            now_ns += D0_NS + D1_NS * step.kv() + OVERHEAD_NS;
            book.iterations += 1;
        }
        if gated && last && !step.preempted.is_empty() && book.drained_ns == NEVER_NS {
            book.drained_ns = now_ns;
            engine.drain();
        }
        book.decode_tokens += step.decodes.len() as u64;
        book.prefill_tokens += u64::from(step.tokens()) - step.decodes.len() as u64;
        book.peak_blocks = book.peak_blocks.max(step.blocks);
        for &id in &step.preempted {
            book.preemptions[id as usize] += 1;
        }
        for &id in &step.emitted {
            book.tokens_ns[id as usize].push(now_ns);
        }
        for &id in &step.finished {
            book.finished_ns[id as usize] = now_ns;
        }
    }
}

fn compare(run: &Run, book: &Book) {
    assert_eq!(run.admitted_ns, book.admitted_ns, "admissions");
    let first = |times: &Vec<u64>| times.first().copied().unwrap_or(NEVER_NS);
    assert_eq!(run.first_token_ns, book.tokens_ns.iter().map(first).collect::<Vec<_>>(), "first tokens");
    assert_eq!(run.finished_ns, book.finished_ns, "completions");
    assert_eq!(run.preemptions, book.preemptions, "preemptions");
    let mut gaps: Vec<u64> =
        run.gaps.iter().flat_map(|&(gap, times)| std::iter::repeat_n(gap, times as usize)).collect();
    let mut expected: Vec<u64> =
        book.tokens_ns.iter().flat_map(|times| times.windows(2).map(|pair| pair[1] - pair[0])).collect();
    gaps.sort_unstable();
    expected.sort_unstable();
    assert_eq!(gaps, expected, "gaps between tokens");
    assert_eq!((run.failed, run.completed), (book.failed, run.prompt.len() - book.failed));
    assert_eq!(
        (run.iterations, run.decode_tokens, run.prefill_tokens, run.peak_blocks, run.drained_ns),
        (book.iterations, book.decode_tokens, book.prefill_tokens, book.peak_blocks, book.drained_ns)
    );
    assert_eq!(run.stats.preemptions, book.preemptions.iter().map(|&n| u64::from(n)).sum::<u64>());
    let last = run.series.iter().map(|sample| (sample.blocks, sample.residents)).max();
    assert!(last.is_none_or(|(blocks, _)| blocks == run.peak_blocks), "a short series misses no peak");
}

fn setup(sizes: &Sizes, policy: &Value, lengths: Lengths) -> Setup {
    let mut settings = json!({
        "kv_blocks": sizes.blocks,
        "block_size": sizes.block_size,
        "max_num_seqs": sizes.seats,
        "token_budget": sizes.budget,
        "preemption": if sizes.restart { "restart" } else { "recompute" },
    });
    settings.as_object_mut().unwrap().extend(policy.as_object().unwrap().clone());
    Setup {
        config: Config::from_map(settings.as_object().unwrap().clone()).unwrap(),
        law: IterationTime::linear(D0_NS as f64 * 1e-9, D1_NS as f64 * 1e-9).unwrap(),
        lengths,
        typed: true,
        max_tokens: None,
        max_concurrency: None,
        hints: Vec::new(),
        overhead_ns: OVERHEAD_NS,
        learned: None,
        steps: StepTimes::default(),
    }
}

fn simulate(setup: &Setup, arrivals: &[Arrival]) -> Run {
    wait_sim::run(setup, arrivals, |_| ControlFlow::Continue(())).unwrap()
}

fn sizes() -> impl Strategy<Value = Sizes> {
    (3..24u32, prop_oneof![Just(1), Just(4), Just(16)], 1..9usize, 0..40u32, any::<bool>()).prop_map(
        |(blocks, block_size, seats, more, restart)| Sizes {
            blocks,
            block_size,
            seats,
            budget: seats as u32 + more,
            restart,
        },
    )
}

/// Bursts, gaps within an iteration, and long silences.
fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let gap = prop_oneof![3 => Just(0), 3 => 0..3_000_000u64, 1 => 0..100_000_000u64];
    prop::collection::vec((gap, 1..30u32, 1..20u32, 0..2u16), 1..60).prop_map(|rows| {
        let mut at_ns = 12_345;
        let arrival = |(gap, prompt, output, label)| {
            at_ns += gap;
            Arrival { at_ns, prompt, output, label }
        };
        rows.into_iter().map(arrival).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn vllm_is_the_walk(
        sizes in sizes(),
        watermark in 0..4u32,
        hidden in any::<bool>(),
        paper in any::<bool>(),
        arrivals in arrivals(),
    ) {
        let watermark = f64::from(watermark) * 0.1;
        let policy = json!({
            "policy": "vllm",
            "watermark": watermark,
            "convention": if paper { "paper" } else { "vllm" },
        });
        let setup = setup(&sizes, &policy, if hidden { Lengths::Hidden } else { Lengths::Known });
        let mut engine = V1::new(sizes, (watermark * f64::from(sizes.blocks)) as u32, None);
        compare(&simulate(&setup, &arrivals), &walk(&mut engine, &sizes, &arrivals, u32::from(paper), false));
    }

    #[test]
    fn wait_is_the_walk(
        sizes in sizes(),
        thresholds in prop::collection::vec(prop_oneof![(1..6u32).prop_map(f64::from), 0.1..4.0], 2),
        open in any::<bool>(),
        hold_ms in prop_oneof![Just(None), (0..20u64).prop_map(Some)],
        hidden in any::<bool>(),
        arrivals in arrivals(),
    ) {
        let types = json!([{"prompt": 8, "output": 5, "rate": 1.0}, {"prompt": 20, "output": 16, "rate": 1.0}]);
        let mut policy = json!({"policy": "wait", "types": types, "thresholds": thresholds, "work_conserving": open});
        if let Some(ms) = hold_ms {
            policy["max_hold"] = json!(ms as f64 * 1e-3);
        }
        let setup = setup(&sizes, &policy, if hidden { Lengths::Hidden } else { Lengths::Known });
        let kinds = [(thresholds[0], 5), (thresholds[1], 16)];
        let hold_ns = hold_ms.map(|ms| (ms as f64 * 1e-3 * 1e9) as u64);
        let mut engine = Wait::new(sizes, &kinds, open, hold_ns);
        compare(&simulate(&setup, &arrivals), &walk(&mut engine, &sizes, &arrivals, 0, true));
    }
}
