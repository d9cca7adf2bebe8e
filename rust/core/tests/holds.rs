//! What holds a request, under every policy: a request that has become too large for the cache holds up no other, and
//! each waiting request has its own reason.

mod common;

use common::*;
use serde_json::{Value, json};
use wait_core::*;

/// Ten blocks of four tokens, under each policy.
fn each_policy(each: impl Fn(Scheduler, &str)) {
    let types = json!([{"prompt": 8, "output": 8, "rate": 1.0}]);
    let extras: [(&str, Value); 8] = [
        ("vllm", json!({})),
        ("wait", json!({"types": types, "thresholds": [1.0], "work_conserving": false})),
        ("wait", json!({"types": types, "thresholds": [1.0]})),
        ("nested-wait", json!({"boundaries": [40], "thresholds": [1.0], "work_conserving": false})),
        ("prefill-first", json!({})),
        ("sarathi", json!({})),
        ("clairvoyant", json!({})),
        ("adaptive", json!({})),
    ];
    for (policy, extra) in extras {
        let mut settings = json!({"policy": policy, "kv_blocks": 10, "block_size": 4, "max_num_seqs": 8,
            "token_budget": 64});
        settings.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        each(scheduler(&settings), policy);
    }
}

const TOO_LARGE: Hold = Hold { reason: HoldReason::TooLarge, needs: 8.0, limit: 4.0 };

/// Short ones, so that memory for all of their output is there from the start.
fn add(core: &mut Scheduler, requests: &[(RequestId, u32)]) {
    for &(id, prompt) in requests {
        core.add(&Request { max_tokens: Some(4), ..request(id, prompt) }).unwrap();
    }
}

/// The requests that the next plans compute something for.
fn runs(core: &mut Scheduler, plans: usize) -> Vec<RequestId> {
    (0..plans).flat_map(|_| chunks(core)).map(|(id, _)| id).collect()
}

#[test]
fn what_the_cache_can_no_longer_hold_is_passed_over_until_it_can() {
    each_policy(|mut core, policy| {
        add(&mut core, &[(1, 30), (2, 4), (3, 30), (4, 4)]);
        core.set_capacity(4).unwrap();
        assert_eq!(runs(&mut core, 2), [2, 4], "{policy}");
        assert_eq!((core.explain(1), core.explain(3)), (Some(TOO_LARGE), Some(TOO_LARGE)), "{policy}");
        assert!(core.stats().holds[HoldReason::TooLarge as usize] > 0, "{policy}");
        core.complete(&Report { finished: &[2, 4], ..Report::default() }).unwrap();
        core.set_capacity(10).unwrap();
        assert_eq!(runs(&mut core, 2), [1], "{policy}");
        core.complete(&Report { finished: &[1], ..Report::default() }).unwrap();
        assert_eq!(runs(&mut core, 2), [3], "{policy}");
    });
}

#[test]
fn what_was_preempted_and_is_too_large_now_is_passed_over_as_well() {
    each_policy(|mut core, policy| {
        add(&mut core, &[(1, 28)]);
        core.plan(0);
        core.plan(0);
        core.set_capacity(4).unwrap();
        add(&mut core, &[(2, 4), (3, 4)]);
        assert_eq!(core.plan(0).preempted().len(), 1, "{policy}");
        assert_eq!(runs(&mut core, 2), [2, 3], "{policy}");
        assert_eq!(core.explain(1), Some(TOO_LARGE), "{policy}");
        core.complete(&Report { finished: &[2, 3], ..Report::default() }).unwrap();
        core.set_capacity(10).unwrap();
        assert_eq!(runs(&mut core, 2), [1], "{policy}");
    });
}

#[test]
fn each_that_waits_has_its_own_numbers() {
    let mut core = small();
    with(&mut core, &[(1, 20), (2, 32), (3, 28), (4, 12), (5, 36)]);
    core.plan(0);
    let no_blocks = |needs| Some(Hold { reason: HoldReason::NoBlocks, needs, limit: 5.0 });
    assert_eq!([core.explain(2), core.explain(3), core.explain(5)], [8.0, 7.0, 9.0].map(no_blocks));
    // Its three blocks are free, and two requests go before it.
    assert_eq!(core.explain(4), Some(Hold { reason: HoldReason::HeadOfLine, needs: 2.0, limit: 0.0 }));
}

#[test]
fn the_watermark_is_charged_to_each_and_preempted_requests_go_first() {
    let mut core = scheduler(&json!({"policy": "vllm", "kv_blocks": 10, "block_size": 4, "watermark": 0.2}));
    with(&mut core, &[(1, 20), (2, 16), (3, 20), (4, 8), (5, 8)]);
    core.plan(0);
    let explained = |core: &Scheduler, id| core.explain(id).map(|hold| (hold.reason, hold.needs, hold.limit));
    assert_eq!(explained(&core, 2), Some((HoldReason::NoBlocks, 6.0, 5.0)));
    assert_eq!(explained(&core, 3), Some((HoldReason::NoBlocks, 7.0, 5.0)));
    assert_eq!(explained(&core, 4), Some((HoldReason::HeadOfLine, 2.0, 0.0)));
    core.complete(&Report { preempted: &[1], free_blocks: Some(4), ..Report::default() }).unwrap();
    core.plan(0);
    // The fifth came after those, behind one that was preempted.
    assert_eq!(explained(&core, 1), Some((HoldReason::NoBlocks, 5.0, 4.0)));
    assert_eq!(explained(&core, 5), Some((HoldReason::HeadOfLine, 4.0, 0.0)));
}

#[test]
fn a_request_that_the_host_refused_is_explained_so() {
    each_policy(|mut core, policy| {
        with(&mut core, &[(1, 8)]);
        core.plan(0);
        core.complete(&Report { refused: &[1], ..Report::default() }).unwrap();
        let refused = Some(Hold { reason: HoldReason::HostRefused, needs: 1.0, limit: 0.0 });
        assert_eq!(core.explain(1), refused, "{policy}");
        assert_eq!(core.stats().holds[HoldReason::HostRefused as usize], 1, "{policy}");
        core.plan(0);
        assert_eq!(core.explain(1), None, "{policy}");
    });
}

#[test]
fn no_hold_has_less_than_nothing() {
    let mut core = small();
    with(&mut core, &[(1, 20)]);
    core.plan(0);
    with(&mut core, &[(2, 4)]);
    // The host uses more than what is left.
    core.complete(&Report { free_blocks: Some(0), ..Report::default() }).unwrap();
    core.set_capacity(6).unwrap();
    core.plan(0);
    for id in 1..=2 {
        assert!(core.explain(id).is_none_or(|hold| hold.limit >= 0.0), "{:?}", core.explain(id));
    }
    assert!(core.explain(2).is_some());
}
