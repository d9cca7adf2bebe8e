//! vLLM V1's rule as published: running requests first in the order of their admission, out of blocks the last running
//! one is preempted, admission first come first served only where nothing was preempted, with the whole prompt checked
//! against the free blocks less the watermark, chunks mixed under one budget, none longer than the threshold unless the
//! request is the only one.

use std::collections::VecDeque;

use super::{Engine, Request, Sizes, Step};

#[derive(Clone, Debug)]
pub struct V1 {
    pub sizes: Sizes,
    pub watermark_blocks: u32,
    pub threshold: Option<u32>,
    pub running: Vec<Request>,
    pub waiting: VecDeque<Request>,
}

impl V1 {
    pub fn new(sizes: Sizes, watermark_blocks: u32, threshold: Option<u32>) -> Self {
        Self { sizes, watermark_blocks, threshold, running: Vec::new(), waiting: VecDeque::new() }
    }
}

impl Engine for V1 {
    fn add(&mut self, request: Request) {
        self.waiting.push_back(request);
    }

    fn step(&mut self, _now_ns: u64) -> Step {
        let (sizes, mut step) = (self.sizes, Step::default());
        let mut budget = sizes.budget;
        let alone = self.running.len() + self.waiting.len() == 1;
        let chunk = self.threshold.filter(|_| !alone).unwrap_or(u32::MAX);
        let mut at = 0;
        while at < self.running.len() {
            let request = &self.running[at];
            let tokens = budget.min(chunk).min(request.target() - request.computed);
            let needed = sizes.blocks_for(request.computed + tokens).saturating_sub(request.held);
            if i64::from(needed) > sizes.free(&self.running) {
                // Try again without the last one; it may be this request itself.
                let last = self.running.pop().expect("somebody runs");
                step.preempted.push(last.id);
                self.waiting.push_front(sizes.evict(last));
                continue;
            }
            if tokens > 0 {
                budget -= tokens;
                self.running[at].held += needed;
                step.compute(&mut self.running[at], tokens);
            }
            at += 1;
        }
        while step.preempted.is_empty() && budget > 0 && self.running.len() < sizes.seats {
            let Some(request) = self.waiting.front() else { break };
            let spare = if self.running.is_empty() { 0 } else { self.watermark_blocks };
            if i64::from(sizes.blocks_for(request.target()) + spare) > sizes.free(&self.running) {
                break;
            }
            let mut request = self.waiting.pop_front().expect("it was looked at");
            let tokens = budget.min(chunk).min(request.target());
            budget -= tokens;
            request.held = sizes.blocks_for(tokens);
            if request.preempted { &mut step.resumed } else { &mut step.admitted }.push(request.id);
            step.compute(&mut request, tokens);
            self.running.push(request);
        }
        step.finish(&mut self.running);
        step
    }

    fn running(&self) -> &[Request] {
        &self.running
    }

    fn waiting(&self) -> usize {
        self.waiting.len()
    }
}
