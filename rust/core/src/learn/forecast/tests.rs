use proptest::prelude::*;

use super::*;
use crate::learn::Survival;
use crate::memory::Footprint;
use crate::model::Slot;

fn deviation_of([_, mean, variance]: [f64; 3]) -> f64 {
    (variance + (MODEL_ERROR * mean).powi(2)).sqrt()
}

/// A resident, as the slow reference computes it.
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

/// What a request holds h iterations ahead, if it runs: its KV now, of which the members of its row take the mean.
fn held(footprint: &Footprint, r: &Resident, row: &[&Resident], h: f64) -> f64 {
    let (n, fixed) = (r.kv as f64, footprint.fixed());
    let mut held = footprint.slope() * (n + h) + fixed;
    for group in footprint.plateaus() {
        let window = f64::from(group.window);
        // Those that still grow count with their mean.
        let growing: Vec<f64> = row.iter().map(|o| o.kv as f64).filter(|&kv| kv < window).collect();
        let mean = growing.iter().sum::<f64>() / growing.len() as f64;
        held += if n < window { group.at(mean + h) } else { group.level };
    }
    held
}

/// The chance that a resident runs at a horizon.
fn chance(curve: &Curve, stage: i64, h: f64) -> f64 {
    let row = row_of(stage as u32);
    let (width, middle) = (f64::from(row_width(row)), middle(row));
    let target = row_of((middle + h) as u32);
    let into = (middle + h - f64::from(row_start(target))) / f64::from(row_width(target));
    (curve.alive(target, into.min(1.0)) / curve.alive(row, 0.5 - 0.5 / width)).min(1.0)
}

/// Whether a resident may run at a column. Rounded up: it may hold its most just before it ends.
fn runs(r: &Resident, j: usize) -> bool {
    j == 0 || i64::from(HORIZONS[j - 1]) < (r.last - r.stage).max(1)
}

/// Certain, mean and variance by horizon, resident by resident.
fn slow(residents: &[Resident], curve: &Curve, footprint: &Footprint) -> Vec<[f64; 3]> {
    let at = |j: usize| {
        let h = f64::from(HORIZONS[j]);
        let mut sums = [0.0; 3];
        for r in residents {
            let alike = |o: &&Resident| o.class == r.class && row_of(o.stage as u32) == row_of(r.stage as u32);
            let row: Vec<&Resident> = residents.iter().filter(alike).collect();
            // A group's part of those that end at different times is that of those which run.
            let running: Vec<&Resident> = row.iter().copied().filter(|o| runs(o, j)).collect();
            if !runs(r, j) {
                continue;
            }
            let own = held(footprint, r, &running, h);
            if r.class == CERTAIN {
                sums[0] += own;
                continue;
            }
            let each = row.iter().map(|o| held(footprint, o, &row, h)).sum::<f64>() / row.len() as f64;
            let p = chance(curve, r.stage, h);
            sums[1] += p * own;
            sums[2] += p * (1.0 - p) * own * each;
        }
        sums
    };
    (0..COLUMNS).map(at).collect()
}

fn close(fast: f64, slow: f64) -> bool {
    fast >= 0.0 && (fast - slow).abs() <= 1e-9 * slow.abs()
}

/// A forecast, and the residents that it should know.
struct Lane {
    forecast: Forecast,
    residents: Vec<Option<Resident>>,
}

impl Lane {
    fn new(footprint: Footprint, curve: &Curve, slots: usize) -> Self {
        let mut forecast = Forecast::at(5, footprint);
        forecast.set_curve(POOLED, curve.clone());
        Self { forecast, residents: vec![None; slots] }
    }

    fn join(&mut self, slot: u32, class: usize, kv: u32, stage: u32, more: u32) {
        self.forecast.join(slot, &Candidate { class, kv, stage, last: stage.saturating_add(more) });
        let last = i64::from(stage.saturating_add(more).max(stage + 1));
        self.residents[slot as usize] = Some(Resident { class, kv: kv.into(), stage: stage.into(), last });
    }

    fn leave(&mut self, slot: u32) {
        let left = self.residents[slot as usize].take().map(|r| (r.class, r.stage as u32));
        assert_eq!(self.forecast.leave(slot), left);
    }

    fn step(&mut self, steps: u32) {
        (0..steps).for_each(|_| self.forecast.step());
        for resident in self.residents.iter_mut().flatten() {
            resident.kv += i64::from(steps);
            resident.stage += i64::from(steps);
        }
    }

    fn present(&self) -> Vec<Resident> {
        self.residents.iter().flatten().copied().collect()
    }
}

/// Certain, mean and variance by horizon.
fn sums(outlook: &[Span<PART>; PARTS]) -> Vec<[f64; 3]> {
    let of =
        |span: &Span<PART>| (0..PART).map(|j| [span.certain[j], span.mean[j], span.variance[j]]).collect::<Vec<_>>();
    outlook.iter().flat_map(of).collect()
}

fn footprints() -> impl Strategy<Value = Footprint> {
    let full = Just(Footprint::full(16));
    let hybrid =
        (0.0..2.0f64, 1..6u32, 1..3_000u32, 1..9_000u32, 0.0..100.0f64).prop_map(|(slope, count, w, c, state)| {
            let windows = Footprint::default().with_full(slope, 16).with_window(count.into(), w, 16);
            windows.with_chunk(0.5, c, 32).with_state(state)
        });
    prop_oneof![full, hybrid]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Joins, steps and departures in any order leave the sums that a recount finds.
    #[test]
    fn the_forecast_is_that_of_a_recount(
        footprint in footprints(),
        lengths in prop::collection::vec(1..3_000u32, 0..60),
        ops in prop::collection::vec((0..5u8, 0..20u32, 1..3_000u32, 0..2_000u32, 0..40_000u32), 1..120),
        newcomer in (1..500u32, 1..50u32, 0..9_000u32),
    ) {
        let curve = learned(&lengths).curve();
        let mut lane = Lane::new(footprint.clone(), &curve, 20);
        for (what, slot, kv, stage, more) in ops {
            match what {
                0 => lane.leave(slot),
                1 => lane.step(more % 700),
                2 => lane.step(more % 5),
                _ => lane.join(slot, usize::from(what % 2), kv, stage, more),
            }
        }
        let residents = lane.present();
        let expected = slow(&residents, &curve, &footprint);
        let found = sums(&lane.forecast.outlook(&[]));
        for j in 0..COLUMNS {
            for (found, expected) in found[j].into_iter().zip(expected[j]) {
                prop_assert!(close(found, expected), "{found} for {expected} at {}", HORIZONS[j]);
            }
            let glance = lane.forecast.glance(j, &[]);
            prop_assert!(close(glance.certain[0], found[j][0]) && close(glance.mean[0], found[j][1]));
            prop_assert!(close(glance.variance[0], found[j][2]));
        }
        // No request ends by itself here: one that has outlived its certain end counts up to that.
        let reserved: f64 = residents.iter().map(|r| footprint.most((r.kv + r.last - r.stage) as f64)).sum();
        prop_assert!((lane.forecast.reserved() - reserved).abs() < 1e-6 * (1.0 + reserved));

        let (kv, stage, more) = newcomer;
        let candidate = Candidate { class: POOLED, kv, stage, last: stage + more };
        let alone = Resident { class: POOLED, kv: kv.into(), stage: stage.into(), last: i64::from(stage + more.max(1)) };
        let added = slow(&[alone], &curve, &footprint);
        let with = sums(&lane.forecast.outlook(&[candidate]));
        for j in 0..COLUMNS {
            prop_assert!(close(with[j][1], expected[j][1] + added[j][1]));
            prop_assert!(close(with[j][2], expected[j][2] + added[j][2]));
        }
        for part in 0..PARTS {
            let mut outlook = Outlook::default();
            let Some((mean, deviation)) = lane.forecast.bound(&mut outlook, part, &[], &candidate) else {
                prop_assert!(residents.iter().any(|r| r.class == CERTAIN));
                continue;
            };
            // What was bounded before is only added to.
            let beside = [candidate; 3];
            let added = lane.forecast.bound(&mut outlook, part, &beside, &candidate);
            prop_assert_eq!(added, lane.forecast.bound(&mut Outlook::default(), part, &beside, &candidate));
            prop_assert!(added.is_some_and(|(more, _)| more > mean));
            for j in part * PART..COLUMNS {
                prop_assert!(with[j][1] <= mean * (1.0 + 1e-12), "the mean at {} exceeds the bound of {part}", HORIZONS[j]);
                let of_column = deviation_of(with[j]);
                prop_assert!(of_column <= deviation * (1.0 + 1e-12), "{of_column} > {deviation} at {}", HORIZONS[j]);
            }
        }
    }

    /// Windows: members that are counted with their mean never hold more than the forecast says, as B is concave.
    #[test]
    fn a_window_is_forecast_from_above(
        lengths in prop::collection::vec(1..3_000u32, 0..60),
        members in prop::collection::vec((1..4_000u32, 1..400u32, 0..20_000u32), 1..200),
        window in 1..3_000u32,
        steps in 0..3_000u32,
    ) {
        let curve = learned(&lengths).curve();
        let footprint = Footprint::full(16).with_window(3.0, window, 16);
        let mut lane = Lane::new(footprint.clone(), &curve, members.len());
        for (slot, &(kv, stage, more)) in members.iter().enumerate() {
            lane.join(slot as u32, POOLED, kv, stage, more);
            lane.step(steps / members.len() as u32);
        }
        let residents = lane.present();
        for (j, [_, mean, _]) in sums(&lane.forecast.outlook(&[])).into_iter().enumerate() {
            let h = f64::from(HORIZONS[j]);
            let each = |r: &Resident| chance(&curve, r.stage, h) * (footprint.tokens(r.kv as f64 + h) + footprint.fixed());
            let exact: f64 = residents.iter().filter(|r| runs(r, j)).map(each).sum();
            prop_assert!(mean >= exact * (1.0 - 1e-9), "{mean} < {exact} at {h}");
            let most = f64::from(window + 8) * 3.0 * residents.len() as f64;
            prop_assert!(mean <= exact + most);
        }
    }

    /// Every stage that a member passes is exposure of the row it passes, once.
    #[test]
    fn exposure_counts_every_stage_once(requests in prop::collection::vec((1..900u32, 0..300u32), 1..30)) {
        let mut forecast = Forecast::new(Footprint::full(1));
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Hundreds of residents whose `max_tokens` are near: nothing is taken from nothing.
    #[test]
    fn thousands_of_joins_and_departures_leave_no_trace(
        lengths in prop::collection::vec(1..900u32, 0..60),
        slots in 300..700u32,
        seed in 1..u64::MAX,
    ) {
        let curve = learned(&lengths).curve();
        let footprint = Footprint::full(16);
        let mut lane = Lane::new(footprint.clone(), &curve, slots as usize);
        let mut draw = seed;
        let mut next = |below: u32| {
            draw ^= draw << 13;
            draw ^= draw >> 7;
            draw ^= draw << 17;
            (draw % u64::from(below)) as u32
        };
        for round in 0..4_000_u32 {
            let slot = next(slots);
            match lane.residents[slot as usize] {
                Some(_) if next(3) == 0 => lane.leave(slot),
                None => lane.join(slot, usize::from(next(8) > 0), 1 + next(2_000), 1, 1 + next(1_500)),
                Some(_) => {}
            }
            lane.step(u32::from(next(4) == 0));
            let over = |r: &&Option<Resident>| r.is_some_and(|r| r.stage >= r.last);
            while let Some(slot) = lane.residents.iter().position(|r| over(&r)) {
                lane.leave(slot as u32);
            }
            if round % 2_000 == 1_999 {
                let expected = slow(&lane.present(), &curve, &footprint);
                for (j, found) in sums(&lane.forecast.outlook(&[])).into_iter().enumerate() {
                    for (found, expected) in found.into_iter().zip(expected[j]) {
                        prop_assert!(close(found, expected), "{found} for {expected} at {}", HORIZONS[j]);
                    }
                }
            }
        }
    }
}

#[test]
fn a_request_of_known_length_is_counted_to_its_end() {
    let mut forecast = Forecast::new(Footprint::full(1));
    forecast.join(0, &Candidate { class: CERTAIN, kv: 100, stage: 1, last: 41 });
    let certain = |forecast: &mut Forecast, h: u32| {
        let j = HORIZONS.iter().position(|&other| other == h).unwrap();
        sums(&forecast.outlook(&[]))[j][0] as u32
    };
    // 40 iterations are left: it holds up to 140 tokens, seen at the horizon of 48.
    assert_eq!([4, 32, 48, 64].map(|h| certain(&mut forecast, h)), [104, 132, 148, 0]);
    assert!((forecast.reserved() - 140.0).abs() < 1e-9);
    (0..39).for_each(|_| forecast.step());
    assert_eq!([4, 8].map(|h| certain(&mut forecast, h)), [143, 0]);
    assert_eq!(forecast.leave(0), Some((CERTAIN, 40)));
    assert_eq!(forecast.leave(0), None);
    assert_eq!(HORIZONS.map(|h| certain(&mut forecast, h)), [0; COLUMNS]);
}

/// In single precision what is left of a burst after its certain end was the rounding of two large sums.
#[test]
fn nothing_is_left_of_a_burst_after_its_certain_end() {
    let mut forecast = Forecast::new(Footprint::full(16));
    forecast.set_curve(POOLED, learned(&[100, 200, 300]).curve());
    for slot in 0..1_024 {
        forecast
            .join(slot, &Candidate { class: POOLED, kv: 33 + 7 * (slot % 301), stage: 200, last: 300 + slot % 211 });
        for Moments { horizon: h, mean, deviation, .. } in forecast.outlook(&[]).iter().flat_map(Span::moments) {
            assert!(mean >= 0.0 && deviation >= 0.0, "{slot}: {mean} +- {deviation} at {h}");
            assert!(h < 512 || mean + deviation <= 0.0, "{slot}: {mean} +- {deviation} at {h}");
        }
    }
}

#[test]
fn requests_that_join_and_end_together_move_as_one() {
    let mut forecast = Forecast::new(Footprint::full(16));
    for slot in 0..500 {
        forecast.join(slot, &Candidate { class: POOLED, kv: 10 + slot, stage: 1, last: 900 });
    }
    assert_eq!(forecast.cohorts.len(), 1);
    forecast.join(500, &Candidate { class: POOLED, kv: 10, stage: 1, last: 901 });
    forecast.step();
    forecast.join(501, &Candidate { class: POOLED, kv: 10, stage: 1, last: 901 });
    assert_eq!(forecast.cohorts.len(), 3);
}
