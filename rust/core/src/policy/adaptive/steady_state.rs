//! What to expect of a static token budget: the fluid model of arXiv 2504.11320 §3, prompts computed in chunks.
//!
//! Requests have p prompt and l output tokens and hold k KV tokens on average while they decode. While D requests
//! decode, r = D / l of them end in an iteration, and as many enter: in a Poisson stream, so that none do in e^-r of the
//! iterations. Prompts that enter together fill iterations of n tokens, and what is left of them has one of its own or,
//! with the share u = r p / (n − D) of the iterations that are full if every one that computes prompts is, fills up
//! others'. With many residents all are full; with few, most prompts are computed alone, and a larger budget changes
//! little. If the mean iteration takes τ̄, requests pass at the rate D / (l τ̄). D is as large as the arrivals make it, or
//! as the budget (u < 1) and the memory allow.

use super::traffic::Mix;
use crate::model::{FluidShape, IterationTime};

/// Bisections for D: to a four-thousandth of its range.
const BISECTIONS: u32 = 12;
/// Relative step of a derivative.
const STEP: f64 = 0.01;

/// The steady state expected under a budget.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    /// Requests per second.
    pub(super) rate: f64,
    /// From the arrival to the first token, s, and from there to the last.
    pub(super) first_token: f64,
    pub(super) decoding: f64,
    /// Prompt tokens of an iteration that computes any.
    pub(super) prompts: f64,
    /// By how many per cent requests wait longer for memory if they stay longer by one.
    pub(super) elasticity: f64,
}

/// The iterations with some number of decodes.
struct Iterations {
    /// Prompt tokens of those that compute any, and their share.
    prompts: f64,
    share: f64,
    /// Seconds of those that are full, and of all on average, and the mean of their squares.
    with: f64,
    mean: f64,
    squares: f64,
}

/// The steady state under a budget of `n` tokens where memory and slots hold `residents` requests.
pub(super) fn expected(law: &IterationTime, mix: &Mix, n: u64, residents: f64) -> Expected {
    let budget = n as f64;
    let (mut low, mut high) = (0.0, residents.min(budget));
    let (first_token, decoding) = (f64::INFINITY, f64::INFINITY);
    let mut found = Expected { rate: 0.0, first_token, decoding, prompts: budget, elasticity: 0.0 };
    for _ in 0..BISECTIONS {
        let decodes = f64::midpoint(low, high);
        match balance(law, mix, budget, decodes, residents) {
            Some(expected) => (low, found) = (decodes, expected),
            None => high = decodes,
        }
    }
    found
}

/// By how many per cent an iteration takes longer if requests stay longer by one, because more of them then decode: none
/// where more arrive than pass, since memory or the budget then says how many do.
pub(super) fn feedback(law: &IterationTime, mix: &Mix, n: u64, expected: &Expected) -> f64 {
    let decodes = expected.rate * expected.decoding;
    if expected.rate <= (1.0 - STEP) * mix.rate {
        return 0.0;
    }
    let seconds = |decodes| iterations(law, mix, n as f64, decodes).mean;
    libm::log(seconds(decodes * (1.0 - STEP)) / seconds(decodes)) / libm::log1p(-STEP)
}

/// The iterations with this many decodes.
fn iterations(law: &IterationTime, mix: &Mix, budget: f64, decodes: f64) -> Iterations {
    let seconds = |prompts| seconds(law, mix, decodes, prompts);
    let prompts = budget - decodes;
    let requests = decodes / mix.output;
    let share = requests * mix.prompt / prompts;
    let (with, without) = (seconds(prompts), seconds(0.0));
    let (mut mean, mut squares) = (without, without * without);
    let mut take = |share: f64, seconds: f64| {
        mean += share * (seconds - without);
        squares += share * (seconds * seconds - without * without);
    };
    // Some enter in this share of the iterations, with so many tokens on average: three sizes of equal probability stand
    // for a lognormal distribution of that mean and of the variance of a Poisson number of prompts.
    let entering = -libm::expm1(-requests);
    let tokens = requests * mix.prompt / entering;
    let spread = libm::log(entering * (mix.prompt_squares / requests + 1.0));
    let factor = libm::exp(libm::sqrt(1.5 * spread.max(0.0)));
    let (each, sizes) = (entering / 3.0, [1.0 / factor, 1.0, factor]);
    let scale = 3.0 * tokens / sizes.iter().sum::<f64>();
    for size in sizes {
        let full = libm::floor(size * scale / prompts);
        let rest = size * scale - full * prompts;
        take(each * (full + share * rest / prompts), with);
        take(each * (1.0 - share), seconds(rest));
    }
    Iterations { prompts, share, with, mean, squares }
}

/// An iteration of this many decodes and prompt tokens.
fn seconds(law: &IterationTime, mix: &Mix, decodes: f64, prompts: f64) -> f64 {
    law.fluid_seconds(&FluidShape {
        prefill_tokens: prompts,
        decodes,
        decode_kv: decodes * mix.kv,
        prefill_attention: prompts * mix.prompt_of_token,
        ..FluidShape::default()
    })
}

/// The steady state with this many decodes; none where more arrive, or pass, than there is room for.
fn balance(law: &IterationTime, mix: &Mix, budget: f64, decodes: f64, residents: f64) -> Option<Expected> {
    let Mix { rate: arrivals, prompt, output, .. } = *mix;
    let Iterations { prompts, share, with, mean, squares } = iterations(law, mix, budget, decodes);
    if share >= 1.0 {
        return None;
    }
    let rate = decodes / (output * mean);
    // What is left of the iteration under way (the mean residual of a renewal), the prompts in front (Pollaczek and
    // Khinchine), and its own: at least an iteration by itself.
    let under_way = 0.5 * squares / mean;
    let each = prompt / prompts * with;
    let own = if prompt < prompts { seconds(law, mix, decodes, prompt) } else { each };
    let decoding = output * mean;
    let prefilling = under_way + each * 0.5 * mix.prompt_squares * share / (1.0 - share) + own;
    // Waiting for memory: as in a queue with `residents` servers (Sakasegawa 1977).
    let used = rate * (prefilling + decoding) / residents;
    if used >= 1.0 || rate > arrivals {
        return None;
    }
    let (queueing, elasticity) = waiting(prefilling + decoding, used, residents);
    Some(Expected { rate, first_token: prefilling + queueing, decoding, prompts, elasticity })
}

/// The wait for room that is `used` to this share by requests that stay so long; and its elasticity in that time, to
/// which `used` is proportional.
fn waiting(stay: f64, used: f64, residents: f64) -> (f64, f64) {
    let exponent = libm::sqrt(2.0 * residents + 2.0) - 1.0;
    let wait = stay / residents * libm::pow(used, exponent) / (1.0 - used);
    (wait, 1.0 + exponent + used / (1.0 - used))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix(rate: f64) -> Mix {
        let (prompt, prompt_squares) = (512.0, 1.0);
        Mix { rate, prompt, prompt_of_token: 512.0, prompt_squares, evicted: 0.0, output: 20.0, kv: 522.0, held: 522.0 }
    }

    #[test]
    fn what_arrives_passes_while_it_can() {
        for rate in [5.0, 10.0, 20.0] {
            let expected = expected(&IterationTime::A100, &mix(rate), 384, 200.0);
            assert!((expected.rate / rate - 1.0).abs() < 0.05, "{expected:?}");
            // Little: the decodes are the rate times the time they take.
            let decodes = 384.0 - expected.prompts;
            assert!((expected.rate * expected.decoding - decodes).abs() < 1e-6 * decodes);
        }
    }

    /// Of arXiv 2504.11320's single type on the A100 law, no budget serves more than the edge of the stair at 384.
    #[test]
    fn the_best_budget_in_overload_ends_at_a_stair() {
        let rate = |n| expected(&IterationTime::A100, &mix(1e9), n, 200.0).rate;
        let best = (200..2048).step_by(8).max_by(|a, b| rate(*a).total_cmp(&rate(*b))).unwrap();
        assert_eq!(best, 384);
    }

    #[test]
    fn requests_that_stay_longer_wait_longer_by_the_elasticity() {
        for (used, residents) in [(0.3, 8.0), (0.9, 60.0), (0.99, 256.0)] {
            let (wait, elasticity) = waiting(10.0, used, residents);
            let (longer, _) = waiting(10.0 * (1.0 + 1e-6), used * (1.0 + 1e-6), residents);
            assert!(((longer / wait - 1.0) / 1e-6 / elasticity - 1.0).abs() < 1e-3, "{used}, {residents}");
        }
    }

    /// With a share κ of the time of an iteration due to the decodes, 1 % more requests are 1 / (1 - κ) % more decodes.
    #[test]
    fn decodes_rise_with_the_rate_by_the_feedback() {
        // Without stairs, where a derivative would have to jump.
        let law = IterationTime::linear(0.01, 4e-7).unwrap();
        let mix = |rate| Mix { output: 1000.0, kv: 2000.0, ..mix(rate) };
        let at = |rate| expected(&law, &mix(rate), 2048, 256.0);
        let share = |rate| feedback(&law, &mix(rate), 2048, &at(rate));
        for (rate, least) in [(0.5, 0.1), (1.0, 0.3)] {
            let (one, more) = (at(rate), at(1.03 * rate));
            let rise = libm::log(more.rate * more.decoding / (one.rate * one.decoding));
            let passes = libm::log(more.rate / one.rate);
            let share = f64::midpoint(share(rate), share(1.03 * rate));
            assert!((rise / passes * (1.0 - share) - 1.0).abs() < 0.1, "{rise} {passes} {one:?} {share}");
            assert!(share > least, "{one:?} {share}");
        }
    }

    /// Where the decodes are limited by memory, longer iterations do not make them more.
    #[test]
    fn what_does_not_pass_has_no_feedback() {
        let mix = |rate| Mix { output: 1000.0, ..mix(rate) };
        let share = |rate| {
            let mix = mix(rate);
            feedback(&IterationTime::A100, &mix, 512, &expected(&IterationTime::A100, &mix, 512, 20.0))
        };
        assert!(share(0.8 * expected(&IterationTime::A100, &mix(1e9), 512, 20.0).rate) > 0.05);
        assert!(share(1e9) == 0.0);
    }

    #[test]
    fn memory_limits_what_passes() {
        let one = |residents| expected(&IterationTime::A100, &Mix { output: 1000.0, ..mix(1e9) }, 512, residents);
        assert!(one(20.0).rate < 0.7 * one(40.0).rate, "{:?} {:?}", one(20.0), one(40.0));
        assert!(one(20.0).rate * one(20.0).decoding <= 20.0);
    }
}
