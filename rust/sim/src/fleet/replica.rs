//! One replica: an engine that is there or not, and the requests on their way to it.

use std::collections::VecDeque;

use super::server::{OnItsWay, Server};
use crate::record::Run;

/// A replica of a fleet.
pub(super) struct Replica<'a> {
    /// Which pool it is in.
    pub(super) pool: usize,
    /// None while it is not there, or a thread advances it.
    pub(super) server: Option<Box<Server<'a>>>,
    /// Requests that were sent to it since it was last advanced.
    pub(super) inbox: VecDeque<OnItsWay>,
    /// Under way in an iteration, or a thread advances it.
    pub(super) computing: bool,
    /// When an iteration is to begin that has not, ns.
    pub(super) due_ns: Option<u64>,
    /// When its link has carried the KV of all prompts that it has computed, ns.
    pub(super) sent_ns: u64,
    /// When it fails, ns.
    pub(super) fails_ns: VecDeque<u64>,
    /// An event is void unless it has the replica's stamp.
    pub(super) stamp: u32,
    /// What was recorded of it before its engine failed.
    pub(super) before: Vec<Run>,
}

impl<'a> Replica<'a> {
    pub(super) fn new(pool: usize, server: Option<Box<Server<'a>>>) -> Self {
        Self {
            pool,
            server,
            inbox: VecDeque::new(),
            computing: false,
            due_ns: None,
            sent_ns: 0,
            fails_ns: VecDeque::new(),
            stamp: 0,
            before: Vec::new(),
        }
    }

    /// The engine is gone, and with it what was under way.
    pub(super) fn fail(&mut self) {
        if let Some(server) = self.server.take() {
            self.before.push(server.engine.finish());
        }
        self.inbox.clear();
        (self.computing, self.due_ns, self.sent_ns) = (false, None, 0);
        self.stamp += 1;
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.server.is_some() && !self.computing && self.inbox.is_empty()
    }
}
