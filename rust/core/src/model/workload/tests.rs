#![allow(clippy::float_cmp)]

use proptest::prelude::*;

use super::*;

fn of(types: &[(u32, u32, f64)]) -> Workload {
    let types = types.iter().map(|&(prompt, output, rate)| RequestType { prompt, output, rate });
    Workload::new(types.collect()).unwrap()
}

#[test]
fn token_iterations_in_both_conventions() {
    let t = RequestType { prompt: 512, output: 20, rate: 1.0 };
    assert_eq!(t.token_iterations(StageConvention::Paper), 21.0 * 522.0);
    assert_eq!(t.token_iterations(StageConvention::Vllm), 20.0 * 521.5);
}

#[test]
fn bad_arguments_are_named() {
    let t = |prompt, output, rate| Workload::new(vec![RequestType { prompt, output, rate }]).unwrap_err().to_string();
    assert!(Workload::new(vec![]).unwrap_err().to_string().starts_with("types = []"));
    assert!(t(0, 1, 1.0).starts_with("types[0].prompt = 0"));
    assert!(t(1, 0, 1.0).starts_with("types[0].output = 0"));
    assert!(t(1, 1, f64::NAN).starts_with("types[0].rate = NaN"));
    assert!(t(1, 1, f64::INFINITY).starts_with("types[0].rate = inf"));
    assert!(t(1, 1, -2.0).starts_with("types[0].rate = -2"));
    assert!(Workload::from_lengths(&[(1, 1)], f64::NAN).unwrap_err().to_string().starts_with("rate = NaN"));
    assert!(Workload::from_lengths(&[(1, 1), (0, 3)], 1.0).unwrap_err().to_string().starts_with("lengths[1].prompt"));
    assert!(of(&[(1, 1, 1.0)]).scaled(0.0).unwrap_err().to_string().starts_with("factor = 0"));
    let zero = Grouping::by_output_quantiles(&[(1, 1)], 1.0, 0, Representative::Mean).unwrap_err().to_string();
    assert!(zero.starts_with("classes = 0"), "{zero}");
    let many = Grouping::typed(&[(1, 1)], 1.0, 1 << 16).unwrap_err().to_string();
    assert!(many.starts_with("classes = 65536"), "{many}");
}

#[test]
fn classes_cover_the_list_at_its_quantiles() {
    let lengths: Vec<(u32, u32)> = (1..=100).map(|i| (10 * i, i)).collect();
    let grouping = Grouping::by_output_quantiles(&lengths, 8.0, 4, Representative::Upper).unwrap();
    assert_eq!(grouping.upper(), [25, 50, 75, 100]);
    assert_eq!(grouping.workload(), &of(&[(130, 25, 2.0), (380, 50, 2.0), (630, 75, 2.0), (880, 100, 2.0)]));
    assert_eq!([1, 25, 26, 100, 5000].map(|output| grouping.classify(output)), [0, 0, 1, 3, 3]);
    let mean = Grouping::by_output_quantiles(&lengths, 8.0, 4, Representative::Mean).unwrap();
    assert_eq!(mean.workload().types()[1].output, 38);
}

#[test]
fn equal_outputs_stay_in_one_class() {
    let lengths = [(5, 7), (6, 7), (7, 7), (8, 9)];
    let grouping = Grouping::by_output_quantiles(&lengths, 4.0, 4, Representative::Mean).unwrap();
    assert_eq!(grouping.workload(), &of(&[(6, 7, 3.0), (8, 9, 1.0)]));
}

#[test]
fn classification_prefers_a_type_that_is_long_enough() {
    let workload = of(&[(100, 50, 1.0), (512, 20, 1.0), (100, 20, 1.0)]);
    assert_eq!(workload.classify(512, 20), 1);
    assert_eq!(workload.classify(101, 20), 2);
    assert_eq!(workload.classify(512, 21), 0);
    assert_eq!(workload.classify(512, 90), 0);
}

#[test]
fn a_decode_replica_computes_the_last_prompt_token_and_reads_all() {
    let mut whole = crate::model::BatchShape::default();
    whole.add_prefill(1, 99);
    let shape = RequestType { prompt: 100, output: 4, rate: 1.0 }.total_shape(StageConvention::DecodeOnly);
    let counted = [whole.prefill_tokens, whole.prefill_kv, whole.prefill_attention].map(|count| count as f64);
    assert_eq!([shape.prefill_tokens, shape.prefill_kv, shape.prefill_attention], counted);
    assert_eq!((shape.decodes, shape.decode_kv), (3.0, 101.0 + 102.0 + 103.0));
}

#[test]
fn json_is_validated() {
    let workload = of(&[(10, 20, 1.5)]);
    let text = serde_json::to_string(&workload).unwrap();
    assert_eq!(serde_json::from_str::<Workload>(&text).unwrap(), workload);
    assert!(serde_json::from_str::<Workload>(r#"[{"prompt":0,"output":1,"rate":1}]"#).is_err());
    assert!(serde_json::from_str::<Workload>("[]").is_err());
}

fn lengths() -> impl Strategy<Value = Vec<(u32, u32)>> {
    prop::collection::vec((1u32..2000, 1u32..500), 1..200)
}

proptest! {
    #[test]
    fn the_demand_adds_up(lengths in lengths(), rate in 0.1f64..100.0) {
        for convention in [StageConvention::Paper, StageConvention::Vllm, StageConvention::DecodeOnly] {
            let workload = Workload::from_lengths(&lengths, rate).unwrap();
            let demand = workload.demand(convention);
            let kv = demand.decode_kv + demand.prefill_kv;
            prop_assert!((kv / workload.token_iteration_rate(convention) - 1.0).abs() < 1e-12);
            prop_assert!((workload.rate() / rate - 1.0).abs() < 1e-12);
            // The sum over stages, by counting.
            let count = |&(l, o): &(u32, u32)| (0..=convention.last_stage(o)).map(|s| f64::from(l + s)).sum::<f64>();
            let mean = lengths.iter().map(count).sum::<f64>() / lengths.len() as f64;
            prop_assert!((workload.mean_token_iterations(convention) / mean - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn grouping_keeps_rates_and_means(lengths in lengths(), classes in 1usize..12) {
        let grouping = Grouping::by_output_quantiles(&lengths, 3.0, classes, Representative::Mean).unwrap();
        let types = grouping.workload().types();
        prop_assert!(types.len() <= classes && types.len() == grouping.upper().len());
        prop_assert!((grouping.workload().rate() - 3.0).abs() < 1e-9);
        let mean = lengths.iter().map(|&(_, o)| f64::from(o)).sum::<f64>() / lengths.len() as f64;
        prop_assert!((grouping.workload().output_rate() / 3.0 - mean).abs() <= 0.5 + 1e-9);
        // Every class is the one that its members are classified to.
        for &(_, output) in &lengths {
            let class = grouping.classify(output);
            prop_assert!(output <= grouping.upper()[class]);
            prop_assert!(class == 0 || output > grouping.upper()[class - 1]);
        }
    }

    #[test]
    fn a_type_classifies_to_its_own_lengths(types in prop::collection::vec((1u32..900, 1u32..300, 0.0f64..9.0), 1..9)) {
        let workload = of(&types);
        for t in workload.types() {
            let found = workload.types()[workload.classify(t.prompt, t.output)];
            prop_assert_eq!((found.prompt, found.output), (t.prompt, t.output));
        }
    }
}
