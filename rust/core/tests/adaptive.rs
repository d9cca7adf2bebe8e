//! What `adaptive` does with hints: priorities, expected lengths, deadlines, targets, and what it learned before.

mod common;

use common::adaptive::{SECOND, admitted, queue, request, scheduler};
use serde_json::{Value, json};
use wait_core::{Config, Error, HoldReason, LengthHint, Report, Request, RequestId, Scheduler};

#[test]
fn a_level_of_priority_outweighs_the_ageing_time_and_no_more() {
    let mut core = scheduler(json!({"kv_blocks": 100, "ageing": 10.0}));
    let add = |core: &mut Scheduler, id, arrival_s, priority| {
        core.add(&Request { priority, ..request(id, 5, 5, arrival_s) }).unwrap();
    };
    add(&mut core, 1, 0, 1);
    add(&mut core, 2, 5, 0);
    add(&mut core, 3, 9, 0);
    // Arrived 10 s after the first: it would have to be more important by two levels.
    add(&mut core, 4, 11, 0);
    add(&mut core, 5, 11, -1);
    assert_eq!(queue(&core), [5, 2, 3, 1, 4]);
    assert_eq!(admitted(&mut core), [5, 2, 3, 1, 4]);
}

#[test]
fn a_long_prompt_takes_of_an_iteration_no_more_than_its_chunk() {
    let settings = json!({"kv_blocks": 1000, "token_budget": 1024, "long_prefill_token_threshold": 400});
    let mut core = scheduler(settings.clone());
    core.add(&request(1, 2000, 10, 0)).unwrap();
    core.add(&request(2, 10, 10, 0)).unwrap();
    assert_eq!(admitted(&mut core), [1, 2], "600 tokens are left for the second");
    let chunks: Vec<_> = core.last_plan().chunks().iter().map(|chunk| chunk.tokens).collect();
    assert_eq!(chunks, [400, 10]);
    // Three of 800 tokens: two whole chunks, and what is left for the third.
    let mut core = scheduler(settings);
    (1..=3).for_each(|id| core.add(&request(id, 800, 10, 0)).unwrap());
    assert_eq!(admitted(&mut core), [1, 2, 3]);
    let chunks: Vec<_> = core.last_plan().chunks().iter().map(|chunk| chunk.tokens).collect();
    assert_eq!(chunks, [400, 400, 224]);
}

#[test]
fn without_ageing_the_most_important_goes_first_however_long_others_wait() {
    for order in ["fcfs", "srpt"] {
        let mut core = scheduler(json!({"kv_blocks": 100, "ageing": null, "order": order}));
        let add = |core: &mut Scheduler, id, output, arrival_s, priority| {
            core.add(&Request { priority, ..request(id, 5, output, arrival_s) }).unwrap();
        };
        // Levels as far apart as nanoseconds since 1970, and as close as one.
        let now = 1_700_000_000_000_000_000;
        add(&mut core, 1, 5, 0, now + 1);
        add(&mut core, 2, 9, 1_000_000, 0);
        add(&mut core, 3, 5, 1_000_000, 0);
        add(&mut core, 4, 5, 5_000_000, -1);
        add(&mut core, 5, 5, 9_000_000, now);
        let expected = if order == "srpt" { [4, 3, 2, 1, 5] } else { [4, 2, 3, 5, 1] };
        assert_eq!(queue(&core), expected, "{order}: with srpt, levels that far out are one");
    }
}

#[test]
fn shortest_expected_work_first_within_the_ageing_time() {
    let mut core = scheduler(json!({"kv_blocks": 100, "order": "srpt", "ageing": 100.0}));
    core.add(&request(1, 500, 500, 0)).unwrap();
    core.add(&request(2, 10, 10, 1)).unwrap();
    core.add(&request(3, 100, 100, 2)).unwrap();
    assert_eq!(queue(&core), [2, 3, 1]);
    // Whatever its work: a request that arrived later than the ageing time never overtakes.
    core.add(&request(4, 1, 1, 101)).unwrap();
    assert_eq!(queue(&core), [2, 3, 1, 4]);
}

#[test]
fn behind_a_head_without_memory_only_requests_within_the_bounds_are_considered() {
    for (skip_ahead, expected) in [(0, vec![]), (1, vec![]), (2, vec![4]), (9, vec![4, 5])] {
        let mut core = scheduler(json!({"kv_blocks": 40, "ageing": 60.0, "skip_ahead": skip_ahead}));
        core.add(&request(1, 400, 20, 0)).unwrap();
        assert_eq!(admitted(&mut core), [1]);
        core.add(&request(2, 400, 20, 1)).unwrap();
        core.add(&request(3, 300, 20, 2)).unwrap();
        core.add(&request(4, 10, 10, 3)).unwrap();
        core.add(&request(5, 10, 10, 61)).unwrap();
        core.add(&request(6, 10, 10, 62)).unwrap();
        assert_eq!(admitted(&mut core), expected, "skip_ahead {skip_ahead}");
        assert_eq!(core.explain(2).unwrap().reason, HoldReason::NoBlocks);
    }
}

#[test]
fn a_request_that_would_slow_all_others_beyond_the_target_waits() {
    // 10 ms, and 1 ms for each thousand tokens of KV: 30 ms are reached at 20,000 tokens.
    let law = json!({"law": "linear", "d0": 0.01, "d1": 1e-6});
    let residents = |target: Value| {
        let mut core = scheduler(json!({"kv_blocks": 8000, "iteration_time": law, "tpot_target": target}));
        for id in 0..200 {
            core.add(&request(id, 180, 300, 0)).unwrap();
        }
        (0..40).for_each(|_| _ = core.plan(0));
        (core.view().residents(), queue(&core).first().and_then(|&first| core.explain(first)))
    };
    let (held, hold) = residents(json!(0.03));
    let hold = hold.unwrap();
    assert_eq!(hold.reason, HoldReason::TpotTarget);
    assert!(hold.needs > hold.limit && (hold.limit - 0.03).abs() < 1e-12 && hold.needs < 0.035, "{hold:?}");
    assert!((90..=111).contains(&held), "{held} of 180 tokens and up");
    assert_eq!(residents(Value::Null), (200, None));
}

/// Serves one request at a time for a second each.
fn serve_one_a_second(core: &mut Scheduler, seconds: std::ops::Range<u64>) {
    for second in seconds {
        core.plan(second * SECOND);
        let resident: Vec<_> = core.view().iter_residents().map(|slot| core.view().request(slot).id).collect();
        core.complete(&Report { finished: &resident, ..Report::default() }).unwrap();
    }
}

#[test]
fn a_deadline_that_the_queue_cannot_meet_is_refused_with_the_predicted_wait() {
    let mut core = scheduler(json!({"kv_blocks": 100, "max_num_seqs": 1, "token_budget": 100}));
    for id in 0..60 {
        core.add(&request(id, 10, 10, 0)).unwrap();
    }
    serve_one_a_second(&mut core, 0..40);
    // Twenty wait, one leaves per second.
    let predicted = core.predicted_wait_ns();
    assert!(predicted.abs_diff(20 * SECOND) < 2 * SECOND, "{predicted}");
    assert!(core.admission_gap_ns().abs_diff(SECOND) < SECOND / 10, "{}", core.admission_gap_ns());
    let impatient = Request { max_wait_ns: Some(10 * SECOND), ..request(100, 10, 10, 40) };
    let refused = Error::DeadlineUnreachable { id: 100, predicted_wait_ns: predicted, max_wait_ns: 10 * SECOND };
    assert_eq!(core.add(&impatient), Err(refused));
    assert_eq!(core.view().len(), 20, "nothing has changed");
    core.add(&Request { max_wait_ns: Some(30 * SECOND), ..impatient }).unwrap();
    serve_one_a_second(&mut core, 40..70);
    assert_eq!((core.view().len(), core.predicted_wait_ns()), (0, 0));
}

/// A closed loop of hidden lengths: the short ones are labelled 0, the long ones 1. Returns the plans made.
fn traffic(core: &mut Scheduler, ids: std::ops::Range<u64>, labelled: bool) -> Vec<Vec<(RequestId, u32)>> {
    let mut plans = Vec::new();
    let (mut next, last) = (ids.start, ids.end);
    let length = |id: u64| if id.is_multiple_of(2) { 10 } else { 200 + (id % 7) as u32 };
    while next < last || !core.view().is_empty() {
        while next < last && core.view().waiting_total() < 8 {
            let type_id = labelled.then_some((next % 2) as u16);
            core.add(&Request { type_id, output: LengthHint::Unknown, ..request(next, 20, 1, 0) }).unwrap();
            next += 1;
        }
        plans.push(core.plan(0).chunks().iter().map(|chunk| (chunk.id, chunk.tokens)).collect());
        let view = core.view();
        let over = |slot: &u32| view.stage(*slot) >= length(view.request(*slot).id);
        let finished: Vec<_> = view.iter_residents().filter(over).map(|slot| view.request(slot).id).collect();
        core.complete(&Report { finished: &finished, ..Report::default() }).unwrap();
    }
    plans
}

#[test]
fn what_was_learned_is_taken_over_by_another_scheduler() {
    let settings = json!({"kv_blocks": 60, "max_num_seqs": 32, "token_budget": 256, "overflow_probability": 0.02});
    let mut first = scheduler(settings.clone());
    traffic(&mut first, 0..400, true);
    let learned = first.learned().unwrap();
    let mut second = scheduler(settings.clone());
    second.restore(&learned).unwrap();
    let taken = second.learned().unwrap();
    second.restore(&taken).unwrap();
    assert!(second.learned().unwrap() == taken, "nothing is lost");
    // It starts where the other stands: no cold start, the same work in fewer iterations.
    let mut cold = scheduler(settings);
    traffic(&mut second, 400..600, true);
    traffic(&mut cold, 400..600, true);
    assert!(second.stats().iterations < cold.stats().iterations, "{:?} {:?}", second.stats(), cold.stats());

    let mut busy = scheduler(json!({"kv_blocks": 60}));
    busy.add(&request(1, 4, 4, 0)).unwrap();
    assert!(busy.restore(&learned).unwrap_err().to_string().contains("no request is present"));
    let mut fresh = scheduler(json!({"kv_blocks": 60}));
    for wrong in [json!(null), json!({}), json!({"lengths": {}, "pace": {}})] {
        assert!(fresh.restore(&wrong).is_err(), "{wrong}");
    }
    let mut damaged = learned.clone();
    *damaged.pointer_mut("/lengths/pool/rows/0/exposure").unwrap() = json!(-1.0);
    assert!(fresh.restore(&damaged).unwrap_err().to_string().contains("counts that no traffic gives"));
    assert_eq!(fresh.restore(&learned), Ok(()), "none of those was restored");
    let stock = Config { policy: wait_core::config::PolicyName::Vllm, kv_blocks: 60, ..Config::default() };
    let mut other = Scheduler::new(&stock).unwrap();
    assert!(other.learned().is_none() && other.restore(&learned).is_err());
}

#[test]
fn no_number_of_a_learned_state_can_starve_waiting_requests() {
    // Outputs all alike: admission is paced by what a request costs.
    let settings = json!({"kv_blocks": 200, "max_num_seqs": 256});
    let serve = |core: &mut Scheduler, ids: std::ops::Range<u64>| {
        ids.for_each(|id| core.add(&Request { output: LengthHint::Unknown, ..request(id, 20, 1, 0) }).unwrap());
        let begun = core.stats().iterations;
        while !core.view().is_empty() {
            core.plan(0);
            let view = core.view();
            let ended = view.iter_residents().filter(|&slot| view.stage(slot) >= 40);
            let finished: Vec<_> = ended.map(|slot| view.request(slot).id).collect();
            core.complete(&Report { finished: &finished, ..Report::default() }).unwrap();
        }
        core.stats().iterations - begun
    };
    let mut first = scheduler(settings.clone());
    serve(&mut first, 0..200);
    let learned = first.learned().unwrap();
    let usual = serve(&mut first, 200..300);
    let mut numbers = Vec::new();
    leaves(&learned, "", &mut numbers);
    let mut refused = 0;
    for pointer in &numbers {
        for wrong in [json!(1e15), json!((1_u64 << 63) - 1), json!(1e300)] {
            let (mut state, mut core) = (learned.clone(), scheduler(settings.clone()));
            *state.pointer_mut(pointer).unwrap() = wrong.clone();
            if core.restore(&state).is_err() {
                refused += 1;
                continue;
            }
            let took = serve(&mut core, 0..100);
            assert!(2 * took <= 3 * usual, "{pointer} = {wrong}: {took} iterations instead of {usual}");
        }
    }
    assert!(refused > numbers.len(), "{refused} of three times {}", numbers.len());
    for name in ["arrived", "prompt", "prompt_squared", "gap", "ended", "output", "output_squared", "cost"] {
        let mut state = learned.clone();
        *state.pointer_mut(&format!("/traffic/{name}")).unwrap() = json!(1e300);
        let message = scheduler(settings.clone()).restore(&state).unwrap_err().to_string();
        assert!(message.contains(&format!("traffic.{name} = 1")), "{message}");
    }
}

/// Where the numbers of a value are; of a list its first ten and its last.
fn leaves(value: &Value, at: &str, numbers: &mut Vec<String>) {
    match value {
        Value::Number(_) => numbers.push(at.to_owned()),
        Value::Object(map) => map.iter().for_each(|(key, value)| leaves(value, &format!("{at}/{key}"), numbers)),
        Value::Array(list) => {
            let some = list.iter().enumerate().filter(|(i, _)| *i < 10 || i + 1 == list.len());
            some.for_each(|(i, value)| leaves(value, &format!("{at}/{i}"), numbers));
        }
        _ => {}
    }
}

#[test]
fn a_label_that_separates_short_from_long_saves_iterations() {
    let iterations = |labelled| {
        let settings = json!({"kv_blocks": 60, "max_num_seqs": 32, "token_budget": 256, "overflow_probability": 0.02});
        traffic(&mut scheduler(settings), 0..2_000, labelled).len()
    };
    let (plain, labelled) = (iterations(false), iterations(true));
    assert!(labelled < plain, "{labelled} iterations with labels, {plain} without");
}

/// The given iterations of a closed loop of hidden lengths of about 68 tokens, with three hundred always in the queue;
/// with `refuses` the host admits none. Returns the mean number of residents.
fn equal_lengths(core: &mut Scheduler, next: &mut RequestId, iterations: u32, refuses: bool) -> f64 {
    let mut residents = 0.0;
    for _ in 0..iterations {
        while core.view().waiting_total() < 300 {
            core.add(&Request { output: LengthHint::Unknown, ..request(*next, 40, 1, 0) }).unwrap();
            *next += 1;
        }
        let chunks = core.plan(0).chunks().iter();
        let refused: Vec<_> = chunks.filter(|chunk| refuses && chunk.start == 0).map(|chunk| chunk.id).collect();
        core.complete(&Report { refused: &refused, ..Report::default() }).unwrap();
        let view = core.view();
        residents += f64::from(view.residents());
        let over = |slot: &u32| u64::from(view.stage(*slot)) >= 60 + view.request(*slot).id % 17;
        let finished: Vec<_> = view.iter_residents().filter(over).map(|slot| view.request(slot).id).collect();
        core.complete(&Report { finished: &finished, ..Report::default() }).unwrap();
    }
    residents / f64::from(iterations)
}

/// Each offer was charged to the pace, and nothing was given back: after two thousand of them the batch stayed at a few
/// requests for thousands of iterations.
#[test]
fn admissions_that_the_host_refuses_do_not_slow_later_ones() {
    let settings = json!({"kv_blocks": 500, "max_num_seqs": 128, "max_model_len": 400});
    let (mut core, mut next) = (scheduler(settings), 0);
    equal_lengths(&mut core, &mut next, 400, false);
    let usual = equal_lengths(&mut core, &mut next, 400, false);
    assert!(usual > 50.0, "{usual}");
    equal_lengths(&mut core, &mut next, 2_000, true);
    equal_lengths(&mut core, &mut next, 100, false);
    let after = equal_lengths(&mut core, &mut next, 400, false);
    assert!(after > 0.9 * usual, "{after} residents, {usual} before");
}

/// A host that admits a whole batch by itself, as with other settings or after it emptied its cache.
#[test]
fn a_batch_that_the_host_admits_by_itself_does_not_slow_later_ones() {
    let settings = json!({"kv_blocks": 500, "max_num_seqs": 128});
    let (mut core, mut next) = (scheduler(settings), 0);
    equal_lengths(&mut core, &mut next, 400, false);
    let usual = equal_lengths(&mut core, &mut next, 400, false);
    for _ in 0..20 {
        let view = core.view();
        let all: Vec<_> = view.iter_residents().map(|slot| (view.request(slot).id, view.kv(slot))).collect();
        let ids: Vec<_> = all.iter().map(|&(id, _)| id).collect();
        core.complete(&Report { preempted: &ids, ..Report::default() }).unwrap();
        core.complete(&Report { progress: &all, ..Report::default() }).unwrap();
    }
    let after = equal_lengths(&mut core, &mut next, 60, false);
    assert!(after > 0.8 * usual, "{after} residents, {usual} before");
}
