//! Iterations that end, and requests whose prompts are computed, on their way to a decode replica.

use std::cmp::Reverse;

use super::World;
use crate::error::SimError;

impl World<'_> {
    pub(super) fn end_iterations(&mut self) -> Result<(), SimError> {
        while let Some(&Reverse(event)) = self.events.peek().filter(|event| event.0.0 <= self.now_ns) {
            self.events.pop();
            if self.is_void(event) {
                continue;
            }
            let at = event.1 as usize;
            let replica = &mut self.replicas[at];
            if replica.computing
                && let Some(engine) = &mut replica.engine
            {
                replica.computing = false;
                let mut finished = engine.end(&mut self.columns)?;
                let pool = &mut self.pools[replica.pool];
                for &id in finished {
                    pool.router.finished(self.now_ns, id);
                }
                pool.ask_again |= !finished.is_empty();
                if replica.pool + 1 < self.pools.len() {
                    // One token is all that these were to have.
                    let ends = |&&id: &&u64| self.requests.arrivals[id as usize].output == 1;
                    self.ended.clear();
                    self.ended.extend(finished.iter().filter(ends));
                    self.handed_over.extend(finished.iter().filter(|id| !ends(id)));
                    finished = &self.ended;
                }
                self.under_way -= finished.len();
                self.clients.finished(finished, self.now_ns);
            }
            self.is_due(at);
        }
        Ok(())
    }

    /// Requests whose first token has come go on to the decode replicas.
    pub(super) fn hand_over(&mut self) -> Result<(), SimError> {
        let handed_over = std::mem::take(&mut self.handed_over);
        for &id in &handed_over {
            self.columns.hand_over(id);
            self.enter(1, id as u32, self.now_ns)?;
        }
        self.handed_over = handed_over;
        self.handed_over.clear();
        Ok(())
    }
}
