//! The simulated engine: a virtual clock around the scheduling core.
//!
//! The loop is that of a real engine: take in arrivals, ask the core for a plan, let the iteration-time law say how
//! long it takes, report what finished. The core never learns that the engine is simulated.

use std::ops::ControlFlow;

use wait_core::policy::Policy;
use wait_core::{Error, LengthHint, Report as Completed, Request, Scheduler, StepTime};

use crate::clients::Clients;
use crate::ends::Ends;
use crate::error::SimError;
use crate::record::{Recorder, Run};
use crate::requests::{Arrival, LATEST_NS, Requests};
use crate::rng::Stream;
use crate::setup::{Lengths, Setup};
use crate::speculation::Drafts;
use crate::transfer::Transfers;

/// How often the callback is called, in iterations: about every ten milliseconds. Each call takes Python's lock, for
/// which a busy thread beside this one may make it wait for five.
const CALLBACK_EVERY: u64 = 1 << 15;

/// Runs all requests to their end. `callback(completed)` is called now and then and may stop the run.
///
/// # Errors
/// [`SimError`] for refused settings or requests, an interruption, or a policy that stalls.
pub fn run<'a>(
    setup: &Setup,
    requests: impl Into<Requests<'a>>,
    mut callback: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Run, SimError> {
    let offered = requests.into();
    if !setup.hints.is_empty() && setup.hints.len() != offered.arrivals.len() {
        let rule = format!("{} arrivals", offered.arrivals.len());
        return Err(Error::invalid("hints", setup.hints.len(), rule).into());
    }
    if setup.max_concurrency == Some(0) {
        return Err(Error::invalid("max_concurrency", 0, "must be at least 1, or nothing is ever sent").into());
    }
    with_engine(setup, offered, |mut engine| {
        loop {
            engine.send_requests()?;
            if engine.scheduler.stats().iterations % CALLBACK_EVERY == 0
                && callback(engine.recorder.completed()).is_break()
            {
                let completed = engine.recorder.completed();
                return Err(SimError::Interrupted { completed, offered: offered.arrivals.len() });
            }
            if !engine.step()? {
                let _ = callback(engine.recorder.completed());
                return Ok(engine.finish(offered.arrivals));
            }
        }
    })
}

/// As `run`, up to the end of the first iteration that ends at `horizon_ns` or later. Requests reach beyond that.
pub(crate) fn run_until(setup: &Setup, requests: Requests, horizon_ns: u64) -> Result<Run, SimError> {
    with_engine(setup, requests, |mut engine| {
        while engine.now_ns < horizon_ns {
            engine.send_requests()?;
            engine.step()?;
        }
        Ok(engine.finish(requests.arrivals))
    })
}

/// Calls `work` with an engine to which the requests are offered, outputs cut at `max_tokens`.
pub(crate) fn with_engine<T>(
    setup: &Setup,
    offered: Requests,
    work: impl FnOnce(Engine) -> Result<T, SimError>,
) -> Result<T, SimError> {
    offered.check()?;
    if setup.max_tokens == Some(0) {
        return Err(Error::invalid("max_tokens", 0, "must be at least 1 (leave it out for the model's limit)").into());
    }
    let arrivals = &offered.ended(setup.max_tokens);
    work(Engine::new(setup, Requests { arrivals, ..offered })?)
}

pub(crate) struct Engine<'a> {
    setup: &'a Setup,
    requests: Requests<'a>,
    clients: Clients<'a>,
    now_ns: u64,
    pub(crate) scheduler: Scheduler,
    ends: Ends,
    transfers: Transfers,
    drafts: Drafts<'a>,
    finished: Vec<u64>,
    noise: Stream,
    /// The policy has thresholds, which hold requests for want of company.
    gated: bool,
    pub(crate) recorder: Recorder<'a>,
}

impl<'a> Engine<'a> {
    fn new(setup: &'a Setup, requests: Requests<'a>) -> Result<Self, SimError> {
        if !(0.0..=1.0).contains(&setup.steps.jitter) {
            return Err(Error::invalid("step_jitter", setup.steps.jitter, "must be between 0 and 1").into());
        }
        let mut scheduler = Scheduler::new(&setup.config)?;
        if let Some(learned) = &setup.learned {
            scheduler.restore(learned)?;
        }
        let lanes = scheduler.view().lanes().len();
        let arrivals = requests.arrivals;
        Ok(Self {
            setup,
            requests,
            clients: Clients::new(requests, setup.max_concurrency),
            now_ns: arrivals.first().map_or(0, |arrival| arrival.at_ns),
            ends: Ends::new(arrivals.len(), lanes),
            transfers: Transfers::new(setup.transfer)?,
            drafts: Drafts::new(setup)?,
            finished: Vec::new(),
            noise: Stream::new(setup.steps.seed, "step jitter"),
            gated: !scheduler.policy().thresholds().is_empty(),
            recorder: Recorder::new(arrivals, &scheduler, setup.config.kv_blocks),
            scheduler,
        })
    }

    /// What was recorded of the requests that were `offered`.
    fn finish(self, offered: &[Arrival]) -> Run {
        self.recorder.finish(&self.scheduler, offered)
    }

    /// Iterations of a request: its output tokens, and in the paper's convention its prefill as well.
    pub(crate) fn iterations(&self, id: u64) -> u32 {
        self.setup.config.convention.last_stage(self.requests.arrivals[id as usize].output).saturating_add(1)
    }

    /// Hands the scheduler what has been sent by now.
    pub(crate) fn send_requests(&mut self) -> Result<(), SimError> {
        while let Some((at, sent_ns)) = self.clients.send(self.now_ns, self.scheduler.view().len()) {
            let id = at as u64;
            self.recorder.send(id, sent_ns, self.scheduler.predicted_wait_ns());
            // What can never fit, or finds the queue full, is refused at the door and counted as failed.
            if !self.fits(id) {
                self.reject(id);
            } else if let Err(error) = self.scheduler.add(&self.request(at, sent_ns)) {
                match error {
                    Error::TooLarge { .. } | Error::QueueFull { .. } | Error::DeadlineUnreachable { .. } => {
                        self.reject(id);
                    }
                    error => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// What the host declares of a request.
    fn request(&self, at: usize, arrival_ns: u64) -> Request {
        let arrival = self.requests.arrivals[at];
        let hint = self.setup.hints.get(at).copied().unwrap_or_default();
        let (hit, receives) = self.transfers.of(arrival.prompt);
        let output = match self.setup.lengths {
            Lengths::Known => LengthHint::Exact(self.iterations(at as u64)),
            Lengths::Hidden => hint.output,
        };
        Request {
            id: at as u64,
            prompt: arrival.prompt,
            max_tokens: self.setup.max_tokens,
            output,
            type_id: if self.setup.typed { Some(arrival.label) } else { hint.label },
            priority: hint.priority.into(),
            tenant: hint.tenant,
            hit,
            block_hashes: self.block_hashes(at),
            receives,
            arrival_ns,
            ..Request::default()
        }
    }

    /// Hashes of the blocks of a request, where the core keeps a prefix cache.
    fn block_hashes(&self, at: usize) -> Vec<u64> {
        let mut hashes = Vec::new();
        if self.setup.config.prefix_caching {
            self.requests.block_hashes(at, self.setup.config.block_size, &mut hashes);
        }
        hashes
    }

    /// A refused request fails, and with it all that would have followed.
    fn reject(&mut self, id: u64) {
        let lost = self.clients.refused(id);
        self.recorder.reject(1 + lost);
    }

    /// A hidden output that outgrows the cache could never end; a real engine would cut it at its length limit.
    fn fits(&self, id: u64) -> bool {
        let (view, prompt) = (self.scheduler.view(), self.requests.arrivals[id as usize].prompt);
        let tokens = u64::from(prompt) + u64::from(self.iterations(id));
        // At its end it still takes the slots of its drafts.
        let slots = tokens as u32 + view.layout().lookahead();
        let drafts_fit = || !self.drafts.any() || view.layout().demand(slots) <= view.pool().capacity();
        tokens <= u64::from(view.max_model_len()) && drafts_fit()
    }

    /// One iteration, or a jump to the next event. False when all is done.
    pub(crate) fn step(&mut self) -> Result<bool, SimError> {
        let start_ns = self.now_ns;
        if self.transfers.next_ns().is_some_and(|ready_ns| ready_ns <= start_ns) {
            let received = self.transfers.received(&self.ends, start_ns);
            self.scheduler.complete(&Completed { received, ..Completed::default() })?;
        }
        self.scheduler.plan(start_ns);
        self.now_ns = self.ends_at(start_ns)?;
        let plan = self.scheduler.last_plan();
        for &(_, id) in plan.preempted() {
            self.ends.leaves(id);
        }
        // Requests are parked even by a plan that computes nothing.
        for &slot in plan.parked() {
            self.ends.leaves(self.scheduler.view().request(slot).id);
        }
        // An eviction frees memory, so the plan after one may well not be empty; nor may that after an admission of a
        // request whose KV is on the way.
        let evicts = !plan.preempted().is_empty();
        let idle = plan.is_empty() && plan.chunks().is_empty() && !evicts;
        self.recorder.parked(&self.scheduler);
        for at in 0..self.scheduler.last_plan().refused().len() {
            self.reject(self.scheduler.last_plan().refused()[at].id);
        }
        if idle {
            return self.idle();
        }
        if evicts && self.gated && self.clients.next_ns(start_ns).is_none() {
            // Paused requests that hold the memory others need could wait for company for ever.
            self.drain();
        }
        self.transfers.follow(&self.scheduler, &self.ends, start_ns);
        self.recorder.iteration(&self.scheduler, start_ns, self.now_ns);
        self.finished.clear();
        self.follow_joins();
        if self.drafts.any() {
            self.verify_drafts();
        } else {
            self.ends.collect(self.scheduler.view(), &mut self.finished);
        }
        self.clients.finished(&self.finished, self.now_ns);
        self.recorder.finish_requests(&self.finished, self.now_ns);
        let ns = self.now_ns - start_ns;
        self.scheduler.complete(&Completed {
            finished: &self.finished,
            progress: self.drafts.progress(),
            hits: self.transfers.lost(),
            step: (self.setup.steps.reported && ns > 0).then_some(StepTime { ns, iteration: None }),
            ..Completed::default()
        })?;
        self.recorder.moved(&self.scheduler, self.drafts.progress());
        Ok(true)
    }

    /// When the last plan, made at `start_ns`, has been computed.
    #[inline]
    fn ends_at(&mut self, start_ns: u64) -> Result<u64, SimError> {
        let plan = self.scheduler.last_plan();
        if plan.is_empty() {
            return Ok(start_ns);
        }
        // One call, which is inlined.
        let mut duration = self.setup.law.nanos(plan.shape());
        let jitter = self.setup.steps.jitter;
        if jitter > 0.0 {
            let factor = libm::exp(jitter * self.noise.normal() - 0.5 * jitter * jitter);
            duration = ((duration as f64 * factor) as u64).max(1);
        }
        let duration = duration.saturating_add(self.setup.overhead_ns);
        let end_ns = start_ns.saturating_add(duration);
        if end_ns > LATEST_NS {
            let rule = format!("ends after {LATEST_NS} ns of virtual time");
            return Err(Error::invalid("iteration_time", format!("{duration} ns"), rule).into());
        }
        Ok(end_ns)
    }

    /// Notes when the requests that joined a lane in this iteration will finish.
    fn follow_joins(&mut self) {
        let plan = self.scheduler.last_plan();
        let prefilled = plan.chunks().iter().filter(|chunk| chunk.last).map(|chunk| chunk.slot);
        // Those that decode in this iteration verify drafts in it.
        let unparked = plan.unparked().iter().map(|&(slot, _)| slot).filter(|_| !self.drafts.any());
        for slot in prefilled.chain(unparked) {
            let view = self.scheduler.view();
            let (id, stage) = (view.request(slot).id, view.stage(slot));
            let left = self.iterations(id) - stage;
            if left == 0 {
                self.finished.push(id);
            } else if !self.drafts.any() {
                self.ends.joins(view, slot, left);
            }
        }
    }

    /// With drafts no request ends at a step that is known before.
    fn verify_drafts(&mut self) {
        let (convention, arrivals) = (self.setup.config.convention, self.requests.arrivals);
        let iterations = |id: u64| convention.last_stage(arrivals[id as usize].output) + 1;
        let accepted = self.drafts.verify(&self.scheduler, iterations, &mut self.finished);
        let drafted = self.drafts.verified(self.scheduler.last_plan().decodes());
        self.recorder.drafts(drafted, accepted);
    }

    /// Nothing to compute: on to the next arrival, or to when the policy wants to look again.
    fn idle(&mut self) -> Result<bool, SimError> {
        let plan = self.scheduler.last_plan();
        let wake = plan.wake_ns().filter(|&ns| ns > self.now_ns && ns <= LATEST_NS);
        let events = [self.clients.next_ns(self.now_ns), self.transfers.next_ns(), wake];
        if let Some(next) = events.into_iter().flatten().min() {
            self.now_ns = next;
            return Ok(true);
        }
        let view = self.scheduler.view();
        if view.is_empty() {
            return Ok(false);
        }
        if view.draining() {
            return Err(SimError::Stalled {
                now_s: self.now_ns as f64 * 1e-9,
                waiting: view.waiting_total(),
                resident: view.residents(),
            });
        }
        self.drain();
        Ok(true)
    }

    /// No request is known to come: the gates open.
    fn drain(&mut self) {
        if !self.scheduler.view().draining() {
            self.recorder.drain(self.now_ns);
            self.scheduler.drain();
        }
    }
}

#[cfg(test)]
mod tests {
    use wait_core::Config;
    use wait_core::model::IterationTime;

    use super::*;

    #[test]
    fn a_policy_that_never_runs_anything_again_is_reported() {
        let config = Config { kv_blocks: 10, ..Config::default() };
        let law = IterationTime::linear(0.5, 0.0).expect("a law");
        let lengths = Lengths::Known;
        let setup = Setup { lengths, ..Setup::new(config, law) };
        let arrivals = [10, 20].map(|at_ns| Arrival { at_ns, prompt: 4, output: 9, label: 0 });
        let mut engine = Engine::new(&setup, (&arrivals).into()).unwrap();
        engine.send_requests().unwrap();
        assert_eq!(engine.step(), Ok(true));
        engine.send_requests().unwrap();
        // A paused engine stands for a policy that holds everything for ever.
        engine.scheduler.set_paused(true);
        assert_eq!(engine.step(), Ok(true), "the gates open first");
        let stalled = engine.step().unwrap_err();
        assert_eq!(stalled, SimError::Stalled { now_s: 0.500_000_01, waiting: 1, resident: 1 });
        assert_eq!(stalled.to_string(), "policy stalled at 0.500 s with 1 requests waiting and 1 resident");
    }
}
