use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::model::{AttentionCosts, MeasuredLaw, RequestType, TokenStep};

fn of(types: &[(u32, u32, f64)]) -> Workload {
    let types = types.iter().map(|&(prompt, output, rate)| RequestType { prompt, output, rate });
    Workload::new(types.collect()).unwrap()
}

fn setting<'a>(
    workload: &'a Workload,
    law: &'a IterationTime,
    convention: StageConvention,
    limits: GpuLimits,
) -> Setting<'a> {
    Setting { workload, law, convention, limits }
}

fn close(value: f64, expected: f64, tolerance: f64) {
    assert!((value / expected - 1.0).abs() <= tolerance, "{value} against {expected}");
}

/// The paper's population: E[A] = 28,172 token-iterations, d0 and d1 fitted from its M* table.
const LMSYS_MEMORY: [(f64, f64); 4] = [(50.0, 34_377.0), (60.0, 55_758.0), (70.0, 100_327.0), (80.0, 250_509.0)];

fn lmsys_law() -> IterationTime {
    IterationTime::linear(10.6076e-3, 4.0136e-7).unwrap()
}

#[test]
fn the_lmsys_table_from_the_mean_token_iterations() {
    for (rate, memory) in LMSYS_MEMORY {
        let demand = FluidShape { decode_kv: rate * 28_172.0, ..FluidShape::default() };
        let time = equilibrium_time(&demand, &lmsys_law()).unwrap();
        close(time * kv(&demand), memory, 0.005);
    }
}

#[test]
fn the_lmsys_population_crosses_the_capacity_near_74() {
    // Any workload with E[A] = 28,172 will do: l' + 1 = 2, l + 1/2 = 14,086 is off by half a token.
    let workload = of(&[(14_086, 1, 1.0)]);
    let largest =
        largest_stable_rate(&setting(&workload, &lmsys_law(), StageConvention::Paper, GpuLimits::memory(137_000)))
            .unwrap();
    close(largest.requests * workload.mean_token_iterations(StageConvention::Paper) / 28_172.0, 74.14, 1e-3);
    assert_eq!(largest.binding, Binding::Memory);
}

#[test]
fn the_lmsys_word_counts_give_the_table_too() {
    let folder = std::env::var("WAIT_CORE_TRACES")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/traces").to_owned());
    let path = Path::new(&folder).join("lmsys_chat_1m_words_100k.csv");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("skipped: {} is not here", path.display());
        return;
    };
    let lengths: Vec<(u32, u32)> = text
        .lines()
        .filter_map(|line| {
            let mut cells = line.split(',').map(|cell| cell.trim().parse::<u32>());
            Some((cells.next()?.ok()?, cells.next()?.ok()?))
        })
        .filter(|&(prompt, output)| (1..500).contains(&prompt) && (1..500).contains(&output))
        .collect();
    assert!(lengths.len() > 10_000, "only {} rows read", lengths.len());
    for (rate, memory) in LMSYS_MEMORY {
        let workload = Workload::from_lengths(&lengths, rate).unwrap();
        let equilibrium = FluidEquilibrium::new(&workload, &lmsys_law(), StageConvention::Paper).unwrap();
        // The published mean counts the few conversations without an answer, which are no requests: M* follows the
        // difference of the means, magnified by 1/(1 − x).
        let mean = workload.mean_token_iterations(StageConvention::Paper);
        close(mean, 28_172.0, 0.002);
        close(equilibrium.memory, memory, (mean / 28_172.0 - 1.0) / (1.0 - equilibrium.load) + 0.005);
    }
}

#[test]
fn two_types_by_hand() {
    // A_1 = 21 · 522 = 10,962, A_2 = 51 · 537 = 27,387; Σ λ A = 10 · A_1 + 4 · A_2 = 219,168; x = .0219168.
    let workload = of(&[(512, 20, 10.0), (512, 50, 4.0)]);
    let law = IterationTime::linear(0.01, 1e-7).unwrap();
    let e = FluidEquilibrium::new(&workload, &law, StageConvention::Paper).unwrap();
    close(e.load, 0.021_916_8, 1e-12);
    close(e.iteration_time, 0.01 / 0.978_083_2, 1e-12);
    close(e.memory, 2_191.68 / 0.978_083_2, 1e-12);
    close(e.in_service[1], 0.04 / 0.978_083_2, 1e-12);
    close(e.throughput, 400.0, 1e-12);
    assert!(e.fits(&GpuLimits::memory(2_241)) && !e.fits(&GpuLimits::memory(2_240)));
}

#[test]
fn load_at_or_above_one_is_unstable() {
    let law = IterationTime::linear(0.01, 1e-6).unwrap();
    for rate in [1e6 / 10_962.0, 100.0, 1e9] {
        let error = FluidEquilibrium::new(&of(&[(512, 20, rate)]), &law, StageConvention::Paper).unwrap_err();
        assert!(matches!(error, Error::Unstable { load } if load >= 1.0), "{error}");
    }
    let prefill_bound = of(&[(512, 20, 32.0)]);
    let error = FluidEquilibrium::new(&prefill_bound, &IterationTime::A100, StageConvention::Vllm).unwrap_err();
    assert!(error.to_string().starts_with("unstable: the workload needs x = 1."), "{error}");
}

#[test]
fn nothing_arrives() {
    for law in [IterationTime::A100, lmsys_law()] {
        let e = FluidEquilibrium::new(&of(&[(10, 10, 0.0)]), &law, StageConvention::Vllm).unwrap();
        assert!(e.load == 0.0 && e.memory == 0.0 && e.iteration_time > 0.0);
    }
    let largest = |rate, capacity| {
        let workload = of(&[(10, 10, rate)]);
        let limits = GpuLimits::memory(capacity);
        largest_stable_rate(&setting(&workload, &lmsys_law(), StageConvention::Vllm, limits)).unwrap_err().to_string()
    };
    assert!(largest(0.0, 9).starts_with("Σ rate = 0"));
    assert!(largest(1.0, 0).starts_with("capacity = 0"));
}

#[test]
fn the_a100_equilibrium_is_a_fixed_point_of_the_law() {
    for rate in [0.5, 5.0, 12.0, 18.0] {
        let e = FluidEquilibrium::new(&of(&[(512, 20, rate)]), &IterationTime::A100, StageConvention::Vllm).unwrap();
        close(IterationTime::A100.fluid_seconds(&e.batch), e.iteration_time, 1e-9);
    }
}

#[test]
fn the_a100_runs_best_at_a_right_edge() {
    // Prefill dominates: with memory to spare the best constant composition computes 384 tokens.
    let workload = of(&[(512, 20, 1.0)]);
    let limits = GpuLimits { token_budget: Some(1024), ..GpuLimits::memory(118_784) };
    let best = largest_stable_rate(&setting(&workload, &IterationTime::A100, StageConvention::Vllm, limits)).unwrap();
    assert_eq!(best.binding, Binding::Compute);
    close(best.scale * best.iteration_time * workload.demand(StageConvention::Vllm).tokens(), 384.0, 1e-9);
    let few = GpuLimits { max_running: Some(4), ..limits };
    let fewer = largest_stable_rate(&setting(&workload, &IterationTime::A100, StageConvention::Vllm, few)).unwrap();
    assert!(fewer.scale < best.scale && fewer.binding == Binding::MaxRunning);
}

/// The slow and obvious form of `equilibrium_time`: iterate T from below.
fn by_iteration(demand: &FluidShape, law: &IterationTime) -> f64 {
    let mut u = 0.0;
    for _ in 0..200_000 {
        u = law.fluid_seconds(&demand.scaled(u));
    }
    u
}

fn types() -> impl Strategy<Value = Vec<(u32, u32, f64)>> {
    prop::collection::vec((1u32..1500, 1u32..400, 0.01f64..2.0), 1..6)
}

/// Staircases that never fall, so that iteration from below finds the least fixed point.
fn staircases() -> impl Strategy<Value = IterationTime> {
    (prop::sample::select(vec![1u64, 8]), prop::collection::vec((1u64..300, 0.0f64..3e6, 0.0f64..30_000.0), 1..6))
        .prop_map(|(round, parts)| {
            let (mut from, mut level) = (0, 5e6);
            let steps = parts.into_iter().map(|(width, jump, per_token_ns)| {
                let base_ns = level + jump - per_token_ns * from as f64;
                (from, level) = (from + width, level + jump + per_token_ns * width as f64);
                TokenStep { up_to: from, base_ns, per_token_ns }
            });
            let costs = AttentionCosts { decode_base_ns: 2e5, per_decode_kv_ns: 200.0, ..AttentionCosts::default() };
            IterationTime::Measured(MeasuredLaw::new(round, steps.collect(), costs).unwrap())
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn linear_closed_forms(types in types(), d0 in 1e-3f64..0.1, d1 in 0.0f64..1e-6, capacity in 1_000u64..1_000_000) {
        let workload = of(&types);
        let law = IterationTime::linear(d0, d1).unwrap();
        let s = workload.token_iteration_rate(StageConvention::Paper);
        let x = d1 * s;
        match FluidEquilibrium::new(&workload, &law, StageConvention::Paper) {
            Ok(e) => {
                prop_assert!(x < 1.0);
                prop_assert!((e.memory / (d0 * s / (1.0 - x)) - 1.0).abs() < 1e-9);
            }
            Err(_) => prop_assert!(x >= 1.0),
        }
        let best = largest_stable_rate(&setting(&workload, &law, StageConvention::Paper, GpuLimits::memory(capacity))).unwrap();
        let c = capacity as f64;
        prop_assert!((best.scale / (c / ((d0 + d1 * c) * s)) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn staircase_equilibrium_is_the_least_fixed_point(types in types(), law in staircases(), scale in 0.1f64..1.5) {
        let workload = of(&types);
        let demand = workload.demand(StageConvention::Vllm);
        let workload = workload.scaled(scale / load(&demand, &law)).unwrap();
        let demand = workload.demand(StageConvention::Vllm);
        match equilibrium_time(&demand, &law) {
            Ok(u) => {
                prop_assert!((load(&demand, &law) - scale).abs() < 1e-9);
                prop_assume!(scale < 0.999);
                prop_assert!((u / by_iteration(&demand, &law) - 1.0).abs() < 1e-6, "{u} {}", by_iteration(&demand, &law));
            }
            Err(_) => prop_assert!(scale >= 1.0 - 1e-9),
        }
    }

    #[test]
    fn the_largest_rate_fits_and_no_larger_rate_does(
        types in types(), law in staircases(), capacity in 2_000u64..400_000, running in 1u32..300,
    ) {
        let workload = of(&types);
        let limits = GpuLimits { max_running: Some(running), ..GpuLimits::memory(capacity) };
        let best = largest_stable_rate(&setting(&workload, &law, StageConvention::Vllm, limits)).unwrap();
        let at = |factor: f64| {
            let scaled = workload.scaled(best.scale * factor).unwrap();
            FluidEquilibrium::new(&scaled, &law, StageConvention::Vllm).is_ok_and(|e| e.fits(&limits))
        };
        prop_assert!(at(1.0 - 1e-9));
        for factor in [1.0 + 1e-6, 1.01, 1.1, 2.0] {
            prop_assert!(!at(factor), "{factor}");
        }
    }

    #[test]
    fn more_arrivals_need_more_memory(types in types(), factor in 1.01f64..3.0) {
        let workload = of(&types);
        let at = |f: f64| {
            let scaled = workload.scaled(f).unwrap();
            FluidEquilibrium::new(&scaled, &IterationTime::A100, StageConvention::Vllm).map_or(f64::INFINITY, |e| e.memory)
        };
        prop_assert!(at(1.0) <= at(factor));
    }
}
