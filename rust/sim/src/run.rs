//! One engine and its clients: the loop of a run.

use std::ops::ControlFlow;

use wait_core::Scheduler;

use crate::clients::Clients;
use crate::columns::Columns;
use crate::engine::{Begun, Engine};
use crate::error::SimError;
use crate::record::Run;
use crate::requests::{Arrival, Requests};
use crate::setup::Setup;

/// Iterations between two calls of the callback: about ten milliseconds. Each call takes Python's lock, for which a
/// busy thread beside this one may make it wait for five.
const CALLBACK_EVERY: u64 = 1 << 15;

/// Runs all requests to their end. `callback(completed)` is called at intervals and may stop the run.
///
/// # Errors
/// [`SimError`] for refused settings or requests, an interruption, or a policy that stalls.
pub fn run<'a>(
    setup: &Setup,
    requests: impl Into<Requests<'a>>,
    mut callback: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Run, SimError> {
    let offered = requests.into();
    with_engine(setup, offered, |mut served| {
        loop {
            served.send_requests()?;
            if served.scheduler().stats().iterations % CALLBACK_EVERY == 0 && callback(served.completed()).is_break() {
                return Err(SimError::Interrupted { completed: served.completed(), offered: offered.arrivals.len() });
            }
            if !served.step()? {
                let _ = callback(served.completed());
                return Ok(served.finish(offered.arrivals));
            }
        }
    })
}

/// As `run`, up to the end of the first iteration that ends at `horizon_ns` or later. Requests reach beyond that.
pub(crate) fn run_until(setup: &Setup, requests: Requests, horizon_ns: u64) -> Result<Run, SimError> {
    with_engine(setup, requests, |mut served| {
        while served.engine.now_ns < horizon_ns {
            served.send_requests()?;
            served.step()?;
        }
        Ok(served.finish(requests.arrivals))
    })
}

/// Calls `work` with an engine to which the requests are offered, outputs cut at `max_tokens`.
pub(crate) fn with_engine<T>(
    setup: &Setup,
    offered: Requests,
    work: impl FnOnce(Served) -> Result<T, SimError>,
) -> Result<T, SimError> {
    offered.check()?;
    setup.check(offered.arrivals.len())?;
    let arrivals = &offered.ended(setup.max_tokens);
    work(Served::new(setup, Requests { arrivals, ..offered })?)
}

/// An engine, and the clients that it serves.
pub(crate) struct Served<'a> {
    pub(crate) engine: Engine<'a>,
    clients: Clients<'a>,
    columns: Columns<'a>,
}

impl<'a> Served<'a> {
    pub(crate) fn new(setup: &'a Setup, requests: Requests<'a>) -> Result<Self, SimError> {
        let engine = Engine::new(setup, (&setup.config, &setup.law), requests, 0)?;
        let grouped = !engine.scheduler.view().layout().groups().is_empty();
        let clients = Clients::new(requests, setup.max_concurrency);
        Ok(Self { engine, clients, columns: Columns::new(requests.arrivals, grouped, false) })
    }

    pub(crate) fn scheduler(&self) -> &Scheduler {
        &self.engine.scheduler
    }

    pub(crate) fn completed(&self) -> usize {
        self.engine.recorder.completed()
    }

    /// What was recorded of the requests that were `offered`.
    fn finish(self, offered: &[Arrival]) -> Run {
        self.columns.join(self.engine.finish(), offered)
    }

    /// Adds what has been sent by now to the scheduler.
    pub(crate) fn send_requests(&mut self) -> Result<(), SimError> {
        while let Some((at, sent_ns)) = self.clients.send(self.engine.now_ns, self.scheduler().view().len()) {
            if !self.engine.add(&self.columns, at, sent_ns)? {
                self.reject(at as u64);
            }
        }
        Ok(())
    }

    /// A refused request fails, and with it all that would have followed.
    fn reject(&mut self, id: u64) {
        let lost = self.clients.refused(id);
        self.engine.recorder.reject(1 + lost);
    }

    /// One iteration, or a jump to the next event. False when all is done.
    pub(crate) fn step(&mut self) -> Result<bool, SimError> {
        let Self { engine, clients, columns } = self;
        let start_ns = engine.now_ns;
        let begun = engine.begin(columns, start_ns, || clients.next_ns(start_ns).is_some())?;
        if begun == Begun::Computes {
            let end_ns = engine.now_ns;
            clients.finished(engine.end(columns)?, end_ns);
        }
        for at in 0..engine.scheduler.last_plan().refused().len() {
            let id = self.engine.scheduler.last_plan().refused()[at].id;
            self.reject(id);
        }
        match begun {
            Begun::Computes => Ok(true),
            Begun::Idle(wake_ns) => self.idle(wake_ns),
        }
    }

    /// Nothing to compute: skip to the next arrival, or to when the policy wants to plan again.
    fn idle(&mut self, wake_ns: Option<u64>) -> Result<bool, SimError> {
        let now_ns = self.engine.now_ns;
        match [self.clients.next_ns(now_ns), wake_ns].into_iter().flatten().min() {
            Some(next_ns) => {
                self.engine.now_ns = next_ns;
                Ok(true)
            }
            None => self.engine.open_gates(),
        }
    }
}

#[cfg(test)]
mod tests {
    use wait_core::Config;
    use wait_core::model::IterationTime;

    use super::*;
    use crate::setup::Lengths;

    #[test]
    fn a_policy_that_never_runs_anything_again_is_reported() {
        let config = Config { kv_blocks: 10, ..Config::default() };
        let law = IterationTime::linear(0.5, 0.0).expect("a law");
        let lengths = Lengths::Known;
        let setup = Setup { lengths, ..Setup::new(config, law) };
        let arrivals = [10, 20].map(|at_ns| Arrival { at_ns, prompt: 4, output: 9, label: 0 });
        let mut served = Served::new(&setup, (&arrivals).into()).unwrap();
        served.send_requests().unwrap();
        assert_eq!(served.step(), Ok(true));
        served.send_requests().unwrap();
        // A paused engine simulates a policy that holds everything forever.
        served.engine.scheduler.set_paused(true);
        assert_eq!(served.step(), Ok(true), "the gates open first");
        let stalled = served.step().unwrap_err();
        assert_eq!(stalled, SimError::Stalled { now_s: 0.500_000_01, waiting: 1, resident: 1 });
        assert_eq!(stalled.to_string(), "policy stalled at 0.500 s with 1 requests waiting and 1 resident");
    }
}
