//! Iteration time: how long one batch takes on the GPU.
//!
//! Every law has the shape `base(n) + coefficients · batch`, where `n` is the number of tokens the batch computes and the
//! rest is attention. The paper's law (arXiv 2504.11320 §2) is `d0 + d1 · KV`; the A100 law is a fit of Vidur's profile of
//! Llama-2-7B; a measured law has the same form as the A100's, with constants of one's own.

use serde::{Deserialize, Serialize};

use crate::error::{Error, non_negative, positive};

mod beside;
mod measured;
mod shape;
#[cfg(test)]
mod tests;

pub(crate) use beside::BesideDecodes;
pub use measured::{AttentionCosts, MeasuredLaw, TokenStep};
pub use shape::{BatchShape, FluidShape};

/// The paper's law: d0 + d1 · Σ (l + s) over the batched requests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "LinearParameters")]
pub struct LinearLaw {
    d0: f64,
    d1: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinearParameters {
    d0: f64,
    d1: f64,
}

impl TryFrom<LinearParameters> for LinearLaw {
    type Error = Error;

    fn try_from(raw: LinearParameters) -> Result<Self, Error> {
        Self::new(raw.d0, raw.d1)
    }
}

impl LinearLaw {
    /// `d0` in seconds, above 0; `d1` in seconds per KV token, at least 0.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the constant that is out of range.
    pub fn new(d0: f64, d1: f64) -> Result<Self, Error> {
        Ok(Self { d0: positive("d0", d0)?, d1: non_negative("d1", d1)? })
    }

    /// Seconds of an iteration with no KV.
    pub fn d0(&self) -> f64 {
        self.d0
    }

    /// Seconds per KV token.
    pub fn d1(&self) -> f64 {
        self.d1
    }
}

/// Llama-2-7B on one A100-80GB (fp16, TP 1): Vidur's published profile, fitted (GEMM tiles make it a staircase).
const A100_STEPS: [TokenStep; 9] = [
    TokenStep { up_to: 64, base_ns: 9_060_000.0, per_token_ns: 11_700.0 },
    TokenStep { up_to: 128, base_ns: 10_170_000.0, per_token_ns: 16_900.0 },
    TokenStep { up_to: 256, base_ns: 16_080_000.0, per_token_ns: 7_200.0 },
    TokenStep { up_to: 384, base_ns: 20_010_000.0, per_token_ns: 8_900.0 },
    TokenStep { up_to: 512, base_ns: 22_290_000.0, per_token_ns: 20_700.0 },
    TokenStep { up_to: 768, base_ns: 9_390_000.0, per_token_ns: 51_800.0 },
    TokenStep { up_to: 1024, base_ns: 12_490_000.0, per_token_ns: 53_900.0 },
    TokenStep { up_to: 2048, base_ns: -460_000.0, per_token_ns: 65_500.0 },
    TokenStep { up_to: 4096, base_ns: 9_510_000.0, per_token_ns: 61_900.0 },
];
const A100_ROUND_TO: u64 = 8;
const A100_ATTENTION: AttentionCosts = AttentionCosts {
    decode_base_ns: 261_000.0,
    per_decode_ns: 32_400.0,
    per_decode_kv_ns: 267.5,
    prefill_base_ns: 63_000.0,
    per_prefill_token_ns: 5_150.0,
    per_prefill_kv_ns: 0.0,
    per_prefill_attention_ns: 5.19,
};

/// A step of the token-count law, in seconds, between padded counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stair {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) base: f64,
    pub(crate) slope: f64,
}

/// An iteration-time law. In JSON: `{"law": "linear", "d0": …, "d1": …}`, `{"law": "a100"}`, `{"law": "measured", …}`.
///
/// ```
/// use wait_core::model::{BatchShape, IterationTime};
///
/// let mut batch = BatchShape::default();
/// batch.add_prefill(512, 0);
/// (0..32).for_each(|_| batch.add_decode(1000));
/// assert_eq!(batch.tokens(), 544);
///
/// // 10 ms, and 0.1 µs for each of the 32,512 KV tokens.
/// let law = IterationTime::linear(0.01, 1e-7)?;
/// assert_eq!(law.nanos(&batch), 13_251_200);
/// // The fitted law distinguishes prompt tokens from decodes, and rounds the token count up to its tiles.
/// assert!(IterationTime::A100.seconds(&batch) > 0.04);
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "law", rename_all = "kebab-case")]
pub enum IterationTime {
    /// The paper's law.
    Linear(LinearLaw),
    /// The fitted law of Llama-2-7B on an A100-80GB.
    A100,
    /// A law measured on the user's GPU.
    Measured(MeasuredLaw),
}

impl IterationTime {
    /// The paper's law: `d0` in seconds, `d1` in seconds per KV token.
    ///
    /// # Errors
    /// See [`LinearLaw::new`].
    pub fn linear(d0: f64, d1: f64) -> Result<Self, Error> {
        Ok(Self::Linear(LinearLaw::new(d0, d1)?))
    }

    /// Duration of one iteration in nanoseconds, rounded half up. The batch is not empty.
    #[inline]
    pub fn nanos(&self, shape: &BatchShape) -> u64 {
        // Times are positive, so truncation after adding a half is rounding half up.
        (self.evaluate(shape.tokens(), &shape.into()) + 0.5) as u64
    }

    /// Duration of one iteration in seconds, before rounding.
    #[inline]
    pub fn seconds(&self, shape: &BatchShape) -> f64 {
        self.evaluate(shape.tokens(), &shape.into()) * 1e-9
    }

    /// Duration in seconds of an iteration of the fluid model; a fractional token count is padded like an integer one.
    pub fn fluid_seconds(&self, shape: &FluidShape) -> f64 {
        // An edge met up to rounding errors is on the edge, not past it.
        let tokens = (shape.tokens() * (1.0 - 1e-12)).ceil();
        self.evaluate(tokens as u64, shape) * 1e-9
    }

    /// Seconds that depend on the token count alone: d0, or the staircase.
    pub fn token_seconds(&self, tokens: u64) -> f64 {
        self.token_ns(tokens) * 1e-9
    }

    /// The granularity to which the GPU pads the token count; 1 if it does not.
    pub fn round_to(&self) -> u64 {
        match self {
            Self::Linear(_) => 1,
            Self::A100 => A100_ROUND_TO,
            Self::Measured(law) => law.round_to,
        }
    }

    /// The costs besides that of the token count.
    pub fn attention(&self) -> AttentionCosts {
        match self {
            Self::Linear(law) => AttentionCosts {
                per_decode_kv_ns: law.d1 * 1e9,
                per_prefill_kv_ns: law.d1 * 1e9,
                ..AttentionCosts::default()
            },
            Self::A100 => A100_ATTENTION,
            Self::Measured(law) => law.attention,
        }
    }

    /// The shortest iteration there is, in seconds: d0, or the least of the staircase. It bounds the number of
    /// iterations in a horizon from above.
    pub fn least_seconds(&self) -> f64 {
        // Slopes are not negative, so each step has its least value at its first padded count.
        self.stairs().iter().map(|stair| self.token_seconds(stair.first)).fold(f64::INFINITY, f64::min)
    }

    /// Token counts up to `max_tokens` at which a token is cheaper than one padding step before and after: the right
    /// edges of the stairs, found numerically, with the last padded count where the cost per token still falls there.
    pub fn right_edges(&self, max_tokens: u64) -> Vec<u64> {
        let round = self.round_to();
        let end = max_tokens / round * round;
        let per_token = |n: u64| self.token_ns(n) / n as f64;
        // On a stair the cost per token is monotone, so it can turn only at the stair's ends.
        let ends = self.stairs().into_iter().flat_map(|stair| [stair.first, stair.last.min(end)]);
        let mut edges: Vec<u64> = ends
            .filter(|&n| n > 0 && n <= end)
            .filter(|&n| n == end || per_token(n) < per_token(n + round))
            .filter(|&n| n == round || per_token(n) <= per_token(n - round))
            .collect();
        edges.dedup();
        edges
    }

    /// The token budget, at most `max_tokens`, that computes tokens at the least time each (the smallest of equals);
    /// `None` if `max_tokens` is below one padding step.
    pub fn best_budget(&self, max_tokens: u64) -> Option<u64> {
        let per_token = |n: u64| self.token_ns(n) / n as f64;
        self.right_edges(max_tokens).into_iter().reduce(|best, n| if per_token(n) < per_token(best) { n } else { best })
    }

    /// The steps of the token-count law between padded counts, in ascending order; the last one is unbounded. A padded
    /// count n in `first..=last` costs `base + slope · n`.
    pub(crate) fn stairs(&self) -> Vec<Stair> {
        let round = self.round_to();
        let flat;
        let steps = match self {
            Self::Linear(law) => {
                flat = [TokenStep { up_to: round, base_ns: law.d0 * 1e9, per_token_ns: 0.0 }];
                &flat[..]
            }
            Self::A100 => &A100_STEPS,
            Self::Measured(law) => &law.steps,
        };
        let mut stairs: Vec<Stair> = Vec::with_capacity(steps.len());
        let mut first = round;
        for (i, step) in steps.iter().enumerate() {
            let last = if i + 1 == steps.len() { u64::MAX / round * round } else { step.up_to / round * round };
            if first <= last {
                stairs.push(Stair { first, last, base: step.base_ns * 1e-9, slope: step.per_token_ns * 1e-9 });
                first = last.saturating_add(round);
            }
        }
        stairs
    }

    #[inline]
    fn token_ns(&self, tokens: u64) -> f64 {
        match self {
            Self::Linear(law) => law.d0 * 1e9,
            Self::A100 => staircase(&A100_STEPS, tokens.div_ceil(A100_ROUND_TO) * A100_ROUND_TO),
            Self::Measured(law) => staircase(&law.steps, tokens.div_ceil(law.round_to) * law.round_to),
        }
    }

    #[inline]
    fn evaluate(&self, tokens: u64, shape: &FluidShape) -> f64 {
        let base = self.token_ns(tokens);
        match self {
            Self::Linear(law) => base + law.d1 * 1e9 * (shape.decode_kv + shape.prefill_kv),
            Self::A100 => base + A100_ATTENTION.nanos(shape),
            Self::Measured(law) => base + law.attention.nanos(shape),
        }
    }
}

#[inline]
fn staircase(steps: &[TokenStep], tokens: u64) -> f64 {
    let index = steps.partition_point(|s| s.up_to < tokens).min(steps.len() - 1);
    steps[index].at(tokens)
}
