//! What `adaptive` expects of the memory, and which requests it admits by that.

mod common;

use common::adaptive::{admitted, queue, request, scheduler};
use serde_json::json;
use wait_core::{Hit, Report, Request, RequestId, Scheduler};

fn hit(tokens: u32) -> Hit {
    Hit { computed: tokens, shared: tokens, evicted: 0 }
}

#[test]
fn the_forecast_is_what_admission_expects_and_asking_changes_nothing() {
    // Known lengths: 10 prompts of 16, each up to 16 + 96 tokens and half a block, fit beside each other.
    let mut core = scheduler(json!({"kv_blocks": 100, "token_budget": 4096}));
    (0..10).for_each(|id| core.add(&request(id, 16, 96, 0)).unwrap());
    core.plan(0);
    let peak = core.kv_forecast().iter().map(|at| at.mean).fold(0.0, f64::max);
    assert!((peak - 10.0 * (16.0 + 7.5 + 96.0)).abs() < 1.0, "{peak}");
    assert!(core.kv_forecast().iter().all(|at| at.overflow < 1e-12));

    // Unknown lengths: one core is queried after every step, before the next arrivals, the other never.
    let scarce = json!({"kv_blocks": 60, "max_model_len": 900});
    let (mut asked, mut other) = (scheduler(scarce.clone()), scheduler(scarce));
    let mut largest = 0.0_f64;
    for step in 0..600_u64 {
        for core in [&mut asked, &mut other] {
            let arrives = |id| Request { id, prompt: 30, arrival_ns: step, ..Request::default() };
            (3 * step..3 * step + step % 4).for_each(|id| core.add(&arrives(id)).unwrap());
            core.plan(step);
            let view = core.view();
            let ends = |slot: &u32| view.stage(*slot) > 40 + (view.request(*slot).id * 37 % 60) as u32;
            let finished: Vec<_> = view.iter_residents().filter(ends).map(|slot| view.request(slot).id).collect();
            core.complete(&Report { finished: &finished, ..Report::default() }).unwrap();
        }
        let forecast = asked.kv_forecast();
        assert!(forecast.windows(2).all(|pair| pair[0].overflow <= pair[1].overflow + 1e-12), "{forecast:?}");
        largest = forecast.iter().map(|at| at.overflow).fold(largest, f64::max);
        let chunks = |core: &Scheduler| core.last_plan().chunks().iter().map(|c| (c.id, c.tokens)).collect::<Vec<_>>();
        assert_eq!(chunks(&asked), chunks(&other), "step {step}");
        assert_eq!(asked.learned(), other.learned(), "step {step}");
    }
    assert!((1e-3..=1.0).contains(&largest), "memory binds: {largest}");
}

#[test]
fn of_a_burst_whose_prompts_fit_all_are_admitted_and_of_a_queue_what_memory_carries() {
    // Outputs of 100 to 900 tokens, which it has learned. Twice as many prompts fit as whole requests.
    let mut core = scheduler(json!({"kv_blocks": 1250}));
    let output = |id: RequestId| 100 + (id * 7919 % 801) as u32;
    let step = |core: &mut Scheduler| {
        core.plan(0);
        let view = core.view();
        let ends = |slot: &u32| view.stage(*slot) >= output(view.request(*slot).id);
        let finished: Vec<_> = view.iter_residents().filter(ends).map(|slot| view.request(slot).id).collect();
        core.complete(&Report { finished: &finished, ..Report::default() }).unwrap();
    };
    let add = |core: &mut Scheduler, ids: std::ops::Range<RequestId>| {
        ids.for_each(|id| core.add(&Request { id, prompt: 80, ..Request::default() }).unwrap());
    };
    add(&mut core, 0..300);
    while !core.view().is_empty() {
        step(&mut core);
    }
    // Some 45 would stay within the memory, and 150 fill it in 53 iterations.
    add(&mut core, 1000..1150);
    (0..8).for_each(|_| step(&mut core));
    assert_eq!((core.view().residents(), core.view().waiting_total()), (150, 0), "a burst");
    while !core.view().is_empty() {
        step(&mut core);
    }
    // Of more than that the last are held, instead of being admitted and preempted before they have decoded for long.
    let before = core.stats().preemptions;
    add(&mut core, 2000..2400);
    (0..20).for_each(|_| step(&mut core));
    let residents = core.view().residents();
    assert!(
        (100..150).contains(&residents) && core.stats().preemptions == before,
        "{residents} and {:?}",
        core.stats()
    );
}

#[test]
fn a_shared_prefix_is_forecast_once_whichever_request_leaves_first() {
    const PREFIX: u32 = 196;
    let settings = json!({"kv_blocks": 100, "block_size": 4, "host_preempts": true, "overflow_probability": 0.02});
    let mut core = scheduler(settings);
    // What the host has: the prefix, and of each resident what comes after it.
    let report = |core: &mut Scheduler, finished: &[RequestId]| {
        core.complete(&Report { finished, ..Report::default() }).unwrap();
        let shared: Vec<_> = core.first_in_queue(40).map(|(id, _)| (id, hit(PREFIX))).collect();
        let view = core.view();
        let own: u32 = view.iter_residents().map(|slot| view.blocks(slot) - PREFIX / 4).sum();
        core.complete(&Report { hits: &shared, free_blocks: Some(100 - PREFIX / 4 - own), ..Report::default() })
            .unwrap();
    };
    core.add(&request(0, 200, 60, 0)).unwrap();
    assert_eq!(admitted(&mut core), [0]);
    for id in 1..40 {
        core.add(&request(id, 200, 60, 0)).unwrap();
    }
    assert!(admitted(&mut core).is_empty(), "two prompts that share nothing do not fit");
    report(&mut core, &[]);
    // Beside the prefix there is room for 204 tokens, and up to horizon 48 each takes 4 + 48 and half a block.
    let beside = admitted(&mut core).len();
    assert_eq!(beside, 2);
    report(&mut core, &[]);
    assert!(admitted(&mut core).is_empty());
    // The first leaves, and the prefix stays: there is room for another in its place.
    report(&mut core, &[0]);
    assert_eq!(admitted(&mut core).len(), 1);
    let limit = |core: &Scheduler| core.explain(queue(core)[0]).unwrap().limit;
    assert!((limit(&core) - 204.0).abs() < 1e-9);
    // Once all have left, nothing is shared.
    report(&mut core, &[1, 2, 3]);
    core.complete(&Report { free_blocks: Some(100), hits: &[(4, hit(0)), (5, hit(0))], ..Report::default() }).unwrap();
    assert_eq!(admitted(&mut core), [4]);
    assert!((limit(&core) - 400.0).abs() < 1e-9);
}
