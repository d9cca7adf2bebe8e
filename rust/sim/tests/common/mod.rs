//! What the tests of fleets share.

use std::ops::ControlFlow;

use wait_core::Config;
use wait_core::config::PolicyName;
use wait_core::model::IterationTime;
use wait_core::routing::{RouterName, Routing};
use wait_sim::dataset::{Component, Dataset, Lengths, Phase, Process};
use wait_sim::{Change, ChangeKind, Conversations, Fleet, FleetRun, NEVER_NS, Requests, Setup};

/// An engine on the A100 law.
pub(crate) fn engine(policy: PolicyName, kv_blocks: u32, max_num_seqs: u32) -> Config {
    Config { policy, kv_blocks, max_num_seqs, iteration_time: Some(IterationTime::A100), ..Config::default() }
}

/// So many engines of one kind behind a router.
pub(crate) fn alike(config: &Config, replicas: usize, router: RouterName, staleness_ns: u64) -> Fleet {
    Fleet {
        setup: Setup::new(config.clone(), IterationTime::A100),
        engines: vec![(config.clone(), IterationTime::A100); replicas],
        routing: Routing { router, seed: 7, ..Routing::default() },
        prefill: None,
        staleness_ns,
        changes: Vec::new(),
        routers: 1,
        sessions: Vec::new(),
        threads: 1,
    }
}

/// Runs a fleet to its end.
pub(crate) fn run<'a>(fleet: &Fleet, requests: impl Into<Requests<'a>>) -> FleetRun {
    wait_sim::fleet(fleet, requests, |_| ControlFlow::Continue(())).unwrap()
}

/// Something that happens to a replica, ms after the start.
pub(crate) fn change(at_ms: u64, replica: usize, kind: ChangeKind) -> Change {
    Change { at_ns: at_ms * 1_000_000, replica, kind }
}

/// Requests with prompts of about 150 tokens, and outputs of this mean logarithm; none is shorter than `low`.
pub(crate) fn dataset(low: u32, output: f64, conversations: Option<Conversations>) -> Dataset {
    let lengths = |mu| Lengths::Lognormal { mu, sigma: 0.8, low, high: 800 };
    let component = Component { name: "one".into(), weight: 1.0, prompt: lengths(5.0), output: lengths(output) };
    let phases = vec![Phase { start: 0.0, components: vec![component] }];
    Dataset { arrivals: Process::Poisson, phases, conversations }
}

/// Conversations of four turns that share a system prompt.
pub(crate) fn conversations() -> Conversations {
    Conversations { turns: 4.0, think_s: 1.0, think_sigma: 0.5, system: 64, max_length: 4000 }
}

/// Every request ends once, and after it began.
pub(crate) fn conserves(found: &FleetRun, requests: usize) {
    let run = &found.run;
    assert_eq!(run.completed + run.failed, requests);
    assert_eq!(run.finished_ns.iter().filter(|&&ns| ns != NEVER_NS).count(), run.completed);
    for i in (0..requests).filter(|&i| run.finished_ns[i] != NEVER_NS) {
        let times = [run.arrival_ns[i], run.admitted_ns[i], run.first_token_ns[i], run.finished_ns[i]];
        assert!(times.is_sorted(), "{i}: {times:?}");
        assert!((found.served.replica_of[i] as usize) < found.served.replicas.len());
    }
}
