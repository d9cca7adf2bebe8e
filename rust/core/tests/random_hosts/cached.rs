//! What the ledger knows of the prefix cache: which blocks were computed, and how many there are.

use wait_core::RequestId;

use crate::ledger::{Entry, LastStep, Ledger};

impl Ledger {
    /// Whether all of these blocks have been computed, or are by a resident in this iteration.
    pub(crate) fn known(&self, hashes: &[u64]) -> bool {
        let size = self.kv.block_size;
        let residents = || self.entries.values().filter(|entry| entry.resident);
        let full = |entry: &'_ Entry| entry.hashes.len().min((entry.kv / size) as usize);
        let runs = |hash| residents().any(|entry| entry.hashes[..full(entry)].contains(hash));
        hashes.iter().all(|hash| self.computed.contains(hash) || runs(hash))
    }

    /// The first `kv` tokens of a request are computed, whatever is reported later.
    pub(crate) fn note(&mut self, id: RequestId, kv: u32) {
        let full = (kv / self.kv.block_size) as usize;
        self.computed.extend(self.entries[&id].hashes.iter().take(full));
    }

    /// Blocks that the residents hold if every computed block exists once in each group.
    pub(crate) fn distinct(&self) -> i64 {
        let start = |entry: &Entry| match entry.last {
            LastStep::Stood => 0,
            LastStep::Decoded => entry.kv - 1,
            LastStep::Prefilled { start, .. } => start,
        };
        let residents = self.entries.values().filter(|entry| entry.resident);
        let computed: Vec<_> = residents.map(|entry| (&entry.hashes[..], start(entry), entry.kv)).collect();
        self.held() - self.kv.duplicates(&computed)
    }
}
