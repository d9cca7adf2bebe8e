//! Random hosts drive every policy: whatever they do, the invariants hold, the arithmetic of a plan equals a slow
//! recount, the same inputs give the same plans, and every accepted request can finish.
//!
//! Debug builds also recount the whole state after each plan and each report (`src/invariants.rs`).

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use serde_json::{Value, json};
use wait_core::cost::BatchShape;
use wait_core::{
    Config, Error, HoldReason, LengthHint, Origin, Phase, Plan, Report, Request, RequestId, Scheduler, Slot, View,
};

/// Settings of every policy, in the variants that decide differently.
fn policies() -> Vec<Value> {
    let types = json!([{"prompt": 6, "output": 4, "rate": 2.0}, {"prompt": 20, "output": 12, "rate": 1.0}]);
    vec![
        json!({"policy": "vllm"}),
        json!({"policy": "vllm", "watermark": 0.2, "preemption": "restart"}),
        json!({"policy": "vllm", "host_preempts": true}),
        json!({"policy": "wait", "types": types}),
        json!({"policy": "wait", "types": types, "thresholds": [2.5, 0.3], "preemption": "restart"}),
        json!({"policy": "wait", "types": types, "thresholds": [2.0, 1.0], "work_conserving": false}),
        json!({"policy": "wait", "types": types, "thresholds": [3.0, 0.4], "work_conserving": false, "max_hold": 1e-7}),
    ]
}

#[derive(Clone, Debug)]
enum Op {
    Add { prompt: u32, output: u32, hint: u8 },
    Plan,
    Complete { preempt: Option<usize>, refuse: usize, progress: Option<(usize, u32)>, free: Option<u32> },
    Abort(usize),
    AbortAll,
    Capacity(u32),
    Paused(bool),
    Drain,
}

fn op() -> impl Strategy<Value = Op> {
    let rarely = |p: f64| prop::option::weighted(p, any::<usize>());
    let complete = (rarely(0.1), prop_oneof![8 => Just(0), 1 => 1..3usize], rarely(0.1), 0..60u32, 0..120u32).prop_map(
        |(preempt, refuse, progress, kv, free)| Op::Complete {
            preempt,
            refuse,
            progress: progress.map(|who| (who, kv)),
            free: (free < 12).then_some(free),
        },
    );
    prop_oneof![
        8 => (1..40u32, 1..24u32, 0..4u8).prop_map(|(prompt, output, hint)| Op::Add { prompt, output, hint }),
        12 => Just(Op::Plan),
        12 => complete,
        1 => any::<usize>().prop_map(Op::Abort),
        1 => prop_oneof![20 => (1..16u32).prop_map(Op::Capacity), 1 => Just(Op::AbortAll), 1 => Just(Op::Drain)],
        1 => any::<bool>().prop_map(Op::Paused),
    ]
}

#[derive(Debug)]
struct Host {
    core: Scheduler,
    seats: u32,
    budget: u32,
    capacity: u32,
    /// It evicts by itself.
    evicts: bool,
    /// True output lengths of the requests present.
    outputs: BTreeMap<RequestId, u32>,
    /// Who ends in each iteration that is planned and not completed.
    flying: VecDeque<Vec<RequestId>>,
    next_id: RequestId,
    now_ns: u64,
    paused: bool,
}

fn sequence(view: &View, slots: impl Iterator<Item = Slot>) -> Vec<RequestId> {
    slots.map(|slot| view.request(slot).id).collect()
}

impl Host {
    fn new(policy: &Value, capacity: u32, block_size: u32, seats: u32, extra_budget: u32) -> Self {
        let budget = seats + extra_budget;
        let mut settings = policy.as_object().unwrap().clone();
        let sizes =
            json!({"kv_blocks": capacity, "block_size": block_size, "max_num_seqs": seats, "token_budget": budget});
        settings.extend(sizes.as_object().unwrap().clone());
        let config = Config::from_map(settings).unwrap();
        Self {
            core: Scheduler::new(&config).unwrap(),
            seats,
            budget,
            capacity,
            evicts: config.host_preempts,
            outputs: BTreeMap::new(),
            flying: VecDeque::new(),
            next_id: 0,
            now_ns: 0,
            paused: false,
        }
    }

    fn run(&mut self, op: &Op) {
        self.now_ns += 7;
        match *op {
            Op::Add { prompt, output, hint } => self.add(prompt, output, hint),
            Op::Plan if self.flying.len() < 2 => self.plan(),
            Op::Plan => {}
            Op::Complete { preempt, refuse, progress, free } => self.complete(preempt, refuse, progress, free),
            Op::Abort(who) => {
                if let Some(&id) = self.outputs.keys().nth(who % self.outputs.len().max(1)) {
                    self.abort(id);
                }
            }
            Op::AbortAll => self.outputs.clone().into_keys().for_each(|id| self.abort(id)),
            Op::Capacity(blocks) => self.core.set_capacity(blocks).unwrap(),
            Op::Paused(paused) => self.pause(paused),
            Op::Drain => self.core.drain(),
        }
        assert_eq!(self.core.view().len(), self.outputs.len(), "the core knows whom the host knows");
    }

    fn pause(&mut self, paused: bool) {
        self.paused = paused;
        self.core.set_paused(paused);
    }

    fn add(&mut self, prompt: u32, output: u32, hint: u8) {
        let output_hint = match hint {
            0 => LengthHint::Unknown,
            1 => LengthHint::Predicted { tokens: output + 3, log_error: 0.5 },
            _ => LengthHint::Exact(output),
        };
        let max_tokens = (hint == 3).then_some(output);
        let id = self.next_id;
        let request =
            Request { id, prompt, max_tokens, output: output_hint, arrival_ns: self.now_ns, ..Request::default() };
        self.next_id += 1;
        let before = self.core.view().len();
        match self.core.add(&request) {
            Ok(()) => {
                // The host stops at max_tokens or at the model's limit, whatever the request would like.
                let limit = self.core.view().request(self.core.view().slot(id).unwrap()).max_tokens;
                self.outputs.insert(id, output.min(limit));
                assert_eq!(self.core.add(&request), Err(Error::DuplicateId { id }));
            }
            Err(Error::TooLarge { needs, limit, .. }) => {
                assert!(needs > limit && u64::from(prompt + output) >= needs, "refused without need");
                assert_eq!(self.core.view().len(), before);
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn abort(&mut self, id: RequestId) {
        assert!(self.core.abort(id));
        assert!(!self.core.abort(id));
        self.outputs.remove(&id);
    }

    fn plan(&mut self) {
        let before = self.core.clone();
        let mut twin = self.core.clone();
        self.core.plan(self.now_ns);
        twin.plan(self.now_ns);
        assert_eq!(format!("{:?}", self.core.last_plan()), format!("{:?}", twin.last_plan()), "determinism");
        self.check_limits(before.view());
        recount(before.view(), &self.core);
        self.check_order(before.view());
        self.check_holds();
        let (view, outputs) = (self.core.view(), &self.outputs);
        let ended = |&slot: &Slot| view.stage(slot) >= outputs[&view.request(slot).id];
        let emitting = view.iter_residents().filter(|&slot| view.request(slot).phase == Phase::Decoding);
        self.flying.push_back(sequence(view, emitting.filter(ended)));
    }

    fn check_limits(&self, before: &View) {
        let (plan, view) = (self.core.last_plan(), self.core.view());
        assert!(plan.tokens() <= plan.token_budget() && plan.token_budget() <= self.budget, "token budget");
        assert!(view.residents() <= self.seats, "seats");
        if !self.evicts && !self.paused {
            // A host may say that others use the cache: then there is nobody to evict.
            assert!(view.pool().free() >= 0 || view.residents() == 0, "the plan fits");
            assert!(plan.free() >= 0 || plan.residents() == 0, "the plan knows that it fits");
        }
        // Victims are the residents admitted last, last first.
        let mut victims = sequence(before, before.iter_residents());
        victims.reverse();
        victims.truncate(plan.preempted().len());
        assert_eq!(plan.preempted().iter().map(|&(_, id)| id).collect::<Vec<_>>(), victims);
        let admits = plan.chunks().iter().any(|chunk| chunk.origin != Origin::Resident);
        assert!(victims.is_empty() || !admits, "who evicts does not admit");
        assert!(!self.paused || plan.is_empty() && victims.is_empty(), "a paused engine does nothing");
    }

    /// The preempted first, then each line in its order.
    fn check_order(&self, before: &View) {
        let plan = self.core.last_plan();
        let admitted: Vec<_> = plan.chunks().iter().filter(|chunk| chunk.origin != Origin::Resident).collect();
        let split = admitted.iter().take_while(|chunk| chunk.origin == Origin::Resumed).count();
        let (resumed, fresh) = admitted.split_at(split);
        assert!(fresh.iter().all(|chunk| chunk.origin == Origin::Admitted));
        let mut line = sequence(before, before.iter_resuming());
        // An idle engine may pass over a preempted request that has become too large for the cache.
        let too_large = |slot: Slot| {
            let blocks = before.pool().blocks_for(before.request(slot).prefill_target());
            before.residents() == 0 && i64::from(blocks) > before.pool().free()
        };
        let passed_over = before.iter_resuming().nth(resumed.len()).is_none_or(too_large);
        assert!(fresh.is_empty() || passed_over, "the preempted go before all others");
        line.truncate(resumed.len());
        assert_eq!(resumed.iter().map(|chunk| chunk.id).collect::<Vec<_>>(), line);
        for queue in 0..before.queues() {
            let of_line = |id: RequestId| before.line_of_id(id) == Some(queue);
            let taken: Vec<_> = fresh.iter().map(|chunk| chunk.id).filter(|&id| of_line(id)).collect();
            let mut line = sequence(before, before.iter_waiting(queue));
            line.truncate(taken.len());
            assert_eq!(taken, line, "line {queue} is first come, first served");
        }
    }

    fn check_holds(&self) {
        let (plan, view) = (self.core.last_plan(), self.core.view());
        for &id in self.outputs.keys() {
            let slot = view.slot(id).unwrap();
            let waits = match view.request(slot).phase {
                Phase::Waiting | Phase::Parked => true,
                Phase::Decoding => !plan.runs(usize::from(view.request(slot).lane)),
                Phase::Prefilling => plan.chunks().iter().all(|chunk| chunk.slot != slot),
            };
            // Whoever joined its lane in this iteration has run.
            let ran = plan.chunks().iter().any(|chunk| chunk.slot == slot);
            assert_eq!(self.core.explain(id).is_some(), waits && !ran, "request {id} is explained if it waits");
            let paused = self.core.explain(id).is_some_and(|hold| hold.reason == HoldReason::EnginePaused);
            assert_eq!(paused, self.paused);
        }
    }

    fn complete(&mut self, preempt: Option<usize>, refuse: usize, progress: Option<(usize, u32)>, free: Option<u32>) {
        let Some(mut finished) = self.flying.pop_front() else { return };
        let view = self.core.view();
        let residents = sequence(view, view.iter_residents());
        let pick = |who: usize| residents.get(who % residents.len().max(1)).copied();
        let preempted: Vec<_> = preempt.and_then(pick).into_iter().collect();
        let plan = self.core.last_plan();
        let admitted = plan.chunks().iter().filter(|chunk| chunk.origin != Origin::Resident).map(|chunk| chunk.id);
        let mut refused: Vec<_> = admitted.collect();
        refused.drain(..refused.len().saturating_sub(refuse));
        let progress: Vec<_> = progress.and_then(|(who, kv)| Some((pick(who)?, kv))).into_iter().collect();
        // Who was refused or evicted has not ended.
        finished.retain(|id| !refused.contains(id) && !preempted.contains(id) && self.outputs.contains_key(id));
        self.core.complete(&Report {
            finished: &finished,
            preempted: &preempted,
            refused: &refused,
            progress: &progress,
            free_blocks: free,
        });
        for id in &finished {
            self.outputs.remove(id);
            assert!(self.core.view().slot(*id).is_none());
        }
        // A host that computed more than was planned ends the request at its length.
        for &(id, _) in &progress {
            let view = self.core.view();
            if view.slot(id).is_some_and(|slot| view.stage(slot) >= self.outputs[&id]) {
                self.core.complete(&Report { finished: &[id], ..Report::default() });
                self.outputs.remove(&id);
            }
        }
        for id in preempted.iter().chain(&refused).filter(|id| self.outputs.contains_key(id)) {
            assert_eq!(self.core.view().request(self.core.view().slot(*id).unwrap()).phase, Phase::Waiting);
        }
    }

    /// Runs to the end with a host that behaves: nobody is left.
    fn finish(&mut self) {
        self.pause(false);
        self.core.set_capacity(self.capacity).unwrap();
        self.core.drain();
        while !self.flying.is_empty() {
            self.complete(None, 0, None, None);
        }
        let view = self.core.view();
        let used: u32 = view.iter_residents().map(|slot| view.blocks(slot)).sum();
        let free_blocks = Some(self.capacity.saturating_sub(used));
        self.core.complete(&Report { free_blocks, ..Report::default() });
        let tokens: u32 = self.outputs.values().sum();
        let mut patience = 200 + 40 * (tokens + self.core.view().waiting_tokens() as u32);
        while !self.outputs.is_empty() {
            assert!(patience > 0, "livelock: {:?} of {:?}", self.core.last_plan(), self.outputs);
            patience -= 1;
            self.now_ns += 7;
            self.plan();
            let (plan, free) = (self.core.last_plan(), self.core.view().pool().free());
            assert!(!plan.is_empty() || !plan.preempted().is_empty(), "stalled: {plan:?}");
            // A host that evicts by itself takes the last admitted, as the core would.
            let last = self.core.view().residents() as usize;
            let preempt = (self.evicts && free < 0).then(|| last - 1);
            self.complete(preempt, 0, None, None);
        }
        assert_eq!(self.core.view().pool().used(), 0);
        assert!(self.core.view().is_empty());
    }
}

trait LineOf {
    fn line_of_id(&self, id: RequestId) -> Option<usize>;
}

impl LineOf for View {
    fn line_of_id(&self, id: RequestId) -> Option<usize> {
        let slot = self.slot(id)?;
        (0..self.queues()).find(|&queue| self.iter_waiting(queue).any(|other| other == slot))
    }
}

/// What the plan says of itself, counted request by request from the state before and after it.
fn recount(before: &View, core: &Scheduler) {
    let (plan, after): (&Plan, &View) = (core.last_plan(), core.view());
    let out = |slot: Slot| plan.preempted().iter().any(|&(other, _)| other == slot) || plan.parked().contains(&slot);
    let mut shape = BatchShape::default();
    let mut expected = BTreeMap::new();
    for slot in before.iter_residents() {
        let request = before.request(slot);
        let joins = plan.unparked().iter().any(|&(other, _)| other == slot);
        let decodes = request.phase == Phase::Decoding && plan.runs(usize::from(request.lane)) && !out(slot) || joins;
        if decodes {
            shape.add_decode(u64::from(before.kv(slot)) + 1);
        }
        expected.insert(request.id, (before.kv(slot) + u32::from(decodes), before.stage(slot) + u32::from(decodes)));
    }
    for chunk in plan.chunks() {
        assert!(chunk.tokens > 0);
        assert_eq!(chunk.start, before.kv(chunk.slot));
        assert!(chunk.blocks >= before.pool().blocks_for(chunk.start + chunk.tokens));
        shape.add_prefill(u64::from(chunk.tokens), u64::from(chunk.start));
        let target = before.request(chunk.slot).prefill_target();
        assert_eq!(chunk.last, chunk.start + chunk.tokens == target);
        expected.insert(chunk.id, (chunk.start + chunk.tokens, before.stage(chunk.slot) + u32::from(chunk.last)));
    }
    for &(_, id) in plan.preempted() {
        expected.remove(&id);
    }
    assert_eq!(*plan.shape(), shape);
    assert_eq!((u64::from(plan.decodes()), u64::from(plan.tokens())), (shape.decodes, shape.tokens()));
    assert_eq!(plan.residents(), after.residents());
    let found: BTreeMap<_, _> =
        after.iter_residents().map(|slot| (after.request(slot).id, (after.kv(slot), after.stage(slot)))).collect();
    assert_eq!(found, expected, "KV and stage of every resident");
    let blocks = |view: &View| view.iter_residents().map(|slot| i64::from(view.blocks(slot))).sum::<i64>();
    assert_eq!(before.pool().free() - plan.free(), blocks(after) - blocks(before), "blocks taken");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_host_does(
        policy in 0..policies().len(),
        capacity in 2..24u32,
        block_size in prop_oneof![Just(1), Just(2), Just(4), Just(16)],
        seats in 1..9u32,
        extra_budget in 0..40u32,
        ops in prop::collection::vec(op(), 1..160),
    ) {
        let mut host = Host::new(&policies()[policy], capacity, block_size, seats, extra_budget);
        for op in &ops {
            host.run(op);
        }
        host.finish();
    }

    /// Nothing but arrivals and whole iterations, and a cache that is always short.
    #[test]
    fn a_host_that_behaves_in_a_tight_cache(
        policy in 0..policies().len(),
        requests in prop::collection::vec((1..30u32, 1..20u32, 0..4u8, 0..4usize), 1..60),
        seats in 2..9u32,
    ) {
        let mut host = Host::new(&policies()[policy], 13, 4, seats, 9);
        for (prompt, output, hint, plans) in requests {
            host.run(&Op::Add { prompt, output, hint });
            for _ in 0..plans {
                host.run(&Op::Plan);
                let preempt = (host.evicts && host.core.view().pool().free() < 0).then(|| host.core.view().residents() as usize - 1);
                host.run(&Op::Complete { preempt, refuse: 0, progress: None, free: None });
            }
        }
        host.finish();
    }
}
