//! What a run needs: the core's configuration, the GPU, and what the policy knows.

use wait_core::model::IterationTime;
use wait_core::{Config, Error, LengthHint, Result};

use crate::transfer::Transfer;

/// Whether policies may see output lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lengths {
    /// They see the true length at arrival.
    Known,
    /// They see nothing but `max_tokens`, if it is set.
    Hidden,
}

/// What a host may declare about a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Hint {
    /// What is known of its output length, where lengths are hidden.
    pub output: LengthHint,
    /// Class label.
    pub label: Option<u16>,
    /// Lower goes first.
    pub priority: i32,
    /// Tenant.
    pub tenant: u16,
}

/// How far actual iterations are from the law, and whether the host reports their times.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTimes {
    /// Each iteration takes e^(s·Z − s²/2) times what the law says: lognormal noise of mean 1, Z standard normal,
    /// independent of everything else. This is s, about the relative standard deviation, in [0, 1].
    pub jitter: f64,
    /// Seed of the noise, and of which drafts are accepted.
    pub seed: u64,
    /// The host reports how long each took, from which policies may learn the law.
    pub reported: bool,
}

/// What a run needs besides the core's configuration.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Settings of the core.
    pub config: Config,
    /// Duration of an iteration.
    pub law: IterationTime,
    /// Whether policies may see output lengths.
    pub lengths: Lengths,
    /// Whether an arrival's label is its type; otherwise policies classify by lengths.
    pub typed: bool,
    /// `max_tokens` declared for every request; absent: the model's limit.
    pub max_tokens: Option<u32>,
    /// The client keeps at most this many requests under way, and sends the next when one has ended.
    pub max_concurrency: Option<usize>,
    /// Hints that a host passes with each arrival; empty where it passes none.
    pub hints: Vec<Hint>,
    /// Time added to each iteration: scheduling, sampling, the host's own work, ns.
    pub overhead_ns: u64,
    /// What the policy has learned before.
    pub learned: Option<serde_json::Value>,
    /// Noise and reports of the iterations' durations.
    pub steps: StepTimes,
    /// Speculative decoding: the probability that the first draft of a decode is accepted, that the first two are, and so
    /// on; none rises (vLLM's acceptance rate by position). Empty without drafts.
    pub acceptance: Vec<f64>,
    /// The KV of all prompts but their last token is computed elsewhere, and transferred like this.
    pub transfer: Option<Transfer>,
}

impl Setup {
    /// Lengths are hidden, no hints are given, and the law is exact.
    pub fn new(config: Config, law: IterationTime) -> Self {
        Self {
            config,
            law,
            lengths: Lengths::Hidden,
            typed: false,
            max_tokens: None,
            max_concurrency: None,
            hints: Vec::new(),
            overhead_ns: 0,
            learned: None,
            steps: StepTimes::default(),
            acceptance: Vec::new(),
            transfer: None,
        }
    }

    /// Refuses what does not fit a run of this many requests.
    pub(crate) fn check(&self, requests: usize) -> Result<()> {
        if !self.hints.is_empty() && self.hints.len() != requests {
            return Err(Error::invalid("hints", self.hints.len(), format!("{requests} arrivals")));
        }
        if self.max_concurrency == Some(0) {
            return Err(Error::invalid("max_concurrency", 0, "must be at least 1, or nothing is ever sent"));
        }
        if self.max_tokens == Some(0) {
            let rule = "must be at least 1 (leave it out for the model's limit)";
            return Err(Error::invalid("max_tokens", 0, rule));
        }
        Ok(())
    }
}
