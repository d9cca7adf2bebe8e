//! The queues of waiting requests.

use super::View;
use crate::model::Slot;
use crate::state::linked_list::following;
use crate::state::queue::Queue;

impl View {
    /// Number of queues that the policy uses.
    #[inline]
    pub fn queues(&self) -> usize {
        self.queues.len() - 1
    }

    /// Requests in queue `queue`.
    pub fn waiting(&self, queue: usize) -> u32 {
        self.queues[queue].list().len()
    }

    /// First request of queue `queue`.
    pub fn head(&self, queue: usize) -> Option<Slot> {
        self.queues[queue].list().head()
    }

    /// Waiting queue `queue`, lowest rank first, first come first among equals.
    pub fn iter_waiting(&self, queue: usize) -> impl Iterator<Item = Slot> + '_ {
        self.queues[queue].list().iter(&self.table)
    }

    /// The request that waits just behind this one.
    pub fn behind(&self, slot: Slot) -> Option<Slot> {
        following(&self.table, slot)
    }

    /// Number of preempted requests waiting to resume.
    pub fn resuming(&self) -> u32 {
        self.waiting(self.queues())
    }

    /// Preempted requests in the order in which they resume.
    pub fn iter_resuming(&self) -> impl Iterator<Item = Slot> + '_ {
        self.iter_waiting(self.queues())
    }

    /// Whether preempted requests resume by rank, before their equals; otherwise before all others, the last preempted first.
    pub fn resumes_by_rank(&self) -> bool {
        self.resumes_by_rank
    }

    /// Whether a request has had a rank other than 0: until then the queues are in the order of arrival.
    pub fn ranks(&self) -> bool {
        self.ranks
    }

    /// All requests outside the KV cache.
    pub fn waiting_total(&self) -> u32 {
        self.len() as u32 - self.residents()
    }

    /// Tokens that all requests outside the KV cache would prefill.
    pub fn waiting_tokens(&self) -> u64 {
        self.queues.iter().map(Queue::tokens).sum()
    }

    // ---- what the scheduler writes -----------------------------------------------------------------------------

    /// Sets `resumes_by_rank`.
    pub(crate) fn resuming_by_rank(mut self, by_rank: bool) -> Self {
        self.resumes_by_rank = by_rank;
        self
    }

    #[cold]
    pub(super) fn note_ranks(&mut self) {
        self.ranks = true;
    }

    /// The queue that a waiting request is in.
    #[inline]
    pub(crate) fn queue_of(&self, slot: Slot) -> usize {
        let request = self.request(slot);
        if request.preemptions > 0 { self.queues() } else { usize::from(request.queue) }
    }

    /// A waiting request goes to another queue, where its rank places it behind its equals.
    pub(crate) fn change_queue(&mut self, slot: Slot, queue: usize) {
        self.dequeue(slot);
        self.table[slot as usize].queue = queue as u16;
        self.queues[queue].insert(&mut self.table, slot);
    }

    #[inline(always)]
    pub(super) fn dequeue(&mut self, slot: Slot) {
        let queue = self.queue_of(slot);
        self.queues[queue].remove(&mut self.table, slot);
    }
}
