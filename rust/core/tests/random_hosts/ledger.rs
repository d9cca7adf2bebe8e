//! A book of its own: what every request has and where it stands, kept from what was asked, what plans say and what was reported.
//!
//! Everything is in plain lists that are walked, and nothing is read from the core's state. The rules are those of the
//! documentation of `Plan`, `Report` and `Request`.

use std::collections::BTreeMap;

use wait_core::config::Preemption;
use wait_core::model::BatchShape;
use wait_core::{Config, Origin, Plan, Report, RequestId, Stats};

/// What the last plan did with a resident.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LastStep {
    #[default]
    Stood,
    Decoded,
    /// A chunk that began here.
    Prefilled(u32),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    pub(crate) prompt: u32,
    /// Output tokens after which the host ends it.
    pub(crate) output: u32,
    pub(crate) type_id: u16,
    pub(crate) shared: u32,
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

    fn leave(&mut self) {
        (self.kv, self.blocks, self.resident, self.parked, self.last) = (0, 0, false, false, LastStep::Stood);
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    pub(crate) entries: BTreeMap<RequestId, Entry>,
    /// In the order of their admission.
    pub(crate) residents: Vec<RequestId>,
    /// Waiting, never preempted, as they came; one that a host sent back stands first.
    pub(crate) line: Vec<RequestId>,
    /// Waiting and preempted, the last first.
    pub(crate) resuming: Vec<RequestId>,
    pub(crate) stats: Stats,
    pub(crate) capacity: u32,
    pub(crate) block_size: u32,
    /// Whether the host has never said anything of blocks: they are what the requests hold, to the block.
    pub(crate) exact: bool,
    model_len: u32,
    restarts: bool,
}

impl Ledger {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            entries: BTreeMap::new(),
            residents: Vec::new(),
            line: Vec::new(),
            resuming: Vec::new(),
            stats: Stats::default(),
            capacity: config.kv_blocks,
            block_size: config.block_size,
            exact: true,
            model_len: config.model_len(),
            restarts: config.preemption == Preemption::Restart,
        }
    }

    pub(crate) fn blocks_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.block_size)
    }

    /// Blocks of all residents.
    pub(crate) fn held(&self) -> i64 {
        self.entries.values().map(|entry| i64::from(entry.blocks)).sum()
    }

    pub(crate) fn shared_blocks(&self, entry: &Entry) -> u32 {
        entry.shared / self.block_size
    }

    /// Blocks that the residents hold of their own.
    pub(crate) fn own(&self) -> i64 {
        let own = |entry: &Entry| i64::from(entry.blocks) - i64::from(self.shared_blocks(entry));
        self.residents.iter().map(|id| own(&self.entries[id])).sum()
    }

    pub(crate) fn add(&mut self, id: RequestId, entry: Entry) {
        self.exact &= entry.shared == 0;
        self.entries.insert(id, entry);
        self.line.push(id);
    }

    fn entry(&mut self, id: RequestId) -> &mut Entry {
        self.entries.get_mut(&id).unwrap_or_else(|| panic!("request {id} is unknown to the host"))
    }

    fn unlist(&mut self, id: RequestId) {
        for list in [&mut self.residents, &mut self.line, &mut self.resuming] {
            list.retain(|&other| other != id);
        }
    }

    pub(crate) fn remove(&mut self, id: RequestId) -> bool {
        self.unlist(id);
        self.entries.remove(&id).is_some()
    }

    pub(crate) fn abort(&mut self, id: RequestId) -> bool {
        let known = self.remove(id);
        *if known { &mut self.stats.aborted } else { &mut self.stats.unknown_ids } += 1;
        known
    }

    fn preempt(&mut self, id: RequestId, kv: u32, stage: u32) {
        self.stats.preemptions += 1;
        self.stats.recomputed_tokens += u64::from(kv);
        self.unlist(id);
        self.resuming.insert(0, id);
        let restarts = self.restarts;
        let entry = self.entry(id);
        entry.kept = if restarts { 0 } else { stage };
        entry.preemptions += 1;
        entry.leave();
    }

    fn admit(&mut self, id: RequestId) {
        self.unlist(id);
        self.residents.push(id);
        let entry = self.entry(id);
        assert!(!entry.resident, "request {id} is admitted twice");
        entry.resident = true;
        let fresh = entry.preemptions == 0;
        self.stats.admitted += u64::from(fresh);
    }

    /// What a plan assumes: `standing` are the residents that it says do not run, `parked` those it takes out of their lane.
    /// Returns what is computed.
    pub(crate) fn assume(&mut self, plan: &Plan, standing: &[RequestId], parked: &[RequestId]) -> BatchShape {
        let mut shape = BatchShape::default();
        self.stats.iterations += 1;
        for refusal in plan.refused() {
            assert!(!self.entry(refusal.id).resident, "what is refused waits");
            self.remove(refusal.id);
            self.stats.refused += 1;
        }
        self.entries.values_mut().for_each(|entry| entry.last = LastStep::Stood);
        for &(_, id) in plan.preempted() {
            assert_eq!(self.residents.last(), Some(&id), "victims are those admitted last, last first");
            let (kv, stage) = (self.entry(id).kv, self.entry(id).stage());
            self.preempt(id, kv, stage);
        }
        let block_size = self.block_size;
        for &id in &self.residents.clone() {
            let entry = self.entry(id);
            if entry.emits() {
                entry.parked = standing.contains(&id) && (entry.parked || parked.contains(&id));
                if !standing.contains(&id) {
                    entry.kv += 1;
                    shape.add_decode(u64::from(entry.kv));
                    entry.blocks = entry.blocks.max(entry.kv.div_ceil(block_size));
                    entry.last = LastStep::Decoded;
                }
            }
        }
        for chunk in plan.chunks() {
            let entry = &self.entries[&chunk.id];
            let resumes = if entry.preemptions > 0 { Origin::Resumed } else { Origin::Admitted };
            assert_eq!(chunk.origin, if entry.resident { Origin::Resident } else { resumes });
            assert_eq!(chunk.start, if entry.resident { entry.kv } else { entry.shared }, "where a chunk begins");
            let (end, target) = (chunk.start + chunk.tokens, entry.target());
            assert!(chunk.tokens > 0 && end <= target && chunk.last == (end == target), "{chunk:?} of {target}");
            let whole = self.blocks_for(end)..=self.blocks_for(target).max(entry.blocks);
            assert!(whole.contains(&chunk.blocks), "{chunk:?} takes other blocks than {whole:?}");
            if !entry.resident {
                self.admit(chunk.id);
            }
            let entry = self.entry(chunk.id);
            (entry.kv, entry.blocks, entry.last) = (end, chunk.blocks, LastStep::Prefilled(chunk.start));
            shape.add_prefill(u64::from(chunk.tokens), u64::from(chunk.start));
        }
        shape
    }

    fn resident(&mut self, id: RequestId) -> bool {
        let resident = self.entries.get(&id).is_some_and(|entry| entry.resident);
        self.stats.unknown_ids += u64::from(!resident);
        resident
    }

    /// What a report tells.
    pub(crate) fn take_in(&mut self, report: &Report) {
        for &id in report.refused.iter().rev() {
            if self.resident(id) {
                self.unlist(id);
                let entry = self.entry(id);
                entry.leave();
                let resumed = entry.preemptions > 0;
                self.stats.admitted -= u64::from(!resumed);
                if resumed { &mut self.resuming } else { &mut self.line }.insert(0, id);
            }
        }
        for &id in report.preempted {
            if self.resident(id) {
                let entry = &self.entries[&id];
                let (stage, kv) = match entry.last {
                    LastStep::Decoded if entry.emits() => (entry.stage() - 1, entry.kv - 1),
                    LastStep::Prefilled(start) => (entry.stage() - u32::from(entry.emits()), entry.kv.min(start)),
                    _ => (entry.stage(), entry.kv),
                };
                self.preempt(id, kv, stage);
            }
        }
        for &(id, kv) in report.progress {
            let Some(entry) = self.entries.get(&id) else {
                self.stats.unknown_ids += 1;
                continue;
            };
            let kv = kv.min(self.model_len);
            if !entry.resident {
                self.admit(id);
            }
            let blocks = self.blocks_for(kv);
            let entry = self.entry(id);
            if !(entry.parked && kv < entry.target()) {
                (entry.kv, entry.blocks) = (kv, blocks);
            }
        }
        for &id in report.finished {
            *if self.remove(id) { &mut self.stats.finished } else { &mut self.stats.unknown_ids } += 1;
        }
        for &(id, tokens) in report.shared {
            self.exact = false;
            match self.entries.get_mut(&id) {
                Some(entry) if !entry.resident => entry.shared = tokens.min(entry.prompt - 1),
                Some(_) => {}
                None => self.stats.unknown_ids += 1,
            }
        }
        self.exact &= report.free_blocks.is_none();
    }
}
