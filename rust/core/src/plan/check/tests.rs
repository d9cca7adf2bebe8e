//! Plans that no policy should make.

use super::super::{Chunk, HoldReason};
use super::*;
use crate::config::Config;
use crate::model::{Hit, Request, RequestId};

/// Two decoding requests (5 tokens each), a prefilling one (2 of 8 tokens), a parked one (4) and two that wait (6 and
/// 30): 7 of 14 blocks of 4 tokens are taken, 4 of 6 slots, 1 of 2 lanes.
fn world() -> View {
    let config = Config { kv_blocks: 14, block_size: 4, max_num_seqs: 6, token_budget: 16, ..Config::default() };
    let mut view = View::new(&config, 2, 1, true);
    for (slot, prompt) in [5, 5, 8, 4, 6, 30].into_iter().enumerate() {
        let request = Request { id: slot as RequestId + 100, prompt, ..Request::default() };
        assert_eq!(view.insert(view.locate(request.id), &request, 100, 0, 0, 0), slot as Slot);
    }
    for (slot, computed, blocks) in [(0, 5, 2), (1, 5, 2), (2, 2, 2), (3, 4, 1)] {
        view.admit(slot, Hit::default(), false);
        view.set_computed(slot, computed, blocks);
    }
    for slot in [DECODES, DECODES + 1, PARKED] {
        view.join(slot, 0);
    }
    view.sweep();
    view.park(PARKED);
    view.check();
    view
}

const DECODES: Slot = 0;
const PREFILLS: Slot = 2;
const PARKED: Slot = 3;
const WAITS: Slot = 4;
const LONG: Slot = 5;

/// So many tokens of the prefilling request.
fn prefill(tokens: u32) -> Chunk {
    let (slot, id, origin) = (PREFILLS, 102, Origin::Resident);
    Chunk { slot, id, start: 2, tokens, blocks: 2, last: false, origin, hit: Hit::default() }
}

fn guarded(propose: impl Fn(&View, &mut Plan)) -> (Option<&'static str>, Plan) {
    let view = world();
    let mut plan = Plan::new(&view);
    propose(&view, &mut plan);
    (plan.guard(&view), plan)
}

fn rule(propose: impl Fn(&View, &mut Plan)) -> &'static str {
    let (broken, plan) = guarded(propose);
    let view = world();
    let mut expected = Plan::new(&view);
    expected.decode(&view, 0);
    expected.decode(&view, 1);
    expected.continue_prefill(&view, PREFILLS);
    expected.admit(&view, WAITS, 6);
    assert_eq!(plan.chunks(), expected.chunks(), "those that are served instead");
    assert_eq!(
        (plan.tokens(), plan.decodes(), plan.residents(), plan.free()),
        (2 + 6 + 6, 2, 5, 14 - 7 - 2),
        "and what that takes"
    );
    assert_eq!(plan.hold(0).map(|hold| hold.reason), Some(HoldReason::NoBlocks), "why the next one waits");
    assert!(plan.refused().is_empty() && plan.moved().is_empty() && plan.parked().is_empty());
    broken.unwrap()
}

#[test]
fn a_sound_plan_is_left_as_it_is() {
    let (broken, plan) = guarded(|view, plan| {
        plan.decode(view, 0);
        plan.decode(view, 1);
        plan.park(view, DECODES);
        plan.unpark(view, DECODES, 1);
        plan.unpark(view, PARKED, 1);
        plan.continue_prefills(view);
        plan.change_queue(WAITS, 0);
        plan.admit(view, WAITS, 3);
        plan.refuse(view, LONG, HoldReason::TtftTarget, 1);
    });
    assert_eq!(broken, None);
    assert_eq!((plan.decodes(), plan.tokens(), plan.chunks().len()), (3, 3 + 6 + 3, 2));
    assert_eq!((plan.parked(), plan.unparked()), (&[DECODES][..], &[(DECODES, 1), (PARKED, 1)][..]));
}

#[test]
fn a_request_is_admitted_once_and_only_if_it_waits() {
    let twice = |view: &View, plan: &mut Plan| {
        plan.admit(view, WAITS, 2);
        plan.admit(view, WAITS, 2);
    };
    let computed = "a prompt is computed that is computed already, or twice";
    assert_eq!(rule(twice), computed);
    assert_eq!(rule(|view, plan| plan.admit(view, PREFILLS, 2)), computed);
    assert_eq!(rule(|view, plan| plan.continue_prefill(view, WAITS)), computed);
    assert_eq!(rule(|view, plan| (0..2).for_each(|_| plan.continue_prefill(view, PREFILLS))), computed);
    let refused = |view: &View, plan: &mut Plan| {
        plan.admit(view, WAITS, 2);
        plan.refuse(view, WAITS, HoldReason::TtftTarget, 1);
    };
    assert_eq!(rule(refused), computed);
}

#[test]
fn a_request_that_has_left_is_not_served() {
    let mut view = world();
    let mut plan = Plan::new(&view);
    view.remove(LONG, view.locate(view.request(LONG).id));
    plan.begin(&view);
    plan.admit(&view, LONG, 2);
    assert!(plan.guard(&view).is_some());
    assert!(plan.chunks().iter().all(|chunk| chunk.slot != LONG));
}

#[test]
fn lanes_take_in_requests_that_are_in_none() {
    let parked = "a request is parked that does not decode, or twice";
    assert_eq!(rule(|view, plan| plan.park(view, PREFILLS)), parked);
    assert_eq!(rule(|view, plan| (0..2).for_each(|_| plan.park(view, DECODES))), parked);
    let joins = "a request joins a lane that was in one, twice, or where the lane stands";
    let unpark = |slot: Slot, times: usize| {
        rule(move |view, plan| {
            plan.decode(view, 0);
            (0..times).for_each(|_| plan.unpark(view, slot, 0));
        })
    };
    assert_eq!((unpark(DECODES, 1), unpark(WAITS, 1), unpark(PARKED, 2)), (joins, joins, joins));
}

#[test]
fn only_waiting_requests_move_or_are_refused() {
    let moves = "a request changes its queue that does not wait, or goes to none";
    assert_eq!(rule(|_, plan| plan.change_queue(DECODES, 0)), moves);
    assert_eq!(rule(|_, plan| plan.change_queue(WAITS, 1)), moves, "the last queue is that of the preempted");
    let refused = "a request is refused that does not wait, or twice";
    let refuse = |slot: Slot, times: usize| {
        rule(move |view, plan| (0..times).for_each(|_| plan.refuse(view, slot, HoldReason::TtftTarget, 1)))
    };
    assert_eq!((refuse(DECODES, 1), refuse(WAITS, 2)), (refused, refused));
}

#[test]
fn a_preempted_request_does_nothing_else() {
    let preempted = |view: &View, plan: &mut Plan| {
        plan.preempt_last(view);
        plan.preempt_last(view);
        plan.push(prefill(1));
    };
    assert_eq!(rule(preempted), "a prompt is computed that is computed already, or twice");
    let twice = |view: &View, plan: &mut Plan| {
        plan.preempt_last(view);
        plan.preempted.push((PARKED, 103));
    };
    assert_eq!(rule(twice), "a request is preempted that is not resident, or twice");
    assert_eq!(
        rule(|_, plan| (plan.plain, plan.preempted) = (false, vec![(WAITS, 104)])),
        "a request is preempted that is not resident, or twice"
    );
}

#[test]
fn chunks_are_parts_of_their_prompts() {
    let chunk = |tokens| rule(move |_, plan| plan.push(prefill(tokens)));
    let part = "a chunk has no tokens, or more than its prompt";
    assert_eq!((chunk(0), chunk(7)), (part, part));
    assert_eq!(rule(|_, plan| plan.prefill_tokens += 1), "the tokens do not add up");
}

#[test]
fn seats_tokens_and_blocks_are_kept() {
    let crowd = |view: &View, plan: &mut Plan| {
        plan.admit(view, WAITS, 1);
        plan.residents += 2;
    };
    assert_eq!(rule(crowd), "more residents than seats");
    let budget = |view: &View, plan: &mut Plan| {
        plan.decode(view, 0);
        plan.admit(view, LONG, 15);
    };
    assert_eq!(rule(budget), "more tokens than the budget");
    let blocks = |view: &View, plan: &mut Plan| plan.admit(view, LONG, 16);
    assert_eq!(rule(blocks), "one request is preempted for another to be admitted");
}

#[test]
fn a_host_that_preempts_is_not_overrun_by_admissions() {
    let config = Config { kv_blocks: 2, block_size: 4, host_preempts: true, ..Config::default() };
    let mut view = View::new(&config, 1, 1, true);
    let mut plan = Plan::new(&view);
    let slot = view.insert(view.locate(1), &Request { id: 1, prompt: 9, ..Request::default() }, 1, 0, 0, 0);
    plan.begin(&view);
    plan.admit(&view, slot, 9);
    assert_eq!(plan.guard(&view), Some("more blocks than there are"));
    assert!(plan.is_empty());
}
