//! An engine by itself: what it does with the requests that are known to be on their way to it, and what it has to tell of it.

use std::collections::VecDeque;

use wait_core::routing::Load;

use crate::columns::Columns;
use crate::engine::{Begun, Engine};
use crate::error::SimError;

/// A request on its way to an engine.
#[derive(Clone, Copy)]
pub(super) struct OnItsWay {
    pub(super) id: u32,
    /// When the pool was first sent it, and since when the engine may take it in, ns.
    pub(super) sent_ns: u64,
    pub(super) from_ns: u64,
}

/// Up to when an engine may be advanced, and what it has to know for that.
#[derive(Clone, Copy, Default)]
pub(super) struct Bounds {
    /// When its next iteration begins, and the last time at which another one may, ns: all requests up to then are on their way.
    pub(super) at_ns: u64,
    pub(super) until_ns: u64,
    /// Most iterations.
    pub(super) iterations: usize,
    /// When it fails, ns: an iteration that would end later does not end.
    pub(super) fails_ns: u64,
    /// Until when more requests are known to come to the fleet, ns.
    pub(super) coming_until_ns: u64,
    /// Time between two of its reports, ns, where it reports.
    pub(super) report_every_ns: Option<u64>,
}

/// An engine, and what it has to tell.
pub(super) struct Server<'a> {
    /// Which replica.
    pub(super) at: usize,
    pub(super) engine: Engine<'a>,
    /// Requests that the engine takes in before its next iteration, in the order of time.
    pub(super) inbox: VecDeque<OnItsWay>,
    pub(super) bounds: Bounds,
    /// What the last plan led to.
    pub(super) begun: Begun,
    /// Requests that end with the iteration under way, and those that have ended with iterations before it.
    pub(super) ending: Vec<u64>,
    pub(super) ended: Vec<u64>,
    /// Requests that were refused.
    pub(super) refused: Vec<u64>,
    /// What it has reported, and when, ns; and the last report that its router has.
    pub(super) loads: Vec<(u64, Load)>,
    pub(super) reported: Option<(u64, Load)>,
    /// Iterations, since it was sent away.
    pub(super) iterations: usize,
    pub(super) failed: Option<SimError>,
}

impl<'a> Server<'a> {
    pub(super) fn new(at: usize, engine: Engine<'a>) -> Self {
        Self {
            at,
            engine,
            inbox: VecDeque::new(),
            bounds: Bounds::default(),
            begun: Begun::Idle(None),
            ending: Vec::new(),
            ended: Vec::new(),
            refused: Vec::new(),
            loads: Vec::new(),
            reported: None,
            iterations: 0,
            failed: None,
        }
    }

    /// When its next iteration may begin, ns, if the next request comes at `inbox_ns` to one that is idle.
    pub(super) fn next_ns(&self, inbox_ns: Option<u64>) -> Option<u64> {
        match self.begun {
            Begun::Computes => Some(self.engine.now_ns),
            Begun::Idle(wake_ns) => {
                self.inbox.front().map(|next| next.from_ns).into_iter().chain(inbox_ns).chain(wake_ns).min()
            }
        }
    }

    /// Advances as far as it may, and notes what went wrong.
    pub(super) fn advance(&mut self, columns: &Columns) {
        self.iterations = 0;
        self.failed = self.run(columns).err();
    }

    fn run(&mut self, columns: &Columns) -> Result<(), SimError> {
        while self.iterations < self.bounds.iterations {
            self.begin(columns)?;
            self.iterations += 1;
            match self.next_ns(None).filter(|&next_ns| next_ns <= self.bounds.until_ns) {
                Some(next_ns) => self.bounds.at_ns = next_ns,
                None => break,
            }
        }
        Ok(())
    }

    /// An iteration, up to its end.
    fn begin(&mut self, columns: &Columns) -> Result<(), SimError> {
        let Bounds { at_ns: now_ns, fails_ns, coming_until_ns, report_every_ns, .. } = self.bounds;
        self.ended.append(&mut self.ending);
        self.engine.now_ns = now_ns;
        while let Some(next) = self.inbox.pop_front_if(|next| next.from_ns <= now_ns) {
            if !self.engine.add(columns, next.id as usize, next.sent_ns)? {
                self.refused.push(next.id.into());
            }
        }
        let is_time = |every_ns| self.reported.is_none_or(|(taken_ns, _)| now_ns >= taken_ns + every_ns);
        if report_every_ns.is_some_and(is_time) {
            self.report(now_ns);
        }
        self.begun = self.engine.begin(columns, now_ns, || now_ns < coming_until_ns)?;
        self.refused.extend(self.engine.refused());
        match self.begun {
            // Nothing touches the engine before that.
            Begun::Computes if self.engine.now_ns <= fails_ns => self.ending.extend(self.engine.end(columns)?),
            // What it said while it was busy is not left standing.
            Begun::Idle(_) if report_every_ns.is_some() => self.report(now_ns),
            _ => {}
        }
        Ok(())
    }

    fn report(&mut self, now_ns: u64) {
        let report = (now_ns, self.engine.scheduler.load());
        self.reported = Some(report);
        self.loads.push(report);
    }
}
