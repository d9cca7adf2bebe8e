//! Iterations that begin. What one does is not seen before it ends, or before its engine's report has arrived, so engines
//! of which an iteration begins within that time do not depend on one another: all threads advance them. Under a router that
//! sees nothing of its replicas, what is to come is routed first, and each engine goes on by itself.

use std::cmp::Reverse;

use super::World;
use super::reports::Taken;
use crate::engine::Begun;
use crate::error::SimError;
use crate::fleet::crew::Crew;
use crate::fleet::pool::Pool;
use crate::fleet::server::{Bounds, Server};

/// A lookahead without end: nothing depends on an iteration but what its engine does next.
pub(super) const UNSEEN: u64 = u64::MAX;

/// Most requests that are routed before engines go on by themselves, and about the most iterations until the callback may stop
/// the run: together a tenth of a second.
const MOST_ROUTED: usize = 1 << 12;
const MOST_ITERATIONS: usize = 1 << 16;

/// Most iterations of one of so many engines until it is collected. One at a time, where another may depend on it.
pub(super) fn most_iterations(lookahead_ns: u64, engines: usize) -> usize {
    if lookahead_ns == 0 { 1 } else { (MOST_ITERATIONS / engines).max(64) }
}

impl<'a> World<'a> {
    /// An iteration of a replica is to begin.
    pub(super) fn is_due(&mut self, at: usize, at_ns: u64) {
        let due_ns = &mut self.replicas[at].due_ns;
        if due_ns.is_none() {
            *due_ns = Some(at_ns);
            self.due.push(at);
            self.due_by_ns = self.due_by_ns.min(at_ns.saturating_add(self.lookahead_ns));
        }
    }

    /// Whether what happens at `next_ns` may depend on iterations that were due before.
    pub(super) fn is_ahead(&self, next_ns: Option<u64>, crew: &Crew) -> bool {
        let changes = |next_ns| self.changes.front().is_some_and(|change| change.at_ns <= next_ns);
        let depends = |next_ns| next_ns >= self.due_by_ns || self.routed >= MOST_ROUTED || changes(next_ns);
        (!self.due.is_empty() || crew.is_busy()) && next_ns.is_none_or(depends)
    }

    /// Begins the iterations of which all is known that they depend on.
    pub(super) fn begin_early(&mut self, crew: &mut Crew<'_, 'a>) {
        if self.lookahead_ns != 0 && self.lookahead_ns != UNSEEN {
            let mut due = std::mem::take(&mut self.due);
            due.drain(..).for_each(|at| self.send(at, crew));
            self.due = due;
        }
    }

    /// Begins all iterations that are due.
    pub(super) fn begin_iterations(&mut self, crew: &mut Crew<'_, 'a>) -> Result<(), SimError> {
        let mut due = std::mem::take(&mut self.due);
        (self.due_by_ns, self.routed) = (u64::MAX, 0);
        due.sort_unstable();
        for at in due.drain(..) {
            self.send(at, crew);
            if self.lookahead_ns == 0 {
                self.collect(crew)?;
            }
        }
        self.due = due;
        self.collect(crew)?;
        self.sort_reports();
        Ok(())
    }

    fn send(&mut self, at: usize, crew: &mut Crew<'_, 'a>) {
        let coming_until_ns = self.coming_until_ns(at);
        let until_ns = if self.lookahead_ns == UNSEEN { self.known_until_ns() } else { 0 };
        let replica = &mut self.replicas[at];
        let (Some(at_ns), Some(mut server)) = (replica.due_ns.take(), replica.server.take()) else { return };
        replica.computing = true;
        replica.stamp += 1;
        server.inbox.append(&mut replica.inbox);
        server.bounds = Bounds {
            at_ns,
            until_ns: until_ns.max(at_ns),
            iterations: self.most_iterations,
            fails_ns: replica.fails_ns.front().copied().unwrap_or(u64::MAX),
            coming_until_ns,
            report_every_ns: self.pools[replica.pool].reads_reports().then_some(self.fleet.staleness_ns / 2),
        };
        crew.send(server);
    }

    /// Up to when all requests are known that are sent to replicas which nothing sees.
    fn known_until_ns(&self) -> u64 {
        let unknown = [self.clients.due_ns(self.under_way), self.changes.front().map(|change| change.at_ns)];
        unknown.into_iter().flatten().min().map_or(u64::MAX, |next_ns| next_ns.saturating_sub(1))
    }

    /// Until when more requests are known to come that a policy may wait for.
    fn coming_until_ns(&self, at: usize) -> u64 {
        let at_door = || self.pools.iter().any(Pool::holds);
        let before = &self.replicas[..self.pools[self.replicas[at].pool].stage.replicas.start];
        let computing = || before.iter().any(|replica| replica.server.is_some() && !replica.is_idle());
        match self.lookahead_ns {
            0 if at_door() || computing() || self.clients.next_ns(self.now_ns).is_some() => u64::MAX,
            UNSEEN if at_door() => u64::MAX,
            UNSEEN => self.requests.arrivals.last().map_or(0, |last| last.at_ns),
            _ => 0,
        }
    }

    fn collect(&mut self, crew: &mut Crew<'_, 'a>) -> Result<(), SimError> {
        let mut back = std::mem::take(&mut self.back);
        crew.collect(&mut back);
        back.sort_unstable_by_key(|server| server.at);
        back.drain(..).try_for_each(|server| self.returns(server))?;
        self.back = back;
        Ok(())
    }

    /// An engine has been advanced, and has this to tell.
    fn returns(&mut self, mut server: Box<Server<'a>>) -> Result<(), SimError> {
        server.failed.take().map_or(Ok(()), Err)?;
        self.iterations += server.iterations as u64;
        let at = server.at;
        let replica = &mut self.replicas[at];
        replica.computing = server.begun == Begun::Computes;
        let next_ns = server.next_ns(replica.inbox.front().map(|next| next.from_ns));
        if let Some(next_ns) = next_ns {
            self.events.push(Reverse((next_ns, at as u32, replica.stamp)));
            if next_ns <= server.bounds.until_ns {
                // It has not done all it may: the others do not go on before.
                self.routed = MOST_ROUTED;
            }
        }
        let (number, pool) = (replica.before.len(), replica.pool);
        let taken = server.loads.drain(..).map(|(at_ns, load)| Taken { at_ns, replica: at, engine: number, load });
        self.reports.extend(taken);
        let mut ended = std::mem::take(&mut server.ended);
        self.ended(pool, &ended);
        ended.clear();
        server.ended = ended;
        server.engine.recorder.reject(server.refused.len());
        for id in server.refused.drain(..) {
            self.reject(id);
        }
        self.replicas[at].server = Some(server);
        Ok(())
    }
}
