//! Which requests may enter: the checks that each passes in turn, and the requests that have passed so far.

use super::overflow_margin::{Most, RequestMargin, Waiting};
use super::pace::Pace;
use super::{Adaptive, BALANCE};
use crate::config::Part;
use crate::learn::{Candidate, KvForecast, Outlook, PART, PARTS, POOLED, Span, forecast};
use crate::memory::Footprint;
use crate::model::{BatchShape, Slot};
use crate::plan::{Hold, HoldReason, Plan};
use crate::policy::Expected;
use crate::state::{Phase, View};

/// The residents, and the requests that enter.
pub(super) struct Entry {
    /// What is held by horizon, by the decoding requests and those `beside` them. Summed only for a request that has
    /// passed all other checks: in most iterations none does.
    outlook: Outlook,
    /// Whether the outlook was needed.
    asked: bool,
    /// What is held if every request runs to its certain end.
    reserved: f64,
    capacity: f64,
    free: i64,
    pub(super) seats: u32,
    /// The prompts of the residents and of the requests that enter.
    prompts: Prompts,
    /// Those of late residents, which wait for all that are in time.
    late: Prompts,
    /// The decodes once all prompts are computed.
    decodes: u32,
    kv: u64,
}

/// Prefill tokens of several requests, and those of them that are computed in this iteration: of a long prompt its next chunk.
#[derive(Default)]
struct Prompts {
    tokens: u32,
    chunks: u32,
}

impl Prompts {
    /// Adds those of one request.
    fn add(&mut self, view: &View, tokens: u32) {
        self.tokens = self.tokens.saturating_add(tokens);
        self.chunks = self.chunks.saturating_add(tokens.min(view.prefill_chunk()));
    }
}

/// Iterations after which a bound is tried one part earlier than where it last held.
const EAGER: i64 = 16;

/// The part of the forecast that decided last: where to begin; it does not affect any decision.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Looked {
    /// Column of the horizon that held a request, and the slots that were left.
    held: Option<(usize, u32)>,
    /// Parts that had to be summed; for the others a bound was enough.
    summed: usize,
}

/// The residents whose prompt is not computed yet, or is being transferred.
fn undecoded(view: &View) -> impl Iterator<Item = Slot> {
    view.prefilling().iter().chain(view.receiving()).copied()
}

impl Adaptive {
    /// What the residents hold by horizon. Those whose prompt is not computed yet count as if it were.
    fn outlook(&mut self, view: &View) -> [Span<PART>; PARTS] {
        // A request that the host took back from decoding is still counted there.
        let computing = undecoded(view).filter(|&slot| !self.forecast.holds(slot));
        let beside: Vec<Candidate> = computing.map(|slot| self.candidate(view, slot)).collect();
        self.forecast.outlook(&beside)
    }

    /// How likely the residents overflow the cache, if none is admitted after them.
    pub(super) fn overflows(&mut self, view: &View) -> Vec<KvForecast> {
        let prompts: u64 = undecoded(view).map(|slot| u64::from(view.request(slot).prefill_target())).sum();
        let residents = f64::from(view.residents());
        let footprint = self.forecast.footprint();
        let growth = footprint.steepest();
        let beside: u64 = view.iter_residents().map(|slot| u64::from(self.encoder_kv(view, slot))).sum();
        let kv = (view.lanes()[0].kv() + prompts + beside).saturating_sub(self.shared) as f64;
        let most = growth * kv + residents * footprint.most_beside();
        forecast(&self.outlook(view), self.capacity(view), most, growth * residents)
    }

    /// The peak of what the residents will hold: the expectation at the horizon where it is largest.
    pub(super) fn expected(&mut self, view: &View) -> Expected {
        let outlook = self.outlook(view);
        let moments = outlook.iter().flat_map(Span::moments).map(|each| (each.mean, each.deviation));
        let (kv_peak, kv_deviation) = moments.fold((0.0, 0.0), |most, at| if at.0 > most.0 { at } else { most });
        // What is shared is held only once.
        let kv_peak = kv_peak + self.shared as f64;
        let learned = self.learned.moments(&self.forecast).map(|(output, _)| output);
        let ended = Some(self.traffic.output()).filter(|&output| output > 0.0);
        // Before the first end there is only the prior.
        let output = learned.or(ended).unwrap_or_else(|| self.forecast.curve(POOLED).moments().0);
        Expected { kv_peak, kv_deviation, output }
    }

    /// What is known before any request enters.
    pub(super) fn entry(&mut self, view: &View, plan: &Plan) -> Entry {
        self.learned.refresh(&mut self.forecast);
        // A host may have taken them back from decoding.
        view.prefilling().iter().for_each(|&slot| _ = self.forecast.leave(slot));
        self.beside.clear();
        let mut entry = Entry {
            outlook: Outlook::default(),
            asked: false,
            reserved: self.forecast.reserved(),
            capacity: self.capacity(view),
            free: plan.free(),
            seats: view.limits().max_num_seqs.saturating_sub(plan.residents()),
            prompts: Prompts::default(),
            late: Prompts::default(),
            decodes: plan.decodes(),
            kv: view.lanes()[0].kv(),
        };
        for slot in undecoded(view) {
            let candidate = self.candidate(view, slot);
            let prompt = view.request(slot).prefill_target();
            // A prompt that is being transferred takes no tokens of this iteration.
            let computes = view.request(slot).phase == Phase::Prefilling;
            let prompts = if self.is_late(view, slot) { &mut entry.late } else { &mut entry.prompts };
            prompts.add(view, if computes { prompt - view.kv(slot) } else { 0 });
            entry.free -= i64::from(view.layout().prefill(prompt)) - i64::from(view.blocks(slot));
            entry.join(&candidate, self.forecast.footprint(), prompt);
            self.beside.push(candidate);
        }
        entry
    }

    /// Whether a request may enter beside all that `entry` holds; if so, `entry` then includes it.
    pub(super) fn check(
        &mut self,
        view: &View,
        plan: &Plan,
        entry: &mut Entry,
        slot: Slot,
        idle: bool,
    ) -> Result<(), Hold> {
        let seats = view.limits().max_num_seqs;
        if entry.seats == 0 {
            return Err(Hold::new(HoldReason::BatchCap, seats + 1, seats));
        }
        let tokens = plan.decode_tokens().saturating_add(entry.prompts.chunks);
        if tokens >= view.limits().token_budget {
            return Err(Hold::new(HoldReason::BatchCap, tokens + 1, view.limits().token_budget));
        }
        let request = view.request(slot);
        let prompt = request.prefill_target();
        let blocks = view.layout().prefill(prompt).saturating_sub(request.shared_blocks(view.layout()));
        let blocks = blocks.saturating_add(request.encoder_blocks);
        if i64::from(blocks) > entry.free {
            return Err(Hold::new(HoldReason::NoBlocks, blocks, entry.free as f64));
        }
        let candidate = self.candidate(view, slot);
        if !idle {
            let left = (entry.free - i64::from(blocks)) as f64 * f64::from(view.pool().block_size());
            self.fits(view, entry, &candidate, left)?;
            self.keeps_pace(view, entry, prompt)?;
        }
        entry.prompts.add(view, prompt - request.computed_on_admission());
        entry.free -= i64::from(blocks);
        entry.seats -= 1;
        entry.join(&candidate, self.forecast.footprint(), prompt);
        self.beside.push(candidate);
        Ok(())
    }

    /// Continues the prefills in time, in the order of their admission.
    pub(super) fn continue_in_time(&self, view: &View, plan: &mut Plan) {
        for &slot in view.prefilling().iter().filter(|&&slot| !self.is_late(view, slot)) {
            plan.continue_prefill(view, slot);
        }
    }

    /// Continues the prefills of late requests; beside prompts in time, where the whole next chunk and its memory are left: a host
    /// that orders residents by their admission would give more to the late one first, and nothing to a newcomer.
    pub(super) fn continue_late(&self, view: &View, plan: &mut Plan) {
        let alone = plan.tokens() == plan.decode_tokens();
        for &slot in view.prefilling().iter().filter(|&&slot| self.is_late(view, slot)) {
            let target = view.request(slot).prefill_target();
            let chunk = (target - view.kv(slot)).min(view.prefill_chunk());
            let blocks = i64::from(view.layout().prefill(target)) - i64::from(view.blocks(slot));
            if alone || (chunk <= plan.tokens_left() && blocks <= plan.free()) {
                plan.continue_prefill(view, slot);
            }
        }
    }

    /// Admits requests that have passed, in turn, until one does not fit after all; whether all did.
    pub(super) fn admit(view: &View, plan: &mut Plan, entering: &[Slot]) -> bool {
        for &slot in entering {
            if plan.tokens_left() == 0 || !plan.preempted().is_empty() {
                let hold = Hold::new(HoldReason::BatchCap, plan.tokens() + 1, plan.token_budget());
                (0..=view.queues()).for_each(|queue| plan.hold_queue(queue, hold));
                return false;
            }
            // Requests before it may have taken the blocks that it found in the prefix cache.
            if view.limits().caches_prefixes
                && let Err(hold) = plan.fits(view, slot, 0)
            {
                (0..view.queues()).for_each(|queue| plan.hold_queue(queue, hold));
                return false;
            }
            plan.admit(view, slot, plan.tokens_left());
        }
        true
    }

    /// KV tokens that the cache has for the requests' own use: all but the shared prefixes, each of which is there
    /// once, and what the host uses for other purposes.
    pub(super) fn capacity(&self, view: &View) -> f64 {
        let pool = view.pool();
        let saved = (pool.counted() - pool.used()) as f64 * f64::from(pool.block_size());
        pool.tokens() as f64 + saved - self.shared as f64
    }

    /// Memory: every request up to `max_tokens`, or admissions at the pace of alike outputs, and the forecast and its margin
    /// at every horizon. The request would leave `left` tokens of the cache free.
    fn fits(&mut self, view: &View, entry: &mut Entry, candidate: &Candidate, left: f64) -> Result<(), Hold> {
        if entry.reserved + candidate.reserved(self.forecast.footprint()) <= entry.capacity {
            return Ok(());
        }
        if self.is_paced(view, entry.capacity) && !self.pace.admits(&self.traffic, self.entering.len()) {
            let enter = self.entering.len() as f64;
            return Err(Hold::new(HoldReason::BelowThreshold, enter + 1.0, self.pace.admissions(&self.traffic)));
        }
        let waiting = self.waiting(view, entry, candidate);
        let growth = self.forecast.footprint().steepest() * f64::from(entry.decodes + 1);
        let most = Most { now: entry.capacity - left, growth };
        let margin = self.margin.of(candidate.kv, waiting, entry.capacity, most);
        let needs = self.overflow(entry, candidate, &margin);
        needs.map_or(Ok(()), |needs| Err(Hold::new(HoldReason::ForecastOverflow, needs, entry.capacity)))
    }

    /// What an iteration in the queue costs, for this request.
    fn waiting(&self, view: &View, entry: &Entry, candidate: &Candidate) -> Waiting {
        let (slot, iteration) = self.worth(view, entry.decodes, entry.kv);
        let (queued, weight) = self.budget.as_ref().map_or((0.0, 1.0), |budget| (budget.queued(), budget.weight()));
        let has_token = candidate.stage > 1;
        let first = if has_token { 0.0 } else { weight * iteration / view.len() as f64 };
        Waiting { slot: slot / (1.0 + queued), first }
    }

    /// What a slot is worth per iteration beside this many decodes that hold `kv`, and an iteration, in prompt tokens.
    fn worth(&self, view: &View, decodes: u32, kv: u64) -> (f64, f64) {
        match &self.budget {
            Some(budget) => budget.worth(view, decodes, kv),
            None => (BALANCE / f64::from(decodes.max(1)), BALANCE),
        }
    }

    /// Whether admissions are paced: where that pays, and with a target for the iterations, whose length a cohort drives up
    /// as it grows.
    fn is_paced(&self, view: &View, capacity: f64) -> bool {
        let slot = || self.worth(view, self.traffic.residents(capacity) as u32, capacity as u64).0;
        let pays = || self.tpot_target.is_some() || Pace::pays(&self.traffic, slot());
        self.has(Part::Pacing) && self.traffic.is_alike() && pays()
    }

    /// What is needed at a horizon at which the forecast and its margin exceed the cache, if there is one. Evaluates
    /// only as much as necessary: the horizon that held a request last, if none has left since; then the nearest part,
    /// and further ones until the rest is bounded.
    fn overflow(&mut self, entry: &mut Entry, candidate: &Candidate, margin: &RequestMargin) -> Option<f64> {
        let looked = &mut self.looked;
        if let Some((column, seats)) = looked.held.filter(|_| !std::mem::replace(&mut entry.asked, true))
            && entry.seats <= seats
        {
            let mut span = self.forecast.glance(column, &self.beside);
            self.forecast.add(&mut span, candidate);
            let (needs, _) = margin.needs(&span);
            if needs > entry.capacity {
                return Some(needs);
            }
        }
        for part in (0..PARTS).take_while(|&part| margin.asks(part * PART)) {
            // A bound is tried where it held last, and occasionally one part earlier.
            if part + usize::from(self.forecast.tick() % EAGER == 0) >= looked.summed
                && !entry.outlook.has_seen(part)
                && let Some((mean, deviation)) = self.forecast.bound(&mut entry.outlook, part, &self.beside, candidate)
                && margin.is_clear(mean, deviation)
            {
                looked.summed = part;
                return None;
            }
            let mut span = self.forecast.look(&mut entry.outlook, part, &self.beside);
            self.forecast.add(&mut span, candidate);
            let (needs, column) = margin.needs(&span);
            if needs > entry.capacity {
                looked.held = Some((column, entry.seats));
                return Some(needs);
            }
        }
        looked.summed = PARTS;
        None
    }

    /// Speed: the iteration in which all requests decode takes no longer than the target.
    fn keeps_pace(&self, view: &View, entry: &Entry, prompt: u32) -> Result<(), Hold> {
        let Some((budget, target)) = self.budget.as_ref().zip(self.tpot_target) else { return Ok(()) };
        let limits = view.limits();
        let decodes = u64::from((entry.decodes + 1).min(limits.max_num_seqs)) * u64::from(limits.decode_tokens);
        let decode_kv = entry.kv + u64::from(prompt);
        let seconds = budget.seconds(&BatchShape { decodes, decode_kv, ..BatchShape::default() });
        if seconds > target { Err(Hold::new(HoldReason::TpotTarget, seconds, target)) } else { Ok(()) }
    }
}

impl Entry {
    /// How many more of the waiting requests the free memory and slots would hold, of mean size.
    pub(super) fn would_fit(&self, view: &View) -> u32 {
        let tokens = view.waiting_tokens() / u64::from(view.waiting_total().max(1));
        let blocks = i64::from(view.layout().demand(tokens as u32).max(1));
        (self.free.max(0) / blocks).min(i64::from(self.seats)) as u32
    }

    /// Prefill tokens before a request in time.
    pub(super) fn before(&self) -> u32 {
        self.prompts.tokens
    }

    /// All prefill tokens.
    pub(super) fn backlog(&self) -> u32 {
        self.prompts.tokens.saturating_add(self.late.tokens)
    }

    /// From here on requests are late: the prompts of late residents come before theirs.
    pub(super) fn begin_late(&mut self) {
        let late = std::mem::take(&mut self.late);
        self.prompts.tokens = self.prompts.tokens.saturating_add(late.tokens);
        self.prompts.chunks = self.prompts.chunks.saturating_add(late.chunks);
    }

    /// Adds one request, with this many tokens in the cache once its prefill ends.
    fn join(&mut self, candidate: &Candidate, footprint: &Footprint, prompt: u32) {
        self.reserved += candidate.reserved(footprint);
        self.decodes += 1;
        self.kv += u64::from(prompt);
    }
}
