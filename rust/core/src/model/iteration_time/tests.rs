#![allow(clippy::float_cmp)]

use proptest::prelude::*;

use super::*;

fn batch(prompts: &[u64], decode_kv: &[u64]) -> BatchShape {
    let mut shape = BatchShape::default();
    for &prompt in prompts {
        shape.add_prefill(prompt, 0);
    }
    for &kv in decode_kv {
        shape.add_decode(kv);
    }
    shape
}

#[test]
fn linear_law_counts_the_kv_of_prefills_and_decodes() {
    let law = IterationTime::linear(0.01, 1e-6).unwrap();
    // d0 + d1 (512 + 600 + 700) = 10 ms + 1.812 ms.
    assert_eq!(law.nanos(&batch(&[512], &[600, 700])), 11_812_000);
}

#[test]
fn a100_law_by_hand() {
    // 100 decodes of 1,000 tokens each and one prompt of 256: n = 356, padded to 360.
    let shape = batch(&[256], &[1_000; 100]);
    let ms = 20.01
        + 0.0089 * 360.0
        + (0.261 + 0.0324 * 100.0 + 2.675e-4 * 100_000.0)
        + (0.063 + 5.15e-3 * 256.0 + 5.19e-6 * 256.0 * 128.0);
    assert!((IterationTime::A100.seconds(&shape) * 1e3 - ms).abs() < 1e-9);
    assert_eq!(IterationTime::A100.nanos(&shape), (ms * 1e6).round() as u64);
}

#[test]
fn a100_staircase_pads_to_eight_and_extrapolates() {
    let law = IterationTime::A100;
    let ms = |n| law.token_seconds(n) * 1e3;
    assert_eq!(ms(1), ms(8));
    assert!((ms(64) - 9.8088).abs() < 1e-9);
    assert!((ms(65) - (10.17 + 0.0169 * 72.0)).abs() < 1e-9);
    assert!((ms(4096) - (9.51 + 0.0619 * 4096.0)).abs() < 1e-9);
    assert!((ms(8000) - (9.51 + 0.0619 * 8000.0)).abs() < 1e-9);
    assert!((law.least_seconds() - (9.06e-3 + 0.0117e-3 * 8.0)).abs() < 1e-12);
}

#[test]
fn half_a_nanosecond_rounds_up() {
    // 8 tokens: 9,153,600 ns; one decode of 1 token adds 261,000 + 32,400 + 267.5.
    assert_eq!(IterationTime::A100.nanos(&batch(&[], &[1])), 9_447_268);
}

#[test]
fn chunks_cost_the_same_attention_as_the_whole_prompt() {
    let mut chunked = BatchShape::default();
    chunked.add_prefill(100, 0);
    chunked.add_prefill(412, 100);
    assert_eq!(chunked.prefill_attention, batch(&[512], &[]).prefill_attention);
}

#[test]
fn right_edges_of_the_a100_are_the_ends_of_its_tiles() {
    let edges = IterationTime::A100.right_edges(512);
    assert_eq!(edges, [64, 128, 256, 384, 512]);
    assert_eq!(IterationTime::A100.best_budget(2048), Some(384));
    assert_eq!(IterationTime::A100.best_budget(4096), Some(384));
    assert_eq!(IterationTime::A100.best_budget(300), Some(256));
    assert_eq!(IterationTime::A100.best_budget(7), None);
    assert_eq!(IterationTime::linear(0.01, 0.0).unwrap().best_budget(2048), Some(2048));
}

#[test]
fn bad_constants_are_named() {
    for (d0, d1, name) in [(0.0, 0.0, "d0 = 0"), (f64::NAN, 0.0, "d0 = NaN"), (1.0, -1.0, "d1 = -1")] {
        let message = IterationTime::linear(d0, d1).unwrap_err().to_string();
        assert!(message.starts_with(name), "{message}");
    }
    let step = |up_to, base_ns, per_token_ns| TokenStep { up_to, base_ns, per_token_ns };
    let refused =
        |steps: Vec<TokenStep>| MeasuredLaw::new(1, steps, AttentionCosts::default()).unwrap_err().to_string();
    assert!(refused(vec![]).starts_with("steps = []"));
    assert!(refused(vec![step(8, 1.0, 1.0), step(8, 1.0, 1.0)]).starts_with("steps[1].up_to = 8"));
    assert!(refused(vec![step(8, f64::INFINITY, 1.0)]).starts_with("steps[0].base_ns = inf"));
    assert!(refused(vec![step(8, -1.0, 0.5)]).starts_with("time of steps[0] at 1 tokens = -0.5"));
    let costs = AttentionCosts { per_decode_ns: f64::NAN, ..AttentionCosts::default() };
    let error = MeasuredLaw::new(1, vec![step(8, 1.0, 1.0)], costs).unwrap_err().to_string();
    assert!(error.starts_with("per_decode_ns = NaN"), "{error}");
}

#[test]
fn json_round_trips_and_validates() {
    let measured = MeasuredLaw::from_points(&[(8, 1e6), (64, 2e6), (512, 9e6)], A100_ATTENTION).unwrap();
    for law in [IterationTime::linear(0.01, 1e-7).unwrap(), IterationTime::A100, IterationTime::Measured(measured)] {
        let text = serde_json::to_string(&law).unwrap();
        assert_eq!(serde_json::from_str::<IterationTime>(&text).unwrap(), law, "{text}");
    }
    for bad in [r#"{"law":"linear","d0":-1,"d1":0}"#, r#"{"law":"linear","d0":1,"d1":0,"d2":0}"#, r#"{"law":"h200"}"#] {
        assert!(serde_json::from_str::<IterationTime>(bad).is_err(), "{bad}");
    }
}

#[test]
fn points_are_met_and_the_last_slope_goes_on() {
    let law = MeasuredLaw::from_points(&[(8, 1e6), (64, 2e6), (512, 9e6)], AttentionCosts::default()).unwrap();
    let law = IterationTime::Measured(law);
    for (n, ms) in [(1, 1.0), (8, 1.0), (36, 1.5), (64, 2.0), (512, 9.0), (960, 16.0)] {
        assert!((law.token_seconds(n) * 1e3 - ms).abs() < 1e-9, "{n}");
    }
}

proptest! {
    #[test]
    fn fluid_and_integer_shapes_agree(p in 0u64..5000, d in 0u64..300, kv in 1u64..5000) {
        prop_assume!(p + d > 0);
        let mut shape = BatchShape { decodes: d, decode_kv: d * kv, ..BatchShape::default() };
        shape.add_prefill(p, 17);
        for law in [IterationTime::A100, IterationTime::linear(0.01, 1e-7).unwrap()] {
            prop_assert_eq!(law.fluid_seconds(&FluidShape::from(&shape)), law.seconds(&shape));
            prop_assert!((law.seconds(&shape) * 1e9 - law.nanos(&shape) as f64).abs() <= 0.500_001);
            prop_assert!(law.seconds(&shape) >= law.least_seconds());
        }
    }

    #[test]
    fn more_kv_never_takes_less_time(d in 1u64..300, kv in 1u64..5000, more in 0u64..5000) {
        let shape = |kv| BatchShape { decodes: d, decode_kv: d * kv, ..BatchShape::default() };
        prop_assert!(IterationTime::A100.nanos(&shape(kv)) <= IterationTime::A100.nanos(&shape(kv + more)));
    }

    #[test]
    fn right_edges_are_padded_counts_within_the_limit(max in 8u64..6000) {
        for n in IterationTime::A100.right_edges(max) {
            prop_assert!(n <= max && n % 8 == 0);
        }
    }
}
