//! An `adaptive` scheduler, and requests of known length.

use serde_json::{Value, json};
use wait_core::{Config, LengthHint, Request, RequestId, Scheduler};

pub(crate) const SECOND: u64 = 1_000_000_000;

pub(crate) fn scheduler(settings: Value) -> Scheduler {
    let Value::Object(mut all) = settings else { unreachable!() };
    all.insert("policy".into(), json!("adaptive"));
    Scheduler::new(&Config::from_map(all).unwrap()).unwrap()
}

pub(crate) fn request(id: RequestId, prompt: u32, output: u32, arrival_s: u64) -> Request {
    Request { id, prompt, output: LengthHint::Exact(output), arrival_ns: arrival_s * SECOND, ..Request::default() }
}

pub(crate) fn admitted(core: &mut Scheduler) -> Vec<RequestId> {
    core.plan(0).chunks().iter().map(|chunk| chunk.id).collect()
}

pub(crate) fn queue(core: &Scheduler) -> Vec<RequestId> {
    let view = core.view();
    view.iter_waiting(0).map(|slot| view.request(slot).id).collect()
}
