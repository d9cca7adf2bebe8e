use proptest::prelude::*;

use super::*;
use crate::fluid::{GpuLimits, capacity_bound};
use crate::model::{IterationTime, StageConvention, Workload};

const ANY: Objective = Objective { ttft: f64::INFINITY, tpot: f64::INFINITY };

fn of(types: &[(u32, u32, f64)]) -> Workload {
    let types = types.iter().map(|&(prompt, output, rate)| RequestType { prompt, output, rate });
    Workload::new(types.collect()).unwrap()
}

fn bound(workload: &Workload, limits: GpuLimits, objective: Objective) -> GoodputBound {
    let setting = Setting { workload, law: &IterationTime::A100, convention: StageConvention::Vllm, limits };
    goodput_bound(&setting, objective).unwrap()
}

fn limits() -> GpuLimits {
    GpuLimits { max_running: Some(256), ..GpuLimits::memory(118_784) }
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6
}

#[test]
fn one_type_is_served_as_far_as_the_capacity_reaches() {
    let rate = |rate| bound(&of(&[(512, 1000, rate)]), limits(), ANY);
    let workload = of(&[(512, 1000, 1.0)]);
    let law = &IterationTime::A100;
    let setting = Setting { workload: &workload, law, convention: StageConvention::Vllm, limits: limits() };
    let most = capacity_bound(&setting).unwrap().requests;
    assert!(near(rate(0.5 * most).goodput, 1.0));
    let overloaded = rate(2.0 * most);
    assert!((overloaded.requests / most - 1.0).abs() < 1e-6, "{overloaded:?}, {most}");
    assert!(near(overloaded.goodput, 0.5));
}

#[test]
fn the_costly_are_refused_first() {
    // 10 requests/s of each: the short cost a fiftieth of the long.
    let found = bound(&of(&[(100, 1000, 10.0), (100, 20, 10.0)]), limits(), ANY);
    assert!(near(found.accepted[1], 1.0));
    assert!(found.accepted[0] > 0.0 && found.accepted[0] < 0.5, "{found:?}");
}

#[test]
fn what_no_engine_serves_in_time_is_not_accepted() {
    let types = [(100, 10, 0.1), (20_000, 10, 0.1)];
    let goodput = |ttft, tpot| bound(&of(&types), limits(), Objective { ttft, tpot }).goodput;
    assert!(near(goodput(f64::INFINITY, f64::INFINITY), 1.0));
    assert!(near(goodput(1.0, f64::INFINITY), 0.5), "a prompt of 20,000 takes longer");
    assert!(near(goodput(f64::INFINITY, 1e-3), 0.0), "no decode is that fast");
    let refused = |objective| {
        let workload = of(&types);
        let law = &IterationTime::A100;
        let setting = Setting { workload: &workload, law, convention: StageConvention::Vllm, limits: limits() };
        goodput_bound(&setting, objective).unwrap_err().to_string()
    };
    assert!(refused(Objective { ttft: 0.0, ..ANY }).starts_with("slo_ttft = 0"));
    assert!(refused(Objective { tpot: f64::NAN, ..ANY }).starts_with("slo_tpot = NaN"));
}

/// The same program by enumeration: max gain · x with rows · x ≤ limits at every vertex of a small one.
fn brute_force(columns: &[Column<2>], limits: [f64; 2]) -> f64 {
    let n = columns.len();
    let mut best = 0.0_f64;
    let gain = |x: &[f64]| columns.iter().zip(x).map(|(c, x)| c.gain * x).sum::<f64>();
    let used = |x: &[f64], r: usize| columns.iter().zip(x).map(|(c, x)| c.rows[r] * x).sum::<f64>();
    for mask in 0..1_u32 << n {
        let corner: Vec<f64> = (0..n).map(|j| if mask >> j & 1 == 1 { columns[j].most } else { 0.0 }).collect();
        let mut candidates = vec![corner.clone()];
        for a in 0..n {
            let mut without = corner.clone();
            without[a] = 0.0;
            for (r, limit) in limits.into_iter().enumerate() {
                let mut x = without.clone();
                x[a] = (limit - used(&without, r)) / columns[a].rows[r];
                candidates.push(x);
            }
            for b in 0..a {
                let mut x = without.clone();
                x[b] = 0.0;
                let [p, q] = [0, 1].map(|r| limits[r] - used(&x, r));
                let [[e, f], [g, h]] = [0, 1].map(|r| [columns[a].rows[r], columns[b].rows[r]]);
                let det = e * h - f * g;
                (x[a], x[b]) = ((p * h - f * q) / det, (e * q - p * g) / det);
                candidates.push(x);
            }
        }
        let fits = |x: &Vec<f64>| {
            x.iter().zip(columns).all(|(x, c)| *x >= -1e-9 && *x <= c.most + 1e-9)
                && (0..2).all(|r| used(x, r) <= limits[r] + 1e-9)
        };
        best = candidates.iter().filter(|x| fits(x)).map(|x| gain(x)).fold(best, f64::max);
    }
    best
}

proptest! {
    #[test]
    fn the_simplex_finds_the_best_vertex(
        columns in prop::collection::vec((0.0..3.0f64, 0.1..2.0f64, -1.0..2.0f64, 0.1..2.0f64), 1..6),
        limits in [0.0..3.0f64, 0.1..3.0f64],
    ) {
        let columns: Vec<Column<2>> = columns
            .into_iter().map(|(gain, most, a, b)| Column { gain, most, rows: [a, b] }).collect();
        let x = maximise(&columns, limits);
        let found: f64 = columns.iter().zip(&x).map(|(c, x)| c.gain * x).sum();
        let best = brute_force(&columns, limits);
        prop_assert!((found - best).abs() < 1e-5 * (1.0 + best), "{found} {best}");
    }

    /// More memory, more slots, lower rates and looser objectives never lower the goodput.
    #[test]
    fn the_bound_is_monotone(
        types in prop::collection::vec((1u32..3_000, 1u32..900, 0.05f64..5.0), 1..30),
        capacity in 5_000u64..200_000, running in 1u32..300, ttft in 0.05f64..3.0,
    ) {
        let workload = of(&types);
        let at = |capacity, running, ttft, scale: f64| {
            let limits = GpuLimits { max_running: Some(running), ..GpuLimits::memory(capacity) };
            bound(&workload.scaled(scale).unwrap(), limits, Objective { ttft, tpot: 1.0 }).goodput
        };
        let base = at(capacity, running, ttft, 1.0);
        prop_assert!((0.0..=1.0 + 1e-9).contains(&base));
        let better = [
            at(2 * capacity, running, ttft, 1.0), at(capacity, 2 * running, ttft, 1.0),
            at(capacity, running, 2.0 * ttft, 1.0), at(capacity, running, ttft, 0.5),
        ];
        prop_assert!(better.iter().all(|&other| other >= base - 1e-5), "{base} {better:?}");
    }
}
