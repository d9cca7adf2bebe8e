//! What `adaptive` does with a target for the time to first token: what goes first, what late requests may take, what
//! is refused, and that nothing else changes.

use proptest::prelude::*;
use serde_json::{Value, json};
use wait_core::{Config, Error, HoldReason, LengthHint, Origin, Phase, Report, Request, RequestId, Scheduler, View};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
/// Queues of the policy: requests in time, and late ones.
const IN_TIME: usize = 0;
const LATE: usize = 1;

fn scheduler(settings: &Value, target: Value) -> Scheduler {
    let Value::Object(mut all) = settings.clone() else { unreachable!() };
    all.insert("policy".into(), json!("adaptive"));
    all.insert("ttft_target".into(), target);
    Scheduler::new(&Config::from_map(all).unwrap()).unwrap()
}

fn request(id: RequestId, prompt: u32, arrival_ns: u64) -> Request {
    Request { id, prompt, output: LengthHint::Exact(5), arrival_ns, ..Request::default() }
}

fn queue(view: &View, queue: usize) -> Vec<RequestId> {
    view.iter_waiting(queue).map(|slot| view.request(slot).id).collect()
}

fn admitted(core: &Scheduler) -> Vec<RequestId> {
    let chunks = core.last_plan().chunks().iter();
    chunks.filter(|chunk| chunk.origin == Origin::Admitted).map(|chunk| chunk.id).collect()
}

fn end_all(core: &mut Scheduler) {
    let view = core.view();
    let all: Vec<_> = view.iter_residents().map(|slot| view.request(slot).id).collect();
    core.complete(&Report { finished: &all, ..Report::default() }).unwrap();
}

/// One slot, whose request ends with each plan.
fn one_seat(target: f64) -> Scheduler {
    scheduler(&json!({"kv_blocks": 100, "max_num_seqs": 1, "token_budget": 100}), json!(target))
}

fn serve(core: &mut Scheduler, now_ns: u64) -> Vec<RequestId> {
    core.plan(now_ns);
    end_all(core);
    admitted(core)
}

#[test]
fn late_requests_let_requests_in_time_go_first() {
    let mut core = one_seat(1.0);
    (1..=3).for_each(|id| core.add(&request(id, 10, 0)).unwrap());
    (4..=5).for_each(|id| core.add(&request(id, 10, 600 * MS)).unwrap());
    assert_eq!(serve(&mut core, 900 * MS), [1]);
    // The two others are late by now. Among themselves they stay first come, first served.
    assert_eq!(serve(&mut core, 1_100 * MS), [4]);
    assert_eq!((queue(core.view(), IN_TIME), queue(core.view(), LATE)), (vec![5], vec![2, 3]));
    assert_eq!(
        (core.explain(5).unwrap().reason, core.explain(3).unwrap().reason),
        (HoldReason::BatchCap, HoldReason::TtftTarget)
    );
    let hold = core.explain(2).unwrap();
    assert!((hold.needs - 1.1).abs() < 1e-9 && (hold.limit - 1.0).abs() < 1e-9, "{hold:?}");
    assert_eq!(serve(&mut core, 1_200 * MS), [5]);
    assert_eq!(core.explain(3).unwrap().reason, HoldReason::BatchCap, "late requests are next");
    assert_eq!(serve(&mut core, 1_300 * MS), [2]);
    // A request that the host preempts or refuses keeps its place among late requests.
    core.add(&request(6, 10, 0)).unwrap();
    core.plan(1_400 * MS);
    assert_eq!(admitted(&core), [3]);
    core.complete(&Report { refused: &[3], ..Report::default() }).unwrap();
    assert_eq!(queue(core.view(), LATE), [3, 6]);
    assert!(core.abort(3));
    assert_eq!(serve(&mut core, 1_500 * MS), [6]);
    assert!(core.view().is_empty());
}

#[test]
fn the_prompts_before_a_request_and_its_own_count_as_time() {
    // 90 prompt tokens an iteration of 100 ms: 1,620 in 2 s less two iterations for the margin.
    let settings = json!({"kv_blocks": 1000, "max_num_seqs": 90, "token_budget": 90});
    for (prompt, expected) in [(1_500, [1, 2]), (1_700, [2, 1])] {
        let mut core = scheduler(&settings, json!(2.0));
        core.add(&request(0, 4_000, 0)).unwrap();
        (0..10).for_each(|step| _ = core.plan(step * 100 * MS));
        core.complete(&Report { progress: &[(0, 3_990)], ..Report::default() }).unwrap();
        core.plan(SECOND);
        core.add(&request(1, prompt, SECOND)).unwrap();
        core.add(&request(2, 10, SECOND)).unwrap();
        let mut order = Vec::new();
        for step in 1..40 {
            core.plan(SECOND + step * 100 * MS);
            order.extend(admitted(&core));
        }
        assert_eq!(order, expected, "a prompt of {prompt}: late on arrival, or not");
    }
}

#[test]
fn late_requests_take_only_what_the_traffic_leaves() {
    // Two in time grow to 0.6 of the memory: the traffic wants 0.54 of it, give or take 0.05.
    let settings = json!({"kv_blocks": 1000, "max_num_seqs": 16, "token_budget": 20_000});
    let mut core = scheduler(&settings, json!(1.0));
    (0..2).for_each(|id| core.add(&request(id, 3_250, 0)).unwrap());
    (0..1_500).for_each(|step| _ = core.plan(step * MS));
    // Five are late on arrival, of 0.16 each: two fit beside what is wanted, the third does not.
    let now = 1_500 * MS;
    (10..15).for_each(|id| core.add(&request(id, 2_500, 0)).unwrap());
    core.plan(now);
    assert_eq!(admitted(&core), [10, 11]);
    assert_eq!(core.explain(12).unwrap().reason, HoldReason::TtftTarget);
    // One in time finds its memory immediately.
    core.add(&request(20, 1_000, now)).unwrap();
    core.plan(now + MS);
    assert_eq!(admitted(&core), [20]);
    // Each that ends admits the next.
    for id in 10..13 {
        core.complete(&Report { finished: &[id], ..Report::default() }).unwrap();
        core.plan(now + 2 * MS);
        assert_eq!(admitted(&core), [id + 2]);
    }
}

#[test]
fn what_is_late_is_refused_where_the_host_asks_for_it() {
    let settings = json!({"kv_blocks": 100, "max_num_seqs": 1, "token_budget": 100, "late": "refuse"});
    let mut core = scheduler(&settings, json!(1.0));
    (1..=3).for_each(|id| core.add(&request(id, 10, 0)).unwrap());
    core.plan(0);
    assert_eq!(admitted(&core), [1]);
    core.plan(20 * MS);
    core.plan(1_100 * MS);
    let refused: Vec<_> = core.last_plan().refused().iter().map(|refusal| (refusal.id, refusal.reason)).collect();
    assert_eq!(refused, [(2, HoldReason::TtftTarget), (3, HoldReason::TtftTarget)]);
    assert!(core.last_plan().refused().iter().all(|refusal| refusal.predicted_wait_ns > SECOND));
    assert_eq!((core.view().len(), core.stats().refused, core.explain(2)), (1, 2, None));
    // An id that was refused is free again. One leaves every 300 ms now: three may wait, a fourth is refused on
    // arrival.
    end_all(&mut core);
    let mut now = 2 * SECOND;
    (1..=3).for_each(|id| core.add(&request(id, 10, now)).unwrap());
    for id in 4..24 {
        core.plan(now);
        end_all(&mut core);
        now += 300 * MS;
        if core.view().len() < 3 {
            core.add(&request(id, 10, now)).unwrap();
        }
    }
    (100..103).for_each(|id| _ = core.add(&request(id, 10, now)));
    let error = core.add(&request(200, 10, now)).unwrap_err();
    assert!(
        matches!(error, Error::DeadlineUnreachable { predicted_wait_ns, max_wait_ns: SECOND, .. }
            if predicted_wait_ns > SECOND),
        "{error}"
    );
}

#[test]
fn a_longest_wait_of_the_target_refuses_what_would_be_late() {
    let mut core = one_seat(1.0);
    // A request leaves every 100 ms, and nine of those that wait are still in time.
    (0..20).for_each(|id| core.add(&request(id, 10, 0)).unwrap());
    for step in 0..8 {
        serve(&mut core, step * 100 * MS);
    }
    let now = 800 * MS;
    let bounded = |id| Request { max_wait_ns: Some(SECOND), ..request(id, 10, now) };
    assert!(core.predicted_wait_ns() > SECOND);
    assert!(matches!(core.add(&bounded(100)), Err(Error::DeadlineUnreachable { .. })));
    for step in 8..12 {
        serve(&mut core, step * 100 * MS);
    }
    assert!(core.add(&bounded(100)).is_ok());
}

#[test]
fn the_predicted_wait_is_that_of_a_request_in_time_or_of_a_late_one() {
    let mut core = one_seat(4.0);
    let target = 4 * SECOND;
    // One leaves every 100 ms, and one arrives: the queue stays at 20.
    let mut next = 0;
    let mut arrive = |core: &mut Scheduler, n: u64, now_ns| {
        (next..next + n).for_each(|id| core.add(&request(id, 10, now_ns)).unwrap());
        next += n;
    };
    arrive(&mut core, 20, 0);
    for step in 0..200_u64 {
        serve(&mut core, step * 100 * MS);
        arrive(&mut core, 1, step * 100 * MS);
    }
    let predicted = core.predicted_wait_ns();
    assert!(predicted.abs_diff(2 * SECOND) < SECOND / 5, "{predicted}");
    // Three arrive where one leaves: a third is in time, and a request that arrives now is late and goes behind all
    // others.
    for step in 200..600_u64 {
        serve(&mut core, step * 100 * MS);
        arrive(&mut core, 3, step * 100 * MS);
    }
    let (predicted, waiting) = (core.predicted_wait_ns(), u64::from(core.view().waiting_total()));
    assert!(core.view().waiting(LATE) > 400 && predicted > 2 * target);
    assert!(predicted.abs_diff(waiting * SECOND / 10) < SECOND, "{predicted} behind {waiting}");
}

/// What a random, but well-behaved host does between two plans.
#[derive(Clone, Debug)]
struct Step {
    arrivals: Vec<(u32, i64)>,
    ms: u64,
    finish: usize,
    abort: Option<usize>,
}

fn step() -> impl Strategy<Value = Step> {
    let arrivals = prop::collection::vec((1..60u32, -1..2i64), 0..4);
    (arrivals, 1..200u64, 0..4usize, prop::option::weighted(0.05, 0..100usize))
        .prop_map(|(arrivals, ms, finish, abort)| Step { arrivals, ms, finish, abort })
}

/// A run: the scheduler, and what the rule says of each request.
struct Run {
    core: Scheduler,
    target_ns: u64,
    now_ns: u64,
    next_id: RequestId,
    served: Vec<RequestId>,
}

impl Run {
    fn new(core: Scheduler, target_ns: u64) -> Self {
        Self { core, target_ns, now_ns: SECOND, next_id: 0, served: Vec::new() }
    }

    fn step(&mut self, step: &Step) {
        for &(prompt, priority) in &step.arrivals {
            self.core.add(&Request { priority, ..request(self.next_id, prompt, self.now_ns) }).unwrap();
            self.next_id += 1;
        }
        self.now_ns += step.ms * MS;
        let before = self.core.view().clone();
        self.core.plan(self.now_ns);
        if self.target_ns < u64::MAX {
            self.check(&before);
        }
        self.served.extend(admitted(&self.core));
        let view = self.core.view();
        let ids: Vec<_> = view.iter_residents().map(|slot| view.request(slot).id).take(step.finish).collect();
        self.core.complete(&Report { finished: &ids, ..Report::default() }).unwrap();
        if let Some(id) = step.abort.map(|id| id as u64) {
            self.core.abort(id);
        }
    }

    /// Compares a plan with the rule, written the slow way.
    fn check(&mut self, before: &View) {
        let (plan, view) = (self.core.last_plan(), self.core.view());
        let moved: Vec<_> = plan.moved().iter().map(|&(slot, _)| before.request(slot).id).collect();
        for &(slot, queue) in plan.moved() {
            assert_eq!((queue, before.request(slot).phase), (LATE, Phase::Waiting));
        }
        let mut in_time: Vec<_> = queue(before, IN_TIME).into_iter().filter(|id| !moved.contains(id)).collect();
        let (mut late, mut found) = (queue(before, LATE), moved.clone());
        for id in admitted(&self.core) {
            if in_time.first() == Some(&id) {
                in_time.remove(0);
                continue;
            }
            assert!(in_time.is_empty(), "{in_time:?} are in time, {id} is not");
            let head = if late.is_empty() { &mut found } else { &mut late };
            assert_eq!(head.remove(0), id, "by rank");
        }
        // What waits in time has not waited too long, and late requests are held for it alone, or for late residents.
        for slot in view.iter_waiting(IN_TIME) {
            assert!(self.now_ns - view.request(slot).arrival_ns <= self.target_ns, "found late wherever it stands");
        }
        let is_late = |slot| usize::from(view.request(slot).queue()) == LATE;
        if plan.hold(LATE).is_some_and(|hold| hold.reason == HoldReason::TtftTarget) && plan.preempted().is_empty() {
            assert!(view.waiting(IN_TIME) > 0 || view.iter_residents().any(is_late), "nothing else runs");
        }
        let waiting = queue(view, LATE);
        assert!(found.iter().all(|id| waiting.contains(id)), "nothing is lost");
    }

    fn finish(&mut self) {
        let mut patience = 10_000;
        while !self.core.view().is_empty() {
            assert!(patience > 0, "livelock");
            patience -= 1;
            self.step(&Step { arrivals: Vec::new(), ms: 20, finish: 9, abort: None });
        }
    }
}

fn tight(more: &Value) -> Value {
    let mut settings = json!({"kv_blocks": 30, "block_size": 4, "max_num_seqs": 4, "token_budget": 24});
    settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    settings
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_rule_holds_in_every_plan_and_all_are_served(
        steps in prop::collection::vec(step(), 1..200),
        ageing in prop_oneof![Just(json!(30.0)), Just(json!(0.2)), Just(Value::Null)],
        order in prop_oneof![Just("fcfs"), Just("srpt")],
    ) {
        let settings = tight(&json!({"ageing": ageing, "order": order}));
        let mut run = Run::new(scheduler(&settings, json!(1.0)), SECOND);
        for (at, step) in steps.iter().enumerate() {
            run.step(step);
            // A copy decides the same: the state is all there is.
            if at == steps.len() / 2 {
                let mut twin = run.core.clone();
                twin.plan(run.now_ns + MS);
                let planned = format!("{:?}", twin.last_plan());
                let mut other = run.core.clone();
                prop_assert_eq!(format!("{:?}", other.plan(run.now_ns + MS)), planned);
            }
        }
        run.finish();
        let mut served = run.served;
        served.sort_unstable();
        served.dedup();
        prop_assert_eq!(run.core.stats().admitted as usize, served.len(), "each is admitted once");
        prop_assert_eq!(run.core.stats().finished + run.core.stats().aborted, run.next_id);
    }

    #[test]
    fn what_is_refused_is_gone_and_all_else_is_served(steps in prop::collection::vec(step(), 1..200)) {
        let mut core = scheduler(&tight(&json!({"late": "refuse"})), json!(1.0));
        let (mut now_ns, mut added) = (SECOND, 0);
        let rest = Step { arrivals: Vec::new(), ms: 20, finish: 9, abort: None };
        for step in steps.iter().chain(std::iter::repeat_n(&rest, 2_000)) {
            for &(prompt, priority) in &step.arrivals {
                added += u64::from(core.add(&Request { priority, ..request(added, prompt, now_ns) }).is_ok());
            }
            now_ns += step.ms * MS;
            core.plan(now_ns);
            let (plan, view) = (core.last_plan(), core.view());
            prop_assert!(plan.refused().iter().all(|refusal| view.slot(refusal.id).is_none()));
            prop_assert!(view.iter_waiting(IN_TIME).all(|slot| now_ns - view.request(slot).arrival_ns <= SECOND));
            prop_assert_eq!(view.waiting(LATE), 0);
            let ids: Vec<_> = view.iter_residents().map(|slot| view.request(slot).id).take(step.finish).collect();
            core.complete(&Report { finished: &ids, ..Report::default() }).unwrap();
        }
        prop_assert!(core.view().is_empty());
        prop_assert_eq!(core.stats().finished + core.stats().refused, added);
    }

    #[test]
    fn a_target_that_is_always_met_changes_nothing(
        steps in prop::collection::vec(step(), 1..150),
        skip_ahead in 0..3u32,
    ) {
        let settings = tight(&json!({"skip_ahead": skip_ahead}));
        let mut runs = [Value::Null, json!(1e6)].map(|target| Run::new(scheduler(&settings, target), u64::MAX));
        for step in &steps {
            let made: Vec<_> = runs.iter_mut().map(|run| {
                run.step(step);
                let plan = run.core.last_plan();
                (format!("{:?}", plan.chunks()), plan.hold(IN_TIME), plan.token_budget(), run.core.predicted_wait_ns())
            }).collect();
            prop_assert_eq!(&made[0], &made[1]);
        }
    }
}
