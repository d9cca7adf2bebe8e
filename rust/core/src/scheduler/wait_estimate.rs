//! How long a request that joins the queue now will wait for its admission: the requests ahead, times the mean gap
//! between admissions while a request waited.

/// Admissions over which the gap is taken.
const MEMORY: f64 = 128.0;

/// The gap, learned from what the scheduler does. Works for every policy.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WaitingTime {
    gap_ns: f64,
    admissions: f64,
    /// Start of the current gap; none while no request waits.
    since_ns: Option<u64>,
}

impl WaitingTime {
    /// A plan at `now_ns` has admitted `admitted` requests, and `waiting` others still wait.
    #[inline]
    pub(crate) fn step(&mut self, now_ns: u64, waiting: u32, admitted: u32) {
        if admitted > 0 {
            self.learn(now_ns, admitted);
        }
        if waiting == 0 {
            self.since_ns = None;
        } else if admitted > 0 || self.since_ns.is_none() {
            self.since_ns = Some(now_ns);
        }
    }

    fn learn(&mut self, now_ns: u64, admitted: u32) {
        // A request that found the queue empty did not wait for another: that is no gap.
        let Some(since) = self.since_ns else { return };
        let gap = now_ns.saturating_sub(since) as f64 / f64::from(admitted);
        for _ in 0..admitted.min(MEMORY as u32) {
            self.admissions = (self.admissions + 1.0).min(MEMORY);
            self.gap_ns += (gap - self.gap_ns) / self.admissions;
        }
    }

    /// Mean time between two admissions while a request waited, ns; 0 as long as none has.
    pub(crate) fn gap_ns(&self) -> u64 {
        self.gap_ns as u64
    }

    /// Expected wait behind `ahead` others, ns; 0 as long as no request has waited.
    pub(crate) fn predict_ns(&self, ahead: u32) -> u64 {
        // An empty queue means no wait: the gap is how fast a queue moves, not how long an admission takes.
        if ahead == 0 { 0 } else { (self.gap_ns * (f64::from(ahead) + 0.5)) as u64 }
    }
}
