//! A host that keeps its own books, and lies where the test asks for it.

use std::collections::VecDeque;

use wait_core::config::PolicyName;
use wait_core::{Config, Error, Hit, LengthHint, Report, Request, RequestId, Scheduler, StepTime};

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
    /// Most that the cache has had.
    most_blocks: u32,
    /// Blocks in all groups that a block of tokens takes.
    blocks_each: u32,
    /// Which requests end in each iteration that is planned and not completed.
    in_flight: VecDeque<Vec<RequestId>>,
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
            most_blocks: config.kv_blocks,
            config,
            lies: world.lies,
            blocks_each: world.blocks_each(),
            in_flight: VecDeque::new(),
            next_id: 0,
            now_ns: 0,
            paused: false,
        }
    }

    pub(crate) fn run(&mut self, op: &Op) {
        self.now_ns += 7;
        match op {
            Op::Add(addition) => self.add(addition),
            Op::Plan { after_ns } if self.in_flight.len() < AHEAD => {
                self.now_ns += after_ns;
                self.plan();
            }
            Op::Plan { .. } => {}
            Op::Report(lies) => self.report(lies),
            Op::Abort(at) => self.abort(self.named(*at)),
            Op::AbortAll => self.ledger.entries.clone().into_keys().for_each(|id| self.abort(id)),
            Op::Capacity(blocks) => self.set_capacity(blocks.saturating_mul(self.blocks_each)),
            Op::Paused(paused) => self.pause(*paused),
            Op::Drain => self.core.drain(),
            Op::Ask(count) => self.ask(*count),
            Op::Restore => self.restore(),
        }
        self.agree();
    }

    /// A request by its place among those present; occasionally one that the core does not know.
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
            Ok(()) => {
                self.ledger.pool.capacity = blocks;
                self.most_blocks = self.most_blocks.max(blocks);
                self.ledger.model_len = self.ledger.model_len.max(self.core.view().max_model_len());
            }
            Err(error) => assert!(!self.ledger.kv.holds_one(blocks) || blocks > 1 << 20, "{error}"),
        }
    }

    fn request(&self, id: RequestId, addition: &Addition) -> Request {
        let &Addition { prompt, output, hint, priority, tenant, type_id, hit, receives, max_wait_ns, behind_ns } =
            addition;
        let lengths = match hint {
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
        // A host that shares nothing reports no free blocks, or no hits: the core would not believe them.
        let hit = if self.lies { hit } else { Hit { shared: 0, ..hit } };
        let (hit, block_hashes) = if self.config.prefix_caching {
            // Two families of prompts, and blocks of its own behind a common prefix.
            let common = u64::from(tenant) + 2;
            let hash = |block| if block < common { id % 2 * 100 + block } else { 1000 * (id + 1) + block };
            (Hit::default(), (0..u64::from((prompt % 64 + output) / self.config.block_size)).map(hash).collect())
        } else {
            (hit, Vec::new())
        };
        let (output, max_tokens) = lengths;
        // Models with an encoder keep one group of full attention beside it, and have no drafts and no prefix cache.
        let plain = self.config.kv_groups.is_empty() && self.config.num_lookahead_tokens == 0;
        let encodes = plain && !self.config.prefix_caching && hit == Hit::default() && !receives && id % 5 == 4;
        let encoder_blocks = if encodes { addition.output % 4 } else { 0 };
        let labels = Request { type_id, priority, tenant, encoder_blocks, ..Request::default() };
        Request { id, prompt, max_tokens, output, hit, receives, block_hashes, arrival_ns, max_wait_ns, ..labels }
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
                let room = self.room(&request);
                let most = request.max_tokens.unwrap_or(room).min(room);
                self.ledger.add(
                    id,
                    Entry {
                        prompt: request.prompt,
                        longest: request.prompt + most,
                        output: addition.output.min(most),
                        type_id: self.core.view().request(self.core.view().slot(id).unwrap()).type_id,
                        priority: if self.config.policy == PolicyName::Vllm { request.priority } else { 0 },
                        hit: request.hit,
                        receives: request.receives,
                        encoder_blocks: request.encoder_blocks,
                        hashes: request.block_hashes.clone(),
                        ..Entry::default()
                    },
                );
                assert_eq!(self.core.add(&request), Err(Error::DuplicateId { id }));
            }
            Err(error) => self.may_refuse(&request, &error),
        }
    }

    fn abort(&mut self, id: RequestId) {
        assert_eq!(self.core.abort(id), self.ledger.abort(id));
        assert!(!self.core.abort(id) && !self.ledger.abort(id), "it is gone");
    }

    pub(crate) fn plan(&mut self) {
        let before = self.core.clone();
        // A copy, which is queried first, plans the same.
        let mut twin = self.core.clone();
        let _ = (twin.kv_forecast(), twin.predicted_wait_ns(), twin.paused_ids());
        self.core.plan(self.now_ns);
        twin.plan(self.now_ns);
        assert_eq!(format!("{:?}", self.core.last_plan()), format!("{:?}", twin.last_plan()), "determinism");
        let drifted = self.ledger.pool.used(self.ledger.held()) == 0;
        let (plan, standing) = (self.core.last_plan(), self.core.paused_ids());
        let parked: Vec<_> = plan.parked().iter().map(|&slot| before.view().request(slot).id).collect();
        let shape = self.ledger.assume(plan, &standing, &parked);
        assert_eq!(*plan.shape(), shape, "what is computed");
        assert_eq!((u64::from(plan.decodes()), u64::from(plan.tokens())), (shape.decodes, shape.tokens()));
        let (pool, held) = (&self.ledger.pool, self.ledger.held());
        if !self.config.prefix_caching && !drifted && held > 0 && held >= pool.drift {
            assert_eq!(plan.free(), i64::from(pool.capacity) - pool.used(held), "blocks that the plan says it leaves");
        }
        self.check(before.view());
        let ended = |id: &&RequestId| self.ledger.entries[id].emits() && self.ends(**id);
        self.in_flight.push_back(self.ledger.residents.iter().filter(ended).copied().collect());
    }

    fn ends(&self, id: RequestId) -> bool {
        let entry = &self.ledger.entries[&id];
        entry.stage() >= entry.output
    }

    /// Completes the oldest iteration, or makes a false report in between.
    fn report(&mut self, lies: &Lies) {
        let mut ended = self.in_flight.pop_front().unwrap_or_default();
        if !self.lies {
            ended.retain(|id| self.ledger.entries.contains_key(id));
        }
        let name = |list: &[usize]| list.iter().map(|&at| self.named(at)).collect::<Vec<_>>();
        let mut finished = ended.clone();
        let (mut preempted, mut refused, mut progress, mut hits) = (vec![], vec![], vec![], vec![]);
        let mut received = name(&lies.received);
        let mut receiving = vec![];
        let mut free_blocks = None;
        if self.lies {
            (preempted, refused) = (name(&lies.preempted), name(&lies.refused));
            let placed = |list: &[(usize, u32)]| list.iter().map(|&(at, kv)| (self.named(at), kv)).collect();
            progress = placed(&lies.progress);
            if !self.config.prefix_caching {
                receiving = placed(&lies.receiving);
            }
            hits = lies
                .hits
                .iter()
                .filter(|_| !self.config.prefix_caching)
                .map(|&(at, hit)| (self.named(at), hit))
                .collect();
            free_blocks = lies.free.filter(|_| !self.config.prefix_caching);
            finished.extend(name(&lies.finished));
            if lies.contradicts {
                finished.extend(preempted.iter().chain(&refused).next());
            } else {
                finished.retain(|id| !refused.contains(id) && !preempted.contains(id));
            }
        } else {
            received.retain(|id| self.ledger.entries.get(id).is_some_and(Entry::receiving));
            if lies.free.is_some() && !self.config.prefix_caching {
                free_blocks = u32::try_from(i64::from(self.ledger.pool.capacity) - self.ledger.held()).ok();
            }
        }
        let step = lies.step.map(|(ns, iteration)| StepTime { ns, iteration });
        let (receiving, received, hits, progress) = (&receiving[..], &received[..], &hits[..], &progress[..]);
        let (preempted, refused, finished) = (&preempted[..], &refused[..], &finished[..]);
        let report = Report { finished, preempted, refused, progress, receiving, received, hits, free_blocks, step };
        if !self.complete(&report) {
            self.agree();
            self.complete(&Report { finished: &ended, ..Report::default() });
        }
        self.end_what_is_overdue();
    }

    /// Reports; false if the report is refused, which must happen if and only if it contradicts itself.
    fn complete(&mut self, report: &Report) -> bool {
        let answer = self.core.complete(report);
        assert_eq!(answer.is_err(), self.ledger.contradicts(report), "{answer:?} to {report:?}");
        if answer.is_ok() {
            self.ledger.take_in(report);
            self.follow_lanes(report);
            self.ledger.adopt(report);
        }
        answer.is_ok()
    }

    /// Which lane a request is in is the policy's choice: one that changes its lane keeps no more blocks than it needs.
    fn follow_lanes(&mut self, report: &Report) {
        let view = self.core.view();
        for &(id, _) in report.progress.iter().filter(|_| view.lanes().len() > 1) {
            let kv = &self.ledger.kv;
            let entry = self.ledger.entries.get_mut(&id).filter(|entry| entry.emits());
            if let Some((entry, slot)) = entry.zip(view.slot(id)) {
                let needs = kv.after(entry.kv.saturating_sub(1), entry.kv);
                if view.blocks(slot) == needs {
                    entry.blocks = needs;
                }
            }
        }
    }

    /// A host ends whatever has reached its length, even if no iteration in flight would.
    fn end_what_is_overdue(&mut self) {
        let in_flight = |id: &RequestId| self.in_flight.iter().any(|ending| ending.contains(id));
        let overdue: Vec<_> =
            self.ledger.entries.keys().copied().filter(|id| self.ends(*id) && !in_flight(id)).collect();
        if !overdue.is_empty() {
            self.complete(&Report { finished: &overdue, ..Report::default() });
        }
    }

    /// Queries change nothing, and their answers are right.
    fn ask(&mut self, count: usize) {
        let (core, ledger) = (&mut self.core, &self.ledger);
        assert_eq!(core.explain(self.next_id + 7), None);
        let first: Vec<_> = core.first_in_queue(count).collect();
        for &(id, hit) in &first {
            assert!(!ledger.entries[&id].resident && (ledger.entries[&id].hit == hit || self.config.prefix_caching));
        }
        let resuming = &ledger.resuming[..count.min(ledger.resuming.len())];
        assert!(first.iter().map(|(id, _)| id).zip(resuming).all(|(id, other)| id == other), "the preempted first");
        let waiting = ledger.queue.len() + ledger.resuming.len();
        assert!(first.len() <= waiting && (count == 0 || waiting == 0 || !first.is_empty()));
        assert!(waiting > 0 || self.config.ttft_target.is_some() || core.predicted_wait_ns() == 0, "no request waits");
        for forecast in core.kv_forecast() {
            assert!(self.config.policy == PolicyName::Adaptive, "{forecast:?}");
        }
        if let Some(learned) = core.learned() {
            let mut successor = Scheduler::new(&self.config).unwrap();
            // With a cache as large as the one from which it learned.
            successor.set_capacity(self.most_blocks).unwrap();
            successor.restore(&learned).unwrap();
        }
        let _ = core.learned_law();
    }

    fn restore(&mut self) {
        let learned = self.core.learned().unwrap_or_default();
        let (idle, learns) = (self.ledger.entries.is_empty(), self.config.policy == PolicyName::Adaptive);
        let answer = self.core.restore(&learned);
        let shrunken = self.ledger.pool.capacity < self.most_blocks;
        assert!(answer.is_ok() == (idle && learns) || shrunken && answer.is_err(), "{answer:?}");
        assert!(self.core.restore(&serde_json::json!({"lengths": [1, null], "traffic": 3})).is_err());
    }

    /// Runs to the end with an honest host: no request is left.
    pub(crate) fn finish(&mut self) {
        self.lies = false;
        self.pause(false);
        // Requests accepted while the cache was larger fit only then.
        self.set_capacity(self.most_blocks);
        self.core.drain();
        let honest = Lies::none();
        while !self.in_flight.is_empty() {
            self.report(&honest);
        }
        let free_blocks = u32::try_from(i64::from(self.most_blocks) - self.ledger.held()).unwrap_or(0);
        let free_blocks = Some(free_blocks).filter(|_| !self.config.prefix_caching);
        self.complete(&Report { free_blocks, ..Report::default() });
        let tokens: u64 = self.ledger.entries.values().map(|entry| u64::from(entry.output)).sum();
        let mut patience = 200 + 40 * (tokens + self.queued().1);
        while !self.ledger.entries.is_empty() {
            assert!(patience > 0, "livelock: {:?} of {:?}", self.core.last_plan(), self.ledger);
            patience -= 1;
            self.now_ns += 7;
            self.plan();
            let (plan, free) = (self.core.last_plan(), self.core.view().pool().free());
            let moves = !plan.chunks().is_empty()
                || !plan.is_empty()
                || !plan.preempted().is_empty()
                || !plan.refused().is_empty();
            let arrives = self.ledger.entries.values().any(Entry::receiving);
            assert!(moves || arrives, "stalled: {plan:?}");
            // A host that evicts by itself takes the last admitted, as the core would.
            let last = self.ledger.residents.last().copied().filter(|_| self.config.host_preempts && free < 0);
            let mut finished = self.in_flight.pop_front().unwrap();
            finished.retain(|id| Some(*id) != last);
            let preempted: Vec<_> = last.into_iter().collect();
            let receiving = self.ledger.entries.iter().filter(|(_, entry)| entry.receiving());
            let received: Vec<_> = receiving.map(|(&id, _)| id).filter(|id| Some(*id) != last).collect();
            let (finished, preempted, received) = (&finished[..], &preempted[..], &received[..]);
            self.complete(&Report { finished, preempted, received, ..Report::default() });
            self.end_what_is_overdue();
            self.agree();
        }
        assert_eq!(self.core.view().pool().used(), 0);
        assert!(self.core.view().is_empty());
    }
}
