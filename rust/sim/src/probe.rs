//! The forecast against the truth: what the policy expects of the residents, and what actually happens.
//!
//! A probe is taken after an iteration. It replays the residents as they are, at their true lengths, with no request admitted
//! after them: each decodes one token an iteration until it ends.

use wait_core::{HoldReason, Phase, Slot};

use crate::engine::Engine;
use crate::error::SimError;
use crate::requests::Requests;
use crate::run::with_engine;
use crate::setup::Setup;

/// Forecasts and the truth beside them, by column. The last five have one entry for each probe and horizon, all horizons
/// of a probe together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Probes {
    /// Requests completed before the probe.
    pub completed: Vec<u64>,
    /// Residents.
    pub residents: Vec<u32>,
    /// Whether the next in the queue was held because the forecast left no room.
    pub held: Vec<bool>,
    /// Iterations ahead, the same for all probes.
    pub horizon: Vec<u32>,
    /// Expected KV tokens.
    pub mean: Vec<f64>,
    /// Its standard deviation, KV tokens.
    pub deviation: Vec<f64>,
    /// The probability that the cache overflows up to the horizon.
    pub overflow: Vec<f64>,
    /// KV tokens, in whole blocks, that the residents will hold at the horizon.
    pub truth: Vec<u64>,
    /// Most that they will hold up to the horizon.
    pub peak: Vec<u64>,
}

/// Runs all requests to their end, with a probe every `every` iterations in which any request is resident. There are
/// none where the policy forecasts nothing.
///
/// # Errors
/// [`SimError`], as for `run`.
pub fn probe<'a>(setup: &Setup, requests: impl Into<Requests<'a>>, every: u64) -> Result<Probes, SimError> {
    with_engine(setup, requests.into(), |mut served| {
        let mut probes = Probes::default();
        loop {
            served.send_requests()?;
            if !served.step()? {
                return Ok(probes);
            }
            let scheduler = served.scheduler();
            if scheduler.stats().iterations % every.max(1) == 0 && scheduler.view().residents() > 0 {
                probes.take(&mut served.engine);
            }
        }
    })
}

impl Probes {
    fn take(&mut self, engine: &mut Engine) {
        let forecast = engine.scheduler.kv_forecast();
        if forecast.is_empty() {
            return;
        }
        let view = engine.scheduler.view();
        // KV tokens and iterations left of a resident. A prompt not computed yet counts as if it were.
        let left = |slot: Slot| {
            let request = view.request(slot);
            let all = engine.iterations(request.id);
            match request.phase {
                Phase::Prefilling => (request.prefill_target(), all.saturating_sub(request.kept + 1)),
                _ => (view.kv(slot), all - view.stage(slot)),
            }
        };
        let residents: Vec<(u32, u32)> = view.iter_residents().map(left).collect();
        let block = u64::from(view.pool().block_size());
        let held = |after: u32| -> u64 {
            let running = residents.iter().filter(|&&(_, left)| left >= after);
            running.map(|&(kv, _)| u64::from(kv + after).div_ceil(block) * block).sum()
        };
        // KV grows between two ends: it is largest when a request is about to end, or at a horizon.
        let horizons = forecast.iter().map(|at| at.horizon);
        let mut times: Vec<u32> = residents.iter().map(|&(_, left)| left).chain(horizons.clone()).collect();
        times.sort_unstable();
        times.dedup();
        let mut times = times.into_iter().peekable();
        let (mut now, mut peak) = (0, 0);
        for at in &forecast {
            while let Some(time) = times.next_if(|&time| time <= at.horizon) {
                now = held(time);
                peak = peak.max(now);
            }
            self.mean.push(at.mean);
            self.deviation.push(at.deviation);
            self.overflow.push(at.overflow);
            self.truth.push(now);
            self.peak.push(peak);
        }
        self.horizon = horizons.collect();
        self.completed.push(engine.recorder.completed() as u64);
        self.residents.push(residents.len() as u32);
        let hold = engine.scheduler.last_plan().hold(0);
        self.held.push(hold.is_some_and(|hold| hold.reason == HoldReason::ForecastOverflow));
    }
}
