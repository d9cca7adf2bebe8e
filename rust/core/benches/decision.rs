//! Criterion benchmarks of the core: an iteration in which requests come and go, a burst of admissions, aborts.

#[path = "../tests/common/steady.rs"]
mod steady;

use std::time::Instant;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use steady::{CASES, Engine, SPREAD};

fn iteration(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("iteration");
    for case in CASES {
        for (running, waiting) in [(256, 1_000), (1_024, 10_000), (8_192, 1_000_000)] {
            let name = BenchmarkId::new(case, format!("{running} running, {waiting} waiting"));
            group.bench_function(name, |bencher| {
                let mut engine = Engine::loaded(case, running, waiting);
                bencher.iter(|| engine.step(running.div_ceil(SPREAD)));
            });
        }
    }
    group.finish();
}

/// The longest of as many iterations as it takes to update every class's curve, in the quietest of 64 rounds, so that
/// other load on the machine does not count.
fn longest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("longest of 64 iterations");
    for case in ["adaptive", "adaptive, 128 classes"] {
        group.bench_function(case, |bencher| {
            let mut engine = Engine::loaded(case, 256, 1_000);
            bencher.iter_custom(|times| {
                let mut longest = || {
                    let timed = |_| {
                        let start = Instant::now();
                        engine.step(1);
                        start.elapsed()
                    };
                    (0..64).map(timed).max().unwrap_or_default()
                };
                let mut quietest = || (0..64).map(|_| longest()).min().unwrap_or_default();
                (0..times).map(|_| quietest()).sum()
            });
        });
    }
    group.finish();
}

fn burst(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("burst of 1,000 added and admitted");
    for case in CASES {
        group.bench_function(case, |bencher| {
            bencher.iter_batched_ref(
                || Engine::empty(case, 1_000, 1_000),
                |engine| engine.burst(1_000),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn abort(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("abort of 10,000 waiting");
    for case in CASES {
        group.bench_function(case, |bencher| {
            bencher.iter_batched_ref(
                || Engine::loaded(case, 256, 10_000),
                |engine| engine.abort_last(10_000),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, iteration, longest, burst, abort);
criterion_main!(benches);
