//! What replicas say of themselves, and when the router reads it.

use wait_core::routing::Load;

use super::World;
use crate::error::SimError;

/// What a replica has reported.
pub(super) struct Taken {
    pub(super) at_ns: u64,
    pub(super) replica: usize,
    /// Which of the engines that it has had.
    pub(super) engine: usize,
    pub(super) load: Load,
}

impl World<'_> {
    /// Hands the router what has arrived.
    pub(super) fn receive_reports(&mut self) -> Result<(), SimError> {
        let delay_ns = self.fleet.staleness_ns / 2;
        while let Some(report) = self.reports.front().filter(|report| report.at_ns + delay_ns <= self.now_ns) {
            let pool = &mut self.pools[self.replicas[report.replica].pool];
            // One of an engine that has failed since may still be on its way.
            if self.replicas[report.replica].before.len() == report.engine {
                for front in &mut pool.fronts {
                    front.router.report(report.replica as u64, report.at_ns, &report.load)?;
                }
            }
            pool.ask_all_again();
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
            if !replica.is_idle() || replica.due_ns.is_some() {
                continue;
            }
            let reported = replica.server.as_mut().and_then(|server| server.reported.as_mut());
            if let Some((taken_ns, load)) = reported.filter(|(taken_ns, _)| *taken_ns + 2 * delay_ns.max(1) < then_ns) {
                *taken_ns = then_ns;
                for front in &mut pool.fronts {
                    front.router.report(at as u64, then_ns, load)?;
                }
            }
        }
        Ok(())
    }

    /// Puts in order what replicas have reported. A replica that was idle may have, before another did.
    pub(super) fn sort_reports(&mut self) {
        self.reports.make_contiguous().sort_by_key(|taken| (taken.at_ns, taken.replica));
    }
}
