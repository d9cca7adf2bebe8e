//! The simulated engine: a virtual clock around the scheduling core.
//!
//! It does what a real engine does: accept arrivals, ask the core for a plan, let the iteration-time law determine its
//! duration, report what finished. The core cannot tell that the engine is simulated. The caller decides when an
//! iteration begins; between its begin and its end the core is in the state that was planned.

use wait_core::config::Late;
use wait_core::model::IterationTime;
use wait_core::policy::Policy;
use wait_core::{Config, Error, LengthHint, Report as Completed, Request, Scheduler, StepTime};

use crate::columns::Columns;
use crate::ends::Ends;
use crate::error::SimError;
use crate::record::Run;
use crate::recorder::Recorder;
use crate::requests::{LATEST_NS, Requests};
use crate::rng::Stream;
use crate::setup::{Lengths, Setup};
use crate::speculation::Drafts;
use crate::transfer::Transfers;

/// What a plan led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// An iteration, which ends at `Engine::now_ns`.
    Computes,
    /// Nothing to compute. The policy, or KV being transferred, needs another plan then, if at any time.
    Idle(Option<u64>),
}

pub(crate) struct Engine<'a> {
    setup: &'a Setup,
    config: &'a Config,
    law: &'a IterationTime,
    requests: Requests<'a>,
    started_ns: u64,
    pub(crate) now_ns: u64,
    pub(crate) scheduler: Scheduler,
    ends: Ends,
    transfers: Transfers,
    drafts: Drafts<'a>,
    finished: Vec<u64>,
    noise: Stream,
    /// The policy has thresholds, which hold requests until enough others wait.
    gated: bool,
    pub(crate) recorder: Recorder,
}

impl<'a> Engine<'a> {
    /// The `number`th engine of a run, with a configuration and a law of its own.
    pub(crate) fn new(
        setup: &'a Setup,
        (config, law): (&'a Config, &'a IterationTime),
        requests: Requests<'a>,
        number: usize,
    ) -> Result<Self, SimError> {
        if !(0.0..=1.0).contains(&setup.steps.jitter) {
            return Err(Error::invalid("step_jitter", setup.steps.jitter, "must be between 0 and 1").into());
        }
        let mut scheduler = Scheduler::new(config)?;
        if let Some(learned) = &setup.learned {
            scheduler.restore(learned)?;
        }
        let noise = if number == 0 { "step jitter".to_owned() } else { format!("step jitter {number}") };
        Ok(Self {
            setup,
            config,
            law,
            requests,
            started_ns: 0,
            now_ns: requests.arrivals.first().map_or(0, |arrival| arrival.at_ns),
            ends: Ends::new(scheduler.view().lanes().len()),
            transfers: Transfers::new(setup.transfer)?,
            drafts: Drafts::new(setup)?,
            finished: Vec::new(),
            noise: Stream::new(setup.steps.seed, &noise),
            gated: !scheduler.policy().thresholds().is_empty(),
            recorder: Recorder::new(&scheduler, config.kv_blocks),
            scheduler,
        })
    }

    /// Everything recorded beside the columns.
    pub(crate) fn finish(self) -> Run {
        self.recorder.finish(&self.scheduler)
    }

    /// Iterations of a request: its output tokens, and in the paper's convention its prefill as well.
    pub(crate) fn iterations(&self, id: u64) -> u32 {
        self.config.convention.last_stage(self.requests.arrivals[id as usize].output).saturating_add(1)
    }

    /// The least time that an iteration takes, ns; 0 where one may depend on other engines, or refuse a request. `largest` is
    /// the request of the most tokens.
    pub(crate) fn shortest_ns(&self, largest: u64) -> u64 {
        let Config { late, max_queued_requests, max_queued_tokens, .. } = self.config;
        let bounded = max_queued_requests.is_some() || max_queued_tokens.is_some();
        let tokens = self.requests.arrivals[largest as usize].prompt.saturating_add(self.iterations(largest));
        let fits = self.fits(largest) && tokens <= self.scheduler.view().largest();
        if bounded || *late == Late::Refuse || !fits || self.gated || self.setup.steps.jitter > 0.0 {
            return 0;
        }
        // Both are rounded.
        ((self.law.least_seconds() * 1e9) as u64).saturating_sub(1).saturating_add(self.setup.overhead_ns)
    }

    /// Adds a request to the scheduler. False where it is refused: it can never fit, finds the queue full, or would be
    /// late.
    pub(crate) fn add(&mut self, columns: &Columns, at: usize, sent_ns: u64) -> Result<bool, SimError> {
        let id = at as u64;
        columns.send(id, sent_ns, self.scheduler.predicted_wait_ns());
        if !self.fits(id) {
            return Ok(false);
        }
        match self.scheduler.add(&self.request(at, sent_ns)) {
            Ok(()) => Ok(true),
            Err(Error::TooLarge { .. } | Error::QueueFull { .. } | Error::DeadlineUnreachable { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// What the host declares about a request.
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
        if self.config.prefix_caching {
            self.requests.block_hashes(at, self.config.block_size, &mut hashes);
        }
        hashes
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

    /// Plans an iteration that begins at `start_ns`; `coming` says whether any request is known to arrive.
    pub(crate) fn begin(
        &mut self,
        columns: &Columns,
        start_ns: u64,
        coming: impl FnOnce() -> bool,
    ) -> Result<Begun, SimError> {
        (self.started_ns, self.now_ns) = (start_ns, start_ns);
        if self.transfers.next_ns().is_some_and(|ready_ns| ready_ns <= start_ns) {
            let received = self.transfers.received(&columns.stamps, start_ns);
            self.scheduler.complete(&Completed { received, ..Completed::default() })?;
        }
        self.scheduler.plan(start_ns);
        self.now_ns = self.ends_at(start_ns)?;
        let plan = self.scheduler.last_plan();
        for &(_, id) in plan.preempted() {
            columns.stamps.count(id as usize);
        }
        // Requests are parked even by a plan that computes nothing.
        for &slot in plan.parked() {
            columns.stamps.count(self.scheduler.view().request(slot).id as usize);
        }
        // A preemption frees memory, so the plan after one may well not be empty; nor may that after an admission of a
        // request whose KV is being transferred.
        let evicts = !plan.preempted().is_empty();
        let idle = plan.is_empty() && plan.chunks().is_empty() && !evicts;
        let wake = plan.wake_ns().filter(|&ns| ns > start_ns && ns <= LATEST_NS);
        self.recorder.parked(columns, &self.scheduler);
        if idle {
            return Ok(Begun::Idle([self.transfers.next_ns(), wake].into_iter().flatten().min()));
        }
        if evicts && self.gated && !coming() {
            // Paused requests that hold the memory others need could wait for more requests forever.
            self.drain();
        }
        self.transfers.follow(&self.scheduler, columns, start_ns);
        Ok(Begun::Computes)
    }

    /// Requests that the last plan refused.
    pub(crate) fn refused(&self) -> impl Iterator<Item = u64> + '_ {
        self.scheduler.last_plan().refused().iter().map(|refused| refused.id)
    }

    /// The iteration has ended. Returns the requests that ended with it.
    pub(crate) fn end(&mut self, columns: &Columns) -> Result<&[u64], SimError> {
        self.recorder.iteration(columns, &self.scheduler, self.started_ns, self.now_ns);
        self.finished.clear();
        self.follow_joins(columns);
        if self.drafts.any() {
            self.verify_drafts();
        } else {
            self.ends.collect(&columns.stamps, self.scheduler.view(), &mut self.finished);
        }
        self.recorder.finish_requests(columns, &self.finished, self.now_ns);
        let ns = self.now_ns - self.started_ns;
        self.scheduler.complete(&Completed {
            finished: &self.finished,
            progress: self.drafts.progress(),
            hits: self.transfers.lost(),
            step: (self.setup.steps.reported && ns > 0).then_some(StepTime { ns, iteration: None }),
            ..Completed::default()
        })?;
        self.recorder.moved(columns, &self.scheduler, self.drafts.progress());
        Ok(&self.finished)
    }

    /// When the last plan, made at `start_ns`, has been computed.
    #[inline]
    fn ends_at(&mut self, start_ns: u64) -> Result<u64, SimError> {
        let plan = self.scheduler.last_plan();
        if plan.is_empty() {
            return Ok(start_ns);
        }
        // One call, which is inlined.
        let mut duration = self.law.nanos(plan.shape());
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
    fn follow_joins(&mut self, columns: &Columns) {
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
                self.ends.joins(&columns.stamps, view, slot, left);
            }
        }
    }

    /// With drafts the step at which a request ends is not known in advance.
    fn verify_drafts(&mut self) {
        let (convention, arrivals) = (self.config.convention, self.requests.arrivals);
        let iterations = |id: u64| convention.last_stage(arrivals[id as usize].output) + 1;
        let accepted = self.drafts.verify(&self.scheduler, iterations, &mut self.finished);
        let drafted = self.drafts.verified(self.scheduler.last_plan().decodes());
        self.recorder.drafts(drafted, accepted);
    }

    /// Nothing to compute, nothing that will change that, and no request is known to arrive: the gates open. False
    /// where no request is left.
    pub(crate) fn open_gates(&mut self) -> Result<bool, SimError> {
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

    fn drain(&mut self) {
        if !self.scheduler.view().draining() {
            self.recorder.drain(self.now_ns);
            self.scheduler.drain();
        }
    }
}
