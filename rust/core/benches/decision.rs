//! Criterion benchmarks of the core: an iteration in steady decode, a burst of admissions, aborts.

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use wait_core::{Config, LengthHint, Report, Request, Scheduler};

const POLICIES: [&str; 2] = ["vllm", "wait"];

fn scheduler(policy: &str, seats: u64) -> Scheduler {
    let settings = serde_json::json!({
        "policy": policy,
        "kv_blocks": seats * 256,
        "max_num_seqs": seats,
        "token_budget": 1_000_000,
        "max_model_len": 4096,
        "types": [{"prompt": 64, "output": 1024, "rate": 1.0}],
        "thresholds": [1e6],
    });
    let serde_json::Value::Object(settings) = settings else { unreachable!("an object was written") };
    Scheduler::new(&Config::from_map(settings).expect("valid settings")).expect("a scheduler")
}

fn add(scheduler: &mut Scheduler, ids: std::ops::Range<u64>) {
    for id in ids {
        let prompt = 32 + (id % 64) as u32;
        let request = Request { id, prompt, output: LengthHint::Exact(2048), ..Request::default() };
        scheduler.add(&request).expect("it fits");
    }
}

fn loaded(policy: &str, running: u64, waiting: u64) -> Scheduler {
    let mut scheduler = scheduler(policy, running);
    add(&mut scheduler, 0..running);
    scheduler.plan(0);
    add(&mut scheduler, running..running + waiting);
    scheduler
}

fn iteration(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("iteration");
    for policy in POLICIES {
        for (running, waiting) in [(256, 1_000), (1_024, 10_000), (8_192, 100_000)] {
            let name = BenchmarkId::new(policy, format!("{running} running, {waiting} waiting"));
            group.bench_function(name, |bencher| {
                let mut scheduler = loaded(policy, running, waiting);
                bencher.iter(|| {
                    scheduler.plan(0);
                    scheduler.complete(&Report::default());
                });
            });
        }
    }
    group.finish();
}

fn burst(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("burst of 1,000");
    for policy in POLICIES {
        group.bench_function(BenchmarkId::new("add and admit", policy), |bencher| {
            bencher.iter_batched_ref(
                || scheduler(policy, 1_024),
                |scheduler| {
                    add(scheduler, 0..1_000);
                    scheduler.plan(0);
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn abort(criterion: &mut Criterion) {
    criterion.bench_function("abort of 10,000 waiting", |bencher| {
        bencher.iter_batched_ref(
            || loaded("vllm", 256, 10_000),
            |scheduler| (256..10_256).all(|id| scheduler.abort(id)),
            BatchSize::LargeInput,
        );
    });
}

criterion_group!(benches, iteration, burst, abort);
criterion_main!(benches);
