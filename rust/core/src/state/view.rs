//! Everything a policy may read, updated incrementally: no query here rescans the requests.

use crate::config::{Config, MAX_COUNT};
use crate::lookup::{Index, Place};
use crate::memory::{BlockPool, KvLayout, Lane};
use crate::model::{Request, RequestId, Slot};
use crate::state::Prefixes;
use crate::state::linked_list::{Link, List, previous};
use crate::state::queue::Queue;
use crate::state::{Phase, Tracked};

mod hits;
mod limits;
mod residents;
#[cfg(test)]
mod tests;
mod waiting;

pub use limits::Limits;

/// The state of the scheduler as a policy sees it.
///
/// ```
/// use wait_core::{Config, Phase, Request, Scheduler};
///
/// let mut scheduler = Scheduler::new(&Config { kv_blocks: 1000, ..Config::default() })?;
/// scheduler.add(&Request { id: 1, prompt: 100, ..Request::default() })?;
/// assert_eq!((scheduler.view().waiting_total(), scheduler.view().residents()), (1, 0));
/// scheduler.plan(0);
/// let view = scheduler.view();
/// let slot = view.slot(1).unwrap();
/// assert_eq!((view.request(slot).phase, view.kv(slot), view.blocks(slot), view.stage(slot)), (Phase::Decoding, 100, 7, 1));
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct View {
    table: Vec<Tracked>,
    /// Free slots of the table.
    vacant: Vec<Slot>,
    /// From the id of each request to its place.
    index: Index,
    pool: BlockPool,
    layout: KvLayout,
    /// Most tokens of a request that runs alone in the cache, with the current and the largest capacity.
    largest: u32,
    ever_largest: u32,
    /// With `prefix_caching`, and while no plan owns it.
    prefixes: Option<Box<Prefixes>>,
    limits: Limits,
    lanes: Vec<Lane>,
    /// The policy's, and last the queue of the preempted, which go before all others, or by rank.
    queues: Vec<Queue>,
    /// Resident requests, in the order of their admission.
    residents: List,
    prefilling: Vec<Slot>,
    receiving: Vec<Slot>,
    parked: Vec<Slot>,
    now_ns: u64,
    /// Plans so far.
    plans: u32,
    draining: bool,
    resumes_by_rank: bool,
    ranks: bool,
}

impl View {
    pub(crate) fn new(config: &Config, lanes: usize, queues: usize, reserves_prompts: bool) -> Self {
        let layout = config.kv_layout();
        Self {
            table: Vec::new(),
            vacant: Vec::new(),
            index: Index::default(),
            limits: Limits::new(config, reserves_prompts),
            prefixes: config.prefix_caching.then(|| Box::new(Prefixes::new(config.kv_blocks, &layout))),
            pool: BlockPool::new(config.kv_blocks, config.block_size),
            lanes: vec![Lane::new(&layout); lanes],
            largest: layout.largest(config.kv_blocks, MAX_COUNT),
            ever_largest: layout.largest(config.kv_blocks, MAX_COUNT),
            layout,
            queues: vec![Queue::default(); queues + 1],
            residents: List::default(),
            prefilling: Vec::new(),
            receiving: Vec::new(),
            parked: Vec::new(),
            now_ns: 0,
            plans: 0,
            draining: false,
            resumes_by_rank: false,
            ranks: false,
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

    /// How many blocks a request needs.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// The request at `slot`.
    #[inline]
    pub fn request(&self, slot: Slot) -> &Tracked {
        &self.table[slot as usize]
    }

    /// Slots of the table, the vacant ones included.
    pub(crate) fn slots(&self) -> usize {
        self.table.len()
    }

    /// Whether a request is at `slot`.
    #[inline]
    pub(crate) fn is_present(&self, slot: Slot) -> bool {
        self.table.get(slot as usize).is_some_and(|request| request.max_tokens > 0)
    }

    /// The slot of a request, if it is present.
    #[inline(always)]
    pub fn slot(&self, id: RequestId) -> Option<Slot> {
        self.locate(id).number
    }

    /// Where the slot of a request is found, or would be.
    #[inline(always)]
    pub(crate) fn locate(&self, id: RequestId) -> Place {
        self.index.locate(id, |slot| self.request(slot).id == id)
    }

    /// Requests present, waiting or resident.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// True when no request is present.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The decode lanes; which lane a request joins is the policy's choice.
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// Resident requests: prefilling, decoding, parked or receiving.
    pub fn residents(&self) -> u32 {
        self.residents.len()
    }

    /// The request admitted last, the first victim of a preemption.
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

    /// Requests whose KV is being transferred, in the order of their admission.
    pub fn receiving(&self) -> &[Slot] {
        &self.receiving
    }

    /// Residents in no lane with their prompt computed, in the order in which they left theirs.
    pub fn parked(&self) -> &[Slot] {
        &self.parked
    }

    /// Tokens of KV that a request holds.
    #[inline]
    pub fn kv(&self, slot: Slot) -> u32 {
        let request = self.request(slot);
        match request.phase {
            Phase::Decoding => self.lanes[request.lane as usize].kv_of(request.base),
            _ => request.computed,
        }
    }

    /// Blocks that a request holds.
    #[inline]
    pub fn blocks(&self, slot: Slot) -> u32 {
        self.blocks_at(slot, self.kv(slot))
    }

    /// The same of a request with `kv` tokens: what was counted last, unless its lane has stepped since.
    #[inline]
    fn blocks_at(&self, slot: Slot, kv: u32) -> u32 {
        let request = self.request(slot);
        if kv == request.computed { request.blocks } else { self.layout.decoding(kv) }
    }

    /// Blocks that a decoding request holds beyond what its decode needs; nothing once it has stepped.
    #[inline]
    fn surplus(&self, slot: Slot) -> i64 {
        let request = self.request(slot);
        let joined = self.kv(slot) == request.computed;
        if joined { i64::from(request.blocks) - i64::from(self.layout.decoding(request.computed)) } else { 0 }
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

    /// Blocks that the request takes when it decodes its next token, less those it frees.
    #[inline]
    pub fn next_blocks(&self, slot: Slot) -> i64 {
        let kv = self.kv(slot);
        i64::from(self.layout.decoding(kv + 1)) - i64::from(self.blocks_at(slot, kv))
    }

    /// The host's clock at this plan, ns; never goes backwards.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// No more arrivals will come: thresholds no longer wait for more requests.
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

    /// Another plan begins.
    pub(crate) fn count_plan(&mut self) {
        self.plans = self.plans.wrapping_add(1);
        self.pool.count_plan();
    }

    /// Plans since the one that admitted a request, that one not counted.
    pub(crate) fn plans_since_admission(&self, slot: Slot) -> u32 {
        self.plans.wrapping_sub(self.request(slot).admitted)
    }

    /// A new request waits; `place` is where its id would be.
    pub(crate) fn insert(
        &mut self,
        place: Place,
        request: &Request,
        max_tokens: u32,
        type_id: u16,
        queue: u16,
        rank: i64,
    ) -> Slot {
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
            encoder_blocks: request.encoder_blocks,
            link: Link::default(),
            rank,
            hit: self.trusted(request.hit, request.prompt),
            receives: request.receives,
            type_id,
            queue,
            lane: 0,
            preemptions: 0,
            admitted: 0,
            phase: Phase::Waiting,
        };
        if rank != 0 {
            self.note_ranks();
        }
        let slot = if let Some(slot) = self.vacant.pop() {
            self.table[slot as usize] = tracked;
            slot
        } else {
            self.table.push(tracked);
            (self.table.len() - 1) as Slot
        };
        self.index.insert_at(place, slot);
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.insert(slot, if request.receives { &[] } else { &request.block_hashes });
        }
        self.queues[usize::from(queue)].insert(&mut self.table, slot);
        slot
    }
}
