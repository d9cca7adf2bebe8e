//! First come, first served: the walk shared by the policies that admit in the order of their queues.
//!
//! A request that has become too large for the cache is skipped, here and in a policy's own walks: nothing that the
//! plan could free would let it run, and the requests behind it must not wait with it. `Plan::fits_alone` is that rule,
//! and the scheduler reports it for a queue in which nothing else waits.

use crate::model::Slot;
use crate::plan::{Hold, Plan};
use crate::state::View;

/// Offers the waiting requests to `admit` in their order, queue by queue, until one is held; that hold is its queue's.
/// `admit` puts the request into the plan or returns what holds it. True if none was held.
pub(super) fn in_order(
    view: &View,
    plan: &mut Plan,
    queues: impl IntoIterator<Item = usize>,
    mut admit: impl FnMut(&mut Plan, Slot) -> Result<(), Hold>,
) -> bool {
    for queue in queues {
        for slot in view.iter_waiting(queue) {
            if !offer(view, plan, queue, slot, &mut admit) {
                return false;
            }
        }
    }
    true
}

/// The same by rank, for queue 0 and the preempted, which go before their equals.
pub(super) fn by_rank(view: &View, plan: &mut Plan, mut admit: impl FnMut(&mut Plan, Slot) -> Result<(), Hold>) {
    let resuming = view.queues();
    let (mut preempted, mut other) = (view.head(resuming), view.head(0));
    let rank = |slot: Slot| view.request(slot).rank();
    loop {
        let resumes = preempted.filter(|&slot| other.is_none_or(|other| rank(slot) <= rank(other)));
        let Some(slot) = resumes.or(other) else { return };
        let (queue, next) = if resumes.is_some() { (resuming, &mut preempted) } else { (0, &mut other) };
        *next = view.behind(slot);
        if !offer(view, plan, queue, slot, &mut admit) {
            return;
        }
    }
}

/// Offers one request of a queue to `admit`. False if it is held; that hold is its queue's.
#[inline(always)]
fn offer(
    view: &View,
    plan: &mut Plan,
    queue: usize,
    slot: Slot,
    admit: &mut impl FnMut(&mut Plan, Slot) -> Result<(), Hold>,
) -> bool {
    if plan.fits_alone(view, slot).is_ok()
        && let Err(hold) = admit(plan, slot)
    {
        plan.hold_queue(queue, hold);
        return false;
    }
    true
}

/// The preempted, whose queue is the last, then queue 0: the order of a policy with one queue.
#[expect(clippy::range_plus_one, reason = "the loop over a closed range costs more than its body")]
pub(super) fn preempted_first(view: &View) -> impl Iterator<Item = usize> {
    (0..view.queues() + 1).rev()
}

/// The first request from `slot` on, in the order of its queue, that is not skipped.
pub(super) fn first_from(view: &View, plan: &Plan, mut slot: Option<Slot>) -> Option<Slot> {
    while let Some(passed) = slot.filter(|&slot| plan.fits_alone(view, slot).is_err()) {
        slot = view.behind(passed);
    }
    slot
}
