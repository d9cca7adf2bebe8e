//! WAIT with its extensions: real thresholds accrue as credit, a type's residents are capped, preempted requests come
//! back first, prompts are reserved whole, the oldest enters first, nothing is held while the engine would idle.

use std::collections::VecDeque;

use super::{Engine, Request, Sizes, Step};

#[derive(Clone, Debug)]
pub struct Gate {
    pub threshold: f64,
    /// Most residents of the type.
    pub cap: usize,
    pub credit: f64,
    /// In the current step: whether the type is served, how many may enter, how many have entered.
    served: bool,
    share: usize,
    entered: u32,
}

impl Gate {
    fn due(&self) -> usize {
        (self.credit + self.threshold + 1e-9).floor().min((self.threshold - 1e-9).ceil()) as usize
    }
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
    pub queues: Vec<VecDeque<Request>>,
}

impl Wait {
    /// `types`: the threshold and the number of iterations of each.
    pub fn new(sizes: Sizes, types: &[(f64, u32)], open: bool, max_hold_ns: Option<u64>) -> Self {
        let gate = |&(threshold, iterations): &(f64, u32)| Gate {
            threshold,
            cap: (threshold * f64::from(iterations) - 1e-9).ceil().max(1.0) as usize,
            credit: 0.0,
            served: false,
            share: 0,
            entered: 0,
        };
        Self {
            sizes,
            gates: types.iter().map(gate).collect(),
            open,
            max_hold_ns,
            wake_ns: None,
            running: Vec::new(),
            resuming: VecDeque::new(),
            queues: vec![VecDeque::new(); types.len()],
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
    fn advance(&mut self, step: &mut Step) {
        let sizes = self.sizes;
        let served: Vec<bool> = self.gates.iter().map(|gate| gate.served).collect();
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
        let gate = &mut self.gates[request.kind];
        if !request.preempted {
            gate.share = gate.share.saturating_sub(1);
            gate.entered += 1;
        }
        self.running.push(request);
    }

    /// Which types are served, and how many of their requests may enter.
    fn open_gates(&mut self, now_ns: u64) {
        for j in 0..self.gates.len() {
            let overdue = self.queues[j].front().is_some_and(|head| self.overdue(head, now_ns));
            let inside = self.running.iter().filter(|request| request.kind == j).count();
            let (open, gate) = (self.open, &mut self.gates[j]);
            gate.served = open || overdue || self.queues[j].len() >= gate.due();
            gate.share = gate.due().min(gate.cap.saturating_sub(inside));
            gate.entered = 0;
        }
    }

    /// The type whose first request is the oldest, among the served; with `share`, among those that have any.
    fn oldest(&self, now_ns: u64, share: bool) -> Option<usize> {
        let heads = (0..self.queues.len()).filter_map(|j| Some((self.queues[j].front()?, j)));
        let lets = |request, j: usize| !share || self.gates[j].share > 0 || self.overdue(request, now_ns);
        let served = heads.filter(|&(request, j)| self.gates[j].served && lets(request, j));
        served.min_by_key(|(request, _)| (request.arrival_ns, request.id)).map(|(_, j)| j)
    }

    fn admit(&mut self, now_ns: u64, step: &mut Step) {
        while self.resuming.front().is_some_and(|request| self.has_room(request, step)) {
            let request = self.resuming.pop_front().expect("it is the head");
            self.enter(request, step);
        }
        if !self.resuming.is_empty() {
            return;
        }
        while let Some(j) = self.oldest(now_ns, true).filter(|&j| self.has_room(&self.queues[j][0], step)) {
            let request = self.queues[j].pop_front().expect("it is the head");
            self.enter(request, step);
        }
    }

    /// Nothing runs though a served type has requests, or a preempted one waits.
    fn unblock(&mut self, now_ns: u64, idle: bool, step: &mut Step) {
        let oldest = self.oldest(now_ns, false);
        let turn = self.resuming.is_empty() || idle;
        if let Some(j) = oldest.filter(|&j| turn && self.has_room(&self.queues[j][0], step)) {
            let request = self.queues[j].pop_front().expect("it is the oldest");
            self.enter(request, step);
        } else if !idle && (oldest.is_some() || !self.resuming.is_empty()) {
            self.gates.iter_mut().for_each(|gate| gate.served = true);
            self.advance(step);
        }
    }
}

impl Engine for Wait {
    fn add(&mut self, request: Request) {
        self.queues[request.kind].push_back(request);
    }

    fn drain(&mut self) {
        self.open = true;
    }

    fn step(&mut self, now_ns: u64) -> Step {
        let mut step = Step::default();
        let idle = self.running.is_empty();
        self.open_gates(now_ns);
        let held = self.gates.iter().zip(&self.queues).filter(|(gate, _)| !gate.served).filter_map(|(_, l)| l.front());
        self.wake_ns = held.filter_map(|head| Some(head.arrival_ns + self.max_hold_ns?)).min();
        self.advance(&mut step);
        if step.preempted.is_empty() {
            self.admit(now_ns, &mut step);
            if step.tokens() == 0 {
                self.unblock(now_ns, idle, &mut step);
            }
        }
        if step.tokens() > 0 {
            for gate in self.gates.iter_mut().filter(|gate| gate.served) {
                let most = (gate.threshold - 1e-9).ceil() + 1.0;
                gate.credit = ((gate.credit + gate.threshold).min(most) - f64::from(gate.entered)).max(0.0);
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
        self.resuming.len() + self.queues.iter().map(VecDeque::len).sum::<usize>()
    }
}
