//! A scheduler, its host, and what distinguishes two states.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Value, json};
use wait_core::config::PolicyName;
use wait_core::{Config, LengthHint, Origin, Phase, Report, Request, RequestId, Scheduler};

/// Prompt and output of each request; the last is the only one whose output is not known beforehand.
const REQUESTS: [(u32, u32); 4] = [(2, 2), (1, 3), (3, 1), (2, 3)];

pub(crate) struct Cache {
    pub(crate) blocks: u32,
    pub(crate) block_size: u32,
}

/// One call. Requests are named by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Arrive(RequestId),
    /// Another iteration; a host is at most two ahead of what it has reported.
    Plan,
    /// The oldest iteration went as planned.
    Completed,
    /// It has ended before its length; all else went as planned.
    FinishedEarly(RequestId),
    /// The host preempted it instead of running it.
    Preempted(RequestId),
    /// The host did not admit it.
    Refused(RequestId),
    /// The host has computed a token less than was planned.
    Behind(RequestId),
    Abort(RequestId),
    Capacity(u32),
}

#[derive(Clone)]
pub(crate) struct State {
    core: Scheduler,
    blocks: u32,
    remembers_ticks: bool,
    prompts_alone: bool,
    arrived: Vec<RequestId>,
    /// Output lengths of those present.
    present: BTreeMap<RequestId, u32>,
    /// Which requests end in each iteration that was planned and not reported, oldest first.
    in_flight: Vec<Vec<RequestId>>,
}

impl State {
    pub(crate) fn new(settings: &Value, cache: &Cache) -> Self {
        let mut map = settings.as_object().unwrap().clone();
        let sizes =
            json!({"kv_blocks": cache.blocks, "block_size": cache.block_size, "max_num_seqs": 2, "token_budget": 3});
        map.extend(sizes.as_object().unwrap().clone());
        let config = Config::from_map(map).unwrap();
        let remembers_ticks =
            matches!(config.policy, PolicyName::NestedWait | PolicyName::Clairvoyant | PolicyName::Adaptive);
        let prompts_alone = config.policy == PolicyName::PrefillFirst;
        let (core, blocks) = (Scheduler::new(&config).unwrap(), cache.blocks);
        let (arrived, present, in_flight) = (Vec::new(), BTreeMap::new(), Vec::new());
        Self { core, blocks, remembers_ticks, prompts_alone, arrived, present, in_flight }
    }

    /// What can happen next.
    pub(crate) fn calls(&self) -> Vec<Call> {
        let mut calls = Vec::new();
        let all = 0..REQUESTS.len() as RequestId;
        calls.extend(all.filter(|id| !self.arrived.contains(id)).map(Call::Arrive));
        if self.in_flight.len() < 2 {
            calls.push(Call::Plan);
        }
        let view = self.core.view();
        for &id in self.present.keys() {
            calls.push(Call::Abort(id));
            let slot = view.slot(id).unwrap();
            if !self.in_flight.is_empty() && view.request(slot).phase != Phase::Waiting {
                calls.extend([Call::FinishedEarly(id), Call::Preempted(id), Call::Refused(id)]);
                if view.kv(slot) > 0 {
                    calls.push(Call::Behind(id));
                }
            }
        }
        if !self.in_flight.is_empty() {
            calls.push(Call::Completed);
        }
        let capacity = view.pool().capacity();
        calls.push(Call::Capacity(if capacity == self.blocks { self.blocks - 2 } else { self.blocks }));
        calls
    }

    pub(crate) fn make(&mut self, call: Call, course: &[Call]) {
        match call {
            Call::Arrive(id) => self.arrive(id, course),
            Call::Plan => self.plan(course),
            Call::Completed => self.report(|_, _| ()),
            Call::FinishedEarly(id) => self.report(|ended, _| ended.push(id)),
            Call::Preempted(id) => {
                self.report(|ended, report| {
                    ended.retain(|&other| other != id);
                    report.0 = Some(id);
                });
            }
            Call::Refused(id) => {
                self.report(|ended, report| {
                    ended.retain(|&other| other != id);
                    report.1 = Some(id);
                });
            }
            Call::Behind(id) => {
                let kv = self.core.view().kv(self.core.view().slot(id).unwrap());
                self.report(|ended, report| {
                    ended.retain(|&other| other != id);
                    report.2 = Some((id, kv - 1));
                });
            }
            Call::Abort(id) => {
                assert!(self.core.abort(id), "{course:?}");
                self.forget(id);
            }
            Call::Capacity(blocks) => self.core.set_capacity(blocks).unwrap(),
        }
        assert_eq!(self.core.view().len(), self.present.len(), "requests present after {course:?}");
    }

    fn arrive(&mut self, id: RequestId, course: &[Call]) {
        let (prompt, tokens) = REQUESTS[id as usize];
        let output = if id == 3 { LengthHint::Unknown } else { LengthHint::Exact(tokens) };
        let request = Request { id, prompt, output, max_tokens: Some(tokens), ..Request::default() };
        self.arrived.push(id);
        match self.core.add(&request) {
            Ok(()) => _ = self.present.insert(id, tokens.min(self.core.view().max_model_len() - prompt)),
            Err(error) => assert!(matches!(error, wait_core::Error::TooLarge { .. }), "{error} after {course:?}"),
        }
    }

    fn forget(&mut self, id: RequestId) {
        self.present.remove(&id);
        self.in_flight.iter_mut().for_each(|ending| ending.retain(|&other| other != id));
    }

    fn plan(&mut self, course: &[Call]) {
        self.core.plan(0);
        let (plan, view) = (self.core.last_plan(), self.core.view());
        assert!(view.pool().used() <= i64::from(view.pool().capacity()), "too much memory after {course:?}");
        // Vidur's prefill-first admits a prompt alone that exceeds the budget.
        let alone = self.prompts_alone && plan.chunks().len() == 1 && plan.decodes() == 0;
        assert!(view.residents() <= 2 && (plan.tokens() <= 3 || alone), "too many seats or tokens after {course:?}");
        let admits = plan.chunks().iter().any(|chunk| chunk.origin != Origin::Resident);
        assert!(!admits || plan.preempted().is_empty(), "one is preempted for another after {course:?}");
        let held: u32 = view.iter_residents().map(|slot| view.blocks(slot)).sum();
        assert_eq!(view.pool().used(), i64::from(held), "blocks in use after {course:?}");
        let ended = |&id: &RequestId| {
            let slot = view.slot(id).unwrap();
            view.request(slot).phase == Phase::Decoding && view.stage(slot) >= self.present[&id]
        };
        self.in_flight.push(self.present.keys().copied().filter(ended).collect());
    }

    /// Reports the oldest iteration: what ended, and (preempted, refused, progress) as `change` has it.
    fn report(&mut self, change: impl FnOnce(&mut Vec<RequestId>, &mut Deviation)) {
        let mut ended = self.in_flight.remove(0);
        let mut deviation = (None, None, None);
        change(&mut ended, &mut deviation);
        ended.sort_unstable();
        ended.dedup();
        let (preempted, refused, progress) = deviation;
        let preempted: Vec<_> = preempted.into_iter().collect();
        let refused: Vec<_> = refused.into_iter().collect();
        let progress: Vec<_> = progress.into_iter().collect();
        let (finished, preempted, refused) = (&ended[..], &preempted[..], &refused[..]);
        self.core.complete(&Report { finished, preempted, refused, progress: &progress, ..Report::default() }).unwrap();
        for &id in &ended {
            self.forget(id);
        }
    }

    /// An honest host continues from here: every request ends, and nothing stays in use.
    pub(crate) fn finishes(&self, course: &[Call]) {
        let mut last = self.clone();
        last.core.set_capacity(self.blocks).unwrap();
        last.core.drain();
        while !last.in_flight.is_empty() {
            last.report(|_, _| ());
        }
        for patience in (0..80).rev() {
            if last.present.is_empty() {
                break;
            }
            assert!(patience > 0, "never done after {course:?}: {:?}", last.core.last_plan());
            last.plan(course);
            last.report(|_, _| ());
        }
        assert_eq!((last.core.view().pool().used(), last.core.view().len()), (0, 0), "left over after {course:?}");
        assert_eq!(last.core.stats().corrected_plans, 0);
    }

    /// What the future depends on: where each request is and with what, the queues, the lanes, the capacity, what the
    /// host has yet to report, what the last plan did with each request (a report may revert that), and the state of
    /// the policy: its `Debug` text. That names requests by slot, so slots are in the key, and may name iterations by
    /// tick, so ticks are, for policies that do.
    ///
    /// Left out are the counters and the estimate of waits, which no call here reads; the clock, which does not
    /// advance; the age of admissions, which matters after 16 plans; and the order in which vacant slots are reused: a
    /// slot is only a name.
    pub(crate) fn key(&self) -> u64 {
        let view = self.core.view();
        let mut hasher = DefaultHasher::new();
        (&self.arrived.len(), &self.present, &self.in_flight, view.pool().capacity(), view.pool().used())
            .hash(&mut hasher);
        let mut arrived = self.arrived.clone();
        arrived.sort_unstable();
        arrived.hash(&mut hasher);
        for slot in view.iter_residents().chain((0..=view.queues()).flat_map(|queue| view.iter_waiting(queue))) {
            let request = view.request(slot);
            (slot, request.id, format!("{:?}", request.phase), request.lane, request.kept).hash(&mut hasher);
            (view.kv(slot), view.blocks(slot), request.preemptions > 0).hash(&mut hasher);
        }
        let parked: Vec<_> = view.parked().iter().map(|&slot| view.request(slot).id).collect();
        parked.hash(&mut hasher);
        let plan = self.core.last_plan();
        for chunk in plan.chunks() {
            (chunk.id, chunk.start, chunk.last).hash(&mut hasher);
        }
        (0..view.lanes().len()).for_each(|lane| plan.runs(lane).hash(&mut hasher));
        if self.remembers_ticks {
            view.lanes().iter().for_each(|lane| lane.tick().hash(&mut hasher));
        }
        format!("{:?}", self.core.policy()).hash(&mut hasher);
        hasher.finish()
    }
}

/// What was preempted, what was refused, and what one has computed.
type Deviation = (Option<RequestId>, Option<RequestId>, Option<(RequestId, u32)>);
