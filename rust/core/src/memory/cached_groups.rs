//! Which blocks of which groups a prefix must have cached to be found: vLLM 0.32's `HybridKVCacheCoordinator`.
//!
//! Each group caches blocks of its own, so a prefix of e tokens is found if all of them have what computing token e needs:
//!
//! ```text
//! full             every block up to e
//! sliding window W the last ⌈(W − 1)/b⌉ blocks before e
//! chunked-local C  the blocks between the last multiple of C and e
//! aligned state    the state after e tokens
//! ```
//!
//! e is a multiple of all block sizes. A request that joins holds these blocks, except for the states, which it copies. Of
//! equal groups each has blocks of its own here as well, because one of them may be evicted before the others.

use std::ops::Range;

use super::kv_group::{GroupKind, KvGroup, common_multiple};
use super::kv_layout::GroupNeeds;
use super::prefix_cache::PrefixCache;

/// 2^64 over the golden ratio: its multiples differ in their upper bits, whatever the hashes of the host look like.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// What is looked up of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    All,
    /// The last so many blocks.
    Last(u32),
    /// The blocks since the last multiple of so many tokens.
    Chunk(u32),
    /// The state at the end.
    State,
}

/// One group, whose blocks are counted together with those of others like it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// Tokens per block.
    size: u32,
    /// Hashes of the host per block.
    hashes: usize,
    reach: Reach,
    needs: GroupNeeds,
    /// Distinguishes its blocks from those of other groups.
    salt: u64,
}

impl Row {
    /// Whether it caches states, which no request holds, instead of blocks of tokens.
    pub(crate) fn is_state(&self) -> bool {
        self.reach == Reach::State
    }

    /// Blocks that `tokens` fill.
    pub(crate) fn full(&self, tokens: u32) -> u32 {
        tokens / self.size
    }

    /// Blocks that a request no longer holds when a step starts with so many tokens.
    pub(crate) fn left(&self, start: u32) -> u32 {
        if self.is_state() { 0 } else { self.needs.before(start) }
    }

    /// The key of its block number `block`, whose last hash a request has.
    pub(crate) fn key(&self, hashes: &[u64], block: u32) -> u64 {
        hashes[(block as usize + 1) * self.hashes - 1] ^ self.salt
    }

    /// Blocks that a request which continues behind `end` tokens holds.
    fn joined(&self, end: u32) -> Range<u32> {
        if self.is_state() { 0..0 } else { self.left(end)..self.full(end) }
    }
}

/// All groups of a KV cache that has several, or one that is not full.
#[derive(Clone, Debug)]
pub(crate) struct CachedGroups {
    rows: Box<[Row]>,
    /// Rows of each kind, those of full attention first.
    kinds: Box<[Range<usize>]>,
    /// Kinds of full attention.
    full: usize,
    /// Tokens of one hash.
    hash_size: u32,
    /// What is found is a multiple of this many tokens.
    align: u32,
}

impl CachedGroups {
    pub(super) fn new<'a>(hash_size: u32, groups: impl Iterator<Item = (&'a KvGroup, &'a GroupNeeds)>) -> Self {
        let (mut rows, mut kinds, mut align) = (Vec::new(), Vec::new(), 1);
        for (group, &needs) in groups {
            let size = group.block_size.unwrap_or(hash_size);
            align = common_multiple(align, size.into());
            let reach = match group.kind {
                GroupKind::Full => Reach::All,
                // A window of one token needs nothing; vLLM wants to see a block nevertheless.
                GroupKind::SlidingWindow { window } => Reach::Last((window - 1).div_ceil(size).max(1)),
                GroupKind::ChunkedLocal { chunk } => Reach::Chunk(chunk),
                GroupKind::State { .. } => Reach::State,
            };
            let first = rows.len();
            rows.extend((0..group.count as usize).map(|copy| Row {
                size,
                hashes: (size / hash_size) as usize,
                reach,
                needs,
                salt: FACTOR.wrapping_mul((first + copy) as u64),
            }));
            kinds.push(first..rows.len());
        }
        let is_full = |kind: &Range<usize>| rows[kind.start].reach == Reach::All;
        kinds.sort_by_key(|kind| !is_full(kind));
        let full = kinds.iter().filter(|kind| is_full(kind)).count();
        let align = u32::try_from(align).unwrap_or(u32::MAX);
        Self { rows: rows.into(), kinds: kinds.into(), full, hash_size, align }
    }

    /// The groups, each by itself.
    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Tokens of a request that has computed `tokens` whose blocks are cached.
    pub(crate) fn cacheable(&self, hashes: &[u64], tokens: u32) -> u32 {
        let hashed = u32::try_from(hashes.len()).unwrap_or(u32::MAX).saturating_mul(self.hash_size);
        tokens.min(hashed) / self.align * self.align
    }

    /// Whether a full block may ever be part of what is found, ends being multiples of `align`.
    pub(crate) fn reaches(&self, row: &Row, block: u32) -> bool {
        match row.reach {
            Reach::Last(blocks) => {
                let segment = self.align / row.size;
                block % segment + blocks >= segment
            }
            _ => true,
        }
    }

    /// The longest prefix of at most `most` tokens, of blocks with these `hashes`, that all groups have.
    pub(crate) fn longest(&self, cache: &PrefixCache, hashes: &[u64], most: u32) -> u32 {
        let shortened = |end, kind: &Range<usize>| self.longest_of(&self.rows[kind.clone()], cache, hashes, end);
        let (full, others) = self.kinds.split_at(self.full);
        // Where full attention has a prefix, it has each shorter one.
        let mut end = full.iter().fold(self.cacheable(hashes, most), shortened);
        loop {
            let before = end;
            end = others.iter().fold(end, shortened);
            // Of one kind, what is found is found again.
            if end == before || others.len() == 1 {
                return end;
            }
        }
    }

    /// The longest prefix of at most `end` tokens that groups of one kind have.
    fn longest_of(&self, rows: &[Row], cache: &PrefixCache, hashes: &[u64], mut end: u32) -> u32 {
        let first = rows[0];
        let cached = |block: u32| rows.iter().all(|row| cache.find(row.key(hashes, block)).is_some());
        let aligned = |blocks: u32| blocks * first.size / self.align * self.align;
        match first.reach {
            Reach::All => aligned((0..first.full(end)).take_while(|&block| cached(block)).count() as u32),
            Reach::Chunk(chunk) => {
                let start = end / chunk * chunk / first.size;
                aligned(start + (start..first.full(end)).take_while(|&block| cached(block)).count() as u32)
            }
            Reach::Last(blocks) => {
                // A block that is missing is missing for every end up to a window behind it.
                let missing = |end: u32| {
                    let last = first.full(end);
                    (last.saturating_sub(blocks)..last).rev().find(|&block| !cached(block))
                };
                while let Some(block) = missing(end) {
                    end = aligned(block);
                }
                end
            }
            Reach::State => {
                while end > 0 && !cached(first.full(end) - 1) {
                    end -= self.align;
                }
                end
            }
        }
    }

    /// Of the blocks that a request which continues behind `end` tokens holds, how many another holds already.
    pub(crate) fn held(&self, cache: &PrefixCache, hashes: &[u64], end: u32) -> u32 {
        let held =
            |row: &Row| row.joined(end).filter(|&block| cache.find(row.key(hashes, block)) == Some(true)).count();
        self.rows.iter().map(|row| held(row) as u32).sum()
    }

    /// Most of the first `end` tokens for which a request holds no more than `held` blocks.
    pub(crate) fn shared(&self, end: u32, held: u32) -> u32 {
        let joined = |steps: u32| self.rows.iter().map(|row| row.joined(steps * self.align).len() as u32).sum::<u32>();
        let (mut low, mut high) = (0, end / self.align);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if joined(middle) <= held { low = middle } else { high = middle - 1 }
        }
        low * self.align
    }
}
