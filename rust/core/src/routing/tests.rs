use super::*;
use crate::model::IterationTime;

mod target;

fn router(name: RouterName, replicas: u64) -> Router {
    let mut router = Router::new(Routing { router: name, ..Routing::default() }).unwrap();
    (0..replicas).for_each(|id| router.add_replica(id, replica()).unwrap());
    router
}

fn replica() -> Replica {
    Replica { kv_blocks: 1000, iteration_time: Some(IterationTime::A100), ..Replica::default() }
}

fn incoming(id: u64, prompt: u32) -> Incoming<'static> {
    Incoming { id, prompt, ..Incoming::default() }
}

fn places(router: &mut Router, requests: u64) -> Vec<u64> {
    (0..requests).map(|id| router.route(id, &incoming(id, 100)).unwrap().replica.unwrap()).collect()
}

#[test]
fn names_go_both_ways_and_an_unknown_one_is_refused() {
    for name in RouterName::ALL {
        assert_eq!(RouterName::parse(name.name()), Ok(name));
        assert_eq!(serde_json::to_value(name).unwrap(), name.name());
    }
    let refused = RouterName::parse("power-of-to").unwrap_err().to_string();
    assert!(refused.contains("did you mean \"power-of-two\""), "{refused}");
}

#[test]
fn simple_routers_do_what_they_are_named_after() {
    assert_eq!(places(&mut router(RouterName::RoundRobin, 3), 5), [0, 1, 2, 0, 1]);
    assert_eq!(places(&mut router(RouterName::LeastRequests, 3), 3), [0, 1, 2]);
    let counts = |name| {
        let mut counts = [0; 4];
        for id in places(&mut router(name, 4), 4000) {
            counts[id as usize] += 1;
        }
        counts
    };
    // Of 4,000 each has 1,000 ± 27 by chance; two choices keep the loads within a few of each other.
    assert!(counts(RouterName::Random).iter().all(|&n| (890..1110).contains(&n)));
    assert!(counts(RouterName::PowerOfTwo).iter().all(|&n| (995..=1005).contains(&n)));
    let mut one = router(RouterName::PowerOfTwo, 1);
    assert_eq!(places(&mut one, 2), [0, 0]);
}

#[test]
fn a_replica_to_which_kv_comes_computes_one_token_of_a_prompt() {
    let ttft = |receives, load: Load| {
        let mut router = Router::new(Routing::default()).unwrap();
        router.add_replica(0, Replica { receives, kv_blocks: 10_000, ..replica() }).unwrap();
        router.report(0, 0, &load).unwrap();
        // What was sent before is not to be computed there either.
        (1..4).for_each(|id| drop(router.route(0, &incoming(id, 2000))));
        router.route(0, &incoming(9, 2000)).unwrap().ttft.unwrap()
    };
    let free = Load { free_blocks: 1000, ..Load::default() };
    let [here, elsewhere] = [false, true].map(|receives| ttft(receives, free));
    assert!(here > 0.5 && elsewhere < 0.02, "{here} {elsewhere}");
    let queued = Load { waiting: 2, waiting_tokens: 9000, ..free };
    let [here, elsewhere] = [false, true].map(|receives| ttft(receives, queued) - ttft(receives, free));
    assert!(here > 0.5 && elsewhere < 0.02, "{here} {elsewhere}");
}

#[test]
fn every_router_spreads_a_burst_that_it_sees_no_report_of() {
    for name in RouterName::ALL {
        let mut router = router(name, 4);
        let load = Load { free_blocks: 1000, ..Load::default() };
        (0..4).for_each(|id| assert!(router.report(id, 0, &load).unwrap()));
        let mut counts = [0; 4];
        for id in 0..60 {
            // All at the same moment, and nothing is reported in between.
            counts[router.route(1, &incoming(id, 100)).unwrap().replica.unwrap() as usize] += 1;
        }
        assert!(counts.iter().all(|&n| n >= 5), "{name:?}: {counts:?}");
    }
}

#[test]
fn a_replica_that_reports_a_backlog_is_avoided() {
    for name in [RouterName::LeastKv, RouterName::Vllm, RouterName::Forecast] {
        let mut router = router(name, 2);
        let busy = Load { waiting: 8, residents: 40, waiting_tokens: 8000, kv_tokens: 15_000, ..Load::default() };
        router.report(0, 0, &busy).unwrap();
        router.report(1, 0, &Load { free_blocks: 900, residents: 2, kv_tokens: 1000, ..Load::default() }).unwrap();
        let choice = router.route(1, &incoming(1, 100)).unwrap();
        assert_eq!((choice.replica, choice.by), (Some(1), name));
    }
}

#[test]
fn a_faster_replica_gets_more() {
    let mut router = router(RouterName::Forecast, 1);
    let law = |d0| Some(IterationTime::linear(d0, 1e-7).unwrap());
    router.add_replica(0, Replica { iteration_time: law(0.03), ..replica() }).unwrap();
    router.add_replica(1, Replica { iteration_time: law(0.01), ..replica() }).unwrap();
    let load = Load { free_blocks: 1000, ..Load::default() };
    (0..2).for_each(|id| _ = router.report(id, 0, &load).unwrap());
    let fast = places(&mut router, 20).iter().filter(|&&id| id == 1).count();
    assert!(fast > 10, "{fast}");
}

#[test]
fn a_cached_prefix_draws_until_the_load_cap() {
    let hashes: Vec<u64> = (0..60).collect();
    for name in [RouterName::PrefixAffinity, RouterName::Forecast] {
        let mut router = router(name, 4);
        let load = Load { free_blocks: 1000, ..Load::default() };
        (0..4).for_each(|id| _ = router.report(id, 0, &load).unwrap());
        let turn = |id| Incoming { block_hashes: &hashes, ..incoming(id, 1000) };
        let first = router.route(1, &turn(1)).unwrap();
        assert_eq!(first.cached, 0);
        router.finished(2, 1);
        let second = router.route(2_000_000_000, &turn(2)).unwrap();
        assert_eq!((second.replica, second.cached), (first.replica, 960), "{name:?}");
        let others = (3..40).any(|id| router.route(2_000_000_000, &turn(id)).unwrap().replica != first.replica);
        assert!(others, "{name:?}");
    }
}

#[test]
fn what_was_sent_before_a_report_is_in_it() {
    let mut router = router(RouterName::Vllm, 2);
    assert_eq!(router.route(10, &incoming(1, 100)).unwrap().by, RouterName::PowerOfTwo, "nothing was reported");
    let standing = |router: &Router, place: usize| router.fleet.standings()[place].clone();
    router.report(0, 5, &Load::default()).unwrap();
    router.report(1, 5, &Load::default()).unwrap();
    let place = router.fleet.standings().iter().position(|standing| standing.since.requests == 1).unwrap();
    router.report(place as u64, 10, &Load { residents: 1, ..Load::default() }).unwrap();
    assert_eq!(standing(&router, place).since.requests, 0);
    router.finished(20, 1);
    assert_eq!((standing(&router, place).left.requests, standing(&router, place).in_flight.requests), (1, 0));
    router.report(place as u64, 20, &Load::default()).unwrap();
    assert_eq!(standing(&router, place).left.requests, 0);
    assert_eq!(router.report(place as u64, 19, &Load::default()), Ok(false), "an older one says nothing");
    assert_eq!(router.unknown_reports(), 1);
}

#[test]
fn reports_that_are_stale_for_ever_leave_power_of_two() {
    let mut router = router(RouterName::Forecast, 2);
    (0..2).for_each(|id| _ = router.report(id, 0, &Load::default()).unwrap());
    let by = |router: &mut Router, now_ns| router.route(now_ns, &incoming(now_ns, 100)).unwrap().by;
    assert_eq!(by(&mut router, 30_000_000_000), RouterName::Forecast);
    assert_eq!(by(&mut router, 30_000_000_001), RouterName::PowerOfTwo);
    // One that reports is enough: the other is judged by what was sent to it.
    router.report(1, 40_000_000_000, &Load::default()).unwrap();
    assert_eq!(by(&mut router, 40_000_000_001), RouterName::Forecast);
    // What was sent before is not kept for a report.
    for now_ns in (0..200).map(|second| (100 + second) * 1_000_000_000) {
        by(&mut router, now_ns);
    }
    assert!(router.fleet.standings().iter().all(|standing| standing.since.requests <= 31));
}

#[test]
fn a_replica_that_is_gone_gives_its_requests_back() {
    for name in RouterName::ALL {
        let mut router = router(name, 2);
        let sent = places(&mut router, 10);
        let expected: Vec<u64> = (0..10).filter(|&id| sent[id as usize] == 0).collect();
        assert_eq!(router.remove_replica(0), expected);
        assert!(router.remove_replica(0).is_empty());
        assert_eq!(router.report(0, 5, &Load::default()), Ok(false));
        for id in expected {
            assert_eq!(router.route(20, &incoming(id, 100)).unwrap().replica, Some(1));
            assert!(router.finished(30, id) && !router.finished(30, id));
        }
        assert!(router.drain_replica(1) && !router.drain_replica(7));
        let held = router.route(40, &incoming(99, 100)).unwrap();
        assert_eq!((held.replica, held.hold), (None, Some(DoorHold::NoReplica)));
    }
}

#[test]
fn replicas_that_are_all_full_hold_at_the_door() {
    let mut router = router(RouterName::Forecast, 2);
    let full = Load {
        residents: 60,
        kv_tokens: 15_900,
        kv_peak: Some(15_990.0),
        kv_deviation: Some(100.0),
        mean_output: Some(2000.0),
        ..Load::default()
    };
    (0..2).for_each(|id| _ = router.report(id, 0, &full).unwrap());
    let held = router.route(1, &incoming(1, 1000)).unwrap();
    assert_eq!((held.replica, held.hold), (None, Some(DoorHold::AllFull)));
    assert!(held.overflow.unwrap() > 0.99 && held.ttft.unwrap() > 1.0);
    assert!(!router.finished(2, 1), "it was sent nowhere");
    router.report(1, 3, &Load { free_blocks: 1000, ..Load::default() }).unwrap();
    assert_eq!(router.route(4, &incoming(1, 1000)).unwrap().replica, Some(1));
}

#[test]
fn how_many_routers_there_are_is_seen_in_what_replicas_report() {
    let mut router = router(RouterName::Forecast, 16);
    let sent = places(&mut router, 32);
    let report = |router: &mut Router, at_ns, residents: &dyn Fn(u64) -> u32| {
        for id in 0..16 {
            let load = Load { residents: residents(id), free_blocks: 500, ..Load::default() };
            router.report(id, at_ns, &load).unwrap();
        }
        router.fleet.routers(at_ns)
    };
    let own = |id| sent.iter().filter(|&&at| at == id).count() as u32;
    assert!((report(&mut router, 2_000, &own) - 1.0).abs() < 1e-9);
    // Neither what has ended since nor what was sent since is in the report.
    assert!(router.finished(2_001, 0) && router.finished(2_002, 1));
    router.route(2_003, &incoming(40, 100)).unwrap();
    assert!((router.fleet.routers(2_004) - 1.0).abs() < 1e-9);
    assert!((report(&mut router, 3_000, &|_| 6) - 96.0 / 31.0).abs() < 1e-9);
}

#[test]
fn where_other_routers_send_too_not_all_send_to_the_best() {
    // Of sixteen replicas the third has the least to do, and this router has sent none of what is there.
    let first = |seed, others| {
        let mut router = Router::new(Routing { seed, ..Routing::default() }).unwrap();
        for id in 0..16 {
            router.add_replica(id, replica()).unwrap();
            let residents = if id == 3 { 0 } else { others };
            router.report(id, 5, &Load { residents, free_blocks: 500, ..Load::default() }).unwrap();
        }
        router.route(10, &incoming(1, 100)).unwrap().replica
    };
    let best = (0..64).filter(|&seed| first(seed, 4) == Some(3)).count();
    assert!((2..=20).contains(&best), "each looks at two of them, and {best} of 64 at the third");
    assert!((0..64).all(|seed| first(seed, 0).is_some()));
}

#[test]
fn a_router_among_several_goes_where_the_prompt_is_cached() {
    let hashes: Vec<u64> = (0..60).collect();
    let turn = |id| Incoming { id, prompt: 960, block_hashes: &hashes, ..Incoming::default() };
    let mut router = router(RouterName::Forecast, 16);
    let load = Load { residents: 4, kv_tokens: 400, free_blocks: 900, ..Load::default() };
    (0..16).for_each(|id| _ = router.report(id, 0, &load).unwrap());
    let first = router.route(1, &turn(1)).unwrap().replica;
    for id in 2..6 {
        (0..16).for_each(|replica| _ = router.report(replica, id * 1_000_000_000, &load).unwrap());
        assert_eq!(router.route(id * 1_000_000_000 + 1, &turn(id)).unwrap().replica, first);
    }
}

#[test]
fn bad_input_is_refused_by_name() {
    let mut router = router(RouterName::Forecast, 1);
    let refused = |result: Result<()>| result.unwrap_err().to_string();
    let other = Replica { model: "another".to_owned(), ..replica() };
    assert!(refused(router.add_replica(1, other)).starts_with("model = \"another\": the other replicas serve \"\""));
    assert!(refused(router.add_replica(1, Replica::default())).starts_with("kv_blocks = 0"));
    assert!(refused(router.route(0, &incoming(1, 0)).map(drop)).starts_with("prompt = 0"));
    let load = Load { kv_peak: Some(f64::NAN), ..Load::default() };
    assert!(refused(router.report(0, 0, &load).map(drop)).starts_with("kv_peak = NaN"));
    let settings = Routing { stale_after: -1.0, ..Routing::default() };
    assert!(refused(Router::new(settings).map(drop)).starts_with("stale_after = -1"));
    let settings = Routing { affinity_load: 0.5, ..Routing::default() };
    assert!(refused(Router::new(settings).map(drop)).starts_with("affinity_load = 0.5"));
}
