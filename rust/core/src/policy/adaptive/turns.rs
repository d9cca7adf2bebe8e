//! Which queue is next while a plan is made: preempted requests, those in time, and late ones where the deadline admits them.
//!
//! Each tenant has a queue in time, and a queue of late requests if there is a deadline. Among the queues of a kind the
//! tenant served least is next; within a queue, the request of least rank.

use super::tenants::Tenants;
use super::ttft_deadline::{self, TtftDeadline};
use super::{Adaptive, label};
use crate::model::Slot;
use crate::plan::{Hold, HoldReason, Plan};
use crate::policy::Event;
use crate::state::View;

/// The next request of each queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    resuming: Option<Slot>,
    /// Preempted requests that are late: they come after those in time.
    resuming_late: Option<Slot>,
    /// By queue: in time by tenant, then late by tenant.
    heads: Vec<Option<Slot>>,
    /// Queues of a kind: one for each tenant.
    tenant_queues: usize,
    /// How many of those found late in this plan have had their turn.
    found: usize,
    /// From now on only this queue is considered.
    only: Option<usize>,
}

impl Turns {
    pub(super) fn begin(&mut self, view: &View, tenant_queues: usize) {
        self.tenant_queues = tenant_queues;
        self.heads.clear();
        self.heads.extend((0..view.queues()).map(|queue| view.head(queue)));
        (self.found, self.only) = (0, None);
        let first = view.head(view.queues());
        self.resuming = self.resumes(view, first, false);
        self.resuming_late = self.resumes(view, first, true);
    }

    /// Whether a queue is one of late requests: without a deadline there are none, and the next is that of the preempted.
    pub(super) fn is_late(&self, queue: usize) -> bool {
        (self.tenant_queues..self.heads.len()).contains(&queue)
    }

    /// The first preempted request from `slot` on that is late, or is not.
    fn resumes(&self, view: &View, mut slot: Option<Slot>, late: bool) -> Option<Slot> {
        while let Some(next) = slot.filter(|&slot| self.is_late(view.request(slot).queue.into()) != late) {
            slot = view.behind(next);
        }
        slot
    }

    /// The queue of the next request, and the request: the late ones only if all in time have had their turn.
    pub(super) fn next(
        &mut self,
        view: &View,
        plan: &mut Plan,
        tenants: Option<&Tenants>,
        deadline: Option<&mut TtftDeadline>,
        backlog: u32,
    ) -> Option<(usize, Slot)> {
        if let Some(slot) = self.resuming {
            self.resuming = self.resumes(view, view.behind(slot), false);
            return Some((view.queues(), slot));
        }
        let mut deadline = deadline;
        for queue in 0..deadline.as_ref().map_or(0, |_| self.tenant_queues) {
            while let (Some(slot), Some(deadline)) = (self.heads[queue], deadline.as_mut())
                && deadline.finds_late(view, plan, slot, backlog, self.tenant_queues)
            {
                self.heads[queue] = view.behind(slot);
            }
        }
        if let Some(queue) = self.only.or_else(|| self.least_served(0, tenants)) {
            return Some((queue, self.take(view, queue)?));
        }
        let deadline = deadline?;
        if let Some(slot) = self.resuming_late {
            self.resuming_late = self.resumes(view, view.behind(slot), true);
            return Some((view.queues(), slot));
        }
        if let Some(queue) = self.least_served(self.tenant_queues, tenants) {
            return Some((queue, self.take(view, queue)?));
        }
        let slot = *deadline.found().get(self.found)?;
        self.found += 1;
        Some((usize::from(view.request(slot).queue) + self.tenant_queues, slot))
    }

    /// Of the queues of a kind that are not empty, that of the tenant served least.
    fn least_served(&self, first: usize, tenants: Option<&Tenants>) -> Option<usize> {
        let mut tenant_queues = (first..first + self.tenant_queues).filter(|&queue| self.heads[queue].is_some());
        let Some(tenants) = tenants else { return tenant_queues.next() };
        tenant_queues.min_by(|&a, &b| tenants.time(a - first).total_cmp(&tenants.time(b - first)))
    }

    fn take(&mut self, view: &View, queue: usize) -> Option<Slot> {
        let slot = self.heads[queue]?;
        self.heads[queue] = view.behind(slot);
        Some(slot)
    }

    /// Considers no other queue in this plan.
    pub(super) fn stay_in(&mut self, queue: usize) {
        self.only = Some(queue);
    }
}

impl Adaptive {
    /// The share of the engine that a late request is expected to take by the end of its stay.
    fn share(&self, view: &View, slot: Slot) -> f64 {
        let request = view.request(slot);
        let output = request.output.exact().map_or_else(
            || self.forecast.curve(self.learned.class(label(request.type_id), request.output)).moments().0,
            f64::from,
        );
        let tokens = f64::from(request.prompt) + output.min(f64::from(request.max_tokens)).max(f64::from(request.kept));
        ttft_deadline::share(view, tokens, 1.0)
    }

    /// Whether a request is late.
    pub(super) fn is_late(&self, view: &View, slot: Slot) -> bool {
        usize::from(view.request(slot).queue) >= self.tenant_queues()
    }

    /// Passes what happened on to the deadline.
    pub(super) fn observe_deadline(&mut self, view: &View, slot: Slot, event: Event) {
        let late = self.is_late(view, slot);
        let share = if late && event == Event::Admitted { self.share(view, slot) } else { 0.0 };
        let Some(deadline) = &mut self.deadline else { return };
        match event {
            Event::Arrived => deadline.arrived(view, slot),
            Event::Admitted => deadline.admitted(view, slot, late, share),
            Event::Joined => {}
            Event::Finished => {
                deadline.ended(view.stage(slot));
                deadline.left(slot);
            }
            Event::Preempted | Event::Refused | Event::Aborted => deadline.left(slot),
        }
    }

    /// A request enters in the current plan.
    pub(super) fn enters(&mut self, view: &View, slot: Slot, late: bool) {
        let share = if late { self.share(view, slot) } else { 0.0 };
        if let Some(deadline) = &mut self.deadline {
            deadline.enters(share);
        }
        if let Some(tenants) = &mut self.tenants {
            tenants.enters(view, slot);
        }
    }

    /// Whether a request that is late takes nothing that those in time need.
    pub(super) fn leaves(&self, view: &View, slot: Slot, late: bool) -> Result<(), Hold> {
        match &self.deadline {
            Some(deadline) if late && !deadline.leaves(self.share(view, slot)) => Err(deadline.hold(view, Some(slot))),
            _ => Ok(()),
        }
    }

    /// States why all queues wait, if the one whose turn it is does.
    pub(super) fn hold_queues(&self, view: &View, plan: &mut Plan, queue: usize, hold: Hold) {
        let tenant_queues = self.tenant_queues();
        // Preempted requests that are late wait for those in time as well.
        let queues = view.queues() + usize::from(self.deadline.is_some() && queue < tenant_queues);
        for other in 0..queues {
            let own = match (&self.deadline, &self.tenants) {
                (Some(deadline), _) if queue < tenant_queues && other >= tenant_queues => {
                    deadline.hold(view, view.head(other))
                }
                (_, Some(tenants))
                    if queue < view.queues() && other != queue && other / tenant_queues == queue / tenant_queues =>
                {
                    let (needs, limit) = (tenants.time(other % tenant_queues), tenants.time(queue % tenant_queues));
                    Hold::new(HoldReason::TenantShare, needs, limit)
                }
                _ => hold,
            };
            plan.hold_queue(other, own);
        }
    }
}
