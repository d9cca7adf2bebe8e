//! A target for the first token: which requests wait at the door, which yield, and that none is forgotten there.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;
const TARGET: f64 = 2.0;

fn targeted(replicas: u64) -> Router {
    let mut router = Router::new(Routing { ttft_target: Some(TARGET), ..Routing::default() }).unwrap();
    (0..replicas).for_each(|id| router.add_replica(id, replica()).unwrap());
    router
}

fn idle() -> Load {
    Load { free_blocks: 1000, mean_output: Some(100.0), ..Load::default() }
}

/// Room for none: the residents are expected to fill the cache, and some wait.
fn full() -> Load {
    Load {
        waiting: 20,
        residents: 60,
        kv_tokens: 15_900,
        kv_peak: Some(15_990.0),
        kv_deviation: Some(100.0),
        mean_output: Some(1000.0),
        admission_gap_ns: SECOND / 5,
        ..Load::default()
    }
}

/// Room for one more, and nothing waits.
fn busy() -> Load {
    Load { residents: 40, kv_tokens: 8000, kv_peak: Some(12_000.0), waiting: 0, ..full() }
}

fn report(router: &mut Router, now_ns: u64, load: &Load) {
    let replicas: Vec<u64> = router.replicas().collect();
    for id in replicas {
        router.report(id, now_ns, load).unwrap();
    }
}

fn ask(router: &mut Router, now_ns: u64, id: u64, arrived_ns: Option<u64>) -> (Option<u64>, Option<DoorHold>) {
    let choice = router.route(now_ns, &Incoming { arrived_ns, ..incoming(id, 100) }).unwrap();
    (choice.replica, choice.hold)
}

#[test]
fn a_late_request_yields_to_one_in_time_whichever_is_asked_for_first() {
    let mut router = targeted(1);
    report(&mut router, 0, &full());
    assert_eq!(ask(&mut router, 1, 1, None), (None, Some(DoorHold::AllFull)));
    let now_ns = 3 * SECOND;
    report(&mut router, now_ns, &full());
    assert_eq!(ask(&mut router, now_ns, 9, Some(0)), (Some(0), None), "one late request may wait in a queue");
    // When it arrived is remembered.
    assert_eq!(ask(&mut router, now_ns, 1, None), (None, Some(DoorHold::Late)));
    assert_eq!(ask(&mut router, now_ns, 2, Some(now_ns)), (None, Some(DoorHold::AllFull)));
    report(&mut router, now_ns + 1, &busy());
    assert_eq!(ask(&mut router, now_ns + 2, 1, None), (None, Some(DoorHold::Late)), "the other is in time");
    assert_eq!(ask(&mut router, now_ns + 3, 2, None), (Some(0), None));
    assert_eq!(ask(&mut router, now_ns + 4, 1, None), (Some(0), None), "no other is there");
}

#[test]
fn late_requests_enter_one_by_one_where_nothing_waits() {
    let mut router = targeted(1);
    report(&mut router, 5 * SECOND, &busy());
    let late = |router: &mut Router, now_ns, id| ask(router, now_ns, id, Some(0));
    assert_eq!(late(&mut router, 5 * SECOND, 1), (Some(0), None));
    assert_eq!(late(&mut router, 5 * SECOND, 2), (None, Some(DoorHold::Late)), "what became of the first is not known");
    report(&mut router, 6 * SECOND, &busy());
    assert_eq!(late(&mut router, 6 * SECOND, 2), (Some(0), None));
    report(&mut router, 7 * SECOND, &Load { waiting: 1, ..busy() });
    assert_eq!(late(&mut router, 7 * SECOND, 3), (None, Some(DoorHold::Late)));
    // Alone it is started at once, though no report says so.
    (1..=2).for_each(|id| assert!(router.finished(8 * SECOND, id)));
    report(&mut router, 8 * SECOND, &idle());
    assert_eq!(late(&mut router, 8 * SECOND, 3), (Some(0), None));
    router.finished(9 * SECOND, 3);
    assert_eq!(late(&mut router, 9 * SECOND, 4), (Some(0), None));
}

#[test]
fn a_late_request_that_fits_nowhere_at_once_is_not_starved() {
    let mut router = targeted(2);
    let late = |router: &mut Router, second: u64, id| {
        report(router, second * SECOND, &busy());
        let asked = Incoming { arrived_ns: Some(0), ..incoming(id, 14_000) };
        router.route(second * SECOND, &asked).unwrap()
    };
    let first = late(&mut router, 10, 1);
    assert!(first.replica.is_some() && first.overflow.unwrap() > 0.99);
    assert_eq!(late(&mut router, 20, 2).hold, Some(DoorHold::Late), "one at a time");
    assert!(router.finished(30 * SECOND, 1));
    assert!(late(&mut router, 30, 2).replica.is_some());
    // A replica that is gone has taken its late request along.
    assert_eq!(router.remove_replica(router.routed[&2].replica), [2]);
    assert!(late(&mut router, 40, 3).replica.is_some());
}

#[test]
fn one_that_would_wait_in_a_queue_waits_at_the_door() {
    // A wait of some 0.6 s is less than `longest_queue`, and more than a quarter of the target.
    let queue = Load { waiting: 3, kv_peak: Some(12_000.0), ..full() };
    for (target, expected) in [(None, Some(0)), (Some(TARGET), None), (Some(10.0), Some(0))] {
        let mut router = Router::new(Routing { ttft_target: target, ..Routing::default() }).unwrap();
        router.add_replica(0, replica()).unwrap();
        report(&mut router, 0, &queue);
        assert_eq!(ask(&mut router, 0, 1, None).0, expected, "{target:?}");
    }
}

#[test]
fn engines_that_order_their_own_queue_get_everything() {
    let mut router = targeted(1);
    router.add_replica(0, Replica { ttft_target: Some(TARGET), ..replica() }).unwrap();
    report(&mut router, 5 * SECOND, &full());
    assert_eq!(ask(&mut router, 5 * SECOND, 1, Some(0)), (Some(0), None));
    assert_eq!(ask(&mut router, 5 * SECOND, 2, None), (Some(0), None));
}

#[test]
fn a_request_that_leaves_the_door_delays_no_other() {
    let held_by = |leaves: fn(&mut Router)| {
        let mut router = targeted(1);
        report(&mut router, SECOND, &full());
        assert_eq!(ask(&mut router, SECOND, 1, None), (None, Some(DoorHold::AllFull)));
        assert!(router.knows(1));
        leaves(&mut router);
        report(&mut router, 2 * SECOND, &busy());
        ask(&mut router, 2 * SECOND, 2, Some(0))
    };
    assert_eq!(held_by(|_| {}), (Some(0), None), "its time has passed by then");
    let nothing_left = |router: &mut Router| {
        assert!(router.finished(SECOND, 1) && !router.finished(SECOND, 1) && !router.knows(1));
    };
    assert_eq!(held_by(nothing_left), (Some(0), None));
    let another = |router: &mut Router| _ = ask(router, 19 * SECOND / 10, 3, None);
    assert_eq!(held_by(another), (None, Some(DoorHold::Late)));
}

#[test]
fn without_a_replica_no_request_is_late_before_its_time() {
    let mut router = targeted(0);
    assert_eq!(ask(&mut router, 0, 1, None), (None, Some(DoorHold::NoReplica)));
    assert_eq!(ask(&mut router, 0, 2, None), (None, Some(DoorHold::NoReplica)));
    router.add_replica(0, replica()).unwrap();
    report(&mut router, SECOND, &idle());
    assert_eq!(ask(&mut router, SECOND, 1, None), (Some(0), None));
    // What was there is known no longer, and is routed again.
    assert_eq!(router.remove_replica(0), [1]);
    assert!(!router.knows(1) && router.knows(2));
    assert_eq!(ask(&mut router, 5 * SECOND, 1, Some(0)), (None, Some(DoorHold::NoReplica)));
    router.add_replica(1, replica()).unwrap();
    report(&mut router, 6 * SECOND, &idle());
    assert_eq!(ask(&mut router, 6 * SECOND, 1, None), (Some(1), None));
}

#[test]
fn a_target_that_is_none_is_refused() {
    for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let refused = Router::new(Routing { ttft_target: Some(seconds), ..Routing::default() }).unwrap_err();
        assert!(refused.to_string().starts_with("ttft_target = "), "{refused}");
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Arrives,
    /// One of those at the door asks.
    Asks(usize),
    /// The client of one of those at the door leaves, and says so or not.
    Leaves(usize, bool),
    Ends(usize),
    Reports(u64, u8),
    Gone(u64),
    Joins(u64),
    Passes(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Arrives),
        4 => (0..50_usize).prop_map(Event::Asks),
        1 => (0..50_usize, any::<bool>()).prop_map(|(nth, says)| Event::Leaves(nth, says)),
        2 => (0..50_usize).prop_map(Event::Ends),
        4 => (0..3_u64, 0..3_u8).prop_map(|(id, load)| Event::Reports(id, load)),
        1 => (0..3_u64).prop_map(Event::Gone),
        1 => (0..3_u64).prop_map(Event::Joins),
        3 => (1..SECOND).prop_map(Event::Passes),
    ]
}

fn nth(of: &BTreeSet<u64>, nth: usize) -> Option<u64> {
    of.iter().nth(nth % of.len().max(1)).copied()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_request_is_lost_and_the_door_forgets_requests_that_left(events in prop::collection::vec(event(), 1..200)) {
        let (mut router, mut now_ns, mut next) = (targeted(2), 0, 0);
        let (mut at_door, mut sent, mut silent) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for event in events {
            let asked = match event {
                Event::Arrives => {
                    next += 1;
                    at_door.insert(next);
                    Some(next)
                }
                Event::Asks(which) => nth(&at_door, which),
                Event::Leaves(which, says) => {
                    if let Some(id) = nth(&at_door, which) {
                        at_door.remove(&id);
                        prop_assert!(router.knows(id));
                        if says { router.finished(now_ns, id); } else { silent.insert(id); }
                    }
                    None
                }
                Event::Ends(which) => {
                    if let Some(id) = nth(&sent, which) {
                        sent.remove(&id);
                        prop_assert!(router.finished(now_ns, id) && !router.knows(id));
                    }
                    None
                }
                Event::Reports(id, load) => {
                    let load = [idle(), busy(), full()][usize::from(load)];
                    router.report(id, now_ns, &load).unwrap();
                    None
                }
                Event::Gone(id) => {
                    for id in router.remove_replica(id) {
                        prop_assert!(sent.remove(&id));
                        at_door.insert(id);
                        // Its host asks at once, or it is known nowhere.
                        let choice = router.route(now_ns, &incoming(id, 100)).unwrap();
                        if choice.replica.is_some() { at_door.remove(&id); sent.insert(id); }
                    }
                    None
                }
                Event::Joins(id) => {
                    router.add_replica(id, replica()).unwrap();
                    None
                }
                Event::Passes(ns) => {
                    now_ns += ns;
                    None
                }
            };
            if let Some(id) = asked {
                let choice = router.route(now_ns, &incoming(id, 100)).unwrap();
                prop_assert_eq!(choice.replica.is_some(), choice.hold.is_none());
                if choice.replica.is_some() {
                    at_door.remove(&id);
                    sent.insert(id);
                }
            }
            prop_assert!(at_door.iter().chain(&sent).all(|&id| router.knows(id)));
            prop_assert!(router.door.len().1 <= 2 * next as usize);
        }
        // The load vanishes: the requests left go, one a report at least, though requests that left silently are never asked for again.
        router.add_replica(0, replica()).unwrap();
        now_ns += 3 * SECOND;
        for id in sent {
            router.finished(now_ns, id);
        }
        for round in 0..=at_door.len() {
            now_ns += SECOND;
            report(&mut router, now_ns, &idle());
            let ids: Vec<u64> = at_door.iter().copied().collect();
            for id in ids {
                if router.route(now_ns, &incoming(id, 100)).unwrap().replica.is_some() {
                    at_door.remove(&id);
                    router.finished(now_ns, id);
                }
            }
            if at_door.is_empty() { break }
            prop_assert!(round < at_door.len() + 1, "{} are left", at_door.len());
        }
        prop_assert!(at_door.is_empty());
        for id in silent {
            router.finished(now_ns, id);
        }
        prop_assert_eq!(router.door.len().0, 0);
    }

    #[test]
    fn a_target_far_away_changes_no_choice(loads in prop::collection::vec(0..3_usize, 3), requests in 1..60_u64) {
        let mut routers = [None, Some(1e6)].map(|ttft_target| {
            let mut router = Router::new(Routing { ttft_target, ..Routing::default() }).unwrap();
            (0..3).for_each(|id| router.add_replica(id, replica()).unwrap());
            for (id, &load) in loads.iter().enumerate() {
                router.report(id as u64, 0, &[idle(), busy(), full()][load]).unwrap();
            }
            router
        });
        for id in 0..requests {
            let [one, other] = &mut routers;
            let asked = incoming(id, 50 + 7 * id as u32);
            prop_assert_eq!(one.route(id * 1_000_000, &asked), other.route(id * 1_000_000, &asked));
        }
    }
}
