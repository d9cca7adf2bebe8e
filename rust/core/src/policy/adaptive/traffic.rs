//! Arrivals and completions, averaged over the last requests.

use serde::{Deserialize, Serialize};

use crate::memory::Footprint;

/// Completions before the means are used, and before their spread is; and requests over which they are taken.
const FEW: f64 = 10.0;
const FIRST: f64 = 50.0;
const MEMORY: f64 = 500.0;
/// Squared coefficient of variation below which outputs are alike.
const ALIKE: f64 = 0.05;
/// Most requests that are counted one by one, and rounding errors of their means.
const MOST_SEEN: f64 = (1_u64 << 53) as f64;
const ROUNDING: f64 = 1e-6;

/// Means over the last requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Traffic {
    /// Arrivals seen, and the means of their prompts that are not shared, squared too, and of the time between them, s.
    arrived: f64,
    prompt: f64,
    prompt_squared: f64,
    gap: f64,
    /// Admissions seen, and the means of the prompt tokens that they compute, and of those that were evicted before.
    #[serde(default)]
    admitted: f64,
    #[serde(default)]
    computed: f64,
    #[serde(default)]
    evicted: f64,
    /// Completions seen, and the means of l', l'² and A.
    ended: f64,
    output: f64,
    output_squared: f64,
    cost: f64,
    #[serde(skip)]
    last_arrival_ns: Option<u64>,
}

/// The traffic, as far as the steady state depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mix {
    /// Requests per second.
    pub(super) rate: f64,
    /// Prompt tokens to be computed; and the length of the prompt that a random prompt token belongs to.
    pub(super) prompt: f64,
    pub(super) prompt_of_token: f64,
    /// Mean square of the lengths of prompts, relative to the square of their mean.
    pub(super) prompt_squares: f64,
    /// Share of them that had been computed and was evicted.
    pub(super) evicted: f64,
    /// Output tokens.
    pub(super) output: f64,
    /// KV tokens of a request that decodes, and what it takes of the cache, in tokens of the first KV group.
    pub(super) kv: f64,
    pub(super) held: f64,
}

impl Traffic {
    /// A request with this many prompt tokens of its own has arrived.
    pub(super) fn arrive(&mut self, at_ns: u64, prompt: f64) {
        let before = self.last_arrival_ns.replace(at_ns);
        self.arrived += 1.0;
        let weight = 1.0 / self.arrived.min(MEMORY);
        self.prompt += weight * (prompt - self.prompt);
        self.prompt_squared += weight * (prompt * prompt - self.prompt_squared);
        if let Some(before) = before {
            self.gap += weight * (1e-9 * at_ns.saturating_sub(before) as f64 - self.gap);
        }
    }

    /// A request is admitted, and computes this many prompt tokens, some of which had been evicted.
    pub(super) fn admit(&mut self, computed: f64, evicted: f64) {
        self.admitted += 1.0;
        let weight = 1.0 / self.admitted.min(MEMORY);
        self.computed += weight * (computed - self.computed);
        self.evicted += weight * (evicted - self.evicted);
    }

    /// A request of `output` tokens has ended; it took `held` of the cache on average, in tokens of the first KV group.
    pub(super) fn end(&mut self, output: f64, held: f64) {
        self.ended += 1.0;
        let weight = 1.0 / self.ended.min(MEMORY);
        self.output += weight * (output - self.output);
        self.output_squared += weight * (output * output - self.output_squared);
        self.cost += weight * (output * held - self.cost);
    }

    /// Whether enough has ended for the spread of outputs to be known.
    pub(super) fn is_known(&self) -> bool {
        self.ended >= FIRST
    }

    /// E[l'], output tokens of a request.
    pub(super) fn output(&self) -> f64 {
        self.output
    }

    /// E[A], what a request takes of the cache, summed over its iterations.
    pub(super) fn cost(&self) -> f64 {
        self.cost
    }

    /// Requests in the balanced composition, that fills `capacity`.
    pub(super) fn residents(&self, capacity: f64) -> f64 {
        capacity * self.output / self.cost
    }

    /// Whether outputs are nearly equal.
    pub(super) fn is_alike(&self) -> bool {
        self.is_known() && self.output_squared < (1.0 + ALIKE) * self.output * self.output
    }

    /// The traffic, once it is known. `curve` has the moments of the curve of output lengths, if that has learned any: just
    /// after the start, the completions underestimate long outputs and the curve overestimates them.
    pub(super) fn mix(&self, curve: Option<(f64, f64)>, footprint: &Footprint) -> Option<Mix> {
        let is_known = self.ended >= FEW && self.output > 0.0 && self.prompt > 0.0;
        let computed = if self.admitted > 0.0 { self.computed } else { self.prompt };
        let (output, squared) = curve.unwrap_or((self.output, self.output_squared));
        let kv = self.prompt + 0.5 * (squared / output).min(self.output_squared / self.output);
        is_known.then(|| Mix {
            rate: 1.0 / self.gap.max(1e-9),
            prompt: computed,
            prompt_of_token: self.prompt_squared / self.prompt,
            prompt_squares: self.prompt_squared / (self.prompt * self.prompt),
            evicted: self.evicted / computed,
            output: output.min(self.output),
            kv,
            held: footprint.tokens(kv),
        })
    }

    /// Checks that requests of at most `longest` tokens could have produced these means: no square is below that of its
    /// mean or above what the longest gives, and the cost of a request lies between its output alone and its output
    /// behind the longest prompt.
    ///
    /// # Errors
    /// Names the first that could not.
    pub(super) fn check(&self, longest: f64, footprint: &Footprint) -> Result<(), String> {
        let Self { arrived, prompt, prompt_squared, gap, admitted, computed, evicted, .. } = *self;
        let Self { ended, output, output_squared, cost, .. } = *self;
        // Where only full attention is cached, a request holds at least its output so far.
        let triangle = if footprint.plateaus().is_empty() { 0.5 * output_squared * footprint.slope() } else { 0.0 };
        let heaviest = footprint.most(longest) * output;
        for (name, value, least, most) in [
            ("arrived", arrived, 0.0, MOST_SEEN),
            ("prompt", prompt, 0.0, longest),
            ("prompt_squared", prompt_squared, prompt * prompt, longest * prompt),
            ("gap", gap, 0.0, 1e-9 * u64::MAX as f64),
            ("admitted", admitted, 0.0, MOST_SEEN),
            ("computed", computed, admitted.min(1.0), longest),
            ("evicted", evicted, 0.0, computed),
            ("ended", ended, 0.0, MOST_SEEN),
            ("output", output, 0.0, longest),
            ("output_squared", output_squared, output * output, longest * output),
            ("cost", cost, triangle, triangle + heaviest),
        ] {
            if !(least * (1.0 - ROUNDING)..=most * (1.0 + ROUNDING)).contains(&value) {
                return Err(format!(
                    "traffic.{name} = {value}: no traffic of requests up to {longest} tokens gives that"
                ));
            }
        }
        Ok(())
    }
}
