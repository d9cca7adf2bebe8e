//! WAIT (arXiv 2504.11320, Algorithm 1): output lengths known, a threshold n_j for each type.
//!
//! When the server is idle, J = {j : waiting_j ≥ n_j}. Every type of J is served: n_j of its waiting requests enter,
//! the oldest first, and all of its residents advance one stage. Types outside J pause and keep their KV; if J is
//! empty, the server waits for an arrival. Fractions of n_j accrue as credit, see `gate.rs`.
//! `work_conserving` turns thresholds into caps: every type is served in every iteration, an idle GPU admits the head.

pub(super) mod gate;

use self::gate::Gate;
use super::{Policy, admission, planned};
use crate::config::Config;
use crate::error::Result;
use crate::model::{LengthHint, Request, Slot, StageConvention, Workload};
use crate::plan::Plan;
use crate::state::{Tracked, View};

/// State of WAIT: a gate for each type.
#[derive(Clone, Debug)]
pub struct Wait {
    workload: Workload,
    convention: StageConvention,
    gates: Vec<Gate>,
    /// By type, in the current plan: residents that prefill, and the next in the queue.
    prefilling: Vec<u32>,
    next: Vec<Option<Slot>>,
    work_conserving: bool,
    max_hold_ns: Option<u64>,
}

impl Wait {
    pub(super) fn new(config: &Config) -> Result<Self> {
        let workload = config.workload()?;
        let thresholds = match &config.thresholds {
            Some(thresholds) => thresholds.clone(),
            None => planned::wait(config, &workload)?,
        };
        let stages = |output| config.convention.last_stage(output) + 1;
        let kinds = workload.types().iter().zip(thresholds);
        let gates: Vec<Gate> = kinds.map(|(kind, n)| Gate::new(n, stages(kind.output))).collect();
        Ok(Self {
            convention: config.convention,
            prefilling: vec![0; gates.len()],
            next: vec![None; gates.len()],
            gates,
            workload,
            work_conserving: config.work_conserving,
            max_hold_ns: config.max_hold_ns(),
        })
    }

    fn overdue(&self, view: &View, slot: Slot) -> bool {
        let age = view.now_ns().saturating_sub(view.request(slot).arrival_ns);
        self.max_hold_ns.is_some_and(|limit| age >= limit)
    }

    /// Decides which types are served.
    fn begin(&mut self, view: &View, plan: &mut Plan, conserving: bool) {
        self.prefilling.fill(0);
        for &slot in view.prefilling() {
            self.prefilling[usize::from(view.request(slot).type_id)] += 1;
        }
        for j in 0..self.gates.len() {
            let head = admission::first_from(view, plan, view.head(j));
            let overdue = head.is_some_and(|slot| self.overdue(view, slot));
            self.next[j] = head;
            let gate = &mut self.gates[j];
            gate.begin(view.waiting(j), view.lanes()[j].len() + self.prefilling[j]);
            gate.open |= conserving || overdue;
            if !gate.open {
                plan.hold_queue(j, gate.hold(view.waiting(j)));
                if let (Some(head), Some(limit)) = (head, self.max_hold_ns) {
                    plan.wake_at(view.request(head).arrival_ns.saturating_add(limit));
                }
            }
        }
    }

    /// Residents of the served types advance.
    fn serve(&self, view: &View, plan: &mut Plan) {
        for (j, gate) in self.gates.iter().enumerate() {
            if gate.open && !plan.runs(j) {
                plan.decode(view, j);
            }
        }
        plan.make_room(view);
        for &slot in view.prefilling() {
            if self.gates[usize::from(view.request(slot).type_id)].open {
                plan.continue_prefill(view, slot);
            }
        }
    }

    /// Admits waiting requests of the served types, the oldest first; before them the preempted, whatever the gates
    /// say: their types have already been charged for them.
    fn admit(&mut self, view: &View, plan: &mut Plan) {
        let all = admission::in_order(view, plan, [view.queues()], |plan, slot| {
            plan.seat(view)?;
            plan.fits(view, slot, 0)?;
            plan.admit(view, slot, plan.tokens_left());
            Ok(())
        });
        if !all {
            return;
        }
        while let Some((j, slot)) = self.oldest(view, |gate, overdue| gate.admits() || overdue) {
            if let Err(hold) = plan.seat(view).and_then(|()| plan.fits(view, slot, 0)) {
                (0..self.gates.len()).filter(|&j| self.gates[j].open).for_each(|j| plan.hold_queue(j, hold));
                return;
            }
            self.next[j] = admission::first_from(view, plan, view.behind(slot));
            self.gates[j].enter();
            plan.admit(view, slot, plan.tokens_left());
        }
        for (j, gate) in self.gates.iter().enumerate() {
            if gate.open && self.next[j].is_some() {
                plan.hold_queue(j, gate.hold(0));
            }
        }
    }

    /// The oldest request next in the queue of a served type whose gate admits it.
    fn oldest(&self, view: &View, lets: impl Fn(&Gate, bool) -> bool) -> Option<(usize, Slot)> {
        let next = self.next.iter().enumerate().filter_map(|(j, slot)| Some((j, (*slot)?)));
        next.filter(|&(j, slot)| self.gates[j].open && lets(&self.gates[j], self.overdue(view, slot)))
            .min_by_key(|&(_, slot)| (view.request(slot).arrival_ns, view.request(slot).id))
    }

    /// Nothing would run though a served type has requests: services without a batch take no time, so credit accrues
    /// until the oldest may enter; and if paused types hold the memory that it needs, they continue; otherwise no
    /// request would ever run again.
    fn unblock(&mut self, view: &View, plan: &mut Plan) {
        let oldest = self.oldest(view, |_, _| true);
        let resumes = admission::first_from(view, plan, view.head(view.queues())).is_some();
        let fits = |slot| !resumes && plan.seat(view).and_then(|()| plan.fits(view, slot, 0)).is_ok();
        if let Some((j, slot)) = oldest.filter(|&(_, slot)| fits(slot)) {
            self.gates[j].enter();
            plan.admit(view, slot, plan.tokens_left());
        } else if view.residents() > 0 && (oldest.is_some() || resumes) {
            self.gates.iter_mut().for_each(|gate| gate.open = true);
            self.serve(view, plan);
        }
    }
}

impl Policy for Wait {
    fn lanes(&self) -> usize {
        self.gates.len()
    }

    fn queues(&self) -> usize {
        self.gates.len()
    }

    fn types(&self) -> Option<usize> {
        Some(self.gates.len())
    }

    fn classify(&self, request: &Request) -> u16 {
        let iterations = match request.output {
            LengthHint::Exact(tokens) | LengthHint::Predicted { tokens, .. } => tokens,
            LengthHint::Unknown => request.max_tokens.unwrap_or(u32::MAX),
        };
        // In the paper's convention a host declares l' + 1 tokens, one for each iteration.
        let output = iterations.saturating_sub(self.convention.last_stage(1)).max(1);
        request.type_id.unwrap_or_else(|| self.workload.classify(request.prompt, output) as u16)
    }

    fn lane(&self, request: &Tracked, _stage: u32) -> usize {
        usize::from(request.type_id)
    }

    fn thresholds(&self) -> Vec<f64> {
        self.gates.iter().map(Gate::threshold).collect()
    }

    fn plan(&mut self, view: &View, plan: &mut Plan) {
        self.begin(view, plan, self.work_conserving || view.draining());
        self.serve(view, plan);
        if plan.preempted().is_empty() {
            self.admit(view, plan);
            if plan.is_idle() {
                self.unblock(view, plan);
            }
        }
        if !plan.is_empty() {
            self.gates.iter_mut().for_each(Gate::settle);
        }
    }
}
