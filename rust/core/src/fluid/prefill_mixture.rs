//! The mean time of an iteration whose prefills come in whole prompts, not as a constant trickle.
//!
//! The fluid model spreads prompts evenly over the iterations. Under the paper's law that changes nothing, as it is
//! linear in the batch. Under a staircase law it does: 0.128 prompts of 512 tokens an iteration are 66 tokens on average
//! and a step up in every iteration, while in truth seven iterations of eight compute decodes only. Here the prompt
//! tokens of an iteration have a distribution, on a grid, and the time is averaged over it.

use crate::fluid::{GpuLimits, Setting};
use crate::model::{FluidShape, IterationTime};

/// Most grid points up to the token budget.
const POINTS: u64 = 256;

/// Iterations of one setting, by their number of decodes and the tokens prefilled beside them.
pub(crate) struct Mixture<'a> {
    law: &'a IterationTime,
    /// Most tokens in an iteration.
    budget: u64,
    /// KV tokens that a decode reads, on average.
    decode_kv: f64,
    /// What one prompt token adds to the attention, on average.
    attention: f64,
}

impl<'a> Mixture<'a> {
    pub(crate) fn new(setting: &Setting<'a>) -> Self {
        Self::of(&setting.workload.demand(setting.convention), setting.law, &setting.limits)
    }

    /// Iterations whose decodes and prefills are, on average, like those of this batch.
    fn of(batch: &FluidShape, law: &'a IterationTime, limits: &GpuLimits) -> Self {
        let ratio = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        Self {
            law,
            budget: limits.token_budget.unwrap_or(limits.capacity).min(limits.capacity),
            decode_kv: ratio(batch.decode_kv, batch.decodes),
            attention: ratio(batch.prefill_attention, batch.prefill_tokens),
        }
    }

    /// Most prompt tokens beside these decodes; at least 1, because a budget below the decodes starves prefills
    /// forever.
    fn room(&self, decodes: f64) -> f64 {
        (self.budget as f64 - decodes).max(1.0)
    }

    /// Seconds that a decode adds by itself, in addition to its place in the token count.
    pub(crate) fn decode_seconds(&self) -> f64 {
        let one = FluidShape { decodes: 1.0, decode_kv: self.decode_kv, ..FluidShape::default() };
        self.law.attention().variable_ns(&one) * 1e-9
    }

    /// Seconds of one iteration; 0 if there is nothing to compute.
    fn seconds(&self, decodes: f64, prefill_tokens: f64) -> f64 {
        if decodes + prefill_tokens <= 0.0 {
            return 0.0;
        }
        self.law.fluid_seconds(&FluidShape {
            prefill_tokens,
            decodes,
            decode_kv: decodes * self.decode_kv,
            prefill_kv: prefill_tokens,
            prefill_attention: prefill_tokens * self.attention,
        })
    }

    /// A grid of at most `POINTS` steps up to `most` tokens; steps are multiples of the law's padding.
    fn grid(&self, most: f64) -> Grid {
        let round = self.law.round_to();
        let step = ((most / POINTS as f64 / round as f64).ceil() as u64 * round).max(1);
        Grid { step: step as f64, steps: (most / step as f64).floor().max(1.0) as usize }
    }

    /// Mean seconds of an iteration with this many decodes, if `entries` (prompt, number) enter in each: of a
    /// fractional number the integer part always, and one more with the probability of the remainder.
    pub(crate) fn paced_seconds(&self, decodes: f64, entries: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
        let mean = entries.clone().map(|(prompt, n)| prompt * n).sum::<f64>();
        let most = entries.clone().map(|(prompt, n)| prompt * n.ceil()).sum::<f64>();
        // As fine as the entries allow, with a step to spare for what lies between two grid points.
        let grid = self.grid(self.room(decodes).min(most * (1.0 + 2.0 / POINTS as f64) + 1.0));
        let full = grid.steps as f64 * grid.step;
        if mean >= full {
            return self.seconds(decodes, full);
        }
        let mut pmf = vec![0.0; grid.steps + 1];
        pmf[0] = 1.0;
        for (prompt, n) in entries {
            let whole = n.floor();
            shift(&mut pmf, prompt * whole / grid.step, 1.0);
            shift(&mut pmf, prompt / grid.step, n - whole);
        }
        // The mass beyond the budget is missing: what exceeds it in one iteration is computed by others, which are then
        // full, a share φ of all, so that the mean is kept.
        let inside: f64 = pmf.iter().sum();
        let computed =
            pmf.iter().enumerate().map(|(i, p)| p * i as f64 * grid.step).sum::<f64>() + (1.0 - inside) * full;
        let extra = ((mean - computed) / (full - computed)).clamp(0.0, 1.0);
        let each = pmf.iter().enumerate().filter(|&(_, &p)| p > 0.0);
        let seconds: f64 = each.map(|(i, p)| p * self.seconds(decodes, i as f64 * grid.step)).sum();
        let last = self.seconds(decodes, full);
        (1.0 - extra) * (seconds + (1.0 - inside).max(0.0) * last) + extra * last
    }
}

/// ΔT(n): mean seconds of the iterations in which `entries` (prompt, number) enter, where `batch` is their average. With
/// whole numbers every iteration is that batch, and under a law that is linear in the batch the mean is the average's.
pub(crate) fn iteration_seconds(
    batch: &FluidShape,
    entries: impl Iterator<Item = (f64, f64)> + Clone,
    law: &IterationTime,
    limits: &GpuLimits,
) -> f64 {
    if matches!(law, IterationTime::Linear(_)) || entries.clone().all(|(_, n)| n.fract() == 0.0) {
        return law.fluid_seconds(batch);
    }
    Mixture::of(batch, law, limits).paced_seconds(batch.decodes, entries)
}

/// Prompt tokens in steps.
struct Grid {
    /// Tokens per step.
    step: f64,
    /// Steps to its end.
    steps: usize,
}

fn split(steps: f64) -> (usize, f64) {
    let at = steps.floor();
    (at as usize, steps - at)
}

/// Adds `steps` with this probability; what moves past the end is dropped.
fn shift(pmf: &mut [f64], steps: f64, probability: f64) {
    let (at, part) = split(steps);
    if probability <= 0.0 || steps <= 0.0 {
        return;
    }
    for k in (0..pmf.len()).rev() {
        let from = |by: usize| if k >= by { pmf[k - by] } else { 0.0 };
        let moved = (1.0 - part) * from(at) + part * from(at + 1);
        pmf[k] = (1.0 - probability) * pmf[k] + probability * moved;
    }
}
