//! The scheduler keeps the prefix cache: what has been computed is not computed again, and a shared block counts once.

mod common;

use common::scheduler;
use serde_json::json;
use wait_core::{Report, Request, Scheduler};

/// Forty blocks of four tokens.
fn caching(policy: &str) -> Scheduler {
    scheduler(&json!({"kv_blocks": 40, "block_size": 4, "policy": policy, "prefix_caching": true}))
}

/// A prompt of this many tokens whose blocks begin with those of `system` and continue with its own.
fn prompt(id: u64, tokens: u32, system: u32) -> Request {
    let hash = |block: u32| if block < system { u64::from(block) } else { 1000 * id + u64::from(block) };
    Request {
        id,
        prompt: tokens,
        max_tokens: Some(9),
        block_hashes: (0..tokens / 4 + 8).map(hash).collect(),
        ..Request::default()
    }
}

/// (request, tokens found, tokens to compute) of each chunk.
fn chunks(core: &mut Scheduler) -> Vec<(u64, u32, u32)> {
    core.plan(0).chunks().iter().map(|chunk| (chunk.id, chunk.start, chunk.tokens)).collect()
}

fn finish(core: &mut Scheduler, finished: &[u64]) {
    core.complete(&Report { finished, ..Report::default() }).unwrap();
}

#[test]
fn a_system_prompt_is_computed_once_even_by_requests_that_enter_together() {
    for policy in ["vllm", "sarathi", "clairvoyant", "adaptive"] {
        let mut core = caching(policy);
        (1..=3).for_each(|id| core.add(&prompt(id, 19, 4)).unwrap());
        assert_eq!(chunks(&mut core), [(1, 0, 19), (2, 16, 3), (3, 16, 3)], "{policy}");
        assert_eq!(core.view().pool().used(), 4 + 3, "{policy}: four blocks are shared");
        // The request that computed them leaves first: they are still in use.
        finish(&mut core, &[1]);
        assert_eq!(core.view().pool().used(), 4 + 2, "{policy}");
        finish(&mut core, &[2, 3]);
        assert_eq!((core.view().pool().used(), core.view().pool().free()), (0, 40), "{policy}");
        // No request holds them, and they are still found.
        core.add(&prompt(4, 19, 4)).unwrap();
        assert_eq!(chunks(&mut core), [(4, 16, 3)], "{policy}");
        assert_eq!(core.view().pool().used(), 5, "{policy}: what no request held is charged");
    }
}

/// Of two that enter together the first computes what the second finds; if neither ran, it is not there.
#[test]
fn what_the_host_refused_to_compute_is_not_found_in_whatever_order_it_says_so() {
    for refused in [[1, 2], [2, 1]] {
        let mut core = caching("vllm");
        (1..=2).for_each(|id| core.add(&prompt(id, 19, 4)).unwrap());
        assert_eq!(chunks(&mut core), [(1, 0, 19), (2, 16, 3)]);
        core.complete(&Report { refused: &refused, ..Report::default() }).unwrap();
        let [first, second] = refused;
        assert_eq!(chunks(&mut core), [(first, 0, 19), (second, 16, 3)]);
    }
    let mut core = caching("vllm");
    (1..=2).for_each(|id| core.add(&prompt(id, 19, 4)).unwrap());
    chunks(&mut core);
    core.complete(&Report { refused: &[1], ..Report::default() }).unwrap();
    core.complete(&Report { refused: &[2], ..Report::default() }).unwrap();
    assert_eq!(chunks(&mut core), [(2, 0, 19), (1, 16, 3)]);
}

#[test]
fn evicted_tokens_are_distinguished_from_new_ones() {
    for policy in ["vllm", "adaptive"] {
        let mut core = caching(policy);
        let mut serve = |request: Request| {
            let id = request.id;
            core.add(&request).unwrap();
            let hit = core.plan(0).chunks()[0].hit;
            finish(&mut core, &[id]);
            (hit.computed, hit.evicted)
        };
        let first = prompt(1, 40, 4);
        assert_eq!(serve(first.clone()), (0, 0), "{policy}");
        assert_eq!(
            serve(Request { id: 2, ..first.clone() }),
            (36, 0),
            "{policy}: it is all there, but for a last token"
        );
        // 39 of 40 blocks: one of the prefix is left.
        assert_eq!(serve(prompt(3, 156, 0)), (0, 0), "{policy}: it is new");
        // Only what it shares with the first was computed; and a newer one may have displaced one that is remembered.
        let (computed, before) = serve(prompt(4, 40, 4));
        assert!(computed == 4 && (8..=12).contains(&before), "{policy}: {before}");
        let (computed, before) = serve(Request { id: 5, ..first });
        assert!(computed == 16 && (12..=20).contains(&before), "{policy}: {before}");
    }
}

#[test]
fn the_next_turn_finds_the_last_one_with_its_output() {
    let mut core = caching("vllm");
    let mut turn = prompt(1, 10, 0);
    core.add(&turn).unwrap();
    // The prompt, and seven decodes: 17 tokens of KV.
    (0..8).for_each(|_| _ = core.plan(0));
    finish(&mut core, &[1]);
    (turn.id, turn.prompt) = (2, 22);
    core.add(&turn).unwrap();
    assert_eq!(chunks(&mut core), [(2, 16, 6)]);
}

#[test]
fn at_least_one_token_is_computed() {
    let mut core = caching("vllm");
    core.add(&prompt(1, 16, 9)).unwrap();
    core.plan(0);
    core.add(&prompt(2, 16, 9)).unwrap();
    assert_eq!(chunks(&mut core), [(2, 12, 4)]);
    assert_eq!(core.view().pool().used(), 5 + 1);
}

#[test]
fn a_preempted_request_finds_what_it_had() {
    let mut core = caching("vllm");
    for id in [1, 2] {
        core.add(&prompt(id, 20, 0)).unwrap();
    }
    (0..5).for_each(|_| _ = core.plan(0));
    core.complete(&Report { preempted: &[2], ..Report::default() }).unwrap();
    // It had 23 tokens before the last plan, of which five blocks were full; its kept output is part of the prompt.
    assert_eq!(chunks(&mut core), [(2, 20, 4)]);
}

#[test]
fn what_is_cached_gives_way_least_recently_used_first() {
    let mut core = caching("vllm");
    for id in [1, 2] {
        core.add(&prompt(id, 40, 0)).unwrap();
        core.plan(0);
        finish(&mut core, &[id]);
    }
    // 25 of 40 blocks are taken, of which 20 were never used: the end of the first prompt goes.
    core.add(&prompt(3, 100, 0)).unwrap();
    core.plan(0);
    finish(&mut core, &[3]);
    core.add(&prompt(1, 40, 0)).unwrap();
    assert_eq!(chunks(&mut core)[0], (1, 20, 20));
}

#[test]
fn groups_that_vllm_would_not_cache_are_refused_by_name() {
    let refused = |groups: serde_json::Value| {
        let settings = json!({"kv_blocks": 40, "prefix_caching": true, "kv_groups": groups});
        wait_core::Config::from_map(settings.as_object().unwrap().clone()).unwrap_err().to_string()
    };
    let full = json!({"kind": "full"});
    for (group, expected) in [
        (json!({"kind": "state", "blocks": 1}), "kv_groups[1].aligned = false: with prefix_caching must be true"),
        (json!({"kind": "sliding_window", "window": 9, "block_size": 8}), "kv_groups[1].block_size = 8: "),
        (json!({"kind": "full", "block_size": 16 * 65_537}), "kv_groups[1].block_size = "),
        (json!({"kind": "chunked_local", "chunk": 64, "block_size": 32}), "kv_groups[1].kind = chunked_local: "),
    ] {
        let error = refused(json!([full, group]));
        assert!(error.contains(expected), "{error}");
    }
    assert!(refused(json!([{"kind": "chunked_local", "chunk": 64}])).contains("needs a full group"));
}

#[test]
fn a_request_that_is_evicted_takes_no_block_that_the_cache_then_lacks() {
    let settings = json!({"kv_blocks": 4, "block_size": 4, "policy": "vllm", "prefix_caching": true});
    let mut core = scheduler(&settings);
    (1..=2).for_each(|id| core.add(&prompt(id, 6, 0)).unwrap());
    // Three plans fill two blocks of each; in the fourth both want a third, and the second is evicted.
    (0..4).for_each(|_| _ = core.plan(0));
    assert_eq!(core.last_plan().preempted().len(), 1);
    finish(&mut core, &[1]);
    // The first took the last of the two blocks that became free, and the other one is found.
    assert_eq!(chunks(&mut core), [(2, 4, 5)]);
}

/// Blocks of four tokens in groups of these kinds beside one of full attention.
fn grouped(blocks: u32, group: &serde_json::Value) -> Scheduler {
    let groups = json!([{"kind": "full"}, group]);
    let settings =
        json!({"kv_blocks": blocks, "block_size": 4, "kv_groups": groups, "prefix_caching": true, "policy": "vllm"});
    scheduler(&settings)
}

fn windowed(blocks: u32) -> Scheduler {
    grouped(blocks, &json!({"kind": "sliding_window", "window": 9}))
}

#[test]
fn what_has_left_a_window_is_found_until_it_is_taken() {
    let mut core = windowed(80);
    core.add(&prompt(1, 40, 4)).unwrap();
    (0..2).for_each(|_| _ = core.plan(0));
    // 41 tokens: all in one group, and in the other all but the eight blocks that token 41 does not attend to.
    assert_eq!(core.view().pool().used(), 11 + 3);
    core.add(&prompt(2, 40, 4)).unwrap();
    assert_eq!(chunks(&mut core), [(2, 16, 24)]);
    // Four full blocks are shared; of the window it takes the two before its first token, which no request held.
    assert_eq!(core.view().pool().used(), 11 + 3 + (10 - 4) + 8);
    finish(&mut core, &[1, 2]);
    assert_eq!(core.view().pool().used(), 0);
}

#[test]
fn what_one_group_lacks_is_not_found_though_another_has_it() {
    let mut core = windowed(40);
    core.add(&prompt(1, 40, 4)).unwrap();
    (0..2).for_each(|_| _ = core.plan(0));
    // Of the eight blocks that have left the window the last six are taken, those of the system prompt among them.
    core.add(&prompt(3, 48, 0)).unwrap();
    assert_eq!(chunks(&mut core), [(3, 0, 48)]);
    finish(&mut core, &[3]);
    core.add(&prompt(2, 40, 4)).unwrap();
    assert_eq!(chunks(&mut core), [(2, 8, 32)]);
}

#[test]
fn a_state_is_found_where_one_was_kept() {
    let mut core = grouped(80, &json!({"kind": "state", "blocks": 1, "aligned": true}));
    core.add(&prompt(1, 18, 4)).unwrap();
    core.plan(0);
    for (id, system, found) in [(2, 3, 0), (3, 4, 16)] {
        core.add(&prompt(id, 19, system)).unwrap();
        assert_eq!(chunks(&mut core), [(id, found, 19 - found)]);
    }
}

#[test]
fn what_was_not_computed_is_not_found_even_if_it_has_left_the_window() {
    let mut core = windowed(80);
    core.add(&prompt(1, 40, 9)).unwrap();
    (0..2).for_each(|_| _ = core.plan(0));
    core.complete(&Report { progress: &[(1, 6)], ..Report::default() }).unwrap();
    core.add(&prompt(2, 40, 9)).unwrap();
    core.complete(&Report { finished: &[1], ..Report::default() }).unwrap();
    assert_eq!(chunks(&mut core), [(2, 4, 36)]);
}
