use proptest::prelude::*;

use super::*;

fn learn(lengths: impl IntoIterator<Item = u32>) -> Survival {
    let mut survival = Survival::default();
    for length in lengths {
        (1..length).for_each(|stage| survival.expose(row_of(stage), 1.0));
        survival.end(length - 1);
    }
    survival
}

/// Share that reaches a stage.
fn reaches(curve: &Curve, stage: u32) -> f64 {
    let row = row_of(stage);
    curve.alive(row, f64::from(stage - row_start(row)) / f64::from(row_width(row)))
}

/// A deterministic stretched sequence: the quantiles of an exponential distribution of mean 300.
fn exponential(n: u32) -> impl Iterator<Item = u32> {
    (0..n).map(move |i| (1.0 - 300.0 * libm::log((f64::from(i) + 0.5) / f64::from(n))) as u32)
}

#[test]
fn rows_cover_every_stage_once() {
    for row in 0..ROWS {
        assert_eq!(row_of(row_start(row)), row);
        assert_eq!(row_of(row_start(row) + row_width(row) - 1), row);
        assert!(row < 16 || f64::from(row_width(row)) <= f64::from(row_start(row)) / 8.0);
    }
    assert_eq!(row_of(u32::MAX), ROWS - 1);
    assert!(row_start(ROWS - 1) > 100_000);
}

#[test]
fn the_curve_is_that_of_the_lengths_seen() {
    let curve = learn(exponential(4_000)).curve();
    for stage in [1, 10, 50, 100, 300, 600, 900, 1_500] {
        let truth = libm::exp(-(f64::from(stage) - 1.0) / 300.0);
        let found = reaches(&curve, stage);
        assert!((found - truth).abs() < 0.01, "{stage}: {found} for {truth}");
    }
}

#[test]
fn running_requests_count_as_much_as_those_that_have_ended() {
    // All are cut at stage 200: nothing beyond is known, and nothing before is biased.
    let mut survival = Survival::default();
    for length in exponential(4_000) {
        (1..length.min(200)).for_each(|stage| survival.expose(row_of(stage), 1.0));
        if length <= 200 {
            survival.end(length - 1);
        }
    }
    let curve = survival.curve();
    for stage in [10, 50, 100, 180] {
        let truth = libm::exp(-(f64::from(stage) - 1.0) / 300.0);
        assert!((reaches(&curve, stage) - truth).abs() < 0.01, "{stage}");
    }
}

#[test]
fn a_fixed_length_is_a_step() {
    for length in [2, 7, 20, 1_000, 5_000] {
        let curve = learn(std::iter::repeat_n(length, 200)).curve();
        let slack = (length / 100).max(1);
        assert!(reaches(&curve, length - slack) > 0.95, "{length}: {}", reaches(&curve, length - slack));
        assert!(reaches(&curve, length + slack) < 0.02, "{length}: {}", reaches(&curve, length + slack));
    }
}

#[test]
fn a_shift_is_followed() {
    let mut survival = learn(std::iter::repeat_n(100, 2_000));
    for shifted in 1..=300 {
        (1..700).for_each(|stage| survival.expose(row_of(stage), 1.0));
        survival.end(699);
        survival.fade(100.0);
        if shifted == 300 {
            let curve = survival.curve();
            assert!(reaches(&curve, 600) > 0.9, "{}", reaches(&curve, 600));
            assert!(reaches(&curve, 720) < 0.05);
        }
    }
}

#[test]
fn with_nothing_seen_the_curve_is_the_prior() {
    let curve = Survival::default().curve();
    for stage in [16, 256, 1_024, 8_192, 65_536] {
        let prior = (1.0 + f64::from(stage) / PRIOR_TOKENS).powf(-PRIOR_SHAPE);
        let share = reaches(&curve, stage) / prior;
        assert!((0.8..1.25).contains(&share), "{stage}: {} for {prior}", reaches(&curve, stage));
    }
}

proptest! {
    /// Whatever is observed, a curve falls from 1 towards 0 and never rises.
    #[test]
    fn a_curve_never_rises(lengths in prop::collection::vec(0..200_000u32, 0..50), memory in 0.1..1e4) {
        let mut survival = Survival::default();
        for length in lengths {
            survival.expose(row_of(length / 2), f64::from(length));
            survival.end(length);
            survival.fade(memory);
        }
        let curve = survival.curve();
        let mut before = 1.0;
        for row in 0..ROWS {
            for into in [0.0, 0.3, 0.5, 0.9, 1.0] {
                let alive = curve.alive(row, into);
                prop_assert!(alive > 0.0 && alive <= before * (1.0 + 1e-12), "row {row}");
                before = alive;
            }
        }
    }
}

fn lengths_of(tokens: impl Iterator<Item = u32>) -> Survival {
    let mut survival = Survival::default();
    for length in tokens {
        (1..length).for_each(|stage| survival.expose(row_of(stage), 1.0));
        survival.end(length - 1);
    }
    survival
}

#[test]
fn an_exact_prediction_is_a_step_and_a_useless_one_says_nothing() {
    let pool = lengths_of((0..4_000).map(|i| 2 + i * 7 % 900)).curve();
    for predicted in [8.0, 100.0, 700.0, 5_000.0] {
        let (mean, _) = pool.given(predicted, 0.05).moments();
        assert!((mean / predicted - 1.0).abs() < 0.15, "{mean} for {predicted}");
        let (mean, squared) = pool.given(predicted, 1e6).moments();
        let (all, all_squared) = pool.moments();
        assert!((mean / all - 1.0).abs() < 0.15 && squared > 0.8 * all_squared, "{mean} for {predicted}, {all} of all");
    }
}

#[test]
fn a_class_leans_on_the_others_until_it_has_seen_enough() {
    let pool = lengths_of((0..2_000).map(|i| 50 + i % 100)).curve();
    let mean = |survival: &Survival| survival.leaning(&pool).moments().0;
    let all = pool.moments().0;
    assert!((mean(&Survival::default()) / all - 1.0).abs() < 0.02);
    let (few, many) = (lengths_of((0..3).map(|_| 400)), lengths_of((0..300).map(|_| 400)));
    assert!(mean(&few) > 1.1 * all && mean(&few) < mean(&many));
    assert!((mean(&many) / 400.0 - 1.0).abs() < 0.1, "{}", mean(&many));
}

#[test]
fn moments_are_those_of_the_lengths() {
    let (mean, squared) = lengths_of((0..9_000).map(|i| 2 + i % 300)).curve().moments();
    let lengths = (2..302).map(f64::from);
    let expected = (lengths.clone().sum::<f64>() / 300.0, lengths.map(|l| l * l).sum::<f64>() / 300.0);
    assert!((mean / expected.0 - 1.0).abs() < 0.03 && (squared / expected.1 - 1.0).abs() < 0.06, "{mean} {squared}");
}
