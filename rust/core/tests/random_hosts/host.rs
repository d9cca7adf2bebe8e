//! A host that keeps its own books, and lies where it is told to.

use std::collections::VecDeque;

use wait_core::config::{Late, PolicyName};
use wait_core::{Config, Error, LengthHint, Phase, Report, Request, RequestId, Scheduler, StepTime};

use crate::ledger::{Entry, Ledger};
use crate::world::{Addition, Lies, Op, World};

/// Most iterations that are planned and not completed.
const AHEAD: usize = 3;

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) core: Scheduler,
    pub(crate) config: Config,
    pub(crate) ledger: Ledger,
    lies: bool,
    /// Who ends in each iteration that is planned and not completed.
    flying: VecDeque<Vec<RequestId>>,
    next_id: RequestId,
    now_ns: u64,
    pub(crate) paused: bool,
}

impl Host {
    pub(crate) fn new(world: &World) -> Self {
        let config = world.config();
        Self {
            core: Scheduler::new(&config).unwrap(),
            ledger: Ledger::new(&config),
            config,
            lies: world.lies,
            flying: VecDeque::new(),
            next_id: 0,
            now_ns: 0,
            paused: false,
        }
    }

    pub(crate) fn run(&mut self, op: &Op) {
        self.now_ns += 7;
        match op {
            Op::Add(addition) => self.add(addition),
            Op::Plan { after_ns } if self.flying.len() < AHEAD => {
                self.now_ns += after_ns;
                self.plan();
            }
            Op::Plan { .. } => {}
            Op::Report(lies) => self.report(lies),
            Op::Abort(at) => self.abort(self.named(*at)),
            Op::AbortAll => self.ledger.entries.clone().into_keys().for_each(|id| self.abort(id)),
            Op::Capacity(blocks) => self.set_capacity(*blocks),
            Op::Paused(paused) => self.pause(*paused),
            Op::Drain => self.core.drain(),
            Op::Ask(count) => self.ask(*count),
            Op::Restore => self.restore(),
        }
        self.agree();
    }

    /// A request by its place among those present; now and then one that nobody knows.
    fn named(&self, at: usize) -> RequestId {
        let unknown = self.next_id + at as u64 % 3;
        if at.is_multiple_of(11) {
            return unknown;
        }
        self.ledger.entries.keys().nth(at % self.ledger.entries.len().max(1)).copied().unwrap_or(unknown)
    }

    fn pause(&mut self, paused: bool) {
        self.paused = paused;
        self.core.set_paused(paused);
    }

    fn set_capacity(&mut self, blocks: u32) {
        match self.core.set_capacity(blocks) {
            Ok(()) => self.ledger.capacity = blocks,
            Err(error) => assert!(blocks == 0 || blocks > 1 << 20, "{error}"),
        }
    }

    fn request(&self, id: RequestId, addition: &Addition) -> Request {
        let &Addition { prompt, output, hint, priority, tenant, type_id, shared, max_wait_ns, behind_ns } = addition;
        let (output, max_tokens) = match hint {
            0 => (LengthHint::Unknown, None),
            1 => (LengthHint::Predicted { tokens: output + 3, log_error: 0.5 }, None),
            2 => (LengthHint::Exact(output), Some(output)),
            3 => (LengthHint::Unknown, Some(output)),
            4 => (LengthHint::Exact(output), Some(output / 2)),
            5 if output == 1 => (LengthHint::Exact(0), None),
            5 if output == 2 => (LengthHint::Predicted { tokens: 4, log_error: f32::NAN }, None),
            6 => (LengthHint::Predicted { tokens: 1, log_error: 0.0 }, Some(u32::MAX)),
            _ => (LengthHint::Exact(output), None),
        };
        let arrival_ns = self.now_ns.saturating_sub(behind_ns);
        let shared_prefix = if self.lies { shared } else { 0 };
        Request { id, prompt, max_tokens, output, type_id, priority, tenant, shared_prefix, arrival_ns, max_wait_ns }
    }

    fn add(&mut self, addition: &Addition) {
        let again = self.next_id > 0 && addition.behind_ns == 19;
        let id = if again { self.named(addition.output as usize) } else { self.next_id };
        self.next_id = self.next_id.max(id + 1);
        let request = self.request(id, addition);
        let (answer, predicted_ns) = (self.core.add(&request), self.core.predicted_wait_ns());
        match answer {
            Ok(()) => {
                self.must_accept(&request, predicted_ns);
                let room = self.config.model_len() - request.prompt;
                let most = request.max_tokens.unwrap_or(room).min(room);
                self.ledger.add(
                    id,
                    Entry {
                        prompt: request.prompt,
                        output: addition.output.min(most),
                        type_id: self.core.view().request(self.core.view().slot(id).unwrap()).type_id,
                        shared: request.shared_prefix.min(request.prompt - 1),
                        ..Entry::default()
                    },
                );
                assert_eq!(self.core.add(&request), Err(Error::DuplicateId { id }));
            }
            Err(error) => self.may_refuse(&request, &error),
        }
    }

    fn must_accept(&self, request: &Request, predicted_ns: u64) {
        let ledger = &self.ledger;
        assert!(!ledger.entries.contains_key(&request.id), "request {} twice", request.id);
        let needs = u64::from(request.prompt) + u64::from(request.output.exact().unwrap_or(1));
        let cache = u64::from(ledger.capacity) * u64::from(ledger.block_size);
        assert!(needs <= cache.min(self.config.model_len().into()), "accepted though it fits no empty engine");
        let (queued, tokens) = self.queued();
        assert!(self.config.max_queued_requests.is_none_or(|most| queued < most.into()));
        assert!(self.config.max_queued_tokens.is_none_or(|most| tokens + u64::from(request.prompt) <= most));
        if self.config.late == Late::Park && self.config.ttft_target.is_none() {
            // Another one waits by now: the prediction cannot have been longer.
            assert!(request.max_wait_ns.is_none_or(|most| queued == 0 || predicted_ns / 2 <= most));
        }
    }

    /// What waits: requests, tokens.
    fn queued(&self) -> (u64, u64) {
        let waiting = self.ledger.line.iter().chain(&self.ledger.resuming);
        let tokens = waiting.map(|id| u64::from(self.ledger.entries[id].target()));
        tokens.fold((0, 0), |(count, sum), tokens| (count + 1, sum + tokens))
    }

    fn may_refuse(&self, request: &Request, error: &Error) {
        let (queued, tokens) = self.queued();
        match error {
            Error::DuplicateId { id } => assert!(*id == request.id && self.ledger.entries.contains_key(id)),
            Error::TooLarge { id, needs, limit, .. } => {
                let exact = u64::from(request.prompt) + u64::from(request.output.exact().unwrap_or(1));
                let cache = u64::from(self.ledger.capacity) * u64::from(self.ledger.block_size);
                assert!((*id, *needs) == (request.id, exact) && needs > limit, "refused without need");
                assert!(*limit == cache || *limit == u64::from(self.config.model_len()), "limit {limit}");
            }
            Error::QueueFull { queued: counted, bound, unit, .. } => {
                let ours = if *unit == "requests" { queued } else { tokens };
                assert_eq!(*counted, ours, "{unit} in the queue");
                let more = if *unit == "requests" { 1 } else { u64::from(request.prompt) };
                assert!(ours + more > *bound, "refused with {ours} {unit} of {bound}");
            }
            Error::DeadlineUnreachable { id, predicted_wait_ns, max_wait_ns } => {
                assert!(*id == request.id && predicted_wait_ns > max_wait_ns);
                assert!(request.max_wait_ns.is_some() || self.config.late == Late::Refuse);
            }
            Error::Invalid { name, .. } => {
                let given = match name.as_str() {
                    "prompt_tokens" => request.prompt == 0,
                    "max_tokens" => request.max_tokens == Some(0),
                    "output_tokens" => request.output == LengthHint::Exact(0),
                    "predicted_tokens" => {
                        matches!(request.output, LengthHint::Predicted { log_error, .. } if log_error.is_nan())
                    }
                    "tenant" => usize::from(request.tenant) >= self.config.tenant_weights.len(),
                    "type_id" => request.type_id.is_some_and(|id| usize::from(id) >= self.config.types.len()),
                    _ => false,
                };
                assert!(given, "{error}");
            }
            _ => panic!("{error}"),
        }
    }

    fn abort(&mut self, id: RequestId) {
        assert_eq!(self.core.abort(id), self.ledger.abort(id));
        assert!(!self.core.abort(id) && !self.ledger.abort(id), "it is gone");
    }

    pub(crate) fn plan(&mut self) {
        let before = self.core.clone();
        // Another of the same kind, which is asked everything before, plans the same.
        let mut twin = self.core.clone();
        let _ = (twin.kv_forecast(), twin.predicted_wait_ns(), twin.paused_ids());
        self.core.plan(self.now_ns);
        twin.plan(self.now_ns);
        assert_eq!(format!("{:?}", self.core.last_plan()), format!("{:?}", twin.last_plan()), "determinism");
        let (own, free) = (self.ledger.own(), before.view().pool().free());
        let (plan, standing) = (self.core.last_plan(), self.core.paused_ids());
        let parked: Vec<_> = plan.parked().iter().map(|&slot| before.view().request(slot).id).collect();
        let shape = self.ledger.assume(plan, &standing, &parked);
        assert_eq!(*plan.shape(), shape, "what is computed");
        assert_eq!((u64::from(plan.decodes()), u64::from(plan.tokens())), (shape.decodes, shape.tokens()));
        assert_eq!(free - plan.free(), self.ledger.own() - own, "blocks that the plan says it takes");
        self.check(before.view());
        let ended = |id: &&RequestId| self.ledger.entries[id].emits() && self.ends(**id);
        self.flying.push_back(self.ledger.residents.iter().filter(ended).copied().collect());
    }

    fn ends(&self, id: RequestId) -> bool {
        let entry = &self.ledger.entries[&id];
        entry.stage() >= entry.output
    }

    /// Completes the oldest iteration, or tells lies between two.
    fn report(&mut self, lies: &Lies) {
        let mut finished = self.flying.pop_front().unwrap_or_default();
        let (mut preempted, mut refused, mut progress, mut shared) = (vec![], vec![], vec![], vec![]);
        let mut free_blocks = None;
        if self.lies {
            let name = |list: &[usize]| list.iter().map(|&at| self.named(at)).collect::<Vec<_>>();
            let place = |list: &[(usize, u32)]| list.iter().map(|&(at, n)| (self.named(at), n)).collect::<Vec<_>>();
            (preempted, refused) = (name(&lies.preempted), name(&lies.refused));
            (progress, shared) = (place(&lies.progress), place(&lies.shared));
            free_blocks = lies.free;
            finished.extend(name(&lies.finished));
        } else if lies.free.is_some() {
            free_blocks = u32::try_from(i64::from(self.ledger.capacity) - self.ledger.held()).ok();
        }
        // Whoever was refused or preempted has not ended.
        finished.retain(|id| !refused.contains(id) && !preempted.contains(id));
        if !self.lies {
            finished.retain(|id| self.ledger.entries.contains_key(id));
        }
        let step = lies.step.map(|(ns, iteration)| StepTime { ns, iteration });
        let (finished, preempted, refused) = (&finished[..], &preempted[..], &refused[..]);
        self.complete(&Report {
            finished,
            preempted,
            refused,
            progress: &progress,
            shared: &shared,
            free_blocks,
            step,
        });
        self.end_what_is_overdue();
    }

    fn complete(&mut self, report: &Report) {
        self.core.complete(report);
        self.ledger.take_in(report);
    }

    /// A host ends whatever has reached its length, though no iteration in flight is going to.
    fn end_what_is_overdue(&mut self) {
        let flying = |id: &RequestId| self.flying.iter().any(|ending| ending.contains(id));
        let overdue: Vec<_> = self.ledger.entries.keys().copied().filter(|id| self.ends(*id) && !flying(id)).collect();
        if !overdue.is_empty() {
            self.complete(&Report { finished: &overdue, ..Report::default() });
        }
    }

    /// Asking changes nothing, and what is answered is so.
    fn ask(&mut self, count: usize) {
        let (core, ledger) = (&mut self.core, &self.ledger);
        assert_eq!(core.explain(self.next_id + 7), None);
        let first: Vec<_> = core.first_in_queue(count).collect();
        for &(id, shared) in &first {
            assert!(!ledger.entries[&id].resident && ledger.entries[&id].shared == shared);
        }
        let resuming = &ledger.resuming[..count.min(ledger.resuming.len())];
        assert!(first.iter().map(|(id, _)| id).zip(resuming).all(|(id, other)| id == other), "the preempted first");
        let waiting = ledger.line.len() + ledger.resuming.len();
        assert!(first.len() <= waiting && (count == 0 || waiting == 0 || !first.is_empty()));
        assert!(waiting > 0 || self.config.ttft_target.is_some() || core.predicted_wait_ns() == 0, "nobody waits");
        for forecast in core.kv_forecast() {
            assert!(self.config.policy == PolicyName::Adaptive, "{forecast:?}");
        }
        if let Some(learned) = core.learned() {
            let mut heir = Scheduler::new(&self.config).unwrap();
            heir.restore(&learned).unwrap();
        }
        let _ = core.learned_law();
    }

    fn restore(&mut self) {
        let learned = self.core.learned().unwrap_or_default();
        let (idle, learns) = (self.ledger.entries.is_empty(), self.config.policy == PolicyName::Adaptive);
        assert_eq!(self.core.restore(&learned).is_ok(), idle && learns);
        assert!(self.core.restore(&serde_json::json!({"lengths": [1, null], "traffic": 3})).is_err());
    }

    /// Runs to the end with a host that behaves: nobody is left.
    pub(crate) fn finish(&mut self) {
        self.lies = false;
        self.pause(false);
        self.set_capacity(self.config.kv_blocks);
        self.core.drain();
        let honest = Lies::none();
        while !self.flying.is_empty() {
            self.report(&honest);
        }
        let free_blocks = u32::try_from(i64::from(self.config.kv_blocks) - self.ledger.held()).unwrap_or(0);
        self.complete(&Report { free_blocks: Some(free_blocks), ..Report::default() });
        let tokens: u64 = self.ledger.entries.values().map(|entry| u64::from(entry.output)).sum();
        let mut patience = 200 + 40 * (tokens + self.queued().1);
        while !self.ledger.entries.is_empty() {
            assert!(patience > 0, "livelock: {:?} of {:?}", self.core.last_plan(), self.ledger);
            patience -= 1;
            self.now_ns += 7;
            self.plan();
            let (plan, free) = (self.core.last_plan(), self.core.view().pool().free());
            let moves = !plan.is_empty() || !plan.preempted().is_empty() || !plan.refused().is_empty();
            assert!(moves, "stalled: {plan:?}");
            // A host that evicts by itself takes the last admitted, as the core would.
            let last = self.ledger.residents.last().copied().filter(|_| self.config.host_preempts && free < 0);
            let mut finished = self.flying.pop_front().unwrap();
            finished.retain(|id| Some(*id) != last);
            let preempted: Vec<_> = last.into_iter().collect();
            self.complete(&Report { finished: &finished, preempted: &preempted, ..Report::default() });
            self.end_what_is_overdue();
            self.agree();
        }
        assert_eq!(self.core.view().pool().used(), 0);
        assert!(self.core.view().is_empty());
    }

    /// The core's state is what the ledger says.
    pub(crate) fn agree(&self) {
        let (view, ledger, core) = (self.core.view(), &self.ledger, &self.core);
        let named = |slots: Vec<u32>| slots.into_iter().map(|slot| view.request(slot).id).collect::<Vec<_>>();
        assert_eq!(view.len(), ledger.entries.len(), "requests present");
        assert_eq!(named(view.iter_residents().collect()), ledger.residents, "residents, in the order of admission");
        assert_eq!(named(view.iter_resuming().collect()), ledger.resuming, "the preempted, the last first");
        let ranked =
            matches!(self.config.policy, PolicyName::Adaptive) || self.config.order != wait_core::config::Order::Fcfs;
        let mut all = Vec::new();
        for queue in 0..view.queues() {
            let line = named(view.iter_waiting(queue).collect());
            let of_type = |id: &&RequestId| view.queues() == 1 || usize::from(ledger.entries[id].type_id) == queue;
            if !ranked {
                assert_eq!(line, ledger.line.iter().filter(of_type).copied().collect::<Vec<_>>(), "queue {queue}");
            }
            all.extend(line);
        }
        let mut line = ledger.line.clone();
        line.sort_unstable();
        all.sort_unstable();
        assert_eq!(all, line, "the others that wait");
        let (mut decoding, mut decoding_kv) = (0, 0);
        for (&id, entry) in &ledger.entries {
            let slot = view.slot(id).unwrap();
            let phase = view.request(slot).phase;
            let expected = (entry.kv, entry.blocks, entry.stage(), entry.target());
            let found = (view.kv(slot), view.blocks(slot), view.stage(slot), view.request(slot).prefill_target());
            assert_eq!(found, expected, "KV, blocks, stage and prefill of request {id}");
            let stands = match phase {
                Phase::Waiting => !entry.resident,
                Phase::Prefilling => entry.resident && !entry.emits(),
                Phase::Decoding | Phase::Parked => entry.emits(),
            };
            assert!(stands && (phase == Phase::Parked) == entry.parked, "request {id} is {phase:?}: {entry:?}");
            decoding += u32::from(phase == Phase::Decoding);
            decoding_kv += if phase == Phase::Decoding { u64::from(entry.kv) } else { 0 };
        }
        let lanes = view.lanes().iter().fold((0, 0), |(len, kv), lane| (len + lane.len(), kv + lane.kv()));
        assert_eq!(lanes, (decoding, decoding_kv), "members and KV of all lanes");
        let (queued, tokens) = self.queued();
        assert_eq!((u64::from(view.waiting_total()), view.waiting_tokens()), (queued, tokens), "the queues");
        assert_eq!(view.pool().capacity(), ledger.capacity);
        if ledger.exact {
            assert_eq!(view.pool().used(), ledger.held(), "blocks in use");
        }
        let stats = wait_core::Stats { holds: core.stats().holds, ..ledger.stats };
        assert_eq!(*core.stats(), stats);
    }
}
