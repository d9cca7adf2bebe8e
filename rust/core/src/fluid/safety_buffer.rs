//! The memory that Nested WAIT exceeds within a horizon with probability at most δ, and the safety buffer that follows.
//!
//! # What is bounded, and why it holds
//!
//! Within T seconds there are at most N = 1 + T/d0 iterations. Up to the first overflow the run is that of unlimited
//! memory, so it is enough to bound the memory of that run; with enough slots and token budget (`nested_thresholds.rs` checks
//! this) every service admits what is due and nothing else. Services without a batch, which thresholds below 1 have, take
//! no time and count as services.
//!
//! *Stages.* Each service of segment k lets `n_k` in and moves all of its members one stage on, so every stage holds at
//! most `n_k`: the paper's M^π. Where `n_k` is a fraction its credit lets at most ⌈s `n_k`⌉ ≤ s `n_k` + 1 enter in any
//! s services; summed by parts over the stages that is one more request, at the last stage of the segment.
//!
//! *Queues.* X, what is left before segment k after a service, less the credit of its gate, follows the recursion of
//! [`queue_bound`](super::queue_bound::queue_bound). Whether the i-th request that enters segment k − 1 passes it is an
//! independent draw with probability `p_k`, whatever decides when it does (prompts, which may go with lengths, decide
//! how long iterations take); and after j services a known number has entered. So an excursion of X starts at one of N
//! places of that sequence (a service in which none enters adds none) and exceeds `n_k` + y with probability at most N
//! e^(−`θ_k` y). A fractional `n_{k−1}` lets one request more in than `n_{k−1}` a service (a factor of at most
//! e^(`θ_k`)), a fractional `n_k` carries less than one request of credit: each adds one request to the bound.
//!
//! *Prompts.* The members and the queue of segment k are, in the order of arrival, among the last m requests that reached
//! it, where m is the sum of the two bounds above. Nothing in the order depends on prompts, so the prompts of those that
//! reach segment k, in that order, are independent draws of mean μ, variance v and maximum l. Two sufficient conditions:
//! - m l, the segment-wise maximum (the paper's, §5.2), for which nothing more may fail;
//! - m μ + √(2 m v x) + l x/3, which one window of m exceeds with probability at most e^(−x) (Bernstein; no prompt is
//!   further above its mean than l, whatever window of time it is from). At most `n_{k−1}` N + 1 such windows of requests
//!   end within the horizon (`n_1` N + 1 for the first segment).
//!
//! All these events share one x: x = ln(U/δ), where U counts them. Without unequal prompts U = L N, of which the boundary
//! queues need L − 1 (the paper's m segments are L here; its Theorem 4 leaves the number of classes, m ≥ L, in the
//! logarithm, which is weaker). The memory needed is the lesser of the two conditions; for equal prompts, integer
//! thresholds and blocks of one token it is the paper's M^π + Σ (l + `l'_{k−1}`) [`n_k` + ln(L N/δ)/`θ_k`].
//!
//! *Blocks.* A resident of t tokens holds at most t + b − 1 tokens in blocks of b.

use serde::{Deserialize, Serialize};

use super::queue_bound::{Protection, check_probability, theta};
use crate::error::{Error, invalid, non_negative};
use crate::fluid::{Segment, Segments};
use crate::model::IterationTime;

/// The queue before one segment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BoundaryQueue {
    /// `l'_{k−1}`: the stage of its requests.
    pub stage: f64,
    /// Requests that it may hold at any time: `n_k`, and one more for each fraction among `n_{k−1}` and `n_k`.
    pub least: f64,
    /// `θ_k`.
    pub theta: f64,
}

/// What one segment and the queue before it may hold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SegmentMemory {
    /// Most requests at its stages.
    pub residents: f64,
    /// Sum of their stages, tokens.
    pub stages: f64,
    /// Most requests that enter in an iteration, on average over the iterations from the first.
    pub entering: f64,
    /// Mean, variance and maximum of the prompts of those that reach it, tokens.
    pub prompt: f64,
    /// See `prompt`.
    pub variance: f64,
    /// See `prompt`.
    pub longest: f64,
    /// None for the first segment.
    pub queue: Option<BoundaryQueue>,
}

/// Which of the two sufficient conditions on prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prompts {
    Longest,
    Deviation,
}

impl SegmentMemory {
    /// Requests of the queue that an exponent x covers.
    fn queued(&self, x: f64) -> f64 {
        self.queue.map_or(0.0, |queue| queue.least + x / queue.theta)
    }

    fn unequal(&self) -> bool {
        self.longest - self.prompt > 1e-9 * self.longest
    }

    /// KV tokens, in blocks of `block_size`.
    fn tokens(&self, x: f64, prompts: Prompts, block_size: u32) -> f64 {
        let queued = self.queued(x);
        let members = self.residents + queued;
        let mut of_prompts = members * self.longest;
        if prompts == Prompts::Deviation && self.unequal() {
            let deviation = libm::sqrt(2.0 * members * self.variance * x) + self.longest * x / 3.0;
            of_prompts = of_prompts.min(members * self.prompt + deviation);
        }
        let at_boundary = self.queue.map_or(0.0, |queue| queue.stage * queued);
        of_prompts + self.stages + at_boundary + members * f64::from(block_size - 1)
    }
}

/// The buffer that given thresholds need above M^π, as a function of δ and the horizon.
///
/// ```
/// use wait_core::fluid::{Protection, SafetyBuffer, Segments};
/// use wait_core::model::{IterationTime, RequestType, StageConvention, Workload};
///
/// let workload = Workload::new(vec![
///     RequestType { prompt: 100, output: 50, rate: 3.0 },
///     RequestType { prompt: 100, output: 200, rate: 1.0 },
/// ])?;
/// let segments = Segments::exact(&workload, StageConvention::Vllm)?;
/// let buffer = SafetyBuffer::new(&[8.0, 3.0], &segments, &IterationTime::linear(0.01, 1e-7)?, 16)?;
/// // KV tokens above M^π with which memory overflows within an hour with a probability of 1 % and of 10^-6.
/// let tokens = |failure_probability| buffer.tokens(&Protection { failure_probability, horizon: 3600.0 });
/// assert!(0.0 < tokens(1e-2)? && tokens(1e-2)? < tokens(1e-6)?);
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SafetyBuffer {
    /// By segment.
    pub segments: Vec<SegmentMemory>,
    /// M^π with mean prompts: Σ `n_k` (l + `s̄_k`) `δ_k`, KV tokens.
    pub base: f64,
    /// Shortest iteration, seconds: d0, which bounds the iterations in a horizon T by 1 + T/d0.
    pub least_iteration: f64,
    /// Tokens per KV block.
    pub block_size: u32,
}

/// 1 for a fraction, 0 for a whole number (up to rounding errors).
fn fraction(n: f64) -> f64 {
    if (n - libm::round(n)).abs() <= 1e-9 * n.max(1.0) { 0.0 } else { 1.0 }
}

impl SafetyBuffer {
    /// The buffer of Nested WAIT with thresholds `n`, one per segment, in KV blocks of `block_size` tokens.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the numbers do not match, some `θ_k` does not exist, or a block has no token.
    pub fn new(n: &[f64], segments: &Segments, law: &IterationTime, block_size: u32) -> Result<Self, Error> {
        let all = segments.as_slice();
        if n.len() != all.len() {
            return Err(invalid("number of thresholds", &n.len(), "the number of segments"));
        }
        if block_size == 0 {
            return Err(invalid("block_size", &block_size, "at least 1"));
        }
        let memory = |(k, segment): (usize, &Segment)| {
            let (n_k, before) = (n[k], n[k.saturating_sub(1)]);
            let (width, more) = (f64::from(segment.width()), fraction(n_k));
            let queue = if k == 0 {
                None
            } else {
                let theta = theta(before, n_k, segment.survival)?;
                let stage = f64::from(segment.first_stage - 1);
                Some(BoundaryQueue { stage, least: n_k + more + fraction(before), theta })
            };
            Ok(SegmentMemory {
                residents: n_k * width + more,
                stages: n_k * width * segment.mean_stage() + more * f64::from(segment.last_stage),
                entering: before,
                prompt: segment.prompt,
                variance: segment.prompt_variance,
                longest: segment.longest_prompt,
                queue,
            })
        };
        let base = all.iter().zip(n).map(|(segment, n)| n * segment.tokens()).sum();
        let segments = all.iter().enumerate().map(memory).collect::<Result<_, Error>>()?;
        Ok(Self { segments, base, least_iteration: law.least_seconds(), block_size })
    }

    /// KV tokens to keep free above M^π.
    ///
    /// # Errors
    /// [`Error::Invalid`] if δ or the horizon is out of range.
    pub fn tokens(&self, protection: &Protection) -> Result<f64, Error> {
        protection.validate()?;
        let needed = |&prompts: &Prompts| self.total(self.exponent(prompts, protection), prompts);
        Ok(self.conditions().iter().map(needed).fold(f64::INFINITY, f64::min) - self.base)
    }

    /// Requests that the queue before each segment 2, 3, … may hold under that protection.
    ///
    /// # Errors
    /// [`Error::Invalid`] if δ or the horizon is out of range.
    pub fn queue_bounds(&self, protection: &Protection) -> Result<Vec<f64>, Error> {
        protection.validate()?;
        let x = self.exponent(Prompts::Longest, protection);
        Ok(self.segments[1..].iter().map(|segment| segment.queued(x)).collect())
    }

    /// Most requests resident at once under that protection, queues included.
    ///
    /// # Errors
    /// [`Error::Invalid`] if δ or the horizon is out of range.
    pub fn residents(&self, protection: &Protection) -> Result<f64, Error> {
        let queues: f64 = self.queue_bounds(protection)?.iter().sum();
        Ok(queues + self.segments.iter().map(|segment| segment.residents).sum::<f64>())
    }

    /// Most tokens computed in an iteration: the longest prompts enter together, all others decode.
    pub fn iteration_tokens(&self) -> f64 {
        let Some(first) = self.segments.first() else { return 0.0 };
        let residents: f64 = self.segments.iter().map(|segment| segment.residents).sum();
        let entering = libm::ceil(first.entering * (1.0 - 1e-9));
        entering * first.longest + residents - entering
    }

    /// The inverse: the bound on δ that `tokens` of buffer give over `horizon` seconds; 1 where the bound says nothing, 0
    /// where nothing can overflow them.
    ///
    /// # Errors
    /// [`Error::Invalid`] if an argument is negative or not finite.
    pub fn failure_probability(&self, tokens: f64, horizon: f64) -> Result<f64, Error> {
        non_negative("tokens", tokens)?;
        non_negative("horizon", horizon)?;
        let bound = |&prompts: &Prompts| {
            let (per_iteration, once) = self.events(prompts);
            let events = per_iteration * (1.0 + horizon / self.least_iteration) + once;
            self.paid(tokens, prompts).map_or(1.0, |x| events * libm::exp(-x))
        };
        Ok(self.conditions().iter().map(bound).fold(1.0, f64::min))
    }

    /// The inverse in time: the longest horizon, in seconds, over which `tokens` of buffer keep the failure probability at
    /// or below δ; 0 if there is none, infinite where nothing can overflow them.
    ///
    /// # Errors
    /// [`Error::Invalid`] if an argument is out of range.
    pub fn horizon(&self, tokens: f64, failure_probability: f64) -> Result<f64, Error> {
        non_negative("tokens", tokens)?;
        check_probability("failure_probability", failure_probability)?;
        let longest = |&prompts: &Prompts| {
            let (per_iteration, once) = self.events(prompts);
            let events = self.paid(tokens, prompts).map_or(0.0, |x| failure_probability * libm::exp(x));
            self.least_iteration * ((events - once) / per_iteration - 1.0)
        };
        Ok(self.conditions().iter().map(longest).fold(0.0, f64::max))
    }

    /// The sufficient conditions to check: with equal prompts the two coincide.
    fn conditions(&self) -> &[Prompts] {
        let unequal = self.segments.iter().any(SegmentMemory::unequal);
        if unequal { &[Prompts::Longest, Prompts::Deviation] } else { &[Prompts::Longest] }
    }

    /// How many events may fail: in each iteration, and in addition.
    fn events(&self, prompts: Prompts) -> (f64, f64) {
        let queues = self.segments.len() as f64;
        let windows = self.segments.iter().filter(|segment| prompts == Prompts::Deviation && segment.unequal());
        windows.fold((queues, 0.0), |(each, once), segment| (each + segment.entering, once + 1.0))
    }

    /// x = ln(U/δ).
    fn exponent(&self, prompts: Prompts, protection: &Protection) -> f64 {
        let (per_iteration, once) = self.events(prompts);
        let events = per_iteration * (1.0 + protection.horizon / self.least_iteration) + once;
        libm::log(events / protection.failure_probability)
    }

    /// KV tokens in all, M^π included.
    fn total(&self, x: f64, prompts: Prompts) -> f64 {
        self.segments.iter().map(|segment| segment.tokens(x, prompts, self.block_size)).sum()
    }

    /// The exponent that `tokens` of buffer cover; none if they do not cover 0, infinite if they cover any.
    fn paid(&self, tokens: f64, prompts: Prompts) -> Option<f64> {
        // e^(-MOST) is 0.
        const MOST: f64 = 800.0;
        let fits = |x: f64| self.total(x, prompts) <= (self.base + tokens) * (1.0 + 1e-14);
        if fits(MOST) {
            return Some(f64::INFINITY);
        }
        if !fits(0.0) {
            return None;
        }
        let (mut low, mut high) = (0.0, MOST);
        for _ in 0..80 {
            let middle = f64::midpoint(low, high);
            if fits(middle) { low = middle } else { high = middle }
        }
        Some(low)
    }
}
