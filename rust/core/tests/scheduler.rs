//! The scheduler driven by hand: what it refuses, and what it reports.

mod common;

use common::*;
use serde_json::json;
use wait_core::*;

#[test]
fn what_could_not_run_even_alone_is_refused_at_the_door() {
    let mut core = small();
    assert_eq!(core.add(&request(1, 39)), Ok(()));
    let cut = Request { output: LengthHint::Exact(2_000), max_tokens: Some(10), ..request(7, 30) };
    assert_eq!(core.add(&cut), Ok(()), "it ends at max_tokens");
    assert!(core.abort(7));
    let refused = |core: &mut Scheduler, request: &Request| core.add(request).unwrap_err().to_string();
    assert_eq!(
        refused(&mut core, &request(2, 40)),
        "request 2 needs 41 KV tokens, more than the 40 that the KV cache holds"
    );
    let exact = Request { output: LengthHint::Exact(21), ..request(2, 20) };
    assert_eq!(refused(&mut core, &exact), "request 2 needs 41 KV tokens, more than the 40 that the KV cache holds");
    core.set_capacity(5).unwrap();
    assert_eq!(
        refused(&mut core, &request(2, 20)),
        "request 2 needs 21 KV tokens, more than the 20 that the KV cache holds"
    );
    let longest = u32::MAX;
    assert!(refused(&mut core, &request(2, longest)).contains("needs 4294967296 KV tokens"));
    assert_eq!(core.view().len(), 1);
}

#[test]
fn what_follows_from_the_capacity_follows_it() {
    let mut core = scheduler(&json!({"policy": "vllm", "kv_blocks": 10, "block_size": 4, "watermark": 0.5}));
    let derived = |core: &Scheduler| (core.view().watermark_blocks(), core.view().max_model_len());
    assert_eq!(derived(&core), (5, 40));
    core.set_capacity(50).unwrap();
    assert_eq!(derived(&core), (25, 200));
    // Five blocks, beside 25 that stay free: with the previous five both would enter.
    with(&mut core, &[(1, 60), (2, 60), (3, 139)]);
    assert_eq!(chunks(&mut core), [(1, 60)]);
    assert_eq!(core.explain(2), Some(Hold { reason: HoldReason::NoBlocks, needs: 40.0, limit: 35.0 }));
    // An accepted request keeps its length while it is present.
    core.set_capacity(9).unwrap();
    core.complete(&Report { progress: &[(1, 61)], ..Report::default() }).unwrap();
    assert_eq!((kv(&core, 1), derived(&core)), (61, (4, 36)));
    // A configured length is the model's: it may be more than the cache holds.
    let mut core = scheduler(&json!({"kv_blocks": 5, "block_size": 4, "max_model_len": 30}));
    assert_eq!(derived(&core), (0, 20));
    let refused = core.add(&request(1, 20)).unwrap_err().to_string();
    assert_eq!(refused, "request 1 needs 21 KV tokens, more than the 20 that the KV cache holds");
    core.add(&Request { max_tokens: Some(100), ..request(2, 15) }).unwrap();
    assert_eq!(core.view().slot(2).map(|slot| core.view().request(slot).max_tokens), Some(5));
    core.abort(2);
    core.set_capacity(50).unwrap();
    assert_eq!(derived(&core), (0, 30));
    let refused = core.add(&request(1, 30)).unwrap_err().to_string();
    assert_eq!(refused, "request 1 needs 31 KV tokens, more than the 30 that max_model_len allows");
}

#[test]
fn refused_arguments_are_named_with_their_value() {
    let mut core = small();
    for (bad, expected) in [
        (request(1, 0), "prompt_tokens = 0: must be at least 1"),
        (Request { max_tokens: Some(0), ..request(1, 1) }, "max_tokens = 0: must be at least 1 (leave it out"),
        (Request { output: LengthHint::Exact(0), ..request(1, 1) }, "output_tokens = 0: must be at least 1"),
        (
            Request { output: LengthHint::Predicted { tokens: 0, log_error: 0.5 }, ..request(1, 1) },
            "predicted_tokens = 0 tokens, error 0.5",
        ),
        (
            Request { output: LengthHint::Predicted { tokens: 3, log_error: f32::NAN }, ..request(1, 1) },
            "predicted_tokens = 3 tokens, error NaN",
        ),
        (
            Request { output: LengthHint::Predicted { tokens: 3, log_error: -1.0 }, ..request(1, 1) },
            "predicted_tokens = 3 tokens, error -1",
        ),
    ] {
        let error = core.add(&bad).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    with(&mut core, &[(1, 1)]);
    assert_eq!(core.add(&request(1, 1)).unwrap_err().to_string(), "request id 1 is in use");
    assert_eq!(core.set_capacity(0).unwrap_err().to_string(), "kv_blocks = 0: must be between 1 and 1073741824");
    assert!(
        core.set_capacity(1 << 30).unwrap_err().to_string().starts_with("kv_blocks = 1073741824: with blocks of 4")
    );
    assert_eq!(core.view().len(), 1);
    assert_eq!(core.view().pool().capacity(), 10);
}

#[test]
fn an_absent_limit_is_the_models_never_zero() {
    let mut core = small();
    core.add(&request(1, 10)).unwrap();
    core.add(&Request { max_tokens: Some(7), ..request(2, 10) }).unwrap();
    core.add(&Request { max_tokens: Some(u32::MAX), ..request(3, 39) }).unwrap();
    let limit = |id| core.view().request(core.view().slot(id).unwrap()).max_tokens;
    assert_eq!([limit(1), limit(2), limit(3)], [30, 7, 1]);
}

#[test]
fn a_bounded_line_says_that_it_is_full() {
    let mut core =
        scheduler(&json!({"kv_blocks": 10, "block_size": 4, "max_queued_requests": 2, "max_queued_tokens": 9}));
    with(&mut core, &[(1, 5)]);
    let error = core.add(&request(2, 5)).unwrap_err();
    assert_eq!(error, Error::QueueFull { queued: 5, bound: 9, unit: "tokens", predicted_wait_ns: 0 });
    assert_eq!(error.to_string(), "queue full: 5 tokens wait already, the bound is 9; predicted wait 0.000 s");
    with(&mut core, &[(2, 4)]);
    assert_eq!(
        core.add(&request(3, 1)),
        Err(Error::QueueFull { queued: 2, bound: 2, unit: "requests", predicted_wait_ns: 0 })
    );
    core.plan(0);
    with(&mut core, &[(3, 1)]);
}

#[test]
fn types_beyond_the_policys_are_refused_and_labels_are_not() {
    let types = |n: usize| vec![json!({"prompt": 4, "output": 4, "rate": 1.0}); n];
    for n in [1, 3] {
        let mut core = scheduler(&json!({"policy": "wait", "kv_blocks": 10, "types": types(n)}));
        let error = core.add(&Request { type_id: Some(n as u16), ..request(1, 4) }).unwrap_err().to_string();
        assert_eq!(error, format!("type_id = {n}: must be below {n}, the number of types"));
        core.add(&Request { type_id: Some(n as u16 - 1), ..request(1, 4) }).unwrap();
        core.plan(0);
        assert_eq!(core.view().residents(), 1);
    }
    let mut core = small();
    core.add(&Request { type_id: Some(u16::MAX), ..request(1, 4) }).unwrap();
    assert_eq!(chunks(&mut core), [(1, 4)]);
}

#[test]
fn a_watermark_never_holds_a_request_that_fits_when_nothing_runs() {
    let mut core = scheduler(&json!({"kv_blocks": 10, "block_size": 4, "watermark": 0.5, "policy": "vllm"}));
    with(&mut core, &[(1, 36), (2, 4)]);
    assert_eq!(chunks(&mut core), [(1, 36)]);
    // Nine blocks are taken and five must stay free.
    assert_eq!(core.explain(2), Some(Hold { reason: HoldReason::NoBlocks, needs: 6.0, limit: 1.0 }));
    core.complete(&Report { finished: &[1], ..Report::default() }).unwrap();
    assert_eq!(chunks(&mut core), [(2, 4)]);
}

#[test]
fn every_request_that_waits_is_explained() {
    let mut core = small();
    with(&mut core, &[(1, 16), (2, 16), (3, 8), (4, 4)]);
    assert_eq!(core.explain(1), None, "no plan has considered it yet");
    core.plan(0);
    assert_eq!(core.explain(1), None);
    assert_eq!(core.explain(4), Some(Hold { reason: HoldReason::NoBlocks, needs: 1.0, limit: 0.0 }));
    assert_eq!(core.explain(77), None);
    // 16 → 17 twice and 8 → 9 find no block: request 3 is preempted, and no request is admitted in such an iteration.
    assert_eq!(core.plan(0).preempted().iter().map(|&(_, id)| id).collect::<Vec<_>>(), [3]);
    for (id, needs) in [(3, 3.0), (4, 1.0)] {
        assert_eq!(core.explain(id), Some(Hold { reason: HoldReason::NoBlocks, needs, limit: 0.0 }), "{id}");
    }
    core.set_paused(true);
    core.plan(0);
    for id in 1..=4 {
        assert_eq!(core.explain(id).map(|hold| hold.reason), Some(HoldReason::EnginePaused), "{id}");
    }
    assert_eq!(core.stats().holds[HoldReason::NoBlocks as usize], 1 + 2);
    assert_eq!(core.stats().holds[HoldReason::EnginePaused as usize], 2);
}

#[test]
fn a_prefill_without_tokens_left_is_explained() {
    let mut core = scheduler(&json!({"kv_blocks": 10, "block_size": 4, "max_num_seqs": 2, "token_budget": 4}));
    with(&mut core, &[(1, 6), (2, 4)]);
    assert_eq!(chunks(&mut core), [(1, 4)]);
    assert_eq!(chunks(&mut core), [(1, 2), (2, 2)]);
    core.complete(&Report { progress: &[(1, 5)], ..Report::default() }).unwrap();
    assert_eq!(chunks(&mut core), [(1, 1), (2, 2)]);
    core.complete(&Report { progress: &[(1, 0), (2, 3)], ..Report::default() }).unwrap();
    assert_eq!(chunks(&mut core), [(1, 4)]);
    assert_eq!(core.explain(2), Some(Hold { reason: HoldReason::BatchCap, needs: 5.0, limit: 4.0 }));
    assert_eq!((core.explain(1), core.paused_ids()), (None, vec![2]));
}

#[test]
fn abort_in_every_state_twice_and_of_unknown_ids() {
    let mut core = scheduler(&json!({"kv_blocks": 10, "block_size": 4, "max_num_seqs": 2, "token_budget": 8}));
    with(&mut core, &[(1, 4), (2, 16), (3, 4)]);
    core.plan(0);
    assert_eq!(
        [phase(&core, 1), phase(&core, 2), phase(&core, 3)],
        [Phase::Decoding, Phase::Prefilling, Phase::Waiting]
    );
    for id in [3, 2, 1] {
        assert!(core.abort(id));
        assert!(!core.abort(id));
    }
    assert!(!core.abort(99));
    core.complete(&Report {
        finished: &[1],
        preempted: &[2],
        refused: &[3],
        progress: &[(1, 5)],
        receiving: &[(2, 3)],
        received: &[],
        hits: &[(3, Hit { computed: 2, shared: 2, evicted: 0 })],
        free_blocks: None,
        step: None,
    })
    .unwrap();
    assert_eq!((core.stats().aborted, core.stats().unknown_ids, core.stats().finished), (3, 4 + 6, 0));
    assert_eq!((core.view().len(), core.view().pool().used()), (0, 0));
    assert!(core.plan(0).is_empty());
}

#[test]
fn finish_and_abort_in_the_same_iteration_count_once() {
    let mut core = small();
    with(&mut core, &[(1, 4), (2, 4)]);
    core.plan(0);
    assert!(core.abort(1));
    core.complete(&Report { finished: &[1, 2, 2], ..Report::default() }).unwrap();
    assert!(!core.abort(2));
    assert_eq!((core.stats().aborted, core.stats().finished, core.stats().unknown_ids), (1, 1, 3));
    assert!(core.view().is_empty());
    with(&mut core, &[(1, 4)]);
    assert_eq!(chunks(&mut core), [(1, 4)], "an id may come again once it has left");
}

#[test]
fn a_clock_that_goes_back_is_the_latest_reading() {
    let types = json!([{"prompt": 4, "output": 4, "rate": 1.0}]);
    let mut core = scheduler(&json!({"policy": "wait", "kv_blocks": 10, "types": types, "thresholds": [2.0],
        "work_conserving": false, "max_hold": 1.0}));
    core.add(&Request { arrival_ns: 5_000_000_000, ..request(1, 4) }).unwrap();
    for now in [5_500_000_000, 1, 0] {
        let plan = core.plan(now);
        assert!(plan.is_empty());
        assert_eq!(plan.wake_ns(), Some(6_000_000_000));
        assert_eq!(core.view().now_ns(), 5_500_000_000);
    }
    assert_eq!(core.plan(6_000_000_000).chunks().len(), 1);
    core.add(&Request { arrival_ns: u64::MAX, ..request(2, 4) }).unwrap();
    assert!(core.plan(0).wake_ns().is_none_or(|ns| ns == u64::MAX));
}

#[test]
fn an_arrival_in_the_future_makes_no_request_older() {
    let types = json!([{"prompt": 4, "output": 4, "rate": 1.0}]);
    let company = json!({"policy": "wait", "types": types, "thresholds": [3.0]});
    let faithful = json!({"policy": "nested-wait", "boundaries": [9], "thresholds": [3.0]});
    for policy in [company, faithful] {
        let mut settings = json!({"kv_blocks": 10, "work_conserving": false, "max_hold": 1.0});
        settings.as_object_mut().unwrap().extend(policy.as_object().unwrap().clone());
        let mut core = scheduler(&settings);
        core.add(&Request { arrival_ns: 10, ..request(1, 4) }).unwrap();
        core.add(&Request { arrival_ns: u64::MAX, ..request(2, 4) }).unwrap();
        assert!(core.plan(20).is_empty(), "{policy}: neither has waited for a second");
        assert_eq!((core.view().now_ns(), core.last_plan().wake_ns()), (20, Some(1_000_000_010)), "{policy}");
        assert!(!core.plan(1_000_000_010).is_empty(), "{policy}");
    }
    let mut core = scheduler(&json!({"policy": "adaptive", "kv_blocks": 10, "max_num_seqs": 1, "token_budget": 64,
        "ttft_target": 1.0}));
    with(&mut core, &[(1, 4), (2, 4)]);
    core.add(&Request { arrival_ns: u64::MAX, ..request(3, 4) }).unwrap();
    core.plan(0);
    core.plan(1_000);
    assert_eq!(core.explain(2).unwrap().reason, HoldReason::BatchCap, "in time, and held for a seat");
}

#[test]
fn a_restart_loses_the_output_and_a_recompute_keeps_it() {
    for (mode, kept) in [("restart", 0), ("recompute", 2)] {
        let mut core = scheduler(&json!({"kv_blocks": 10, "block_size": 4, "preemption": mode}));
        with(&mut core, &[(1, 4)]);
        core.plan(0);
        core.plan(0);
        core.set_capacity(1).unwrap();
        assert_eq!(core.plan(0).preempted().len(), 1);
        assert_eq!((stage(&core, 1), core.stats().recomputed_tokens), (kept, 5), "{mode}");
        core.set_capacity(10).unwrap();
        assert_eq!(chunks(&mut core), [(1, 4 + kept)]);
    }
}

#[test]
fn a_clone_decides_as_the_original() {
    let mut core = small();
    with(&mut core, &[(1, 12), (2, 12), (3, 12), (4, 4)]);
    core.plan(0);
    let mut clone = core.clone();
    for _ in 0..20 {
        assert_eq!(format!("{:?}", core.plan(0)), format!("{:?}", clone.plan(0)));
    }
    assert_eq!(core.stats(), clone.stats());
}
