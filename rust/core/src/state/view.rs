//! Everything a policy may look at, kept up to date incrementally: no query here rescans the requests.

use std::collections::HashMap;

use crate::config::Config;
use crate::memory::{BlockPool, Lane};
use crate::model::{Request, RequestId, Slot};
use crate::state::id_hash::BuildIdHasher;
use crate::state::linked_list::{Link, List, following, previous};
use crate::state::queue::Queue;
use crate::state::{Phase, Tracked};

mod limits;
mod sharing;
#[cfg(test)]
mod tests;

pub use limits::Limits;

/// The state of the scheduler as a policy sees it.
#[derive(Clone, Debug)]
pub struct View {
    table: Vec<Tracked>,
    /// Vacant places of the table.
    vacant: Vec<Slot>,
    index: HashMap<RequestId, Slot, BuildIdHasher>,
    pool: BlockPool,
    limits: Limits,
    lanes: Vec<Lane>,
    /// The policy's, and last the queue of the preempted, which go before all others.
    queues: Vec<Queue>,
    /// Resident requests, in the order of their admission.
    residents: List,
    prefilling: Vec<Slot>,
    parked: Vec<Slot>,
    now_ns: u64,
    draining: bool,
}

impl View {
    pub(crate) fn new(config: &Config, lanes: usize, queues: usize) -> Self {
        let pool = BlockPool::new(config.kv_blocks, config.block_size);
        Self {
            table: Vec::new(),
            vacant: Vec::new(),
            index: HashMap::default(),
            limits: Limits::new(config),
            pool,
            lanes: vec![Lane::new(config.block_size); lanes],
            queues: vec![Queue::default(); queues + 1],
            residents: List::default(),
            prefilling: Vec::new(),
            parked: Vec::new(),
            now_ns: 0,
            draining: false,
        }
    }

    // ---- what policies read ------------------------------------------------------------------------------------

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// KV blocks.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// The request at `slot`.
    pub fn request(&self, slot: Slot) -> &Tracked {
        &self.table[slot as usize]
    }

    /// The slot of a request, if it is present.
    pub fn slot(&self, id: RequestId) -> Option<Slot> {
        self.index.get(&id).copied()
    }

    /// Requests present, waiting or resident.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// True when no request is present.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The decode lanes; which lane a request joins is the policy's choice.
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// Resident requests: prefilling, decoding or parked.
    pub fn residents(&self) -> u32 {
        self.residents.len()
    }

    /// The request admitted last, the first victim of an eviction.
    pub fn last_resident(&self) -> Option<Slot> {
        self.residents.tail()
    }

    /// The resident admitted just before this one.
    pub fn resident_before(&self, slot: Slot) -> Option<Slot> {
        previous(&self.table, slot)
    }

    /// Residents in the order of their admission.
    pub fn iter_residents(&self) -> impl Iterator<Item = Slot> + '_ {
        self.residents.iter(&self.table)
    }

    /// Residents whose prompt is not fully computed, in the order of their admission.
    pub fn prefilling(&self) -> &[Slot] {
        &self.prefilling
    }

    /// Residents in no lane with their prompt computed, in the order in which they left theirs.
    pub fn parked(&self) -> &[Slot] {
        &self.parked
    }

    /// Number of queues that the policy uses.
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

    /// Preempted requests, which go before all others.
    pub fn iter_resuming(&self) -> impl Iterator<Item = Slot> + '_ {
        self.iter_waiting(self.queues())
    }

    /// All requests outside the KV cache.
    pub fn waiting_total(&self) -> u32 {
        self.queues.iter().map(|queue| queue.list().len()).sum()
    }

    /// Tokens that all requests outside the KV cache would prefill.
    pub fn waiting_tokens(&self) -> u64 {
        self.queues.iter().map(Queue::tokens).sum()
    }

    /// Tokens of KV that a request holds.
    pub fn kv(&self, slot: Slot) -> u32 {
        let request = self.request(slot);
        match request.phase {
            Phase::Decoding => self.lanes[request.lane as usize].kv_of(request.base),
            _ => request.computed,
        }
    }

    /// Blocks that a request holds.
    pub fn blocks(&self, slot: Slot) -> u32 {
        let request = self.request(slot);
        match request.phase {
            Phase::Decoding => self.pool.blocks_for(self.kv(slot)),
            _ => request.blocks,
        }
    }

    /// The paper's stage: output tokens emitted so far (the prefill emits the first).
    pub fn stage(&self, slot: Slot) -> u32 {
        let request = self.request(slot);
        match request.phase {
            // The token emitted last has no KV yet.
            Phase::Decoding | Phase::Parked => self.kv(slot) + 1 - request.prompt,
            _ => request.kept,
        }
    }

    /// Whether the request needs a new block when its lane steps.
    pub fn needs_block(&self, slot: Slot) -> bool {
        let request = self.request(slot);
        request.phase == Phase::Decoding && self.lanes[request.lane as usize].needs_block(request.base)
    }

    /// The host's clock at this plan, ns; never goes back.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// No more arrivals will come: thresholds that wait for company stop waiting.
    pub fn draining(&self) -> bool {
        self.draining
    }

    // ---- what the scheduler writes -----------------------------------------------------------------------------

    pub(crate) fn pool_mut(&mut self) -> &mut BlockPool {
        &mut self.pool
    }

    pub(crate) fn set_draining(&mut self) {
        self.draining = true;
    }

    /// Time only moves forward: an older reading is taken as the latest one.
    pub(crate) fn advance_clock(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
    }

    pub(crate) fn insert(&mut self, request: &Request, max_tokens: u32, type_id: u16, queue: u16, rank: i64) -> Slot {
        let tracked = Tracked {
            id: request.id,
            arrival_ns: request.arrival_ns,
            base: 0,
            prompt: request.prompt,
            max_tokens,
            output: request.output,
            kept: 0,
            computed: 0,
            blocks: 0,
            link: Link::default(),
            rank,
            shared_prefix: request.shared_prefix.min(request.prompt - 1),
            type_id,
            queue,
            lane: 0,
            preemptions: 0,
            phase: Phase::Waiting,
        };
        let slot = if let Some(slot) = self.vacant.pop() {
            self.table[slot as usize] = tracked;
            slot
        } else {
            self.table.push(tracked);
            (self.table.len() - 1) as Slot
        };
        self.index.insert(request.id, slot);
        let queue = self.queue_of(slot);
        self.queues[queue].insert(&mut self.table, slot);
        slot
    }

    /// The queue a waiting request stands in.
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

    fn dequeue(&mut self, slot: Slot) {
        let queue = self.queue_of(slot);
        self.queues[queue].remove(&mut self.table, slot);
    }

    /// Waiting → prefilling.
    pub(crate) fn admit(&mut self, slot: Slot) {
        self.dequeue(slot);
        self.table[slot as usize].phase = Phase::Prefilling;
        self.pool.share(i64::from(self.request(slot).shared_blocks(&self.pool)));
        self.residents.push_back(&mut self.table, slot);
        self.prefilling.push(slot);
    }

    /// Sets what a prefilling request has computed and holds.
    pub(crate) fn set_computed(&mut self, slot: Slot, computed: u32, blocks: u32) {
        let request = &mut self.table[slot as usize];
        let held = std::mem::replace(&mut request.blocks, blocks);
        request.computed = computed;
        // Only the difference moves: to give everything back, even for a moment, would forget the host's correction.
        self.pool.take(blocks.saturating_sub(held));
        self.pool.give(held.saturating_sub(blocks));
    }

    /// Prefilling or parked → decoding. `set_computed` has placed all tokens of the request.
    pub(crate) fn join(&mut self, slot: Slot, lane: usize) {
        let request = &mut self.table[slot as usize];
        debug_assert!(matches!(request.phase, Phase::Prefilling | Phase::Parked));
        request.phase = Phase::Decoding;
        request.lane = lane as u16;
        request.base = self.lanes[lane].join(request.computed);
    }

    /// Takes requests that have joined a lane off the lists of those that prefill and of those that are parked.
    pub(crate) fn sweep(&mut self) {
        let table = &self.table;
        self.prefilling.retain(|&slot| table[slot as usize].phase == Phase::Prefilling);
        self.parked.retain(|&slot| table[slot as usize].phase == Phase::Parked);
    }

    /// Lists anew who prefills, after a request that was taken for decoding turned out to prefill still.
    pub(crate) fn relist_prefilling(&mut self) {
        let table = &self.table;
        let prefills = |&slot: &Slot| table[slot as usize].phase == Phase::Prefilling;
        self.prefilling.clear();
        self.prefilling.extend(self.residents.iter(table).filter(prefills));
    }

    /// Every member of a lane gains a token.
    pub(crate) fn step_lane(&mut self, lane: usize) {
        let blocks = self.lanes[lane].step();
        self.pool.take(blocks);
    }

    /// Decoding → parked.
    pub(crate) fn park(&mut self, slot: Slot) {
        self.leave_lane(slot, Phase::Parked);
        self.parked.push(slot);
    }

    /// Decoding → `phase` (parked or prefilling): leaves its lane, keeps its KV.
    pub(crate) fn leave_lane(&mut self, slot: Slot, phase: Phase) {
        let request = &mut self.table[slot as usize];
        debug_assert_eq!(request.phase, Phase::Decoding);
        request.computed = self.lanes[request.lane as usize].leave(request.base);
        request.blocks = self.pool.blocks_for(request.computed);
        request.phase = phase;
    }

    /// Frees the KV of a resident request, and takes it off the residents.
    fn release(&mut self, slot: Slot) {
        match self.request(slot).phase {
            Phase::Decoding => self.leave_lane(slot, Phase::Parked),
            Phase::Prefilling => self.prefilling.retain(|&other| other != slot),
            Phase::Parked => self.parked.retain(|&other| other != slot),
            Phase::Waiting => {}
        }
        self.pool.share(-i64::from(self.request(slot).shared_blocks(&self.pool)));
        self.set_computed(slot, 0, 0);
        self.residents.remove(&mut self.table, slot);
    }

    /// Resident → waiting, first in the queue, with `kept` output tokens to recompute. `preempted` is false when the host
    /// refused an admission: the request then goes back to where it came from.
    pub(crate) fn send_back(&mut self, slot: Slot, kept: u32, preempted: bool) {
        self.release(slot);
        let request = &mut self.table[slot as usize];
        request.kept = kept;
        request.phase = Phase::Waiting;
        request.preemptions = request.preemptions.saturating_add(u16::from(preempted));
        match self.queue_of(slot) {
            queue if queue == self.queues() => self.queues[queue].push_front(&mut self.table, slot),
            queue => self.queues[queue].put_back(&mut self.table, slot),
        }
    }

    /// Any state → gone.
    pub(crate) fn remove(&mut self, slot: Slot) {
        match self.request(slot).phase {
            Phase::Waiting => self.dequeue(slot),
            _ => self.release(slot),
        }
        self.index.remove(&self.table[slot as usize].id);
        self.vacant.push(slot);
    }
}
