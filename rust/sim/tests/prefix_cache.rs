//! Runs with a prefix cache: what conversations and traces find in it.

use std::ops::ControlFlow;

use proptest::prelude::*;
use serde_json::json;
use wait_core::Config;
use wait_core::model::IterationTime;
use wait_sim::{Arrival, Follow, Prefixes, Requests, Run, Setup};

fn setup(blocks: u32, block_size: u32) -> Setup {
    let settings = json!({"kv_blocks": blocks, "block_size": block_size, "prefix_caching": true});
    let config = Config::from_map(settings.as_object().unwrap().clone()).unwrap();
    Setup::new(config, IterationTime::linear(0.01, 1e-6).unwrap())
}

fn run(setup: &Setup, requests: Requests) -> Run {
    wait_sim::run(setup, requests, |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn the_second_turn_computes_what_is_new() {
    let arrivals = [(0, 20, 14), (0, 40, 2), (1, 20, 2)];
    let arrivals = arrivals.map(|(at_ns, prompt, output)| Arrival { at_ns, prompt, output, label: 0 });
    let follows = [None, Some(Follow { after: 0, think_ns: 7 }), None];
    let requests = Requests { arrivals: &arrivals, follows: &follows, prefixes: Prefixes::Conversations { system: 8 } };
    let found = run(&setup(100, 4), requests);
    assert_eq!(found.arrival_ns, [0, found.finished_ns[0] + 7, 1]);
    // The second turn finds 33 of the 34 tokens before it, in whole blocks: 32; the stranger finds the system prompt.
    assert_eq!((found.prompt_tokens, found.cached_tokens, found.prefill_tokens), (80, 32 + 8, 40));
    let strangers = Requests { prefixes: Prefixes::Distinct, ..requests };
    assert_eq!(run(&setup(100, 4), strangers).cached_tokens, 0);
    let mut off = setup(100, 4);
    off.config.prefix_caching = false;
    assert_eq!(run(&off, requests).cached_tokens, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// One request at a time, and room for all that was ever computed: each finds the longest prefix that any request before
    /// it has in common with it.
    #[test]
    fn each_finds_the_longest_prefix_that_was_computed_before(
        rows in prop::collection::vec((prop::collection::vec(0..3u64, 1..6), 1..16u32, 1..9u32), 1..12),
        tokens in 1..10u32,
        block in 1..10u32,
    ) {
        let (mut ids, mut offsets, mut arrivals) = (Vec::new(), vec![0], Vec::new());
        for (own, extra, output) in &rows {
            arrivals.push(Arrival { at_ns: 0, prompt: own.len() as u32 * tokens + extra, output: *output, label: 0 });
            ids.extend(own);
            offsets.push(ids.len() as u64);
        }
        let requests = Requests {
            arrivals: &arrivals,
            follows: &[],
            prefixes: Prefixes::Named { ids: &ids, offsets: &offsets, tokens },
        };
        let found = run(&Setup { max_concurrency: Some(1), ..setup(10_000, block) }, requests);
        let mut expected = 0;
        for (i, (own, ..)) in rows.iter().enumerate() {
            let common = |(other, ..): &(Vec<u64>, u32, u32)| own.iter().zip(other).take_while(|(a, b)| a == b).count();
            let most = rows[..i].iter().map(common).max().unwrap_or(0) as u32 * tokens;
            expected += u64::from(most.min(arrivals[i].prompt - 1) / block * block);
        }
        prop_assert_eq!(found.cached_tokens, expected);
    }
}
