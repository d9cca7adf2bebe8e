//! What the scheduler reports to a router.

use super::Scheduler;
use crate::policy::{Expected, Policy};
use crate::routing::Load;

impl Scheduler {
    /// How busy the engine is, for a router that compares it with others. Costs a pass over the prompts being computed
    /// and, where the policy forecasts, one forecast: no more for more requests. Does not affect any decision.
    ///
    /// ```
    /// use wait_core::{Config, Request, Scheduler};
    ///
    /// let mut scheduler = Scheduler::new(&Config { kv_blocks: 1000, ..Config::default() })?;
    /// scheduler.add(&Request { id: 1, prompt: 100, ..Request::default() })?;
    /// // Nothing is expected before the first plan.
    /// assert_eq!((scheduler.load().waiting, scheduler.load().waiting_tokens, scheduler.load().kv_peak), (1, 100, None));
    /// scheduler.plan(0);
    /// let load = scheduler.load();
    /// assert_eq!((load.waiting, load.residents, load.kv_tokens, load.free_blocks), (0, 1, 100, 993));
    /// assert!(load.kv_peak.unwrap() > 100.0 && load.mean_output.unwrap() > 1.0);
    /// # Ok::<(), wait_core::Error>(())
    /// ```
    pub fn load(&mut self) -> Load {
        let expected = self.policy.expects(&self.view);
        let view = &self.view;
        let prefilling = || view.prefilling().iter().map(|&slot| (view.request(slot).prefill_target(), view.kv(slot)));
        let decoding: u64 = view.lanes().iter().map(crate::memory::Lane::kv).sum();
        let parked: u64 = view.parked().iter().map(|&slot| u64::from(view.kv(slot))).sum();
        Load {
            waiting: view.waiting_total(),
            residents: view.residents(),
            waiting_tokens: view.waiting_tokens(),
            prefill_tokens: prefilling().map(|(prompt, kv)| u64::from(prompt.saturating_sub(kv))).sum(),
            kv_tokens: decoding + parked + prefilling().map(|(_, kv)| u64::from(kv)).sum::<u64>(),
            free_blocks: view.pool().free().max(0) as u32,
            admission_gap_ns: self.waiting_time.gap_ns(),
            kv_peak: expected.map(|Expected { kv_peak, .. }| kv_peak),
            kv_deviation: expected.map(|Expected { kv_deviation, .. }| kv_deviation),
            mean_output: expected.map(|Expected { output, .. }| output),
        }
    }
}
