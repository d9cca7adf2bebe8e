use proptest::prelude::*;
use serde_json::{Value, json};

use super::moments::{CELLS, cell_of, end_of, start_of};
use super::{FitState, IterationTimeFit, Trials};
use crate::model::{AttentionCosts, BatchShape, IterationTime, MeasuredLaw, TokenStep};

/// Uniform numbers in [0, 1), the same on every machine.
struct Draws(u64);

impl Draws {
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Nearly normal, of mean 0 and deviation 1.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

/// A server: decodes come and go, and some iterations also compute prompts of all lengths.
struct Server {
    draws: Draws,
    decodes: f64,
    context: f64,
    most_tokens: u64,
}

impl Server {
    fn new(seed: u64, most_tokens: u64) -> Self {
        Self { draws: Draws(seed * 2 + 1), decodes: 40.0, context: 600.0, most_tokens }
    }

    fn step(&mut self) -> BatchShape {
        self.decodes = (self.decodes + 3.0 * self.draws.normal()).clamp(1.0, 200.0);
        self.context = (self.context + 20.0 * self.draws.normal()).clamp(100.0, 2000.0);
        let decodes = self.decodes as u64;
        let mut shape = BatchShape { decodes, decode_kv: decodes * self.context as u64, ..BatchShape::default() };
        if self.draws.uniform() < 0.4 {
            let octaves = self.draws.uniform() * 11.0;
            let tokens = (libm::exp2(octaves) as u64).clamp(1, self.most_tokens - decodes);
            let before = if self.draws.uniform() < 0.2 { 1024 } else { 0 };
            shape.add_prefill(tokens, before);
        }
        shape
    }
}

fn moe() -> IterationTime {
    // Bound by memory: a few tokens activate all experts, and beyond that tokens are nearly free.
    let step = |up_to, base_ns, per_token_ns| TokenStep { up_to, base_ns, per_token_ns };
    let steps = vec![step(16, 4e6, 250e3), step(128, 7.6e6, 25e3), step(1024, 10.2e6, 4.5e3), step(8192, 5.6e6, 9e3)];
    let attention =
        AttentionCosts { per_decode_kv_ns: 18.0, per_prefill_attention_ns: 0.4, ..AttentionCosts::default() };
    IterationTime::Measured(MeasuredLaw::new(1, steps, attention).unwrap())
}

fn laws() -> [(&'static str, IterationTime); 4] {
    let smooth = MeasuredLaw::from_points(&[(1, 8e6), (200, 8.2e6), (2048, 60e6)], AttentionCosts::default()).unwrap();
    [
        ("a100", IterationTime::A100),
        ("linear", IterationTime::linear(0.01, 2e-7).unwrap()),
        ("moe", moe()),
        ("smooth", IterationTime::Measured(smooth)),
    ]
}

/// Mean and largest relative error of the fitted law on further iterations.
fn errors(fit: &IterationTimeFit, truth: &IterationTime, server: &mut Server) -> (f64, f64) {
    let law = fit.law().unwrap();
    let each: Vec<f64> = (0..2000)
        .map(|_| server.step())
        .map(|shape| (law.seconds(&shape) / truth.seconds(&shape) - 1.0).abs())
        .collect();
    (each.iter().sum::<f64>() / 2000.0, each.iter().copied().fold(0.0, f64::max))
}

/// A fit of `iterations` of a server whose times are those of the law times `factor`.
fn fitted(
    server: &mut Server,
    truth: &IterationTime,
    iterations: usize,
    mut factor: impl FnMut(usize) -> f64,
) -> IterationTimeFit {
    let mut fit = IterationTimeFit::default();
    observe(&mut fit, server, truth, 0..iterations, &mut factor);
    fit
}

fn observe(
    fit: &mut IterationTimeFit,
    server: &mut Server,
    truth: &IterationTime,
    iterations: std::ops::Range<usize>,
    factor: &mut impl FnMut(usize) -> f64,
) {
    for at in iterations {
        let shape = server.step();
        fit.observe(&shape, (truth.nanos(&shape) as f64 * factor(at)) as u64);
    }
}

#[test]
fn exact_times_are_predicted_to_a_percent_after_a_thousand_iterations() {
    for (name, truth) in laws() {
        let mut server = Server::new(7, 2048);
        let fit = fitted(&mut server, &truth, 1024, |_| 1.0);
        let (mean, most) = errors(&fit, &truth, &mut server);
        assert!(mean < 0.01 && most < 0.1, "{name}: {mean}, at most {most}");
        assert!(fit.is_trusted() && fit.error().unwrap() < 0.02, "{name}: {:?}", fit.error());
    }
}

#[test]
fn ten_percent_of_noise_leaves_a_few_percent_after_two_thousand() {
    for (name, truth) in laws() {
        let (mut server, mut noise) = (Server::new(7, 2048), Draws(99));
        let fit = fitted(&mut server, &truth, 2048, |_| 1.0 + 0.1 * noise.normal());
        let (mean, _) = errors(&fit, &truth, &mut server);
        assert!(mean < 0.035, "{name}: {mean}");
        // The mean of |Z| is 0.798.
        let error = fit.error().unwrap();
        assert!(fit.is_trusted() && (0.07..0.095).contains(&error), "{name}: {error}");
    }
}

#[test]
fn pauses_and_a_slow_start_say_nothing_of_iterations() {
    for (name, truth) in laws() {
        let mut server = Server::new(3, 2048);
        // The first steps compile for seconds; later the host occasionally stalls for a second.
        let slow = |at: usize| if at < 3 { 400.0 } else { f64::from(1 + 60 * u8::from(at.is_multiple_of(97))) };
        let fit = fitted(&mut server, &truth, 3000, slow);
        let (mean, _) = errors(&fit, &truth, &mut server);
        assert!(mean < 0.015, "{name}: {mean}");
        assert!(fit.is_trusted(), "{name}: {:?}", fit.error());
    }
}

#[test]
fn a_machine_that_becomes_slower_is_followed() {
    let (truth, mut server) = (IterationTime::A100, Server::new(5, 2048));
    let mut fit = fitted(&mut server, &truth, 4096, |_| 1.0);
    observe(&mut fit, &mut server, &truth, 0..1024, &mut |_| 1.4);
    let law = fit.law().unwrap();
    let ratios = (0..1000).map(|_| server.step()).map(|shape| law.seconds(&shape) / truth.seconds(&shape));
    let mean = ratios.sum::<f64>() / 1000.0;
    assert!((mean / 1.4 - 1.0).abs() < 0.02, "{mean} times the time before, 1.4 in truth");
}

#[test]
fn the_law_is_used_only_once_its_error_is_known_and_small() {
    let (truth, mut server) = (IterationTime::A100, Server::new(5, 2048));
    assert!(fitted(&mut server, &truth, 63, |_| 1.0).law().is_none());
    let early = fitted(&mut server, &truth, 256, |_| 1.0);
    assert!(early.law().is_some() && !early.is_trusted(), "only three batches were predicted");
    // Times that are unrelated to what is computed.
    let mut noise = Draws(1);
    let chance = fitted(&mut server, &truth, 2048, |_| libm::exp(2.0 * noise.normal()));
    assert!(!chance.is_trusted() && chance.error().unwrap() > 0.3, "{:?}", chance.error());
}

#[test]
fn unseen_counts_are_filled_in_between_and_continued() {
    // Only decodes, and prompts of a thousand tokens: nothing between 65 and 1,024, nothing above 1,088.
    let (truth, mut server) = (IterationTime::A100, Server::new(9, 2048));
    let mut fit = IterationTimeFit::default();
    for at in 0..2048 {
        let mut shape = server.step();
        shape = BatchShape { decodes: shape.decodes.min(60), ..BatchShape::default() };
        shape.decode_kv = shape.decodes * (400 + at);
        if at % 4 == 0 {
            shape.add_prefill(1025 - shape.decodes + at % 60, 0);
        }
        fit.observe(&shape, truth.nanos(&shape));
    }
    let law = fit.law().unwrap();
    let (low, high) = (law.token_seconds(64), law.token_seconds(1025));
    let line = |n: u64| low + (high - low) * (n - 64) as f64 / (1025.0 - 64.0);
    for n in [100, 256, 513, 1000] {
        assert!((law.token_seconds(n) / line(n) - 1.0).abs() < 1e-6, "{n} lies on the line between");
    }
    let beyond = law.token_seconds(2048) / truth.token_seconds(2048);
    assert!((0.8..1.25).contains(&beyond), "twice as far as was seen: {beyond} of the truth");
}

#[test]
fn what_is_kept_gives_the_same_law_again_and_what_no_traffic_gives_is_refused() {
    let (truth, mut server) = (IterationTime::A100, Server::new(5, 2048));
    let fit = fitted(&mut server, &truth, 2048, |_| 1.0);
    let state = serde_json::to_value(fit.state().unwrap()).unwrap();
    let read = |state: &Value| {
        serde_json::from_value::<FitState>(state.clone()).ok().and_then(|state| IterationTimeFit::restored(&state))
    };
    let again = read(&state).unwrap();
    let mut earlier = state.clone();
    let record = earlier["record"].as_object_mut().unwrap();
    let predicted = record.remove("predicted").unwrap();
    record.insert("foretold".to_owned(), predicted);
    assert_eq!(read(&earlier).unwrap().error(), fit.error(), "as earlier versions wrote it");
    assert!(again.is_trusted() && again.error() == fit.error() && again.observations() == fit.observations());
    for _ in 0..1000 {
        let shape = server.step();
        let ratio = again.law().unwrap().seconds(&shape) / fit.law().unwrap().seconds(&shape);
        assert!((ratio - 1.0).abs() < 0.02, "{shape:?}: {ratio}");
    }
    let changes: [(&str, Value); 14] = [
        ("/record/error", json!(-0.1)),
        ("/record/error", json!(7)),
        ("/record/predicted", json!(1e9)),
        ("/record/observations", json!(0)),
        ("/record/observations", json!(u64::MAX)),
        ("/cells/0/count", json!(1e15)),
        ("/cells/0/count", json!(-1)),
        ("/cells/0/from", json!(77)),
        ("/cells/1/from", state["cells"][0]["from"].clone()),
        ("/cells/0/sums/0", json!(0)),
        ("/cells/0/sums/1", json!(1e50)),
        ("/cells/0/sums/40", json!(1e300)),
        ("/cells/0/sums/44", json!(1e12)),
        ("/cells/0/sums", json!([1.0, 2.0])),
    ];
    for (pointer, value) in changes {
        let mut changed = state.clone();
        *changed.pointer_mut(pointer).unwrap() = value.clone();
        assert!(read(&changed).is_none(), "{pointer} = {value}");
    }
    assert!(read(&json!({"record": state["record"], "cells": [], "ends": []})).is_none(), "nothing was learned");
}

#[test]
fn counts_that_may_end_a_stair_are_tried_in_turn_and_dear_ones_no_more_than_they_need() {
    let mut trials = Trials::default();
    let tried: Vec<u64> = (0..24).filter_map(|_| trials.next(100, 700, None)).collect();
    assert_eq!(tried[..8], [640, 512, 448, 384, 320, 256, 192, 128]);
    assert_eq!(tried[8..16], tried[..8]);
    assert_eq!(trials.next(0, 64, None), None, "nothing ends below the first edge");
    let law = IterationTime::A100;
    let mut trials = Trials::default();
    let mut looks = std::collections::BTreeMap::new();
    while let Some(n) = trials.next(0, 2049, Some((&law, 0.08))) {
        *looks.entry(n).or_insert(0) += 1;
    }
    assert!(looks.values().all(|&times| times >= 4), "{looks:?}");
    assert!(looks[&384] > 200 && looks[&64] == 4 && looks[&128] == 4, "384 is the best edge: {looks:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_is_reported_times_are_finite_positive_and_rise_with_the_tokens(
        steps in proptest::collection::vec(
            (0u64..300, 0u64..4000, 0u64..4000, 0u64..100_000, prop_oneof![1u64..1000, 1u64..1 << 40, Just(u64::MAX)]),
            64..400,
        ),
        more in 1u64..5000,
    ) {
        let mut fit = IterationTimeFit::default();
        for &(decodes, kv, chunk, before, ns) in &steps {
            let mut shape = BatchShape { decodes, decode_kv: decodes * kv, ..BatchShape::default() };
            if chunk > 0 {
                shape.add_prefill(chunk, before);
            }
            fit.observe(&shape, ns);
        }
        if let Some(law) = fit.law() {
            for n in (1..70).chain((70..20_000).step_by(37)) {
                let (less, much) = (law.token_seconds(n), law.token_seconds(n + more));
                prop_assert!(less.is_finite() && less > 0.0 && much >= less * (1.0 - 1e-9), "{n}, {more}: {less}, {much}");
            }
            for &(decodes, kv, chunk, before, _) in &steps {
                let mut shape = BatchShape { decodes, decode_kv: decodes * kv, ..BatchShape::default() };
                shape.add_prefill(chunk, before);
                let seconds = law.seconds(&shape);
                prop_assert!(seconds.is_finite() && seconds > 0.0);
            }
            // As the settings would read it.
            let json = serde_json::to_string(law).unwrap();
            prop_assert!(serde_json::from_str::<IterationTime>(&json).is_ok(), "{}", json);
            let state = fit.state().unwrap();
            prop_assert!(IterationTimeFit::restored(&state).is_some());
        }
        let error = fit.error().unwrap_or(0.0);
        prop_assert!((0.0..=1.0).contains(&error));
    }

    #[test]
    fn every_count_is_in_its_cell(n in 1u64..40_000) {
        let cell = cell_of(n);
        prop_assert!(start_of(cell) <= n && (n <= end_of(cell) || cell == CELLS - 1));
    }
}
