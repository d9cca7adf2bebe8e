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

    /// Tokens that all usable blocks hold.
    pub fn tokens(&self) -> u64 {
        u64::from(self.capacity) * u64::from(self.block_size)
    }

    /// Blocks in use, as the host last corrected them; at least 0.
    pub fn used(&self) -> i64 {
        (self.used - self.drift).max(0)
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

    /// Blocks that our own count is about to charge again, or no longer does.
    pub(crate) fn share(&mut self, blocks: i64) {
        self.drift += blocks;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_fill_whole_blocks() {
        let pool = BlockPool::new(10, 16);
        assert_eq!([0, 1, 16, 17, 32, 33].map(|tokens| pool.blocks_for(tokens)), [0, 1, 1, 2, 2, 3]);
        assert_eq!(pool.tokens(), 160);
        assert_eq!(pool.blocks_for(u32::MAX), 1 << 28);
    }

    #[test]
    fn taking_and_giving_move_the_free_count() {
        let mut pool = BlockPool::new(10, 16);
        pool.take(7);
        assert_eq!((pool.used(), pool.free()), (7, 3));
        pool.give(5);
        assert_eq!((pool.used(), pool.free(), pool.counted()), (2, 8, 2));
    }

    #[test]
    fn capacity_may_shrink_below_use_and_grow_again() {
        let mut pool = BlockPool::new(10, 16);
        pool.take(8);
        pool.set_capacity(3);
        assert_eq!((pool.used(), pool.free()), (8, -5));
        pool.set_capacity(12);
        assert_eq!((pool.used(), pool.free()), (8, 4));
    }

    #[test]
    fn the_host_is_right_until_nothing_is_resident() {
        let mut pool = BlockPool::new(10, 16);
        pool.take(6);
        pool.reconcile(7); // two of the three blocks in use are shared
        assert_eq!((pool.used(), pool.free(), pool.counted()), (3, 7, 6));
        pool.take(1);
        assert_eq!(pool.free(), 6);
        pool.give(5);
        assert_eq!((pool.used(), pool.free()), (0, 10), "never more free than there are");
        pool.give(2);
        pool.take(4);
        assert_eq!(pool.free(), 6, "with nothing resident there is nothing to disagree about");
    }

    #[test]
    fn a_host_that_uses_more_than_we_count_is_believed() {
        let mut pool = BlockPool::new(10, 16);
        pool.take(2);
        pool.reconcile(1);
        assert_eq!(pool.free(), 1);
        pool.take(3);
        assert_eq!(pool.free(), -2);
        pool.reconcile(99);
        assert_eq!((pool.used(), pool.free()), (0, 10), "a count above the capacity is cut");
    }
}
