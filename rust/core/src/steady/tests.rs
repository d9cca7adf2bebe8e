use proptest::prelude::*;

use super::*;
use crate::capacity::capacity_bound;
use crate::cost::{FluidShape, IterationTime};
use crate::fluid::GpuLimits;
use crate::workload::{StageConvention, Workload};

fn of(types: &[(u32, u32, f64)]) -> Workload {
    let types = types.iter().map(|&(prompt, output, rate)| RequestType { prompt, output, rate });
    Workload::new(types.collect()).unwrap()
}

fn setting<'a>(workload: &'a Workload, law: &'a IterationTime, limits: GpuLimits) -> Setting<'a> {
    Setting { workload, law, convention: StageConvention::Vllm, limits }
}

const A100: GpuLimits = GpuLimits { capacity: 118_784, max_running: Some(256), token_budget: Some(2048) };

#[test]
fn iterations_of_constant_length_make_an_infinite_server() {
    // 10 ms whatever the batch: 50/s staying 100 decodes make 50 residents, Poisson; e^(−50) of the time there is none.
    let workload = of(&[(32, 101, 50.0)]);
    let law = IterationTime::linear(0.01, 0.0).unwrap();
    let state = SteadyState::new(&setting(&workload, &law, GpuLimits::memory(1_000_000)), 1).unwrap();
    let e = state.expected.unwrap();
    assert!((e.decodes - 50.0).abs() < 1e-6 && e.full < 1e-12 && e.wait < 1e-12);
    assert!((e.tpot - 0.01).abs() < 1e-9, "{e:?}");
    assert!((e.ttft - 0.015).abs() < 1e-6, "half an iteration and one of its own: {e:?}");
    assert!((e.latency - 1.015).abs() < 1e-6);
    // 32 + (1 + … + 100)/100 tokens each, and the half request at a time that is in its prefill.
    assert!((e.memory - 50.0 * 82.5 - 0.5 * 32.0).abs() < 1e-3, "{e:?}");
    // Var(N) E[K]² + E[N] Var(K), K uniform on 33..=132.
    let variance = 50.0 * 82.5 * 82.5 + 50.0 * (100.0 * 100.0 - 1.0) / 12.0;
    assert!((e.memory_deviation - libm::sqrt(variance)).abs() < 1e-3);
}

#[test]
fn seats_make_an_erlang_queue() {
    // 12 seats, 10 erlangs: the wait is Erlang C's, times (1 + 0)/2 for requests that are all alike.
    let workload = of(&[(32, 101, 10.0)]);
    let law = IterationTime::linear(0.01, 0.0).unwrap();
    let limits = GpuLimits { max_running: Some(12), ..GpuLimits::memory(1_000_000) };
    let state = SteadyState::new(&setting(&workload, &law, limits), 1).unwrap();
    assert_eq!(state.saturated.binding, Binding::MaxRunning);
    assert!((state.saturated.requests - 12.0).abs() < 1e-9);
    let (mut term, mut sum) = (1.0, 0.0);
    for d in 0..12 {
        sum += term;
        term *= 10.0 / f64::from(d + 1);
    }
    let queued = term / (1.0 - 10.0 / 12.0);
    let erlang_c = queued / (sum + queued);
    let e = state.expected.unwrap();
    assert!((e.full - erlang_c).abs() < 1e-9);
    assert!((e.wait - erlang_c / 2.0 * 0.5).abs() < 1e-9, "C/(12 − 10) per second, halved: {e:?}");
}

#[test]
fn no_seat_helps_above_the_saturated_rate() {
    let law = IterationTime::A100;
    let workload = of(&[(512, 1000, 4.0)]);
    let state = SteadyState::new(&setting(&workload, &law, A100), 16).unwrap();
    assert_eq!((state.expected, state.saturated.binding), (None, Binding::Memory));
    // 116 residents: decode iterations of 43 ms and 0.116 prompts each. Simulated: 2,250 tok/s.
    assert!((state.saturated.throughput - 2_255.0).abs() < 15.0, "{state:?}");
    let bound = capacity_bound(&setting(&workload, &law, A100)).unwrap();
    assert!(state.saturated.requests < bound.requests);
    let short = of(&[(512, 20, 40.0)]);
    let state = SteadyState::new(&setting(&short, &law, A100), 16).unwrap();
    assert_eq!(state.saturated.binding, Binding::TokenBudget);
    assert!((state.saturated.requests - 24.2).abs() < 0.1, "simulated: 24.19/s, {state:?}");
}

#[test]
fn what_cannot_be_answered_is_refused() {
    let law = IterationTime::A100;
    let message = |workload: &Workload, limits, block| {
        SteadyState::new(&setting(workload, &law, limits), block).unwrap_err().to_string()
    };
    let workload = of(&[(512, 1000, 4.0)]);
    assert!(message(&workload, A100, 0).starts_with("block_size = 0"));
    assert!(message(&workload, GpuLimits::memory(600), 1).starts_with("capacity = 600"));
    assert!(message(&of(&[(5, 5, 0.0)]), A100, 1).starts_with("Σ rate = 0"));
}

/// The prefill queue, played out with a linear congruential generator: iterations of D decodes and what waits, prompts
/// that arrive while they last. Returns the mean iteration and the mean time to the end of prefill.
fn played(law: &IterationTime, decodes: f64, budget: f64, prompt: f64, rate: f64) -> (f64, f64) {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let (mut now, mut next, mut sum, mut done, mut steps) = (0.0, 0.0, 0.0, 0u32, 0u32);
    let mut line: std::collections::VecDeque<(f64, f64)> = std::collections::VecDeque::new();
    while done < 100_000 {
        while next <= now {
            line.push_back((next, prompt));
            next -= libm::log(uniform()) / rate;
        }
        let waiting: f64 = line.iter().map(|r| r.1).sum();
        let mut computed = waiting.min(budget - decodes);
        now += law.fluid_seconds(&FluidShape {
            prefill_tokens: computed,
            decodes,
            decode_kv: 1000.0 * decodes,
            prefill_kv: computed,
            prefill_attention: computed * prompt,
        });
        steps += 1;
        while let Some(first) = line.front_mut().filter(|_| computed > 0.0) {
            let part = first.1.min(computed);
            (first.1, computed) = (first.1 - part, computed - part);
            if first.1 <= 0.0 {
                sum += now - first.0;
                done += 1;
                line.pop_front();
            }
        }
    }
    (now / f64::from(steps), sum / f64::from(done))
}

#[test]
fn the_prefill_queue_agrees_with_one_played_out() {
    let law = IterationTime::A100;
    for (prompt, rate, budget, within) in
        [(512, 4.0, 2048, 0.01), (512, 16.0, 2048, 0.02), (2048, 3.0, 2048, 0.03), (512, 12.0, 384, 0.03)]
    {
        let decodes = 40.0;
        // Decodes of the mean length that makes their KV 1,000 tokens.
        let output = 2 * (1000 - prompt.min(999)) + 1;
        let workload = of(&[(prompt, output.max(3), rate)]);
        let limits = GpuLimits { token_budget: Some(budget), ..GpuLimits::memory(1_000_000) };
        let mut mixture = Mixture::new(&setting(&workload, &law, limits));
        mixture.set_decode_kv(1000.0);
        let queue = PrefillQueue::new(&mixture, decodes, rate);
        let (time, ttft) = played(&law, decodes, budget as f64, f64::from(prompt), rate);
        assert!((queue.iteration_time / time - 1.0).abs() < within, "{prompt} {rate}: {} {time}", queue.iteration_time);
        assert!((queue.ttft / ttft - 1.0).abs() < 2.0 * within, "{prompt} {rate}: {} {ttft}", queue.ttft);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn states_are_consistent(
        types in prop::collection::vec((1u32..2000, 1u32..400, 0.1f64..2.0), 1..5),
        fraction in prop_oneof![0.1f64..0.8, 1.01f64..1.5],
        budget in 300u64..4096,
    ) {
        let law = IterationTime::A100;
        let limits = GpuLimits { token_budget: Some(budget), ..A100 };
        let base = of(&types);
        let saturated = SteadyState::new(&setting(&base, &law, limits), 16).unwrap().saturated;
        let bound = capacity_bound(&setting(&base, &law, limits)).unwrap();
        // Mixtures are averages: they beat no optimum but for the rounding of counts.
        prop_assert!(saturated.requests <= bound.requests * 1.01, "{} {}", saturated.requests, bound.requests);
        let workload = base.scaled(fraction * saturated.requests / base.rate()).unwrap();
        let state = SteadyState::new(&setting(&workload, &law, limits), 16).unwrap();
        prop_assert!((state.saturated.requests / saturated.requests - 1.0).abs() < 1e-9);
        prop_assert_eq!(state.expected.is_some(), fraction < 1.0);
        if let Some(e) = state.expected {
            for value in [e.decodes, e.memory, e.memory_deviation, e.full, e.wait, e.ttft, e.tpot, e.latency] {
                prop_assert!(value.is_finite() && value >= 0.0, "{e:?}");
            }
            let shortest = law.least_seconds();
            prop_assert!(e.ttft > shortest && e.latency >= e.ttft && e.full <= 1.0, "{e:?}");
            prop_assert!(e.decodes <= 256.0);
        }
    }
}
