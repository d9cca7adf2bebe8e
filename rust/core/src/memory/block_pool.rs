//! KV blocks, counted. Which block holds what is up to the host; how many are free is tracked here.

/// Plans after which a host that has not reported its free blocks is no longer trusted about shared ones.
const MAX_SILENCE: u32 = 16;

/// Counts of KV blocks. `free` may be negative for a moment: capacity can shrink below use, and the next plan preempts.
///
/// ```
/// use wait_core::{Config, Report, Request, Scheduler};
///
/// let mut scheduler = Scheduler::new(&Config { kv_blocks: 1000, ..Config::default() })?;
/// scheduler.add(&Request { id: 1, prompt: 100, ..Request::default() })?;
/// scheduler.plan(0);
/// assert_eq!((scheduler.view().pool().used(), scheduler.view().pool().free()), (7, 993));
/// // The host's count takes precedence: here two blocks are shared with a cached prefix.
/// scheduler.complete(&Report { free_blocks: Some(995), ..Report::default() })?;
/// assert_eq!(scheduler.view().pool().free(), 995);
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct BlockPool {
    capacity: u32,
    block_size: u32,
    /// Σ of what the residents hold, with a shared block counted for each of them.
    held: i64,
    /// Blocks that the prefix cache knows to be counted more than once.
    shared: i64,
    /// By how much fewer (shared prefixes) or more blocks are in use; the host's report is authoritative.
    drift: i64,
    /// Plans since the host reported its free blocks.
    silence: u32,
}

impl BlockPool {
    pub(crate) fn new(capacity: u32, block_size: u32) -> Self {
        Self { capacity, block_size, held: 0, shared: 0, drift: 0, silence: u32::MAX }
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

    /// Blocks in use; at least 0.
    #[inline]
    pub fn used(&self) -> i64 {
        (self.held - self.shared - self.drift).max(0)
    }

    /// Free blocks; negative after the capacity shrank below use.
    #[inline]
    pub fn free(&self) -> i64 {
        i64::from(self.capacity) - self.used()
    }

    /// Whether blocks that a request is said to share are not charged: the host has reported its free blocks lately, so
    /// that an undercount is soon corrected. Other hosts give hashes, or are charged for every block.
    #[inline]
    pub(crate) fn trusts_shares(&self) -> bool {
        self.silence <= MAX_SILENCE
    }

    /// Another plan begins.
    pub(crate) fn count_plan(&mut self) {
        self.silence = self.silence.saturating_add(1);
    }

    /// A resident takes blocks, or gives some back (negative).
    #[inline]
    pub(crate) fn take(&mut self, blocks: i64) {
        self.held += blocks;
        debug_assert!(self.held >= 0, "more blocks were given back than taken");
    }

    /// A request was admitted that holds `blocks` blocks which others hold too.
    #[inline]
    pub(crate) fn share(&mut self, blocks: u32) {
        self.drift += i64::from(blocks);
    }

    /// A resident leaves with all its blocks, of which it shared some. Others may hold any of them: a host that no
    /// longer reports its free blocks is charged for those that were thought to be shared.
    #[inline]
    pub(crate) fn release(&mut self, blocks: u32, shared: u32) {
        let lost = if self.trusts_shares() { shared.into() } else { self.drift.clamp(0, blocks.into()) };
        self.take(-i64::from(blocks));
        // No more can be shared than is held. The prefix cache's count of shared blocks is outdated until it counts
        // anew.
        self.drift = (self.drift - lost).min(self.held);
        // With nothing resident there is nothing to disagree about.
        if self.held == 0 {
            self.drift = 0;
        }
    }

    /// The prefix cache says how many blocks are held, each counted once.
    pub(crate) fn count_once(&mut self, blocks: i64) {
        self.shared = self.held - blocks;
        self.drift = self.drift.min(blocks);
    }

    pub(crate) fn set_capacity(&mut self, blocks: u32) {
        self.capacity = blocks;
    }

    /// Adopts the host's count of free blocks, at most the capacity.
    pub(crate) fn reconcile(&mut self, free: u32) {
        self.silence = 0;
        self.drift = self.held - self.shared - (i64::from(self.capacity) - i64::from(free));
    }

    /// Blocks by the core's own count, without the correction.
    pub(crate) fn counted(&self) -> i64 {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_and_giving_move_the_free_count() {
        let mut pool = BlockPool::new(10, 16);
        assert_eq!(pool.tokens(), 160);
        pool.take(7);
        assert_eq!((pool.used(), pool.free()), (7, 3));
        pool.take(-1);
        pool.release(4, 0);
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
        pool.release(7, 0);
        assert_eq!((pool.used(), pool.free()), (0, 10), "with nothing resident there is nothing to disagree about");
    }

    #[test]
    fn a_host_that_uses_more_than_we_count_is_believed() {
        let mut pool = BlockPool::new(10, 16);
        pool.take(2);
        pool.reconcile(1);
        assert_eq!(pool.free(), 1);
        pool.take(3);
        assert_eq!(pool.free(), -2);
        pool.reconcile(10);
        assert_eq!((pool.used(), pool.free()), (0, 10));
    }

    #[test]
    fn a_host_that_falls_silent_pays_for_what_was_shared() {
        // One holds 100 blocks of which another shares 90. The first leaves: 91 are in use, which the host has to report.
        let with_silence = |plans: u32| {
            let mut pool = BlockPool::new(200, 1);
            pool.reconcile(200);
            pool.take(100);
            pool.take(91);
            pool.share(90);
            assert_eq!(pool.used(), 101);
            (0..plans).for_each(|_| pool.count_plan());
            pool
        };
        let mut pool = with_silence(MAX_SILENCE);
        pool.release(100, 0);
        assert_eq!(pool.used(), 1, "until the next report");
        pool.reconcile(109);
        assert_eq!(pool.used(), 91);
        let mut pool = with_silence(MAX_SILENCE + 1);
        assert!(!pool.trusts_shares());
        pool.release(100, 0);
        assert_eq!(pool.used(), 91);
    }
}
