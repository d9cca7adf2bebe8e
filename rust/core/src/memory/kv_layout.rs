//! How many blocks a request needs, given its progress: the sum over the groups of the KV cache.
//!
//! A step that takes a request from p to n tokens frees what no later token attends to, by p, and allocates up to n. So at the
//! end of the step it holds, of each group with blocks of b tokens (vLLM 0.32, v1/core/single_type_kv_cache_manager.py):
//!
//! ```text
//! full             ⌈n/b⌉
//! sliding window W ⌈n/b⌉ − ⌊max(0, p − W + 1)/b⌋
//! chunked-local C  ⌈n/b⌉ − ⌊p/C⌋ · C/b
//! state            a constant; where it is aligned one more if p > 0 and ⌈n/b⌉ > ⌈p/b⌉
//! ```
//!
//! A decode goes from n − 1 to n. The bound for a whole prompt, which may be computed in one step or many, is the W − 1
//! or C tokens that are kept plus one step's tokens.

use std::num::NonZeroU32;

use super::cached_groups::CachedGroups;
use super::footprint::Footprint;
use super::kv_group::{GroupKind, KvGroup};

/// The groups of a KV cache. One group of full attention, which most models have, has no list of groups.
///
/// ```
/// use wait_core::{Config, Scheduler};
///
/// let scheduler = Scheduler::new(&Config { kv_blocks: 1000, ..Config::default() })?;
/// let layout = scheduler.view().layout();
/// // A chunk that takes a request from 64 to 100 tokens, a decode from 112 to 113, and what can be shared of 100 tokens.
/// assert_eq!((layout.after(64, 100), layout.decoding(113), layout.filled(100)), (7, 8, 6));
/// # Ok::<(), wait_core::Error>(())
/// ```
///
/// [`KvGroup`] shows a layout of several groups.
#[derive(Clone, Debug)]
pub struct KvLayout {
    block_size: u32,
    /// With their block size filled in, equal ones counted together.
    groups: Box<[KvGroup]>,
    /// Blocks that each group needs.
    needs: Box<[GroupNeeds]>,
    /// Slots that a decode allocates ahead of its token, for drafts.
    lookahead: u32,
    /// Blocks more while the copies of a request's states are kept.
    copies: u32,
}

impl KvLayout {
    pub(crate) fn new(block_size: u32, groups: &[KvGroup], step_tokens: u32, lookahead: u32) -> Self {
        let mut merged: Vec<KvGroup> = Vec::new();
        for group in groups {
            let group = KvGroup { block_size: Some(group.block_size.unwrap_or(block_size)), ..*group };
            match merged.iter_mut().find(|other| (other.kind, other.block_size) == (group.kind, group.block_size)) {
                Some(other) => other.count += group.count,
                None => merged.push(group),
            }
        }
        if merged == [KvGroup { kind: GroupKind::Full, block_size: Some(block_size), count: 1 }] {
            merged.clear();
        }
        let needs: Box<[_]> = merged.iter().map(|group| GroupNeeds::new(group, block_size, step_tokens)).collect();
        let copies = u32::try_from(needs.iter().map(|group| group.copies).sum::<u64>()).unwrap_or(u32::MAX);
        Self { block_size, groups: merged.into(), needs, lookahead, copies }
    }

    /// Tokens per block, of the first group.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// The groups, equal ones counted together; empty for one group of full attention.
    pub fn groups(&self) -> &[KvGroup] {
        &self.groups
    }

    /// Slots that a decode allocates ahead of its token.
    pub fn lookahead(&self) -> u32 {
        self.lookahead
    }

    #[cold]
    fn sum(&self, blocks: impl Fn(&GroupNeeds) -> u64) -> u32 {
        u32::try_from(self.needs.iter().map(blocks).sum::<u64>()).unwrap_or(u32::MAX)
    }

    /// Blocks of a request after a step that took it from `start` to `end` tokens.
    #[inline]
    pub fn after(&self, start: u32, end: u32) -> u32 {
        if self.groups.is_empty() {
            return end.div_ceil(self.block_size);
        }
        self.sum(|group| group.after(start, end))
    }

    /// `after`, of each of `groups`.
    pub fn after_by_group(&self, start: u32, end: u32) -> impl Iterator<Item = u64> {
        self.needs.iter().map(move |group| group.after(start, end))
    }

    /// Blocks of a request that has decoded up to `kv` tokens, with the slots ahead.
    #[inline]
    pub fn decoding(&self, kv: u32) -> u32 {
        let end = kv + self.lookahead;
        if self.groups.is_empty() {
            return end.div_ceil(self.block_size);
        }
        self.sum(|group| group.decoding(kv, end))
    }

    /// `decoding`, of each of `groups`.
    pub fn decoding_by_group(&self, kv: u32) -> impl Iterator<Item = u64> {
        let end = kv + self.lookahead;
        self.needs.iter().map(move |group| group.decoding(kv, end))
    }

    /// Most blocks that a request of `tokens` takes at any time, in whatever steps it is computed, except for the
    /// copies of its states, which are freed a step later.
    #[inline]
    pub fn demand(&self, tokens: u32) -> u32 {
        if self.groups.is_empty() {
            return tokens.div_ceil(self.block_size);
        }
        self.sum(|group| group.demand(tokens))
    }

    /// `demand`, of each of `groups`.
    pub fn demand_by_group(&self, tokens: u32) -> impl Iterator<Item = u64> {
        self.needs.iter().map(move |group| group.demand(tokens))
    }

    /// Blocks that the first `tokens` of a prompt fill wholly and that a request computed so far still holds.
    #[inline]
    pub fn filled(&self, tokens: u32) -> u32 {
        if tokens == 0 {
            return 0;
        }
        if self.groups.is_empty() {
            return tokens / self.block_size;
        }
        self.sum(|group| group.filled(tokens))
    }

    /// Most blocks that a request takes until it has decoded up to `tokens`, with the slots ahead and with those copies.
    pub(crate) fn lifetime(&self, tokens: u32) -> u32 {
        // The last token gets no KV; the slots for its drafts are taken nevertheless.
        let demand = self.demand(tokens.max(tokens.saturating_sub(1).saturating_add(self.lookahead)));
        demand.saturating_add(self.copies)
    }

    /// Most blocks that a request takes while its prompt of `tokens` is computed, with those copies.
    #[inline]
    pub(crate) fn prefill(&self, tokens: u32) -> u32 {
        self.demand(tokens).saturating_add(self.copies)
    }

    /// What a request takes on average over its place in its blocks, in tokens of the first group.
    pub(crate) fn footprint(&self) -> Footprint {
        if self.groups.is_empty() {
            return Footprint::full(self.block_size);
        }
        let each = |footprint: Footprint, group: &KvGroup| {
            let size = group.block_size.unwrap_or(self.block_size);
            let blocks = f64::from(group.count) * f64::from(self.block_size);
            let weight = blocks / f64::from(size);
            match group.kind {
                GroupKind::Full => footprint.with_full(weight, size),
                GroupKind::SlidingWindow { window } => footprint.with_window(weight, window, size),
                GroupKind::ChunkedLocal { chunk } => footprint.with_chunk(weight, chunk, size),
                GroupKind::State { blocks: held, aligned } => {
                    let copies = if aligned { 1.0 / f64::from(size) } else { 0.0 };
                    footprint.with_state(blocks * (f64::from(held) + copies))
                }
            }
        };
        self.groups.iter().fold(Footprint::default(), each)
    }

    /// Most blocks that what a request of `tokens` has yet to compute behind a hit of `found` tokens takes at any time, by
    /// vLLM's rule: a group's bound less all the blocks that the hit spares it, those outside its window included.
    #[cold]
    pub(crate) fn demand_behind(&self, found: u32, tokens: u32) -> u32 {
        self.sum(|group| group.demand(tokens).saturating_sub(group.blocks * u64::from(found / group.size)))
    }

    /// How the groups are cached; none for one group of full attention.
    pub(crate) fn cached_groups(&self) -> Option<CachedGroups> {
        let groups = self.groups.iter().zip(&self.needs);
        (!self.groups.is_empty()).then(|| CachedGroups::new(self.block_size, groups))
    }

    /// Most tokens, at most `bound`, that a request running alone in this many blocks may have.
    pub(crate) fn largest(&self, blocks: u32, bound: u32) -> u32 {
        let (mut low, mut high) = (0, bound);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if self.lifetime(middle) <= blocks { low = middle } else { high = middle - 1 }
        }
        low
    }
}

/// What a group takes, its kind resolved: `blocks` for each `size` tokens up to the end of a step, less `blocks` times
/// `freed` for each `period` tokens that lie `kept` tokens or more before its start; and what does not grow.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupNeeds {
    /// Blocks for each block of tokens: the count of equal groups, 0 of states.
    blocks: u64,
    size: NonZeroU32,
    kept: u32,
    period: NonZeroU32,
    freed: u32,
    /// Most blocks' worth of tokens that are held at once.
    most: u32,
    /// Blocks at any length.
    constant: u64,
    /// Blocks more while the copies of states are kept.
    copies: u64,
}

impl GroupNeeds {
    fn new(group: &KvGroup, block_size: u32, step_tokens: u32) -> Self {
        let non_zero = |tokens: u32| NonZeroU32::new(tokens).unwrap_or(NonZeroU32::MIN);
        let (size, count) = (non_zero(group.block_size.unwrap_or(block_size)), u64::from(group.count));
        let most = |kept: u32| kept.saturating_add(step_tokens).div_ceil(size.get());
        let full = Self {
            blocks: count,
            size,
            kept: u32::MAX,
            period: size,
            freed: 1,
            most: u32::MAX,
            constant: 0,
            copies: 0,
        };
        match group.kind {
            GroupKind::Full => full,
            GroupKind::SlidingWindow { window } => {
                // A window may begin inside a block.
                Self { kept: window - 1, most: most(window - 1).saturating_add(1), ..full }
            }
            GroupKind::ChunkedLocal { chunk } => {
                Self { kept: 0, period: non_zero(chunk), freed: chunk / size, most: most(chunk), ..full }
            }
            GroupKind::State { blocks, aligned } => {
                let copies = if aligned { count } else { 0 };
                Self { blocks: 0, constant: count * u64::from(blocks), copies, ..full }
            }
        }
    }

    /// Blocks of tokens that are not held when a step starts with so many tokens.
    #[inline]
    pub(super) fn before(&self, start: u32) -> u32 {
        start.saturating_sub(self.kept) / self.period * self.freed
    }

    /// Blocks after a step from `start` to `end`.
    #[inline]
    fn held(&self, start: u32, end: u32, copied: bool) -> u64 {
        let held = end.div_ceil(self.size.get()) - self.before(start);
        self.blocks * u64::from(held) + self.constant + if copied { self.copies } else { 0 }
    }

    /// After a step that computed the tokens from `start` to `end`.
    #[inline]
    fn after(&self, start: u32, end: u32) -> u64 {
        let size = self.size.get();
        self.held(start, end, start > 0 && end.div_ceil(size) > start.div_ceil(size))
    }

    /// After a decode up to `kv` tokens, with slots up to `end`.
    #[inline]
    fn decoding(&self, kv: u32, end: u32) -> u64 {
        let start = kv.saturating_sub(1);
        // A state has no slots ahead of its token. With its first token it is copied here though it is not, so that where a
        // block begins alone decides.
        self.held(start, end, start.is_multiple_of(self.size.get()))
    }

    /// The most that a request of `tokens` takes, in whatever steps it is computed, but for copies.
    fn demand(&self, tokens: u32) -> u64 {
        self.blocks * u64::from(tokens.div_ceil(self.size.get()).min(self.most)) + self.constant
    }

    /// Blocks that `tokens` fill wholly and that are held still. A state is copied, not shared.
    fn filled(&self, tokens: u32) -> u64 {
        self.blocks * u64::from((tokens / self.size).saturating_sub(self.before(tokens)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn group(kind: GroupKind, block_size: u32, count: u32) -> KvGroup {
        KvGroup { kind, block_size: Some(block_size), count }
    }

    #[test]
    fn one_full_group_counts_blocks() {
        let layout = KvLayout::new(16, &[KvGroup { kind: GroupKind::Full, block_size: None, count: 1 }], 2048, 0);
        assert!(layout.groups().is_empty(), "the common case has no list");
        assert_eq!([0, 1, 16, 17, 32, 33].map(|tokens| layout.demand(tokens)), [0, 1, 1, 2, 2, 3]);
        assert_eq!((layout.decoding(33), layout.filled(33), layout.largest(3, 1000)), (3, 2, 48));
        assert_eq!(layout.demand(u32::MAX), 1 << 28);
    }

    #[test]
    fn a_window_by_hand() {
        // Gemma 3: five layers with a window for each with full attention.
        let kinds = [group(GroupKind::Full, 4, 1), group(GroupKind::SlidingWindow { window: 8 }, 4, 5)];
        let layout = KvLayout::new(4, &kinds, 16, 0);
        // A prompt of 20 in one step holds all of it; the first decode frees everything before token 20 − 7.
        assert_eq!((layout.after(0, 20), layout.decoding(21)), (5 + 5 * 5, 6 + 5 * (6 - 3)));
        // Up to 7 + 16 tokens are held at once, which may begin inside a block.
        assert_eq!(layout.demand(1000), 250 + 5 * 7);
        assert_eq!(layout.filled(20), 5 + 5 * (5 - 3));
    }

    #[test]
    fn a_chunk_and_a_state_by_hand() {
        let kinds = [
            group(GroupKind::ChunkedLocal { chunk: 8 }, 4, 1),
            group(GroupKind::State { blocks: 2, aligned: false }, 4, 3),
        ];
        let layout = KvLayout::new(4, &kinds, 1, 0);
        assert_eq!([7, 8, 9, 12, 13, 16, 17].map(|kv| layout.decoding(kv) - 6), [2, 2, 1, 1, 2, 2, 1]);
        assert_eq!((layout.demand(100), layout.largest(7, 1000)), (6 + 3, 4));
        assert_eq!(layout.largest(9, 1000), 1000, "it needs no more however long it is");
    }

    #[test]
    fn an_aligned_state_is_kept_twice_for_the_step_that_enters_a_block() {
        let layout = KvLayout::new(4, &[group(GroupKind::State { blocks: 3, aligned: true }, 4, 2)], 16, 0);
        assert_eq!([4, 5, 6, 8, 9, 10].map(|kv| layout.decoding(kv)), [6, 8, 6, 6, 8, 6]);
        assert_eq!([(0, 9), (3, 9), (5, 8), (4, 5)].map(|(start, end)| layout.after(start, end)), [6, 8, 6, 8]);
        assert_eq!((layout.demand(100), layout.lifetime(100)), (6, 8));
    }

    #[test]
    fn the_footprint_is_the_mean_of_the_blocks() {
        let kinds = [
            group(GroupKind::Full, 4, 1),
            group(GroupKind::SlidingWindow { window: 40 }, 8, 5),
            group(GroupKind::State { blocks: 2, aligned: true }, 4, 3),
        ];
        let layout = KvLayout::new(4, &kinds, 1, 0);
        let footprint = layout.footprint();
        for from in [8_u32, 16, 400, 4000] {
            let counted = (from..from + 8).map(|kv| f64::from(4 * layout.decoding(kv))).sum::<f64>() / 8.0;
            let expected = footprint.tokens(f64::from(from) + 3.5) + footprint.fixed() - footprint.tokens(0.0);
            assert!((counted - expected).abs() < 0.02 * expected, "{from}: {counted} {expected}");
        }
    }

    fn any_group() -> impl Strategy<Value = KvGroup> {
        (1..6_u32, 1..5_u32, 0..4_u8, 1..40_u32).prop_map(|(size, count, kind, n)| {
            let kind = match kind {
                0 => GroupKind::Full,
                1 => GroupKind::SlidingWindow { window: n },
                2 => GroupKind::ChunkedLocal { chunk: n.div_ceil(size) * size },
                _ => GroupKind::State { blocks: n, aligned: size > 2 },
            };
            group(kind, size, count)
        })
    }

    proptest! {
        #[test]
        fn no_way_to_compute_a_request_takes_more_than_its_demand(
            groups in prop::collection::vec(any_group(), 1..4),
            steps in prop::collection::vec(1..=24_u32, 1..30),
        ) {
            let layout = KvLayout::new(4, &groups, 24, 0);
            let total: u32 = steps.iter().sum();
            let mut start = 0;
            for step in steps {
                let held = layout.after(start, start + step);
                prop_assert!(held <= layout.lifetime(total), "{} blocks for {start} + {step} of {total}", held);
                prop_assert!(layout.demand(start) <= layout.demand(start + step));
                start += step;
                prop_assert!(layout.filled(start) <= held);
                prop_assert!(start == 1 || layout.decoding(start) == layout.after(start - 1, start));
            }
        }
    }
}
