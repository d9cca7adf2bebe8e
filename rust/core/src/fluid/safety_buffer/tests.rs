use proptest::prelude::*;

use super::*;
use crate::model::{IterationTime, RequestType, StageConvention, Workload};
use crate::fluid::Segments;

fn segments() -> Segments {
    let types = [(512, 20, 7.0), (512, 50, 3.0), (512, 200, 1.0)];
    let types = types.map(|(prompt, output, rate)| RequestType { prompt, output, rate });
    Segments::exact(&Workload::new(types.to_vec()).unwrap(), StageConvention::Paper).unwrap()
}

fn law() -> IterationTime {
    IterationTime::linear(0.01, 1e-7).unwrap()
}

#[test]
fn published_values() {
    assert!((theta(66.0, 44.0, 0.65).unwrap() - 0.14883).abs() < 5e-6);
    assert!((queue_bound(66.0, 44.0, 0.65, 20_000.0, 0.05).unwrap() - 130.7).abs() < 0.05);
    assert!((queue_bound(10.0, 4.0, 0.3, 20_000.0, 0.05).unwrap() - 18.8).abs() < 0.05);
}

#[test]
fn the_buffer_by_its_formula() {
    // The paper's: integer thresholds, equal prompts, blocks of one token.
    let n = [10.0, 5.0, 2.0];
    let buffer = SafetyBuffer::new(&n, &segments(), &law(), 1).unwrap();
    let protection = Protection { failure_probability: 0.01, horizon: 60.0 };
    let union = libm::log(3.0 * (1.0 + 60.0 / 0.01) / 0.01);
    let queues = [5.0 + union / theta(10.0, 5.0, 4.0 / 11.0).unwrap(), 2.0 + union / theta(5.0, 2.0, 0.25).unwrap()];
    let expected = (512.0 + 20.0) * queues[0] + (512.0 + 50.0) * queues[1];
    assert!((buffer.tokens(&protection).unwrap() / expected - 1.0).abs() < 1e-12);
    // A resident holds up to 15 tokens more in blocks of 16.
    let residents = 10.0 * 21.0 + 5.0 * 30.0 + 2.0 * 150.0 + queues[0] + queues[1];
    assert!((buffer.residents(&protection).unwrap() / residents - 1.0).abs() < 1e-12);
    let blocks = SafetyBuffer::new(&n, &segments(), &law(), 16).unwrap();
    assert!((blocks.tokens(&protection).unwrap() / (expected + 15.0 * residents) - 1.0).abs() < 1e-12);
    // The longest prompts of those that enter, and a decode of everything else.
    assert!((buffer.iteration_tokens() - (10.0 * 512.0 + 200.0 + 150.0 + 300.0)).abs() < 1e-9);
}

#[test]
fn a_fraction_lets_one_request_more_in() {
    let protection = Protection { failure_probability: 0.05, horizon: 10.0 };
    let union = libm::log(3.0 * (1.0 + 10.0 / 0.01) / 0.05);
    let buffer = SafetyBuffer::new(&[10.0, 4.2, 1.6], &segments(), &law(), 1).unwrap();
    let queues = [5.2 + union / theta(10.0, 4.2, 4.0 / 11.0).unwrap(), 3.6 + union / theta(4.2, 1.6, 0.25).unwrap()];
    let expected = (512.0 + 50.0) + (512.0 + 200.0) + (512.0 + 20.0) * queues[0] + (512.0 + 50.0) * queues[1];
    assert!((buffer.tokens(&protection).unwrap() / expected - 1.0).abs() < 1e-12);
}

#[test]
fn unequal_prompts_take_the_lesser_of_two_conditions() {
    let of = |n: &[f64]| {
        // Mean prompt 8 of each, passing at 0.4.
        let types = [(2, 3, 0.9 * 6.0), (62, 3, 0.1 * 6.0), (2, 8, 0.9 * 4.0), (62, 8, 0.1 * 4.0)];
        let types = types.map(|(prompt, output, rate)| RequestType { prompt, output, rate });
        let segments = Segments::exact(&Workload::new(types.to_vec()).unwrap(), StageConvention::Paper).unwrap();
        let [first, second] = segments.as_slice() else { panic!("two outputs") };
        assert!((first.prompt - 8.0).abs() < 1e-12 && (first.prompt_variance - 324.0).abs() < 1e-9);
        assert!((second.longest_prompt - 62.0).abs() < 1e-12);
        let buffer = SafetyBuffer::new(n, &segments, &IterationTime::linear(0.01, 1e-4).unwrap(), 1).unwrap();
        let protection = Protection { failure_probability: 0.05, horizon: 20.0 };
        let steps = 1.0 + 20.0 / 0.01;
        let queue = |x: f64| n[1] + x / theta(n[0], n[1], 0.4).unwrap();
        // The maximum in place of the mean.
        let x = libm::log(2.0 * steps / 0.05);
        let maximum = (4.0 * n[0] + 5.0 * n[1] + queue(x)) * 54.0 + (8.0 + 3.0) * queue(x);
        // Bernstein's inequality in every window of the requests that reached the segment.
        let x = libm::log(((2.0 + 2.0 * n[0]) * steps + 2.0) / 0.05);
        let above = |m: f64| ((2.0 * m * 324.0 * x).sqrt() + 62.0 * x / 3.0).min(54.0 * m);
        let variance = above(4.0 * n[0]) + above(5.0 * n[1] + queue(x)) + (8.0 + 3.0) * queue(x);
        assert!((buffer.tokens(&protection).unwrap() / variance.min(maximum) - 1.0).abs() < 1e-9);
        for tokens in [0.5 * variance, variance, 2.0 * variance, 1.1 * maximum] {
            let bound = buffer.failure_probability(tokens, 20.0).unwrap();
            if bound > 1e-300 && bound < 1.0 {
                let again = buffer.tokens(&Protection { failure_probability: bound, horizon: 20.0 }).unwrap();
                assert!((again / tokens - 1.0).abs() < 1e-9, "{again} {tokens}");
                assert!((buffer.horizon(tokens, bound).unwrap() / 20.0 - 1.0).abs() < 1e-6);
            }
        }
    };
    of(&[2.0, 1.0]);
    of(&[10.0, 5.0]);
    of(&[100.0, 50.0]);
}

#[test]
fn one_segment_needs_no_buffer() {
    let one = Workload::new(vec![RequestType { prompt: 10, output: 5, rate: 1.0 }]).unwrap();
    let one = Segments::exact(&one, StageConvention::Vllm).unwrap();
    let buffer = SafetyBuffer::new(&[3.0], &one, &law(), 1).unwrap();
    let protection = Protection { failure_probability: 1e-9, horizon: 1e9 };
    assert!(buffer.tokens(&protection).unwrap().abs() < f64::EPSILON);
    assert!(buffer.failure_probability(0.0, 1e9).unwrap().abs() < f64::EPSILON);
    assert!(buffer.horizon(0.0, 0.5).unwrap().is_infinite());
}

#[test]
fn bad_arguments_are_named() {
    let message = |result: Result<f64, Error>| result.unwrap_err().to_string();
    assert!(message(theta(10.0, 10.0, 0.5)).starts_with("n_k/n_{k-1} = 1: must be below 1"));
    assert!(message(theta(10.0, 5.0, 0.5)).starts_with("n_k/n_{k-1} = 0.5: must be above p_k"));
    assert!(message(theta(10.0, 5.0, 0.0)).starts_with("p_k = 0"));
    assert!(message(theta(f64::NAN, 5.0, 0.1)).starts_with("n_{k-1} = NaN"));
    assert!(message(queue_bound(10.0, 4.0, 0.3, 0.5, 0.1)).starts_with("steps = 0.5"));
    let buffer = SafetyBuffer::new(&[10.0, 4.2, 1.6], &segments(), &law(), 1).unwrap();
    let tokens = |failure_probability, horizon| message(buffer.tokens(&Protection { failure_probability, horizon }));
    assert!(tokens(0.0, 1.0).starts_with("failure_probability = 0"));
    assert!(tokens(0.5, f64::INFINITY).starts_with("horizon = inf"));
    assert!(message(buffer.failure_probability(-1.0, 1.0)).starts_with("tokens = -1"));
    assert!(SafetyBuffer::new(&[1.0], &segments(), &law(), 1).is_err());
}

/// P(W ≥ c) after `steps` steps of the recursion W' = max(n, W + Bin(before, p) − n), from W = n, exactly.
fn exact_tail(before: usize, n: usize, p: f64, steps: usize, c: usize) -> f64 {
    let mut binomial = vec![1.0];
    for _ in 0..before {
        let mut next = vec![0.0; binomial.len() + 1];
        for (i, mass) in binomial.iter().enumerate() {
            next[i] += mass * (1.0 - p);
            next[i + 1] += mass * p;
        }
        binomial = next;
    }
    // The last state absorbs: it counts the paths that ever reached c.
    let mut state = vec![0.0; c + 1];
    state[n] = 1.0;
    for _ in 0..steps {
        let mut next = vec![0.0; c + 1];
        next[c] = state[c];
        for (w, mass) in state[..c].iter().enumerate() {
            for (arrivals, probability) in binomial.iter().enumerate() {
                next[(w + arrivals).saturating_sub(n).max(n).min(c)] += mass * probability;
            }
        }
        state = next;
    }
    state[c]
}

#[test]
fn the_queue_bound_holds_for_the_exact_recursion() {
    for (before, n, p) in [(10, 4, 0.3), (12, 9, 0.65)] {
        for failure_probability in [0.3, 0.05] {
            let steps = 500;
            let bound = queue_bound(before as f64, n as f64, p, steps as f64, failure_probability).unwrap();
            let tail = exact_tail(before, n, p, steps, bound.ceil() as usize);
            assert!(tail <= failure_probability && tail > failure_probability / 1000.0, "{tail} {failure_probability}");
        }
    }
}

fn chains() -> impl Strategy<Value = (f64, f64, f64)> {
    // before, p and a ratio strictly between p and 1.
    (0.05f64..2000.0, 0.001f64..0.98, 0.01f64..0.99).prop_map(|(before, p, t)| (before, p, p + (1.0 - p) * t))
}

proptest! {
    #[test]
    fn theta_solves_its_equation((before, p, ratio) in chains()) {
        let n = before * ratio;
        let theta = theta(before, n, p).unwrap();
        prop_assert!(theta >= 8.0 * (n - before * p) / before * (1.0 - 1e-9));
        // Per request, in logarithms; the two terms are of size θ.
        let residual = libm::log(1.0 - p + p * libm::exp(theta)) - theta * (n / before);
        prop_assert!(residual.abs() <= 1e-9 * theta.max(1.0), "{residual} {theta}");
    }

    #[test]
    fn more_margin_decays_faster((before, p, ratio) in chains(), more in 0.01f64..0.99) {
        let wider = ratio + (1.0 - ratio) * more;
        prop_assume!(wider < 1.0);
        prop_assert!(theta(before, before * wider, p).unwrap() >= theta(before, before * ratio, p).unwrap());
    }

    #[test]
    fn buffer_and_failure_probability_are_inverse(
        failure_probability in 1e-12f64..0.999, horizon in 0.0f64..1e6, margin in 0.01f64..0.5,
    ) {
        let segments = segments();
        let n: Vec<f64> = segments.as_slice().iter().scan(50.0, |n, s| {
            *n *= if s.first_stage == 0 { 1.0 } else { s.survival + margin };
            Some(*n)
        }).collect();
        let buffer = SafetyBuffer::new(&n, &segments, &law(), 1).unwrap();
        let protection = Protection { failure_probability, horizon };
        let tokens = buffer.tokens(&protection).unwrap();
        prop_assert!((buffer.failure_probability(tokens, horizon).unwrap() / failure_probability - 1.0).abs() < 1e-9);
        prop_assert!((buffer.horizon(tokens, failure_probability).unwrap() - horizon).abs() <= 1e-6 * (1.0 + horizon));
        // Less failure or a longer horizon takes more memory; more memory fails less.
        let stricter = Protection { failure_probability: failure_probability / 2.0, horizon };
        let longer = Protection { failure_probability, horizon: horizon + 1.0 };
        prop_assert!(buffer.tokens(&stricter).unwrap() > tokens && buffer.tokens(&longer).unwrap() > tokens);
        prop_assert!(buffer.failure_probability(tokens * 1.1, horizon).unwrap() < failure_probability);
        prop_assert!((buffer.failure_probability(0.0, horizon).unwrap() - 1.0).abs() < f64::EPSILON);
    }
}
