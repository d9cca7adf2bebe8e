//! WAIT with its extensions: real thresholds accrue as credit, a type's residents are capped, preempted requests come
//! back ungated, prompts are reserved whole, nothing is held while the engine would idle with the gates open.

use std::collections::VecDeque;

use super::{Engine, Request, Sizes, Step};

#[derive(Clone, Debug)]
pub struct Gate {
    pub threshold: f64,
    /// Most residents of the type.
    pub cap: usize,
    pub credit: f64,
}

#[derive(Clone, Debug)]
pub struct Wait {
    pub sizes: Sizes,
    pub gates: Vec<Gate>,
    pub open: bool,
    pub max_hold_ns: Option<u64>,
    pub wake_ns: Option<u64>,
    pub running: Vec<Request>,
    pub resuming: VecDeque<Request>,
    pub lines: Vec<VecDeque<Request>>,
}

impl Wait {
    /// `types`: the threshold and the number of iterations of each.
    pub fn new(sizes: Sizes, types: &[(f64, u32)], open: bool, max_hold_ns: Option<u64>) -> Self {
        let gate = |&(threshold, iterations): &(f64, u32)| Gate {
            threshold,
            cap: (threshold * f64::from(iterations)).ceil().max(1.0) as usize,
            credit: 0.0,
        };
        Self {
            sizes,
            gates: types.iter().map(gate).collect(),
            open,
            max_hold_ns,
            wake_ns: None,
            running: Vec::new(),
            resuming: VecDeque::new(),
            lines: vec![VecDeque::new(); types.len()],
        }
    }

    fn overdue(&self, request: &Request, now_ns: u64) -> bool {
        self.max_hold_ns.is_some_and(|limit| now_ns - request.arrival_ns >= limit)
    }

    fn evict_last(&mut self, step: &mut Step) -> Option<u64> {
        let last = self.running.pop()?;
        let id = last.id;
        step.preempted.push(id);
        self.resuming.push_front(self.sizes.evict(last));
        Some(id)
    }

    /// The residents of the types served advance: all decodes, then prefills in the order of their admission.
    fn advance(&mut self, served: &[bool], step: &mut Step) {
        let sizes = self.sizes;
        loop {
            let decoding = self.running.iter().filter(|request| request.decodes && served[request.kind]);
            let needed: i64 = decoding.map(|r| i64::from(sizes.blocks_for(r.computed + 1) - r.held)).sum();
            if needed <= sizes.free(&self.running) || self.evict_last(step).is_none() {
                break;
            }
        }
        for request in self.running.iter_mut().filter(|request| request.decodes && served[request.kind]) {
            request.held = sizes.blocks_for(request.computed + 1);
            step.compute(request, 1);
        }
        let decoded: Vec<u64> = step.decodes.iter().map(|&(id, _)| id).collect();
        let mut at = 0;
        while at < self.running.len() {
            let request = &self.running[at];
            let rest = sizes.budget - step.tokens();
            let tokens = rest.min(request.target() - request.computed);
            if request.decodes || decoded.contains(&request.id) || !served[request.kind] || tokens == 0 {
                at += 1;
                continue;
            }
            let held = request.held.max(sizes.blocks_for(request.computed + tokens));
            if i64::from(held - request.held) <= sizes.free(&self.running) {
                self.running[at].held = held;
                step.compute(&mut self.running[at], tokens);
                at += 1;
            } else {
                self.evict_last(step);
            }
        }
    }

    fn has_room(&self, request: &Request, step: &Step) -> bool {
        self.running.len() < self.sizes.seats
            && step.tokens() < self.sizes.budget
            && i64::from(self.sizes.blocks_for(request.target())) <= self.sizes.free(&self.running)
    }

    fn enter(&mut self, mut request: Request, step: &mut Step) {
        let tokens = (self.sizes.budget - step.tokens()).min(request.target());
        request.held = self.sizes.blocks_for(request.target());
        if request.preempted { &mut step.resumed } else { &mut step.admitted }.push(request.id);
        step.compute(&mut request, tokens);
        self.running.push(request);
    }

    fn admit(&mut self, j: usize, now_ns: u64, step: &mut Step) {
        let gate = &mut self.gates[j];
        gate.credit = (gate.credit + gate.threshold).min(gate.threshold.ceil().max(1.0));
        while let Some(request) = self.lines[j].front() {
            let residents = self.running.iter().filter(|request| request.kind == j).count();
            let gate = &self.gates[j];
            let share = gate.credit >= 1.0 - 1e-9 && residents < gate.cap;
            if !(self.overdue(request, now_ns) || share) || !self.has_room(request, step) {
                break;
            }
            let request = self.lines[j].pop_front().expect("it was looked at");
            self.gates[j].credit = (self.gates[j].credit - 1.0).max(0.0);
            self.enter(request, step);
        }
    }
}

impl Engine for Wait {
    fn add(&mut self, request: Request) {
        self.lines[request.kind].push_back(request);
    }

    fn drain(&mut self) {
        self.open = true;
    }

    fn step(&mut self, now_ns: u64) -> Step {
        let mut step = Step::default();
        let idle = self.running.is_empty();
        let mut served: Vec<bool> = (0..self.gates.len())
            .map(|j| {
                let overdue = self.lines[j].front().is_some_and(|head| self.overdue(head, now_ns));
                self.open || overdue || self.lines[j].len() as f64 >= self.gates[j].threshold
            })
            .collect();
        let any = served.contains(&true);
        let held = (0..self.gates.len()).filter(|&j| !served[j]).filter_map(|j| self.lines[j].front());
        self.wake_ns = held.filter_map(|head| Some(head.arrival_ns + self.max_hold_ns?)).min();
        self.advance(&served, &mut step);
        if step.preempted.is_empty() {
            while self.resuming.front().is_some_and(|request| self.has_room(request, &step)) {
                let request = self.resuming.pop_front().expect("it was looked at");
                self.enter(request, &mut step);
            }
            if self.resuming.is_empty() {
                for j in (0..self.gates.len()).filter(|&j| served[j]) {
                    self.admit(j, now_ns, &mut step);
                }
            }
        }
        if step.tokens() == 0 && !idle && any {
            served.fill(true);
            self.advance(&served, &mut step);
        }
        if step.tokens() == 0 && idle && self.open {
            let heads = (0..self.lines.len()).filter_map(|j| self.lines[j].front().map(|r| (r.arrival_ns, r.id, j)));
            if let Some((.., j)) = heads.min().filter(|&(.., j)| self.has_room(&self.lines[j][0], &step)) {
                let request = self.lines[j].pop_front().expect("it is the oldest");
                self.enter(request, &mut step);
            }
        }
        step.finish(&mut self.running);
        step
    }

    fn wake_ns(&self) -> Option<u64> {
        self.wake_ns
    }

    fn running(&self) -> &[Request] {
        &self.running
    }

    fn waiting(&self) -> usize {
        self.resuming.len() + self.lines.iter().map(VecDeque::len).sum::<usize>()
    }
}
