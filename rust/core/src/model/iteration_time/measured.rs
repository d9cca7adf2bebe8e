//! Staircase laws: steps in the token count plus attention costs, validated.

use serde::{Deserialize, Serialize};

use super::FluidShape;
use crate::error::{Error, invalid, non_negative, positive};

/// The part of an iteration's time that does not depend on `n`, in nanoseconds per unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttentionCosts {
    /// Once per batch with a decode.
    pub decode_base_ns: f64,
    /// Per decoding request.
    pub per_decode_ns: f64,
    /// Per KV token of the decoding requests.
    pub per_decode_kv_ns: f64,
    /// Once per batch with a prefill.
    pub prefill_base_ns: f64,
    /// Per prompt token computed.
    pub per_prefill_token_ns: f64,
    /// Per KV token of the prefilling requests.
    pub per_prefill_kv_ns: f64,
    /// Per unit of Q = Σ chunk · (kv + chunk/2).
    pub per_prefill_attention_ns: f64,
}

impl AttentionCosts {
    #[inline]
    pub(super) fn nanos(&self, shape: &FluidShape) -> f64 {
        self.base_ns(shape) + self.variable_ns(shape)
    }

    /// The costs paid once per batch of this shape.
    #[inline]
    pub(crate) fn base_ns(&self, shape: &FluidShape) -> f64 {
        let decode = if shape.decodes > 0.0 { self.decode_base_ns } else { 0.0 };
        let prefill = if shape.prefill_tokens > 0.0 { self.prefill_base_ns } else { 0.0 };
        decode + prefill
    }

    /// The costs proportional to the shape.
    #[inline]
    pub(crate) fn variable_ns(&self, shape: &FluidShape) -> f64 {
        self.per_decode_ns * shape.decodes
            + self.per_decode_kv_ns * shape.decode_kv
            + self.per_prefill_token_ns * shape.prefill_tokens
            + self.per_prefill_kv_ns * shape.prefill_kv
            + self.per_prefill_attention_ns * 0.5 * shape.prefill_attention
    }
}

/// One step of a staircase: `base + per_token · n` for token counts up to `up_to`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenStep {
    /// Largest token count of this step; the last step also serves everything beyond it.
    pub up_to: u64,
    /// Nanoseconds at n = 0 of the step's line (may be negative, the line itself is positive on the step).
    pub base_ns: f64,
    /// Nanoseconds per token.
    pub per_token_ns: f64,
}

impl TokenStep {
    #[inline]
    pub(super) fn at(&self, tokens: u64) -> f64 {
        self.base_ns + self.per_token_ns * tokens as f64
    }
}

/// A law measured on one GPU: a staircase in the tokens computed, plus attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "MeasuredParameters")]
pub struct MeasuredLaw {
    pub(super) round_to: u64,
    pub(super) steps: Vec<TokenStep>,
    pub(super) attention: AttentionCosts,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MeasuredParameters {
    round_to: u64,
    steps: Vec<TokenStep>,
    attention: AttentionCosts,
}

impl TryFrom<MeasuredParameters> for MeasuredLaw {
    type Error = Error;

    fn try_from(raw: MeasuredParameters) -> Result<Self, Error> {
        Self::new(raw.round_to, raw.steps, raw.attention)
    }
}

/// Largest token count a law accepts as a step's end: far above any context, and exact in f64.
const MAX_TOKENS: u64 = 1 << 32;

impl MeasuredLaw {
    /// Steps ordered by `up_to`; `round_to` is the granularity to which the GPU pads the token count (1 for none).
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no step, the steps are not in ascending order, a cost is negative
    /// or not finite, or a step is not positive over its own range.
    pub fn new(round_to: u64, steps: Vec<TokenStep>, attention: AttentionCosts) -> Result<Self, Error> {
        if !(1..=MAX_TOKENS).contains(&round_to) {
            return Err(invalid("round_to", &round_to, "between 1 and 2^32"));
        }
        if steps.is_empty() {
            return Err(invalid("steps", &"[]", "at least one step"));
        }
        let mut previous = 0;
        for (i, step) in steps.iter().enumerate() {
            if step.up_to <= previous || step.up_to > MAX_TOKENS {
                let name = format!("steps[{i}].up_to");
                return Err(invalid(name, &step.up_to, "above the previous step's end and at most 2^32"));
            }
            if !step.base_ns.is_finite() {
                return Err(invalid(format!("steps[{i}].base_ns"), &step.base_ns, "finite"));
            }
            non_negative(&format!("steps[{i}].per_token_ns"), step.per_token_ns)?;
            positive(&format!("time of steps[{i}] at {} tokens", previous + 1), step.at(previous + 1))?;
            previous = step.up_to;
        }
        let costs = &attention;
        for (name, value) in [
            ("decode_base_ns", costs.decode_base_ns),
            ("per_decode_ns", costs.per_decode_ns),
            ("per_decode_kv_ns", costs.per_decode_kv_ns),
            ("prefill_base_ns", costs.prefill_base_ns),
            ("per_prefill_token_ns", costs.per_prefill_token_ns),
            ("per_prefill_kv_ns", costs.per_prefill_kv_ns),
            ("per_prefill_attention_ns", costs.per_prefill_attention_ns),
        ] {
            non_negative(name, value)?;
        }
        Ok(Self { round_to, steps, attention })
    }

    /// The continuous piecewise-linear law through measured `(tokens, nanoseconds)` points, extrapolated with the last
    /// slope (and constant below the first point).
    ///
    /// # Errors
    /// [`Error::Invalid`] if there are fewer than two points, token counts do not ascend, or times fall.
    pub fn from_points(points: &[(u64, f64)], attention: AttentionCosts) -> Result<Self, Error> {
        if points.len() < 2 {
            return Err(invalid("points", &points.len(), "at least two points"));
        }
        let mut steps = vec![TokenStep { up_to: points[0].0, base_ns: points[0].1, per_token_ns: 0.0 }];
        for (i, pair) in points.windows(2).enumerate() {
            let ((from, low), (to, high)) = (pair[0], pair[1]);
            if to <= from {
                return Err(invalid(format!("points[{}].tokens", i + 1), &to, "above the previous point's"));
            }
            let slope = (high - low) / (to - from) as f64;
            steps.push(TokenStep { up_to: to, base_ns: low - slope * from as f64, per_token_ns: slope });
        }
        Self::new(1, steps, attention)
    }

    /// The law of a fit: its costs are nonnegative, and its steps ascend, as `new` would demand.
    pub(crate) fn fitted(steps: Vec<TokenStep>, attention: AttentionCosts) -> Self {
        debug_assert!(Self::new(1, steps.clone(), attention).is_ok(), "{steps:?}, {attention:?}");
        Self { round_to: 1, steps, attention }
    }

    /// The steps alone, to be used again.
    pub(crate) fn into_steps(self) -> Vec<TokenStep> {
        self.steps
    }

    /// The steps, in ascending order of tokens.
    pub fn steps(&self) -> &[TokenStep] {
        &self.steps
    }
}
