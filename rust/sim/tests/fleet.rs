//! A fleet: one replica is an engine, every request ends once whatever happens to replicas, and routers do what they are for.

use std::ops::ControlFlow;

use common::{alike, change, conserves, conversations, dataset, engine, run};
use wait_core::Config;
use wait_core::config::PolicyName;
use wait_core::model::IterationTime;
use wait_core::routing::RouterName;
use wait_sim::{Arrival, ChangeKind, Fleet, FleetRun, Follow, NEVER_NS, Requests, Sampled, Setup, SimError};

mod common;

fn config(policy: PolicyName) -> Config {
    engine(policy, 600, 64)
}

fn fleet_of(policy: PolicyName, replicas: usize, router: RouterName, staleness_ns: u64) -> Fleet {
    alike(&config(policy), replicas, router, staleness_ns)
}

fn go(_: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn turns() -> Sampled {
    dataset(4, 4.5, Some(conversations())).sample(300, 8.0, 3).unwrap()
}

#[test]
fn one_replica_is_an_engine_to_the_bit() {
    let (sampled, chat) = (turns(), dataset(4, 4.5, None).sample(300, 12.0, 5).unwrap());
    for policy in [PolicyName::Adaptive, PolicyName::Vllm] {
        for (requests, caches) in [(chat.requests(), false), (sampled.requests(), true)] {
            for router in RouterName::ALL {
                for staleness_ns in [0, 500_000_000] {
                    let mut fleet = fleet_of(policy, 1, router, staleness_ns);
                    // Held at the door a request is not in the engine's queue.
                    fleet.routing.longest_queue = f64::INFINITY;
                    fleet.engines[0].0.prefix_caching = caches;
                    fleet.setup.config.prefix_caching = caches;
                    fleet.setup.steps.jitter = 0.1;
                    fleet.setup.steps.reported = true;
                    let alone = wait_sim::run(&fleet.setup, requests, go).unwrap();
                    assert!(run(&fleet, requests).run == alone, "{policy:?}, {router:?}, {staleness_ns}");
                }
            }
        }
    }
}

#[test]
fn one_replica_refuses_and_opens_its_gates_as_an_engine_does() {
    let arrivals: Vec<Arrival> = (0..200)
        .map(|i| Arrival {
            at_ns: i * 30_000_000,
            prompt: 200 + 60 * (i as u32 % 3),
            output: 100,
            label: (i % 2) as u16,
        })
        .collect();
    let mut config = config(PolicyName::Wait);
    config.max_queued_requests = Some(20);
    config.types = vec![];
    let types =
        [(200, 100), (320, 100)].map(|(prompt, output)| wait_core::model::RequestType { prompt, output, rate: 10.0 });
    config.types = types.to_vec();
    config.thresholds = Some(vec![3.0, 3.0]);
    config.work_conserving = false;
    let follows: Vec<Option<Follow>> = vec![None; arrivals.len()];
    let mut fleet = fleet_of(PolicyName::Wait, 1, RouterName::LeastRequests, 0);
    fleet.setup =
        Setup { typed: true, lengths: wait_sim::Lengths::Known, ..Setup::new(config.clone(), IterationTime::A100) };
    fleet.engines = vec![(config, IterationTime::A100)];
    for most in [None, Some(7)] {
        fleet.setup.max_concurrency = most;
        let requests = Requests { arrivals: &arrivals, follows: &follows, ..Requests::default() };
        let alone = wait_sim::run(&fleet.setup, requests, go).unwrap();
        let found = run(&fleet, requests);
        assert!(found.run == alone);
        assert!(most.is_some() || alone.failed > 0);
        assert_ne!(alone.drained_ns, NEVER_NS);
        conserves(&found, arrivals.len());
    }
}

#[test]
fn every_request_ends_once_whatever_happens_to_replicas() {
    let (sampled, chat) = (turns(), dataset(4, 4.5, None).sample(400, 30.0, 5).unwrap());
    for router in RouterName::ALL {
        for (requests, caches) in [(chat.requests(), false), (sampled.requests(), true)] {
            for staleness_ns in [0, 1_000_000_000] {
                let mut fleet = fleet_of(PolicyName::Adaptive, 4, router, staleness_ns);
                fleet.engines.iter_mut().for_each(|(config, _)| config.prefix_caching = caches);
                fleet.changes = vec![
                    change(2_000, 0, ChangeKind::Fail),
                    change(3_000, 1, ChangeKind::Drain),
                    change(5_000, 0, ChangeKind::Join),
                    change(6_000, 3, ChangeKind::Join),
                    change(7_000, 2, ChangeKind::Fail),
                    change(7_000, 2, ChangeKind::Fail),
                    change(8_000, 1, ChangeKind::Join),
                    change(9_000, 2, ChangeKind::Join),
                    change(10_000, 0, ChangeKind::Fail),
                ];
                let found = run(&fleet, requests);
                conserves(&found, requests.arrivals.len());
                let done: usize = found.served.replicas.iter().map(|run| run.completed).sum();
                assert_eq!((found.run.failed, done), (0, found.run.completed), "{router:?}");
                assert!(found.served.resent > 0, "{router:?}");
                assert!(found.served.replicas.iter().all(|run| run.completed > 0), "{router:?}: each served some");
                assert!(run(&fleet, requests) == found, "the same inputs give the same");
                // One that failed for good served none after that.
                let last = found
                    .run
                    .finished_ns
                    .iter()
                    .zip(&found.served.replica_of)
                    .filter(|&(_, &at)| at == 0)
                    .map(|(&ns, _)| ns)
                    .max();
                assert!(last.unwrap() <= 10_000_000_000);
            }
        }
    }
}

#[test]
fn several_routers_each_count_what_they_have_sent_themselves() {
    // None ends before all are sent, each to a router of its own but for every fourth: two routers send the first two of theirs
    // to the same two replicas of four.
    let arrivals: Vec<Arrival> =
        (0..8).map(|i| Arrival { at_ns: i * 1_000, prompt: 300, output: 50, label: 0 }).collect();
    let mut fleet = fleet_of(PolicyName::Vllm, 4, RouterName::LeastRequests, 0);
    let mut replicas = |routers| {
        fleet.routers = routers;
        run(&fleet, &arrivals).served.replica_of
    };
    assert_eq!(replicas(1), [0, 1, 2, 3, 0, 1, 2, 3]);
    assert_eq!(replicas(2), [0, 0, 1, 1, 2, 2, 3, 3]);
    assert_eq!(replicas(4), [0, 0, 0, 0, 1, 1, 1, 1]);
    fleet.routers = 2;
    fleet.sessions = vec![0, 0, 2, 0, 4, 5, 6, 7];
    // The first three of a session come to one router, and the others to the routers in turn.
    assert_eq!(run(&fleet, &arrivals).served.replica_of, [0, 1, 0, 2, 3, 1, 0, 2]);
}

#[test]
fn several_routers_lose_no_request_whatever_happens_to_replicas() {
    let chat = dataset(4, 4.5, None).sample(400, 30.0, 5).unwrap();
    for router in RouterName::ALL {
        let mut fleet = fleet_of(PolicyName::Adaptive, 4, router, 100_000_000);
        fleet.routers = 3;
        fleet.routing.ttft_target = Some(2.0);
        fleet.changes = (0..4).map(|at| change(3_000, at, ChangeKind::Fail)).collect();
        fleet.changes.extend((0..4).map(|at| change(6_000, at, ChangeKind::Join)));
        fleet.changes.extend([change(8_000, 0, ChangeKind::Drain), change(9_000, 0, ChangeKind::Join)]);
        let found = run(&fleet, chat.requests());
        conserves(&found, 400);
        assert!(found.run.failed == 0 && found.served.resent > 0, "{router:?}");
        fleet.threads = 3;
        assert!(run(&fleet, chat.requests()) == found, "{router:?}");
    }
}

#[test]
fn without_replicas_requests_wait_at_the_door_or_fail_clearly() {
    let chat = dataset(4, 4.5, None).sample(100, 30.0, 5).unwrap();
    for router in RouterName::ALL {
        let mut fleet = fleet_of(PolicyName::Adaptive, 2, router, 0);
        fleet.changes = vec![change(0, 0, ChangeKind::Fail), change(0, 1, ChangeKind::Fail)];
        let found = run(&fleet, chat.requests());
        assert_eq!((found.run.completed, found.run.failed, found.served.held), (0, 100, 100), "{router:?}");
        fleet.changes.push(change(60_000, 1, ChangeKind::Join));
        let found = run(&fleet, chat.requests());
        assert_eq!((found.run.completed, found.run.failed), (100, 0), "{router:?}");
        assert!(found.run.admitted_ns.iter().all(|&ns| ns >= 60_000_000_000));
        fleet.changes = (0..2).map(|at| change(1_000, at, ChangeKind::Drain)).collect();
        let found = run(&fleet, chat.requests());
        conserves(&found, 100);
        assert!(found.run.completed > 20 && found.run.failed > 20, "{router:?}: what was there ends");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let chat = dataset(4, 4.5, None).sample(10, 30.0, 5).unwrap();
    let refused = |spoil: fn(&mut Fleet)| {
        let mut bad = fleet_of(PolicyName::Adaptive, 2, RouterName::Forecast, 0);
        spoil(&mut bad);
        wait_sim::fleet(&bad, chat.requests(), go).unwrap_err().to_string()
    };
    assert!(refused(|fleet| fleet.engines.clear()).starts_with("replicas = 0: must be between 1 and"));
    assert!(refused(|fleet| fleet.engines[1].0.kv_blocks = 0).starts_with("kv_blocks = 0"));
    assert!(refused(|fleet| fleet.routing.stale_after = f64::NAN).starts_with("stale_after = NaN"));
    assert!(refused(|fleet| fleet.setup.max_concurrency = Some(0)).starts_with("max_concurrency = 0"));
    assert!(refused(|fleet| fleet.routers = 0).starts_with("routers = 0: must be between 1 and"));
    assert!(refused(|fleet| fleet.sessions = vec![0; 9]).starts_with("sessions = 9: must be 10, one for each request"));
    assert!(refused(|fleet| fleet.sessions = vec![10; 10]).starts_with("sessions = 10: must be below 10"));
    let strange = |fleet: &mut Fleet| fleet.changes = vec![change(0, 2, ChangeKind::Fail)];
    assert!(refused(strange).starts_with("changes.replica = 2: must be below 2"));
    let blocks = |fleet: &mut Fleet| {
        fleet.engines[0].0.prefix_caching = true;
        fleet.engines[1].0.block_size = 32;
    };
    assert!(refused(blocks).starts_with("block_size = 32: 16 on another replica"));
    let fleet = fleet_of(PolicyName::Adaptive, 2, RouterName::Forecast, 0);
    let many = dataset(4, 4.5, None).sample(30_000, 3000.0, 5).unwrap();
    let stopped = wait_sim::fleet(&fleet, many.requests(), |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(SimError::Interrupted { offered: 30_000, .. })));
}

#[test]
fn a_target_at_the_door_serves_more_in_time_and_loses_no_request() {
    let chat = dataset(4, 4.5, None).sample(1500, 90.0, 5).unwrap();
    let in_time = |found: &FleetRun| {
        let late = |(&first, &sent): (&u64, &u64)| first == NEVER_NS || first - sent > 2_000_000_000;
        let run = &found.run;
        1500 - run.first_token_ns.iter().zip(&run.arrival_ns).filter(|&each| late(each)).count()
    };
    for staleness_ns in [0, 200_000_000] {
        let mut fleet = fleet_of(PolicyName::Vllm, 4, RouterName::PowerOfTwo, staleness_ns);
        let stock = run(&fleet, chat.requests());
        fleet.routing.router = RouterName::Forecast;
        let without = run(&fleet, chat.requests());
        fleet.routing.ttft_target = Some(2.0);
        let with = run(&fleet, chat.requests());
        conserves(&with, 1500);
        assert_eq!(with.run.failed, 0);
        let [stock, without, found] = [&stock, &without, &with].map(in_time);
        assert!(
            10 * found > 11 * stock.max(without),
            "{staleness_ns}: {found} of 1500, {without} without, {stock} stock"
        );
        assert!(run(&fleet, chat.requests()) == with, "the same inputs give the same");
        // What happens to replicas loses no request either, though all are late once none is left for a while.
        fleet.changes = (0..4).map(|at| change(3_000, at, ChangeKind::Fail)).collect();
        fleet.changes.extend((0..4).map(|at| change(9_000, at, ChangeKind::Join)));
        let gone = run(&fleet, chat.requests());
        conserves(&gone, 1500);
        assert_eq!(gone.run.failed, 0);
        assert!(gone.served.resent > 0);
    }
}
