//! Figures derived from a run, under the keys of `vllm bench serve`.

use crate::record::{NEVER_NS, Run};

/// A service-level objective: both must hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slo {
    /// Longest time to first token, ms.
    pub ttft_ms: f64,
    /// Longest mean time per output token, ms.
    pub tpot_ms: f64,
}

/// Mean, median, standard deviation and 99th percentile, ms; NaN without observations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// 50th percentile.
    pub median: f64,
    /// Standard deviation of the population.
    pub std: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Spread {
    /// Of weighted observations in ns. Pairs that fit one machine word together are sorted as such, in a fraction of the
    /// time and half the memory.
    fn of(values: impl Iterator<Item = (u64, u32)> + Clone) -> Self {
        let (value, weight) = values.clone().fold((0, 0), |most, pair| (most.0 | pair.0, most.1 | pair.1));
        let shift = u32::BITS - weight.leading_zeros();
        if value.leading_zeros() < shift {
            let mut pairs: Vec<(u64, u32)> = values.collect();
            pairs.sort_unstable();
            return Self::of_ascending(&pairs.iter().copied());
        }
        let mask = (1 << shift) - 1;
        let mut words: Vec<u64> = values.map(|(value, weight)| value << shift | u64::from(weight)).collect();
        words.sort_unstable();
        Self::of_ascending(&words.iter().map(|word| (word >> shift, (word & mask) as u32)))
    }

    /// Of observations in ascending order. Percentiles are the least value that the given share does not exceed.
    fn of_ascending(values: &(impl Iterator<Item = (u64, u32)> + Clone)) -> Self {
        let weight: u64 = values.clone().map(|(_, w)| u64::from(w)).sum();
        if weight == 0 {
            return Self { mean: f64::NAN, median: f64::NAN, std: f64::NAN, p99: f64::NAN };
        }
        let percentile = |share: f64| {
            let rank = libm::ceil(share * weight as f64) as u64;
            let mut seen = 0;
            let at = values.clone().find(|&(_, w)| {
                seen += u64::from(w);
                seen >= rank
            });
            at.map_or(f64::NAN, |(value, _)| value as f64 * 1e-6)
        };
        let average = |f: &dyn Fn(f64) -> f64| {
            values.clone().map(|(value, w)| f(value as f64 * 1e-6) * f64::from(w)).sum::<f64>() / weight as f64
        };
        let mean = average(&|ms| ms);
        let std = libm::sqrt(average(&|ms| (ms - mean) * (ms - mean)));
        Self { mean, median: percentile(0.5), std, p99: percentile(0.99) }
    }
}

/// The figures of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// From the first arrival to the last completion, s.
    pub duration: f64,
    /// Requests completed.
    pub completed: usize,
    /// Those whose output `max_tokens` has cut.
    pub finished_by_length: usize,
    /// Requests refused.
    pub failed: usize,
    /// Prompt tokens of the completed.
    pub total_input_tokens: u64,
    /// Output tokens of the completed.
    pub total_output_tokens: u64,
    /// Completed requests per second.
    pub request_throughput: f64,
    /// Requests per second that met the objective.
    pub request_goodput: Option<f64>,
    /// Share of the requests OFFERED that met the objective.
    pub goodput: Option<f64>,
    /// Output tokens per second.
    pub output_throughput: f64,
    /// Prompt and output tokens per second.
    pub total_token_throughput: f64,
    /// Time to first token.
    pub ttft: Spread,
    /// Time per output token after the first.
    pub tpot: Spread,
    /// Gaps between tokens.
    pub itl: Spread,
    /// Arrival to completion.
    pub e2el: Spread,
    /// Share of the prompt tokens of the admitted that were not computed: the cache held them, or they came from elsewhere.
    pub prefix_hit_rate: f64,
    /// Tokens that an iteration computed: mean, median and 99th percentile, drafts left out.
    pub tokens_per_step: [f64; 3],
}

impl Summary {
    /// Derives the figures; `slo` adds the goodput.
    pub fn new(run: &Run, slo: Option<Slo>) -> Self {
        let done = |i: &usize| run.finished_ns[*i] != NEVER_NS;
        let completed = (0..run.finished_ns.len()).filter(done);
        let ttft = |i: usize| run.first_token_ns[i] - run.arrival_ns[i];
        let e2el = |i: usize| run.finished_ns[i] - run.arrival_ns[i];
        let tpot = |i: usize| {
            let gaps = u64::from(run.output[i].saturating_sub(1));
            (run.finished_ns[i] - run.first_token_ns[i]).checked_div(gaps)
        };
        let each = |f: &dyn Fn(usize) -> u64| Spread::of(completed.clone().map(|i| (f(i), 1)));
        let start = run.arrival_ns.first().copied().unwrap_or(0);
        let end = completed.clone().map(|i| run.finished_ns[i]).max().unwrap_or(start);
        let duration = (end - start) as f64 * 1e-9;
        let total_input_tokens = completed.clone().map(|i| u64::from(run.prompt[i])).sum();
        let total_output_tokens = completed.clone().map(|i| u64::from(run.output[i])).sum();
        let met = slo.map(|slo| {
            let meets = |&i: &usize| {
                ttft(i) as f64 <= slo.ttft_ms * 1e6 && tpot(i).is_none_or(|gap| gap as f64 <= slo.tpot_ms * 1e6)
            };
            completed.clone().filter(meets).count() as f64
        });
        let count = completed.clone().count();
        Self {
            duration,
            completed: count,
            finished_by_length: run.finished_by_length,
            failed: run.failed,
            total_input_tokens,
            total_output_tokens,
            request_throughput: count as f64 / duration,
            request_goodput: met.map(|met| met / duration),
            goodput: met.map(|met| met / run.finished_ns.len() as f64),
            output_throughput: total_output_tokens as f64 / duration,
            total_token_throughput: (total_input_tokens + total_output_tokens) as f64 / duration,
            ttft: each(&ttft),
            e2el: each(&e2el),
            tpot: Spread::of(completed.clone().filter_map(|i| Some((tpot(i)?, 1)))),
            itl: Spread::of(run.gaps.iter().copied()),
            prefix_hit_rate: run.cached_tokens as f64 / run.prompt_tokens as f64,
            tokens_per_step: run.tokens_per_step(),
        }
    }

    /// All figures with their keys, in the order of `vllm bench serve`.
    pub fn items(&self) -> Vec<(String, f64)> {
        let mut items: Vec<(String, f64)> = [
            ("duration", self.duration),
            ("completed", self.completed as f64),
            ("finished_by_length", self.finished_by_length as f64),
            ("failed", self.failed as f64),
            ("total_input_tokens", self.total_input_tokens as f64),
            ("total_output_tokens", self.total_output_tokens as f64),
            ("request_throughput", self.request_throughput),
            ("output_throughput", self.output_throughput),
            ("total_token_throughput", self.total_token_throughput),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        items.extend(self.request_goodput.map(|value| ("request_goodput".to_owned(), value)));
        items.extend(self.goodput.map(|value| ("goodput".to_owned(), value)));
        for (name, spread) in [("ttft", self.ttft), ("tpot", self.tpot), ("itl", self.itl), ("e2el", self.e2el)] {
            for (figure, value) in
                [("mean", spread.mean), ("median", spread.median), ("std", spread.std), ("p99", spread.p99)]
            {
                items.push((format!("{figure}_{name}_ms"), value));
            }
        }
        items.push(("prefix_hit_rate".to_owned(), self.prefix_hit_rate));
        for (figure, tokens) in ["mean", "median", "p99"].into_iter().zip(self.tokens_per_step) {
            items.push((format!("{figure}_tokens_per_step"), tokens));
        }
        items
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn words_give_what_pairs_give(
            value_bits in 1..=64u32,
            weight_bits in 1..=32u32,
            raw in prop::collection::vec((any::<u64>(), any::<u32>()), 0..200),
        ) {
            let mut values: Vec<(u64, u32)> =
                raw.into_iter().map(|(v, w)| (v >> (64 - value_bits), w >> (32 - weight_bits))).collect();
            let found = Spread::of(values.iter().copied());
            values.sort_unstable();
            let expected = Spread::of_ascending(&values.iter().copied());
            for (a, b) in [
                (found.mean, expected.mean),
                (found.median, expected.median),
                (found.std, expected.std),
                (found.p99, expected.p99),
            ] {
                prop_assert_eq!(a.to_bits(), b.to_bits());
            }
        }
    }
}
