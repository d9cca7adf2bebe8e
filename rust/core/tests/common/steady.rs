//! An engine in a steady state with churn, to be counted and timed: in each iteration requests finish, as many are
//! admitted, and as many arrive.
//!
//! Output lengths are unknown to the core, and the residents are at all stages of progress: the longer one has run, the
//! likelier it is the next to finish. `adaptive` has room for its residents to continue for a while, though not up to
//! their `max_tokens`: every admission is forecast. In "adaptive, memory full" the forecast and not the number of slots
//! decides, and holds the queue; there the token budget also follows an iteration-time law. "adaptive, steps timed" is
//! the same with the iterations' times reported, a few percent off the law: all decisions are the same, and a law is
//! learned. In "vllm, memory full" the residents fill the cache and are preempted now and then. With "three groups" the KV cache has full attention, and windows of 128 and 1,024 tokens.
#![allow(dead_code)] // no user of this file needs all of it

use serde_json::json;
use wait_core::model::IterationTime;
use wait_core::{Config, Origin, Report, Request, RequestId, Scheduler, StepTime};

/// The cases: policies, one of them in several states.
pub(crate) const CASES: [&str; 11] = [
    "vllm",
    "vllm, memory full",
    "wait",
    "nested-wait",
    "adaptive",
    "adaptive, memory full",
    "adaptive, steps timed",
    "adaptive, 128 classes",
    "adaptive, late and tenants",
    "vllm, three groups",
    "adaptive, three groups",
];
/// Labels in "adaptive, 128 classes": each has a curve of its own.
const CLASSES: u64 = 128;

/// Stages over which the residents spread, and about their mean output, if there are as many.
pub(crate) const SPREAD: u64 = 1024;
const MAX_TOKENS: u64 = 8192;
/// Tokens of the longest prompt.
const PROMPT: u64 = 96;
const ITERATION_NS: u64 = 30_000_000;

/// An engine.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) scheduler: Scheduler,
    case: &'static str,
    /// The iterations' times are reported.
    timed: bool,
    running: Vec<RequestId>,
    finished: Vec<RequestId>,
    arrived: u64,
    iterations: u64,
    draw: u64,
}

impl Engine {
    /// An engine of a case with `running` residents, which take all slots unless memory is full, and `waiting` behind
    /// them.
    pub(crate) fn loaded(case: &str, running: u64, waiting: u64) -> Self {
        let spread = SPREAD.min(running);
        let mut engine = Self::empty(case, running, 2 * running.div_ceil(spread) + 8);
        for _ in 0..spread {
            engine.add(running.div_ceil(spread).min(running - engine.arrived));
            engine.iterate();
        }
        while engine.scheduler.view().waiting_total() > 0 {
            engine.iterate();
        }
        for _ in 0..2 * spread {
            engine.step(running / spread);
        }
        engine.limit_memory();
        engine.add(waiting);
        engine
    }

    /// The same without requests, with memory for all of them. At most `entering` may be admitted at once, of a type or
    /// into a segment; or the tokens of their prompts.
    pub(crate) fn empty(case: &str, running: u64, entering: u64) -> Self {
        let case = CASES.into_iter().find(|&known| known == case).expect("a known case");
        let full = case.ends_with("memory full") || case == "adaptive, steps timed";
        let mut settings = json!({
            "policy": case.split(',').next(),
            "kv_blocks": running * (MAX_TOKENS + PROMPT).div_ceil(16) * if case.ends_with("groups") { 3 } else { 1 },
            "max_num_seqs": if full { 2 * running } else { running },
            "token_budget": 2 * running + PROMPT * entering,
            "max_model_len": MAX_TOKENS + PROMPT,
        });
        match case {
            "wait" => {
                let kind = |output: u64| json!({"prompt": PROMPT, "output": output, "rate": 1.0});
                settings["types"] = json!([kind(512), kind(MAX_TOKENS)]);
                settings["thresholds"] = json!([entering, entering]);
            }
            "nested-wait" => {
                let mean = SPREAD.min(running);
                settings["boundaries"] = json!([mean / 4, mean, MAX_TOKENS]);
                settings["thresholds"] = json!([entering, entering, entering]);
            }
            "adaptive, late and tenants" => {
                settings["ttft_target"] = json!(1.0);
                settings["tenant_weights"] = json!([1.0, 2.0]);
            }
            _ if case.ends_with("three groups") => {
                settings["kv_groups"] = json!([
                    {"kind": "full"},
                    {"kind": "sliding_window", "window": 128},
                    {"kind": "sliding_window", "window": 1024},
                ]);
            }
            _ if full => settings["iteration_time"] = json!({"law": "a100"}),
            _ => {}
        }
        let serde_json::Value::Object(settings) = settings else { unreachable!("an object was written") };
        Self {
            scheduler: Scheduler::new(&Config::from_map(settings).expect("valid settings")).expect("a scheduler"),
            case,
            timed: case == "adaptive, steps timed",
            running: Vec::with_capacity(2 * running as usize),
            finished: Vec::with_capacity(running.div_ceil(SPREAD) as usize),
            arrived: 0,
            iterations: 0,
            draw: 0x9E37_79B9_7F4A_7C15,
        }
    }

    /// Lowers the capacity to what the next admission needs by the forecast; where slots are to decide, to half way
    /// between that and what all residents need up to `max_tokens`. Without a forecast, to what they hold.
    fn limit_memory(&mut self) {
        let used = self.scheduler.view().pool().used() as u32;
        if self.case == "vllm, memory full" {
            self.scheduler.set_capacity(used).expect("what is held");
        }
        if !self.case.starts_with("adaptive") {
            return;
        }
        let mut probe = self.clone();
        probe.scheduler.complete(&Report { finished: &self.running[..1], ..Report::default() }).unwrap();
        let scarce = used + self.running.len() as u32 / 8 + 16;
        probe.scheduler.set_capacity(scarce).expect("room for one more");
        probe.add(1);
        probe.iterate();
        // With few running, idle memory costs more than an overflow: nothing is held, and this is the capacity.
        let needs = probe.scheduler.last_plan().hold(0).map_or(16.0 * f64::from(scarce), |hold| hold.needs);
        let most = (self.running.len() as u64 * (MAX_TOKENS + PROMPT)) as f64;
        let full = self.case == "adaptive, memory full" || self.timed;
        let capacity = if full { needs } else { 0.5 * (needs + most) };
        self.scheduler.set_capacity((capacity / 16.0) as u32).expect("a capacity");
    }

    /// One iteration with which `n` requests finish. With one for each `SPREAD` residents this can continue forever.
    pub(crate) fn step(&mut self, n: u64) {
        (0..n).for_each(|_| self.finish_one());
        self.iterate();
        self.add(n);
    }

    /// `n` requests arrive at an idle engine and are admitted.
    pub(crate) fn burst(&mut self, n: u64) {
        self.add(n);
        assert_eq!(self.scheduler.plan(0).chunks().len() as u64, n);
    }

    /// The last `n` that arrived are aborted.
    pub(crate) fn abort_last(&mut self, n: u64) {
        (self.arrived - n..self.arrived).for_each(|id| assert!(self.scheduler.abort(id)));
    }

    /// `n` requests arrive.
    pub(crate) fn add(&mut self, n: u64) {
        for id in self.arrived..self.arrived + n {
            let request = Request {
                id,
                prompt: (PROMPT - id % 64) as u32,
                max_tokens: Some(MAX_TOKENS as u32),
                type_id: match self.case {
                    "wait" => Some((id % 2) as u16),
                    "adaptive, 128 classes" => Some((id % CLASSES) as u16),
                    _ => None,
                },
                tenant: (id % 2) as u16,
                arrival_ns: self.iterations * ITERATION_NS,
                ..Request::default()
            };
            self.scheduler.add(&request).expect("it fits");
        }
        self.arrived += n;
    }

    /// The older of two residents drawn at random ends with the next iteration.
    fn finish_one(&mut self) {
        let mut drawn = || {
            // Xorshift: these draws only decide which request is next.
            self.draw ^= self.draw << 13;
            self.draw ^= self.draw >> 7;
            self.draw ^= self.draw << 17;
            self.draw as usize % self.running.len()
        };
        let (one, other) = (drawn(), drawn());
        let older = if self.running[one] < self.running[other] { one } else { other };
        self.finished.push(self.running.swap_remove(older));
    }

    fn iterate(&mut self) {
        self.iterations += 1;
        let plan = self.scheduler.plan(self.iterations * ITERATION_NS);
        for (_, evicted) in plan.preempted() {
            self.running.retain(|id| id != evicted);
        }
        let entered = plan.chunks().iter().filter(|chunk| chunk.origin != Origin::Resident);
        self.running.extend(entered.map(|chunk| chunk.id));
        let step = self.timed.then(|| {
            // Between 0.95 and 1.05 times what the law says, in an order with a long period.
            let noise = (self.iterations * 7919 % 101) as f64 / 1000.0 - 0.05;
            let ns = IterationTime::A100.nanos(self.scheduler.last_plan().shape()) as f64 * (1.0 + noise);
            StepTime { ns: ns as u64, iteration: None }
        });
        self.scheduler.complete(&Report { finished: &self.finished, step, ..Report::default() }).unwrap();
        self.finished.clear();
    }
}
