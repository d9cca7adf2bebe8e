//! Why a request does not run, with its own numbers.

use super::Scheduler;
use crate::model::{RequestId, Slot};
use crate::plan::{Chunk, Hold, HoldReason, Origin, Plan};
use crate::state::{Phase, View};

impl Scheduler {
    /// Why a request waits, by the last plan; none if it does not wait, or no plan has considered it yet. The reason of
    /// its queue is given with its own numbers: a reason that was measured on the head of the queue is `HeadOfLine` for
    /// a request behind it that has none of its own. Walks the queue up to the request.
    pub fn explain(&self, id: RequestId) -> Option<Hold> {
        let slot = self.view.slot(id)?;
        if self.view.request(slot).phase == Phase::Waiting {
            return self.explain_waiting(slot);
        }
        if self.runs(slot) {
            return None;
        }
        Some(match self.plan.hold(0) {
            Some(hold) if hold.reason == HoldReason::EnginePaused => hold,
            _ if self.view.request(slot).phase == Phase::Receiving => {
                Hold::new(HoldReason::KvTransfer, self.view.kv(slot), 0)
            }
            _ if self.plan.tokens_left() == 0 => {
                Hold::new(HoldReason::BatchCap, self.plan.tokens() + 1, self.plan.token_budget())
            }
            _ => Hold::new(HoldReason::PausedAtBoundary, 1, 0),
        })
    }

    fn explain_waiting(&self, slot: Slot) -> Option<Hold> {
        let (view, plan) = (&self.view, &self.plan);
        let request = view.request(slot);
        let admitted = |chunk: &Chunk| (chunk.slot, chunk.id) == (slot, request.id) && chunk.origin != Origin::Resident;
        if plan.chunks().iter().any(admitted) {
            return Some(Hold::new(HoldReason::HostRefused, 1, 0));
        }
        let queue = view.queue_of(slot);
        let hold = plan.hold(queue)?;
        let fits_alone = |slot| plan.fits_alone(view, slot);
        match (hold.reason, fits_alone(slot)) {
            (HoldReason::EnginePaused, _) => return Some(hold),
            (_, Err(too_large)) => return Some(too_large),
            // It arrived after the plan.
            (HoldReason::TooLarge, Ok(())) => return None,
            _ => {}
        }
        let first = first_in_turn(view, plan, queue).filter(|&first| first != slot);
        let Some(first) = first else { return Some(hold) };
        let blocks = |slot| f64::from(view.request(slot).own_blocks(view.layout()));
        Some(match hold.reason {
            HoldReason::NoBlocks => {
                // What the first request is charged beyond its own blocks stays free for all.
                let needs = blocks(slot) + (hold.needs - blocks(first)).max(0.0);
                if needs > hold.limit { Hold { needs, ..hold } } else { self.head_of_line(queue, slot) }
            }
            HoldReason::TtftTarget => {
                let waited_ns = view.now_ns().saturating_sub(request.arrival_ns);
                Hold { needs: 1e-9 * waited_ns as f64, ..hold }
            }
            HoldReason::ForecastOverflow | HoldReason::TpotTarget | HoldReason::HeadOfLine => {
                self.head_of_line(queue, slot)
            }
            _ => hold,
        })
    }

    /// The hold of a request that only waits for those before it.
    fn head_of_line(&self, queue: usize, slot: Slot) -> Hold {
        let before = self.view.iter_waiting(queue).take_while(|&other| other != slot).count() as u32;
        Hold::new(HoldReason::HeadOfLine, before + before_queue(&self.view, queue, slot), 0)
    }

    /// Whether the last plan runs a resident.
    fn runs(&self, slot: Slot) -> bool {
        let request = self.view.request(slot);
        request.phase == Phase::Decoding && self.plan.runs(usize::from(request.lane))
            || self.plan.chunks().iter().any(|chunk| chunk.slot == slot && chunk.tokens > 0)
    }

    /// Residents that the last plan does not run: members of a stopped lane, parked requests, waiting prefills, and
    /// those whose KV is being transferred.
    pub fn paused_ids(&self) -> Vec<RequestId> {
        let (view, plan) = (&self.view, &self.plan);
        let computed = plan.chunks().iter().filter(|chunk| chunk.tokens > 0).count();
        if plan.decodes() as usize + computed == plan.residents() as usize {
            return Vec::new();
        }
        let stands = |slot: &Slot| !self.runs(*slot);
        let id = |slot: Slot| view.request(slot).id;
        let lanes = || view.lanes().iter().enumerate();
        let members: usize = lanes().map(|(_, members)| members.len() as usize).sum();
        let listed = members + view.parked().len() + view.prefilling().len();
        if listed < view.residents() as usize || lanes().any(|(lane, members)| !members.is_empty() && !plan.runs(lane))
        {
            // Members of a lane and receiving requests are counted, not listed: they are found among the residents.
            return view.iter_residents().filter(stands).map(id).collect();
        }
        view.parked().iter().chain(view.prefilling()).copied().filter(stands).map(id).collect()
    }
}

/// The first request of a queue that is not skipped, on which its hold was measured.
fn first_in_turn(view: &View, plan: &Plan, queue: usize) -> Option<Slot> {
    view.iter_waiting(queue).find(|&slot| plan.fits_alone(view, slot).is_ok())
}

/// Requests of other queues that go before this one: all preempted requests, or by rank those before it.
fn before_queue(view: &View, queue: usize, slot: Slot) -> u32 {
    let (resuming, rank) = (view.queues(), view.request(slot).rank());
    let ranks = |queue| view.iter_waiting(queue).map(|other| view.request(other).rank());
    match (queue == resuming, view.resumes_by_rank()) {
        (false, false) => view.resuming(),
        (false, true) => ranks(resuming).take_while(|&other| other <= rank).count() as u32,
        (true, false) => 0,
        (true, true) => ranks(0).take_while(|&other| other < rank).count() as u32,
    }
}

/// What holds a queue with this head for which the policy gave no reason: the requests of another queue that go before
/// it, or that it is too large, as all that wait with it are, or lack of memory where the iteration preempted.
pub(super) fn find_hold(view: &View, plan: &Plan, queue: usize, head: Slot) -> Hold {
    let other = if queue == view.queues() { 0 } else { view.queues() };
    if plan.hold(other).is_some() {
        let before = before_queue(view, queue, head);
        if before > 0 {
            return Hold::new(HoldReason::HeadOfLine, before, 0);
        }
    }
    let first = first_in_turn(view, plan, queue).unwrap_or(head);
    plan.fits_alone(view, first).err().unwrap_or_else(|| {
        let blocks = view.request(first).own_blocks(view.layout());
        Hold::new(HoldReason::NoBlocks, blocks, plan.free() as f64)
    })
}
