//! The rules that a plan must satisfy before it is applied, whatever policy proposed it; checked in release builds too.
//!
//! A plan that breaks a rule would corrupt the lists or overrun a limit, so it is dropped as a whole, and requests are
//! served first come, first served in that iteration. The check costs O(1), and O(1) for each request that the plan
//! names: requests that only decode are not named.

use super::{Origin, Plan};
use crate::model::Slot;
use crate::state::{Phase, View};

/// Marks by slot, invalidated from one plan to the next without being cleared.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    last: u64,
    by_slot: Vec<u64>,
}

impl Marks {
    /// A plan for a table of so many slots.
    fn begin(&mut self, slots: usize) {
        self.last += 2;
        if self.by_slot.len() < slots {
            self.by_slot.resize(slots, 0);
        }
    }

    fn of(&mut self, slot: Slot) -> &mut u64 {
        &mut self.by_slot[slot as usize]
    }

    /// Notes that the request leaves its lane. False if it was named before.
    fn park(&mut self, slot: Slot) -> bool {
        let parked = self.last - 1;
        std::mem::replace(self.of(slot), parked) < parked
    }

    fn is_parked(&mut self, slot: Slot) -> bool {
        *self.of(slot) == self.last - 1
    }

    /// Marks what the iteration does with the request. False if it was marked before.
    fn settle(&mut self, slot: Slot) -> bool {
        let settled = self.last;
        std::mem::replace(self.of(slot), settled) < settled
    }
}

impl Plan {
    /// Makes room, and ensures that the plan can be applied. Returns the rule that the proposed plan broke, if any: the
    /// plan has then been replaced.
    pub(crate) fn guard(&mut self, view: &View) -> Option<&'static str> {
        let broken = self.broken_list(view).or_else(|| {
            self.make_room(view);
            self.broken_limit(view)
        });
        if broken.is_some() {
            self.serve_in_order(view);
        }
        broken
    }

    /// Each request is named once, in a phase in which that can happen to it.
    fn broken_list(&mut self, view: &View) -> Option<&'static str> {
        self.marks.begin(view.slots());
        if !self.plain
            && let Some(rule) = self.broken_move(view)
        {
            return Some(rule);
        }
        let mut tokens = 0;
        for chunk in &self.chunks {
            let request = view.request(chunk.slot);
            let phase = if chunk.origin == Origin::Resident { Phase::Prefilling } else { Phase::Waiting };
            if !(is(view, chunk.slot, phase) && self.marks.settle(chunk.slot)) {
                return Some("a prompt is computed that is computed already, or twice");
            }
            // A request that receives its KV from elsewhere computes nothing yet.
            let least = u32::from(!request.receives);
            if !(least..=request.prefill_target().saturating_sub(chunk.start)).contains(&chunk.tokens) {
                return Some("a chunk has no tokens, or more than its prompt");
            }
            tokens += u64::from(chunk.tokens);
        }
        (tokens != u64::from(self.prefill_tokens)).then_some("the tokens do not add up")
    }

    /// The same for the requests that the plan moves from where they are without computing anything of their prompts.
    #[cold]
    fn broken_move(&mut self, view: &View) -> Option<&'static str> {
        let Self { marks, ran, number, .. } = self;
        for refusal in &self.refused {
            if !(is(view, refusal.slot, Phase::Waiting) && marks.settle(refusal.slot)) {
                return Some("a request is refused that does not wait, or twice");
            }
        }
        for &(slot, queue) in &self.moved {
            // It may be admitted as well.
            if !is(view, slot, Phase::Waiting) || queue >= view.queues() || *marks.of(slot) == marks.last {
                return Some("a request changes its queue that does not wait, or goes to none");
            }
        }
        for &slot in &self.parked {
            if !(is(view, slot, Phase::Decoding) && marks.park(slot)) {
                return Some("a request is parked that does not decode, or twice");
            }
        }
        for &(slot, lane) in &self.unparked {
            let parked = is(view, slot, Phase::Parked) || marks.is_parked(slot);
            if !(parked && marks.settle(slot) && ran.get(usize::from(lane)) == Some(number)) {
                return Some("a request joins a lane that was in one, twice, or where the lane stands");
            }
        }
        for &(slot, _) in &self.preempted {
            if is(view, slot, Phase::Waiting) || !is(view, slot, view.request(slot).phase) || !marks.settle(slot) {
                return Some("a request is preempted that is not resident, or twice");
            }
        }
        None
    }

    /// The limits of the iteration and the engine are kept, once room has been made.
    fn broken_limit(&self, view: &View) -> Option<&'static str> {
        let limits = view.limits();
        let admits = || self.chunks.iter().any(|chunk| chunk.origin != Origin::Resident);
        // Decodes run however many they are, and a prompt longer than the budget may run alone.
        let alone = || self.decodes == 0 && self.chunks.len() == 1;
        if self.tokens() > self.budget && !self.chunks.is_empty() && !alone() {
            return Some("more tokens than the budget");
        }
        if self.residents > limits.max_num_seqs && admits() {
            return Some("more residents than seats");
        }
        if !self.preempted.is_empty() && admits() {
            return Some("one request is preempted for another to be admitted");
        }
        let fits = self.free >= 0 || !admits() && (limits.host_preempts || self.residents == 0);
        (!fits).then_some("more blocks than there are")
    }

    /// Residents continue; while nothing is preempted, requests are admitted queue by queue, the preempted first.
    #[cold]
    fn serve_in_order(&mut self, view: &View) {
        self.begin(view);
        (0..view.lanes().len()).for_each(|lane| self.decode(view, lane));
        self.make_room(view);
        self.continue_prefills(view);
        if !self.preempted.is_empty() {
            return;
        }
        for queue in (0..=view.queues()).rev() {
            for slot in view.iter_waiting(queue) {
                if let Err(hold) = self.seat(view).and_then(|()| self.fits_above_watermark(view, slot)) {
                    (0..=queue).for_each(|behind| self.hold_queue(behind, hold));
                    return;
                }
                self.admit(view, slot, self.tokens_left());
            }
        }
    }
}

/// Whether there is such a request, in that phase.
fn is(view: &View, slot: Slot, phase: Phase) -> bool {
    view.request(slot).phase == phase && view.is_present(slot)
}

#[cfg(test)]
mod tests;
