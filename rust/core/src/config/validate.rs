//! The one validator that Python keywords, settings files and vLLM's JSON pass through.

use super::{Config, Late, MAX_BLOCK_SIZE, MAX_COUNT, MAX_LOOKAHEAD, MAX_TYPES, Order, PolicyName};
use crate::error::{Error, Result};
use crate::memory::KvGroup;
use crate::model::MAX_LENGTH;

fn count(name: &str, value: u32, most: u32) -> Result<()> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(name, value, format!("must be between 1 and {most}")))
}

impl Config {
    /// Checks every value against its range.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the first that is outside.
    pub fn validate(&self) -> Result<()> {
        self.validate_memory()?;
        count("max_num_seqs", self.max_num_seqs, MAX_COUNT)?;
        count("token_budget", self.token_budget, MAX_COUNT)?;
        count("long_prefill_token_threshold", self.long_prefill_token_threshold.unwrap_or(1), MAX_COUNT)?;
        if self.token_budget < self.max_num_seqs {
            let rule = format!("must be at least max_num_seqs ({}), or some decodes never run", self.max_num_seqs);
            return Err(Error::invalid("token_budget", self.token_budget, rule));
        }
        count("max_model_len", self.max_model_len.unwrap_or(1), MAX_COUNT)?;
        if !(0.0..1.0).contains(&self.watermark) {
            return Err(Error::invalid("watermark", self.watermark, "must be at least 0 and below 1"));
        }
        if let Some(seconds) = self.max_hold.filter(|seconds| !(seconds.is_finite() && *seconds >= 0.0)) {
            return Err(Error::invalid("max_hold", seconds, "must be finite and at least 0 seconds"));
        }
        if let Some(seconds) = self.ageing.filter(|seconds| !(0.0..=1e9).contains(seconds)) {
            return Err(Error::invalid("ageing", seconds, "must be between 0 and 1e9 seconds, or null for no ageing"));
        }
        if let Some(delta) = self.overflow_probability.filter(|delta| !(*delta > 0.0 && *delta < 1.0)) {
            return Err(Error::invalid("overflow_probability", delta, "must be strictly between 0 and 1"));
        }
        if let Some(seconds) = self.tpot_target.filter(|seconds| !(seconds.is_finite() && *seconds > 0.0)) {
            return Err(Error::invalid("tpot_target", seconds, "must be finite and above 0 seconds"));
        }
        if let Some(seconds) = self.ttft_target.filter(|seconds| !(seconds.is_finite() && *seconds > 0.0)) {
            return Err(Error::invalid("ttft_target", seconds, "must be finite and above 0 seconds"));
        }
        if self.late == Late::Refuse && self.ttft_target.is_none() {
            return Err(Error::invalid("late", "\"refuse\"", "needs ttft_target, by which requests are late"));
        }
        if self.tenant_weights.len() > MAX_TYPES {
            return Err(Error::invalid("tenant_weights", self.tenant_weights.len(), format!("at most {MAX_TYPES}")));
        }
        if let Some(weight) = self.tenant_weights.iter().find(|weight| !(1e-6..=1e6).contains(*weight)) {
            return Err(Error::invalid("tenant_weights", weight, "each must be between 1e-6 and 1e6"));
        }
        if self.policy == PolicyName::Adaptive && self.order == Order::Paced {
            return Err(Error::invalid("order", "\"paced\"", "policy \"adaptive\" takes \"fcfs\" or \"srpt\""));
        }
        if self.max_queued_requests == Some(0) {
            return Err(Error::invalid("max_queued_requests", 0, "must be at least 1, or nothing is ever accepted"));
        }
        if self.max_queued_tokens == Some(0) {
            return Err(Error::invalid("max_queued_tokens", 0, "must be at least 1, or nothing is ever accepted"));
        }
        if self.types.len() > MAX_TYPES {
            return Err(Error::invalid("types", self.types.len(), format!("at most {MAX_TYPES} types")));
        }
        if !self.types.is_empty() {
            self.workload()?;
        }
        self.validate_thresholds()
    }

    /// Checks the KV cache.
    pub(crate) fn validate_memory(&self) -> Result<()> {
        count("kv_blocks", self.kv_blocks, MAX_COUNT)?;
        count("block_size", self.block_size, MAX_BLOCK_SIZE)?;
        KvGroup::validate(&self.kv_groups, self.block_size)?;
        if self.prefix_caching {
            KvGroup::validate_cached(&self.kv_groups, self.block_size)?;
        }
        let ahead = [
            ("num_speculative_tokens", self.num_speculative_tokens),
            ("num_lookahead_tokens", self.num_lookahead_tokens),
        ];
        if let Some((name, tokens)) = ahead.into_iter().find(|&(_, tokens)| tokens > MAX_LOOKAHEAD) {
            return Err(Error::invalid(name, tokens, format!("must be at most {MAX_LOOKAHEAD}")));
        }
        let tokens = u64::from(self.kv_blocks) * u64::from(self.block_size);
        if tokens > u64::from(MAX_COUNT) {
            let rule = format!("with blocks of {} tokens must hold at most {MAX_COUNT} tokens", self.block_size);
            return Err(Error::invalid("kv_blocks", self.kv_blocks, rule));
        }
        if self.kv_layout().largest(self.kv_blocks, MAX_COUNT) == 0 {
            let rule = "must hold the blocks that one token needs in all groups";
            return Err(Error::invalid("kv_blocks", self.kv_blocks, rule));
        }
        Ok(())
    }

    fn validate_thresholds(&self) -> Result<()> {
        if let Some(boundaries) = &self.boundaries {
            if boundaries.is_empty() || boundaries.len() > usize::from(u16::MAX) {
                return Err(Error::invalid("boundaries", boundaries.len(), "between 1 and 65,535 boundaries"));
            }
            for (k, &boundary) in boundaries.iter().enumerate() {
                let previous = k.checked_sub(1).map_or(0, |before| boundaries[before]);
                if boundary <= previous || boundary > MAX_LENGTH {
                    let rule = format!("must be above {previous} and at most {MAX_LENGTH} tokens");
                    return Err(Error::invalid(format!("boundaries[{k}]"), boundary, rule));
                }
            }
        }
        if !(self.margin.is_finite() && self.margin >= 0.0) {
            return Err(Error::invalid("margin", self.margin, "must be finite and at least 0"));
        }
        if let Some(protection) = &self.protection {
            protection.validate().map_err(|error| Error::invalid("protection", "…", error.to_string()))?;
        }
        match self.policy {
            PolicyName::Wait if self.types.is_empty() => {
                Err(Error::invalid("types", "[]", "policy \"wait\" needs at least one request type"))
            }
            PolicyName::Wait => self.thresholds.iter().try_for_each(|n| check_thresholds(n, self.types.len(), "type")),
            PolicyName::NestedWait
                if self.types.is_empty() && (self.boundaries.is_none() || self.thresholds.is_none()) =>
            {
                let rule = "policy \"nested-wait\" needs request types, or boundaries and thresholds";
                Err(Error::invalid("types", "[]", rule))
            }
            // Other policies do not read them, but a value that no policy takes is a mistake all the same.
            _ => self.thresholds.iter().try_for_each(|n| check_thresholds(n, n.len(), "type")),
        }
    }
}

/// Checks that there is one threshold for each of `count` types or segments, all of them above 0.
pub(crate) fn check_thresholds(thresholds: &[f64], count: usize, each: &str) -> Result<()> {
    if thresholds.len() != count {
        let rule = format!("one threshold a {each}: {count} expected");
        return Err(Error::invalid("thresholds", thresholds.len(), rule));
    }
    for (i, &n) in thresholds.iter().enumerate() {
        if !(n.is_finite() && n > 0.0 && n <= f64::from(MAX_COUNT)) {
            let rule = format!("must be finite, above 0 and at most {MAX_COUNT}");
            return Err(Error::invalid(format!("thresholds[{i}]"), n, rule));
        }
    }
    Ok(())
}
