//! The simulated engine: a virtual clock around the scheduling core.
//!
//! The loop is that of a real engine: take in arrivals, ask the core for a plan, let the iteration-time law say how
//! long it takes, report what finished. The core never learns that the engine is simulated.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::ControlFlow;

use wait_core::policy::Policy;
use wait_core::{Error, LengthHint, Report as Completed, Request, Scheduler, StepTime};

use crate::dataset::Arrival;
use crate::record::{Recorder, Run};
use crate::rng::Stream;
use crate::setup::{Lengths, Setup};

/// Why a run ended early.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SimError {
    /// A setting was refused.
    #[error(transparent)]
    Refused(#[from] Error),
    /// The caller's callback asked to stop.
    #[error("interrupted after {completed} of {offered} requests")]
    Interrupted {
        /// Requests completed.
        completed: usize,
        /// Requests offered.
        offered: usize,
    },
    /// Requests wait, nothing runs, and nothing will ever change: a policy's fault, never silent.
    #[error("policy stalled at {now_s:.3} s with {waiting} requests waiting and {resident} resident")]
    Stalled {
        /// Virtual time, s.
        now_s: f64,
        /// Requests outside the KV cache.
        waiting: u32,
        /// Requests in it.
        resident: u32,
    },
}

/// How often the callback is called, in iterations: about every ten milliseconds. Each call takes Python's lock, for
/// which a busy thread beside this one may make it wait for five.
const CALLBACK_EVERY: u64 = 1 << 15;

/// The end of virtual time, 146 years: sums of times stay exact below it.
const LATEST_NS: u64 = 1 << 62;

/// Runs all arrivals (ascending in time) to their end. `callback(completed)` is called now and then and may stop the run.
///
/// # Errors
/// [`SimError`] for refused settings or arrivals, an interruption, or a policy that stalls.
pub fn run(
    setup: &Setup,
    arrivals: &[Arrival],
    mut callback: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Run, SimError> {
    check(arrivals)?;
    if !setup.hints.is_empty() && setup.hints.len() != arrivals.len() {
        return Err(Error::invalid("hints", setup.hints.len(), format!("{} arrivals", arrivals.len())).into());
    }
    if setup.max_concurrency == Some(0) {
        return Err(Error::invalid("max_concurrency", 0, "must be at least 1, or nothing is ever sent").into());
    }
    let mut engine = Engine::new(setup, arrivals)?;
    loop {
        engine.admit_arrivals()?;
        if engine.scheduler.stats().iterations % CALLBACK_EVERY == 0 && callback(engine.recorder.completed()).is_break()
        {
            let completed = engine.recorder.completed();
            return Err(SimError::Interrupted { completed, offered: arrivals.len() });
        }
        if !engine.step()? {
            let _ = callback(engine.recorder.completed());
            return Ok(engine.recorder.finish(&engine.scheduler));
        }
    }
}

/// As `run`, up to the end of the first iteration that ends at `horizon_ns` or later. Arrivals reach beyond that.
pub(crate) fn run_until(setup: &Setup, arrivals: &[Arrival], horizon_ns: u64) -> Result<Run, SimError> {
    check(arrivals)?;
    let mut engine = Engine::new(setup, arrivals)?;
    while engine.now_ns < horizon_ns {
        engine.admit_arrivals()?;
        engine.step()?;
    }
    Ok(engine.recorder.finish(&engine.scheduler))
}

pub(crate) fn check(arrivals: &[Arrival]) -> Result<(), Error> {
    if u32::try_from(arrivals.len()).is_err() {
        return Err(Error::invalid("arrivals", arrivals.len(), "at most 2^32 - 1 requests"));
    }
    let mut previous = 0;
    for (i, arrival) in arrivals.iter().enumerate() {
        for (name, length) in [("prompt", arrival.prompt), ("output", arrival.output)] {
            if length == 0 {
                return Err(Error::invalid(format!("arrivals[{i}].{name}"), length, "must be at least 1 token"));
            }
        }
        if arrival.at_ns < previous || arrival.at_ns > LATEST_NS {
            let rule = format!("must be in ascending order of time, at most {LATEST_NS} ns");
            return Err(Error::invalid(format!("arrivals[{i}].at_ns"), arrival.at_ns, rule));
        }
        previous = arrival.at_ns;
    }
    Ok(())
}

pub(crate) struct Engine<'a> {
    setup: &'a Setup,
    arrivals: &'a [Arrival],
    next: usize,
    now_ns: u64,
    pub(crate) scheduler: Scheduler,
    /// One for each lane: (lane tick, request, stamp) at which members finish. An entry is void once the request's
    /// stamp has moved on, which it does whenever the request leaves a lane.
    calendars: Vec<BinaryHeap<Reverse<(i64, u32, u32)>>>,
    stamps: Vec<u32>,
    finished: Vec<u64>,
    /// When the last request ended.
    freed_ns: u64,
    noise: Stream,
    /// The policy has thresholds, which hold requests for want of company.
    gated: bool,
    pub(crate) recorder: Recorder<'a>,
}

impl<'a> Engine<'a> {
    pub(crate) fn new(setup: &'a Setup, arrivals: &'a [Arrival]) -> Result<Self, SimError> {
        if !(0.0..=1.0).contains(&setup.steps.jitter) {
            return Err(Error::invalid("step_jitter", setup.steps.jitter, "must be between 0 and 1").into());
        }
        let mut scheduler = Scheduler::new(&setup.config)?;
        if let Some(learned) = &setup.learned {
            scheduler.restore(learned)?;
        }
        let lanes = scheduler.view().lanes().len();
        Ok(Self {
            setup,
            arrivals,
            next: 0,
            now_ns: arrivals.first().map_or(0, |arrival| arrival.at_ns),
            calendars: vec![BinaryHeap::new(); lanes],
            stamps: vec![0; arrivals.len()],
            finished: Vec::new(),
            freed_ns: 0,
            noise: Stream::new(setup.steps.seed, "step jitter"),
            gated: !scheduler.policy().thresholds().is_empty(),
            recorder: Recorder::new(arrivals, lanes, setup.config.kv_blocks),
            scheduler,
        })
    }

    /// Iterations of a request: its output tokens, and in the paper's convention its prefill as well.
    pub(crate) fn iterations(&self, id: u64) -> u32 {
        self.setup.config.convention.last_stage(self.arrivals[id as usize].output).saturating_add(1)
    }

    pub(crate) fn admit_arrivals(&mut self) -> Result<(), SimError> {
        while let Some(arrival) = self.arrivals.get(self.next).filter(|arrival| arrival.at_ns <= self.now_ns) {
            let id = self.next as u64;
            let mut sent_ns = arrival.at_ns;
            if let Some(most) = self.setup.max_concurrency {
                if self.scheduler.view().len() >= most {
                    break;
                }
                // What the client held back is sent now.
                sent_ns = sent_ns.max(self.freed_ns);
            }
            let hint = self.setup.hints.get(self.next).copied().unwrap_or_default();
            let output = match self.setup.lengths {
                Lengths::Known => LengthHint::Exact(self.iterations(id)),
                Lengths::Hidden => hint.output,
            };
            let request = Request {
                id,
                prompt: arrival.prompt,
                max_tokens: self.setup.max_tokens,
                output,
                type_id: if self.setup.typed { Some(arrival.label) } else { hint.label },
                priority: hint.priority.into(),
                tenant: hint.tenant,
                arrival_ns: sent_ns,
                ..Request::default()
            };
            self.recorder.send(sent_ns, self.scheduler.predicted_wait_ns());
            // What can never fit, or finds the queue full, is refused at the door and counted as failed.
            if !self.fits(id) {
                self.recorder.reject();
            } else if let Err(error) = self.scheduler.add(&request) {
                match error {
                    Error::TooLarge { .. } | Error::QueueFull { .. } | Error::DeadlineUnreachable { .. } => {
                        self.recorder.reject();
                    }
                    error => return Err(error.into()),
                }
            }
            self.next += 1;
        }
        Ok(())
    }

    /// A hidden output that outgrows the cache could never end; a real engine would cut it at its length limit.
    fn fits(&self, id: u64) -> bool {
        let tokens = u64::from(self.arrivals[id as usize].prompt) + u64::from(self.iterations(id));
        tokens <= u64::from(self.scheduler.view().max_model_len())
    }

    /// One iteration, or a jump to the next event. False when all is done.
    pub(crate) fn step(&mut self) -> Result<bool, SimError> {
        let start_ns = self.now_ns;
        let plan = self.scheduler.plan(start_ns);
        if !plan.is_empty() {
            let mut duration = self.setup.law.nanos(plan.shape());
            let jitter = self.setup.steps.jitter;
            if jitter > 0.0 {
                let factor = libm::exp(jitter * self.noise.normal() - 0.5 * jitter * jitter);
                duration = ((duration as f64 * factor) as u64).max(1);
            }
            let duration = duration.saturating_add(self.setup.overhead_ns);
            self.now_ns = start_ns.saturating_add(duration);
            if self.now_ns > LATEST_NS {
                let rule = format!("ends after {LATEST_NS} ns of virtual time");
                return Err(Error::invalid("iteration_time", format!("{duration} ns"), rule).into());
            }
        }
        for &(_, id) in plan.preempted() {
            self.stamps[id as usize] += 1;
        }
        // An eviction frees memory, so the plan after one may well not be empty.
        let evicts = !plan.preempted().is_empty();
        let idle = plan.is_empty() && !evicts;
        // Requests are parked even by a plan that computes nothing.
        for &slot in self.scheduler.last_plan().parked() {
            self.stamps[self.scheduler.view().request(slot).id as usize] += 1;
        }
        self.recorder.parked(&self.scheduler);
        self.scheduler.last_plan().refused().iter().for_each(|_| self.recorder.reject());
        if idle {
            return self.idle();
        }
        if evicts && self.gated && self.next_arrival_ns(start_ns).is_none() {
            // Paused requests that hold the memory others need could wait for company for ever.
            self.drain();
        }
        self.recorder.iteration(&self.scheduler, start_ns, self.now_ns);
        self.finished.clear();
        self.follow_joins();
        self.collect_finished();
        if !self.finished.is_empty() {
            self.freed_ns = self.now_ns;
        }
        self.recorder.finish_requests(&self.finished, self.now_ns);
        let ns = self.now_ns - start_ns;
        let step = (self.setup.steps.reported && ns > 0).then_some(StepTime { ns, iteration: None });
        self.scheduler.complete(&Completed { finished: &self.finished, step, ..Completed::default() });
        Ok(true)
    }

    /// Notes when the requests that joined a lane in this iteration will finish.
    fn follow_joins(&mut self) {
        let plan = self.scheduler.last_plan();
        let prefilled = plan.chunks().iter().filter(|chunk| chunk.last).map(|chunk| chunk.slot);
        let unparked = plan.unparked().iter().map(|&(slot, _)| slot);
        for slot in prefilled.chain(unparked) {
            let view = self.scheduler.view();
            let (request, stage) = (view.request(slot), view.stage(slot));
            let left = self.iterations(request.id) - stage;
            if left == 0 {
                self.finished.push(request.id);
            } else {
                let (lane, id) = (usize::from(request.lane), request.id);
                let due = view.lanes()[lane].tick() + i64::from(left);
                self.calendars[lane].push(Reverse((due, id as u32, self.stamps[id as usize])));
            }
        }
    }

    fn collect_finished(&mut self) {
        for (lane, calendar) in self.calendars.iter_mut().enumerate() {
            let tick = self.scheduler.view().lanes()[lane].tick();
            while let Some(&Reverse((_, id, stamp))) = calendar.peek().filter(|entry| entry.0.0 <= tick) {
                calendar.pop();
                if self.stamps[id as usize] == stamp {
                    self.finished.push(u64::from(id));
                }
            }
        }
    }

    /// Nothing to compute: on to the next arrival, or to when the policy wants to look again.
    fn idle(&mut self) -> Result<bool, SimError> {
        let plan = self.scheduler.last_plan();
        let wake = plan.wake_ns().filter(|&ns| ns > self.now_ns && ns <= LATEST_NS);
        if let Some(next) = self.next_arrival_ns(self.now_ns).into_iter().chain(wake).min() {
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

    /// The next arrival to come by itself after a plan at `after_ns`: one that the client holds back is no event of its own.
    fn next_arrival_ns(&self, after_ns: u64) -> Option<u64> {
        self.arrivals.get(self.next).map(|arrival| arrival.at_ns).filter(|&ns| ns > after_ns)
    }

    /// No more arrivals will come: the gates open.
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
    use crate::setup::StepTimes;

    #[test]
    fn a_policy_that_never_runs_anything_again_is_reported() {
        let config = Config { kv_blocks: 10, ..Config::default() };
        let law = IterationTime::linear(0.5, 0.0).expect("a law");
        let lengths = Lengths::Known;
        let setup = Setup {
            config,
            law,
            lengths,
            typed: false,
            max_tokens: None,
            max_concurrency: None,
            hints: Vec::new(),
            overhead_ns: 0,
            learned: None,
            steps: StepTimes::default(),
        };
        let arrivals = [10, 20].map(|at_ns| Arrival { at_ns, prompt: 4, output: 9, label: 0 });
        let mut engine = Engine::new(&setup, &arrivals).unwrap();
        engine.admit_arrivals().unwrap();
        assert_eq!(engine.step(), Ok(true));
        engine.admit_arrivals().unwrap();
        // A paused engine stands for a policy that holds everything for ever.
        engine.scheduler.set_paused(true);
        assert_eq!(engine.step(), Ok(true), "the gates open first");
        let stalled = engine.step().unwrap_err();
        assert_eq!(stalled, SimError::Stalled { now_s: 0.500_000_01, waiting: 1, resident: 1 });
        assert_eq!(stalled.to_string(), "policy stalled at 0.500 s with 1 requests waiting and 1 resident");
    }
}
