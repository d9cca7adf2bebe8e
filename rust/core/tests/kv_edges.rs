//! KV that comes from elsewhere, hits that reach into the output, windows and lookahead slots at the edge of what fits.

mod common;

use common::{request, scheduler};
use serde_json::{Value, json};
use wait_core::{Error, Hit, HoldReason, Report, Request, Scheduler};

/// A request that receives the KV of this many tokens of its prompt.
fn receiving(id: u64, prompt: u32, computed: u32) -> Request {
    Request { hit: Hit { computed, shared: 0, evicted: 0 }, receives: true, ..request(id, prompt) }
}

fn small(policy: &Value) -> Scheduler {
    let mut settings = json!({"kv_blocks": 20, "block_size": 2, "max_num_seqs": 3, "token_budget": 16});
    settings.as_object_mut().unwrap().extend(policy.as_object().unwrap().clone());
    scheduler(&settings)
}

#[test]
fn a_request_that_receives_is_listed_as_standing_and_nothing_is_computed_of_it() {
    let mut core = small(&json!({"policy": "vllm"}));
    core.add(&receiving(1, 9, 5)).unwrap();
    core.add(&request(2, 4)).unwrap();
    let plan = core.plan(0);
    assert_eq!((plan.tokens(), plan.shape().prefill_kv, plan.shape().prefill_tokens), (4, 4, 4), "of the second only");
    assert_eq!(core.paused_ids(), [1]);
    core.plan(0);
    assert_eq!(core.paused_ids(), [1], "while the other decodes");
    assert_eq!(core.explain(1).unwrap().reason, HoldReason::KvTransfer);
    core.complete(&Report { received: &[1], ..Report::default() }).unwrap();
    assert_eq!((core.plan(0).tokens(), core.paused_ids()), (4 + 1, vec![]));
}

/// A request that holds this many blocks beside those of its tokens.
fn encoding(id: u64, prompt: u32, encoder_blocks: u32) -> Request {
    Request { encoder_blocks, ..request(id, prompt) }
}

#[test]
fn what_an_encoder_has_read_is_held_from_the_admission_to_the_end() {
    for policy in ["vllm", "adaptive", "clairvoyant"] {
        for prefix_caching in [false, true] {
            let mut core = small(&json!({"policy": policy, "prefix_caching": prefix_caching}));
            core.add(&Request { max_tokens: Some(8), ..encoding(1, 4, 12) }).unwrap();
            core.add(&Request { max_tokens: Some(8), ..encoding(2, 4, 6) }).unwrap();
            assert_eq!(core.plan(0).free(), 6, "{policy}");
            assert_eq!(core.view().pool().free(), 6, "{policy}");
            let hold = core.explain(2).unwrap();
            assert_eq!((hold.reason, hold.needs, hold.limit), (HoldReason::NoBlocks, 8.0, 6.0), "{policy}");
            core.plan(0);
            assert_eq!(core.view().pool().used(), 3 + 12, "a decode takes no more of them: {policy}");
            core.complete(&Report { finished: &[1], ..Report::default() }).unwrap();
            assert_eq!(core.view().pool().used(), 0, "{policy}");
            core.plan(0);
            assert_eq!(core.view().pool().used(), 2 + 6, "{policy}");
            assert!(core.abort(2), "{policy}");
            assert_eq!(core.view().pool().used(), 0, "{policy}");
        }
    }
}

#[test]
fn a_preempted_request_frees_what_its_encoder_has_read() {
    for policy in ["vllm", "wait"] {
        let types = json!([{"prompt": 4, "output": 8, "rate": 2.0}]);
        let wait = json!({"policy": "wait", "types": types, "thresholds": [2.0]});
        let mut core = small(&if policy == "wait" { wait } else { json!({"policy": policy}) });
        core.add(&encoding(1, 4, 7)).unwrap();
        core.add(&encoding(2, 4, 7)).unwrap();
        (0..3).for_each(|_| _ = core.plan(0));
        assert_eq!((core.view().residents(), core.view().pool().free()), (2, 0), "{policy}");
        // The third block of each is full.
        assert_eq!(core.plan(0).preempted().len(), 1, "{policy}");
        assert_eq!(core.view().pool().used(), 4 + 7, "{policy}");
    }
}

#[test]
fn a_request_whose_encoder_leaves_no_room_for_its_tokens_is_too_large() {
    let mut core = small(&json!({"policy": "vllm"}));
    let refused = core.add(&encoding(1, 4, 18));
    assert!(matches!(refused, Err(Error::TooLarge { needs: 5, limit: 4, .. })), "{refused:?}");
    assert!(core.add(&encoding(1, 4, 99)).is_err() && core.add(&encoding(1, 4, 17)).is_ok());
    // Once the cache has shrunk it waits as one that is too large, and holds up no other.
    core.set_capacity(10).unwrap();
    core.add(&request(2, 4)).unwrap();
    core.plan(0);
    assert_eq!((core.view().residents(), core.explain(1).unwrap().reason), (1, HoldReason::TooLarge));
}

#[test]
fn adaptive_forecasts_what_an_encoder_has_read_as_held_to_the_end() {
    let expected = |encoder_blocks| {
        let mut core = small(&json!({"policy": "adaptive", "kv_blocks": 40}));
        core.add(&Request { max_tokens: Some(20), ..encoding(1, 8, encoder_blocks) }).unwrap();
        (0..3).for_each(|_| _ = core.plan(0));
        core.kv_forecast().iter().map(|ahead| ahead.mean).collect::<Vec<_>>()
    };
    let (with, without) = (expected(9), expected(0));
    assert!(!with.is_empty() && with.len() == without.len());
    let (near, far) = (with[0] - without[0], with[with.len() - 1] - without[without.len() - 1]);
    assert!((near - 18.0).abs() < 1.0, "while it runs it holds its 9 blocks of 2 tokens: {near}");
    assert!(far < near, "and no longer than it runs: {far}");
}

/// Once it decoded, its course was that of its tokens alone.
#[test]
fn clairvoyant_never_preempts_for_what_an_encoder_has_read() {
    let mut core = small(&json!({"policy": "clairvoyant"}));
    core.add(&Request { max_tokens: Some(14), ..encoding(1, 4, 4) }).unwrap();
    (0..3).for_each(|_| _ = core.plan(0));
    core.add(&Request { max_tokens: Some(12), ..request(2, 8) }).unwrap();
    core.plan(0);
    assert_eq!(core.explain(2).unwrap().reason, HoldReason::ForecastOverflow);
    (0..10).for_each(|_| _ = core.plan(0));
    core.complete(&Report { finished: &[1], ..Report::default() }).unwrap();
    core.plan(0);
    assert_eq!((core.stats().preemptions, core.view().residents()), (0, 1), "the second, after the first");
}

#[test]
fn thresholds_admit_a_request_that_receives_once() {
    let types = json!([{"prompt": 6, "output": 4, "rate": 2.0}]);
    for policy in [
        json!({"policy": "wait", "types": types, "thresholds": [2.0]}),
        json!({"policy": "nested-wait", "boundaries": [1, 3], "thresholds": [2.0, 1.0]}),
        json!({"policy": "nested-wait", "types": types, "work_conserving": false}),
    ] {
        let mut core = small(&policy);
        core.drain();
        core.add(&receiving(1, 6, 3)).unwrap();
        assert_eq!(core.plan(0).chunks().len(), 1, "{policy}");
        assert_eq!((core.view().residents(), core.stats().corrected_plans), (1, 0), "{policy}");
    }
}

#[test]
fn adaptive_forecasts_beside_a_request_that_receives_what_others_hold() {
    let mut core = small(&json!({"policy": "adaptive"}));
    core.complete(&Report { free_blocks: Some(20), ..Report::default() }).unwrap();
    let hit = Hit { computed: 8, shared: 8, evicted: 0 };
    core.add(&Request { hit, ..receiving(1, 9, 8) }).unwrap();
    core.plan(0);
    let forecast = core.kv_forecast();
    assert!(!forecast.is_empty() && forecast.iter().all(|ahead| ahead.mean < 40.0), "{forecast:?}");
}

#[test]
fn adaptive_learns_from_a_hit_that_reaches_into_the_output() {
    let mut core = small(&json!({"policy": "adaptive"}));
    core.add(&request(1, 4)).unwrap();
    (0..6).for_each(|_| _ = core.plan(0));
    core.complete(&Report { preempted: &[1], free_blocks: Some(20), ..Report::default() }).unwrap();
    let hits = [(1, Hit { computed: 8, shared: 8, evicted: 0 })];
    core.complete(&Report { hits: &hits, free_blocks: Some(16), ..Report::default() }).unwrap();
    (0..3).for_each(|_| _ = core.plan(0));
    core.complete(&Report { finished: &[1], ..Report::default() }).unwrap();
    assert_eq!((core.stats().finished, core.view().pool().used()), (1, 0));
}

#[test]
fn a_prompt_that_goes_alone_beyond_the_budget_holds_all_of_it_in_a_window_too() {
    let groups = json!([{"kind": "full", "count": 2}, {"kind": "sliding_window", "window": 5, "block_size": 2}]);
    let mut core = scheduler(&json!({"policy": "prefill-first", "kv_blocks": 30, "block_size": 4, "kv_groups": groups,
        "max_num_seqs": 3, "token_budget": 12}));
    core.add(&request(1, 23)).unwrap();
    let blocks = core.plan(0).chunks()[0].blocks;
    assert_eq!(blocks, 2 * 6 + 12);
}

#[test]
fn slots_ahead_count_among_what_a_request_needs_alone() {
    let settings = json!({"kv_blocks": 18, "block_size": 2, "num_lookahead_tokens": 2});
    let mut core = scheduler(&settings);
    core.add(&request(1, 27)).unwrap();
    let mut emitted = 0;
    for _ in 0..40 {
        emitted += core.plan(0).decodes();
        // The first token is the prefill's.
        if 27 + 1 + emitted >= core.view().max_model_len() {
            core.complete(&Report { finished: &[1], ..Report::default() }).unwrap();
            break;
        }
    }
    assert_eq!((core.stats().finished, core.stats().preemptions), (1, 0), "it reaches the model's limit");
}

/// Requests with the same first four blocks of two tokens, and a fifth of their own.
fn alike(core: &mut Scheduler, ids: std::ops::RangeInclusive<u64>) {
    for id in ids {
        core.add(&Request { block_hashes: vec![1, 2, 3, 4, 10 * id], ..request(id, 9) }).unwrap();
    }
}

#[test]
fn preemptions_beside_shared_blocks_leave_none_in_use() {
    let mut core = small(&json!({"policy": "vllm", "token_budget": 40, "prefix_caching": true}));
    alike(&mut core, 1..=3);
    core.plan(0);
    assert_eq!(core.view().pool().used(), 4 + 3);
    // Two leave in one plan, and the last one holds fewer blocks than were shared before.
    core.set_capacity(5).unwrap();
    assert_eq!(core.plan(0).preempted().len(), 2);
    assert_eq!((core.view().residents(), core.view().pool().used()), (1, 5));
}

#[test]
fn what_a_plan_gave_up_computing_is_not_found() {
    for policy in ["sarathi", "adaptive", "vllm"] {
        let mut core = small(&json!({"policy": policy, "token_budget": 5, "prefix_caching": true}));
        core.add(&request(1, 4)).unwrap();
        core.plan(0);
        // Four tokens of the second in this plan; with fewer blocks the next four do not fit.
        core.add(&Request { block_hashes: (1..=6).collect(), ..request(2, 12) }).unwrap();
        core.plan(0);
        core.set_capacity(6).unwrap();
        assert_eq!(core.plan(0).preempted().len(), 1, "{policy}");
        core.complete(&Report { finished: &[1], ..Report::default() }).unwrap();
        assert_eq!(core.plan(0).chunks()[0].start, 4, "{policy}: what the first chunk computed");
    }
}

#[test]
fn what_the_host_did_not_compute_is_not_found() {
    let reports: [(u32, Report); 3] = [
        (4, Report { preempted: &[1], ..Report::default() }),
        (0, Report { refused: &[1], ..Report::default() }),
        (6, Report { progress: &[(1, 7)], ..Report::default() }),
    ];
    for (start, report) in reports {
        let mut core = small(&json!({"policy": "vllm", "token_budget": 4, "prefix_caching": true}));
        core.add(&Request { block_hashes: (1..=6).collect(), ..request(1, 12) }).unwrap();
        core.plan(0);
        core.plan(0);
        core.complete(&report).unwrap();
        core.abort(1);
        core.add(&Request { block_hashes: (1..=6).collect(), ..request(2, 12) }).unwrap();
        assert_eq!(core.plan(0).chunks()[0].start, start, "{report:?}");
        core.abort(2);
        assert_eq!(core.view().pool().used(), 0);
    }
}

#[test]
fn prefill_first_lets_no_request_go_for_one_that_receives() {
    let mut core = small(&json!({"policy": "prefill-first", "kv_blocks": 9}));
    core.add(&request(1, 7)).unwrap();
    core.plan(0);
    core.add(&request(2, 8)).unwrap();
    core.plan(0);
    // The first wants a block more with its next token, and the third takes the last one.
    core.add(&receiving(3, 2, 1)).unwrap();
    let plan = core.plan(0);
    assert_eq!((plan.chunks().len(), plan.preempted().len()), (1, 0));
}

/// What `adaptive` learns of a request that is reported to have ended after this many plans, restored by another of its
/// kind.
fn learns_of(settings: &Value, prompt: u32, max_tokens: u32, plans: u32) -> wait_core::Result<()> {
    let mut core = small(settings);
    core.add(&Request { max_tokens: Some(max_tokens), ..request(1, prompt) }).unwrap();
    (0..plans).for_each(|_| _ = core.plan(0));
    core.complete(&Report { finished: &[1], ..Report::default() }).unwrap();
    small(settings).restore(&core.learned().unwrap())
}

#[test]
fn adaptive_learns_no_output_beyond_max_tokens_from_a_host_that_reports_the_end_late() {
    let settings = json!({"policy": "adaptive", "max_model_len": 6});
    assert_eq!(learns_of(&settings, 2, 3, 9), Ok(()));
}

#[test]
fn adaptive_believes_that_a_request_took_more_than_the_longest_where_chunks_are_left_behind() {
    let chunks = json!([{"kind": "chunked_local", "chunk": 8}]);
    let settings = json!({"policy": "adaptive", "max_model_len": 16, "kv_groups": chunks});
    assert_eq!(learns_of(&settings, 7, 1, 1), Ok(()));
}
