//! How full `adaptive` keeps the cache: what is certain is no risk, and a client that leaves makes room.

mod common;

use common::scheduler;
use serde_json::json;
use wait_core::{LengthHint, Report, Request, RequestId, Scheduler};

/// Keeps `clients` requests in the core for a number of iterations; `gone` says after how many stages each leaves.
/// Returns the residents of the last iteration, and the decodes of all.
fn closed_loop(
    core: &mut Scheduler,
    clients: u64,
    iterations: u64,
    request: impl Fn(RequestId) -> Request,
    gone: impl Fn(RequestId) -> u32,
    aborts: bool,
) -> (u32, u64) {
    let (mut present, mut next, mut decodes): (Vec<RequestId>, _, _) = (Vec::new(), 0, 0);
    for iteration in 0..iterations {
        while (present.len() as u64) < clients {
            core.add(&request(next)).unwrap();
            present.push(next);
            next += 1;
        }
        decodes += u64::from(core.plan(10_000_000 * iteration).decodes());
        let stage = |id: RequestId| core.view().stage(core.view().slot(id).unwrap());
        let (left, stayed) = present.into_iter().partition::<Vec<_>, _>(|&id| stage(id) >= gone(id));
        present = stayed;
        let finished = if aborts { &[] } else { left.as_slice() };
        core.complete(&Report { finished, ..Report::default() }).unwrap();
        if aborts {
            for id in left {
                core.abort(id);
            }
        }
    }
    (core.view().residents(), decodes)
}

#[test]
fn what_cannot_overflow_within_a_horizon_holds_no_request() {
    // Long prompts, nine at a time, whose outputs may end at any token: in the next iterations hardly any ends, and if
    // none does the cache fills by nine tokens an iteration.
    let mut core = scheduler(&json!({
        "policy": "adaptive", "kv_blocks": 512, "max_num_seqs": 64, "token_budget": 2048, "max_model_len": 4096
    }));
    let request = |id| Request { id, prompt: 700, max_tokens: Some(1000), ..Request::default() };
    let length = |id: RequestId| {
        let uniform = (f64::from((id as u32).wrapping_mul(2_654_435_761)) + 0.5) / f64::from(u32::MAX);
        (-100.0 * uniform.ln()).round().max(1.0) as u32
    };
    let (_, decodes) = closed_loop(&mut core, 20, 6_000, request, length, false);
    // A forecast that is normal at every horizon, and so allows for what cannot happen, gives 53,469.
    assert!(decodes >= 54_600, "{decodes} decodes");
}

#[test]
fn a_known_length_counts_for_less_where_clients_leave_before() {
    let residents = |aborts| {
        let mut core = scheduler(&json!({
            "policy": "adaptive", "kv_blocks": 3440, "max_num_seqs": 256, "token_budget": 50_000, "max_model_len": 4096
        }));
        let output = LengthHint::Exact(2_000);
        let request = |id| Request { id, prompt: 500, max_tokens: Some(2_000), output, ..Request::default() };
        let stays = |id| if aborts { 10 + (id % 30) as u32 } else { 2_000 };
        closed_loop(&mut core, 100, 400, request, stays, aborts).0
    };
    // Each grows by 20 tokens, or by 2,000: of a hundred with 500 at first the cache holds all, or 72 for a while.
    assert!(residents(true) >= 90, "{}", residents(true));
    assert!(residents(false) <= 72, "{}", residents(false));
}
