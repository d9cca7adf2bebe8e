//! Every course of small worlds: up to four requests, up to six blocks, and at each step every possible call: an
//! arrival, a plan, a report (honest, or one that says a request was preempted, refused, has finished early or is not
//! as far as planned), an abort, a change of the capacity. Breadth first; a state that was reached before is not
//! expanded again.
//!
//! In every state: blocks in use are within the capacity after a plan, no request is lost, and an honest host that
//! continues from there finishes every request, with nothing left in use.

mod state;

use std::collections::{HashSet, VecDeque};

use serde_json::{Value, json};
use state::{Cache, Call, State};

fn policies() -> [(&'static str, Value); 8] {
    let types = json!([{"prompt": 2, "output": 2, "rate": 1.0}, {"prompt": 3, "output": 3, "rate": 1.0}]);
    [
        ("vllm", json!({"policy": "vllm"})),
        ("wait", json!({"policy": "wait", "types": types, "thresholds": [2.0, 1.0], "work_conserving": false})),
        ("wait, work conserving", json!({"policy": "wait", "types": types, "thresholds": [1.5, 0.5]})),
        (
            "nested-wait",
            json!({"policy": "nested-wait", "boundaries": [1, 3], "thresholds": [2.0, 1.0], "work_conserving": false}),
        ),
        ("clairvoyant", json!({"policy": "clairvoyant"})),
        ("adaptive", json!({"policy": "adaptive"})),
        ("sarathi", json!({"policy": "sarathi"})),
        ("prefill-first", json!({"policy": "prefill-first"})),
    ]
}

/// Explores all courses of at most `depth` calls; returns the number of states.
fn explore(settings: &Value, cache: &Cache, depth: usize) -> usize {
    let first = State::new(settings, cache);
    let mut seen = HashSet::from([first.key()]);
    let mut frontier = VecDeque::from([(first, Vec::<Call>::new())]);
    while let Some((state, course)) = frontier.pop_front() {
        state.finishes(&course);
        if course.len() == depth {
            continue;
        }
        for call in state.calls() {
            let mut next = state.clone();
            let course = [&course[..], &[call]].concat();
            next.make(call, &course);
            if seen.insert(next.key()) {
                frontier.push_back((next, course));
            }
        }
    }
    seen.len()
}

fn explore_all(depth: usize, caches: &[Cache]) {
    for (name, settings) in policies() {
        // It has so much state that few courses meet again, and exploring one takes longest.
        let depth = if name == "adaptive" { depth - 2 } else { depth };
        let states: Vec<usize> = caches.iter().map(|cache| explore(&settings, cache, depth)).collect();
        println!(
            "{name}: {} states, {states:?} by cache, courses of up to {depth} calls",
            states.iter().sum::<usize>()
        );
        assert!(states.iter().all(|&states| states > 100), "{name} went nowhere: {states:?}");
    }
}

/// Tight for two requests at a time, in blocks of one token and of two.
const CACHES: [Cache; 2] = [Cache { blocks: 5, block_size: 1 }, Cache { blocks: 3, block_size: 2 }];

#[test]
fn all_courses_of_a_few_calls() {
    explore_all(5, &CACHES);
}

#[test]
#[ignore = "slow: minutes, in a release build"]
fn all_courses() {
    explore_all(7, &CACHES);
    explore_all(7, &[Cache { blocks: 6, block_size: 1 }, Cache { blocks: 4, block_size: 2 }]);
}
