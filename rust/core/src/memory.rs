//! KV blocks, counted. Which block holds what is the host's business; how many are free is ours.

/// Counts of KV blocks. `free` may be negative for a moment: capacity can shrink below use, and the next plan evicts.
#[derive(Clone, Debug)]
pub struct BlockPool {
    capacity: u32,
    block_size: u32,
    used: i64,
    /// Blocks our own count charges but the host does not (shared prefixes), or the reverse; the host is right.
    drift: i64,
}

impl BlockPool {
    pub(crate) fn new(capacity: u32, block_size: u32) -> Self {
        Self { capacity, block_size, used: 0, drift: 0 }
    }

    /// Usable blocks.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Tokens per block.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Blocks in use, as the host last corrected them.
    pub fn used(&self) -> i64 {
        self.used - self.drift
    }

    /// Blocks left; negative after the capacity shrank below use.
    pub fn free(&self) -> i64 {
        i64::from(self.capacity) - self.used()
    }

    /// Blocks that `tokens` occupy.
    pub fn blocks_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.block_size)
    }

    pub(crate) fn take(&mut self, blocks: u32) {
        self.used += i64::from(blocks);
    }

    pub(crate) fn give(&mut self, blocks: u32) {
        self.used -= i64::from(blocks);
        debug_assert!(self.used >= 0, "gave back more blocks than were taken");
        // With nothing resident there is nothing to disagree about.
        if self.used == 0 {
            self.drift = 0;
        }
    }

    pub(crate) fn set_capacity(&mut self, blocks: u32) {
        self.capacity = blocks;
    }

    /// Adopt the host's count of free blocks.
    pub(crate) fn reconcile(&mut self, free: u32) {
        self.drift = self.used - (i64::from(self.capacity) - i64::from(free));
    }

    /// Blocks by our own count, without the host's correction.
    pub(crate) fn counted(&self) -> i64 {
        self.used
    }
}
