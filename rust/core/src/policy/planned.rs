//! Thresholds for `wait` and `nested-wait` where the settings give none: planned from the rates of the types.
//!
//! A faithful policy (not work-conserving) with a law for the iteration time gets the thresholds of least expected
//! latency, as planned by `wait_thresholds.rs` and `segments.rs`. Where thresholds act as caps, WAIT gets those that
//! serve the most under the law. Without a law the largest thresholds are best: n = λ Δ' with the memory full.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::fluid::{GpuLimits, NestedSetting, NestedThresholds, Segments, Setting, Thresholds};
use crate::model::{RequestType, Workload};

fn limits(config: &Config) -> GpuLimits {
    GpuLimits {
        capacity: u64::from(config.kv_blocks) * u64::from(config.block_size),
        max_running: Some(config.max_num_seqs),
        token_budget: Some(u64::from(config.token_budget)),
    }
}

fn refused(error: &Error) -> Error {
    Error::invalid("types", "[…]", error.to_string())
}

/// Blocks in use, less what admission leaves free and the room for `ahead` whole requests.
///
/// Whole requests enter where a threshold asks for fractions: each type or segment may be one request ahead of its
/// share, independently of the others, so the excesses add up like standard deviations.
fn usable_blocks(config: &Config, ahead: impl Iterator<Item = f64>) -> f64 {
    let blocks = f64::from(config.kv_blocks);
    let excess = libm::sqrt(ahead.map(|blocks| blocks * blocks).sum());
    (blocks - excess).max(0.5 * blocks)
}

/// Σ ⌈t/b⌉ over t = 1, …, `tokens`: the block · iterations of a request that grows from one token to `tokens`.
fn blocks_up_to(tokens: u32, block_size: u32) -> f64 {
    let (full, rest) = (u64::from(tokens / block_size), u64::from(tokens % block_size));
    (u64::from(block_size) * (full * (full + 1) / 2) + rest * (full + 1)) as f64
}

/// WAIT's n_j, one a type.
pub(super) fn wait(config: &Config, workload: &Workload) -> Result<Vec<f64>> {
    for (j, kind) in workload.types().iter().enumerate() {
        if kind.rate <= 0.0 {
            let rule = "must be above 0 when thresholds are planned from the rates";
            return Err(Error::invalid(format!("types[{j}].rate"), kind.rate, rule));
        }
    }
    if let Some(law) = &config.iteration_time {
        let setting = Setting { workload, law, convention: config.convention, limits: limits(config) };
        let planned = if config.work_conserving {
            Thresholds::most_throughput(&setting, config.block_size)
        } else {
            Thresholds::plan(&setting)
        };
        return Ok(planned.map_err(|error| refused(&error))?.per_type);
    }
    let blocks = |tokens: u32| f64::from(tokens.div_ceil(config.block_size));
    let held = |kind: &RequestType| {
        let last = kind.prompt + config.convention.last_stage(kind.output);
        blocks_up_to(last, config.block_size) - blocks_up_to(kind.prompt - 1, config.block_size)
    };
    let load: f64 = workload.types().iter().map(|kind| kind.rate * held(kind)).sum();
    let usable = usable_blocks(config, workload.types().iter().map(|kind| blocks(kind.prompt + kind.output)));
    Ok(workload.types().iter().map(|kind| kind.rate * usable / load).collect())
}

/// Nested WAIT's segments: at the given boundaries, or one for each distinct output length.
pub(super) fn segments(config: &Config, workload: &Workload) -> Result<Segments> {
    match &config.boundaries {
        Some(boundaries) => Segments::coarse(workload, boundaries, config.convention),
        None => Segments::exact(workload, config.convention),
    }
    .map_err(|error| refused(&error))
}

/// Nested WAIT's n_k, one a segment.
pub(super) fn nested(config: &Config, segments: &Segments) -> Result<Vec<f64>> {
    if let Some(law) = config.iteration_time.as_ref().filter(|_| !config.work_conserving) {
        let (protection, block_size) = (config.protection, config.block_size);
        let setting = NestedSetting { segments, law, limits: limits(config), protection, block_size };
        match NestedThresholds::best(&setting, config.margin) {
            Ok(best) => return Ok(best.per_segment),
            // In overload the largest chain keeps the memory full, and leaves the rest waiting.
            Err(Error::Unstable { .. } | Error::Infeasible { .. }) => {}
            Err(error) => return Err(refused(&error)),
        }
    }
    let block = f64::from(config.block_size);
    let chain = NestedThresholds::chain(1.0, segments, config.margin).map_err(|error| refused(&error))?;
    // A request's last block is half empty on average.
    let footprint = |tokens: f64| (tokens + 0.5 * (block - 1.0)) / block;
    let all = segments.as_slice();
    let load: f64 = all
        .iter()
        .zip(&chain)
        .map(|(s, n)| n * f64::from(s.width()) * footprint(s.tokens() / f64::from(s.width())))
        .sum();
    // At least n_k requests wait at a boundary.
    let queues: f64 =
        all.iter().zip(&chain).skip(1).map(|(s, n)| n * footprint(s.prompt + f64::from(s.first_stage))).sum();
    let usable = usable_blocks(config, all.iter().map(|s| footprint(s.prompt + f64::from(s.last_stage))));
    Ok(chain.iter().map(|n| n * usable / (load + queues)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_iterations_are_the_sum_over_the_stages() {
        for block_size in [1, 3, 16, 100] {
            let mut sum = 0;
            for tokens in 1_u32..200 {
                sum += tokens.div_ceil(block_size);
                assert!((blocks_up_to(tokens, block_size) - f64::from(sum)).abs() < 0.5, "{tokens} of {block_size}");
            }
        }
        assert!(blocks_up_to(0, 16).abs() < 0.5);
        let (most, half) = (f64::from(1 << 27), f64::from(1 << 26));
        assert!((blocks_up_to(1 << 27, 1) - half * (most + 1.0)).abs() < 2.0, "the longest prompt and output");
    }
}
