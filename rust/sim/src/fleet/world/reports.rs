//! What replicas say of themselves, and when the router reads it.

use wait_core::routing::Load;

use super::World;
use crate::engine::Engine;
use crate::error::SimError;

/// A report on its way to the router.
pub(super) struct InTransit {
    pub(super) arrives_ns: u64,
    replica: usize,
    /// Which of the engines that it has had.
    engine: usize,
    at_ns: u64,
    load: Load,
}

impl World<'_> {
    /// Hands the router what has arrived.
    pub(super) fn receive_reports(&mut self) -> Result<(), SimError> {
        while let Some(report) = self.reports.front().filter(|report| report.arrives_ns <= self.now_ns) {
            let pool = &mut self.pools[self.replicas[report.replica].pool];
            // One of an engine that has failed since may still be on its way.
            if self.replicas[report.replica].before.len() == report.engine {
                pool.router.report(report.replica as u64, report.at_ns, &report.load)?;
            }
            pool.ask_again = true;
            self.reports.pop_front();
        }
        Ok(())
    }

    /// An idle engine of the pool has no iterations to report with, and goes on reporting what it said last.
    pub(super) fn report_idle(&mut self, pool: usize) -> Result<(), SimError> {
        let pool = &mut self.pools[pool];
        if !pool.reads_reports() {
            return Ok(());
        }
        let delay_ns = self.fleet.staleness_ns / 2;
        let then_ns = self.now_ns.saturating_sub(delay_ns);
        for at in pool.stage.replicas.clone() {
            let replica = &mut self.replicas[at];
            let (idle, due) = (replica.is_idle(), replica.due);
            let Some((taken_ns, load)) = &mut replica.reported else { continue };
            if idle && !due && *taken_ns + 2 * delay_ns.max(1) < then_ns {
                *taken_ns = then_ns;
                pool.router.report(at as u64, then_ns, load)?;
            }
        }
        Ok(())
    }

    /// A replica reports.
    pub(super) fn report(&mut self, at: usize, engine: &mut Engine) {
        let (at_ns, load) = (self.now_ns, engine.scheduler.load());
        let replica = &mut self.replicas[at];
        replica.reported = Some((at_ns, load));
        let arrives_ns = at_ns + self.fleet.staleness_ns / 2;
        self.reports.push_back(InTransit { arrives_ns, replica: at, engine: replica.before.len(), at_ns, load });
    }
}
