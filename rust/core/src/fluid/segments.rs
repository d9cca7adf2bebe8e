//! Segments of Nested WAIT (arXiv 2504.11320 §5): ranges of stages between the boundaries 0 = l'_0 < l'_1 < … < l'_m.

use serde::{Deserialize, Serialize};

use crate::error::{Error, invalid};
use crate::model::{FluidShape, MAX_LENGTH, RequestType, StageConvention, Workload};

#[cfg(test)]
mod tests;

/// Most segments: each is a lane of Nested WAIT.
pub const MAX_SEGMENTS: usize = u16::MAX as usize;

/// Segment k: stages `first_stage`..=`last_stage`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// 0 for the first segment, `l'_{k−1}` + 1 for the others.
    pub first_stage: u32,
    /// `l'_k`, as a stage.
    pub last_stage: u32,
    /// `Λ_k`: requests per second that enter the segment.
    pub rate: f64,
    /// `p_k` = `Λ_k/Λ_{k−1}`: share of the previous segment's requests that enter this one; 1 for the first.
    pub survival: f64,
    /// Mean prompt length of the requests that enter, tokens.
    pub prompt: f64,
    /// Variance of their prompt lengths, tokens².
    pub prompt_variance: f64,
    /// Longest prompt among them, tokens.
    pub longest_prompt: f64,
}

impl Segment {
    /// `δ_k`: number of stages.
    pub fn width(&self) -> u32 {
        self.last_stage - self.first_stage + 1
    }

    /// `s̄_k`: mean stage.
    pub fn mean_stage(&self) -> f64 {
        f64::midpoint(f64::from(self.first_stage), f64::from(self.last_stage))
    }

    /// (l + `s̄_k`) `δ_k`: KV tokens of one request at every stage of the segment.
    pub fn tokens(&self) -> f64 {
        (self.prompt + self.mean_stage()) * f64::from(self.width())
    }
}

/// The segments of a workload whose output lengths are hidden.
///
/// ```
/// use wait_core::fluid::Segments;
/// use wait_core::model::{RequestType, StageConvention, Workload};
///
/// let workload = Workload::new(vec![
///     RequestType { prompt: 100, output: 50, rate: 3.0 },
///     RequestType { prompt: 100, output: 200, rate: 1.0 },
/// ])?;
/// let segments = Segments::exact(&workload, StageConvention::Vllm)?;
/// let [first, second] = segments.as_slice() else { panic!("one for each output length") };
/// assert_eq!((first.first_stage, first.last_stage, second.first_stage, second.last_stage), (0, 49, 50, 199));
/// // One request in four goes on.
/// assert_eq!((first.rate, second.rate, second.survival), (4.0, 1.0, 0.25));
/// assert_eq!(segments.of_stage(120), 1);
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Segments {
    segments: Vec<Segment>,
    /// E[l²] over all arrivals, for the attention of prefills.
    mean_square_prompt: f64,
}

impl Segments {
    /// One segment per distinct output length. Unequal prompts enter M^π by the rate-weighted mean over the requests that
    /// reach the segment, so that Σ `Λ_k` (l + `s̄_k`) `δ_k` is exactly Σ `λ_j A_j`; what may be resident beyond the mean is
    /// the safety buffer's, which has their maximum and variance.
    ///
    /// # Errors
    /// [`Error::Invalid`] if nothing arrives.
    pub fn exact(workload: &Workload, convention: StageConvention) -> Result<Self, Error> {
        let arriving = workload.types().iter().filter(|t| t.rate > 0.0);
        let mut outputs: Vec<u32> = arriving.map(|t| t.output).collect();
        outputs.sort_unstable();
        outputs.dedup();
        Self::coarse(workload, &outputs, convention)
    }

    /// Coarse segments that end at the given output lengths, ascending, the last at or above the longest output. Requests
    /// that end inside a segment are counted to its end, so the memory that follows is an upper bound.
    ///
    /// # Errors
    /// [`Error::Invalid`] if nothing arrives, there are more than [`MAX_SEGMENTS`], the boundaries do not ascend from 1 to
    /// [`MAX_LENGTH`] at the most, the last boundary is short of the longest output, or a segment is out of its reach.
    pub fn coarse(workload: &Workload, boundaries: &[u32], convention: StageConvention) -> Result<Self, Error> {
        let arriving: Vec<&RequestType> = workload.types().iter().filter(|t| t.rate > 0.0).collect();
        let Some(longest) = arriving.iter().map(|t| t.output).max() else {
            return Err(invalid("Σ rate", &0.0, "above 0"));
        };
        if boundaries.len() > MAX_SEGMENTS {
            return Err(invalid("number of boundaries", &boundaries.len(), "at most 65,535"));
        }
        let mut segments: Vec<Segment> = Vec::with_capacity(boundaries.len());
        let mut previous = 0;
        for (k, &boundary) in boundaries.iter().enumerate() {
            if boundary > MAX_LENGTH {
                return Err(invalid(format!("boundaries[{k}]"), &boundary, "at most 2^26 tokens"));
            }
            if boundary <= previous {
                return Err(invalid(format!("boundaries[{k}]"), &boundary, "above the previous one, from 1"));
            }
            if previous >= longest {
                return Err(invalid(format!("boundaries[{}]", k - 1), &previous, "below the longest output"));
            }
            let entering = || arriving.iter().filter(|t| t.output > previous);
            let rate: f64 = entering().map(|t| t.rate).sum();
            let mean =
                |of: &dyn Fn(f64) -> f64| entering().map(|t| t.rate * of(f64::from(t.prompt))).sum::<f64>() / rate;
            let prompt = mean(&|l| l);
            segments.push(Segment {
                first_stage: if k == 0 { 0 } else { convention.last_stage(previous) + 1 },
                last_stage: convention.last_stage(boundary),
                rate,
                survival: segments.last().map_or(1.0, |before| rate / before.rate),
                prompt,
                prompt_variance: mean(&|l| (l - prompt) * (l - prompt)),
                longest_prompt: entering().map(|t| f64::from(t.prompt)).fold(0.0, f64::max),
            });
            previous = boundary;
        }
        if previous < longest {
            return Err(invalid("last boundary", &previous, "at least the longest output"));
        }
        let square = |t: &&RequestType| t.rate * f64::from(t.prompt) * f64::from(t.prompt);
        let mean_square_prompt = arriving.iter().map(square).sum::<f64>() / segments[0].rate;
        Ok(Self { segments, mean_square_prompt })
    }

    /// At most `count` coarse segments of equal decode range; ranges that no request ends in or passes are merged away.
    ///
    /// # Errors
    /// [`Error::Invalid`] if nothing arrives or `count` is not in 1..=[`MAX_SEGMENTS`].
    pub fn equal_ranges(workload: &Workload, count: u32, convention: StageConvention) -> Result<Self, Error> {
        if !(1..=MAX_SEGMENTS).contains(&(count as usize)) {
            return Err(invalid("count", &count, "between 1 and 65,535"));
        }
        let arriving = workload.types().iter().filter(|t| t.rate > 0.0);
        let longest = arriving.map(|t| t.output).max().unwrap_or(1);
        let boundary = |k: u32| (u64::from(longest) * u64::from(k)).div_ceil(u64::from(count)) as u32;
        let mut boundaries: Vec<u32> = (1..=count).map(boundary).collect();
        boundaries.dedup();
        Self::coarse(workload, &boundaries, convention)
    }

    /// Segments that hold for every window of a time-varying workload: the same boundaries, and per segment the largest
    /// entry rate of the first, the worst `p_k`, the largest mean, variance and maximum of prompts.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no window or the boundaries differ.
    pub fn worst_window(windows: &[Self]) -> Result<Self, Error> {
        let Some((first, others)) = windows.split_first() else {
            return Err(invalid("windows", &"[]", "at least one window"));
        };
        let mut worst = first.clone();
        for (i, other) in others.iter().enumerate() {
            let bounds = |s: &Self| s.segments.iter().map(|s| s.last_stage).collect::<Vec<_>>();
            if bounds(other) != bounds(first) {
                return Err(invalid(
                    format!("windows[{}]", i + 1),
                    &"other boundaries",
                    "the first window's boundaries",
                ));
            }
            worst.mean_square_prompt = worst.mean_square_prompt.max(other.mean_square_prompt);
            for (segment, other) in worst.segments.iter_mut().zip(&other.segments) {
                segment.survival = segment.survival.max(other.survival);
                segment.prompt = segment.prompt.max(other.prompt);
                segment.prompt_variance = segment.prompt_variance.max(other.prompt_variance);
                segment.longest_prompt = segment.longest_prompt.max(other.longest_prompt);
                segment.rate = segment.rate.max(other.rate);
            }
        }
        // Below the first segment the rate is the one that the worst shares leave.
        for k in 1..worst.segments.len() {
            worst.segments[k].rate = worst.segments[k - 1].rate * worst.segments[k].survival;
        }
        Ok(worst)
    }

    /// The segments, from the first.
    pub fn as_slice(&self) -> &[Segment] {
        &self.segments
    }

    /// The segment, from 0, in which a request at this stage is; the last one beyond the last boundary.
    pub fn of_stage(&self, stage: u32) -> usize {
        self.segments.partition_point(|s| s.last_stage < stage).min(self.segments.len() - 1)
    }

    /// The batch with `n_k` requests at every stage of segment k.
    pub(crate) fn full_batch(&self, n: &[f64]) -> FluidShape {
        let first = self.segments[0].prompt * n[0];
        let stages: f64 = self.segments.iter().zip(n).map(|(s, n)| n * f64::from(s.width())).sum();
        let kv: f64 = self.segments.iter().zip(n).map(|(s, n)| n * s.tokens()).sum();
        FluidShape {
            prefill_tokens: first,
            decodes: stages - n[0],
            decode_kv: kv - first,
            prefill_kv: first,
            prefill_attention: n[0] * self.mean_square_prompt,
        }
    }
}
