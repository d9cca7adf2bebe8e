//! Random streams: their moments, their independence, and the bits that every machine must give.

use wait_sim::{Arrival, Dataset, Stream};

const DRAWS: usize = 200_000;

/// Mean and variance of many draws.
fn moments(mut draw: impl FnMut() -> f64) -> (f64, f64) {
    let values: Vec<f64> = (0..DRAWS).map(|_| draw()).collect();
    let mean = values.iter().sum::<f64>() / DRAWS as f64;
    (mean, values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / DRAWS as f64)
}

/// Both within five standard errors; `fourth` is the fourth central moment.
fn check(name: &str, (mean, variance): (f64, f64), expected: (f64, f64), fourth: f64) {
    let n = DRAWS as f64;
    assert!((mean - expected.0).abs() < 5.0 * (expected.1 / n).sqrt(), "{name}: mean {mean}");
    let error = ((fourth - expected.1 * expected.1) / n).sqrt();
    assert!((variance - expected.1).abs() < 5.0 * error, "{name}: variance {variance}, one error is {error}");
}

#[test]
fn moments_of_every_distribution() {
    let mut stream = Stream::new(11, "moments");
    check("uniform", moments(|| stream.uniform()), (0.5, 1.0 / 12.0), 1.0 / 80.0);
    check("exponential", moments(|| stream.exponential()), (1.0, 1.0), 9.0);
    check("normal", moments(|| stream.normal()), (0.0, 1.0), 3.0);
    for shape in [0.1, 0.5, 1.0, 2.5, 40.0] {
        // Of mean 1: variance 1 / k, and kurtosis 3 + 6 / k.
        let variance = 1.0 / shape;
        let fourth = (3.0 + 6.0 / shape) * variance * variance;
        check(&format!("gamma({shape})"), moments(|| stream.gamma(shape)), (1.0, variance), fourth);
    }
    let die = moments(|| stream.index(6) as f64);
    check("index(6)", die, (2.5, 35.0 / 12.0), (2.0 * (39.0625 + 5.0625 + 0.0625)) / 6.0);
}

#[test]
fn draws_stay_in_their_range() {
    let mut stream = Stream::new(3, "range");
    for _ in 0..DRAWS {
        let uniform = stream.uniform();
        assert!(uniform > 0.0 && uniform <= 1.0);
        assert!(stream.exponential() >= 0.0 && stream.gamma(0.3) >= 0.0 && stream.normal().is_finite());
        assert!(stream.index(7) < 7);
        assert_eq!(stream.index(1), 0);
    }
}

#[test]
fn streams_differ_by_seed_and_by_name_and_repeat() {
    let first = |seed, name| {
        let mut stream = Stream::new(seed, name);
        [stream.uniform(), stream.uniform()].map(f64::to_bits)
    };
    assert_eq!(first(1, "arrivals"), first(1, "arrivals"));
    assert_ne!(first(1, "arrivals"), first(2, "arrivals"));
    assert_ne!(first(1, "arrivals"), first(1, "lengths"));
    let (mut a, mut b) = (Stream::new(5, "arrivals"), Stream::new(5, "lengths"));
    let product = moments(|| (a.uniform() - 0.5) * (b.uniform() - 0.5));
    check("product of two streams", product, (0.0, 1.0 / 144.0), 1.0 / 6400.0);
}

/// The same on every machine: a change here changes every published figure.
#[test]
fn the_bits_are_pinned() {
    let mut stream = Stream::new(42, "arrivals");
    let drawn = [
        stream.uniform(),
        stream.exponential(),
        stream.normal(),
        stream.gamma(0.5),
        stream.gamma(3.0),
        stream.index(1000) as f64,
    ];
    assert_eq!(drawn.map(f64::to_bits), GOLDEN, "{drawn:?}");
}

const GOLDEN: [u64; 6] = [
    4_606_209_339_544_942_551, // 0.8919665006230798
    4_614_141_540_430_363_487, // 3.0904708260708698
    4_604_128_983_941_999_347, // 0.6610006316435303
    4_610_415_537_720_622_131, // 1.7178966134013194
    4_602_210_465_241_487_203, // 0.4740011340976393
    4_647_987_494_330_040_320, // 543
];

#[test]
fn a_sample_is_pinned() {
    let dataset: Dataset = serde_json::from_str(
        r#"{"arrivals": {"kind": "gamma", "burstiness": 0.7}, "phases": [
            {"start": 0.0, "components": [
                {"name": "a", "weight": 1.0, "prompt": {"kind": "lognormal", "mu": 5.0, "sigma": 1.0, "low": 4, "high": 4000},
                 "output": {"kind": "histogram", "edges": [1, 10, 100], "weights": [1.0, 2.0]}},
                {"name": "b", "weight": 2.0, "prompt": {"kind": "constant", "value": 7}, "output": {"kind": "constant", "value": 9}}]}]}"#,
    )
    .unwrap();
    let rows = dataset.sample(4, 10.0, 7).unwrap().arrivals;
    let row = |at_ns, prompt, output, label| Arrival { at_ns, prompt, output, label };
    let expected =
        [row(61_692_809, 7, 9, 1), row(107_901_720, 149, 2, 0), row(410_336_804, 7, 9, 1), row(531_881_802, 133, 5, 0)];
    assert_eq!(rows, expected);
}
