//! WAIT (arXiv 2504.11320, Algorithm 1): output lengths known, a threshold n_j for each type.
//!
//! When the server is idle, J = {j : waiting_j ≥ n_j}. Every type of J is served: up to n_j of its waiting requests
//! enter, and all of its residents advance one stage. Types outside J pause and keep their KV; if J is empty, the
//! server waits for an arrival. Where n_j is not an integer it accrues as credit at each service of the type, and the
//! whole part of the credit enters (`paced` where n_j < 1); residents of a type are then capped by n_j · l'_j.
//! `work_conserving` turns thresholds into caps: every type is served in every iteration, an idle GPU admits the head.

use super::Policy;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::plan::{Hold, HoldReason, Plan};
use crate::request::{Request, Slot, Tracked};
use crate::view::View;
use crate::workload::Workload;

/// State of WAIT: thresholds and the credit accrued towards whole admissions.
#[derive(Clone, Debug)]
pub struct Wait {
    workload: Workload,
    gates: Vec<Gate>,
    work_conserving: bool,
    max_hold_ns: Option<u64>,
}

#[derive(Clone, Debug)]
struct Gate {
    threshold: f64,
    /// Threshold share accrued and not yet used.
    credit: f64,
    /// Most residents of the type: n_j at each of its l'_j stages.
    residents: u32,
    served: bool,
}

impl Wait {
    pub(super) fn new(config: &Config) -> Result<Self> {
        let workload = Workload::new(config.types.clone())
            .map_err(|error| Error::invalid("types", format!("{:?}", config.types), error.to_string()))?;
        let thresholds = match &config.thresholds {
            Some(thresholds) => thresholds.clone(),
            None => largest_thresholds(&workload, config)?,
        };
        let gates = workload.types().iter().zip(thresholds).map(|(kind, threshold)| Gate {
            threshold,
            credit: 0.0,
            residents: libm::ceil(threshold * (f64::from(config.convention.last_stage(kind.output)) + 1.0)).max(1.0)
                as u32,
            served: false,
        });
        Ok(Self {
            gates: gates.collect(),
            workload,
            work_conserving: config.work_conserving,
            max_hold_ns: config.max_hold.map(|seconds| (seconds * 1e9) as u64),
        })
    }

    /// The thresholds in force, requests per service.
    pub fn thresholds(&self) -> impl Iterator<Item = f64> + '_ {
        self.gates.iter().map(|gate| gate.threshold)
    }

    fn overdue(&self, view: &View, slot: Slot) -> bool {
        self.max_hold_ns.is_some_and(|limit| view.now_ns().saturating_sub(view.request(slot).arrival_ns) >= limit)
    }

    /// Residents of type j: its lane, and its prefills.
    fn residents(view: &View, plan: &Plan, j: usize) -> u32 {
        let of_type = |slot: Slot| usize::from(view.request(slot).type_id) == j;
        let prefilling = view.prefilling().iter().filter(|&&slot| of_type(slot)).count();
        let admitted = plan.chunks().iter().filter(|chunk| chunk.start == 0 && of_type(chunk.slot)).count();
        view.lanes()[j].len() + (prefilling + admitted) as u32
    }

    /// Residents of the types in J advance.
    fn serve(&self, view: &View, plan: &mut Plan) {
        for (j, gate) in self.gates.iter().enumerate() {
            if gate.served && !plan.runs(j) {
                plan.decode(view, j);
            }
        }
        plan.make_room(view);
        for &slot in view.prefilling() {
            if self.gates[usize::from(view.request(slot).type_id)].served {
                plan.continue_prefill(view, slot);
            }
        }
    }

    /// Preempted requests are admitted first, ungated: their type has been charged for them.
    fn resume(view: &View, plan: &mut Plan) -> bool {
        for slot in view.iter_resuming() {
            if let Err(hold) = plan.seat(view).and_then(|()| plan.fits(view, slot, 0)) {
                plan.hold_queue(view.queues(), hold);
                return false;
            }
            plan.admit(view, slot, plan.tokens_left(), true);
        }
        true
    }

    fn admit(&mut self, view: &View, plan: &mut Plan, j: usize) {
        let gate = &mut self.gates[j];
        // What earlier services left over never lets more than ⌈n_j⌉ enter at once.
        let carry = (libm::ceil(gate.threshold) + 1.0 - 1e-9 - gate.threshold).min(gate.credit);
        gate.credit = carry + gate.threshold;
        for (residents, slot) in (Self::residents(view, plan, j)..).zip(view.iter_waiting(j)) {
            let overdue = self.overdue(view, slot);
            let gate = &mut self.gates[j];
            let share = if overdue {
                Ok(())
            } else if gate.credit < 1.0 - 1e-9 {
                Err(Hold::new(HoldReason::BelowThreshold, 1.0, gate.credit))
            } else if residents >= gate.residents {
                Err(Hold::new(HoldReason::BelowThreshold, residents + 1, gate.residents))
            } else {
                Ok(())
            };
            if let Err(hold) = share.and_then(|()| plan.seat(view)).and_then(|()| plan.fits(view, slot, 0)) {
                plan.hold_queue(j, hold);
                return;
            }
            plan.admit(view, slot, plan.tokens_left(), true);
            gate.credit = (gate.credit - 1.0).max(0.0);
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
        let output = match request.output {
            crate::LengthHint::Exact(tokens) | crate::LengthHint::Predicted { tokens, .. } => tokens,
            crate::LengthHint::Unknown => request.max_tokens.unwrap_or(u32::MAX),
        };
        request.type_id.unwrap_or_else(|| self.workload.classify(request.prompt, output) as u16)
    }

    fn lane(&self, request: &Tracked, _stage: u32) -> usize {
        usize::from(request.type_id)
    }

    fn plan(&mut self, view: &View, plan: &mut Plan) {
        let open = self.work_conserving || view.draining();
        for j in 0..self.gates.len() {
            let overdue = view.head(j).is_some_and(|slot| self.overdue(view, slot));
            let gate = &mut self.gates[j];
            gate.served = open || overdue || f64::from(view.waiting(j)) >= gate.threshold;
            if !gate.served {
                plan.hold_queue(j, Hold::new(HoldReason::BelowThreshold, gate.threshold, view.waiting(j)));
                if let (Some(head), Some(limit)) = (view.head(j), self.max_hold_ns) {
                    plan.wake_at(view.request(head).arrival_ns.saturating_add(limit));
                }
            }
        }
        self.serve(view, plan);
        if plan.preempted().is_empty() && Self::resume(view, plan) {
            for j in 0..self.gates.len() {
                if self.gates[j].served {
                    self.admit(view, plan, j);
                }
            }
        }
        if plan.is_empty() && view.residents() > 0 && self.gates.iter().any(|gate| gate.served) {
            // Paused requests hold the memory that J needs: they go on, or nobody ever will.
            self.gates.iter_mut().for_each(|gate| gate.served = true);
            self.serve(view, plan);
        }
        if plan.is_empty() && open && view.residents() == 0 {
            // The GPU would idle: the oldest head that fits goes, whatever its credit.
            let heads = (0..view.queues()).filter_map(|j| view.head(j));
            let oldest = heads.min_by_key(|&slot| (view.request(slot).arrival_ns, view.request(slot).id));
            if let Some(slot) = oldest.filter(|&slot| plan.fits(view, slot, 0).is_ok()) {
                plan.admit(view, slot, plan.tokens_left(), true);
            }
        }
    }
}

/// n_j = λ_j Δ' with the largest Δ' that the memory allows: C / Σ λ_j A_j, where A_j counts whole blocks over the l'_j
/// iterations of a request (its prefill emits the first token).
fn largest_thresholds(workload: &Workload, config: &Config) -> Result<Vec<f64>> {
    let footprint = |kind: &crate::workload::RequestType| -> f64 {
        (0..=config.convention.last_stage(kind.output))
            .map(|s| f64::from((kind.prompt + s).div_ceil(config.block_size)))
            .sum()
    };
    let load: f64 = workload.types().iter().map(|kind| kind.rate * footprint(kind)).sum();
    for (j, kind) in workload.types().iter().enumerate() {
        if kind.rate <= 0.0 {
            let rule = "must be above 0 when thresholds are planned from the rates";
            return Err(Error::invalid(format!("types[{j}].rate"), kind.rate, rule));
        }
    }
    // Whole requests enter where the threshold asks for fractions: a type may be one request ahead of its share. Types
    // are ahead independently of each other, so their excesses add up like standard deviations.
    let ahead =
        |kind: &crate::workload::RequestType| f64::from((kind.prompt + kind.output).div_ceil(config.block_size));
    let excess = libm::sqrt(workload.types().iter().map(|kind| ahead(kind) * ahead(kind)).sum());
    let service = (f64::from(config.kv_blocks) - excess).max(0.5 * f64::from(config.kv_blocks)) / load;
    Ok(workload.types().iter().map(|kind| kind.rate * service).collect())
}
