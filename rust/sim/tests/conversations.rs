//! Datasets of conversations: how they are drawn, and that every policy ends them.

use std::ops::ControlFlow;

use serde_json::{Value, json};
use wait_core::Config;
use wait_core::model::IterationTime;
use wait_sim::{Dataset, NEVER_NS, Sampled, Setup, Summary};

fn dataset(conversations: &Value) -> Dataset {
    serde_json::from_value(json!({
        "arrivals": {"kind": "poisson"},
        "phases": [{"start": 0.0, "components": [{
            "name": "chat", "weight": 1.0,
            "prompt": {"kind": "lognormal", "mu": 3.0, "sigma": 0.9, "low": 4, "high": 200},
            "output": {"kind": "lognormal", "mu": 4.0, "sigma": 0.8, "low": 1, "high": 300},
        }]}],
        "conversations": conversations,
    }))
    .unwrap()
}

fn chat() -> Value {
    json!({"turns": 4.0, "think_s": 5.0, "think_sigma": 1.0, "system": 300, "max_length": 100_000})
}

fn sample(conversations: &Value, n: usize, rate: f64) -> Sampled {
    dataset(conversations).sample(n, rate, 7).unwrap()
}

#[test]
fn conversations_are_as_stated() {
    let n = 40_000;
    let sampled = sample(&chat(), n, 20.0);
    assert_eq!((sampled.arrivals.len(), sampled.follows.len(), sampled.system), (n, n, Some(300)));
    let first = sampled.follows.iter().filter(|follow| follow.is_none()).count();
    let turns = n as f64 / first as f64;
    assert!((turns / 4.0 - 1.0).abs() < 0.03, "{turns} turns a conversation");
    let seconds = sampled.arrivals[n - 1].at_ns as f64 * 1e-9;
    assert!((n as f64 / seconds / 20.0 - 1.0).abs() < 0.05, "at 20 requests a second, if no request waited");
    let mut thinks = Vec::new();
    for (i, follow) in sampled.follows.iter().enumerate() {
        let (held, at_ns) = follow.map_or((300, sampled.arrivals[i].at_ns), |follow| {
            assert_eq!(follow.after as usize, i - 1, "a turn follows the one before it");
            thinks.push(follow.think_ns);
            let before = sampled.arrivals[i - 1];
            (before.prompt + before.output, before.at_ns)
        });
        assert_eq!(sampled.arrivals[i].at_ns, at_ns);
        let new = sampled.arrivals[i].prompt - held;
        assert!((4..=200).contains(&new), "{new} new tokens");
    }
    thinks.sort_unstable();
    let median = thinks[thinks.len() / 2] as f64 * 1e-9;
    assert!((median / 5.0 - 1.0).abs() < 0.05, "{median} s to think");
    assert_eq!(sampled, sample(&chat(), n, 20.0), "the same seed gives the same conversations");
    let lengths = |sampled: &Sampled| sampled.arrivals.iter().map(|row| (row.prompt, row.output)).collect::<Vec<_>>();
    assert_eq!(lengths(&sampled), lengths(&sample(&chat(), n, 2.0)), "lengths do not depend on the rate");
}

#[test]
fn conversations_end_at_their_longest() {
    let short = json!({"turns": 50.0, "think_s": 0.0, "think_sigma": 0.0, "system": 300, "max_length": 1_000});
    let sampled = sample(&short, 5_000, 20.0);
    let longest = sampled.arrivals.iter().map(|row| row.prompt + row.output).max().unwrap();
    assert!((900..=1_000).contains(&longest));
    assert!(sampled.follows.iter().flatten().all(|follow| follow.think_ns == 0));
    let alone = json!({"turns": 1.0, "think_s": 1.0, "think_sigma": 0.0, "system": 0, "max_length": 1_000});
    assert!(sample(&alone, 100, 20.0).follows.iter().all(Option::is_none));
}

#[test]
fn bad_conversations_are_refused_by_name() {
    for (key, value) in [("turns", 0.5), ("think_s", -1.0), ("think_sigma", -0.1)] {
        let mut bad = chat();
        bad[key] = json!(value);
        let message = dataset(&bad).sample(3, 1.0, 0).unwrap_err().to_string();
        assert!(message.starts_with(&format!("conversations.{key} = {value}: ")), "{message}");
    }
}

#[test]
fn every_policy_ends_conversations_and_a_cache_saves_what_was_said() {
    let sampled = sample(&chat(), 400, 20.0);
    let types = json!([{"prompt": 600, "output": 60, "rate": 2.0}, {"prompt": 600, "output": 250, "rate": 1.0}]);
    for policy in ["vllm", "prefill-first", "sarathi", "adaptive", "wait", "nested-wait", "clairvoyant"] {
        let run = |caching: bool| {
            let mut settings = json!({"policy": policy, "kv_blocks": 1_000, "prefix_caching": caching});
            if policy.ends_with("wait") {
                settings["types"] = types.clone();
            }
            let config = Config::from_map(settings.as_object().unwrap().clone()).unwrap();
            let law = IterationTime::linear(0.01, 1e-6).unwrap();
            let setup = Setup { max_tokens: Some(200), ..Setup::new(config, law) };
            wait_sim::run(&setup, sampled.requests(), |_| ControlFlow::Continue(())).unwrap()
        };
        let (with, without) = (run(true), run(false));
        for run in [&with, &without] {
            assert_eq!((run.completed, run.failed), (400, 0), "{policy}");
            assert!(run.finished_by_length > 0 && run.output.iter().all(|&output| output <= 200));
            for (i, follow) in sampled.follows.iter().enumerate() {
                let Some(follow) = follow else { continue };
                assert_eq!(run.arrival_ns[i], run.finished_ns[follow.after as usize] + follow.think_ns);
                assert!(run.finished_ns[i] < NEVER_NS);
            }
        }
        let rate = Summary::new(&with, None).prefix_hit_rate;
        assert!((0.4..0.95).contains(&rate), "{policy}: {rate}");
        assert_eq!(without.cached_tokens, 0, "{policy}");
        assert!(with.prefill_tokens < without.prefill_tokens);
    }
}
