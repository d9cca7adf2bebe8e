//! What a request holds by name where the KV cache has several groups, or one that is not full.
//!
//! A full group only grows, so that its named blocks are a request's first. Of a window or a chunk the first blocks are given
//! back while the request runs: what they contain stays cached until they are taken. A lane is not told which of its
//! members gives back a block, so each member is looked at in each step; blocks of output are named when they are given
//! back, or with the others when the request leaves. No request can find them before, as it cannot know that output.
//!
//! States are cached beside what requests hold. vLLM keeps the block of a state that it caches held for one step more, and
//! cuts prompts so that a step ends where a state is kept; here a step may end behind it.

use super::{Chain, Prefixes};
use crate::memory::{Block, CachedGroups, PrefixCache};
use crate::model::{Hit, Slot};

/// What a waiting request finds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) tokens: u32,
    /// How many of the blocks that it would hold others hold already.
    pub(crate) held: u32,
}

/// The blocks of one group that a request has named or passed.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// The first that it has not given back; of a state, boundaries that it has passed.
    from: u32,
    blocks: Vec<Block>,
    /// How many from there on have a name.
    named: u32,
}

impl Held {
    pub(super) fn new(hashes: usize) -> Self {
        Self { from: 0, blocks: Vec::with_capacity(hashes), named: 0 }
    }

    /// Blocks that it holds by name.
    pub(super) fn named(&self) -> u32 {
        self.named
    }

    fn len(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// The next block gets its name, if it may have one and the request has an anonymous block for it.
    fn push(&mut self, name: Option<u64>, cache: &mut PrefixCache, anonymous: &mut u32) {
        let name = name.filter(|_| self.len() >= self.from && *anonymous > 0);
        *anonymous -= u32::from(name.is_some());
        self.named += u32::from(name.is_some());
        self.blocks.push(name.map_or(Block::NONE, |hash| cache.name(hash)));
    }

    /// A state has passed `full` boundaries: the one after the last of them is kept, if it is new.
    fn pass(&mut self, full: u32, key: impl Fn(u32) -> u64, cache: &mut PrefixCache) {
        if full > self.from {
            self.from = full;
            cache.keep(key(full - 1));
        }
    }

    /// Gives back all blocks before `to`, and says how many had a name.
    fn give(&mut self, to: u32, cache: &mut PrefixCache) -> u32 {
        let before = self.named;
        for at in (self.from..to.min(self.len())).rev() {
            let block = self.blocks[at as usize];
            if block != Block::NONE {
                cache.give(&[block], 0);
                self.named -= 1;
            }
        }
        self.from = to;
        before - self.named
    }
}

/// A request, the groups and the cache at once.
struct Parts<'a> {
    groups: &'a CachedGroups,
    cache: &'a mut PrefixCache,
    hashes: &'a [u64],
    rows: &'a mut [Held],
}

impl Prefixes {
    fn parts(&mut self, slot: Slot) -> Option<Parts<'_>> {
        let groups = self.groups.as_ref()?;
        let Chain { hashes, rows, .. } = self.chains.get_mut(slot as usize)?.as_deref_mut()?;
        Some(Parts { groups, cache: &mut self.cache, hashes, rows })
    }

    /// What a request that has `target` tokens to compute finds; none with one group of full attention.
    #[cold]
    pub(crate) fn find_in_groups(&self, slot: Slot, target: u32) -> Option<Found> {
        let (groups, chain) = (self.groups.as_ref()?, self.chain(slot)?);
        let tokens = groups.longest(&self.cache, &chain.hashes, target - 1);
        Some(Found { tokens, held: groups.held(&self.cache, &chain.hashes, tokens) })
    }

    /// `Found`, in tokens that are shared in all groups.
    #[cold]
    pub(super) fn hit_in_groups(&self, slot: Slot, target: u32) -> Option<Hit> {
        let Found { tokens, held } = self.find_in_groups(slot, target)?;
        let shared = self.groups.as_ref().map_or(0, |groups| groups.shared(tokens, held));
        Some(Hit { computed: tokens, shared, evicted: 0 })
    }

    /// It holds what it finds up to `end`.
    #[cold]
    pub(super) fn join_groups(&mut self, slot: Slot, end: u32) {
        let Some(Parts { groups, cache, hashes, rows }) = self.parts(slot) else { return };
        for (row, held) in groups.rows().iter().zip(rows) {
            let full = row.full(end);
            if row.is_state() {
                held.pass(full, |block| row.key(hashes, block), cache);
                continue;
            }
            held.from = row.left(end);
            held.blocks.resize(held.from as usize, Block::NONE);
            held.blocks.extend((held.from..full).filter_map(|block| cache.take_named(row.key(hashes, block))));
            held.named = held.len() - held.from;
        }
    }

    /// A step begins with `start` tokens: a request of `blocks` blocks gives back what it no longer needs. Returns how
    /// many of them had a name: as many fewer anonymous ones have to be given back.
    #[cold]
    pub(crate) fn leave_groups(&mut self, slot: Slot, start: u32, blocks: u32) -> u32 {
        let Some(Parts { groups, cache, hashes, rows }) = self.parts(slot) else { return 0 };
        let named: u32 = rows.iter().map(|held| held.named).sum();
        let (mut anonymous, mut given) = (blocks.saturating_sub(named), 0);
        for (row, held) in groups.rows().iter().zip(rows) {
            if row.is_state() {
                // Decodes pass each boundary.
                if start == groups.cacheable(hashes, start) {
                    held.pass(row.full(start), |block| row.key(hashes, block), cache);
                }
                continue;
            }
            let left = row.left(start);
            if left > held.from {
                let full = row.full(groups.cacheable(hashes, start));
                for block in held.len()..left {
                    let names = block < full && groups.reaches(row, block);
                    held.push(names.then(|| row.key(hashes, block)), cache, &mut anonymous);
                }
                given += held.give(left, cache);
            }
        }
        given
    }

    /// The blocks that `tokens` fill get their names, as far as the request, which has `blocks`, has anonymous ones. `cut`:
    /// vLLM would have cut the step that computed them at the last boundary.
    #[cold]
    pub(super) fn fill_groups(&mut self, slot: Slot, tokens: u32, blocks: u32, cut: bool) {
        let Some(Parts { groups, cache, hashes, rows }) = self.parts(slot) else { return };
        let named: u32 = rows.iter().map(|held| held.named).sum();
        let (cacheable, mut anonymous) = (groups.cacheable(hashes, tokens), blocks.saturating_sub(named));
        for (row, held) in groups.rows().iter().zip(rows) {
            let full = row.full(cacheable);
            if row.is_state() {
                if cut || tokens == cacheable {
                    held.pass(full, |block| row.key(hashes, block), cache);
                }
                continue;
            }
            for block in held.len()..full {
                let names = groups.reaches(row, block);
                held.push(names.then(|| row.key(hashes, block)), cache, &mut anonymous);
            }
        }
    }

    /// No more than `tokens` were computed.
    #[cold]
    pub(super) fn unfill_groups(&mut self, slot: Slot, tokens: u32) {
        let Some(Parts { groups, cache, hashes, rows }) = self.parts(slot) else { return };
        for (row, held) in groups.rows().iter().zip(rows) {
            let full = row.full(tokens);
            if row.is_state() {
                (full..held.from).for_each(|block| cache.drop_free(row.key(hashes, block)));
                held.from = held.from.min(full);
                continue;
            }
            while held.len() > full
                && let Some(block) = held.blocks.pop()
            {
                if block == Block::NONE {
                    continue;
                }
                if held.len() < held.from {
                    cache.drop_free(row.key(hashes, held.len()));
                } else {
                    cache.unname(block);
                    held.named -= 1;
                }
            }
            held.from = held.from.min(full);
        }
    }

    /// It gives back all its `blocks`.
    #[cold]
    pub(super) fn release_groups(&mut self, slot: Slot, blocks: u32) {
        let mut named = 0;
        if let Some(Parts { cache, rows, .. }) = self.parts(slot) {
            for held in rows {
                named += held.give(held.len(), cache);
                (held.from, held.named) = (0, 0);
                held.blocks.clear();
            }
        }
        self.cache.give(&[], blocks - named);
    }
}
