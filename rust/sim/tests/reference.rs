//! The simulator against a loop that walks every request at every iteration: the same times, gaps and counts exactly.

use std::ops::ControlFlow;

use proptest::prelude::*;
use serde_json::{Value, json};
use wait_core::Config;
use wait_core::model::IterationTime;
use wait_sim::{Arrival, Follow, Lengths, NEVER_NS, Requests, Run, Setup};

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
    by_length: usize,
    iterations: u64,
    decode_tokens: u64,
    prefill_tokens: u64,
    peak_blocks: u32,
    drained_ns: u64,
}

/// Requests, which each follows, and where outputs end.
#[derive(Clone, Debug)]
struct Offer {
    arrivals: Vec<Arrival>,
    follows: Vec<Option<Follow>>,
    max_tokens: Option<u32>,
}

impl Offer {
    fn requests(&self) -> Requests<'_> {
        Requests { arrivals: &self.arrivals, follows: &self.follows, ..Requests::default() }
    }

    fn output(&self, id: usize) -> u32 {
        self.arrivals[id].output.min(self.max_tokens.unwrap_or(u32::MAX))
    }

    /// The conversation so far, and what is new.
    fn prompt(&self, id: usize) -> u32 {
        self.follows[id].map_or(self.arrivals[id].prompt, |Follow { after, .. }| {
            let before = after as usize;
            let new = self.arrivals[id].prompt - self.arrivals[before].prompt - self.arrivals[before].output;
            self.prompt(before) + self.output(before) + new
        })
    }

    /// Those that follow `id`, and those that follow these.
    fn after(&self, id: usize) -> usize {
        let mut all = vec![id];
        for (next, follow) in self.follows.iter().enumerate() {
            if follow.is_some_and(|follow| all.contains(&(follow.after as usize))) {
                all.push(next);
            }
        }
        all.len() - 1
    }
}

/// `extra` is 1 where a request takes an iteration more than it has output tokens (the paper's convention); `gated`
/// engines drain when they preempt after the last arrival.
fn walk(engine: &mut impl Engine, sizes: &Sizes, offer: &Offer, extra: u32, gated: bool) -> Book {
    let n = offer.arrivals.len();
    let mut book = Book {
        admitted_ns: vec![NEVER_NS; n],
        tokens_ns: vec![Vec::new(); n],
        finished_ns: vec![NEVER_NS; n],
        preemptions: vec![0; n],
        drained_ns: NEVER_NS,
        ..Book::default()
    };
    // Times at which requests are sent, as far as they are known.
    let mut sends: Vec<(u64, usize)> =
        (0..n).filter(|&id| offer.follows[id].is_none()).map(|id| (offer.arrivals[id].at_ns, id)).collect();
    let mut now_ns = offer.arrivals[0].at_ns;
    loop {
        sends.sort_unstable();
        while sends.first().is_some_and(|&(at_ns, _)| at_ns <= now_ns) {
            let (arrival_ns, id) = sends.remove(0);
            let (prompt, output) = (offer.prompt(id), offer.output(id) + extra);
            if prompt + output > sizes.blocks * sizes.block_size {
                book.failed += 1 + offer.after(id);
            } else {
                let kind = usize::from(offer.arrivals[id].label);
                engine.add(Request { id: id as u64, kind, arrival_ns, prompt, output, ..Request::default() });
            }
        }
        let step = engine.step(now_ns);
        if step.tokens() == 0 && step.preempted.is_empty() {
            let arrival = sends.first().map(|&(at_ns, _)| at_ns);
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
        let last = sends.is_empty();
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
            book.by_length += usize::from(offer.arrivals[id as usize].output > offer.output(id as usize));
            for (next, follow) in offer.follows.iter().enumerate() {
                if let Some(Follow { think_ns, .. }) = follow.filter(|follow| u64::from(follow.after) == id) {
                    sends.push((offer.arrivals[next].at_ns.max(now_ns + think_ns), next));
                }
            }
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
    assert_eq!(run.finished_by_length, book.by_length);
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
        lengths,
        typed: true,
        overhead_ns: OVERHEAD_NS,
        ..Setup::new(
            Config::from_map(settings.as_object().unwrap().clone()).unwrap(),
            IterationTime::linear(D0_NS as f64 * 1e-9, D1_NS as f64 * 1e-9).unwrap(),
        )
    }
}

fn simulate(setup: &Setup, offer: &Offer) -> Run {
    let setup = Setup { max_tokens: offer.max_tokens, ..setup.clone() };
    let run = wait_sim::run(&setup, offer.requests(), |_| ControlFlow::Continue(())).unwrap();
    for id in 0..offer.arrivals.len() {
        assert_eq!((run.prompt[id], run.output[id]), (offer.prompt(id), offer.output(id)));
    }
    run
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

/// Bursts, gaps within an iteration, and long silences; alone, and in conversations that may branch.
fn offers() -> impl Strategy<Value = Offer> {
    let gap = prop_oneof![3 => Just(0), 3 => 0..3_000_000u64, 1 => 0..100_000_000u64];
    let after = prop_oneof![2 => Just(None), 1 => (0..4usize, gap.clone()).prop_map(Some)];
    let rows = prop::collection::vec((gap, 1..30u32, 1..20u32, 0..2u16, after), 1..60);
    (rows, any::<bool>(), prop::option::of(1..20u32)).prop_map(|(rows, closed, max_tokens)| {
        let mut offer = Offer { arrivals: Vec::new(), follows: Vec::new(), max_tokens };
        let mut at_ns = 12_345;
        for (id, (gap, new, output, label, after)) in rows.into_iter().enumerate() {
            at_ns += gap;
            let after = after.filter(|&(back, _)| closed && back < id);
            let follow = after.map(|(back, think_ns)| Follow { after: (id - 1 - back) as u32, think_ns });
            let held = follow.map_or(0, |Follow { after, .. }| {
                offer.arrivals[after as usize].prompt + offer.arrivals[after as usize].output
            });
            offer.arrivals.push(Arrival { at_ns, prompt: held + new, output, label });
            offer.follows.push(follow);
        }
        offer
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
        offer in offers(),
    ) {
        let watermark = f64::from(watermark) * 0.1;
        let policy = json!({
            "policy": "vllm",
            "watermark": watermark,
            "convention": if paper { "paper" } else { "vllm" },
        });
        let setup = setup(&sizes, &policy, if hidden { Lengths::Hidden } else { Lengths::Known });
        let mut engine = V1::new(sizes, (watermark * f64::from(sizes.blocks)) as u32);
        compare(&simulate(&setup, &offer), &walk(&mut engine, &sizes, &offer, u32::from(paper), false));
    }

    #[test]
    fn wait_is_the_walk(
        sizes in sizes(),
        thresholds in prop::collection::vec(prop_oneof![(1..6u32).prop_map(f64::from), 0.1..4.0], 2),
        open in any::<bool>(),
        hold_ms in prop_oneof![Just(None), (0..20u64).prop_map(Some)],
        hidden in any::<bool>(),
        offer in offers(),
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
        compare(&simulate(&setup, &offer), &walk(&mut engine, &sizes, &offer, 0, true));
    }
}
