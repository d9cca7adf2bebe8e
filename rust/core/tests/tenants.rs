//! Tenants: the tokens served follow their weights while they wait, and nothing else changes.

use proptest::prelude::*;
use serde_json::{Value, json};
use wait_core::{Config, HoldReason, Origin, Report, Request, RequestId, Scheduler};

const MS: u64 = 1_000_000;
const SEATS: u64 = 8;
const LONGEST: u64 = 40;

fn scheduler(settings: Value) -> Scheduler {
    let Value::Object(mut all) = json!({"policy": "adaptive", "kv_blocks": 1000, "max_num_seqs": SEATS}) else {
        unreachable!()
    };
    let Value::Object(settings) = settings else { unreachable!() };
    all.extend(settings);
    Scheduler::new(&Config::from_map(all).unwrap()).unwrap()
}

/// A host whose requests end after their own output, and what it has served.
struct Host {
    core: Scheduler,
    tenants: usize,
    now_ns: u64,
    next: RequestId,
    /// Output of each request, by id; its tenant is its id modulo the tenants.
    outputs: Vec<u64>,
    prompts: Vec<u64>,
    /// Tokens served to each tenant.
    served: Vec<u64>,
}

impl Host {
    fn new(core: Scheduler, tenants: usize) -> Self {
        Self { core, tenants, now_ns: 0, next: 0, outputs: vec![], prompts: vec![], served: vec![0; tenants] }
    }

    /// Adds a request of each tenant.
    fn add(&mut self, prompt: u64, output: u64) {
        for tenant in 0..self.tenants {
            let request = Request {
                id: self.next,
                prompt: prompt as u32,
                max_tokens: Some(LONGEST as u32),
                tenant: tenant as u16,
                arrival_ns: self.now_ns,
                ..Request::default()
            };
            self.core.add(&request).unwrap();
            self.next += 1;
            self.prompts.push(prompt);
            self.outputs.push(output);
        }
    }

    fn step(&mut self) {
        self.now_ns += 20 * MS;
        self.core.plan(self.now_ns);
        for chunk in self.core.last_plan().chunks() {
            if chunk.origin == Origin::Admitted {
                self.served[chunk.id as usize % self.tenants] += self.prompts[chunk.id as usize];
            }
        }
        let view = self.core.view();
        let mut finished = Vec::new();
        for slot in view.iter_residents() {
            let id = view.request(slot).id;
            self.served[id as usize % self.tenants] += 1;
            if u64::from(view.stage(slot)) >= self.outputs[id as usize] {
                finished.push(id);
            }
        }
        self.core.complete(&Report { finished: &finished, ..Report::default() }).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn served_tokens_follow_the_weights_within_the_bound(
        lengths in prop::collection::vec((1..60u64, 1..=LONGEST), 100..200),
        weights in prop::collection::vec(1..5u32, 2..4),
        target in prop::option::of(Just(0.5)),
    ) {
        let mut host = Host::new(scheduler(json!({"tenant_weights": weights, "ttft_target": target})), weights.len());
        for &(prompt, output) in &lengths {
            host.add(prompt, output);
        }
        // One prompt, and for each resident the longest output, over the weight.
        let bound = |weight: u32| (60 + SEATS * LONGEST) as f64 / f64::from(weight);
        let waits = |host: &Host| {
            let mut waiting = vec![false; host.tenants];
            for queue in 0..=host.core.view().queues() {
                let view = host.core.view();
                view.iter_waiting(queue).for_each(|slot| waiting[view.request(slot).id as usize % host.tenants] = true);
            }
            waiting.iter().all(|&each| each)
        };
        let mut steps = 0;
        while waits(&host) {
            host.step();
            steps += 1;
            let times: Vec<f64> =
                host.served.iter().zip(&weights).map(|(&tokens, &weight)| tokens as f64 / f64::from(weight)).collect();
            for (i, a) in times.iter().enumerate() {
                for (j, b) in times.iter().enumerate() {
                    prop_assert!(a - b <= bound(weights[i]) + bound(weights[j]), "{times:?} after {steps} steps");
                }
            }
        }
        prop_assert!(steps > 20, "all waited for a while");
    }

    #[test]
    fn one_tenant_is_none(lengths in prop::collection::vec((1..60u64, 1..=LONGEST), 1..100), target in any::<bool>()) {
        let target = if target { json!(0.3) } else { Value::Null };
        let mut hosts = [json!([]), json!([2.0])]
            .map(|weights| Host::new(scheduler(json!({"tenant_weights": weights, "ttft_target": target})), 1));
        for &(prompt, output) in &lengths {
            let plans = hosts.each_mut().map(|host| {
                host.add(prompt, output);
                host.add(prompt, output);
                host.step();
                format!("{:?}", host.core.last_plan())
            });
            prop_assert_eq!(&plans[0], &plans[1]);
        }
    }
}

fn request(id: RequestId, tenant: u16) -> Request {
    Request { id, prompt: 10, tenant, ..Request::default() }
}

#[test]
fn what_another_tenant_waits_for_is_said() {
    let mut core = scheduler(json!({"tenant_weights": [1.0, 1.0], "max_num_seqs": 1, "token_budget": 64}));
    (0..4).for_each(|id| core.add(&request(id, 0)).unwrap());
    core.plan(0);
    core.add(&request(10, 1)).unwrap();
    core.plan(MS);
    // Served least, and held for a slot; the other for its share.
    assert_eq!(core.explain(10).unwrap().reason, HoldReason::BatchCap);
    let hold = core.explain(1).unwrap();
    assert_eq!(hold.reason, HoldReason::TenantShare);
    assert!(hold.needs > hold.limit, "{hold:?}");
}

#[test]
fn a_tenant_saves_up_no_more_than_its_share_of_the_memory() {
    let mut core =
        scheduler(json!({"tenant_weights": [1.0, 3.0], "kv_blocks": 10, "max_num_seqs": 1, "token_budget": 64}));
    (0..60).for_each(|id| core.add(&request(id, 0)).unwrap());
    let mut order = Vec::new();
    for step in 0..60 {
        if step == 20 {
            (100..160).for_each(|id| core.add(&request(id, 1)).unwrap());
        }
        core.plan(step * MS);
        let id = core.last_plan().chunks()[0].id;
        order.push(id >= 100);
        core.complete(&Report { finished: &[id], ..Report::default() }).unwrap();
    }
    // Its share of the memory, 120 tokens, is 11 requests; then three of four are its own.
    let since = order.iter().skip(20);
    let first = since.clone().take_while(|&&second| second).count();
    assert!((9..=14).contains(&first), "{order:?}");
    let ahead = since.skip(first).take(24).filter(|&&second| second).count();
    assert!((17..=19).contains(&ahead), "{ahead} of 24: {order:?}");
}

#[test]
fn an_aborted_request_is_not_charged_for_what_it_never_gave() {
    let mut core = scheduler(json!({"tenant_weights": [1.0, 1.0], "max_num_seqs": 2, "token_budget": 64}));
    // Outputs of the first tenant are long on average, then ten of its requests are aborted at once.
    core.add(&request(0, 0)).unwrap();
    (0..500).for_each(|step| _ = core.plan(step * MS));
    core.complete(&Report { finished: &[0], ..Report::default() }).unwrap();
    (1..12).for_each(|id| core.add(&request(id, 0)).unwrap());
    (100..112).for_each(|id| core.add(&request(id, 1)).unwrap());
    let mut admitted = [0; 2];
    for step in 500..520 {
        core.plan(step * MS);
        let chunks: Vec<_> = core.last_plan().chunks().iter().map(|chunk| chunk.id).collect();
        for id in chunks {
            admitted[usize::from(id >= 100)] += 1;
            core.abort(id);
        }
    }
    // The first was served 500 tokens before the second arrived, whose count starts there.
    assert_eq!(admitted[0] + admitted[1], 23);
    assert!(core.view().is_empty());
}

#[test]
fn tenants_are_checked() {
    let mut core = scheduler(json!({"tenant_weights": [1.0, 2.5]}));
    let message = core.add(&request(1, 2)).unwrap_err().to_string();
    assert_eq!(message, "tenant = 2: must be an index of tenant_weights");
    // Where tenants are not distinguished the label means nothing.
    assert!(scheduler(json!({})).add(&request(1, 2)).is_ok());
    for weights in [json!([0.0]), json!([1.0, -1.0]), json!([1e9])] {
        let all = json!({"kv_blocks": 9, "tenant_weights": weights}).as_object().unwrap().clone();
        assert!(Config::from_map(all).unwrap_err().to_string().starts_with("tenant_weights"), "{weights}");
    }
    let all = json!({"kv_blocks": 9, "late": "refuse"}).as_object().unwrap().clone();
    assert!(Config::from_map(all).unwrap_err().to_string().starts_with("late"));
}
