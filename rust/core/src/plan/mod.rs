//! What a policy proposes for one iteration.
//!
//! A policy builds a plan through calls that keep its accounting right (`free`, `tokens`), and changes nothing else;
//! the scheduler then applies it. The buffers are reused: once they have grown, a plan allocates nothing.

pub use self::chunk::{Chunk, Origin};
pub use self::hold::{Hold, HoldReason, Refusal};
use self::moves::TakenOut;
use crate::memory::BlockPool;
use crate::model::{BatchShape, Hit, RequestId, Slot};
use crate::state::{Prefixes, View};

mod check;
mod chunk;
mod fits;
mod hold;
mod moves;
mod preemption;
mod steps;
#[cfg(test)]
mod tests;

/// One iteration, as proposed.
///
/// A host reads it as vLLM reads a `SchedulerOutput`:
///
/// ```
/// use wait_core::config::PolicyName;
/// use wait_core::{Config, HoldReason, Request, Scheduler};
///
/// // Room for 48 tokens.
/// let mut scheduler = Scheduler::new(&Config { policy: PolicyName::Vllm, kv_blocks: 3, ..Config::default() })?;
/// for id in 0..2 {
///     scheduler.add(&Request { id, prompt: 30, ..Request::default() })?;
/// }
/// let plan = scheduler.plan(0);
/// assert_eq!((plan.tokens(), plan.decodes(), plan.residents()), (30, 0, 1));
/// assert!(plan.preempted().is_empty() && !plan.is_idle());
/// // The second prompt needs two blocks, and one is left.
/// let hold = plan.hold(0).unwrap();
/// assert_eq!((hold.reason, hold.needs, hold.limit), (HoldReason::NoBlocks, 2.0, 1.0));
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Plan {
    /// Number of the plan; each has one of its own.
    number: u64,
    /// By lane: number of the last plan in which it runs.
    ran: Box<[u64]>,
    /// By lane: what the plan took out before the lane was to run.
    taken_out: Box<[TakenOut]>,
    chunks: Vec<Chunk>,
    /// Lanes step and prompts are computed, as in almost every plan: the next five lists are empty.
    plain: bool,
    preempted: Vec<(Slot, RequestId)>,
    parked: Vec<Slot>,
    unparked: Vec<(Slot, u16)>,
    moved: Vec<(Slot, usize)>,
    refused: Vec<Refusal>,
    /// By queue: number of the last plan that held it, and why.
    held: Box<[(u64, Hold)]>,
    free: i64,
    /// The pool once the preempted have left; none while nothing is preempted.
    left: Option<BlockPool>,
    budget: u32,
    /// Of the prompts.
    prefill_tokens: u32,
    decodes: u32,
    /// What they take of the budget.
    decode_tokens: u32,
    /// KV tokens of the requests that decode, after this iteration.
    decode_kv: u64,
    /// Tokens that each decode takes of the budget.
    each: u32,
    residents: u32,
    wake_ns: Option<u64>,
    /// Named blocks that have left windows ahead of the step that was to give them back.
    owed: u32,
    /// The prefix cache, from which the plan takes blocks while it is being made.
    pub(crate) prefixes: Option<Box<Prefixes>>,
    shape: BatchShape,
    marks: check::Marks,
}

impl Plan {
    /// An empty plan.
    pub(crate) fn new(view: &View) -> Self {
        let mut plan = Self {
            number: 0,
            ran: vec![0; view.lanes().len()].into(),
            taken_out: vec![TakenOut::default(); view.lanes().len()].into(),
            chunks: Vec::new(),
            plain: true,
            preempted: Vec::new(),
            parked: Vec::new(),
            unparked: Vec::new(),
            moved: Vec::new(),
            refused: Vec::new(),
            held: vec![(0, Hold::new(HoldReason::EnginePaused, 0, 0)); view.queues() + 1].into(),
            free: 0,
            left: None,
            budget: 0,
            prefill_tokens: 0,
            decodes: 0,
            decode_tokens: 0,
            decode_kv: 0,
            each: 0,
            residents: 0,
            wake_ns: None,
            owed: 0,
            prefixes: None,
            shape: BatchShape::default(),
            marks: check::Marks::default(),
        };
        plan.begin(view);
        plan
    }

    #[inline(always)]
    pub(crate) fn begin(&mut self, view: &View) {
        self.number += 1;
        self.chunks.clear();
        if !self.plain {
            self.clear_moves();
        }
        self.free = view.pool().free();
        self.left = None;
        self.budget = view.limits().token_budget;
        self.prefill_tokens = 0;
        self.decodes = 0;
        self.decode_tokens = 0;
        self.decode_kv = 0;
        self.each = view.limits().decode_tokens;
        self.residents = view.residents();
        self.wake_ns = None;
    }

    // ---- what hosts read ---------------------------------------------------------------------------------------

    /// Whether the members of `lane` decode one token each.
    pub fn runs(&self, lane: usize) -> bool {
        self.ran.get(lane).is_some_and(|&number| number == self.number)
    }

    /// Prefill chunks: residents first, then admissions in their order; those of late requests after those in time.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// No request is preempted, parked, unparked, moved or refused, as in almost every plan.
    pub(crate) fn is_plain(&self) -> bool {
        self.plain
    }

    /// Requests preempted before the iteration, in the order in which they were chosen: last admitted first, or by priority.
    pub fn preempted(&self) -> &[(Slot, RequestId)] {
        &self.preempted
    }

    /// Requests taken out of their lane, which keep their KV.
    pub fn parked(&self) -> &[Slot] {
        &self.parked
    }

    /// Parked requests that join a lane and decode in this iteration.
    pub fn unparked(&self) -> &[(Slot, u16)] {
        &self.unparked
    }

    /// Requests that move to another queue, and which one, before any request is admitted.
    pub fn moved(&self) -> &[(Slot, usize)] {
        &self.moved
    }

    /// Waiting requests that are refused, and leave before anything is admitted.
    pub fn refused(&self) -> &[Refusal] {
        &self.refused
    }

    /// Most tokens that the host should compute in this iteration.
    pub fn token_budget(&self) -> u32 {
        self.budget.max(self.tokens())
    }

    /// Tokens of the iteration: decodes, with the drafts that they verify, and prefill.
    #[inline]
    pub fn tokens(&self) -> u32 {
        self.decode_tokens().saturating_add(self.prefill_tokens)
    }

    /// Requests that decode.
    pub fn decodes(&self) -> u32 {
        self.decodes
    }

    /// Tokens that the decodes take of the budget: one each, and one for each draft.
    #[inline]
    pub fn decode_tokens(&self) -> u32 {
        self.decode_tokens
    }

    /// Nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.decodes == 0 && self.prefill_tokens == 0
    }

    /// Nothing to compute, and no request admitted whose KV is being transferred.
    pub fn is_idle(&self) -> bool {
        self.decodes == 0 && self.chunks.is_empty()
    }

    /// Why the requests of queue `queue` wait; the last queue is that of the preempted.
    pub fn hold(&self, queue: usize) -> Option<Hold> {
        self.held.get(queue).filter(|(number, _)| *number == self.number).map(|&(_, hold)| hold)
    }

    /// When the policy would decide differently even without a new event: an idle host should plan again by then, ns.
    pub fn wake_ns(&self) -> Option<u64> {
        self.wake_ns
    }

    /// The batch as an iteration-time law sees it.
    pub fn shape(&self) -> &BatchShape {
        &self.shape
    }

    // ---- what policies call ------------------------------------------------------------------------------------

    /// KV blocks left by the plan so far; negative until `make_room` has preempted enough.
    pub fn free(&self) -> i64 {
        self.free
    }

    /// Tokens left in the iteration's budget.
    pub fn tokens_left(&self) -> u32 {
        self.budget.saturating_sub(self.tokens())
    }

    /// Residents after the plan so far.
    pub fn residents(&self) -> u32 {
        self.residents
    }

    /// Sets the token budget of this iteration, at most the configured one.
    pub fn set_budget(&mut self, view: &View, tokens: u32) {
        self.budget = tokens.min(view.limits().token_budget);
    }

    /// All members of `lane` decode.
    #[inline(always)]
    pub fn decode(&mut self, view: &View, lane: usize) {
        debug_assert!(!self.runs(lane), "lane {lane} planned twice");
        let members = &view.lanes()[lane];
        self.ran[lane] = self.number;
        let (mut decodes, mut change) = (self.decodes + members.len(), members.block_change());
        self.decode_kv += members.kv() + u64::from(members.len());
        // Members that the plan has already taken out of the lane must not take a block, even temporarily: it would
        // cost the prefix cache one.
        if !self.plain {
            let out = self.taken_out[lane];
            (decodes, change) = (decodes - out.members, change - out.blocks);
            self.decode_kv -= out.kv;
        }
        self.set_decodes(decodes);
        if self.prefixes.is_some() {
            self.step_cached(view, lane, change);
        } else {
            self.free -= change;
        }
    }

    /// So many requests decode.
    #[inline]
    fn set_decodes(&mut self, decodes: u32) {
        self.decodes = decodes;
        self.decode_tokens = decodes.saturating_mul(self.each);
    }

    /// Takes blocks, or gives some back (negative).
    #[inline]
    fn take(&mut self, blocks: i64) {
        self.free -= blocks;
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.take(blocks);
        }
    }

    /// Continues one prefill as far as the token budget reaches, preempting if necessary.
    pub fn continue_prefill(&mut self, view: &View, slot: Slot) {
        self.prefill(view, slot, u32::MAX);
        self.make_room(view);
    }

    /// Continues one prefill by at most `tokens`, as far as the token budget reaches; the caller makes room for it.
    pub fn prefill(&mut self, view: &View, slot: Slot, tokens: u32) {
        let (start, target) = (view.kv(slot), view.request(slot).prefill_target());
        let tokens = tokens.min(target - start).min(self.tokens_left()).min(view.prefill_chunk());
        if tokens == 0 || self.preempts(slot) {
            return;
        }
        let held = view.blocks(slot);
        let blocks = view.layout().after(start, start + tokens);
        // The copy of a state, which it holds, is not reserved.
        let reserved = || held.min(view.layout().demand(target));
        let blocks = if view.limits().reserves_prompts { blocks.max(reserved()) } else { blocks };
        let (last, hit) = (start + tokens == target, Hit::default());
        self.push(Chunk {
            slot,
            id: view.request(slot).id,
            hit,
            start,
            tokens,
            blocks,
            last,
            origin: Origin::Resident,
        });
        self.step(slot, start, held, i64::from(blocks) - i64::from(held));
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.fill(slot, start + tokens, blocks);
        }
    }

    /// Continues all prefills in the order of their admission.
    pub fn continue_prefills(&mut self, view: &View) {
        for &slot in view.prefilling() {
            self.continue_prefill(view, slot);
        }
    }

    /// Admits a waiting request with a first chunk of at most `tokens` after what is already computed. The caller has
    /// checked that the blocks of the whole prompt are free.
    #[inline(always)]
    pub fn admit(&mut self, view: &View, slot: Slot, tokens: u32) {
        let (request, layout) = (view.request(slot), view.layout());
        let target = request.prefill_target();
        let before = self.prefixes.as_ref().map_or(0, |prefixes| prefixes.held());
        let found = self.prefixes.as_mut().and_then(|prefixes| prefixes.admit(slot, target));
        let hit = found.unwrap_or(Hit { computed: request.computed_on_admission(), ..request.hit });
        let start = hit.computed;
        let most = if request.receives { 0 } else { target - start };
        let tokens = tokens.min(most).min(view.prefill_chunk());
        debug_assert!(tokens > 0 || request.receives, "an admission computes at least one token");
        let reserves = view.limits().reserves_prompts && !request.receives;
        let after = || layout.after(start, start + tokens);
        // With a hit the copy of a state comes on top.
        let blocks = match reserves {
            true if layout.groups().is_empty() => layout.demand(target),
            true => layout.demand(target).max(after()),
            false => after(),
        };
        let origin = if request.preemptions > 0 { Origin::Resumed } else { Origin::Admitted };
        let last = start + tokens == target;
        self.push(Chunk { slot, id: request.id, hit, start, tokens, blocks, last, origin });
        if let Some(prefixes) = &mut self.prefixes {
            let hit_blocks = if found.is_some() { layout.filled(hit.computed) } else { 0 };
            prefixes.take(i64::from(blocks) - i64::from(hit_blocks));
            prefixes.fill(slot, start + tokens, blocks);
            self.free -= prefixes.held() - before;
        } else {
            self.free -= i64::from(blocks.saturating_sub(layout.filled(hit.shared)));
        }
        self.take(request.encoder_blocks.into());
        self.residents += 1;
    }

    /// Drops the chunk of a request that the host has admitted in another way.
    pub(crate) fn forget(&mut self, slot: Slot) {
        self.chunks.retain(|chunk| chunk.slot != slot);
    }

    #[inline]
    fn push(&mut self, chunk: Chunk) {
        self.prefill_tokens += chunk.tokens;
        self.chunks.push(chunk);
    }

    /// States why queue `queue` is held; the last queue is that of the preempted.
    pub fn hold_queue(&mut self, queue: usize, hold: Hold) {
        self.held[queue] = (self.number, hold);
    }

    /// Asks to be called again at `ns` at the latest.
    pub fn wake_at(&mut self, ns: u64) {
        self.wake_ns = Some(self.wake_ns.map_or(ns, |other| other.min(ns)));
    }

    // ---- what the scheduler does with it -----------------------------------------------------------------------

    /// Describes the batch for the iteration-time law.
    pub(crate) fn measure(&mut self) {
        let (decodes, decode_kv) = (u64::from(self.decode_tokens()), self.decode_kv);
        self.shape = BatchShape { decodes, decode_kv, ..BatchShape::default() };
        // Nothing is computed of a request whose KV is being transferred.
        for chunk in self.chunks.iter().filter(|chunk| chunk.tokens > 0) {
            self.shape.add_prefill(u64::from(chunk.tokens), u64::from(chunk.start));
        }
    }
}
