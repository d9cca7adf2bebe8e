//! The member of WAIT's family that serves the most: thresholds as caps on the residents of a busy GPU.
//!
//! With spacing Δ' a saturated GPU serves `λ_j` Δ'/T of each type per second, where T is the mean time of an iteration.
//! Under the paper's law a larger Δ' is always better, up to the memory. On a staircase it is not: a resident past the
//! right edge of a tile makes every iteration that computes decodes only as slow as the next tile. So T is averaged over
//! what iterations really are, most of them decodes alone and some with whole prompts beside (`prefill_mixture.rs`).

use super::Thresholds;
use crate::error::{Error, invalid};
use crate::fluid::prefill_mixture::Mixture;
use crate::fluid::{Setting, require_arrivals};
use crate::model::RequestType;

impl Thresholds {
    /// The member n = λ Δ' of the family with the most requests per second, Δ'/T, among those that fit: whole blocks of
    /// `block_size` tokens, residents capped at ⌈`n_j` · stages⌉ by type, and one request ahead of its share.
    ///
    /// As caps of a work-conserving WAIT they serve any load: below saturation there are fewer residents anyway.
    ///
    /// # Errors
    /// [`Error::Invalid`] if nothing arrives or a limit is out of range. What fails of the paper's
    /// conditions is no error: see `violations`.
    pub fn most_throughput(setting: &Setting, block_size: u32) -> Result<Self, Error> {
        setting.limits.validate()?;
        require_arrivals(setting)?;
        if block_size == 0 {
            return Err(invalid("block_size", &block_size, "at least 1"));
        }
        let block = u64::from(block_size);
        let (types, capacity) = (setting.workload.types(), setting.limits.capacity as f64);
        let held = |t: &RequestType| t.rate * (blocks_over_life(t, setting, block) * block) as f64;
        // Whole requests enter where the threshold asks for fractions: a type may be one request ahead of its share.
        // Types are ahead independently of each other, so their excesses add up like standard deviations.
        let ahead = |t: &RequestType| {
            let tokens = u64::from(t.prompt) + u64::from(t.output);
            if t.rate > 0.0 { (tokens.div_ceil(block) * block) as f64 } else { 0.0 }
        };
        let excess = types.iter().map(|t| ahead(t) * ahead(t)).sum::<f64>().sqrt();
        let by_memory = (capacity - excess).max(0.5 * capacity) / types.iter().map(held).sum::<f64>();
        let demand = setting.workload.demand(setting.convention);
        Self::with_spacing(most_efficient(setting, by_memory.min(setting.largest_spacing(&demand).0)), setting)
    }
}

/// Blocks held by one request, summed over its iterations: Σ ⌈(l + s)/block⌉.
fn blocks_over_life(t: &RequestType, setting: &Setting, block: u64) -> u64 {
    let upto = |n: u64| {
        let (whole, rest) = (n / block, n % block);
        block * whole * (whole + 1) / 2 + rest * (whole + 1)
    };
    let first = u64::from(t.prompt);
    upto(first + u64::from(setting.convention.last_stage(t.output))) - upto(first - 1)
}

/// The spacing up to `largest` with the most requests per second: the largest one, one on a fine grid below it, or one
/// at which the residents fill a tile of the law exactly.
pub(super) fn most_efficient(setting: &Setting, largest: f64) -> f64 {
    const POINTS: u32 = 200;
    let mixture = Mixture::new(setting);
    let types = || setting.workload.types().iter().filter(|t| t.rate > 0.0);
    let stages = |t: &RequestType| f64::from(setting.convention.last_stage(t.output)) + 1.0;
    let residents = |u: f64| types().map(|t| (u * t.rate * stages(t) * (1.0 - 1e-12)).ceil()).sum::<f64>();
    let average = setting.workload.iteration_rate(setting.convention);
    // The token count is that of the fullest iteration, the KV that of the average one.
    let rate = |u: f64| {
        let (most, mean) = (residents(u), u * average);
        let fullest = mixture.paced_seconds(most, types().map(|t| (f64::from(t.prompt), u * t.rate)));
        u / (fullest - mixture.decode_seconds() * (most - mean))
    };
    let edges = setting.law.right_edges(residents(largest).min(1e9) as u64).into_iter();
    let filled = edges.filter_map(|edge| {
        let (mut low, mut high) = (0.0, largest);
        for _ in 0..60 {
            let middle = f64::midpoint(low, high);
            if residents(middle) <= edge as f64 { low = middle } else { high = middle }
        }
        // Short of the edge by more than a rounding error: one resident too many costs a tile.
        (low > 0.0).then_some(low * (1.0 - 1e-11))
    });
    let grid = (1..POINTS).map(|i| largest * f64::from(i) / f64::from(POINTS));
    // Between nearly equal ones the largest has the most room for fluctuations.
    let better = |best: f64, u: f64| if rate(u) > rate(best) * (1.0 + 1e-9) { u } else { best };
    grid.chain(filled).fold(largest, better)
}
