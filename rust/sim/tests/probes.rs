//! Probes: the truth beside a forecast is that of a recount, and taking them changes nothing.

use std::ops::ControlFlow;

use serde_json::json;
use wait_core::Config;
use wait_core::model::IterationTime;
use wait_sim::{Arrival, Setup};

fn setup(policy: &str, kv_blocks: u32) -> Setup {
    let serde_json::Value::Object(settings) = json!({"policy": policy, "kv_blocks": kv_blocks, "block_size": 16})
    else {
        unreachable!()
    };
    Setup::new(Config::from_map(settings).unwrap(), IterationTime::linear(0.01, 1e-6).unwrap())
}

fn arrivals() -> Vec<Arrival> {
    (0..40)
        .map(|i| Arrival {
            at_ns: u64::from(i) * 20_000_000,
            prompt: 20 + i * 7 % 50,
            output: 30 + i * 37 % 90,
            label: 0,
        })
        .collect()
}

#[test]
fn one_request_holds_what_it_will() {
    let arrivals = [Arrival { at_ns: 0, prompt: 10, output: 50, label: 0 }];
    let probes = wait_sim::probe(&setup("adaptive", 20), &arrivals, 1).unwrap();
    let columns = probes.horizon.len();
    // After the first iteration it holds its prompt and has one token; 49 are left. It is gone after the last.
    assert_eq!((probes.completed.len(), probes.residents[0], probes.completed[0]), (49, 1, 0));
    for (i, at) in [(0_u64, 0), (20, 20)] {
        let (left, kv) = (49 - i, 10 + i);
        for (j, &horizon) in probes.horizon.iter().enumerate() {
            let h = u64::from(horizon);
            let blocks = |tokens: u64| tokens.div_ceil(16) * 16;
            let place = at * columns + j;
            assert_eq!(probes.truth[place], if h <= left { blocks(kv + h) } else { 0 }, "{horizon} after {i}");
            assert_eq!(probes.peak[place], blocks(kv + h.min(left)), "{horizon} after {i}");
        }
    }
}

#[test]
fn memory_overflows_no_more_often_than_if_every_request_held_its_most() {
    let probes = wait_sim::probe(&setup("adaptive", 60), &arrivals(), 3).unwrap();
    assert!(probes.residents.iter().any(|&n| n > 4) && probes.overflow.iter().any(|&p| p > 0.001));
    assert!(probes.overflow.iter().all(|p| (0.0..=1.0).contains(p)));
    assert!(probes.truth.iter().zip(&probes.peak).all(|(now, most)| now <= most));
    assert!(wait_sim::probe(&setup("vllm", 60), &arrivals(), 3).unwrap().completed.is_empty());
}

#[test]
fn taking_probes_changes_no_run() {
    let setup = setup("adaptive", 60);
    let run = wait_sim::run(&setup, &arrivals(), |_| ControlFlow::Continue(())).unwrap();
    let every = |n: u64| wait_sim::probe(&setup, &arrivals(), n).unwrap();
    let (often, seldom) = (every(1), every(8));
    let last = |probes: &wait_sim::Probes| probes.completed.iter().copied().max().unwrap();
    assert!(last(&often) < run.completed as u64 && last(&seldom) <= last(&often));
    // The probes of the one are among those of the other.
    let columns = often.horizon.len();
    let rows: Vec<&[f64]> = often.mean.chunks(columns).collect();
    assert!(seldom.mean.chunks(columns).all(|row| rows.contains(&row)));
}
