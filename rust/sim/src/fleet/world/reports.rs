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
            // One of an engine that has failed since may still be on its way.
            if self.replicas[report.replica].before.len() == report.engine {
                self.router.report(report.replica as u64, report.at_ns, &report.load)?;
            }
            self.reports.pop_front();
            self.ask_again = true;
        }
        Ok(())
    }

    /// An idle engine has no iterations to report with, and goes on reporting what it said last.
    pub(super) fn report_idle(&mut self) -> Result<(), SimError> {
        if !self.fleet.routing.router.reads_reports() {
            return Ok(());
        }
        let delay_ns = self.fleet.staleness_ns / 2;
        let then_ns = self.now_ns.saturating_sub(delay_ns);
        for at in 0..self.replicas.len() {
            let replica = &mut self.replicas[at];
            let (idle, due) = (replica.is_idle(), replica.due);
            let Some((taken_ns, load)) = &mut replica.reported else { continue };
            if idle && !due && *taken_ns + 2 * delay_ns.max(1) < then_ns {
                *taken_ns = then_ns;
                self.router.report(at as u64, then_ns, load)?;
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
