//! Hosts that deviate from the plan.

mod common;

use common::*;
use serde_json::json;
use wait_core::*;

fn hit(tokens: u32) -> Hit {
    Hit { computed: tokens, shared: tokens, evicted: 0 }
}

#[test]
fn the_host_preempts_what_no_plan_chose() {
    let mut core = small();
    with(&mut core, &[(1, 4), (2, 4), (3, 4)]);
    core.plan(0);
    core.plan(0);
    assert_eq!((stage(&core, 1), kv(&core, 1)), (2, 5));
    core.complete(&Report { preempted: &[1], ..Report::default() }).unwrap();
    assert_eq!(
        (phase(&core, 1), stage(&core, 1)),
        (Phase::Waiting, 1),
        "the second token was planned and not computed"
    );
    assert_eq!((core.stats().preemptions, core.stats().recomputed_tokens), (1, 4));
    let plan = core.plan(0);
    assert_eq!((plan.decodes(), plan.chunks()[0].id, plan.chunks()[0].tokens), (2, 1, 5));
    assert_eq!(stage(&core, 1), 2);
    core.complete(&Report { preempted: &[1], ..Report::default() }).unwrap();
    assert_eq!((stage(&core, 1), core.stats().recomputed_tokens), (1, 4), "its prefill had not happened either");
}

#[test]
fn the_host_refuses_admissions_and_the_queue_keeps_its_order() {
    let mut core = small();
    with(&mut core, &[(1, 4), (2, 4), (3, 4), (4, 4)]);
    core.plan(0);
    core.complete(&Report { refused: &[2, 3, 4], ..Report::default() }).unwrap();
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
    core.complete(&Report { refused: &[2], ..Report::default() }).unwrap();
    assert_eq!((stage(&core, 1), stage(&core, 2), phase(&core, 2)), (2, 0, Phase::Waiting));
    assert_eq!(chunks(&mut core), [(2, 4)]);
}

#[test]
fn the_next_iteration_is_planned_before_this_one_completes() {
    let mut core = small();
    with(&mut core, &[(1, 4), (2, 4)]);
    assert_eq!(core.plan(0).chunks().len(), 2);
    assert_eq!(core.plan(0).decodes(), 2);
    core.complete(&Report { finished: &[1], ..Report::default() }).unwrap();
    assert_eq!((kv(&core, 2), core.view().residents(), core.view().pool().used()), (5, 1, 2));
    assert_eq!(core.plan(0).decodes(), 1);
    core.complete(&Report::default()).unwrap();
    core.complete(&Report { finished: &[2], ..Report::default() }).unwrap();
    assert!(core.view().is_empty());
}

#[test]
fn progress_places_a_request_where_the_host_says() {
    let mut core = small();
    with(&mut core, &[(1, 8), (2, 8)]);
    core.plan(0);
    // Speculative decoding: two tokens more than planned; and a chunk that was cut.
    core.complete(&Report { progress: &[(1, 10), (2, 3)], ..Report::default() }).unwrap();
    assert_eq!((kv(&core, 1), stage(&core, 1), phase(&core, 2), kv(&core, 2)), (10, 3, Phase::Prefilling, 3));
    assert_eq!(core.view().pool().used(), 4);
    assert_eq!(chunks(&mut core), [(2, 5)]);
    assert_eq!((kv(&core, 1), stage(&core, 2)), (11, 1));
}

#[test]
fn a_report_that_cannot_be_is_refused_and_changes_nothing() {
    let mut core = small();
    with(&mut core, &[(1, 8), (2, 8)]);
    core.plan(0);
    let before = format!("{core:?}");
    let all = Report {
        finished: &[2],
        preempted: &[1],
        step: Some(StepTime { ns: 7, iteration: None }),
        ..Report::default()
    };
    for (report, name, value) in [
        (Report { free_blocks: Some(11), ..all }, "free_blocks", "11"),
        (Report { progress: &[(2, 3), (1, 41)], ..all }, "progress of request 1", "41"),
        (Report { hits: &[(1, Hit { computed: 3, shared: 4, evicted: 0 })], ..all }, "shared tokens of request 1", "4"),
        (Report { refused: &[2], ..all }, "finished", "2"),
    ] {
        let error = core.complete(&report).unwrap_err();
        assert!(
            matches!(&error, Error::Invalid { name: n, value: v, .. } if (n.as_str(), v.as_str()) == (name, value)),
            "{error}"
        );
        assert_eq!(format!("{core:?}"), before);
    }
    core.complete(&Report { progress: &[(1, 40), (2, 0), (2, 0), (9, 4)], ..Report::default() }).unwrap();
    assert_eq!((kv(&core, 1), kv(&core, 2), core.stats().unknown_ids), (40, 0, 1));
    core.complete(&Report { preempted: &[2, 2], ..Report::default() }).unwrap();
    assert_eq!((stage(&core, 2), phase(&core, 2), core.stats().preemptions), (0, Phase::Waiting, 1));
    core.complete(&Report { preempted: &[1], ..Report::default() }).unwrap();
    assert_eq!(core.stats().preemptions, 2);
}

#[test]
fn a_host_that_claims_more_free_blocks_than_there_are_overcommits_nothing() {
    let mut core = small();
    with(&mut core, &(1..=18).map(|id| (id, 8)).collect::<Vec<_>>());
    for _ in 0..9 {
        core.plan(0);
        core.complete(&Report { free_blocks: Some(1000), ..Report::default() }).unwrap_err();
        assert!(core.view().pool().free() >= 0 && core.view().residents() <= 5);
    }
}

#[test]
fn an_old_refusal_takes_nothing_from_a_request_that_has_run_since() {
    let mut core = scheduler(&json!({"kv_blocks": 100}));
    with(&mut core, &[(1, 4)]);
    (0..40).for_each(|_| _ = core.plan(0));
    core.complete(&Report { refused: &[1], ..Report::default() }).unwrap();
    assert_eq!((stage(&core, 1), phase(&core, 1), core.stats().unknown_ids), (40, Phase::Decoding, 1));
}

#[test]
fn progress_may_be_reported_before_the_first_plan() {
    let mut core = small();
    with(&mut core, &[(1, 8)]);
    core.complete(&Report { progress: &[(1, 9)], ..Report::default() }).unwrap();
    assert!(core.explain(1).is_some());
    core.complete(&Report { preempted: &[1], ..Report::default() }).unwrap();
    assert_eq!(phase(&core, 1), Phase::Waiting);
}

#[test]
fn a_request_whose_kv_is_on_the_way_holds_memory_and_computes_nothing() {
    let mut core = small();
    core.add(&Request { hit: Hit { computed: 11, shared: 0, evicted: 0 }, receives: true, ..request(1, 12) }).unwrap();
    with(&mut core, &[(2, 4)]);
    for _ in 0..3 {
        core.plan(0);
        assert_eq!((phase(&core, 1), kv(&core, 1), core.view().residents()), (Phase::Receiving, 11, 2));
        assert_eq!(core.explain(1), Some(Hold { reason: HoldReason::KvTransfer, needs: 11.0, limit: 0.0 }));
    }
    assert_eq!((stage(&core, 2), core.view().pool().used()), (3, 3 + 2));
    core.complete(&Report { received: &[1], ..Report::default() }).unwrap();
    assert_eq!(chunks(&mut core), [(1, 1)], "the last token of the prompt emits the first of the output");
    assert_eq!((phase(&core, 1), stage(&core, 1), core.explain(1)), (Phase::Decoding, 1, None));
    core.complete(&Report { received: &[1, 7], ..Report::default() }).unwrap();
    assert_eq!(core.stats().unknown_ids, 2, "it has come once");
}

#[test]
fn a_host_may_learn_at_an_admission_that_the_kv_comes_from_elsewhere() {
    for policy in ["vllm", "adaptive"] {
        let mut core = scheduler(&json!({"policy": policy, "kv_blocks": 40, "block_size": 4}));
        with(&mut core, &[(1, 12), (2, 4)]);
        core.plan(0);
        assert_eq!((phase(&core, 1), kv(&core, 1)), (Phase::Decoding, 12), "{policy}: as if it had been computed");
        core.complete(&Report { receiving: &[(1, 8)], ..Report::default() }).unwrap();
        for _ in 0..3 {
            assert_eq!((phase(&core, 1), kv(&core, 1), core.view().residents()), (Phase::Receiving, 8, 2), "{policy}");
            assert!(core.plan(0).chunks().is_empty(), "{policy}");
        }
        assert_eq!((core.stats().admitted, core.stats().holds.iter().sum::<u64>()), (2, 0), "{policy}");
        core.complete(&Report { received: &[1], ..Report::default() }).unwrap();
        assert_eq!(chunks(&mut core), [(1, 4)], "{policy}: the rest of the prompt");
        // One that the host admits on its own.
        core.add(&request(3, 9)).unwrap();
        core.complete(&Report { receiving: &[(3, 100)], ..Report::default() }).unwrap();
        assert_eq!((phase(&core, 3), kv(&core, 3)), (Phase::Receiving, 8), "{policy}: the last token is computed");
        // One that has run is not taken back.
        for _ in 0..20 {
            core.plan(0);
        }
        core.complete(&Report { receiving: &[(1, 8)], ..Report::default() }).unwrap();
        assert_eq!((phase(&core, 1), core.stats().unknown_ids), (Phase::Decoding, 1), "{policy}");
    }
    let mut core = scheduler(&json!({"kv_blocks": 40, "block_size": 4, "prefix_caching": true}));
    with(&mut core, &[(1, 12)]);
    assert!(core.complete(&Report { receiving: &[(1, 8)], ..Report::default() }).is_err());
}

#[test]
fn the_kv_of_a_request_in_transfer_is_forecast() {
    let held = |receives: bool| {
        let mut core =
            scheduler(&json!({"policy": "adaptive", "kv_blocks": 1000, "block_size": 1, "overflow_probability": 0.01}));
        let request =
            |id| Request { id, prompt: 150, output: LengthHint::Exact(100), arrival_ns: 0, ..Request::default() };
        // Four residents grow from 150 to 250 tokens each: to what the cache holds, all at one moment.
        for id in 0..4 {
            let hit = Hit { computed: if receives { 149 } else { 0 }, shared: 0, evicted: 0 };
            core.add(&Request { receives, hit, ..request(id) }).unwrap();
        }
        assert_eq!(core.plan(0).chunks().len(), 4);
        core.add(&request(4)).unwrap();
        core.plan(0);
        core.explain(4).map(|hold| hold.reason)
    };
    assert_eq!(held(false), Some(HoldReason::ForecastOverflow));
    assert_eq!(held(true), Some(HoldReason::ForecastOverflow));
}

#[test]
fn several_tokens_a_step_are_an_offset_of_their_own() {
    let mut core = scheduler(&json!({"kv_blocks": 40, "block_size": 4, "num_lookahead_tokens": 3}));
    with(&mut core, &[(1, 4), (2, 4)]);
    core.plan(0);
    core.plan(0);
    assert_eq!((kv(&core, 1), core.view().pool().used()), (5, 4), "slots for 3 drafts are taken ahead");
    core.complete(&Report { progress: &[(1, 8)], ..Report::default() }).unwrap();
    assert_eq!((kv(&core, 1), stage(&core, 1), kv(&core, 2), core.view().pool().used()), (8, 5, 5, 4));
    core.plan(0);
    assert_eq!((kv(&core, 1), kv(&core, 2), core.view().pool().used()), (9, 6, 3 + 3));
}

#[test]
fn drafts_take_tokens_of_the_budget() {
    for (policy, decodes) in [("vllm", 2), ("sarathi", 2), ("adaptive", 2)] {
        let settings = json!({"policy": policy, "kv_blocks": 100, "block_size": 4, "max_num_seqs": 4, "token_budget": 12,
            "num_speculative_tokens": 3});
        let mut core = scheduler(&settings);
        with(&mut core, &[(1, 4), (2, 4), (3, 20)]);
        core.plan(0);
        core.plan(0);
        let plan = core.last_plan();
        assert_eq!((plan.decodes(), plan.decode_tokens(), plan.tokens()), (decodes, 4 * decodes, 12), "{policy}");
        assert_eq!((plan.shape().decodes, plan.chunks()[0].tokens), (8, 12 - 8), "{policy}: {:?}", plan.chunks());
    }
}

#[test]
fn decodes_for_which_drafts_leave_no_token_stand() {
    let settings = json!({"policy": "vllm", "kv_blocks": 100, "block_size": 4, "max_num_seqs": 4, "token_budget": 10,
        "num_speculative_tokens": 3});
    let mut core = scheduler(&settings);
    with(&mut core, &[(1, 2), (2, 2), (3, 2), (4, 2)]);
    core.plan(0);
    // 4 + 4 + the last 2 of the budget: the third has one draft verified, the fourth gets nothing.
    let plan = core.plan(0);
    assert_eq!((plan.decodes(), plan.parked().len(), plan.tokens_left()), (3, 1, 0));
}

#[test]
fn a_cache_of_several_groups_is_counted_over_all_of_them() {
    let mut core =
        scheduler(&json!({"kv_blocks": 24, "block_size": 4, "max_num_seqs": 4, "token_budget": 8, "kv_groups": [
        {"kind": "full"}, {"kind": "sliding_window", "window": 8, "count": 2}, {"kind": "state", "blocks": 1}]}));
    // 24 blocks hold more than 24 · 4/3 tokens: windows cease to grow.
    with(&mut core, &[(1, 24)]);
    for used in [2 + 2 * 2 + 1, 4 + 2 * 4 + 1, 6 + 2 * (6 - 2) + 1] {
        core.plan(0);
        assert_eq!(core.view().pool().used(), used);
    }
    for kv in 25..=40_u32 {
        core.plan(0);
        let window = kv.div_ceil(4) - (kv - 8) / 4;
        assert_eq!(core.view().pool().used(), i64::from(kv.div_ceil(4) + 2 * window + 1), "{kv} tokens");
    }
    core.complete(&Report { finished: &[1], ..Report::default() }).unwrap();
    assert_eq!(core.view().pool().used(), 0);
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
    with(&mut core, &[(1, 30)]);
    core.set_capacity(4).unwrap();
    for _ in 0..3 {
        assert!(core.plan(0).is_empty());
        assert_eq!(core.explain(1), Some(Hold { reason: HoldReason::TooLarge, needs: 8.0, limit: 4.0 }));
    }
    core.set_capacity(10).unwrap();
    assert_eq!(chunks(&mut core), [(1, 30)]);
}

#[test]
fn a_reset_of_the_prefix_cache_preempts_all_and_keeps_their_outputs() {
    let mut core = small();
    with(&mut core, &[(1, 4), (2, 6), (3, 4)]);
    core.plan(0);
    core.complete(&Report { free_blocks: Some(8), ..Report::default() }).unwrap();
    core.plan(0);
    // vLLM's reset_prefix_cache(reset_running_requests=True) preempts all that run, last admitted first.
    core.complete(&Report { preempted: &[3, 2, 1], free_blocks: Some(10), ..Report::default() }).unwrap();
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
        core.complete(&Report::default()).unwrap();
    }
    assert_eq!((kv(&core, 1), core.view().residents(), core.view().waiting_total()), (4, 1, 1));
    assert!(core.abort(1));
    core.set_paused(false);
    assert_eq!(chunks(&mut core), [(2, 4)]);
}

#[test]
fn a_prefix_that_others_hold_is_neither_computed_nor_charged_again() {
    let mut core = small();
    with(&mut core, &[(1, 24)]);
    core.plan(0);
    with(&mut core, &[(2, 24), (3, 24)]);
    core.plan(0);
    assert_eq!(core.explain(2), Some(Hold { reason: HoldReason::NoBlocks, needs: 6.0, limit: 3.0 }));
    assert_eq!(core.first_in_queue(9).collect::<Vec<_>>(), [(2, hit(0)), (3, hit(0))]);
    core.complete(&Report {
        hits: &[(1, hit(8)), (2, hit(20)), (3, hit(99))],
        free_blocks: Some(3),
        ..Report::default()
    })
    .unwrap();
    assert_eq!(core.first_in_queue(1).collect::<Vec<_>>(), [(2, hit(20))]);
    assert_eq!(chunks(&mut core), [(2, 4), (3, 1)], "at least one token of a prompt is computed");
    assert_eq!([1, 2, 3].map(|id| kv(&core, id)), [26, 24, 24]);
    // Seven blocks of the first, one each of the others.
    core.complete(&Report { hits: &[(2, hit(0))], free_blocks: Some(1), ..Report::default() }).unwrap();
    assert_eq!(core.view().pool().used(), 9);
    core.complete(&Report { finished: &[1], free_blocks: Some(3), ..Report::default() }).unwrap();
    assert_eq!(core.view().pool().used(), 7);
}

/// It was admitted after the plan, whose iteration is not taken back from it.
#[test]
fn what_the_host_lets_in_and_preempts_between_two_plans_keeps_its_output() {
    let mut core = scheduler(&json!({"policy": "vllm", "kv_blocks": 100, "max_num_seqs": 1}));
    (1..=2).for_each(|id| core.add(&request(id, 40)).unwrap());
    core.plan(0);
    core.complete(&Report { progress: &[(2, 41)], ..Report::default() }).unwrap();
    core.complete(&Report { preempted: &[2], ..Report::default() }).unwrap();
    let kept = core.view().request(core.view().slot(2).unwrap()).kept;
    assert_eq!((kept, core.stats().recomputed_tokens), (2, 41));
}
