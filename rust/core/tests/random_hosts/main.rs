//! Random hosts drive every policy: whatever they do, the invariants hold, the arithmetic of a plan equals a slow
//! recount, the same inputs give the same plans, and every accepted request can finish.
//!
//! Debug builds also recount the whole state after each plan and each report (`src/invariants.rs`).

mod checks;

use std::collections::{BTreeMap, VecDeque};

use checks::sequence;
use proptest::prelude::*;
use serde_json::{Value, json};
use wait_core::config::{Late, PolicyName};
use wait_core::{Config, Error, LengthHint, Origin, Phase, Report, Request, RequestId, Scheduler, Slot};

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
        json!({"policy": "nested-wait", "types": types}),
        json!({"policy": "nested-wait", "types": types, "work_conserving": false}),
        json!({"policy": "nested-wait", "boundaries": [1, 3, 7], "thresholds": [3.0, 1.4, 0.6], "host_preempts": true}),
        json!({"policy": "nested-wait", "boundaries": [2, 5], "thresholds": [2.0, 1.0], "work_conserving": false,
            "max_hold": 1e-7, "preemption": "restart"}),
        json!({"policy": "prefill-first"}),
        json!({"policy": "prefill-first", "watermark": 0.1, "host_preempts": true}),
        json!({"policy": "adaptive"}),
        json!({"policy": "adaptive", "iteration_time": {"law": "a100"}, "preemption": "restart"}),
        json!({"policy": "adaptive", "host_preempts": true}),
        json!({"policy": "adaptive", "order": "srpt", "ageing": 1e-7, "without": ["pacing", "forgetting", "buffer"]}),
        json!({"policy": "adaptive", "skip_ahead": 3, "ageing": 1e-6, "iteration_time": {"law": "a100"},
            "tpot_target": 0.02, "without": ["token-budget", "classes"]}),
        json!({"policy": "adaptive", "ttft_target": 3e-7, "ageing": 1e-7}),
        json!({"policy": "adaptive", "ttft_target": 1e-7, "skip_ahead": 2, "order": "srpt", "host_preempts": true}),
        json!({"policy": "adaptive", "ttft_target": 2e-7, "late": "refuse"}),
        json!({"policy": "adaptive", "tenant_weights": [1.0, 3.0], "skip_ahead": 1}),
        json!({"policy": "adaptive", "tenant_weights": [1.0, 0.2], "ttft_target": 2e-7}),
        json!({"policy": "sarathi", "watermark": 0.1}),
        json!({"policy": "sarathi", "preemption": "restart"}),
        json!({"policy": "clairvoyant"}),
        json!({"policy": "clairvoyant", "order": "paced", "preemption": "restart"}),
        json!({"policy": "clairvoyant", "order": "srpt"}),
        json!({"policy": "clairvoyant", "host_preempts": true}),
    ]
}

#[derive(Clone, Debug)]
enum Op {
    Add { prompt: u32, output: u32, hint: u8 },
    Plan,
    Complete { preempt: Option<usize>, refuse: usize, progress: Option<(usize, u32)>, free: Option<u32>, shared: u32 },
    Abort(usize),
    AbortAll,
    Capacity(u32),
    Paused(bool),
    Drain,
}

fn op() -> impl Strategy<Value = Op> {
    let rarely = |p: f64| prop::option::weighted(p, any::<usize>());
    let refuse = prop_oneof![8 => Just(0), 1 => 1..3usize];
    let complete = (rarely(0.1), refuse, rarely(0.1), 0..60u32, 0..120u32, 0..60u32).prop_map(
        |(preempt, refuse, progress, kv, free, shared)| Op::Complete {
            preempt,
            refuse,
            progress: progress.map(|who| (who, kv)),
            free: (free < 12).then_some(free),
            shared: shared.saturating_sub(40),
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
    config: Config,
    /// The largest capacity there was.
    most_blocks: u32,
    /// True output lengths of the requests present.
    outputs: BTreeMap<RequestId, u32>,
    /// Who ends in each iteration that is planned and not completed.
    flying: VecDeque<Vec<RequestId>>,
    next_id: RequestId,
    now_ns: u64,
    paused: bool,
}

impl Host {
    fn new(policy: &Value, capacity: u32, block_size: u32, seats: u32, extra_budget: u32) -> Self {
        let mut settings = policy.as_object().unwrap().clone();
        let sizes = json!({"kv_blocks": capacity, "block_size": block_size, "max_num_seqs": seats, "token_budget": seats + extra_budget});
        settings.extend(sizes.as_object().unwrap().clone());
        let config = Config::from_map(settings).unwrap();
        Self {
            core: Scheduler::new(&config).unwrap(),
            config,
            most_blocks: capacity,
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
            Op::Complete { preempt, refuse, progress, free, shared } => {
                self.complete(preempt, refuse, progress, free);
                self.share(shared);
            }
            Op::Abort(who) => {
                if let Some(&id) = self.outputs.keys().nth(who % self.outputs.len().max(1)) {
                    self.abort(id);
                }
            }
            Op::AbortAll => self.outputs.clone().into_keys().for_each(|id| self.abort(id)),
            Op::Capacity(blocks) => {
                self.most_blocks = self.most_blocks.max(blocks);
                self.core.set_capacity(blocks).unwrap();
            }
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
        let request = Request {
            id,
            prompt,
            max_tokens,
            output: output_hint,
            priority: (id % 3) as i64 - 1,
            tenant: (id % 2) as u16,
            arrival_ns: self.now_ns,
            ..Request::default()
        };
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
            Err(Error::DeadlineUnreachable { predicted_wait_ns, max_wait_ns, .. }) => {
                assert!(self.config.late == Late::Refuse && predicted_wait_ns > max_wait_ns);
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
        for refusal in self.core.last_plan().refused() {
            assert_eq!(before.view().request(refusal.slot).phase, Phase::Waiting);
            self.outputs.remove(&refusal.id);
        }
        self.check(before.view());
        let (view, outputs) = (self.core.view(), &self.outputs);
        let ended = |&slot: &Slot| view.stage(slot) >= outputs[&view.request(slot).id];
        let emitting = view.iter_residents().filter(|&slot| view.request(slot).phase == Phase::Decoding);
        self.flying.push_back(sequence(view, emitting.filter(ended)));
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
        // A host may admit on its own: anybody may have made progress.
        let present = |who: usize| self.outputs.keys().nth(who % self.outputs.len().max(1)).copied();
        let progress: Vec<_> = progress.and_then(|(who, kv)| Some((present(who)?, kv))).into_iter().collect();
        // Who was refused or evicted has not ended.
        finished.retain(|id| !refused.contains(id) && !preempted.contains(id) && self.outputs.contains_key(id));
        self.core.complete(&Report {
            finished: &finished,
            preempted: &preempted,
            refused: &refused,
            progress: &progress,
            free_blocks: free,
            ..Report::default()
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
        let away = |id: &&RequestId| progress.iter().all(|(other, _)| other != *id) && self.outputs.contains_key(id);
        for id in preempted.iter().chain(&refused).filter(away) {
            assert_eq!(self.core.view().request(self.core.view().slot(*id).unwrap()).phase, Phase::Waiting);
        }
    }

    /// A prefix of so many tokens is resident, the host says, for whoever is next.
    fn share(&mut self, tokens: u32) {
        let first: Vec<_> = self.core.first_in_queue(2).map(|(id, _)| (id, tokens)).collect();
        self.core.complete(&Report { shared: &first, ..Report::default() });
    }

    /// Runs to the end with a host that behaves: nobody is left.
    fn finish(&mut self) {
        self.pause(false);
        // What was accepted while the cache was largest fits no less.
        self.core.set_capacity(self.most_blocks).unwrap();
        self.core.drain();
        while !self.flying.is_empty() {
            self.complete(None, 0, None, None);
        }
        let view = self.core.view();
        let used: u32 = view.iter_residents().map(|slot| view.blocks(slot)).sum();
        let free_blocks = Some(self.most_blocks.saturating_sub(used));
        self.core.complete(&Report { free_blocks, ..Report::default() });
        let tokens: u32 = self.outputs.values().sum();
        let mut patience = 200 + 40 * (tokens + self.core.view().waiting_tokens() as u32);
        while !self.outputs.is_empty() {
            assert!(patience > 0, "livelock: {:?} of {:?}", self.core.last_plan(), self.outputs);
            patience -= 1;
            self.now_ns += 7;
            self.plan();
            let (plan, free) = (self.core.last_plan(), self.core.view().pool().free());
            let moves = !plan.is_empty() || !plan.preempted().is_empty() || !plan.refused().is_empty();
            assert!(moves, "stalled: {plan:?}");
            // A host that evicts by itself takes the last admitted, as the core would.
            let last = self.core.view().residents() as usize;
            let preempt = (self.config.host_preempts && free < 0).then(|| last - 1);
            self.complete(preempt, 0, None, None);
        }
        assert_eq!(self.core.view().pool().used(), 0);
        assert!(self.core.view().is_empty());
    }
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
        let clairvoyant = host.config.policy == PolicyName::Clairvoyant && !host.config.host_preempts;
        for (prompt, output, hint, plans) in requests {
            host.run(&Op::Add { prompt, output, hint });
            for _ in 0..plans {
                host.run(&Op::Plan);
                let preempt = (host.config.host_preempts && host.core.view().pool().free() < 0).then(|| host.core.view().residents() as usize - 1);
                host.run(&Op::Complete { preempt, refuse: 0, progress: None, free: None, shared: 0 });
            }
        }
        host.finish();
        prop_assert!(!clairvoyant || host.core.stats().preemptions == 0, "who knows the lengths never evicts");
    }
}
