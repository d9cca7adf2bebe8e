//! Tenants: tokens served follow their weights among those that wait.
//!
//! Each tenant has a virtual time: the tokens served to it, prompt and output, over its weight. The next request is
//! that of the tenant whose time is least: start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) by served
//! tokens, as the virtual token counter of Sheng et al. (*Fairness in Serving Large Language Models*, OSDI 2024). A
//! tenant that becomes active again is lifted to the time of the one served last, less its share of the memory in
//! tokens: that much it would find free if it had its share to itself, and it saves up no more. The mean output of the
//! tenant is charged in advance and corrected when the output ends: a tenant that returns takes its share of the
//! memory, not all of it.
//!
//! While two tenants wait, the difference of their times grows by at most what one of them has charged in advance or
//! still owes: one prompt and, for each of its residents, the longest output.

use crate::model::Slot;
use crate::policy::Event;
use crate::state::View;

/// Outputs over which the mean is taken.
const MEMORY: f64 = 64.0;

#[derive(Clone, Copy, Debug)]
struct Tenant {
    weight: f64,
    /// Virtual time: tokens over weight.
    served: f64,
    /// The same of what enters in the current plan.
    entering: f64,
    /// Outputs seen, at most `MEMORY`, and their mean, tokens.
    ended: f64,
    output: f64,
}

/// The tenants, and what their residents were charged.
#[derive(Clone, Debug)]
pub(super) struct Tenants {
    each: Vec<Tenant>,
    /// Virtual time of the tenant served last.
    now: f64,
    /// By slot, the output charged in advance; negative where nothing was.
    charged: Vec<f64>,
}

impl Tenants {
    pub(super) fn new(weights: &[f64]) -> Self {
        let tenant = |&weight| Tenant { weight, served: 0.0, entering: 0.0, ended: 0.0, output: 0.0 };
        Self { each: weights.iter().map(tenant).collect(), now: 0.0, charged: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.each.len()
    }

    /// The tenant of a request: each has a queue in time, and one for its late requests.
    fn of(&self, view: &View, slot: Slot) -> usize {
        usize::from(view.request(slot).queue) % self.len()
    }

    /// Begins a plan: nothing enters yet.
    pub(super) fn begin(&mut self) {
        self.each.iter_mut().for_each(|tenant| tenant.entering = 0.0);
    }

    /// Virtual time of a tenant, what enters in this plan included.
    pub(super) fn time(&self, tenant: usize) -> f64 {
        self.each[tenant].served + self.each[tenant].entering
    }

    /// A request enters in the current plan.
    pub(super) fn enters(&mut self, view: &View, slot: Slot) {
        if view.request(slot).preemptions == 0 {
            let tenant = self.of(view, slot);
            let tenant = &mut self.each[tenant];
            tenant.entering += (f64::from(view.request(slot).prompt) + tenant.output) / tenant.weight;
        }
    }

    /// Learns what happened.
    pub(super) fn observe(&mut self, view: &View, slot: Slot, event: Event) {
        match event {
            Event::Arrived => self.arrived(view, slot),
            Event::Admitted => self.admitted(view, slot),
            Event::Refused => self.refused(view, slot),
            Event::Finished => self.gone(view, slot, true),
            Event::Aborted => self.gone(view, slot, false),
            Event::Joined | Event::Preempted => {}
        }
    }

    /// A request has started to wait.
    fn arrived(&mut self, view: &View, slot: Slot) {
        let (tenant, tenants) = (self.of(view, slot), self.len());
        let waiting: u32 = (tenant..view.queues()).step_by(tenants).map(|queue| view.waiting(queue)).sum();
        if waiting == 1 {
            let memory = view.pool().tokens() as f64 / self.each.iter().map(|tenant| tenant.weight).sum::<f64>();
            self.each[tenant].served = self.each[tenant].served.max(self.now - memory);
        }
    }

    /// A request was admitted.
    fn admitted(&mut self, view: &View, slot: Slot) {
        if self.charged.len() <= slot as usize {
            self.charged.resize(slot as usize + 1, -1.0);
        }
        if self.charged[slot as usize] < 0.0 {
            let tenant = self.of(view, slot);
            let tenant = &mut self.each[tenant];
            self.now = self.now.max(tenant.served);
            tenant.served += (f64::from(view.request(slot).prompt) + tenant.output) / tenant.weight;
            self.charged[slot as usize] = tenant.output;
        }
    }

    /// The host refused an admitted request.
    fn refused(&mut self, view: &View, slot: Slot) {
        if view.request(slot).preemptions == 0 {
            self.settle(view, slot, -f64::from(view.request(slot).prompt));
        }
    }

    /// A request has left, by itself if `ended`.
    fn gone(&mut self, view: &View, slot: Slot, ended: bool) {
        let (tenant, output) = (self.of(view, slot), view.stage(slot));
        self.settle(view, slot, f64::from(output));
        if ended {
            let tenant = &mut self.each[tenant];
            tenant.ended = (tenant.ended + 1.0).min(MEMORY);
            tenant.output += (f64::from(output) - tenant.output) / tenant.ended;
        }
    }

    /// Charges `tokens` in place of what was charged in advance.
    fn settle(&mut self, view: &View, slot: Slot, tokens: f64) {
        let Some(charged) = self.charged.get_mut(slot as usize).filter(|charged| **charged >= 0.0) else { return };
        let charged = std::mem::replace(charged, -1.0);
        let tenant = self.of(view, slot);
        let tenant = &mut self.each[tenant];
        tenant.served += (tokens - charged) / tenant.weight;
    }
}
