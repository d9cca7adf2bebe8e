//! Small schedulers to drive by hand.
#![allow(dead_code)] // no test file uses all of it

pub(crate) mod adaptive;

use serde_json::json;
use wait_core::{Config, Phase, Request, RequestId, Scheduler};

pub(crate) fn scheduler(settings: &serde_json::Value) -> Scheduler {
    Scheduler::new(&Config::from_map(settings.as_object().unwrap().clone()).unwrap()).unwrap()
}

/// Ten blocks of four tokens.
pub(crate) fn small() -> Scheduler {
    scheduler(&json!({"kv_blocks": 10, "block_size": 4, "max_num_seqs": 8, "token_budget": 64}))
}

pub(crate) fn request(id: RequestId, prompt: u32) -> Request {
    Request { id, prompt, ..Request::default() }
}

pub(crate) fn with(scheduler: &mut Scheduler, requests: &[(RequestId, u32)]) {
    for &(id, prompt) in requests {
        scheduler.add(&request(id, prompt)).unwrap();
    }
}

pub(crate) fn chunks(scheduler: &mut Scheduler) -> Vec<(RequestId, u32)> {
    scheduler.plan(0).chunks().iter().map(|chunk| (chunk.id, chunk.tokens)).collect()
}

pub(crate) fn kv(scheduler: &Scheduler, id: RequestId) -> u32 {
    scheduler.view().kv(scheduler.view().slot(id).unwrap())
}

pub(crate) fn stage(scheduler: &Scheduler, id: RequestId) -> u32 {
    scheduler.view().stage(scheduler.view().slot(id).unwrap())
}

pub(crate) fn phase(scheduler: &Scheduler, id: RequestId) -> Phase {
    scheduler.view().request(scheduler.view().slot(id).unwrap()).phase
}
