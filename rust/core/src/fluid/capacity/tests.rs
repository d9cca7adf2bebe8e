use proptest::prelude::*;

use super::*;
use crate::fluid::{GpuLimits, largest_stable_rate};
use crate::model::{
    AttentionCosts, FluidShape, IterationTime, MeasuredLaw, RequestType, StageConvention, TokenStep, Workload,
};

fn of(types: &[(u32, u32, f64)]) -> Workload {
    let types = types.iter().map(|&(prompt, output, rate)| RequestType { prompt, output, rate });
    Workload::new(types.collect()).unwrap()
}

fn a100(workload: &Workload, limits: GpuLimits) -> Setting<'_> {
    Setting { workload, law: &IterationTime::A100, convention: StageConvention::Vllm, limits }
}

#[test]
fn long_outputs_on_the_a100() {
    // The same program over every composition of up to 2,048 tokens, solved by HiGHS: 2,316.3278 tokens per second.
    let workload = of(&[(512, 1000, 1.0)]);
    let limits = GpuLimits { max_running: Some(256), ..GpuLimits::memory(118_784) };
    let bound = capacity_bound(&a100(&workload, limits)).unwrap();
    assert!((bound.throughput - 2_316.327_801_507_5).abs() < 1e-6, "{}", bound.throughput);
    assert!((bound.requests * 1000.0 - bound.throughput).abs() < 1e-9);
    // A mixture of stairs: the best constant composition carries 5 % less.
    let constant = largest_stable_rate(&a100(&workload, limits)).unwrap();
    assert!(constant.throughput < 0.95 * bound.throughput && constant.throughput > 0.9 * bound.throughput);
}

#[test]
fn the_papers_law_has_its_closed_form() {
    // Every composition costs d0, so the program is the fluid model's: C/((d0 + d1 C) Σ λ A).
    let workload = of(&[(512, 20, 3.0), (100, 300, 1.0)]);
    let law = IterationTime::linear(0.01, 2e-7).unwrap();
    let limits = GpuLimits::memory(137_000);
    let setting = Setting { workload: &workload, law: &law, convention: StageConvention::Paper, limits };
    let bound = capacity_bound(&setting).unwrap();
    assert!((bound.scale / largest_stable_rate(&setting).unwrap().scale - 1.0).abs() < 1e-9);
    assert!(bound.prices.memory > 0.0 && bound.prices.prefill_token.abs() < 1e-15);
}

#[test]
fn bad_arguments_are_named() {
    let workload = of(&[(512, 20, 3.0)]);
    let message = |workload: &Workload, limits| capacity_bound(&a100(workload, limits)).unwrap_err().to_string();
    assert!(message(&of(&[(1, 1, 0.0)]), GpuLimits::memory(9)).starts_with("Σ rate = 0"));
    assert!(message(&workload, GpuLimits::memory(100)).starts_with("capacity = 100"));
    assert!(
        message(&workload, GpuLimits { max_running: Some(0), ..GpuLimits::memory(1_000) })
            .starts_with("max_running = 0")
    );
    // A prompt that leaves no room for its first decode.
    assert!(message(&workload, GpuLimits::memory(512)).starts_with("limits = "));
}

fn staircases() -> impl Strategy<Value = IterationTime> {
    (prop::sample::select(vec![1u64, 8, 16]), prop::collection::vec((8u64..300, -2e6f64..5e6, 0.0f64..40_000.0), 1..5))
        .prop_map(|(round, parts)| {
            let (mut from, mut level) = (0, 9e6);
            let steps = parts.into_iter().map(|(width, jump, per_token_ns)| {
                level = (level + jump).max(1e6);
                let base_ns = level - per_token_ns * from as f64;
                (from, level) = (from + width, level + per_token_ns * width as f64);
                TokenStep { up_to: from, base_ns, per_token_ns }
            });
            let costs = AttentionCosts {
                decode_base_ns: 2e5,
                prefill_base_ns: 1e5,
                per_decode_ns: 3e4,
                per_decode_kv_ns: 200.0,
                ..AttentionCosts::default()
            };
            IterationTime::Measured(MeasuredLaw::new(round, steps.collect(), costs).unwrap())
        })
}

fn types() -> impl Strategy<Value = Vec<(u32, u32, f64)>> {
    prop::collection::vec((1u32..600, 1u32..400, 0.05f64..5.0), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Weak duality, checked from outside: the mixture meets every requirement in exactly one second per second, and
    /// at the prices no composition at all, not only the corners, is cheaper than what it supplies.
    #[test]
    fn the_bound_carries_its_own_proof(
        types in types(), law in staircases(), capacity in 3_000u64..200_000,
        running in prop::option::of(1u32..300), budget in prop::option::of(16u64..1500),
    ) {
        let workload = of(&types);
        let limits = GpuLimits { capacity, max_running: running, token_budget: budget };
        let setting = Setting { workload: &workload, law: &law, convention: StageConvention::Vllm, limits };
        let bound = capacity_bound(&setting).unwrap();
        let demand = workload.demand(StageConvention::Vllm).scaled(bound.scale);
        let iterations = workload.iteration_rate(StageConvention::Vllm) * bound.scale;
        let c = capacity as f64;
        let sum = |f: &dyn Fn(&Composition) -> f64| bound.mixture.iter().map(|m| m.iterations * f(m)).sum::<f64>();
        let covers = |supply: f64, need: f64| supply >= need * (1.0 - 1e-9);
        prop_assert!(covers(sum(&|m| m.prefill_tokens as f64), demand.prefill_tokens));
        prop_assert!(covers(sum(&|m| m.decodes as f64), demand.decodes));
        let decoding = |m: &Composition| if m.decodes > 0 { c } else { 0.0 };
        prop_assert!(covers(sum(&decoding), demand.decode_kv));
        prop_assert!(covers(sum(&|_| c), kv(&demand)));
        prop_assert!(running.is_none_or(|r| covers(sum(&|_| f64::from(r)), iterations)));
        let attention = law.attention().variable_ns(&demand) * 1e-9;
        prop_assert!((sum(&|m| m.base_seconds) + attention - 1.0).abs() < 1e-9);

        let p = &bound.prices;
        let residence = running.map_or(0.0, |r| p.residence * f64::from(r));
        let shortest = types.iter().map(|t| u64::from(t.0)).min().unwrap();
        let most_decodes = running.map_or(u64::MAX, u64::from).min(capacity / (shortest + 1)).min(320);
        let most_tokens = budget.unwrap_or(u64::MAX).min(capacity).min(2_500);
        for decodes in (0..=most_decodes.min(most_tokens)).filter(|d| d % 7 < 2 || *d == most_decodes) {
            for prefill in 0..=most_tokens - decodes {
                if prefill + decodes == 0 { continue }
                let shape = FluidShape {
                    prefill_tokens: prefill as f64, decodes: decodes as f64, ..FluidShape::default()
                };
                let cost = law.token_seconds(prefill + decodes) + law.attention().base_ns(&shape) * 1e-9;
                let decoding = if decodes > 0 { p.decode_kv * c } else { 0.0 };
                let worth = p.prefill_token * prefill as f64 + p.decode * decodes as f64 + decoding + p.memory * c;
                prop_assert!(worth + residence <= cost * (1.0 + 1e-9), "{prefill} {decodes}: {worth} {cost}");
            }
        }
    }

    #[test]
    fn no_constant_composition_beats_the_mixture(
        types in types(), law in staircases(), capacity in 3_000u64..200_000, running in prop::option::of(1u32..300),
    ) {
        let workload = of(&types);
        let limits = GpuLimits { max_running: running, ..GpuLimits::memory(capacity) };
        let setting = Setting { workload: &workload, law: &law, convention: StageConvention::Vllm, limits };
        let constant = largest_stable_rate(&setting).unwrap();
        let mixture = capacity_bound(&setting).unwrap();
        // A fluid batch of less than one decode or prefill token, or of more decodes than fit, does not exist.
        let batch = workload.demand(StageConvention::Vllm).scaled(constant.scale * constant.iteration_time);
        let shortest = types.iter().map(|t| u64::from(t.0)).min().unwrap();
        let room = (capacity / (shortest + 1)) as f64;
        prop_assume!(batch.decodes >= 1.0 && batch.prefill_tokens >= 1.0 && batch.decodes <= room);
        prop_assert!(mixture.scale >= constant.scale * (1.0 - 1e-9), "{} {}", mixture.scale, constant.scale);
    }

    #[test]
    fn larger_limits_carry_no_less(types in types(), law in staircases(), capacity in 3_000u64..200_000, running in 1u32..300) {
        let workload = of(&types);
        let at = |capacity, running| {
            let limits = GpuLimits { max_running: Some(running), ..GpuLimits::memory(capacity) };
            capacity_bound(&Setting { workload: &workload, law: &law, convention: StageConvention::Vllm, limits })
                .unwrap().scale
        };
        let base = at(capacity, running);
        prop_assert!(at(capacity * 2, running) >= base * (1.0 - 1e-9) && at(capacity, running * 2) >= base * (1.0 - 1e-9));
    }
}
