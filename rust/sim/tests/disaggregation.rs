//! Prefill and decode apart: what happens to a request by hand, decode-only serving, and that every request ends once.

use std::ops::ControlFlow;

use common::{alike, change, conserves, conversations, dataset, engine, run};
use wait_core::Config;
use wait_core::config::PolicyName;
use wait_core::model::IterationTime;
use wait_core::routing::{RouterName, Routing};
use wait_sim::{
    Arrival, ChangeKind, Fleet, Hint, NEVER_NS, PrefillPool, Sampled, Setup, SimError, Slo, Summary, Transfer,
};

mod common;

/// 1 ms for each token.
const SLOW: Transfer = Transfer { bytes_per_token: 1e6, bandwidth: 1e9, latency_s: 0.0 };

/// So many prefill and decode replicas with 10 ms an iteration and 1 us more for each token of KV.
fn by_hand(prefill: usize, decode: usize, blocks: [u32; 2], transfer: Transfer) -> Fleet {
    let law = IterationTime::linear(0.01, 1e-6).unwrap();
    let engine = |kv_blocks| (Config { kv_blocks, policy: PolicyName::Vllm, ..Config::default() }, law.clone());
    let routing = Routing { router: RouterName::LeastRequests, ..Routing::default() };
    let [first, second] = blocks.map(engine);
    Fleet {
        setup: Setup { transfer: Some(transfer), ..Setup::new(first.0.clone(), law.clone()) },
        engines: [vec![first; prefill], vec![second; decode]].concat(),
        routing,
        prefill: Some(PrefillPool { replicas: prefill, routing }),
        staleness_ns: 0,
        changes: Vec::new(),
        routers: 1,
        sessions: Vec::new(),
        threads: 1,
    }
}

fn arrival(at_ns: u64, prompt: u32, output: u32) -> Arrival {
    Arrival { at_ns, prompt, output, label: 0 }
}

#[test]
fn one_request_by_hand() {
    let arrivals = [arrival(0, 20, 3), arrival(1_000_000_000, 10, 1)];
    for (transfer, moves) in [(SLOW, 20_000_000), (Transfer { latency_s: 0.5, ..SLOW }, 520_000_000)]
        .into_iter()
        .chain([(Transfer::INSTANT, 0)])
    {
        let found = run(&by_hand(1, 1, [10, 10], transfer), &arrivals);
        let first = 10_020_000;
        // The prefill replica hands over 20 tokens of KV; the other computes that of the first output token, and the third's
        // input.
        let second = first + moves + 10_021_000;
        let third = second + 10_022_000;
        let (run, replicas) = (&found.run, &found.served.replicas);
        assert_eq!((run.admitted_ns[0], run.first_token_ns[0], run.finished_ns[0]), (0, first, third));
        assert_eq!(run.finished_ns[1], 1_010_010_000, "one token is all the prefill replica's");
        assert_eq!(run.gaps, [(second - first, 1), (10_022_000, 1)]);
        assert_eq!((&run.prompt, &run.output), (&vec![20, 10], &vec![3, 1]));
        assert_eq!((run.completed, run.failed, replicas[0].completed, replicas[1].completed), (2, 0, 2, 1));
        assert_eq!((run.prefill_tokens, run.prompt_tokens, run.cached_tokens, run.decode_tokens), (31, 30, 0, 1));
        assert_eq!(found.served.replica_of, [1, 0]);
        let tpot_ms = 0.5 * (third - first) as f64 * 1e-6;
        let meets = |tpot_ms| Summary::new(run, Some(Slo { ttft_ms: 10.02, tpot_ms })).goodput;
        assert_eq!((meets(tpot_ms), meets(tpot_ms - 1e-3)), (Some(1.0), Some(0.5)));
    }
}

#[test]
fn prompts_are_computed_while_others_decode_and_memory_is_held_while_kv_comes() {
    // The decode replica has blocks for one of them: 33 tokens are three blocks, and 34 as well.
    let arrivals = [arrival(0, 32, 3), arrival(0, 32, 3)];
    let found = run(&by_hand(2, 1, [10, 3], SLOW), &arrivals);
    let first = 10_032_000;
    assert_eq!(found.run.first_token_ns, [first; 2]);
    let ends = first + 32_000_000 + 10_033_000 + 10_034_000;
    assert_eq!(found.run.finished_ns, [ends, ends + ends - first]);
    assert_eq!(found.served.replicas.iter().map(|run| run.completed).collect::<Vec<_>>(), [1, 1, 2]);
}

#[test]
fn what_either_pool_refuses_fails_and_outputs_end_at_max_tokens() {
    let mut fleet = by_hand(1, 1, [10, 4], SLOW);
    fleet.setup.max_tokens = Some(3);
    let hint = |priority| Hint { priority, ..Hint::default() };
    fleet.setup.hints = vec![hint(1), hint(2), hint(3)];
    let found = run(&fleet, &[arrival(0, 200, 3), arrival(0, 100, 3), arrival(0, 20, 9)]);
    assert_eq!((found.run.completed, found.run.failed, found.run.finished_by_length), (1, 2, 1));
    assert_eq!((found.run.output[2], found.run.finished_ns[0], found.run.finished_ns[1]), (3, NEVER_NS, NEVER_NS));
    let each: Vec<_> = found.served.replicas.iter().map(|run| (run.completed, run.failed)).collect();
    assert_eq!(each, [(2, 1), (1, 1)]);
}

fn chat() -> Sampled {
    dataset(1, 4.0, None).sample(150, 12.0, 5).unwrap()
}

fn turns() -> Sampled {
    dataset(1, 4.0, Some(conversations())).sample(120, 3.0, 3).unwrap()
}

fn fleet_of(policy: PolicyName, [prefill, decode]: [usize; 2], router: RouterName, caches: bool) -> Fleet {
    let config = engine(policy, 600, 64);
    let first = Config { prefix_caching: caches, ..config.clone() };
    let transfer = Transfer { bytes_per_token: 524_288.0, bandwidth: 25e9, latency_s: 0.002 };
    let fleet = alike(&config, decode, router, 100_000_000);
    Fleet {
        setup: Setup { transfer: Some(transfer), ..fleet.setup },
        engines: [vec![(first, IterationTime::A100); prefill], fleet.engines].concat(),
        prefill: Some(PrefillPool { replicas: prefill, routing: fleet.routing }),
        ..fleet
    }
}

#[test]
fn all_tokens_come_once() {
    for policy in [PolicyName::Adaptive, PolicyName::Vllm] {
        for router in RouterName::ALL {
            for (sampled, caches) in [(chat(), false), (turns(), true)] {
                let requests = sampled.requests();
                let fleet = fleet_of(policy, [2, 3], router, caches);
                let found = run(&fleet, requests);
                conserves(&found, requests.arrivals.len());
                assert_eq!(found.run.failed, 0);
                let outputs: u64 = found.run.output.iter().map(|&output| u64::from(output) - 1).sum();
                assert_eq!(found.run.gaps.iter().map(|&(_, times)| u64::from(times)).sum::<u64>(), outputs);
                let several = found.run.output.iter().filter(|&&output| output > 1).count();
                let done = |run: &[wait_sim::Run]| run.iter().map(|run| run.completed).sum::<usize>();
                let (first, second) = found.served.replicas.split_at(2);
                assert_eq!((done(first), done(second)), (requests.arrivals.len(), several));
                assert!(first.iter().all(|run| run.decode_tokens == 0), "nothing decodes on a prefill replica");
                assert!(
                    caches || first.iter().chain(second).all(|run| run.completed > 0),
                    "{router:?}: each serves some"
                );
                assert_eq!(found.run.cached_tokens > 0, caches, "later turns find the prompts of earlier ones");
                assert!(run(&fleet, requests) == found, "the same inputs give the same");
            }
        }
    }
}

#[test]
fn every_request_ends_once_whatever_happens_to_replicas_of_either_pool() {
    for router in RouterName::ALL {
        for (sampled, caches) in [(chat(), false), (turns(), true)] {
            let requests = sampled.requests();
            let mut fleet = fleet_of(PolicyName::Adaptive, [2, 2], router, caches);
            fleet.changes = vec![
                change(2_000, 0, ChangeKind::Fail),
                change(3_000, 1, ChangeKind::Drain),
                change(4_000, 0, ChangeKind::Join),
                change(5_000, 3, ChangeKind::Fail),
                change(6_000, 2, ChangeKind::Fail),
                // Until then nothing decodes.
                change(8_000, 3, ChangeKind::Join),
                change(9_000, 2, ChangeKind::Join),
                change(10_000, 1, ChangeKind::Fail),
            ];
            let found = run(&fleet, requests);
            conserves(&found, requests.arrivals.len());
            assert_eq!(found.run.failed, 0, "{router:?}");
            assert!(found.served.resent > 0 && found.served.held > 0, "{router:?}");
            let dead = 6_000_000_000..8_000_000_000;
            let ended_by_decode = |i: &usize| found.run.output[*i] > 1 && dead.contains(&found.run.finished_ns[*i]);
            assert_eq!((0..requests.arrivals.len()).filter(ended_by_decode).count(), 0);
            assert!(run(&fleet, requests) == found, "the same inputs give the same");
        }
    }
}

#[test]
fn without_decode_replicas_requests_wait_or_fail_clearly() {
    let sampled = chat();
    let mut fleet = fleet_of(PolicyName::Adaptive, [1, 1], RouterName::Forecast, false);
    fleet.changes = vec![change(0, 1, ChangeKind::Fail)];
    let found = run(&fleet, sampled.requests());
    conserves(&found, 150);
    let one_token = found.run.output.iter().filter(|&&output| output == 1).count();
    assert_eq!((found.run.completed, found.served.replicas[0].completed), (one_token, 150));
    fleet.changes.push(change(60_000, 1, ChangeKind::Join));
    let found = run(&fleet, sampled.requests());
    assert_eq!((found.run.completed, found.run.failed), (150, 0));
}

#[test]
fn a_client_that_waits_for_answers_waits_for_both() {
    let sampled = chat();
    let mut fleet = fleet_of(PolicyName::Vllm, [1, 1], RouterName::LeastRequests, false);
    fleet.setup.max_concurrency = Some(1);
    let found = run(&fleet, sampled.requests());
    conserves(&found, 150);
    assert!((1..150).all(|i| found.run.arrival_ns[i] >= found.run.finished_ns[i - 1]));
}

#[test]
fn a_decode_only_fleet_is_the_decode_only_engine() {
    let sampled = chat();
    for policy in [PolicyName::Adaptive, PolicyName::Vllm] {
        for router in RouterName::ALL {
            for transfer in [Transfer::INSTANT, SLOW] {
                let mut fleet = fleet_of(policy, [1, 1], router, false);
                fleet.engines.pop();
                (fleet.prefill, fleet.setup.transfer) = (None, Some(transfer));
                fleet.routing.longest_queue = f64::INFINITY;
                let alone = wait_sim::run(&fleet.setup, sampled.requests(), |_| ControlFlow::Continue(())).unwrap();
                assert!(run(&fleet, sampled.requests()).run == alone, "{policy:?}, {router:?}");
                assert_eq!(alone.prompt_tokens - alone.cached_tokens, 150, "the last token of each prompt");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let sampled = chat();
    let refused = |spoil: fn(&mut Fleet)| {
        let mut bad = fleet_of(PolicyName::Vllm, [1, 1], RouterName::Random, false);
        spoil(&mut bad);
        let refused = wait_sim::fleet(&bad, sampled.requests(), |_| ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(refused, SimError::Refused(_)));
        refused.to_string()
    };
    assert!(refused(|fleet| fleet.prefill.as_mut().unwrap().replicas = 0).starts_with("prefill_replicas = 0: must be"));
    assert!(refused(|fleet| fleet.prefill.as_mut().unwrap().replicas = 2).starts_with("prefill_replicas = 2: must be"));
    assert!(refused(|fleet| fleet.setup.transfer = None).starts_with("transfer = none: must be given"));
    assert!(
        refused(|fleet| fleet.engines[1].0.prefix_caching = true).starts_with("prefix_caching = true: must be off")
    );
}

#[test]
fn transfers_wait_for_the_link_of_either_replica() {
    // 33 and 17 tokens of prompt, computed together: 10 ms and 50 µs.
    let (arrivals, first) = ([arrival(0, 33, 2), arrival(0, 17, 2)], 10_050_000);
    let with = |prefill, decode, latency_s| {
        let found = run(&by_hand(prefill, decode, [10, 10], Transfer { latency_s, ..SLOW }), &arrivals).run;
        let starts = |at: usize, kv: u64| found.finished_ns[at] - 10_000_000 - 1_000 * kv;
        (found.first_token_ns.clone(), [starts(0, 34), starts(1, 18)])
    };
    // Two decode replicas, one link out: the second's 17 ms begin after the first's 33, and the latency of one does not occupy the
    // link for another.
    assert_eq!(with(1, 2, 0.0), (vec![first; 2], [first + 33_000_000, first + 50_000_000]));
    assert_eq!(with(1, 2, 0.5), (vec![first; 2], [first + 533_000_000, first + 550_000_000]));
    // Two prefill replicas, one link in. The second prompt is computed first, and its KV comes first; the other is
    // admitted when the decode replica is next asked, at once.
    let ends = [10_033_000, 10_017_000];
    let second = ends[1] + 17_000_000;
    let (found, starts) = with(2, 1, 0.0);
    assert_eq!(found, ends);
    // Its iteration ends before the KV of the first is there.
    assert_eq!(starts, [second + 33_000_000, second]);
    // A link each.
    assert_eq!(with(2, 2, 0.0), (ends.to_vec(), [ends[0] + 33_000_000, second]));
}
