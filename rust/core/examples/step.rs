//! Steady decode for an instruction counter: `step POLICY RUNNING WAITING ITERATIONS`.
//!
//! In each iteration one request finishes and the next in line takes its seat, so that every part of a step is
//! exercised. Counting two runs with different ITERATIONS and subtracting leaves the cost of the steps alone.

use wait_core::{Config, Report, Request, Scheduler};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |i: usize| arguments[i].parse::<u64>().expect("a number");
    let (policy, running, waiting, iterations) = (&arguments[1], number(2), number(3), number(4));
    let mut scheduler = loaded(policy, running, waiting);
    for (finished, next) in (0..iterations).zip(running + waiting..) {
        scheduler.plan(finished);
        scheduler.complete(&Report { finished: &[finished], ..Report::default() });
        scheduler.add(&request(next)).expect("it fits");
    }
    // One line of output keeps the optimiser honest.
    println!("{}", scheduler.stats().finished);
}

/// A scheduler whose seats are all taken by decodes, with `waiting` requests behind them.
fn loaded(policy: &str, running: u64, waiting: u64) -> Scheduler {
    let settings = serde_json::json!({
        "policy": policy,
        "kv_blocks": running * 128,
        "max_num_seqs": running,
        "token_budget": 1024 + 2 * running,
        "max_model_len": 2048,
        "types": [{"prompt": 64, "output": 1024, "rate": 1.0}],
        // WAIT: the gate never binds, the seats do.
        "thresholds": [1000.0],
    });
    let serde_json::Value::Object(settings) = settings else { unreachable!("an object was written") };
    let mut scheduler = Scheduler::new(&Config::from_map(settings).expect("valid settings")).expect("a scheduler");
    for id in 0..running {
        scheduler.add(&request(id)).expect("it fits");
    }
    while scheduler.view().waiting_total() > 0 || !scheduler.view().prefilling().is_empty() {
        scheduler.plan(0);
    }
    for id in running..running + waiting {
        scheduler.add(&request(id)).expect("it fits");
    }
    scheduler
}

fn request(id: u64) -> Request {
    let prompt = 32 + (id % 64) as u32;
    Request { id, prompt, output: wait_core::LengthHint::Exact(1024), ..Request::default() }
}
