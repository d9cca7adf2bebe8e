//! One replica: an engine that is there or not, and the requests on their way to it.

use std::collections::VecDeque;

use wait_core::routing::Load;

use crate::engine::Engine;
use crate::record::Run;

/// A replica of a fleet.
pub(super) struct Replica<'a> {
    /// Which pool it is in.
    pub(super) pool: usize,
    /// None while it is not there. It is large, and leaves its place at each iteration.
    pub(super) engine: Option<Box<Engine<'a>>>,
    /// Requests that its engine takes in before its next iteration, and when they were sent.
    pub(super) inbox: VecDeque<(u32, u64)>,
    /// Under way in an iteration that ends at the engine's time.
    pub(super) computing: bool,
    /// Told that an iteration is to begin at this time.
    pub(super) due: bool,
    /// An event is void unless it has the replica's stamp.
    pub(super) stamp: u32,
    /// When it took its last report, ns, and what was in it.
    pub(super) reported: Option<(u64, Load)>,
    /// What was recorded of it before its engine failed.
    pub(super) before: Vec<Run>,
}

impl<'a> Replica<'a> {
    pub(super) fn new(pool: usize, engine: Option<Box<Engine<'a>>>) -> Self {
        Self {
            pool,
            engine,
            inbox: VecDeque::new(),
            computing: false,
            due: false,
            stamp: 0,
            reported: None,
            before: Vec::new(),
        }
    }

    /// The engine is gone, and with it what was under way.
    pub(super) fn fail(&mut self) {
        if let Some(engine) = self.engine.take() {
            self.before.push(engine.finish());
        }
        self.inbox.clear();
        (self.computing, self.due, self.reported) = (false, false, None);
        self.stamp += 1;
    }

    /// Requests completed.
    pub(super) fn completed(&self) -> usize {
        let now = self.engine.as_ref().map_or(0, |engine| engine.recorder.completed());
        now + self.before.iter().map(|run| run.completed).sum::<usize>()
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.engine.is_some() && !self.computing && self.inbox.is_empty()
    }
}
