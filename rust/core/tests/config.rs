//! The one validator: every key, every range, every kind of wrong value, and what the message says.

use serde_json::{Map, Value, json};
use wait_core::config::{PolicyName, Preemption};
use wait_core::error::nearest;
use wait_core::model::{RequestType, StageConvention};
use wait_core::policy::Policy;
use wait_core::{Config, Error, Scheduler};

fn map(value: &Value) -> Map<String, Value> {
    value.as_object().expect("a map of settings").clone()
}

/// Settings with memory, and `extra` over them.
fn read(extra: &Value) -> Result<Config, Error> {
    let mut settings = map(&json!({"kv_blocks": 100}));
    settings.extend(map(extra));
    Config::from_map(settings)
}

fn message(extra: &Value) -> String {
    read(extra).expect_err(&format!("{extra} must be refused")).to_string()
}

#[test]
fn what_is_absent_has_its_default() {
    let config = read(&json!({})).unwrap();
    assert_eq!(config, Config { kv_blocks: 100, ..Config::default() });
    assert_eq!(
        (config.policy, config.block_size, config.max_num_seqs, config.token_budget),
        (PolicyName::Adaptive, 16, 256, 2048)
    );
    assert_eq!((config.preemption, config.convention), (Preemption::Recompute, StageConvention::Vllm));
    assert!(config.work_conserving && !config.host_preempts);
    let core = Scheduler::new(&config).unwrap();
    assert_eq!((core.view().watermark_blocks(), core.view().max_model_len()), (0, 1600));
    assert_eq!(message(&json!({"kv_blocks": 0})), "kv_blocks = 0: must be between 1 and 1073741824");
    assert_eq!(
        Config::from_map(Map::new()).unwrap_err().to_string(),
        "kv_blocks = none: must be given, there is no default"
    );
}

/// A value that each key takes, other than its default.
fn taken() -> Map<String, Value> {
    map(&json!({
        "policy": "wait",
        "kv_blocks": 7,
        "block_size": 8,
        "max_num_seqs": 3,
        "token_budget": 64,
        "max_model_len": 50,
        "watermark": 0.25,
        "preemption": "restart",
        "host_preempts": true,
        "max_queued_requests": 9,
        "max_queued_tokens": 5_000_000_000u64,
        "convention": "paper",
        "types": [{"prompt": 4, "output": 3, "rate": 2.0}],
        "thresholds": [1.5],
        "work_conserving": false,
        "max_hold": 0.5,
        "ttft_target": 2.0,
    }))
}

#[test]
fn every_key_is_read() {
    // Settings of policies that this table does not know have tests of their own.
    let unknown: Vec<String> = taken().keys().filter(|key| !Config::keys().contains(key)).cloned().collect();
    assert_eq!(unknown, [] as [&str; 0]);
    let config = Config::from_map(taken()).unwrap();
    let read = serde_json::to_value(&config).unwrap();
    let default = serde_json::to_value(Config::default()).unwrap();
    for (key, value) in taken() {
        assert_eq!(read[&key], value, "{key}");
        assert_ne!(default[&key], value, "{key} must differ from its default for this test to see it");
    }
    let core = Scheduler::new(&config).unwrap();
    assert_eq!((core.view().watermark_blocks(), core.view().max_model_len()), (1, 50));
    assert_eq!(config.types, [RequestType { prompt: 4, output: 3, rate: 2.0 }]);
    assert_eq!(Config::from_map(map(&read)).unwrap(), config, "what is written can be read");
}

#[test]
fn a_wrong_type_is_refused_with_key_and_value() {
    for key in taken().keys() {
        let wrong = match key.as_str() {
            "host_preempts" | "work_conserving" => json!("yes"),
            "types" | "thresholds" => json!({"a": 1}),
            _ => json!([true]),
        };
        let shown = wrong.to_string();
        let text = message(&json!({key: wrong}));
        assert!(
            text.starts_with(&format!("{key} = {shown}: ")) || text.starts_with(&format!("{key}[0] = true: ")),
            "{text}"
        );
    }
    assert!(message(&json!({"types": [{"prompt": 1, "output": 2}]})).ends_with(": rate is missing"));
    assert!(
        message(&json!({"types": [{"prompt": 1, "output": "x", "rate": 1.0}]})).starts_with("types[0].output = \"x\"")
    );
    assert!(message(&json!({"thresholds": [1.0, "x"]})).starts_with("thresholds[1] = \"x\""));
    assert!(message(&json!({"policy": "wiat"})).starts_with("policy = \"wiat\": must be one of vllm, wait, "));
    assert!(message(&json!({"preemption": "Restart"})).starts_with("preemption = \"Restart\""));
}

/// What serde says of a value names Rust's types; a user has none of them.
#[test]
fn no_message_names_a_type_of_rust() {
    for key in taken().keys() {
        for wrong in [json!({"a": 1}), json!([{"a": []}]), json!("x"), json!(-1.5), json!(true), json!(1u64 << 40)] {
            let text = Config::from_map(map(&json!({"kv_blocks": 100, key: wrong}))).err().map(|e| e.to_string());
            for word in ["u8", "u16", "u32", "u64", "usize", "f64", "variant", "struct", "enum", "sequence"] {
                assert!(!text.as_ref().is_some_and(|text| text.split([' ', '`']).any(|said| said == word)), "{text:?}");
            }
        }
    }
    assert_eq!(message(&json!({"kv_blocks": "x"})), "kv_blocks = \"x\": must be an integer from 0 to 4294967295");
}

#[test]
fn counts_neither_negative_nor_fractional_nor_beyond_their_type() {
    for key in ["kv_blocks", "block_size", "max_num_seqs", "token_budget", "max_model_len", "max_queued_requests"] {
        for wrong in [json!(-1), json!(2.5), json!(1u64 << 32)] {
            let shown = wrong.to_string();
            assert!(message(&json!({key: wrong})).starts_with(&format!("{key} = {shown}: ")));
        }
    }
}

#[test]
fn values_outside_their_range_are_refused_with_the_range() {
    let wait = |extra: Value| {
        let mut settings = map(&json!({"policy": "wait", "types": [{"prompt": 4, "output": 3, "rate": 2.0}]}));
        settings.extend(map(&extra));
        message(&Value::Object(settings))
    };
    for (text, expected) in [
        (message(&json!({"block_size": 0})), "block_size = 0: must be between 1 and 65536"),
        (message(&json!({"block_size": 65537})), "block_size = 65537: must be between 1 and 65536"),
        (message(&json!({"max_num_seqs": 0})), "max_num_seqs = 0: must be between 1 and"),
        (message(&json!({"token_budget": 0})), "token_budget = 0: must be between 1 and"),
        (message(&json!({"kv_blocks": 1 << 30, "block_size": 2})), "kv_blocks = 1073741824: with blocks of 2 tokens"),
        (message(&json!({"token_budget": 255})), "token_budget = 255: must be at least max_num_seqs (256)"),
        (message(&json!({"max_model_len": 0})), "max_model_len = 0: must be between 1 and 1073741824"),
        (message(&json!({"watermark": 1.0})), "watermark = 1: must be at least 0 and below 1"),
        (message(&json!({"watermark": -0.1})), "watermark = -0.1: must be at least 0 and below 1"),
        (message(&json!({"max_hold": -1.0})), "max_hold = -1: must be finite and at least 0 seconds"),
        (message(&json!({"ttft_target": 0.0})), "ttft_target = 0: must be finite and above 0 seconds"),
        (message(&json!({"ttft_target": -2.0})), "ttft_target = -2: must be finite and above 0 seconds"),
        (message(&json!({"max_queued_requests": 0})), "max_queued_requests = 0: must be at least 1"),
        (message(&json!({"max_queued_tokens": 0})), "max_queued_tokens = 0: must be at least 1"),
        (message(&json!({"policy": "wait"})), "types = []: policy \"wait\" needs at least one request type"),
        (wait(json!({"thresholds": []})), "thresholds = 0: one threshold a type: 1 expected"),
        (wait(json!({"thresholds": [0.0]})), "thresholds[0] = 0: must be finite, above 0 and"),
        (wait(json!({"thresholds": [-3.0]})), "thresholds[0] = -3: must be finite, above 0 and"),
        (wait(json!({"types": [{"prompt": 0, "output": 3, "rate": 2.0}]})), "types = […]: types[0].prompt = 0"),
        (wait(json!({"types": [{"prompt": 4, "output": 3, "rate": -2.0}]})), "types = […]: types[0].rate = -2"),
    ] {
        assert!(text.starts_with(expected), "{text:?} should start with {expected:?}");
    }
}

#[test]
fn a_struct_filled_by_hand_is_validated_too() {
    let config = |watermark: f64, max_hold: f64, threshold: f64| {
        let types = vec![RequestType { prompt: 4, output: 3, rate: 2.0 }];
        let (max_hold, thresholds) = (Some(max_hold), Some(vec![threshold]));
        Config { kv_blocks: 9, watermark, max_hold, types, thresholds, ..Config::default() }
    };
    assert_eq!(config(0.1, 1.0, 2.0).validate(), Ok(()));
    for (bad, start) in [
        (config(f64::NAN, 1.0, 2.0), "watermark = NaN"),
        (config(f64::INFINITY, 1.0, 2.0), "watermark = inf"),
        (config(0.1, f64::NAN, 2.0), "max_hold = NaN"),
        (config(0.1, f64::INFINITY, 2.0), "max_hold = inf"),
        (config(0.1, 1.0, f64::NAN), "thresholds[0] = NaN"),
        (config(0.1, 1.0, f64::INFINITY), "thresholds[0] = inf"),
    ] {
        assert!(bad.validate().unwrap_err().to_string().starts_with(start), "{start}");
        assert_eq!(Scheduler::new(&bad).unwrap_err(), bad.validate().unwrap_err());
    }
    let types = vec![RequestType { prompt: 4, output: 3, rate: 2.0 }; 4097];
    let many = Config { kv_blocks: 9, types, ..Config::default() }.validate().unwrap_err().to_string();
    assert!(many.starts_with("types = 4097: at most 4096"), "{many}");
}

#[test]
fn lanes_of_large_blocks_are_bounded() {
    let boundaries: Vec<u32> = (1..=2_000).collect();
    let config = |block_size| Config {
        policy: PolicyName::NestedWait,
        kv_blocks: 9,
        block_size,
        thresholds: Some(vec![1.0; boundaries.len()]),
        boundaries: Some(boundaries.clone()),
        ..Config::default()
    };
    assert!(Scheduler::new(&config(8_192)).is_ok());
    let error = Scheduler::new(&config(65_536)).unwrap_err().to_string();
    assert!(error.starts_with("block_size = 65536: times 2000 types or segments must be at most"), "{error}");
}

#[test]
fn planning_the_longest_types_takes_no_time_of_their_length() {
    let longest = json!({"prompt": 1 << 26, "output": 1 << 26, "rate": 1.0});
    let settings = json!({"policy": "wait", "types": vec![longest; 4096]});
    // Stage by stage these would be 2.7e11 terms.
    let core = Scheduler::new(&read(&settings).unwrap()).unwrap();
    assert_eq!(core.policy().thresholds().len(), 4096);
}

#[test]
fn planned_thresholds_need_rates() {
    let settings = json!({"policy": "wait", "types": [{"prompt": 4, "output": 3, "rate": 0.0}]});
    let error = Scheduler::new(&read(&settings).unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("types[0].rate = 0: must be above 0 when thresholds are planned"), "{error}");
}

#[test]
fn a_key_that_does_not_exist_is_answered_with_the_nearest() {
    assert_eq!(message(&json!({"kv_block": 1})), "unknown setting \"kv_block\"; did you mean \"kv_blocks\"?");
    for key in Config::keys() {
        for slip in [format!("{key}s"), key[1..].to_owned(), key.replacen('_', "-", 1) + "x"] {
            let Error::UnknownKey { suggestion, .. } = read(&json!({&slip: 1})).unwrap_err() else {
                panic!("{slip} is no key")
            };
            assert_eq!(suggestion.as_ref(), Some(&key), "{slip}");
        }
    }
    assert_eq!(message(&json!({"zzz": 1})), "unknown setting \"zzz\"");
    assert_eq!(message(&json!({"": 1})), "unknown setting \"\"");
    assert_eq!(message(&json!({"größe": 1})), "unknown setting \"größe\"");
    assert_eq!(nearest("max_seqs", ["max_num_seqs", "max_hold"]), None, "four letters away is another word");
}
