//! Random hosts, honest and lying, make every possible call to schedulers of every policy. After each call the core's
//! state agrees with an independent ledger (`ledger.rs`), plans keep the limits and the order of the queues, and in the
//! end, once the host is honest and no more arrivals come, everything that was accepted has run.
//!
//! Debug builds also recount the whole state after each plan and each report (`src/state/invariants.rs`).

mod agree;
mod cached;
mod checks;
mod door;
mod host;
mod kv;
mod ledger;
mod world;

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use wait_core::config::PolicyName;

use host::Host;
use world::{Addition, Lies, Op, World, op, policies, world};

/// Seeds that have failed.
const FAILED: &[u64] =
    &[65, 127, 1_000_135, 1_001_052, 1_001_254, 1_002_140, 1_002_867, 1_003_142, 1_004_077, 1_007_120, 2_014_073];

/// Runs a random world; returns the number of calls. On failure the shortest failing list of calls is printed.
fn run(seed: u64) -> usize {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let failure_persistence = None;
    let config = ProptestConfig {
        cases: 1,
        failure_persistence,
        max_shrink_iters: 1_000_000,
        max_shrink_time: 30_000,
        ..ProptestConfig::default()
    };
    let calls = Cell::new(0);
    let case = (world(), prop::collection::vec(op(), 1..240));
    let outcome = TestRunner::new_with_rng(config, rng).run(&case, |(world, ops)| {
        calls.set(ops.len());
        let mut host = Host::new(&world);
        for op in &ops {
            host.run(op);
        }
        host.finish();
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    calls.get()
}

fn run_from(first: u64, calls: usize) {
    let (mut made, mut seed) = (0, first);
    while made < calls {
        made += run(seed);
        seed += 1;
    }
    println!("{made} calls in {} worlds", seed - first);
}

#[test]
fn twenty_thousand_calls() {
    run_from(0, 20_000);
}

#[test]
#[ignore = "slow: minutes, in a release build"]
fn a_million_calls() {
    run_from(1_000_000, 1_000_000);
}

#[test]
fn what_has_failed_before() {
    for &seed in FAILED {
        run(seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing but arrivals and whole iterations, and a cache that is always short.
    #[test]
    fn a_host_that_behaves_in_a_tight_cache(
        policy in 0..policies().len(),
        requests in prop::collection::vec((1..30u32, 1..20u32, 0..4u8, 0..3i64, 0..4usize), 1..60),
        seats in 2..9u32,
    ) {
        let mut host = Host::new(&World::tight(policy, seats));
        for (prompt, output, hint, priority, plans) in requests {
            host.run(&Op::Add(Addition { priority, ..Addition::plain(prompt, output, hint) }));
            for _ in 0..plans {
                host.run(&Op::Plan { after_ns: 0 });
                host.run(&Op::Report(Lies::none()));
            }
        }
        host.finish();
        let clairvoyant = host.config.policy == PolicyName::Clairvoyant && !host.config.host_preempts;
        prop_assert!(!clairvoyant || host.core.stats().preemptions == 0, "with known lengths it never preempts");
    }
}
