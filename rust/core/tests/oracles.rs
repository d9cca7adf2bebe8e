//! The policies against engines that keep lists and walk them: the same iterations, one by one.

mod oracle;

use oracle::{Engine, Sizes, Step, v1::V1, wait::Wait};
use proptest::prelude::*;
use serde_json::{Value, json};
use wait_core::{Config, LengthHint, Origin, Phase, Report, Request, Scheduler};

/// (iterations planned before it arrives, prompt, output, type, priority)
type Arrival = (u32, u32, u32, usize, i64);

fn arrivals(most: usize) -> impl Strategy<Value = Vec<Arrival>> {
    prop::collection::vec((prop_oneof![3 => Just(0), 1 => 0..6u32], 1..30u32, 1..20u32, 0..2usize, -1..3i64), 1..most)
}

fn sizes() -> impl Strategy<Value = Sizes> {
    (2..20u32, prop_oneof![Just(1), Just(4), Just(16)], 1..9usize, 0..40u32, any::<bool>()).prop_map(
        |(blocks, block_size, seats, more, restart)| Sizes {
            blocks,
            block_size,
            seats,
            budget: seats as u32 + more,
            restart,
        },
    )
}

fn scheduler(sizes: &Sizes, policy: &Value) -> Scheduler {
    let mut settings = json!({
        "kv_blocks": sizes.blocks,
        "block_size": sizes.block_size,
        "max_num_seqs": sizes.seats,
        "token_budget": sizes.budget,
        "preemption": if sizes.restart { "restart" } else { "recompute" },
    });
    settings.as_object_mut().unwrap().extend(policy.as_object().unwrap().clone());
    Scheduler::new(&Config::from_map(settings.as_object().unwrap().clone()).unwrap()).unwrap()
}

const NS: u64 = 1000;

/// Plans both engines side by side until the last request has ended.
fn compare(core: &mut Scheduler, oracle: &mut impl Engine, arrivals: &[Arrival]) {
    let mut rest = arrivals.iter().enumerate().peekable();
    let (mut now_ns, mut due, mut idle) = (0, arrivals[0].0, 0);
    let mut drained = false;
    for iteration in 0.. {
        assert!(iteration < 100_000, "no end in sight");
        while let Some((id, &(_, prompt, output, kind, priority))) = rest.next_if(|_| due == 0) {
            let request = Request {
                id: id as u64,
                prompt,
                output: LengthHint::Exact(output),
                type_id: Some(kind as u16),
                priority,
                arrival_ns: now_ns,
                ..Request::default()
            };
            if core.add(&request).is_ok() {
                let (id, arrival_ns) = (request.id, now_ns);
                oracle.add(oracle::Request {
                    id,
                    kind,
                    priority,
                    arrival_ns,
                    prompt,
                    output,
                    ..oracle::Request::default()
                });
            }
            due = rest.peek().map_or(0, |&(_, next)| next.0);
        }
        due = due.saturating_sub(1);
        let emitting = plan(core, now_ns);
        let expected = oracle.step(now_ns);
        assert_eq!(emitting, Step { emitted: vec![], finished: vec![], ..expected.clone() }, "iteration {iteration}");
        core.complete(&Report { finished: &expected.finished, ..Report::default() }).unwrap();
        compare_states(core, oracle);
        now_ns += NS;
        if core.view().is_empty() && rest.peek().is_none() {
            break;
        }
        idle = if expected.tokens() == 0 { idle + 1 } else { 0 };
        // A request that pauses for arrivals that never come may hold the memory that a preempted one needs.
        let evicts = !expected.preempted.is_empty() && !drained;
        if (idle > 3 || evicts) && rest.peek().is_none() {
            assert!(!drained, "stalled");
            drained = true;
            idle = 0;
            core.drain();
            oracle.drain();
        }
    }
    assert_eq!((oracle.running().len(), oracle.waiting()), (0, 0));
}

/// The core's next iteration, in the oracle's terms.
fn plan(core: &mut Scheduler, now_ns: u64) -> Step {
    let before = core.clone();
    let (before, plan) = (before.view(), core.plan(now_ns));
    let of = |origin| plan.chunks().iter().filter(move |chunk| chunk.origin == origin).map(|chunk| chunk.id).collect();
    let mut step = Step {
        preempted: plan.preempted().iter().map(|&(_, id)| id).collect(),
        prefills: plan.chunks().iter().map(|chunk| (chunk.id, chunk.start, chunk.tokens)).collect(),
        admitted: of(Origin::Admitted),
        resumed: of(Origin::Resumed),
        ..Step::default()
    };
    for slot in before.iter_residents() {
        let request = before.request(slot);
        let decodes = match request.phase {
            Phase::Decoding => plan.runs(usize::from(request.lane)) && !plan.parked().contains(&slot),
            _ => plan.unparked().iter().any(|&(other, _)| other == slot),
        };
        if decodes && !step.preempted.contains(&request.id) {
            step.decodes.push((request.id, before.kv(slot) + 1));
        }
    }
    step.blocks = core.view().pool().used() as u32;
    step
}

fn compare_states(core: &Scheduler, oracle: &impl Engine) {
    let view = core.view();
    let found: Vec<_> = view
        .iter_residents()
        .map(|slot| (view.request(slot).id, view.kv(slot), view.blocks(slot), view.stage(slot)))
        .collect();
    let expected: Vec<_> = oracle.running().iter().map(|r| (r.id, r.computed, r.held, r.emitted)).collect();
    assert_eq!(found, expected, "KV, blocks and stage of the residents in the order of admission");
    assert_eq!(view.waiting_total() as usize, oracle.waiting());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn vllm_is_the_published_rule_by_arrival_and_by_priority(
        sizes in sizes(),
        watermark in 0..4u32,
        threshold in prop::option::of(1..12u32),
        window in prop::option::of(1..30u32),
        by_priority in any::<bool>(),
        levels in 1..4i64,
        mut arrivals in arrivals(50),
    ) {
        let watermark = f64::from(watermark) * 0.1;
        let full_and = |window: u32| vec![json!({"kind": "full"}), json!({"kind": "sliding_window", "window": window})];
        let policy = json!({
            "policy": "vllm",
            "watermark": watermark,
            "long_prefill_token_threshold": threshold,
            "kv_groups": window.map(full_and).unwrap_or_default(),
        });
        let mut core = scheduler(&sizes, &policy);
        let oracle = V1::new(sizes, (watermark * f64::from(sizes.blocks)) as u32);
        let mut oracle = V1 { threshold, window, by_priority, ..oracle };
        // Of one level, both of vLLM's orders are one.
        for (.., priority) in &mut arrivals {
            *priority = if by_priority { *priority % levels } else { 0 };
        }
        compare(&mut core, &mut oracle, &arrivals);
    }

    #[test]
    fn wait_is_the_rule_at_the_head_of_its_file(
        sizes in sizes(),
        thresholds in prop::collection::vec(prop_oneof![(1..6u32).prop_map(f64::from), 0.1..4.0], 2),
        open in any::<bool>(),
        hold in prop_oneof![Just(None), (0..20u64).prop_map(Some)],
        arrivals in arrivals(50),
    ) {
        let types = json!([{"prompt": 8, "output": 5, "rate": 1.0}, {"prompt": 20, "output": 16, "rate": 1.0}]);
        let mut policy = json!({"policy": "wait", "types": types, "thresholds": thresholds, "work_conserving": open});
        if let Some(iterations) = hold {
            policy["max_hold"] = json!((iterations * NS) as f64 * 1e-9);
        }
        let mut core = scheduler(&sizes, &policy);
        let kinds = [(thresholds[0], 5), (thresholds[1], 16)];
        // Seconds as the core converts them, so that a tie is a tie.
        let hold_ns = hold.map(|iterations| ((iterations * NS) as f64 * 1e-9 * 1e9) as u64);
        compare(&mut core, &mut Wait::new(sizes, &kinds, open, hold_ns), &arrivals);
    }
}

/// An iteration that only preempts, before the drain, is not a stall after it.
#[test]
fn preempted_requests_resume_once_drained() {
    let sizes = Sizes { blocks: 12, block_size: 1, seats: 4, budget: 4, restart: false };
    let types = json!([{"prompt": 8, "output": 5, "rate": 1.0}, {"prompt": 20, "output": 16, "rate": 1.0}]);
    let thresholds = [1.412_988_853_264_530_7, 1.636_985_441_500_295_6];
    let policy = json!({"policy": "wait", "types": types, "thresholds": thresholds, "work_conserving": false});
    let mut oracle = Wait::new(sizes, &[(thresholds[0], 5), (thresholds[1], 16)], false, None);
    let arrivals = [(0, 8, 1, 0), (0, 4, 2, 1), (0, 1, 1, 1), (2, 11, 2, 0), (3, 1, 12, 0), (0, 1, 1, 1)]
        .map(|(after, prompt, output, kind)| (after, prompt, output, kind, 0));
    compare(&mut scheduler(&sizes, &policy), &mut oracle, &arrivals);
}
