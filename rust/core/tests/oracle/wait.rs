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
    pub open: bool,
    /// Who may still enter, and who has, in this iteration.
    pub share: usize,
    pub entered: usize,
}

impl Gate {
    fn most(&self) -> f64 {
        (self.threshold - EPSILON).ceil()
    }

    fn due(&self) -> usize {
        (self.credit + self.threshold + EPSILON).floor().min(self.most()) as usize
    }
}

/// Rounding errors are not fractions.
const EPSILON: f64 = 1e-9;

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
            cap: (threshold * f64::from(iterations) - EPSILON).ceil().max(1.0) as usize,
            credit: 0.0,
            open: false,
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
    fn advance(&mut self, step: &mut Step) {
        let sizes = self.sizes;
        let served: Vec<bool> = self.gates.iter().map(|gate| gate.open).collect();
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

    /// The type whose head is the oldest, of those that may go.
    fn oldest(&self, may: impl Fn(usize, &Request) -> bool) -> Option<usize> {
        let heads = (0..self.lines.len()).filter_map(|j| Some((j, self.lines[j].front()?)));
        let open = heads.filter(|&(j, head)| self.gates[j].open && may(j, head));
        open.map(|(j, head)| (head.arrival_ns, head.id, j)).min().map(|(.., j)| j)
    }

    fn enter_from(&mut self, j: usize, step: &mut Step) {
        let request = self.lines[j].pop_front().expect("somebody waits");
        self.gates[j].share = self.gates[j].share.saturating_sub(1);
        self.gates[j].entered += 1;
        self.enter(request, step);
    }

    fn admit(&mut self, now_ns: u64, step: &mut Step) {
        let mut at = 0;
        while at < self.resuming.len() {
            let j = self.resuming[at].kind;
            if !self.gates[j].open || self.gates[j].share == 0 {
                at += 1;
                continue;
            }
            if !self.has_room(&self.resuming[at], step) {
                return;
            }
            let request = self.resuming.remove(at).expect("it was looked at");
            self.gates[j].share -= 1;
            self.gates[j].entered += 1;
            self.enter(request, step);
        }
        while let Some(j) = self.oldest(|j, head| self.gates[j].share > 0 || self.overdue(head, now_ns)) {
            if !self.has_room(&self.lines[j][0], step) {
                return;
            }
            self.enter_from(j, step);
        }
    }

    /// Nothing would run: the first that is served at all goes, or else those go on who hold its memory.
    fn unblock(&mut self, step: &mut Step) {
        if let Some(at) = self.resuming.iter().position(|request| self.gates[request.kind].open) {
            if self.has_room(&self.resuming[at], step) {
                let request = self.resuming.remove(at).expect("it was looked at");
                return self.enter(request, step);
            }
        } else if let Some(j) = self.oldest(|_, _| true) {
            if self.has_room(&self.lines[j][0], step) {
                return self.enter_from(j, step);
            }
        } else {
            return;
        }
        if !self.running.is_empty() {
            for gate in &mut self.gates {
                gate.open = true;
            }
            self.advance(step);
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
        self.wake_ns = None;
        for j in 0..self.gates.len() {
            let head = self.lines[j].front();
            let waiting = self.lines[j].len() + self.resuming.iter().filter(|request| request.kind == j).count();
            let inside = self.running.iter().filter(|request| request.kind == j).count();
            let overdue = head.is_some_and(|head| self.overdue(head, now_ns));
            let due = self.gates[j].due();
            let gate = Gate {
                open: waiting >= due || self.open || overdue,
                share: due.min(self.gates[j].cap.saturating_sub(inside)),
                entered: 0,
                ..self.gates[j].clone()
            };
            if let (false, Some(head), Some(limit)) = (gate.open, head, self.max_hold_ns) {
                let wake = head.arrival_ns + limit;
                self.wake_ns = Some(self.wake_ns.map_or(wake, |other| other.min(wake)));
            }
            self.gates[j] = gate;
        }
        self.advance(&mut step);
        if step.preempted.is_empty() {
            self.admit(now_ns, &mut step);
            if step.tokens() == 0 {
                self.unblock(&mut step);
            }
        }
        // A step that computes something is a service of the open gates.
        for gate in self.gates.iter_mut().filter(|gate| gate.open && step.tokens() > 0) {
            let most = gate.most() + 1.0;
            gate.credit = ((gate.credit + gate.threshold).min(most) - gate.entered as f64).max(0.0);
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
