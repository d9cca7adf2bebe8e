//! The scheduler by hand: what it refuses, what it reports, and hosts that do other things than planned.

use serde_json::json;
use wait_core::{Config, Error, Hold, HoldReason, LengthHint, Phase, Report, Request, RequestId, Scheduler};

fn scheduler(settings: &serde_json::Value) -> Scheduler {
    Scheduler::new(&Config::from_map(settings.as_object().unwrap().clone()).unwrap()).unwrap()
}

/// Ten blocks of four tokens.
fn small() -> Scheduler {
    scheduler(&json!({"kv_blocks": 10, "block_size": 4, "max_num_seqs": 8, "token_budget": 64}))
}

fn request(id: RequestId, prompt: u32) -> Request {
    Request { id, prompt, ..Request::default() }
}

fn with(scheduler: &mut Scheduler, requests: &[(RequestId, u32)]) {
    for &(id, prompt) in requests {
        scheduler.add(&request(id, prompt)).unwrap();
    }
}

fn chunks(scheduler: &mut Scheduler) -> Vec<(RequestId, u32)> {
    scheduler.plan(0).chunks().iter().map(|chunk| (chunk.id, chunk.tokens)).collect()
}

fn kv(scheduler: &Scheduler, id: RequestId) -> u32 {
    scheduler.view().kv(scheduler.view().slot(id).unwrap())
}

fn stage(scheduler: &Scheduler, id: RequestId) -> u32 {
    scheduler.view().stage(scheduler.view().slot(id).unwrap())
}

fn phase(scheduler: &Scheduler, id: RequestId) -> Phase {
    scheduler.view().request(scheduler.view().slot(id).unwrap()).phase
}

#[test]
fn what_could_not_run_even_alone_is_refused_at_the_door() {
    let mut core = small();
    assert_eq!(core.add(&request(1, 39)), Ok(()));
    let refused = |core: &mut Scheduler, request: &Request| core.add(request).unwrap_err().to_string();
    assert_eq!(
        refused(&mut core, &request(2, 40)),
        "request 2 needs 41 KV tokens, more than the 40 that max_model_len allows"
    );
    let exact = Request { output: LengthHint::Exact(21), ..request(2, 20) };
    assert_eq!(refused(&mut core, &exact), "request 2 needs 41 KV tokens, more than the 40 that max_model_len allows");
    core.set_capacity(5).unwrap();
    assert_eq!(
        refused(&mut core, &request(2, 20)),
        "request 2 needs 21 KV tokens, more than the 20 that the KV cache holds"
    );
    core.set_capacity(50).unwrap();
    assert!(
        refused(&mut core, &request(2, 40)).contains("max_model_len allows"),
        "growing does not lengthen the model"
    );
    let longest = u32::MAX;
    assert!(refused(&mut core, &request(2, longest)).contains("needs 4294967296 KV tokens"));
    assert_eq!(core.view().len(), 1);
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
    assert_eq!(error, Error::QueueFull { queued: 5, bound: 9, unit: "tokens" });
    assert_eq!(error.to_string(), "queue full: 5 tokens wait already, the bound is 9");
    with(&mut core, &[(2, 4)]);
    assert_eq!(core.add(&request(3, 1)), Err(Error::QueueFull { queued: 2, bound: 2, unit: "requests" }));
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
    let mut core = scheduler(&json!({"kv_blocks": 10, "block_size": 4, "watermark": 0.5}));
    with(&mut core, &[(1, 36), (2, 4)]);
    assert_eq!(chunks(&mut core), [(1, 36)]);
    // Nine blocks are taken and five must stay free.
    assert_eq!(core.explain(2), Some(Hold { reason: HoldReason::NoBlocks, needs: 6.0, limit: 1.0 }));
    core.complete(&Report { finished: &[1], ..Report::default() });
    assert_eq!(chunks(&mut core), [(2, 4)]);
}

#[test]
fn every_request_that_waits_is_explained() {
    let mut core = small();
    with(&mut core, &[(1, 16), (2, 16), (3, 8), (4, 4)]);
    assert_eq!(core.explain(1), None, "nobody has looked yet");
    core.plan(0);
    assert_eq!(core.explain(1), None);
    assert_eq!(core.explain(4), Some(Hold { reason: HoldReason::NoBlocks, needs: 1.0, limit: 0.0 }));
    assert_eq!(core.explain(77), None);
    // 16 → 17 twice and 8 → 9 find no block: request 3 goes, and nobody is admitted in such an iteration.
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
    core.complete(&Report { progress: &[(1, 5)], ..Report::default() });
    assert_eq!(chunks(&mut core), [(1, 1), (2, 2)]);
    core.complete(&Report { progress: &[(1, 0), (2, 3)], ..Report::default() });
    assert_eq!(chunks(&mut core), [(1, 4)]);
    assert_eq!(core.explain(2), Some(Hold { reason: HoldReason::BatchCap, needs: 5.0, limit: 4.0 }));
    assert_eq!((core.explain(1), core.paused_ids()), (None, vec![2]));
}

#[test]
fn abort_in_every_state_twice_and_of_ids_nobody_has() {
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
    core.complete(&Report { finished: &[1], preempted: &[2], refused: &[3], progress: &[(1, 5)], free_blocks: None });
    assert_eq!((core.stats().aborted, core.stats().unknown_ids, core.stats().finished), (3, 4 + 4, 0));
    assert_eq!((core.view().len(), core.view().pool().used()), (0, 0));
    assert!(core.plan(0).is_empty());
}

#[test]
fn finish_and_abort_in_the_same_iteration_count_once() {
    let mut core = small();
    with(&mut core, &[(1, 4), (2, 4)]);
    core.plan(0);
    assert!(core.abort(1));
    core.complete(&Report { finished: &[1, 2, 2], ..Report::default() });
    assert!(!core.abort(2));
    assert_eq!((core.stats().aborted, core.stats().finished, core.stats().unknown_ids), (1, 1, 3));
    assert!(core.view().is_empty());
    with(&mut core, &[(1, 4)]);
    assert_eq!(chunks(&mut core), [(1, 4)], "an id may come again once it has left");
}

#[test]
fn the_host_preempts_what_nobody_chose() {
    let mut core = small();
    with(&mut core, &[(1, 4), (2, 4), (3, 4)]);
    core.plan(0);
    core.plan(0);
    assert_eq!((stage(&core, 1), kv(&core, 1)), (2, 5));
    core.complete(&Report { preempted: &[1], ..Report::default() });
    assert_eq!(
        (phase(&core, 1), stage(&core, 1)),
        (Phase::Waiting, 1),
        "the second token was planned and not computed"
    );
    assert_eq!((core.stats().preemptions, core.stats().recomputed_tokens), (1, 4));
    let plan = core.plan(0);
    assert_eq!((plan.decodes(), plan.chunks()[0].id, plan.chunks()[0].tokens), (2, 1, 5));
    assert_eq!(stage(&core, 1), 2);
    core.complete(&Report { preempted: &[1], ..Report::default() });
    assert_eq!((stage(&core, 1), core.stats().recomputed_tokens), (1, 4), "its prefill had not happened either");
}

#[test]
fn the_host_refuses_admissions_and_the_line_keeps_its_order() {
    let mut core = small();
    with(&mut core, &[(1, 4), (2, 4), (3, 4), (4, 4)]);
    core.plan(0);
    core.complete(&Report { refused: &[2, 3, 4], ..Report::default() });
    assert_eq!((core.stats().admitted, core.view().waiting_total(), core.view().pool().used()), (1, 3, 1));
    assert_eq!(chunks(&mut core), [(2, 4), (3, 4), (4, 4)]);
    assert_eq!((core.stats().admitted, core.stats().preemptions), (4, 0));
}

#[test]
fn a_refusal_may_come_after_the_next_plan() {
    let mut core = small();
    with(&mut core, &[(1, 4), (2, 4)]);
    core.plan(0);
    core.plan(0);
    core.complete(&Report { refused: &[2], ..Report::default() });
    assert_eq!((stage(&core, 1), stage(&core, 2), phase(&core, 2)), (2, 0, Phase::Waiting));
    assert_eq!(chunks(&mut core), [(2, 4)]);
}

#[test]
fn the_next_iteration_is_planned_before_this_one_completes() {
    let mut core = small();
    with(&mut core, &[(1, 4), (2, 4)]);
    assert_eq!(core.plan(0).chunks().len(), 2);
    assert_eq!(core.plan(0).decodes(), 2);
    core.complete(&Report { finished: &[1], ..Report::default() });
    assert_eq!((kv(&core, 2), core.view().residents(), core.view().pool().used()), (5, 1, 2));
    assert_eq!(core.plan(0).decodes(), 1);
    core.complete(&Report::default());
    core.complete(&Report { finished: &[2], ..Report::default() });
    assert!(core.view().is_empty());
}

#[test]
fn progress_places_a_request_where_the_host_says() {
    let mut core = small();
    with(&mut core, &[(1, 8), (2, 8)]);
    core.plan(0);
    // Speculative decoding: two tokens more than planned; and a chunk that was cut.
    core.complete(&Report { progress: &[(1, 10), (2, 3)], ..Report::default() });
    assert_eq!((kv(&core, 1), stage(&core, 1), phase(&core, 2), kv(&core, 2)), (10, 3, Phase::Prefilling, 3));
    assert_eq!(core.view().pool().used(), 4);
    assert_eq!(chunks(&mut core), [(2, 5)]);
    assert_eq!((kv(&core, 1), stage(&core, 2)), (11, 1));
}

#[test]
fn progress_that_cannot_be_is_cut_and_nothing_panics() {
    let mut core = small();
    with(&mut core, &[(1, 8), (2, 8)]);
    core.plan(0);
    core.complete(&Report { progress: &[(1, u32::MAX), (2, 0), (2, 0), (9, 4)], ..Report::default() });
    assert_eq!((kv(&core, 1), kv(&core, 2), core.stats().unknown_ids), (40, 0, 1));
    core.complete(&Report { preempted: &[2], ..Report::default() });
    assert_eq!((stage(&core, 2), phase(&core, 2)), (0, Phase::Waiting));
    core.complete(&Report { preempted: &[1], ..Report::default() });
    assert_eq!(core.stats().preemptions, 2);
}

#[test]
fn a_shrunken_cache_evicts_and_fills_again_when_it_grows() {
    let mut core = small();
    with(&mut core, &[(1, 12), (2, 12), (3, 12)]);
    core.plan(0);
    core.set_capacity(5).unwrap();
    assert_eq!(core.view().pool().free(), -4);
    let plan = core.plan(0);
    assert_eq!(plan.preempted().iter().map(|&(_, id)| id).collect::<Vec<_>>(), [3, 2]);
    assert_eq!((plan.decodes(), core.view().pool().free()), (1, 1));
    core.set_capacity(10).unwrap();
    assert_eq!(chunks(&mut core), [(2, 13)]);
    assert_eq!(core.explain(3), Some(Hold { reason: HoldReason::NoBlocks, needs: 4.0, limit: 2.0 }));
}

#[test]
fn what_no_longer_fits_waits_until_the_cache_grows_again() {
    let mut core = small();
    with(&mut core, &[(1, 30), (2, 4)]);
    core.set_capacity(4).unwrap();
    for _ in 0..3 {
        assert!(core.plan(0).is_empty());
        assert_eq!(core.explain(1), Some(Hold { reason: HoldReason::NoBlocks, needs: 8.0, limit: 4.0 }));
    }
    core.set_capacity(10).unwrap();
    assert_eq!(chunks(&mut core), [(1, 30), (2, 4)]);
}

#[test]
fn a_reset_of_the_prefix_cache_sends_everyone_back_with_what_they_have() {
    let mut core = small();
    with(&mut core, &[(1, 4), (2, 6), (3, 4)]);
    core.plan(0);
    core.complete(&Report { free_blocks: Some(8), ..Report::default() });
    core.plan(0);
    // vLLM's reset_prefix_cache(reset_running_requests=True) preempts all that run, last admitted first.
    core.complete(&Report { preempted: &[3, 2, 1], free_blocks: Some(10), ..Report::default() });
    assert_eq!((core.view().residents(), core.view().pool().free(), core.view().resuming()), (0, 10, 3));
    assert_eq!(chunks(&mut core), [(1, 5), (2, 7), (3, 5)]);
}

#[test]
fn a_paused_engine_keeps_everything_and_goes_on() {
    let mut core = small();
    with(&mut core, &[(1, 4)]);
    core.plan(0);
    with(&mut core, &[(2, 4)]);
    core.set_paused(true);
    for _ in 0..3 {
        let plan = core.plan(0);
        assert!(plan.is_empty() && plan.preempted().is_empty());
        assert_eq!(core.paused_ids(), [1]);
        core.complete(&Report::default());
    }
    assert_eq!((kv(&core, 1), core.view().residents(), core.view().waiting_total()), (4, 1, 1));
    assert!(core.abort(1));
    core.set_paused(false);
    assert_eq!(chunks(&mut core), [(2, 4)]);
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
