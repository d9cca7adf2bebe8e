use proptest::prelude::*;

use super::*;
use crate::learn::Survival;

/// A resident, as the slow way sees it.
#[derive(Clone, Copy, Debug)]
struct Resident {
    class: usize,
    kv: i64,
    stage: i64,
    /// Stage at which it ends at the latest.
    last: i64,
}

fn learned(lengths: &[u32]) -> Survival {
    let mut survival = Survival::default();
    for &length in lengths {
        (1..length).for_each(|stage| survival.expose(row_of(stage), 1.0));
        survival.end(length - 1);
    }
    survival
}

/// Mean and variance by horizon, resident by resident.
fn slow(residents: &[Resident], curve: &Curve, overhead: f64) -> Vec<[f64; 3]> {
    let chance = |stage: i64, h: f64| {
        let row = row_of(stage as u32);
        let (width, middle) = (f64::from(row_width(row)), middle(row));
        let target = row_of((middle + h) as u32);
        let into = (middle + h - f64::from(row_start(target))) / f64::from(row_width(target));
        curve.alive(target, into.min(1.0)) / curve.alive(row, 0.5 - 0.5 / width)
    };
    let at = |j: usize| {
        let h = f64::from(HORIZONS[j]);
        // Rounded up: it may hold its most just before it ends.
        let runs = |r: &&Resident| j == 0 || i64::from(HORIZONS[j - 1]) < (r.last - r.stage).max(1);
        let weight = |r: &Resident| r.kv as f64 + overhead + h;
        let certain = residents.iter().filter(runs).filter(|r| r.class == CERTAIN).map(weight).sum();
        let others = residents.iter().filter(|r| r.class != CERTAIN);
        let mean = others.clone().filter(runs).map(|r| chance(r.stage, h) * weight(r)).sum();
        let variance = others.filter(runs).map(|r| {
            let alike = |o: &&Resident| o.class == r.class && row_of(o.stage as u32) == row_of(r.stage as u32);
            let row: Vec<f64> = residents.iter().filter(alike).map(weight).collect();
            let p = chance(r.stage, h);
            p * (1.0 - p) * weight(r) * row.iter().sum::<f64>() / row.len() as f64
        });
        [certain, mean, variance.sum()]
    };
    (0..COLUMNS).map(at).collect()
}

fn close(fast: f32, slow: f64) -> bool {
    // Single precision: 1 − p loses some digits where p is near 1.
    (f64::from(fast) - slow).abs() <= 1e-3 * slow.abs() + 0.05
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Joins, steps and departures in any order leave the sums that a recount finds.
    #[test]
    fn the_forecast_is_that_of_a_recount(
        lengths in prop::collection::vec(1..3_000u32, 0..60),
        ops in prop::collection::vec((0..4u8, 0..20u32, 1..3_000u32, 0..2_000u32, 0..40_000u32), 1..120),
        newcomer in (1..500u32, 1..50u32, 0..9_000u32),
    ) {
        let curve = learned(&lengths).curve();
        let mut forecast = Forecast::new();
        forecast.set_curve(POOLED, curve.clone());
        let mut residents: Vec<Option<Resident>> = vec![None; 20];
        for (what, slot, kv, stage, more) in ops {
            match what {
                0 => {
                    residents[slot as usize] = None;
                    forecast.leave(slot);
                }
                1 => {
                    let steps = more % 700;
                    (0..steps).for_each(|_| forecast.step());
                    for resident in residents.iter_mut().flatten() {
                        resident.kv += i64::from(steps);
                        resident.stage += i64::from(steps);
                    }
                }
                _ => {
                    let class = usize::from(what % 2);
                    let candidate = Candidate { class, kv, stage, last: stage + more };
                    forecast.join(slot, &candidate);
                    let last = i64::from(stage + more.max(1));
                    residents[slot as usize] =
                        Some(Resident { class, kv: i64::from(kv), stage: i64::from(stage), last });
                }
            }
        }
        let mut residents: Vec<Resident> = residents.into_iter().flatten().collect();
        let mut outlook = forecast.outlook(7.5);
        let expected = slow(&residents, &curve, 7.5);
        for j in 0..COLUMNS {
            let [certain, mean, variance] = expected[j];
            prop_assert!(close(outlook.certain[j], certain), "certain at {}: {} for {certain}", HORIZONS[j], outlook.certain[j]);
            prop_assert!(close(outlook.mean[j], mean), "mean at {}: {} for {mean}", HORIZONS[j], outlook.mean[j]);
            prop_assert!(close(outlook.variance[j], variance), "variance at {}: {} for {variance}", HORIZONS[j], outlook.variance[j]);
        }
        let worst = |r: &Resident| r.kv as f64 + 7.5 + (r.last - r.stage) as f64;
        // Nobody ends by itself here: who has outlived its certain end counts up to that.
        let reserved: f64 = residents.iter().map(worst).sum();
        prop_assert!((forecast.reserved(7.5) - reserved).abs() < 1e-3);

        let (kv, stage, more) = newcomer;
        let candidate = Candidate { class: POOLED, kv, stage, last: stage + more };
        forecast.add(&mut outlook, &candidate, 7.5);
        residents.retain(|r| r.class == CERTAIN || row_of(r.stage as u32) != row_of(stage));
        let alone = Resident { class: POOLED, kv: i64::from(kv), stage: i64::from(stage), last: i64::from(stage + more.max(1)) };
        let added = slow(&[alone], &curve, 7.5);
        for j in 0..COLUMNS {
            prop_assert!(close(outlook.mean[j], expected[j][1] + added[j][1]));
            prop_assert!(close(outlook.variance[j], expected[j][2] + added[j][2]));
        }
    }

    /// Every stage that a member passes is exposure of the row it passes, once.
    #[test]
    fn exposure_counts_every_stage_once(requests in prop::collection::vec((1..900u32, 0..300u32), 1..30)) {
        let mut forecast = Forecast::new();
        let mut passed = vec![0.0; ROWS];
        let mut drained = Survival::default();
        let mut running: Vec<(Slot, u32, u32)> = Vec::new();
        for (slot, &(stage, steps)) in requests.iter().enumerate() {
            let slot = slot as Slot;
            forecast.join(slot, &Candidate { class: POOLED, kv: 10, stage, last: u32::MAX });
            running.push((slot, stage, 0));
            for _ in 0..steps {
                forecast.step();
                for (_, stage, age) in &mut running {
                    passed[row_of(*stage + *age)] += 1.0;
                    *age += 1;
                }
            }
            if steps % 3 == 0 {
                forecast.drain_exposure(POOLED, |row, stages| drained.expose(row, stages));
            }
            if steps % 2 == 0 {
                let (slot, stage, age) = running.remove(0);
                prop_assert_eq!(forecast.leave(slot), Some((POOLED, stage + age)));
            }
        }
        forecast.drain_exposure(POOLED, |row, stages| drained.expose(row, stages));
        let mut expected = Survival::default();
        passed.iter().enumerate().for_each(|(row, &stages)| expected.expose(row, stages));
        prop_assert_eq!(drained, expected);
    }
}

#[test]
fn who_ends_for_certain_is_counted_to_its_end() {
    let mut forecast = Forecast::new();
    forecast.join(0, &Candidate { class: CERTAIN, kv: 100, stage: 1, last: 41 });
    let outlook = forecast.outlook(0.0);
    // 40 iterations are left: it holds up to 140 tokens, seen at the horizon of 48.
    let at = |h: u32| outlook.certain[HORIZONS.iter().position(|&other| other == h).unwrap()];
    assert_eq!([at(4), at(32), at(48), at(64)].map(|tokens| tokens as u32), [104, 132, 148, 0]);
    assert!((forecast.reserved(0.0) - 140.0).abs() < 1e-9);
    (0..39).for_each(|_| forecast.step());
    let outlook = forecast.outlook(0.0);
    assert_eq!(outlook.certain.map(|tokens| tokens as u32)[..2], [143, 0]);
    assert_eq!(forecast.leave(0), Some((CERTAIN, 40)));
    assert_eq!(forecast.leave(0), None);
    assert_eq!(forecast.outlook(0.0).certain.map(|tokens| tokens as u32), [0; COLUMNS]);
}
