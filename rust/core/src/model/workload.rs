//! Request types, workloads, and the sums over them that the fluid model needs.

use serde::{Deserialize, Serialize};

use crate::error::{Error, invalid, non_negative, positive};
use crate::model::FluidShape;

mod grouping;
#[cfg(test)]
mod tests;

pub use grouping::{Grouping, Representative};

/// How many iterations a request of output length l' takes, and which stages it passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageConvention {
    /// arXiv 2504.11320 §2: prefill (stage 0) emits nothing; stages 0..=l', l' + 1 iterations.
    Paper,
    /// vLLM: prefill emits the first token; stages 0..=l' − 1, l' iterations.
    #[default]
    Vllm,
    /// A decode replica, to which requests come with the KV of their prompts: stage 0 computes the last prompt token alone.
    /// Only for what is planned: an engine learns from each request what it receives.
    #[serde(skip)]
    DecodeOnly,
}

impl StageConvention {
    /// The last stage of a request of `output` tokens.
    pub fn last_stage(self, output: u32) -> u32 {
        match self {
            Self::Paper => output,
            Self::Vllm | Self::DecodeOnly => output - 1,
        }
    }
}

/// Type j of arXiv 2504.11320 §2.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestType {
    /// l: prompt length, tokens, above 0.
    pub prompt: u32,
    /// l': output length, tokens, above 0.
    pub output: u32,
    /// λ: arrivals per second, at least 0.
    pub rate: f64,
}

impl RequestType {
    /// A: KV tokens · iterations one request costs, Σ over its stages s of l + s. In the paper's convention
    /// (l' + 1)(l + l'/2), in vLLM's l'(l + (l' − 1)/2).
    pub fn token_iterations(&self, convention: StageConvention) -> f64 {
        let last = f64::from(convention.last_stage(self.output));
        (last + 1.0) * (f64::from(self.prompt) + last / 2.0)
    }

    /// What one request computes over its whole life. Chunking a prompt does not change its attention.
    pub fn total_shape(&self, convention: StageConvention) -> FluidShape {
        let prompt = f64::from(self.prompt);
        let (prefill_tokens, prefill_attention) = match convention {
            StageConvention::DecodeOnly => (1.0, 2.0 * prompt - 1.0),
            StageConvention::Paper | StageConvention::Vllm => (prompt, prompt * prompt),
        };
        FluidShape {
            prefill_tokens,
            decodes: f64::from(convention.last_stage(self.output)),
            decode_kv: self.token_iterations(convention) - prompt,
            prefill_kv: prompt,
            prefill_attention,
        }
    }
}

/// A set of request types; a measured length distribution is the workload with one type per distinct pair.
///
/// ```
/// use wait_core::model::{RequestType, StageConvention, Workload};
///
/// let workload = Workload::new(vec![
///     RequestType { prompt: 100, output: 50, rate: 3.0 },
///     RequestType { prompt: 400, output: 200, rate: 1.0 },
/// ])?;
/// assert_eq!((workload.rate(), workload.output_rate()), (4.0, 350.0));
/// // A request of 80 output tokens is of the second type: a type never ends before its requests do.
/// assert_eq!(workload.classify(100, 80), 1);
/// // The KV that a request occupies over its stages: 50 · (100 + 49/2) for the first type.
/// assert_eq!(workload.types()[0].token_iterations(StageConvention::Vllm), 6225.0);
///
/// // From measured lengths: one type for each distinct pair.
/// let measured = Workload::from_lengths(&[(10, 20), (10, 20), (30, 5)], 6.0)?;
/// assert_eq!(measured.types()[1], RequestType { prompt: 10, output: 20, rate: 4.0 });
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<RequestType>", into = "Vec<RequestType>")]
pub struct Workload {
    types: Vec<RequestType>,
}

impl TryFrom<Vec<RequestType>> for Workload {
    type Error = Error;

    fn try_from(types: Vec<RequestType>) -> Result<Self, Error> {
        Self::new(types)
    }
}

impl From<Workload> for Vec<RequestType> {
    fn from(workload: Workload) -> Self {
        workload.types
    }
}

/// Longest prompt or output accepted, tokens: far above any context, and its square is exact in f64.
pub const MAX_LENGTH: u32 = 1 << 26;

pub(crate) fn check_lengths(what: &str, i: usize, prompt: u32, output: u32) -> Result<(), Error> {
    for (name, value) in [("prompt", prompt), ("output", output)] {
        if !(1..=MAX_LENGTH).contains(&value) {
            return Err(invalid(format!("{what}[{i}].{name}"), &value, "between 1 and 2^26 tokens"));
        }
    }
    Ok(())
}

impl Workload {
    /// Types in the caller's order; their indices are the type indices everywhere else.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no type, a length is not in 1..=2^26, or a rate is negative or not
    /// finite.
    pub fn new(types: Vec<RequestType>) -> Result<Self, Error> {
        if types.is_empty() {
            return Err(invalid("types", &"[]", "at least one type"));
        }
        for (i, t) in types.iter().enumerate() {
            check_lengths("types", i, t.prompt, t.output)?;
            non_negative(&format!("types[{i}].rate"), t.rate)?;
        }
        Ok(Self { types })
    }

    /// The exact workload of a measured list of (prompt, output) lengths arriving at `rate` requests per second in
    /// total: one type per distinct pair, in ascending order of (output, prompt).
    ///
    /// # Errors
    /// [`Error::Invalid`] if the list is empty, a length is out of range, or `rate` is not.
    pub fn from_lengths(lengths: &[(u32, u32)], rate: f64) -> Result<Self, Error> {
        non_negative("rate", rate)?;
        if lengths.is_empty() {
            return Err(invalid("lengths", &"[]", "at least one pair"));
        }
        for (i, &(prompt, output)) in lengths.iter().enumerate() {
            check_lengths("lengths", i, prompt, output)?;
        }
        let mut sorted: Vec<(u32, u32)> = lengths.iter().map(|&(prompt, output)| (output, prompt)).collect();
        sorted.sort_unstable();
        let each = rate / lengths.len() as f64;
        let types = sorted
            .chunk_by(|a, b| a == b)
            .map(|equal| RequestType { prompt: equal[0].1, output: equal[0].0, rate: each * equal.len() as f64 })
            .collect();
        Self::new(types)
    }

    /// The types, by index.
    pub fn types(&self) -> &[RequestType] {
        &self.types
    }

    /// The same mix at `factor` times the rate.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `factor` is not finite and above 0.
    pub fn scaled(&self, factor: f64) -> Result<Self, Error> {
        positive("factor", factor)?;
        Self::new(self.types.iter().map(|t| RequestType { rate: t.rate * factor, ..*t }).collect())
    }

    /// Σ λ: requests per second.
    pub fn rate(&self) -> f64 {
        self.types.iter().map(|t| t.rate).sum()
    }

    /// Σ λ l': output tokens per second, the fluid throughput* of a stable workload.
    pub fn output_rate(&self) -> f64 {
        self.types.iter().map(|t| t.rate * f64::from(t.output)).sum()
    }

    /// Σ λ A: KV tokens · iterations that arrive per second.
    pub fn token_iteration_rate(&self, convention: StageConvention) -> f64 {
        self.types.iter().map(|t| t.rate * t.token_iterations(convention)).sum()
    }

    /// E\[A\]: KV tokens · iterations of a request, rate-weighted; NaN if every rate is 0.
    pub fn mean_token_iterations(&self, convention: StageConvention) -> f64 {
        self.token_iteration_rate(convention) / self.rate()
    }

    /// Iterations that arrive per second, Σ λ (l' + 1) or Σ λ l'.
    pub fn iteration_rate(&self, convention: StageConvention) -> f64 {
        self.types.iter().map(|t| t.rate * (f64::from(convention.last_stage(t.output)) + 1.0)).sum()
    }

    /// What arrives per second, as the batch that would compute it all at once.
    pub fn demand(&self, convention: StageConvention) -> FluidShape {
        self.types.iter().fold(FluidShape::default(), |sum, t| sum.plus(&t.total_shape(convention).scaled(t.rate)))
    }

    /// The type to which a request of these lengths belongs: the smallest output length at or above the request's (the
    /// largest where there is none), then the nearest prompt length, then the lower index. Its stage never exceeds its
    /// type's unless it is longer than every type.
    pub fn classify(&self, prompt: u32, output: u32) -> usize {
        let key = |t: &RequestType| {
            let short = t.output < output;
            // Among types that are too short the longest is nearest.
            (short, t.output.abs_diff(output), t.prompt.abs_diff(prompt))
        };
        let best = self.types.iter().enumerate().min_by_key(|&(i, t)| (key(t), i));
        best.map_or(0, |(i, _)| i)
    }
}
