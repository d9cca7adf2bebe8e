//! The threads of a fleet decide nothing: what it does is what it does one event at a time.

use std::ops::ControlFlow;

use common::{alike, change, conserves, conversations, dataset, engine, run};
use wait_core::config::PolicyName;
use wait_core::model::RequestType;
use wait_core::routing::RouterName;
use wait_sim::{ChangeKind, Fleet, Lengths, PrefillPool, Requests, SimError, Transfer};

mod common;

fn fleet_of(replicas: usize, router: RouterName, staleness_ns: u64) -> Fleet {
    alike(&engine(PolicyName::Adaptive, 400, 32), replicas, router, staleness_ns)
}

/// Noise that moves no iteration by a nanosecond: how long one takes is not known before it begins then; and a bound on the
/// requests under way that is never reached: any may have to wait for the end of another. So nothing is done ahead of time.
fn one_event_at_a_time(fleet: &Fleet) -> Fleet {
    let mut slow = fleet.clone();
    slow.setup.steps.jitter = f64::MIN_POSITIVE;
    slow.setup.max_concurrency.get_or_insert(1_000_000);
    slow
}

fn all_agree(fleet: &Fleet, requests: Requests, what: &str) {
    let expected = run(&one_event_at_a_time(fleet), requests);
    conserves(&expected, requests.arrivals.len());
    for threads in [1, 2, 4] {
        assert!(run(&Fleet { threads, ..fleet.clone() }, requests) == expected, "{what}: {threads} threads");
    }
}

/// Replicas fail, drain and join again.
fn unrest(fleet: &mut Fleet) {
    fleet.changes = vec![
        change(1_000, 0, ChangeKind::Fail),
        change(1_500, 1, ChangeKind::Drain),
        change(2_000, 0, ChangeKind::Join),
        change(2_500, 3, ChangeKind::Join),
        change(3_000, 2, ChangeKind::Fail),
        change(3_500, 1, ChangeKind::Join),
        change(4_000, 2, ChangeKind::Join),
    ];
}

#[test]
fn threads_decide_nothing() {
    let chat = dataset(4, 4.5, None).sample(90, 45.0, 5).unwrap();
    let turns = dataset(4, 4.5, Some(conversations())).sample(45, 12.0, 3).unwrap();
    for router in RouterName::ALL {
        // Below an iteration's time, and above it; 0 has reports arrive at once.
        for staleness_ns in [0, 6_000_000, 200_000_000] {
            for (requests, caches) in [(chat.requests(), false), (turns.requests(), true)] {
                for unrests in [false, true] {
                    let mut fleet = fleet_of(4, router, staleness_ns);
                    fleet.engines.iter_mut().for_each(|(config, _)| config.prefix_caching = caches);
                    if unrests {
                        unrest(&mut fleet);
                    }
                    all_agree(&fleet, requests, &format!("{router:?}, {staleness_ns}, {caches}, {unrests}"));
                }
            }
        }
    }
}

#[test]
fn threads_decide_nothing_with_prefill_and_decode_apart() {
    let chat = dataset(1, 4.0, None).sample(100, 25.0, 5).unwrap();
    for router in RouterName::ALL {
        for staleness_ns in [0, 100_000_000] {
            for transfer in
                [Transfer::INSTANT, Transfer { bytes_per_token: 524_288.0, bandwidth: 25e9, latency_s: 0.002 }]
            {
                for unrests in [false, true] {
                    let mut fleet = fleet_of(5, router, staleness_ns);
                    fleet.prefill = Some(PrefillPool { replicas: 2, routing: fleet.routing });
                    fleet.setup.transfer = Some(transfer);
                    if unrests {
                        unrest(&mut fleet);
                    }
                    all_agree(&fleet, chat.requests(), &format!("{router:?}, {staleness_ns}, {unrests}"));
                }
            }
        }
    }
}

#[test]
fn threads_decide_nothing_where_requests_are_held_refused_or_sent_by_clients_that_wait() {
    let chat = dataset(4, 4.5, None).sample(200, 90.0, 5).unwrap();
    for router in [RouterName::RoundRobin, RouterName::Vllm, RouterName::Forecast] {
        let mut fleet = fleet_of(4, router, 200_000_000);
        fleet.routing.ttft_target = Some(2.0);
        all_agree(&fleet, chat.requests(), &format!("{router:?}, a target"));
        fleet.setup.max_concurrency = Some(60);
        all_agree(&fleet, chat.requests(), &format!("{router:?}, 60 under way"));
        // 60 blocks are too few for the longest, and four may wait.
        fleet.engines.iter_mut().for_each(|(config, _)| config.max_queued_requests = Some(4));
        fleet.engines[1].0.kv_blocks = 60;
        fleet.setup.max_concurrency = None;
        all_agree(&fleet, chat.requests(), &format!("{router:?}, refusals"));
    }
}

#[test]
fn threads_decide_nothing_where_policies_wait_for_requests_to_come() {
    let arrivals = dataset(4, 4.5, None).sample(150, 45.0, 5).unwrap().arrivals;
    let types = [150, 300].map(|output| RequestType { prompt: 150, output, rate: 5.0 });
    for router in [RouterName::Random, RouterName::RoundRobin, RouterName::LeastRequests] {
        for unrests in [false, true] {
            let mut fleet = fleet_of(4, router, 0);
            let config = &mut fleet.engines[0].0;
            config.policy = PolicyName::Wait;
            config.types = types.to_vec();
            config.thresholds = Some(vec![3.0, 3.0]);
            config.work_conserving = false;
            fleet.setup.config = config.clone();
            fleet.setup.lengths = Lengths::Known;
            fleet.engines = vec![fleet.engines[0].clone(); 4];
            if unrests {
                unrest(&mut fleet);
            }
            all_agree(&fleet, (&arrivals).into(), &format!("{router:?}, {unrests}"));
        }
    }
}

#[test]
fn threads_stop_when_they_are_told_to_or_one_of_them_fails() {
    let chat = dataset(4, 4.5, None).sample(3_000, 30.0, 5).unwrap();
    for router in [RouterName::RoundRobin, RouterName::Forecast] {
        let mut fleet = Fleet { threads: 3, ..fleet_of(4, router, 200_000_000) };
        let mut calls = 0;
        let stopped = wait_sim::fleet(&fleet, chat.requests(), |_| {
            calls += 1;
            ControlFlow::Break(())
        });
        assert!(matches!(stopped, Err(SimError::Interrupted { offered: 3_000, .. })), "{router:?}");
        assert_eq!(calls, 1, "{router:?}");
        // An iteration that ends after the end of time.
        fleet.setup.overhead_ns = 1 << 62;
        assert!(matches!(
            wait_sim::fleet(&fleet, chat.requests(), |_| ControlFlow::Continue(())),
            Err(SimError::Refused(_))
        ));
        fleet.threads = 0;
        let refused = wait_sim::fleet(&fleet, chat.requests(), |_| ControlFlow::Continue(())).unwrap_err().to_string();
        assert!(refused.starts_with("threads = 0: must be between 1 and"), "{refused}");
    }
}
