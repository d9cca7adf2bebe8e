//! Nested WAIT (arXiv 2504.11320, Algorithm 2): output lengths hidden, a threshold n_k for each segment of stages.
//!
//! When the server is idle, find the largest k such that entry_i ≥ n_i for ALL i ≤ k. Segments 1..k are served: n_i of
//! each entry queue go in, and all members advance one stage. Later segments pause and keep their KV; if there is no
//! such k, the server waits for an arrival. Segment 1 is entered from the queue; the entry queue of segment k is
//! the boundary queue: residents that passed stage l'_{k−1} and did not finish (`boundary_queues.rs`; each segment is a lane).
//! The boundary queue IS the queue for decode iteration l'_{k−1} + 1. Algorithm 2 as printed spends one iteration more at
//! each boundary, between leaving the queue and that decode; `literal_boundaries` does so too, and costs latency only.
//! `work_conserving` turns thresholds into caps: every segment is served in every iteration.

mod boundary_queues;

use self::boundary_queues::Boundaries;
use super::wait::gate::Gate;
use super::{Event, Policy, admission, planned};
use crate::config::{Config, check_thresholds};
use crate::error::Result;
use crate::model::{Request, Slot};
use crate::plan::Plan;
use crate::state::{Tracked, View};

/// State of Nested WAIT: a gate for each segment, and the boundary queues.
#[derive(Clone, Debug)]
pub struct NestedWait {
    gates: Vec<Gate>,
    boundaries: Boundaries,
    /// Members at the boundary behind their lane, in the current plan.
    reached: Vec<Slot>,
    /// By segment, with literal boundaries: how many at the front of its queue have entered, and decode from the next
    /// service on.
    entering: Vec<u32>,
    literal: bool,
    work_conserving: bool,
    max_hold_ns: Option<u64>,
}

impl NestedWait {
    pub(super) fn new(config: &Config) -> Result<Self> {
        let last_stage: Vec<u32>;
        let thresholds: Vec<f64>;
        if let (Some(boundaries), Some(given)) = (&config.boundaries, &config.thresholds) {
            last_stage = boundaries.iter().map(|&l| config.convention.last_stage(l)).collect();
            thresholds = given.clone();
        } else {
            let segments = planned::segments(config, &config.workload()?)?;
            last_stage = segments.as_slice().iter().map(|s| s.last_stage).collect();
            thresholds = config.thresholds.clone().map_or_else(|| planned::nested(config, &segments), Ok)?;
        }
        check_thresholds(&thresholds, last_stage.len(), "segment")?;
        let mut first = 0;
        let gate = |(&last, &n): (&u32, &f64)| {
            let stages = last + 1 - first;
            first = last + 1;
            Gate::new(n, stages)
        };
        Ok(Self {
            gates: last_stage.iter().zip(&thresholds).map(gate).collect(),
            reached: Vec::new(),
            entering: vec![0; last_stage.len()],
            literal: config.literal_boundaries,
            boundaries: Boundaries::new(last_stage),
            work_conserving: config.work_conserving,
            max_hold_ns: config.max_hold_ns(),
        })
    }

    /// When a hold that began at `since_ns` reaches its limit, ns.
    fn deadline(&self, since_ns: Option<u64>) -> Option<u64> {
        Some(since_ns?.saturating_add(self.max_hold_ns?))
    }

    /// Opens the gates of the segments to be served, and returns their number.
    fn begin(&mut self, view: &View, plan: &mut Plan, conserving: bool) -> usize {
        let segments = self.gates.len();
        let (mut served, mut nested) = (0, true);
        for k in 0..segments {
            let mut inside = view.lanes()[k].len() - self.boundaries.reached(k);
            let (waiting, since_ns) = if k == 0 {
                inside += view.prefilling().len() as u32;
                let head = admission::first_from(view, plan, view.head(0));
                (view.waiting_total(), head.map(|slot| view.request(slot).arrival_ns))
            } else {
                let entering = self.entering[k].min(self.boundaries.waiting(k));
                self.entering[k] = entering;
                (self.boundaries.waiting(k) - entering, self.boundaries.waiting_since_ns(k))
            };
            self.gates[k].begin(waiting, inside);
            nested &= self.gates[k].open;
            let deadline = self.deadline(since_ns);
            if nested || conserving || deadline.is_some_and(|ns| ns <= view.now_ns()) {
                served = k + 1;
            } else if let Some(ns) = deadline {
                plan.wake_at(ns);
            }
        }
        for (k, gate) in self.gates.iter_mut().enumerate() {
            gate.open = k < served;
        }
        if served == 0 {
            let hold = self.gates[0].hold(view.waiting_total());
            for queue in admission::preempted_first(view) {
                plan.hold_queue(queue, hold);
            }
        }
        served
    }

    /// Admits requests from the boundary queue into segment `k`.
    fn advance(&mut self, view: &View, plan: &mut Plan, k: usize) {
        for _ in 0..std::mem::take(&mut self.entering[k]) {
            self.resume(view, plan, k);
        }
        while self.boundaries.waiting(k) > self.entering[k] {
            let since_ns = self.boundaries.waiting_since_ns(k);
            let overdue = self.deadline(since_ns).is_some_and(|ns| ns <= view.now_ns());
            if !(self.gates[k].admits() || overdue) {
                return;
            }
            self.gates[k].enter();
            if self.literal {
                self.entering[k] += 1;
            } else {
                self.resume(view, plan, k);
            }
        }
    }

    /// The first in the queue before segment `k` decodes again.
    fn resume(&mut self, view: &View, plan: &mut Plan, k: usize) {
        if let Some(slot) = self.boundaries.take(view, k) {
            plan.unpark(view, slot, k);
        }
    }

    /// Members of the served segments advance, and segments after the first admit what waits before them.
    fn serve(&mut self, view: &View, plan: &mut Plan, served: usize) {
        for k in 0..served {
            if !plan.runs(k) {
                plan.decode(view, k);
                if k > 0 {
                    self.advance(view, plan, k);
                }
            }
        }
        plan.make_room(view);
        if served > 0 {
            plan.continue_prefills(view);
        }
    }

    /// Admits waiting requests to the first segment, the preempted before all others.
    fn admit(&mut self, view: &View, plan: &mut Plan) {
        admission::in_order(view, plan, admission::preempted_first(view), |plan, slot| {
            let deadline = self.deadline(Some(view.request(slot).arrival_ns));
            let overdue = deadline.is_some_and(|ns| ns <= view.now_ns());
            if !(self.gates[0].admits() || overdue) {
                return Err(self.gates[0].hold(0));
            }
            plan.seat(view)?;
            plan.fits(view, slot, 0)?;
            self.gates[0].enter();
            plan.admit(view, slot, plan.tokens_left());
            Ok(())
        });
    }

    /// For how many services without a batch gate `k` stays open while the gates before it stay open for `open`: until
    /// a request is due and none waits; it then closes, and all gates behind it.
    fn open_for(&self, k: usize, open: f64) -> f64 {
        let waits = k == 0 || self.boundaries.waiting(k) > self.entering[k];
        if waits { open } else { open.min(self.gates[k].services_until_due()) }
    }

    /// Services without a batch take no time: they pass, at every gate that stays open, until one admits a request.
    fn pass_idle_services(&mut self, view: &View, plan: &mut Plan) {
        let (mut least, mut open) = (self.gates[0].services_until_due(), f64::INFINITY);
        for k in 1..self.gates.len() {
            let due = self.gates[k].services_until_due();
            if self.boundaries.waiting(k) > self.entering[k] && due <= open {
                least = least.min(due);
            }
            open = self.open_for(k, open);
        }
        open = f64::INFINITY;
        for k in 0..self.gates.len() {
            open = self.open_for(k, open);
            self.gates[k].pass(least.min(open));
        }
        let served = self.begin(view, plan, false);
        (1..served).for_each(|k| self.advance(view, plan, k));
        plan.make_room(view);
        if plan.preempted().is_empty() {
            self.admit(view, plan);
        }
    }

    /// Nothing would run though the first segment is served: credit accrues until the next request may enter; and if
    /// paused requests hold the memory that it needs, they continue, or nothing ever will.
    fn unblock(&mut self, view: &View, plan: &mut Plan, conserving: bool) {
        let next_in = |queue| admission::first_from(view, plan, view.head(queue));
        let next = next_in(view.queues()).or_else(|| next_in(0));
        if let Some(slot) = next.filter(|&slot| plan.seat(view).and_then(|()| plan.fits(view, slot, 0)).is_ok()) {
            if !conserving {
                self.pass_idle_services(view, plan);
                if !plan.is_idle() || !plan.preempted().is_empty() {
                    return;
                }
            }
            self.gates[0].enter();
            plan.admit(view, slot, plan.tokens_left());
            return;
        }
        if view.residents() == 0 || (next.is_none() && !conserving) {
            return;
        }
        self.gates.iter_mut().for_each(|gate| gate.open = true);
        self.serve(view, plan, self.gates.len());
        if plan.is_empty() && plan.preempted().is_empty() {
            // All residents wait at boundaries: the one nearest to its end continues.
            if let Some(k) = (1..self.gates.len()).rev().find(|&k| self.boundaries.waiting(k) > 0) {
                self.entering[k] = self.entering[k].saturating_sub(1);
                self.resume(view, plan, k);
                self.gates[k].enter();
                plan.make_room(view);
            }
        }
    }
}

impl Policy for NestedWait {
    fn lanes(&self) -> usize {
        self.gates.len()
    }

    fn classify(&self, _request: &Request) -> u16 {
        // Lengths are hidden, and so are types.
        0
    }

    fn lane(&self, _request: &Tracked, stage: u32) -> usize {
        self.boundaries.lane(stage)
    }

    fn thresholds(&self) -> Vec<f64> {
        self.gates.iter().map(Gate::threshold).collect()
    }

    fn observe(&mut self, view: &View, slot: Slot, event: Event) {
        match event {
            Event::Joined => self.boundaries.joined(view, slot),
            Event::Preempted | Event::Refused | Event::Finished | Event::Aborted => self.boundaries.left(slot),
            Event::Arrived | Event::Admitted => {}
        }
    }

    fn plan(&mut self, view: &View, plan: &mut Plan) {
        let conserving = self.work_conserving || view.draining();
        self.boundaries.collect(view, &mut self.reached);
        let served = self.begin(view, plan, conserving);
        self.reached.iter().for_each(|&slot| plan.park(view, slot));
        self.serve(view, plan, served);
        if served > 0 && plan.preempted().is_empty() {
            self.admit(view, plan);
            if plan.is_idle() {
                self.unblock(view, plan, conserving);
            }
        }
        if !plan.is_empty() {
            self.gates.iter_mut().for_each(Gate::settle);
        }
    }
}
