//! What requests hold of the prefix cache, and what they would find there.
//!
//! A host that passes the hashes of the blocks of each request leaves it to the core to track what is cached: which
//! blocks of its prompt are there already, and which of those others hold. While a plan is made and applied, the plan
//! owns this, because the blocks it takes decide what the next request in the same plan finds; at all other times the
//! view does.

mod computed;
mod rows;
#[cfg(test)]
mod tests;

use crate::memory::{Block, CachedBlocks, CachedGroups, KvLayout, PrefixCache};
use crate::model::{Hit, Slot};
use computed::Computed;
pub(crate) use rows::Found;
use rows::Held;

/// Requests with hashes, and the cache that they share with all others.
#[derive(Clone, Debug)]
pub(crate) struct Prefixes {
    cache: PrefixCache,
    computed: Computed,
    block_size: u32,
    /// Unless there is one group of full attention.
    groups: Option<CachedGroups>,
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
    /// Instead, where there are several groups: those of each.
    rows: Box<[Held]>,
}

impl Prefixes {
    pub(crate) fn new(blocks: u32, layout: &KvLayout) -> Self {
        let (cache, computed, groups) = (PrefixCache::new(blocks), Computed::new(blocks), layout.cached_groups());
        Self { cache, computed, block_size: layout.block_size(), groups, chains: Vec::new() }
    }

    /// Whether requests give back named blocks while they run.
    pub(crate) fn has_groups(&self) -> bool {
        self.groups.is_some()
    }

    /// Blocks that a request holds.
    pub(crate) fn held(&self) -> i64 {
        i64::from(self.cache.capacity()) - self.cache.free()
    }

    /// Empties the cache; false while a block is held.
    pub(crate) fn reset(&mut self) -> bool {
        let is_empty = self.cache.reset();
        if is_empty {
            self.computed.clear();
        }
        is_empty
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
        self.chains[at] = (!hashes.is_empty()).then(|| {
            let rows = self.groups.as_ref().map_or(&[][..], CachedGroups::rows);
            let rows: Box<[Held]> = rows.iter().map(|_| Held::new(hashes.len())).collect();
            let named = Vec::with_capacity(if rows.is_empty() { hashes.len() } else { 0 });
            Box::new(Chain { hashes: hashes.into(), named, rows })
        });
    }

    fn chain(&self, slot: Slot) -> Option<&Chain> {
        self.chains.get(slot as usize)?.as_deref()
    }

    fn in_tokens(&self, found: CachedBlocks) -> Hit {
        Hit { computed: found.blocks * self.block_size, shared: found.held * self.block_size, evicted: 0 }
    }

    /// What a waiting request that has `target` tokens to compute finds; none for one without hashes.
    pub(crate) fn hit(&self, slot: Slot, target: u32) -> Option<Hit> {
        if self.groups.is_some() {
            return self.hit_in_groups(slot, target);
        }
        let chain = self.chain(slot)?;
        let found = self.cache.hit(looked_up(&chain.hashes, target, self.block_size));
        Some(self.in_tokens(found))
    }

    /// A request is admitted: it holds what it finds. None for one without hashes.
    pub(crate) fn admit(&mut self, slot: Slot, target: u32) -> Option<Hit> {
        let hit = if self.groups.is_some() {
            let hit = self.hit_in_groups(slot, target)?;
            self.join_groups(slot, hit.computed);
            hit
        } else {
            let chain = self.chains.get_mut(slot as usize)?.as_deref_mut()?;
            let found = self.cache.take_prefix(looked_up(&chain.hashes, target, self.block_size), &mut chain.named);
            self.in_tokens(found)
        };
        let hashes = looked_up(&self.chain(slot)?.hashes, target, self.block_size);
        let evicted = self.computed.count(&hashes[(hit.computed / self.block_size) as usize..]);
        Some(Hit { evicted: evicted * self.block_size, ..hit })
    }

    /// Takes blocks that have no name yet, or gives some back (negative).
    pub(crate) fn take(&mut self, blocks: i64) {
        match u32::try_from(blocks) {
            Ok(blocks) => self.cache.take(blocks),
            Err(_) => self.cache.give(&[], u32::try_from(-blocks).unwrap_or(u32::MAX)),
        }
    }

    /// A request of `blocks` blocks has computed this many tokens, or is about to: the blocks that they fill get their names.
    pub(crate) fn fill(&mut self, slot: Slot, tokens: u32, blocks: u32) {
        if self.groups.is_some() {
            return self.fill_groups(slot, tokens, blocks, true);
        }
        let Some(Some(chain)) = self.chains.get_mut(slot as usize) else { return };
        let full = ((tokens / self.block_size) as usize).min(chain.hashes.len());
        for at in chain.named.len()..full {
            chain.named.push(self.cache.name(chain.hashes[at]));
        }
    }

    /// Blocks that it holds by name.
    pub(crate) fn named(&self, slot: Slot) -> u32 {
        self.chain(slot).map_or(0, |chain| chain.named.len() as u32 + chain.rows.iter().map(Held::named).sum::<u32>())
    }

    /// A request has computed no more than this many tokens, whatever was planned: only the blocks that they fill keep
    /// their names.
    pub(crate) fn unfill(&mut self, slot: Slot, tokens: u32) {
        if self.groups.is_some() {
            return self.unfill_groups(slot, tokens);
        }
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
        if let Some(Some(Chain { hashes, .. })) = self.chains.get(slot as usize).map(Option::as_deref) {
            self.computed.insert(&hashes[..hashes.len().min((kv / self.block_size) as usize)]);
        }
        if self.groups.is_some() {
            self.fill_groups(slot, kv, blocks, false);
            self.unfill_groups(slot, kv);
            return self.release_groups(slot, blocks);
        }
        self.fill(slot, kv.min(blocks * self.block_size), blocks);
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
