//! Whole runs: repeated, interrupted, refused, overloaded; and the figures derived from them.

use std::ops::ControlFlow;

use serde_json::json;
use wait_core::model::IterationTime;
use wait_core::{Config, Error};
use wait_sim::{Arrival, Dataset, Lengths, NEVER_NS, Run, Setup, SimError, Slo, Summary};

fn setup(settings: serde_json::Value) -> Setup {
    let serde_json::Value::Object(settings) = settings else { panic!("a map of settings") };
    Setup {
        lengths: Lengths::Known,
        ..Setup::new(Config::from_map(settings).unwrap(), IterationTime::linear(0.01, 1e-6).unwrap())
    }
}

fn dataset() -> Dataset {
    serde_json::from_value(json!({
        "arrivals": {"kind": "poisson"},
        "phases": [{"start": 0.0, "components": [{
            "name": "chat", "weight": 1.0,
            "prompt": {"kind": "lognormal", "mu": 5.0, "sigma": 0.9, "low": 4, "high": 900},
            "output": {"kind": "lognormal", "mu": 4.0, "sigma": 0.8, "low": 1, "high": 600},
        }]}],
    }))
    .unwrap()
}

fn policies() -> Vec<serde_json::Value> {
    let types = json!([{"prompt": 200, "output": 60, "rate": 6.0}, {"prompt": 200, "output": 250, "rate": 3.0}]);
    vec![
        json!({"policy": "vllm", "kv_blocks": 300}),
        json!({"policy": "vllm", "kv_blocks": 300, "watermark": 0.3, "preemption": "restart"}),
        json!({"policy": "wait", "kv_blocks": 300, "types": types}),
        json!({"policy": "wait", "kv_blocks": 300, "types": types, "work_conserving": false}),
        json!({"policy": "wait", "kv_blocks": 300, "types": types, "thresholds": [2.0, 0.5], "work_conserving": false,
               "max_hold": 0.3}),
    ]
}

fn run(setup: &Setup, arrivals: &[Arrival]) -> Result<Run, SimError> {
    wait_sim::run(setup, arrivals, |_| ControlFlow::Continue(()))
}

fn arrival(at_ns: u64, prompt: u32, output: u32) -> Arrival {
    Arrival { at_ns, prompt, output, label: 0 }
}

fn refusal(setup: &Setup, arrivals: &[Arrival]) -> String {
    match run(setup, arrivals).unwrap_err() {
        SimError::Refused(error @ Error::Invalid { .. }) => error.to_string(),
        other => panic!("{other}"),
    }
}

#[test]
fn every_request_finishes_in_overload_and_the_report_repeats() {
    let arrivals = dataset().sample(400, 9.0, 5).unwrap().arrivals;
    for settings in policies() {
        for lengths in [Lengths::Known, Lengths::Hidden] {
            let setup = Setup { lengths, ..setup(settings.clone()) };
            let first = run(&setup, &arrivals).unwrap();
            assert_eq!((first.completed, first.failed), (400, 0), "{settings}");
            for i in 0..400 {
                let times = [first.arrival_ns[i], first.admitted_ns[i], first.first_token_ns[i], first.finished_ns[i]];
                assert!(times.is_sorted() && times[1] < times[2] && times[3] < NEVER_NS, "{settings}: {times:?}");
            }
            if setup.config.preemption == wait_core::config::Preemption::Recompute {
                let gaps: u64 = first.gaps.iter().map(|&(_, times)| u64::from(times)).sum();
                let tokens: u64 = arrivals.iter().map(|arrival| u64::from(arrival.output) - 1).sum();
                assert_eq!(gaps, tokens, "a gap for every token but the first");
            }
            assert!(first.peak_blocks <= first.kv_blocks);
            assert_eq!(first, run(&setup, &arrivals).unwrap(), "the same inputs give the same report");
        }
    }
    assert!(run(&setup(policies()[0].clone()), &arrivals).unwrap().stats.preemptions > 0, "the cache is short");
}

#[test]
fn one_request_alone_by_hand() {
    let setup = Setup { overhead_ns: 1_000, ..setup(json!({"kv_blocks": 10, "token_budget": 256})) };
    let run = run(&setup, &[arrival(7, 20, 3)]).unwrap();
    // 10 ms, 1 µs per token of KV and 1 µs of overhead: 20, 21 and 22 tokens.
    let ends = [7 + 10_021_000, 7 + 20_043_000, 7 + 30_066_000];
    assert_eq!((run.admitted_ns[0], run.first_token_ns[0], run.finished_ns[0]), (7, ends[0], ends[2]));
    assert_eq!(run.gaps, [(10_022_000, 1), (10_023_000, 1)]);
    assert_eq!((run.iterations, run.decode_tokens, run.prefill_tokens, run.peak_blocks), (3, 2, 20, 2));
    let series: Vec<_> = run.series.iter().map(|s| (s.at_ns, s.blocks, s.residents, s.waiting)).collect();
    assert_eq!(series, [(ends[0], 2, 1, 0), (ends[1], 2, 1, 0), (ends[2], 2, 1, 0)]);
    let summary = Summary::new(&run, Some(Slo { ttft_ms: 10.021, tpot_ms: 10.0225 }));
    assert_eq!((summary.completed, summary.total_input_tokens, summary.total_output_tokens), (1, 20, 3));
    assert!((summary.duration - 0.030_066).abs() < 1e-12);
    assert!((summary.ttft.mean - 10.021).abs() < 1e-9 && (summary.tpot.mean - 10.0225).abs() < 1e-9);
    assert!((summary.e2el.p99 - 30.066).abs() < 1e-9 && (summary.itl.median - 10.022).abs() < 1e-9);
    assert_eq!((summary.goodput, summary.ttft.std.abs() < 1e-9), (Some(1.0), true));
    let missed = Summary::new(&run, Some(Slo { ttft_ms: 10.020, tpot_ms: 99.0 }));
    assert_eq!((missed.goodput, missed.request_goodput), (Some(0.0), Some(0.0)));
}

#[test]
fn nothing_offered_nothing_done() {
    let run = run(&setup(json!({"kv_blocks": 10})), &[]).unwrap();
    assert_eq!((run.completed, run.iterations, run.series.len()), (0, 0, 0));
    let summary = Summary::new(&run, None);
    assert!(summary.duration == 0.0 && summary.ttft.mean.is_nan() && summary.goodput.is_none());
}

#[test]
fn what_can_never_fit_or_finds_the_queue_full_is_counted_as_failed() {
    let settings = json!({"kv_blocks": 10, "max_queued_requests": 2});
    for lengths in [Lengths::Known, Lengths::Hidden] {
        let setup = Setup { lengths, ..setup(settings.clone()) };
        let run = run(&setup, &[arrival(0, 100, 61), arrival(0, 100, 60), arrival(0, 4, 4), arrival(0, 4, 4)]).unwrap();
        assert_eq!((run.completed, run.failed), (2, 2), "161 of 160 tokens, and the third in the queue");
        assert_eq!((run.finished_ns[0], run.finished_ns[3], run.first_token_ns[0]), (NEVER_NS, NEVER_NS, NEVER_NS));
        let summary = Summary::new(&run, Some(Slo { ttft_ms: 1e9, tpot_ms: 1e9 }));
        assert_eq!((summary.failed, summary.goodput), (2, Some(0.5)), "goodput is of the requests offered");
    }
}

#[test]
fn bad_arrivals_are_refused_by_name() {
    let setup = setup(json!({"kv_blocks": 10}));
    for (arrivals, expected) in [
        (vec![arrival(0, 4, 4), arrival(0, 0, 4)], "arrivals[1].prompt = 0: must be at least 1 token"),
        (vec![arrival(0, 4, 0)], "arrivals[0].output = 0: must be at least 1 token"),
        (vec![arrival(5, 4, 4), arrival(4, 4, 4)], "arrivals[1].at_ns = 4: must be in ascending order"),
        (vec![arrival(u64::MAX, 4, 4)], "arrivals[0].at_ns = 18446744073709551615: must be in ascending order"),
    ] {
        for lengths in [Lengths::Known, Lengths::Hidden] {
            let refused = refusal(&Setup { lengths, ..setup.clone() }, &arrivals);
            assert!(refused.starts_with(expected), "{refused}");
        }
    }
}

#[test]
fn virtual_time_has_an_end_and_says_so() {
    let law = IterationTime::linear(1e300, 0.0).unwrap();
    let slow = Setup { law, ..setup(json!({"kv_blocks": 10})) };
    assert!(refusal(&slow, &[arrival(0, 4, 4)]).starts_with("iteration_time = 18446744073709551615 ns: ends after"));
    let held = Setup { overhead_ns: u64::MAX, ..setup(json!({"kv_blocks": 10})) };
    assert!(refusal(&held, &[arrival(0, 4, 4)]).starts_with("iteration_time = "));
    let none = Setup { max_concurrency: Some(0), ..setup(json!({"kv_blocks": 10})) };
    assert!(refusal(&none, &[arrival(0, 4, 4)]).starts_with("max_concurrency = 0: must be at least 1"));
    let nothing = Setup { max_tokens: Some(0), ..setup(json!({"kv_blocks": 10})) };
    assert!(refusal(&nothing, &[arrival(0, 4, 4)]).starts_with("max_tokens = 0: must be at least 1"));
    let types = json!([{"prompt": 4, "output": 4, "rate": 1.0}]);
    let patient = json!({"policy": "wait", "kv_blocks": 10, "types": types, "thresholds": [5.0], "work_conserving": false,
        "max_hold": 1e300});
    let run = run(&setup(patient), &[arrival(0, 4, 4)]).unwrap();
    assert_eq!((run.completed, run.drained_ns), (1, 0), "a hold that ends after time itself does not delay the drain");
}

#[test]
fn a_callback_may_stop_the_run() {
    let arrivals = dataset().sample(300, 9.0, 5).unwrap().arrivals;
    let setup = setup(policies()[0].clone());
    let mut calls = Vec::new();
    let whole = wait_sim::run(&setup, &arrivals, |completed| {
        calls.push(completed);
        ControlFlow::Continue(())
    });
    assert!(whole.is_ok() && calls.is_sorted());
    assert_eq!((calls.first(), calls.last()), (Some(&0), Some(&300)), "at the start and at the end");
    let mut left = calls.len() - 1;
    let stopped = wait_sim::run(&setup, &arrivals, |_| {
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let completed = calls[calls.len() - 2];
    assert_eq!(stopped, Err(SimError::Interrupted { completed, offered: 300 }));
    assert_eq!(stopped.unwrap_err().to_string(), format!("interrupted after {completed} of 300 requests"));
}

#[test]
fn a_long_run_keeps_a_thinned_series_over_all_of_it() {
    let setup = setup(json!({"kv_blocks": 1000}));
    let run = run(&setup, &[arrival(0, 10, 15_000)]).unwrap();
    assert!((2048..=4096).contains(&run.series.len()), "{}", run.series.len());
    let gaps: Vec<u64> = run.series.windows(2).map(|pair| pair[1].at_ns - pair[0].at_ns).collect();
    let (least, most) = (gaps.iter().min().unwrap(), gaps.iter().max().unwrap());
    assert!(most < &(3 * least), "evenly spread: {least} to {most} ns");
    assert!(run.series.last().unwrap().at_ns > run.finished_ns[0] * 9 / 10);
}

#[test]
fn the_paper_takes_one_iteration_more() {
    let settings = |convention: &str| setup(json!({"kv_blocks": 10, "convention": convention}));
    let (vllm, paper) = (settings("vllm"), settings("paper"));
    assert_eq!(run(&vllm, &[arrival(0, 20, 3)]).unwrap().iterations, 3);
    assert_eq!(run(&paper, &[arrival(0, 20, 3)]).unwrap().iterations, 4);
}

/// A run of requests that finished `e2el` ms after they arrived, the first token at half the time.
fn finished(e2el_ms: &[u64], gaps: Vec<(u64, u32)>) -> Run {
    let n = e2el_ms.len();
    Run {
        arrival_ns: vec![0; n],
        prompt: vec![1; n],
        output: vec![3; n],
        admitted_ns: vec![0; n],
        first_token_ns: e2el_ms.iter().map(|ms| ms * 500_000).collect(),
        finished_ns: e2el_ms.iter().map(|ms| ms * 1_000_000).collect(),
        preemptions: vec![0; n],
        completed: n,
        gaps,
        ..Run::default()
    }
}

#[test]
#[allow(clippy::float_cmp)]
fn percentiles_are_the_least_value_that_the_share_does_not_exceed() {
    let hundred: Vec<u64> = (1..=100).rev().collect();
    let summary = Summary::new(&finished(&hundred, vec![(2_000_000, 98), (9_000_000, 1), (1_000_000, 1)]), None);
    assert_eq!((summary.e2el.median, summary.e2el.p99, summary.e2el.mean), (50.0, 99.0, 50.5));
    assert!((summary.e2el.std - 833.25_f64.sqrt()).abs() < 1e-9, "of the population");
    assert_eq!((summary.ttft.median, summary.tpot.median), (25.0, 12.5));
    assert_eq!((summary.itl.median, summary.itl.p99), (2.0, 2.0), "weights count");
    let one = Summary::new(&finished(&[8], vec![]), None);
    assert_eq!((one.e2el.median, one.e2el.p99, one.e2el.std), (8.0, 8.0, 0.0));
    assert!(one.itl.mean.is_nan());
    let odd = Summary::new(&finished(&[1, 2, 3], vec![]), None);
    assert_eq!((odd.e2el.median, odd.e2el.p99), (2.0, 3.0));
}

#[test]
fn the_keys_are_those_of_vllm_bench_serve() {
    let summary = Summary::new(&finished(&[4], vec![(1, 1)]), Some(Slo { ttft_ms: 1.0, tpot_ms: 1.0 }));
    let keys: Vec<String> = summary.items().into_iter().map(|(key, _)| key).collect();
    for key in [
        "duration",
        "completed",
        "failed",
        "total_input_tokens",
        "total_output_tokens",
        "request_throughput",
        "request_goodput",
        "output_throughput",
        "total_token_throughput",
    ] {
        assert!(keys.iter().any(|other| other == key), "{key}");
    }
    for metric in ["ttft", "tpot", "itl", "e2el"] {
        for figure in ["mean", "median", "std", "p99"] {
            assert!(keys.contains(&format!("{figure}_{metric}_ms")));
        }
    }
}

#[test]
fn bad_datasets_are_refused_by_name() {
    let good = serde_json::to_value(dataset()).unwrap();
    let refused = |pointer: &str, value: serde_json::Value| {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).expect(pointer) = value;
        let dataset: Dataset = serde_json::from_value(bad).unwrap();
        dataset.sample(3, 1.0, 0).expect_err(pointer).to_string()
    };
    let component = "/phases/0/components/0";
    for (pointer, value, expected) in [
        ("/phases/0/start", json!(0.5), "phases = 1: must start at 0"),
        ("/phases", json!([]), "phases = 0: must start at 0"),
        (&format!("{component}/weight"), json!(0.0), "phases[0].weight = [0.0]: "),
        (&format!("{component}/weight"), json!(-1.0), "phases[0].weight = [-1.0]: "),
        (&format!("{component}/prompt/sigma"), json!(-1.0), "chat.prompt = lognormal(5, -1): "),
        (&format!("{component}/prompt/low"), json!(0), "chat.prompt = [0, 900]: "),
        (&format!("{component}/output/low"), json!(601), "chat.output = [601, 600]: "),
        (
            &format!("{component}/output"),
            json!({"kind": "constant", "value": 0}),
            "chat.output = 0: must be at least 1",
        ),
        (
            &format!("{component}/output"),
            json!({"kind": "histogram", "edges": [5, 4], "weights": [1.0]}),
            "chat.output = [5, 4]: ascending edges",
        ),
        (
            &format!("{component}/output"),
            json!({"kind": "histogram", "edges": [4, 5], "weights": [-1.0]}),
            "chat.output = [-1.0]: weights",
        ),
        ("/arrivals", json!({"kind": "gamma", "burstiness": 0.0}), "burstiness = 0: must be finite and above 0"),
        ("/arrivals", json!({"kind": "mmpp", "multipliers": [1.0, -1.0], "sojourn_s": [1.0, 1.0]}), "multipliers = -1"),
        ("/arrivals", json!({"kind": "mmpp", "multipliers": [1.0, 2.0], "sojourn_s": [0.0, 1.0]}), "sojourn_s = 0"),
    ] {
        let message = refused(pointer, value);
        assert!(message.starts_with(expected), "{message:?} should start with {expected:?}");
    }
    for rate in [0.0, -1.0, f64::NAN, f64::NEG_INFINITY] {
        let message = dataset().sample(3, rate, 0).unwrap_err().to_string();
        assert!(message.starts_with(&format!("request_rate = {rate}: must be above 0")), "{message}");
    }
    let at_once = dataset().sample(3, f64::INFINITY, 0).unwrap().arrivals;
    assert_eq!(at_once.iter().map(|row| row.at_ns).collect::<Vec<_>>(), [0; 3]);
    let slow = dataset().sample(3, 1e-300, 0).unwrap().arrivals;
    let refused = refusal(&setup(json!({"kv_blocks": 1000})), &slow);
    assert!(refused.starts_with("arrivals[0].at_ns = 18446744073709551615"), "{refused}");
    let many = dataset().sample(usize::MAX, 1.0, 0).unwrap_err().to_string();
    assert!(many.starts_with("num_requests = 18446744073709551615: must be at most 100000000"), "{many}");
}

#[test]
fn a_process_that_changes_far_more_often_than_anybody_arrives_is_refused() {
    let of = |sojourn_s: f64| Dataset {
        arrivals: serde_json::from_value(
            json!({"kind": "mmpp", "multipliers": [0.5, 1.5], "sojourn_s": [sojourn_s, sojourn_s]}),
        )
        .unwrap(),
        ..dataset()
    };
    assert_eq!(of(1.0).sample(3, 1e-3, 0).unwrap().arrivals.len(), 3);
    // Years between two arrivals, and a change in every second or nanosecond.
    for (sojourn_s, rate) in [(1.0, 1e-9), (1e-9, 1e-3), (1.0, 1e-300)] {
        let message = of(sojourn_s).sample(3, rate, 0).unwrap_err().to_string();
        assert!(message.starts_with("sojourn_s = [") && message.contains("changes of state"), "{message}");
    }
}

#[test]
fn an_output_too_long_to_count_its_iterations_is_refused() {
    for lengths in [Lengths::Known, Lengths::Hidden] {
        let setup = Setup { lengths, ..setup(json!({"kv_blocks": 300, "convention": "paper"})) };
        let run = run(&setup, &[arrival(0, 4, u32::MAX), arrival(1, 4, 4)]).unwrap();
        assert_eq!(run.finished_ns.iter().filter(|&&ns| ns != NEVER_NS).count(), 1);
    }
}

#[test]
fn arrivals_come_at_the_rate_and_lengths_do_not_depend_on_it() {
    let processes = [
        json!({"kind": "poisson"}),
        json!({"kind": "gamma", "burstiness": 0.5}),
        json!({"kind": "mmpp", "multipliers": [0.5, 2.0], "sojourn_s": [2.0, 1.0]}),
    ];
    for process in processes {
        let dataset = Dataset { arrivals: serde_json::from_value(process.clone()).unwrap(), ..dataset() };
        let (slow, fast) =
            (dataset.sample(20_000, 5.0, 9).unwrap().arrivals, dataset.sample(20_000, 50.0, 9).unwrap().arrivals);
        let lengths = |rows: &[Arrival]| rows.iter().map(|row| (row.prompt, row.output)).collect::<Vec<_>>();
        assert_eq!(lengths(&slow), lengths(&fast));
        for (rows, rate) in [(&slow, 5.0), (&fast, 50.0)] {
            assert!(rows.is_sorted_by_key(|row| row.at_ns));
            let seen = 20_000.0 / (rows.last().unwrap().at_ns as f64 * 1e-9);
            assert!((seen / rate - 1.0).abs() < 0.1, "{process}: {seen} instead of {rate}");
        }
    }
}

#[test]
fn a_phase_begins_at_its_share_of_the_requests() {
    let constant = |value: u32| json!({"kind": "constant", "value": value});
    let phase = |start: f64, value: u32| {
        json!({"start": start, "components": [
            {"name": "c", "weight": 1.0, "prompt": constant(value), "output": constant(1)}]})
    };
    let arrivals = json!({"kind": "poisson"});
    let dataset: Dataset =
        serde_json::from_value(json!({"arrivals": arrivals, "phases": [phase(0.0, 1), phase(0.25, 2)]})).unwrap();
    let prompts: Vec<u32> = dataset.sample(8, 1.0, 0).unwrap().arrivals.iter().map(|row| row.prompt).collect();
    assert_eq!(prompts, [1, 1, 2, 2, 2, 2, 2, 2]);
}
