use proptest::prelude::*;

use super::*;
use crate::error::Violation;
use crate::fluid::{GpuLimits, NestedSetting, NestedThresholds, Protection, StageCaps};
use crate::model::IterationTime;

fn of(types: &[(u32, u32, f64)]) -> Workload {
    let types = types.iter().map(|&(prompt, output, rate)| RequestType { prompt, output, rate });
    Workload::new(types.collect()).unwrap()
}

fn two_types() -> Segments {
    Segments::exact(&of(&[(512, 20, 7.0), (512, 50, 3.0)]), StageConvention::Paper).unwrap()
}

fn law() -> IterationTime {
    IterationTime::linear(0.01, 1e-7).unwrap()
}

fn conditions(violations: &[Violation]) -> Vec<&str> {
    violations.iter().map(|v| v.condition.as_str()).collect()
}

#[test]
fn boundaries_rates_and_widths() {
    let workload = of(&[(100, 50, 3.0), (512, 20, 7.0), (512, 20, 0.0), (300, 50, 1.0)]);
    let segments = Segments::exact(&workload, StageConvention::Paper).unwrap();
    let [a, b] = segments.as_slice() else { panic!("two distinct outputs") };
    assert_eq!((a.first_stage, a.last_stage, a.width()), (0, 20, 21));
    assert_eq!((b.first_stage, b.last_stage, b.width()), (21, 50, 30));
    assert!((b.mean_stage() - 35.5).abs() < 1e-12 && (b.survival - 4.0 / 11.0).abs() < 1e-12);
    assert!((b.prompt - 150.0).abs() < 1e-12);
    assert_eq!([0, 20, 21, 50, 51].map(|s| segments.of_stage(s)), [0, 0, 1, 1, 1]);
    let vllm = Segments::exact(&workload, StageConvention::Vllm).unwrap();
    assert_eq!(vllm.as_slice().iter().map(|s| (s.first_stage, s.last_stage)).collect::<Vec<_>>(), [(0, 19), (20, 49)]);
}

#[test]
fn bad_arguments_are_named() {
    let workload = of(&[(10, 20, 1.0), (10, 40, 1.0)]);
    let coarse = |bounds: &[u32]| Segments::coarse(&workload, bounds, StageConvention::Paper).unwrap_err().to_string();
    assert!(coarse(&[]).starts_with("last boundary = 0"));
    assert!(coarse(&[20, 20, 40]).starts_with("boundaries[1] = 20"));
    assert!(coarse(&[20, 30]).starts_with("last boundary = 30"));
    assert!(coarse(&[20, 40, 50]).starts_with("boundaries[1] = 40"));
    assert!(coarse(&[20, u32::MAX]).starts_with("boundaries[1] = 4294967295: must be at most 2^26"));
    let ascending: Vec<u32> = (1..=1 << 16).collect();
    assert!(coarse(&ascending).starts_with("number of boundaries = 65536"));
    let equal = |count| Segments::equal_ranges(&workload, count, StageConvention::Paper);
    for count in [0, 1 << 16, u32::MAX] {
        assert!(equal(count).unwrap_err().to_string().starts_with(&format!("count = {count}: ")));
    }
    assert_eq!(equal(u32::from(u16::MAX)).unwrap().as_slice().len(), 40);
    let long = Segments::exact(&of(&[(10, (1 << 20) + 1, 1.0)]), StageConvention::Vllm).unwrap();
    assert!(StageCaps::spread(9, &long, 0.05).unwrap_err().to_string().starts_with("stages = 1048577"));
    let none = Segments::exact(&of(&[(10, 20, 0.0)]), StageConvention::Paper).unwrap_err().to_string();
    assert!(none.starts_with("Σ rate = 0"));
    let chain = |first, margin| NestedThresholds::chain(first, &two_types(), margin).unwrap_err().to_string();
    assert!(chain(0.0, 0.05).starts_with("first threshold = 0"));
    assert!(chain(1.0, f64::NAN).starts_with("margin = NaN"));
    assert!(StageCaps::spread(0, &two_types(), 0.05).unwrap_err().to_string().starts_with("total = 0"));
    assert!(Segments::worst_window(&[]).is_err());
    let other = Segments::exact(&workload, StageConvention::Paper).unwrap();
    assert!(Segments::worst_window(&[two_types(), other]).unwrap_err().to_string().starts_with("windows[1]"));
}

#[test]
fn the_tl_construction_by_hand() {
    // p_2 = .3, q_2 = .35: n_1 (21 + .35 · 30) = 128, n_1 = 4.0635; caps 85.33 and 42.67.
    let caps = StageCaps::spread(128, &two_types(), 0.05).unwrap();
    assert_eq!(caps.per_segment, [85, 43]);
    assert_eq!(caps.per_stage.len(), 51);
    assert_eq!(caps.per_stage[..21].iter().sum::<u32>(), 85);
    assert_eq!(caps.per_stage.iter().sum::<u32>(), 128);
    let single = Segments::exact(&of(&[(512, 20, 1.0)]), StageConvention::Paper).unwrap();
    let caps = StageCaps::spread(42, &single, 0.05).unwrap();
    assert_eq!(caps.per_stage, [2; 21]);
}

#[test]
fn time_varying_rates_take_the_worst_of_each() {
    let window = |a, b| Segments::exact(&of(&[(512, 20, a), (512, 50, b)]), StageConvention::Paper).unwrap();
    let worst = Segments::worst_window(&[window(8.0, 2.0), window(1.0, 3.0)]).unwrap();
    let [a, b] = worst.as_slice() else { panic!("two segments") };
    assert!((a.rate - 10.0).abs() < 1e-12 && (b.survival - 0.75).abs() < 1e-12 && (b.rate - 7.5).abs() < 1e-12);
    // Thresholds that hold for the worst window hold for each.
    let law = law();
    let worst_setting = NestedSetting {
        segments: &worst,
        law: &law,
        limits: GpuLimits::memory(137_000),
        protection: None,
        block_size: 1,
    };
    let best = NestedThresholds::best(&worst_setting, 0.05).unwrap();
    for window in [window(8.0, 2.0), window(1.0, 3.0)] {
        let setting = NestedSetting { segments: &window, ..worst_setting };
        assert!(NestedThresholds::evaluate(best.per_segment.clone(), &setting).unwrap().feasible());
    }
}

#[test]
fn what_fails_is_named() {
    let (segments, law) = (two_types(), law());
    let protection = Some(Protection { failure_probability: 0.01, horizon: 100.0 });
    let setting =
        NestedSetting { segments: &segments, law: &law, limits: GpuLimits::memory(137_000), protection, block_size: 1 };
    let failed = |n: [f64; 2]| {
        let thresholds = NestedThresholds::evaluate(n.to_vec(), &setting).unwrap();
        conditions(&thresholds.violations).join(", ")
    };
    assert_eq!(failed([2.0, 0.7]), "");
    assert_eq!(failed([2.0, 0.6]), "p_2 < n_2/n_1");
    assert_eq!(failed([2.0, 2.0]), "n_2/n_1 < 1");
    assert_eq!(failed([0.1, 0.035]), "ΔT(n) < n_1/Λ_1");
    assert_eq!(failed([20.0, 7.0]), "M^π + buffer ≤ C");
    // What may occur counts with protection, not the mean: 2 prompts and 72 residents, and the queue.
    let tight = |max_running, token_budget| {
        let limits = GpuLimits { max_running, token_budget, ..setting.limits };
        let tight = NestedSetting { limits, ..setting };
        conditions(&NestedThresholds::evaluate(vec![2.0, 1.0], &tight).unwrap().violations).join(", ")
    };
    assert_eq!(tight(Some(80), Some(1024 + 70)), "Σ n · δ + queues ≤ max_running");
    assert_eq!(tight(Some(200), Some(1024 + 69)), "tokens per iteration ≤ token_budget");
    assert_eq!(tight(Some(200), Some(1024 + 70)), "");
    let small = NestedSetting { limits: GpuLimits::memory(4_000), ..setting };
    let error = NestedThresholds::best(&small, 0.05).unwrap_err();
    let Error::Infeasible { violations } = &error else { panic!("{error}") };
    assert_eq!(conditions(violations), ["M^π + buffer ≤ C"], "{error}");
    // What the remedy names is enough.
    let needed = violations[0].left.ceil() as u64 + 100;
    assert!(NestedThresholds::best(&NestedSetting { limits: GpuLimits::memory(needed), ..setting }, 0.05).is_ok());
    let overload = Segments::exact(&of(&[(512, 20, 7e4), (512, 50, 3e4)]), StageConvention::Paper).unwrap();
    let error = NestedThresholds::best(&NestedSetting { segments: &overload, ..setting }, 0.05).unwrap_err();
    assert!(matches!(error, Error::Unstable { .. }), "{error}");
}

fn types() -> impl Strategy<Value = Vec<(u32, u32, f64)>> {
    prop::collection::vec((1u32..800, 1u32..300, 0.05f64..5.0), 1..7)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn thresholds_proportional_to_rates_need_the_memory_of_wait(types in types(), spacing in 0.01f64..1.0) {
        let workload = of(&types);
        for convention in [StageConvention::Paper, StageConvention::Vllm] {
            let segments = Segments::exact(&workload, convention).unwrap();
            let n: Vec<f64> = segments.as_slice().iter().map(|s| s.rate * spacing).collect();
            let batch = segments.full_batch(&n);
            let wait = workload.demand(convention).scaled(spacing);
            for (a, b) in [
                (batch.prefill_tokens, wait.prefill_tokens),
                (batch.decodes, wait.decodes),
                (batch.decode_kv, wait.decode_kv),
                (batch.prefill_attention, wait.prefill_attention),
            ] {
                prop_assert!((a - b).abs() <= 1e-9 * b.max(1.0), "{a} {b}");
            }
        }
    }

    #[test]
    fn coarse_segments_cover_the_stages_and_never_need_less(types in types(), count in 1u32..6) {
        let workload = of(&types);
        let coarse = Segments::equal_ranges(&workload, count, StageConvention::Paper).unwrap();
        let slice = coarse.as_slice();
        prop_assert!(slice.len() <= count as usize && slice[0].first_stage == 0);
        prop_assert!(slice.windows(2).all(|s| s[0].last_stage + 1 == s[1].first_stage && s[1].survival <= 1.0));
        let longest = types.iter().map(|t| t.1).max().unwrap();
        prop_assert_eq!(slice[slice.len() - 1].last_stage, longest);
        let memory: f64 = slice.iter().map(|s| s.rate * s.tokens()).sum();
        prop_assert!(memory >= workload.token_iteration_rate(StageConvention::Paper) * (1.0 - 1e-9));
    }

    #[test]
    fn caps_sum_to_the_total_and_are_even(types in types(), total in 1u32..5000, margin in 0.0f64..0.3) {
        let segments = Segments::exact(&of(&types), StageConvention::Paper).unwrap();
        let caps = StageCaps::spread(total, &segments, margin).unwrap();
        prop_assert_eq!(caps.per_segment.iter().sum::<u32>(), total);
        let mut stages = caps.per_stage.iter();
        for (segment, &cap) in segments.as_slice().iter().zip(&caps.per_segment) {
            let own: Vec<u32> = stages.by_ref().take(segment.width() as usize).copied().collect();
            prop_assert_eq!(own.iter().sum::<u32>(), cap);
            prop_assert!(own.iter().max().unwrap() - own.iter().min().unwrap() <= 1);
        }
        prop_assert!(stages.next().is_none());
    }

    #[test]
    fn what_is_called_feasible_satisfies_the_inequalities(
        types in types(), margin in 0.02f64..0.2, capacity in 20_000u64..2_000_000, a100 in any::<bool>(),
    ) {
        let segments = Segments::exact(&of(&types), StageConvention::Paper).unwrap();
        let law = if a100 { IterationTime::A100 } else { law() };
        let protection = Some(Protection { failure_probability: 0.05, horizon: 100.0 });
        let setting = NestedSetting { segments: &segments, law: &law, limits: GpuLimits::memory(capacity), protection, block_size: 1 };
        match NestedThresholds::best(&setting, margin) {
            Ok(best) => {
                let (n, s) = (&best.per_segment, segments.as_slice());
                let memory: f64 = n.iter().zip(s).map(|(n, s)| n * s.tokens()).sum();
                prop_assert!((memory / best.memory - 1.0).abs() < 1e-9);
                prop_assert!(memory + best.buffer <= capacity as f64 * (1.0 + 1e-9));
                prop_assert!(best.iteration_time < n[0] / s[0].rate);
                for k in 1..n.len() {
                    prop_assert!(s[k].survival < n[k] / n[k - 1] && n[k] < n[k - 1]);
                }
                prop_assert!(s.len() == 1 || best.buffer > 0.0);
            }
            Err(Error::Infeasible { violations }) => prop_assert!(!violations.is_empty()),
            Err(Error::Unstable { load }) => prop_assert!(load >= 1.0),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
