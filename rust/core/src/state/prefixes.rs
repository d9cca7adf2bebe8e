//! What requests hold of the prefix cache, and what they would find there.
//!
//! A host that passes the hashes of the blocks of each request leaves it to the core to track what is cached: which
//! blocks of its prompt are there already, and which of those others hold. While a plan is made and applied, the plan
//! owns this, because the blocks it takes decide what the next request in the same plan finds; at all other times the
//! view does.

use crate::memory::{Block, CachedBlocks, PrefixCache};
use crate::model::{Hit, Slot};

/// Requests with hashes, and the cache that they share with all others.
#[derive(Clone, Debug)]
pub(crate) struct Prefixes {
    cache: PrefixCache,
    block_size: u32,
    /// By slot.
    chains: Vec<Option<Box<Chain>>>,
}

/// The blocks of one request.
#[derive(Clone, Debug)]
struct Chain {
    /// Of each full block of the prompt, and of the output as far as the host knows it in advance.
    hashes: Box<[u64]>,
    /// Those it holds by name, the first of its blocks.
    named: Vec<Block>,
}

impl Prefixes {
    pub(crate) fn new(blocks: u32, block_size: u32) -> Self {
        Self { cache: PrefixCache::new(blocks), block_size, chains: Vec::new() }
    }

    /// Blocks that a request holds.
    pub(crate) fn held(&self) -> i64 {
        i64::from(self.cache.capacity()) - self.cache.free()
    }

    /// Empties the cache; false while a block is held.
    pub(crate) fn reset(&mut self) -> bool {
        self.cache.reset()
    }

    pub(crate) fn set_capacity(&mut self, blocks: u32) {
        self.cache.set_capacity(blocks);
    }

    /// A new request, with its hashes if it has any.
    pub(crate) fn insert(&mut self, slot: Slot, hashes: &[u64]) {
        let at = slot as usize;
        if hashes.is_empty() && self.chains.get(at).is_none_or(Option::is_none) {
            return;
        }
        if self.chains.len() <= at {
            self.chains.resize(at + 1, None);
        }
        self.chains[at] = (!hashes.is_empty())
            .then(|| Box::new(Chain { hashes: hashes.into(), named: Vec::with_capacity(hashes.len()) }));
    }

    fn chain(&self, slot: Slot) -> Option<&Chain> {
        self.chains.get(slot as usize)?.as_deref()
    }

    fn in_tokens(&self, found: CachedBlocks) -> Hit {
        Hit { computed: found.blocks * self.block_size, shared: found.held * self.block_size }
    }

    /// What a waiting request that has `target` tokens to compute finds; none for one without hashes.
    pub(crate) fn hit(&self, slot: Slot, target: u32) -> Option<Hit> {
        let chain = self.chain(slot)?;
        let found = self.cache.hit(looked_up(&chain.hashes, target, self.block_size));
        Some(self.in_tokens(found))
    }

    /// A request is admitted: it holds what it finds. None for one without hashes.
    pub(crate) fn admit(&mut self, slot: Slot, target: u32) -> Option<Hit> {
        let chain = self.chains.get_mut(slot as usize)?.as_deref_mut()?;
        let found = self.cache.take_prefix(looked_up(&chain.hashes, target, self.block_size), &mut chain.named);
        Some(self.in_tokens(found))
    }

    /// Takes blocks that have no name yet, or gives some back (negative).
    pub(crate) fn take(&mut self, blocks: i64) {
        match u32::try_from(blocks) {
            Ok(blocks) => self.cache.take(blocks),
            Err(_) => self.cache.give(&[], u32::try_from(-blocks).unwrap_or(u32::MAX)),
        }
    }

    /// A request has computed this many tokens, or is about to: the blocks that they fill get their names.
    pub(crate) fn fill(&mut self, slot: Slot, tokens: u32) {
        let Some(Some(chain)) = self.chains.get_mut(slot as usize) else { return };
        let full = ((tokens / self.block_size) as usize).min(chain.hashes.len());
        for at in chain.named.len()..full {
            chain.named.push(self.cache.name(chain.hashes[at]));
        }
    }

    /// Blocks that it holds by name.
    pub(crate) fn named(&self, slot: Slot) -> u32 {
        self.chain(slot).map_or(0, |chain| chain.named.len() as u32)
    }

    /// A request has computed no more than this many tokens, whatever was planned: only the blocks that they fill keep
    /// their names.
    pub(crate) fn unfill(&mut self, slot: Slot, tokens: u32) {
        let Some(Some(chain)) = self.chains.get_mut(slot as usize) else { return };
        let full = (tokens / self.block_size) as usize;
        while chain.named.len() > full
            && let Some(block) = chain.named.pop()
        {
            self.cache.unname(block);
        }
    }

    /// A request that has computed `kv` tokens leaves the cache, with all of its blocks; what it computed remains
    /// cached, but nothing that was only planned.
    pub(crate) fn release(&mut self, slot: Slot, blocks: u32, kv: u32) {
        self.fill(slot, kv.min(blocks * self.block_size));
        self.unfill(slot, kv);
        match self.chains.get_mut(slot as usize) {
            Some(Some(chain)) => {
                self.cache.give(&chain.named, blocks - chain.named.len() as u32);
                chain.named.clear();
            }
            _ => self.cache.give(&[], blocks),
        }
    }
}

/// At least one token has to be computed.
fn looked_up(hashes: &[u64], target: u32, block_size: u32) -> &[u64] {
    &hashes[..hashes.len().min(((target - 1) / block_size) as usize)]
}
