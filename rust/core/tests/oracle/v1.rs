//! vLLM V1's rule as published: running requests first in the order of their admission, out of blocks the last running
//! one is preempted, admission first come first served only where nothing was preempted, with the whole prompt checked
//! against the free blocks less the watermark, chunks mixed under one budget, none longer than the threshold unless the
//! request is the only one. By priority the order of the queue is (priority, arrival), and the one preempted is the last
//! of the running ones in that order: one that has had its turn gives back its tokens. With a sliding window there are two
//! groups of layers, one with full attention: at its turn a request frees what it will not attend to again.

use std::collections::VecDeque;

use super::{Engine, Request, Sizes, Step};

#[derive(Clone, Debug)]
pub struct V1 {
    pub sizes: Sizes,
    pub watermark_blocks: u32,
    pub threshold: Option<u32>,
    pub window: Option<u32>,
    /// Ids are in the order of arrival.
    pub by_priority: bool,
    pub running: Vec<Request>,
    pub waiting: VecDeque<Request>,
}

impl V1 {
    pub fn new(sizes: Sizes, watermark_blocks: u32) -> Self {
        let (running, waiting) = (Vec::new(), VecDeque::new());
        Self { sizes, watermark_blocks, threshold: None, window: None, by_priority: false, running, waiting }
    }

    /// Blocks for `end` tokens in all groups, without those that nothing computed from `start` on attends to.
    fn held(&self, start: u32, end: u32) -> u32 {
        let all = self.sizes.blocks_for(end);
        let unseen = |window: u32| (start + 1).saturating_sub(window) / self.sizes.block_size;
        all + self.window.map_or(0, |window| all - unseen(window))
    }

    fn sort(&mut self) {
        if self.by_priority {
            self.waiting.make_contiguous().sort_by_key(|request| (request.priority, request.id));
        }
    }

    /// The place of the running request that is preempted next.
    fn victim(&self) -> usize {
        let places = 0..self.running.len();
        let order = |&at: &usize| {
            if self.by_priority { (self.running[at].priority, self.running[at].id) } else { (0, at as u64) }
        };
        places.max_by_key(order).expect("a request runs")
    }

    /// Blocks that a prompt needs at most at any time.
    fn demand(&self, prompt: u32) -> u32 {
        let all = self.sizes.blocks_for(prompt);
        all + self.window.map_or(0, |window| all.min(self.sizes.blocks_for(window - 1 + self.sizes.budget) + 1))
    }
}

impl Engine for V1 {
    fn add(&mut self, request: Request) {
        self.waiting.push_back(request);
        self.sort();
    }

    fn step(&mut self, _now_ns: u64) -> Step {
        let (sizes, mut step) = (self.sizes, Step::default());
        let mut budget = sizes.budget;
        let alone = self.running.len() + self.waiting.len() == 1;
        let chunk = self.threshold.filter(|_| !alone).unwrap_or(u32::MAX);
        let mut at = 0;
        'turns: while at < self.running.len() && budget > 0 {
            let request = &self.running[at];
            let tokens = budget.min(chunk).min(request.target() - request.computed);
            let (start, kept) = (request.computed, self.held(request.computed, request.computed));
            let needed = self.held(start, start + tokens) - kept;
            self.running[at].held = kept;
            while i64::from(needed) > sizes.free(&self.running) {
                // Try again without another; it may be this request itself.
                let victim = self.victim();
                let evicted = self.running.remove(victim);
                step.preempted.push(evicted.id);
                budget += evicted.given;
                self.waiting.push_front(sizes.evict(evicted));
                self.sort();
                if victim == at {
                    break 'turns;
                }
                at -= usize::from(victim < at);
            }
            budget -= tokens;
            self.running[at].held += needed;
            self.running[at].given = tokens;
            at += 1;
        }
        for request in &mut self.running {
            let tokens = std::mem::take(&mut request.given);
            if tokens > 0 {
                step.compute(request, tokens);
            }
        }
        while step.preempted.is_empty() && budget > 0 && self.running.len() < sizes.seats {
            let Some(request) = self.waiting.front() else { break };
            let spare = if self.running.is_empty() { 0 } else { self.watermark_blocks };
            if i64::from(self.demand(request.target()) + spare) > sizes.free(&self.running) {
                break;
            }
            let mut request = self.waiting.pop_front().expect("it is the head");
            let tokens = budget.min(chunk).min(request.target());
            budget -= tokens;
            request.held = self.held(0, tokens);
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
