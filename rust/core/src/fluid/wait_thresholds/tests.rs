use proptest::prelude::*;

use super::*;
use crate::fluid::GpuLimits;
use crate::model::{IterationTime, StageConvention, Workload};

fn of(types: &[(u32, u32, f64)]) -> Workload {
    let types = types.iter().map(|&(prompt, output, rate)| RequestType { prompt, output, rate });
    Workload::new(types.collect()).unwrap()
}

fn paper<'a>(workload: &'a Workload, law: &'a IterationTime, capacity: u64) -> Setting<'a> {
    Setting { workload, law, convention: StageConvention::Paper, limits: GpuLimits::memory(capacity) }
}

fn law() -> IterationTime {
    IterationTime::linear(0.01, 2e-7).unwrap()
}

#[test]
fn the_family_by_hand() {
    // A = 21 · 522 = 10,962; Δ' = .1 s at 10/s: n = 1, M^π = 10,962, ΔT(n) = .01 + .0021924.
    let workload = of(&[(512, 20, 10.0)]);
    let law = law();
    let setting = paper(&workload, &law, 12_000);
    let t = Thresholds::with_spacing(0.1, &setting).unwrap();
    assert!((t.per_type[0] - 1.0).abs() < 1e-12 && t.feasible());
    assert!((t.memory - 10_962.0).abs() < 1e-6);
    assert!((t.iteration_time - 0.012_192_4).abs() < 1e-12);
    assert!((t.slack(&setting) - 0.878_076).abs() < 1e-9);
    // No wait for a threshold of one; queue T/(2(1 − .121924)); 20 more stages of .1 s.
    let delays = t.delays(&setting)[0];
    assert!((delays.ttft - (0.012_192_4 / (2.0 * 0.878_076) + 0.012_192_4)).abs() < 1e-9);
    assert!((delays.latency - delays.ttft - 2.0).abs() < 1e-9);
}

#[test]
fn what_fails_is_named_and_the_remedy_is_one() {
    let workload = of(&[(512, 20, 10.0), (512, 50, 4.0)]);
    let law = law();
    let setting = paper(&workload, &law, 2_000);
    let error = Thresholds::best(&setting).unwrap_err();
    let Error::Infeasible { violations } = &error else { panic!("{error}") };
    assert!(violations.iter().any(|v| v.condition == "M* ≤ M^π"), "{error}");
    assert!(error.to_string().contains("ΔT(n) ≤ n_0/λ_0 fails: "), "{error}");
    let with_enough = Thresholds::with_spacing(0.02, &setting).unwrap();
    let memory = &with_enough.violations[0];
    assert_eq!(memory.condition, "M^π ≤ C");
    assert!((memory.excess() - (0.02 * 219_168.0 - 2_000.0)).abs() < 1e-6);
    // The remedies named: C = ⌈M^π⌉, or the rates times the factor.
    assert!(memory.remedy.starts_with("holds with C = 4384, or at "), "{}", memory.remedy);
    assert!(Thresholds::with_spacing(0.02, &paper(&workload, &law, 4_384)).unwrap().feasible());
    let slower = workload.scaled(largest_stable_rate(&setting).unwrap().scale * 0.999).unwrap();
    assert!(Thresholds::best(&paper(&slower, &law, 2_000)).unwrap().feasible());
}

#[test]
fn overload_is_unstable_and_still_planned() {
    let workload = of(&[(512, 1000, 4.0)]);
    let limits = GpuLimits { max_running: Some(256), ..GpuLimits::memory(118_784) };
    let setting = Setting { workload: &workload, law: &IterationTime::A100, convention: StageConvention::Vllm, limits };
    assert!(matches!(Thresholds::best(&setting), Err(Error::Unstable { .. } | Error::Infeasible { .. })));
    let plan = Thresholds::plan(&setting).unwrap();
    assert!(!plan.feasible() && plan.paced && plan.per_type[0] < 0.13);
    assert!((plan.memory - 118_784.0).abs() < 1e-6 && plan.rounded(&setting).is_none());
}

#[test]
fn the_most_throughput_stays_within_a_tile() {
    // C = 135,168 has room for 132 requests of 1,011.5 tokens; 129 and more take the next tile. Simulated with 128: 2,285
    // tokens/s, with 129: 2,140.
    let workload = of(&[(512, 1000, 4.0)]);
    let limits = |capacity| GpuLimits { max_running: Some(256), ..GpuLimits::memory(capacity) };
    let at = |law, limits| Setting { workload: &workload, law, convention: StageConvention::Vllm, limits };
    let most = |setting: &Setting| Thresholds::most_throughput(setting, 16).unwrap();
    let n = most(&at(&IterationTime::A100, limits(135_168))).per_type[0] * 1000.0;
    assert!(n <= 128.0 && n > 127.999, "{n}");
    // Where memory binds first it is filled, but for a request ahead of its share and the ends of blocks.
    let n = most(&at(&IterationTime::A100, limits(118_784))).per_type[0] * 1000.0;
    assert!((n - (118_784.0 - 1_520.0) / 1_019.0).abs() < 0.1, "{n}");
    // Under the paper's law more is always better.
    let law = law();
    let n = most(&at(&law, limits(135_168))).per_type[0] * 1000.0;
    assert!((n - (135_168.0 - 1_520.0) / 1_019.0).abs() < 0.1, "{n}");
    let short = GpuLimits { max_running: Some(40), ..limits(135_168) };
    assert!((most(&at(&law, short)).per_type[0] * 1000.0 - 40.0).abs() < 1e-6);
}

#[test]
fn one_type_at_the_minimum_of_the_closed_form() {
    // With one type and n ≥ 1, L(Δ') = (λΔ' − 1)/(2λ) + T/(2λ(Δ' − T)) + T + l' Δ' and T = d0 + xΔ'; dL/dΔ' = 0 where
    // (½ + x + l') = d0/(2λ (1 − x)² (Δ' − ΔT*)²).
    let (rate, output) = (200.0, 20.0);
    let workload = of(&[(30, 20, rate)]);
    let law = law();
    let setting = paper(&workload, &law, 1_000_000);
    let e = FluidEquilibrium::new(&workload, &law, StageConvention::Paper).unwrap();
    let gap = libm::sqrt(0.01 / (2.0 * rate * (0.5 + e.load + output))) / (1.0 - e.load);
    let best = Thresholds::best(&setting).unwrap();
    assert!((best.per_type[0] / rate / (e.iteration_time + gap) - 1.0).abs() < 1e-6);
    assert!(best.per_type[0] >= 1.0);
}

#[test]
fn a_paced_service_takes_the_mean_of_its_iterations() {
    // Nine decodes or so, and a prompt in 0.48 of the iterations. Their average has 255 tokens, an edge of the staircase.
    let workload = of(&[(512, 20, 20.0)]);
    let setting = Setting { convention: StageConvention::Vllm, ..paper(&workload, &IterationTime::A100, 118_784) };
    let paced = Thresholds::with_spacing(0.024, &setting).unwrap();
    let batch = full_batch(&[0.48], &setting);
    let of = |prefill_tokens: f64| {
        let attention = prefill_tokens * 512.0;
        FluidShape { prefill_tokens, prefill_kv: prefill_tokens, prefill_attention: attention, ..batch }
    };
    let seconds = |shape| IterationTime::A100.fluid_seconds(&shape);
    let mean = 0.52 * seconds(of(0.0)) + 0.48 * seconds(of(512.0));
    assert!(paced.paced && (paced.iteration_time / mean - 1.0).abs() < 1e-12, "{paced:?} {mean}");
    assert!(seconds(batch) < 0.024 && 0.024 < mean, "only the average batch would keep up: {mean}");
    assert!(!paced.feasible());
    // Whole ones are what they were.
    let one = Thresholds::with_spacing(0.05, &setting).unwrap();
    assert!(!one.paced && (one.iteration_time - seconds(full_batch(&[1.0], &setting))).abs() < 1e-15);
}

#[test]
fn bad_arguments_are_named() {
    let workload = of(&[(30, 20, 1.0)]);
    let law = law();
    let setting = paper(&workload, &law, 1_000);
    let message = |result: Result<Thresholds, Error>| result.unwrap_err().to_string();
    assert!(message(Thresholds::evaluate(vec![], &setting)).starts_with("number of thresholds = 0"));
    assert!(message(Thresholds::evaluate(vec![f64::NAN], &setting)).starts_with("thresholds[0] = NaN"));
    assert!(message(Thresholds::with_spacing(0.0, &setting)).starts_with("spacing = 0"));
    let none = of(&[(30, 20, 0.0)]);
    assert!(message(Thresholds::plan(&paper(&none, &law, 1_000))).starts_with("Σ rate = 0"));
}

#[test]
fn other_limits_are_conditions_too() {
    let workload = of(&[(512, 20, 10.0)]);
    let limits = GpuLimits { max_running: Some(20), token_budget: Some(531), ..GpuLimits::memory(12_000) };
    let law = law();
    let setting = Setting { limits, ..paper(&workload, &law, 1) };
    let t = Thresholds::with_spacing(0.1, &setting).unwrap();
    let failed: Vec<&str> = t.violations.iter().map(|v| v.condition.as_str()).collect();
    assert_eq!(failed, ["Σ n · stages ≤ max_running", "tokens per iteration ≤ token_budget"]);
}

fn instances() -> impl Strategy<Value = (Vec<(u32, u32, f64)>, f64, bool)> {
    (prop::collection::vec((1u32..800, 1u32..60, 0.1f64..5.0), 1..5), 0.05f64..1.3, any::<bool>())
}

/// What is called feasible satisfies the inequalities, and no other member of the family is estimated to be faster.
fn satisfies_the_inequalities(types: &[(u32, u32, f64)], fraction: f64, a100: bool) -> Result<(), TestCaseError> {
    let law = if a100 { IterationTime::A100 } else { law() };
    let base = of(types);
    let limits = GpuLimits { max_running: Some(256), ..GpuLimits::memory(118_784) };
    let at = |workload| Setting { workload, law: &law, convention: StageConvention::Paper, limits };
    let workload = base.scaled(fraction * largest_stable_rate(&at(&base)).unwrap().scale).unwrap();
    let setting = at(&workload);
    match Thresholds::best(&setting) {
        Ok(best) => {
            prop_assert!(fraction <= 1.0 + 1e-6 && best.feasible(), "{:?}", best.violations);
            let memory: f64 = best
                .per_type
                .iter()
                .zip(workload.types())
                .map(|(n, t)| n * t.token_iterations(StageConvention::Paper))
                .sum();
            prop_assert!((memory / best.memory - 1.0).abs() < 1e-9 && memory <= 118_784.0 * (1.0 + 1e-9));
            let e = FluidEquilibrium::new(&workload, &law, StageConvention::Paper).unwrap();
            prop_assert!(e.memory <= memory * (1.0 + 1e-9));
            for (n, t) in best.per_type.iter().zip(workload.types()) {
                prop_assert!(best.iteration_time <= n / t.rate * (1.0 + 1e-9));
            }
            // No other feasible member of the family has a smaller estimate.
            let demand = workload.demand(StageConvention::Paper);
            let spacing = best.per_type[0] / workload.types()[0].rate;
            for i in 1..50 {
                let other = spacing * (0.5 + f64::from(i) * 0.05);
                if Thresholds::with_spacing(other, &setting).unwrap().feasible() {
                    let (least, here) =
                        (mean_latency(spacing, &setting, &demand), mean_latency(other, &setting, &demand));
                    prop_assert!(here >= least * (1.0 - 1e-3), "{here} {least}");
                }
            }
        }
        Err(_) if fraction >= 1.0 - 1e-6 => {}
        // On a staircase a constant composition may keep up where no paced one does; under the paper's law, never.
        Err(error) => {
            prop_assert!(a100, "{error}");
            let largest = setting.largest_spacing(&workload.demand(StageConvention::Paper)).0;
            for i in 1..200 {
                let other = Thresholds::with_spacing(largest * f64::from(i) / 200.0, &setting).unwrap();
                prop_assert!(!other.feasible(), "{error} {:?}", other.per_type);
            }
        }
    }
    Ok(())
}

/// The least of all candidates lay in another valley of the staircase than the least estimate.
#[test]
fn the_deepest_valley_is_found() {
    let types = [
        (284, 23, 0.455_436_892_079_387_85),
        (46, 36, 4.912_250_462_056_47),
        (122, 36, 3.470_229_081_687_569),
        (685, 28, 4.079_730_871_889_948),
    ];
    satisfies_the_inequalities(&types, 0.954_077_742_603_455_1, true).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn what_is_called_feasible_satisfies_the_inequalities((types, fraction, a100) in instances()) {
        satisfies_the_inequalities(&types, fraction, a100)?;
    }

    #[test]
    fn rounding_keeps_feasible((types, fraction, a100) in instances()) {
        let law = if a100 { IterationTime::A100 } else { law() };
        let base = of(&types);
        let at = |workload| Setting {
            workload, law: &law, convention: StageConvention::Paper, limits: GpuLimits::memory(500_000),
        };
        let workload = base.scaled(fraction * largest_stable_rate(&at(&base)).unwrap().scale).unwrap();
        let setting = at(&workload);
        let plan = Thresholds::plan(&setting).unwrap();
        if let Some(rounded) = plan.rounded(&setting) {
            prop_assert!(rounded.feasible() && !rounded.paced);
            prop_assert!(rounded.per_type.iter().all(|&n| n >= 1.0 && n.fract() == 0.0));
        } else {
            // No integer thresholds at all: even the least ones that keep up do not fit. Checked by counting up.
            let least = raised(vec![1.0; types.len()], &setting);
            prop_assert!(!Thresholds::evaluate(least, &setting).unwrap().feasible());
        }
    }
}
