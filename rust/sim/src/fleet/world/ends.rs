//! Iterations that end, and requests whose prompts are computed, on their way to a decode replica.

use std::cmp::Reverse;

use super::World;
use crate::error::SimError;

impl World<'_> {
    pub(super) fn end_iterations(&mut self) {
        while let Some(&Reverse(event)) = self.events.peek().filter(|event| event.0.0 <= self.now_ns) {
            self.events.pop();
            if self.is_void(event) {
                continue;
            }
            let (at_ns, at) = (event.0, event.1 as usize);
            let replica = &mut self.replicas[at];
            if std::mem::take(&mut replica.computing)
                && let Some(server) = &mut replica.server
            {
                let (pool, mut ending) = (replica.pool, std::mem::take(&mut server.ending));
                self.ended(pool, &ending);
                ending.clear();
                if let Some(server) = &mut self.replicas[at].server {
                    server.ending = ending;
                }
            }
            self.is_due(at, at_ns);
        }
    }

    /// Requests have ended on a replica of this pool.
    pub(super) fn ended(&mut self, number: usize, finished: &[u64]) {
        if finished.is_empty() {
            return;
        }
        let pool = &mut self.pools[number];
        for &id in finished {
            let front = &mut pool.fronts[self.balancer.router_of(id)];
            front.router.finished(self.now_ns, id);
            front.ask_again = true;
        }
        let mut over = finished;
        if number + 1 < self.pools.len() {
            // One token is all that these were to have.
            let ends = |&&id: &&u64| self.requests.arrivals[id as usize].output == 1;
            self.over.clear();
            self.over.extend(finished.iter().filter(ends));
            self.handed_over.extend(finished.iter().filter(|id| !ends(id)));
            over = &self.over;
        } else {
            self.completed += finished.len();
        }
        self.under_way -= over.len();
        self.clients.finished(over, self.now_ns);
    }

    /// Requests whose first token has come go on to the decode replicas.
    pub(super) fn hand_over(&mut self) -> Result<(), SimError> {
        let handed_over = std::mem::take(&mut self.handed_over);
        for &id in &handed_over {
            let from = &mut self.replicas[self.replica_of[id as usize] as usize];
            let begins_ns = self.now_ns.max(from.sent_ns);
            let prompt = self.requests.arrivals[id as usize].prompt;
            from.sent_ns = begins_ns + self.fleet.setup.transfer.map_or(0, |transfer| transfer.nanos_on_link(prompt));
            self.columns.hand_over(id, begins_ns);
            self.enter(1, id as u32, self.now_ns)?;
        }
        self.handed_over = handed_over;
        self.handed_over.clear();
        Ok(())
    }
}
