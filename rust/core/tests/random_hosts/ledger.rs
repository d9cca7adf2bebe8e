//! An independent ledger: what every request has and where it is, derived from the calls, the plans and the reports.
//!
//! Everything is in plain lists that are walked, and nothing is read from the core's state. The rules are those in the
//! documentation of `Plan`, `Report` and `Request`.

use std::collections::{BTreeMap, BTreeSet};

use wait_core::config::Preemption;
use wait_core::model::BatchShape;
use wait_core::{Config, Hit, Origin, Plan, Report, RequestId, Stats};

use crate::kv::{Kv, Pool};

/// Plans by which a host's refusal may be late.
const MAX_LAG: u64 = 16;

/// What the last plan did with a resident.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LastStep {
    #[default]
    Stood,
    Decoded,
    /// A chunk.
    Prefilled {
        start: u32,
        end: u32,
    },
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    pub(crate) prompt: u32,
    /// Prompt and `max_tokens`.
    pub(crate) longest: u32,
    /// Output tokens after which the host ends it.
    pub(crate) output: u32,
    pub(crate) type_id: u16,
    /// 0 where the policy does not go by it.
    pub(crate) priority: i64,
    /// What of the prompt is said to be in the KV cache.
    pub(crate) hit: Hit,
    /// Of its blocks, where the core keeps the prefix cache.
    pub(crate) hashes: Vec<u64>,
    /// Its KV is transferred from elsewhere.
    pub(crate) receives: bool,
    /// Blocks beside those of its tokens while it is resident.
    pub(crate) encoder_blocks: u32,
    /// Plans made when it was admitted.
    pub(crate) admitted: u64,
    /// Output tokens that a prefill computes again.
    pub(crate) kept: u32,
    pub(crate) kv: u32,
    pub(crate) blocks: u32,
    pub(crate) preemptions: u32,
    pub(crate) resident: bool,
    pub(crate) parked: bool,
    pub(crate) last: LastStep,
}

impl Entry {
    pub(crate) fn target(&self) -> u32 {
        self.prompt + self.kept
    }

    pub(crate) fn emits(&self) -> bool {
        self.resident && self.kv >= self.target()
    }

    /// Output tokens emitted.
    pub(crate) fn stage(&self) -> u32 {
        if self.emits() { self.kv + 1 - self.prompt } else { self.kept }
    }

    pub(crate) fn receiving(&self) -> bool {
        self.resident && self.receives
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    pub(crate) entries: BTreeMap<RequestId, Entry>,
    /// In the order of their admission.
    pub(crate) residents: Vec<RequestId>,
    /// Waiting, never preempted, by priority, in the order of arrival; one that a host sent back is first of its equals.
    pub(crate) queue: Vec<RequestId>,
    /// Waiting and preempted, by priority, the last first.
    pub(crate) resuming: Vec<RequestId>,
    pub(crate) stats: Stats,
    pub(crate) kv: Kv,
    pub(crate) pool: Pool,
    /// Hashes of the blocks that were computed before the last plan.
    pub(crate) computed: BTreeSet<u64>,
    /// The longest that a request may ever have been.
    pub(crate) model_len: u32,
    restarts: bool,
}

impl Ledger {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            entries: BTreeMap::new(),
            residents: Vec::new(),
            queue: Vec::new(),
            resuming: Vec::new(),
            stats: Stats::default(),
            kv: Kv::new(config),
            pool: Pool::new(config.kv_blocks),
            computed: BTreeSet::new(),
            model_len: wait_core::Scheduler::new(config).unwrap().view().max_model_len(),
            restarts: config.preemption == Preemption::Restart,
        }
    }

    /// Blocks of all residents.
    pub(crate) fn held(&self) -> i64 {
        let beside = |entry: &Entry| if entry.resident { entry.encoder_blocks } else { 0 };
        self.entries.values().map(|entry| i64::from(entry.blocks) + i64::from(beside(entry))).sum()
    }

    pub(crate) fn add(&mut self, id: RequestId, entry: Entry) {
        let hit = entry.hit;
        let goes_first = |other: &RequestId| self.entries[other].priority <= entry.priority;
        self.queue.insert(self.queue.partition_point(goes_first), id);
        self.entries.insert(id, entry);
        self.hits(id, hit);
    }

    /// At least one token is left to compute; blocks are shared where the host has recently reported its free blocks.
    fn hits(&mut self, id: RequestId, hit: Hit) {
        let trusted = self.pool.trusted();
        let entry = self.entry(id);
        let computed = hit.computed.min(entry.target() - 1);
        let shared = if trusted { hit.shared.min(computed) } else { 0 };
        entry.hit = Hit { computed, shared, evicted: hit.evicted.min(entry.target() - computed) };
    }

    fn entry(&mut self, id: RequestId) -> &mut Entry {
        self.entries.get_mut(&id).unwrap_or_else(|| panic!("request {id} is unknown to the host"))
    }

    fn unlist(&mut self, id: RequestId) {
        for list in [&mut self.residents, &mut self.queue, &mut self.resuming] {
            list.retain(|&other| other != id);
        }
    }

    /// A resident frees its blocks, of which `kv` tokens were computed.
    fn release(&mut self, id: RequestId, kv: u32) {
        self.note(id, kv);
        let shared = self.kv.filled(self.entries[&id].hit.shared);
        let entry = self.entry(id);
        (entry.kv, entry.resident, entry.parked) = (0, false, false);
        let blocks = std::mem::take(&mut entry.blocks);
        self.pool.release(blocks, shared, self.held());
        self.unlist(id);
    }

    pub(crate) fn remove(&mut self, id: RequestId) -> bool {
        if let Some(entry) = self.entries.get(&id).filter(|entry| entry.resident) {
            self.release(id, entry.kv);
        }
        self.unlist(id);
        self.entries.remove(&id).is_some()
    }

    pub(crate) fn abort(&mut self, id: RequestId) -> bool {
        let known = self.remove(id);
        *if known { &mut self.stats.aborted } else { &mut self.stats.unknown_ids } += 1;
        known
    }

    /// It waits again, before its equals.
    fn put_back(&mut self, id: RequestId, resumes: bool) {
        let priority = |id: RequestId| self.entries[&id].priority;
        let list = if resumes { &self.resuming } else { &self.queue };
        let place = list.partition_point(|&other| priority(other) < priority(id));
        if resumes { &mut self.resuming } else { &mut self.queue }.insert(place, id);
    }

    fn preempt(&mut self, id: RequestId, kv: u32, stage: u32) {
        self.stats.preemptions += 1;
        self.stats.recomputed_tokens += u64::from(kv);
        self.release(id, kv);
        self.put_back(id, true);
        let restarts = self.restarts;
        let entry = self.entry(id);
        entry.kept = if restarts { 0 } else { stage };
        entry.preemptions += 1;
        let hit = entry.hit;
        self.hits(id, hit);
    }

    fn admit(&mut self, id: RequestId) {
        self.unlist(id);
        self.residents.push(id);
        self.pool.drift += i64::from(self.kv.filled(self.entries[&id].hit.shared));
        let plans = self.stats.iterations;
        let entry = self.entry(id);
        assert!(!entry.resident, "request {id} is admitted twice");
        (entry.resident, entry.admitted) = (true, plans);
        let fresh = entry.preemptions == 0;
        self.stats.admitted += u64::from(fresh);
    }

    /// What a plan assumes: `standing` are the residents that it says do not run, `parked` those it takes out of their lane.
    /// Returns what is computed.
    pub(crate) fn assume(&mut self, plan: &Plan, standing: &[RequestId], parked: &[RequestId]) -> BatchShape {
        let mut shape = BatchShape::default();
        self.stats.iterations += 1;
        self.pool.silence = self.pool.silence.saturating_add(1);
        for refusal in plan.refused() {
            assert!(!self.entry(refusal.id).resident, "what is refused waits");
            self.remove(refusal.id);
            self.stats.refused += 1;
        }
        for id in self.residents.clone() {
            self.note(id, self.entries[&id].kv);
        }
        self.entries.values_mut().for_each(|entry| entry.last = LastStep::Stood);
        for &(_, id) in plan.preempted() {
            let victim = self.residents.iter().max_by_key(|id| self.entries[id].priority);
            assert_eq!(victim, Some(&id), "victims are those of the lowest priority admitted last, last first");
            let (kv, stage) = (self.entry(id).kv, self.entry(id).stage());
            self.preempt(id, kv, stage);
        }
        let kv = self.kv.clone();
        for &id in &self.residents.clone() {
            let entry = self.entry(id);
            if entry.emits() {
                entry.parked = standing.contains(&id) && (entry.parked || parked.contains(&id));
                if !standing.contains(&id) {
                    entry.kv += 1;
                    shape.add_decode(u64::from(entry.kv));
                    entry.blocks = kv.decoding(entry.kv);
                    entry.last = LastStep::Decoded;
                }
            }
        }
        for chunk in plan.chunks() {
            let entry = &self.entries[&chunk.id];
            let resumes = if entry.preemptions > 0 { Origin::Resumed } else { Origin::Admitted };
            assert_eq!(chunk.origin, if entry.resident { Origin::Resident } else { resumes });
            let begins = if entry.resident { entry.kv } else { entry.hit.computed.min(entry.target() - 1) };
            if entry.resident || entry.hashes.is_empty() {
                assert_eq!(chunk.start, begins, "where a chunk begins");
            } else {
                let whole = chunk.start.is_multiple_of(kv.block_size) && chunk.start < entry.target();
                assert!(whole, "whole blocks are found, and a token is left to compute");
                assert!(
                    self.known(&entry.hashes[..(chunk.start / kv.block_size) as usize]),
                    "what is found was computed"
                );
            }
            let (end, target) = (chunk.start + chunk.tokens, entry.target());
            assert!(end <= target && chunk.last == (end == target), "{chunk:?} of {target}");
            assert_eq!(chunk.tokens == 0, entry.receives, "nothing is computed before the KV has come");
            let needs = kv.after(chunk.start, end);
            let whole = needs..=kv.whole(target).max(entry.blocks).max(needs);
            assert!(whole.contains(&chunk.blocks), "{chunk:?} takes other blocks than {whole:?}");
            if !entry.resident {
                self.admit(chunk.id);
            }
            let entry = self.entry(chunk.id);
            (entry.kv, entry.blocks, entry.last) = (end, chunk.blocks, LastStep::Prefilled { start: chunk.start, end });
            if chunk.tokens > 0 {
                shape.add_prefill(u64::from(chunk.tokens), u64::from(chunk.start));
            }
        }
        shape
    }

    fn resident(&mut self, id: RequestId) -> bool {
        let resident = self.entries.get(&id).is_some_and(|entry| entry.resident);
        self.stats.unknown_ids += u64::from(!resident);
        resident
    }

    /// A resident waits again, unless it has run since its admission.
    fn undo_admission(&mut self, id: RequestId) -> bool {
        let entry = &self.entries[&id];
        if self.stats.iterations - entry.admitted > MAX_LAG {
            self.stats.unknown_ids += 1;
            return false;
        }
        let (resumed, hit) = (entry.preemptions > 0, entry.hit);
        self.stats.admitted -= u64::from(!resumed);
        let found = hit.computed;
        self.release(id, found);
        self.hits(id, hit);
        self.put_back(id, resumed);
        true
    }

    /// What a report says that requests have done. What it says of the cache comes last, see `adopt`.
    pub(crate) fn take_in(&mut self, report: &Report) {
        for &id in report.refused.iter().rev() {
            if self.resident(id) {
                self.undo_admission(id);
            }
        }
        for &id in report.preempted {
            if self.resident(id) {
                let entry = &self.entries[&id];
                let (stage, kv) = match entry.last {
                    LastStep::Decoded if entry.emits() => (entry.stage() - 1, entry.kv - 1),
                    LastStep::Prefilled { start, .. } => (entry.stage() - u32::from(entry.emits()), start),
                    _ => (entry.stage(), entry.kv),
                };
                self.preempt(id, kv, stage);
            }
        }
        if !(report.refused.is_empty() && report.preempted.is_empty()) {
            // The others have run, and computed what they found of a request that has not.
            for id in self.residents.clone() {
                self.note(id, self.entries[&id].kv);
            }
        }
        for &(id, kv) in report.progress {
            let Some(entry) = self.entries.get(&id) else {
                self.stats.unknown_ids += 1;
                continue;
            };
            if !entry.resident {
                self.admit(id);
            }
            // No further than the longest possible length.
            let kv = kv.min(self.entries[&id].longest);
            let least = self.kv.after(kv.saturating_sub(1), kv);
            let entry = self.entry(id);
            if !(entry.receives || entry.parked && kv < entry.target()) {
                // Elsewhere than the plan assumed: the host moved it.
                if !matches!(entry.last, LastStep::Prefilled { end, .. } if end == kv) {
                    entry.last = LastStep::Stood;
                }
                // Blocks taken for more tokens stay until the next step, while it decodes.
                let stays = entry.emits() && !entry.parked && kv >= entry.target();
                (entry.kv, entry.blocks) = (kv, if stays { entry.blocks.max(least) } else { least });
            }
        }
        for &(id, kv) in report.receiving {
            let Some(entry) = self.entries.get(&id) else {
                self.stats.unknown_ids += 1;
                continue;
            };
            if entry.resident && !self.undo_admission(id) {
                continue;
            }
            self.entry(id).receives = true;
            self.admit(id);
            let kv = kv.min(self.entries[&id].target() - 1);
            let blocks = self.kv.after(kv.saturating_sub(1), kv);
            let entry = self.entry(id);
            (entry.kv, entry.blocks, entry.last) = (kv, blocks, LastStep::Stood);
        }
        for &id in report.received {
            if self.resident(id) {
                let entry = self.entry(id);
                let receives = std::mem::replace(&mut entry.receives, false);
                if receives {
                    // KV that was received is lost with a preemption.
                    entry.hit.computed = entry.hit.shared;
                }
                self.stats.unknown_ids += u64::from(!receives);
            }
        }
        for &id in report.finished {
            *if self.remove(id) { &mut self.stats.finished } else { &mut self.stats.unknown_ids } += 1;
        }
    }

    /// The cache is as the host says once its requests are where it says.
    pub(crate) fn adopt(&mut self, report: &Report) {
        if let Some(free) = report.free_blocks {
            self.pool.reconcile(free, self.held());
        }
        for &(id, hit) in report.hits {
            match self.entries.get(&id) {
                Some(entry) if !entry.resident => self.hits(id, hit),
                Some(_) => {}
                None => self.stats.unknown_ids += 1,
            }
        }
    }

    /// Whether a report contradicts itself, or is impossible.
    pub(crate) fn contradicts(&self, report: &Report) -> bool {
        let not_run = || report.preempted.iter().chain(report.refused);
        report.free_blocks.is_some_and(|free| free > self.pool.capacity)
            || report.progress.iter().chain(report.receiving).any(|&(_, kv)| kv > self.model_len)
            || report.hits.iter().any(|(_, hit)| hit.shared > hit.computed)
            || not_run().any(|id| report.finished.contains(id))
    }
}
