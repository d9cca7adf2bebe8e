//! Which prefixes the KV cache has, which requests hold their blocks, and which block is taken next.
//!
//! This is vLLM 0.32's `BlockPool`, block for block. A block is *held* while a request has
//! a reference to it, and *free* otherwise. A full block of known tokens is *named* by a hash, which identifies the
//! whole prefix that ends there: equal hashes are equal prefixes. A named block that no request holds stays cached
//! until it is taken for something else. All other blocks are *anonymous*.
//!
//! vLLM takes blocks from the front of one queue of free blocks. It frees a request's blocks last to first, puts the
//! anonymous ones at the front of the queue and the named ones at its end, and starts with a queue of anonymous ones.
//! So the queue always is some anonymous blocks, and behind them the named ones, least recently freed first. Anonymous
//! blocks are all alike and need no more than a count: taking any number of them is O(1), and only named blocks, which
//! are evicted one by one, are linked.
//!
//! Not modelled are a KV connector that reports a failed load (`evict_blocks`), and names for a part of a block, by which vLLM
//! finds states whose blocks are larger than those that are hashed.

#[cfg(test)]
mod tests;

use crate::lookup::Index;

/// A named block that its owner holds and must give back: 4 bytes for each named block of a request.
///
/// A hash alone would not say which block it is: two requests that compute the same block at once hold one each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block(u32);

impl Block {
    /// No named block: an anonymous one, or one that was given back.
    pub(crate) const NONE: Self = Self(NIL);
}

/// How much of a prefix is cached, in blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hit {
    /// Leading blocks that are cached and need not be computed.
    pub(crate) blocks: u32,
    /// How many of them a request holds. The others are free: a request that joins them takes them from the free ones.
    pub(crate) held: u32,
}

/// Neighbours in a ring.
#[derive(Clone, Copy, Debug)]
struct Link {
    prev: u32,
    next: u32,
}

/// The named blocks that are free, in the order in which they are taken. `NIL` stands between the last and the first.
const QUEUE: usize = 0;
/// All blocks with one hash, in the order in which they were named.
const SAME: usize = 1;
/// No block: the first entry of the table, which only closes the ring of the queue.
const NIL: u32 = 0;

#[derive(Clone, Copy, Debug)]
struct Named {
    hash: u64,
    /// Requests that hold it.
    holders: u32,
    links: [Link; 2],
}

impl Named {
    fn alone(at: u32, hash: u64, holders: u32) -> Self {
        Self { hash, holders, links: [Link { prev: at, next: at }; 2] }
    }
}

/// The KV cache's blocks by name, reference and order of eviction. Blocks held and blocks free make up the capacity.
///
/// A request keeps the blocks that it joined or named, in their order, and the count of its anonymous ones, which are
/// its last. A named block costs 32 bytes here and 16 to 32 in the index. Both grow with the number of named blocks: once
/// the cache has filled up, nothing allocates.
#[derive(Clone, Debug)]
pub(crate) struct PrefixCache {
    capacity: u32,
    /// Blocks that a request holds, named or not.
    held: u32,
    /// Named blocks that are free. The rest of the free blocks are anonymous.
    queued: u32,
    /// Named blocks; entries that are vacant are chained by their `next` in the queue.
    named: Vec<Named>,
    vacant: u32,
    /// The block of each hash that was named first.
    index: Index,
}

impl PrefixCache {
    /// A cache of `blocks` usable blocks, all free and anonymous. vLLM keeps one of its blocks for itself: usable are
    /// `num_gpu_blocks - 1`.
    pub(crate) fn new(blocks: u32) -> Self {
        let named = vec![Named::alone(NIL, 0, 0)];
        Self { capacity: blocks, held: 0, queued: 0, named, vacant: NIL, index: Index::default() }
    }

    /// Usable blocks.
    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Blocks that no request holds, cached or not; negative after the capacity shrank below use or more was taken.
    pub(crate) fn free(&self) -> i64 {
        i64::from(self.capacity) - i64::from(self.held)
    }

    /// Blocks that appear are anonymous. Those that disappear are the ones that would be taken next, and where too few
    /// are free, the ones given back next.
    pub(crate) fn set_capacity(&mut self, blocks: u32) {
        self.capacity = blocks;
        self.evict();
    }

    /// What is cached of a prefix, whose blocks have these `hashes`.
    ///
    /// At least one token of a request has to be computed, so that vLLM looks up `(tokens - 1) / block_size` of its
    /// hashes at most.
    pub(crate) fn hit(&self, hashes: &[u64]) -> Hit {
        let mut hit = Hit::default();
        for &hash in hashes {
            let Some(block) = self.first(hash) else { break };
            hit.blocks += 1;
            hit.held += u32::from(self.named[block as usize].holders > 0);
        }
        hit
    }

    /// Hold what is cached of a prefix, and append its blocks to `blocks`. Returns what [`Self::hit`] would have.
    ///
    /// A request that is admitted does this before it takes blocks, which might evict the ones that it hit.
    pub(crate) fn take_prefix(&mut self, hashes: &[u64], blocks: &mut Vec<Block>) -> Hit {
        let mut hit = Hit::default();
        for &hash in hashes {
            let Some(block) = self.first(hash) else { break };
            hit.held += u32::from(!self.hold(block));
            hit.blocks += 1;
            blocks.push(Block(block));
        }
        hit
    }

    /// One more request holds a named block; true if it was free.
    #[inline]
    fn hold(&mut self, block: u32) -> bool {
        let named = &mut self.named[block as usize];
        named.holders += 1;
        let was_free = named.holders == 1;
        if was_free {
            self.leave_queue(block);
            self.held += 1;
        }
        was_free
    }

    /// Whether a block with this hash is cached, and if so, whether a request holds it.
    pub(crate) fn find(&self, hash: u64) -> Option<bool> {
        self.first(hash).map(|block| self.named[block as usize].holders > 0)
    }

    /// Hold the block with this hash, if it is cached.
    pub(crate) fn take_named(&mut self, hash: u64) -> Option<Block> {
        let block = self.first(hash)?;
        self.hold(block);
        Some(Block(block))
    }

    /// Cache something that no request holds in a free block, the last to be evicted; or if it is cached already, have it
    /// evicted last. Without a free block nothing is kept.
    pub(crate) fn keep(&mut self, hash: u64) {
        match self.first(hash) {
            None => {
                self.take(1);
                let block = self.name(hash);
                self.give(&[block], 0);
            }
            Some(block) if self.named[block as usize].holders == 0 => {
                self.unlink(QUEUE, block);
                self.link(QUEUE, block, NIL);
            }
            Some(_) => {}
        }
    }

    /// Forget what has this hash and is not held, because it was not computed after all.
    pub(crate) fn drop_free(&mut self, hash: u64) {
        while let Some(block) = self.first(hash)
            && self.named[block as usize].holders == 0
        {
            self.leave_queue(block);
            self.forget(block);
        }
    }

    /// Take `blocks` anonymous blocks. What was cached in them, least recently freed first, is evicted.
    pub(crate) fn take(&mut self, blocks: u32) {
        self.held += blocks;
        self.evict();
    }

    /// Give an anonymous block that is held the hash of what it contains, or is about to: vLLM names a block as soon as
    /// the iteration that fills it is scheduled.
    ///
    /// Another block may have that hash already. As in vLLM both are then cached, and the one named first is hit, until
    /// it is evicted and the next takes its place.
    pub(crate) fn name(&mut self, hash: u64) -> Block {
        let block = match self.vacant {
            NIL => {
                self.named.push(Named::alone(NIL, 0, 0));
                self.named.len() as u32 - 1
            }
            block => {
                self.vacant = self.named[block as usize].links[QUEUE].next;
                block
            }
        };
        self.named[block as usize] = Named::alone(block, hash, 1);
        let named = &self.named;
        if let Some(first) = self.index.insert(hash, block, |other| named[other as usize].hash == hash) {
            self.link(SAME, block, first);
        }
        Block(block)
    }

    /// Take back a name, because what the block was to contain is not computed after all: it is not found any more. The
    /// request that held it holds an anonymous block instead: the same one, or, if another request holds it too, one more.
    pub(crate) fn unname(&mut self, Block(block): Block) {
        let holders = &mut self.named[block as usize].holders;
        debug_assert!(*holders > 0, "took the name off a block that no request holds");
        if *holders > 1 {
            *holders -= 1;
            self.hide(block);
            self.take(1);
        } else {
            self.forget(block);
        }
    }

    /// Let go of a request's blocks: `named` in their order, and `anonymous` ones behind them. With no `named` ones, a
    /// request frees its tail.
    pub(crate) fn give(&mut self, named: &[Block], anonymous: u32) {
        debug_assert!(anonymous <= self.held, "gave back more blocks than were taken");
        self.held -= anonymous;
        // The end of a prefix is of use only with all that is before it, so it is evicted first.
        for &Block(block) in named.iter().rev() {
            let holders = &mut self.named[block as usize].holders;
            debug_assert!(*holders > 0, "gave back a block that no request holds");
            *holders -= 1;
            if *holders == 0 {
                self.link(QUEUE, block, NIL);
                self.queued += 1;
                self.held -= 1;
            }
        }
        // All are freed before the first is evicted, which is only needed when the capacity is below use.
        self.evict();
    }

    /// Forget what is cached, as after a change of the model's weights. Refused, as in vLLM, while a block is held.
    pub(crate) fn reset(&mut self) -> bool {
        if self.held > 0 {
            return false;
        }
        self.named.truncate(1);
        self.named[NIL as usize] = Named::alone(NIL, 0, 0);
        (self.queued, self.vacant) = (0, NIL);
        self.index.clear();
        true
    }

    /// Evict named blocks until those in the queue are really free.
    fn evict(&mut self) {
        while i64::from(self.queued) > self.free().max(0) {
            let block = self.named[NIL as usize].links[QUEUE].next;
            self.leave_queue(block);
            self.forget(block);
        }
    }

    /// A named block is no longer among the free ones.
    #[inline]
    fn leave_queue(&mut self, block: u32) {
        self.unlink(QUEUE, block);
        self.queued -= 1;
    }

    /// Take the name off a block that is not in the queue.
    fn forget(&mut self, block: u32) {
        self.hide(block);
        self.named[block as usize].links[QUEUE].next = self.vacant;
        self.vacant = block;
    }

    /// No look-up finds the block any more; nothing changes for one that is hidden already.
    fn hide(&mut self, block: u32) {
        let Named { hash, links, .. } = self.named[block as usize];
        let next = links[SAME].next;
        if next == block {
            self.index.remove(hash, block);
        } else {
            self.index.replace(hash, block, next);
            self.unlink(SAME, block);
            self.named[block as usize].links[SAME] = Link { prev: block, next: block };
        }
    }

    fn first(&self, hash: u64) -> Option<u32> {
        self.index.find(hash, |block| self.named[block as usize].hash == hash)
    }

    /// Put a block into a ring, before `next`.
    fn link(&mut self, ring: usize, block: u32, next: u32) {
        let prev = self.named[next as usize].links[ring].prev;
        self.named[block as usize].links[ring] = Link { prev, next };
        self.named[prev as usize].links[ring].next = block;
        self.named[next as usize].links[ring].prev = block;
    }

    fn unlink(&mut self, ring: usize, block: u32) {
        let Link { prev, next } = self.named[block as usize].links[ring];
        self.named[prev as usize].links[ring].next = next;
        self.named[next as usize].links[ring].prev = prev;
    }
}
