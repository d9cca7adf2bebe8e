//! The mean time of an iteration whose prefills come in whole prompts, not as a constant trickle.
//!
//! The fluid model spreads prompts evenly over the iterations. Under the paper's law that changes nothing, for it is
//! linear in the batch. Under a staircase law it does: 0.128 prompts of 512 tokens an iteration are 66 tokens on average
//! and a step up in every iteration, while in truth seven iterations of eight compute decodes only. Here the prompt
//! tokens of an iteration have a distribution, on a grid, and the time is averaged over it.

use crate::cost::{FluidShape, IterationTime};
use crate::fluid::{GpuLimits, Setting, kv};

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
    /// Mean prompt length.
    prompt: f64,
    /// Prompt lengths with their shares of the arrivals.
    lengths: Vec<(f64, f64)>,
}

impl<'a> Mixture<'a> {
    pub(crate) fn new(setting: &Setting<'a>) -> Self {
        let demand = setting.workload.demand(setting.convention);
        let rate = setting.workload.rate();
        let arriving = setting.workload.types().iter().filter(|t| t.rate > 0.0);
        Self {
            prompt: demand.prefill_tokens / rate,
            lengths: arriving.map(|t| (f64::from(t.prompt), t.rate / rate)).collect(),
            ..Self::of(&demand, setting.law, &setting.limits)
        }
    }

    /// Iterations whose decodes and prefills are, on average, like those of this batch; prompts are not known one by one.
    fn of(batch: &FluidShape, law: &'a IterationTime, limits: &GpuLimits) -> Self {
        let ratio = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        Self {
            law,
            budget: limits.token_budget.unwrap_or(limits.capacity).min(limits.capacity),
            decode_kv: ratio(batch.decode_kv, batch.decodes),
            attention: ratio(batch.prefill_attention, batch.prefill_tokens),
            prompt: 0.0,
            lengths: Vec::new(),
        }
    }

    #[cfg(test)]
    pub(crate) fn set_decode_kv(&mut self, tokens: f64) {
        self.decode_kv = tokens;
    }

    /// Mean prompt length.
    pub(crate) fn prompt(&self) -> f64 {
        self.prompt
    }

    /// The longest prompt.
    pub(crate) fn longest(&self) -> f64 {
        self.lengths.iter().map(|&(length, _)| length).fold(0.0, f64::max)
    }

    /// Most prompt tokens beside so many decodes; at least 1, for a budget below the decodes starves prefills for ever.
    pub(crate) fn room(&self, decodes: f64) -> f64 {
        (self.budget as f64 - decodes).max(1.0)
    }

    /// Seconds that a decode adds by itself, beside its place in the token count.
    pub(crate) fn decode_seconds(&self) -> f64 {
        let one = FluidShape { decodes: 1.0, decode_kv: self.decode_kv, ..FluidShape::default() };
        self.law.attention().variable_ns(&one) * 1e-9
    }

    /// Seconds of one iteration; 0 if there is nothing to compute.
    pub(crate) fn seconds(&self, decodes: f64, prefill_tokens: f64) -> f64 {
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

    /// A grid of at most `points` steps up to the room beside so many decodes; steps are multiples of the law's padding.
    pub(crate) fn grid(&self, decodes: f64, points: u64) -> Grid {
        self.grid_to(self.room(decodes), points)
    }

    fn grid_to(&self, room: f64, points: u64) -> Grid {
        let round = self.law.round_to();
        let step = ((room / points as f64 / round as f64).ceil() as u64 * round).max(1);
        let room = (room / step as f64).floor().max(1.0) as usize;
        Grid { step: step as f64, room, prompts: spread(&self.lengths, step as f64) }
    }

    /// Mean seconds of an iteration with so many decodes, if prompts enter as a Poisson stream of `entries` an
    /// iteration; the full iteration's where the budget cannot take in that many.
    pub(crate) fn poisson_seconds(&self, decodes: f64, entries: f64) -> f64 {
        let grid = self.grid(decodes, POINTS);
        let mean = entries * self.prompt;
        if mean >= grid.room as f64 * grid.step {
            return self.seconds(decodes, grid.room as f64 * grid.step);
        }
        self.mean_seconds(decodes, &grid, &grid.poisson(entries, grid.room + 1), mean)
    }

    /// Mean seconds of an iteration with so many decodes, if `entries` (prompt, number) enter in each: of a fractional
    /// number the whole part always, one more as often as the rest says.
    pub(crate) fn paced_seconds(&self, decodes: f64, entries: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
        let mean = entries.clone().map(|(prompt, n)| prompt * n).sum::<f64>();
        let most = entries.clone().map(|(prompt, n)| prompt * n.ceil()).sum::<f64>();
        // As fine as what enters allows, with a step to spare for what lies between two grid points.
        let grid = self.grid_to(self.room(decodes).min(most * (1.0 + 2.0 / POINTS as f64) + 1.0), POINTS);
        if mean >= grid.room as f64 * grid.step {
            return self.seconds(decodes, grid.room as f64 * grid.step);
        }
        let mut pmf = vec![0.0; grid.room + 1];
        pmf[0] = 1.0;
        for (prompt, n) in entries {
            let whole = n.floor();
            shift(&mut pmf, prompt * whole / grid.step, 1.0);
            shift(&mut pmf, prompt / grid.step, n - whole);
        }
        self.mean_seconds(decodes, &grid, &pmf, mean)
    }

    /// The mean over a distribution of tokens per iteration, whose mass beyond the budget is missing. What exceeds the
    /// budget in one iteration is computed by others, which are then full: a share φ of all, so that the mean is kept.
    fn mean_seconds(&self, decodes: f64, grid: &Grid, pmf: &[f64], mean: f64) -> f64 {
        let full = grid.room as f64 * grid.step;
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
pub(crate) struct Grid {
    /// Tokens per step.
    pub(crate) step: f64,
    /// Steps that fit in one iteration.
    pub(crate) room: usize,
    /// Distribution of one prompt's length in steps; its mean is exact.
    prompts: Vec<f64>,
}

impl Grid {
    /// The first `size` probabilities of the tokens, in steps, of a Poisson number of prompts (Panjer's recursion).
    pub(crate) fn poisson(&self, mean: f64, size: usize) -> Vec<f64> {
        // Beyond this e^(−mean) loses its digits: the sum of two halves is safe.
        if mean > 100.0 {
            let half = self.poisson(mean / 2.0, size);
            return (0..size).map(|k| (0..=k).map(|i| half[i] * half[k - i]).sum()).collect();
        }
        let mut pmf = vec![0.0; size];
        pmf[0] = libm::exp(-mean * (1.0 - self.prompts[0]));
        for k in 1..size {
            let upto = k.min(self.prompts.len() - 1);
            let sum: f64 = (1..=upto).map(|j| j as f64 * self.prompts[j] * pmf[k - j]).sum();
            pmf[k] = mean * sum / k as f64;
        }
        pmf
    }

    /// The longest prompt, in steps.
    pub(crate) fn longest(&self) -> usize {
        self.prompts.len() - 1
    }

    /// A few prompt lengths in steps, with weights: the means of equal shares of the arrivals.
    pub(crate) fn representatives(&self, count: usize) -> Vec<(usize, f64)> {
        let mut found: Vec<(usize, f64)> = Vec::with_capacity(count);
        let (mut below, mut next) = (0.0, 0.5 / count as f64);
        for (steps, p) in self.prompts.iter().enumerate() {
            below += p;
            while next < below && next < 1.0 {
                match found.last_mut() {
                    Some(last) if last.0 == steps.max(1) => last.1 += 1.0 / count as f64,
                    _ => found.push((steps.max(1), 1.0 / count as f64)),
                }
                next += 1.0 / count as f64;
            }
        }
        found
    }
}

/// The distribution of lengths in steps: each between two grid points is split so that its mean is kept.
fn spread(lengths: &[(f64, f64)], step: f64) -> Vec<f64> {
    let longest = lengths.iter().map(|&(length, _)| length).fold(0.0, f64::max);
    let mut pmf = vec![0.0; (longest / step).ceil() as usize + 2];
    for &(length, share) in lengths {
        let (at, part) = split(length / step);
        pmf[at] += share * (1.0 - part);
        pmf[at + 1] += share * part;
    }
    while pmf.len() > 2 && pmf.last() == Some(&0.0) {
        pmf.pop();
    }
    pmf
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

/// KV tokens of a resident request, averaged over its stages from its prefill on, in whole blocks.
pub(crate) fn resident_kv(setting: &Setting, block_size: u32) -> f64 {
    let mean = kv(&setting.workload.demand(setting.convention)) / setting.workload.iteration_rate(setting.convention);
    mean + (f64::from(block_size) - 1.0) / 2.0
}
