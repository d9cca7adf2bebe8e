//! A lane is a set of decoding requests that step together.
//!
//! Each step adds one KV token to every member, so a member's KV is `lane.tick − base` with `base` fixed when it joins:
//! a step costs O(1), whatever the number of members. The blocks that a step takes and frees are counted by where in their
//! blocks the members are: a look-up or two for each kind of group.

use super::block_counters::{BlockCounters, Phases};
use super::kv_layout::KvLayout;

/// Counts over the members of one lane.
///
/// ```
/// use wait_core::{Config, Request, Scheduler};
///
/// let mut scheduler = Scheduler::new(&Config { kv_blocks: 1000, ..Config::default() })?;
/// for (id, prompt) in [(1, 31), (2, 100)] {
///     scheduler.add(&Request { id, prompt, ..Request::default() })?;
/// }
/// scheduler.plan(0);
/// let lane = &scheduler.view().lanes()[0];
/// assert_eq!((lane.len(), lane.kv()), (2, 131));
/// // The next step goes from 31 to 32 tokens and from 100 to 101: in blocks of 16, none of which is full before.
/// assert_eq!(lane.block_change(), 0);
/// scheduler.plan(0);
/// assert_eq!((scheduler.view().lanes()[0].kv(), scheduler.view().lanes()[0].block_change()), (133, 1));
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    tick: i64,
    len: u32,
    kv: u64,
    blocks: Blocks,
    /// Blocks that members hold beyond their decode's need since they joined, to be freed by the next step; negative where
    /// they lack slots ahead.
    surplus: i64,
}

/// When members take and free blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Blocks {
    /// One group of full attention.
    One(Phases),
    Several(Box<BlockCounters>),
}

impl Lane {
    pub(crate) fn new(layout: &KvLayout) -> Self {
        let blocks = if layout.groups().is_empty() {
            Blocks::One(Phases::new(layout.block_size(), layout.lookahead()))
        } else {
            Blocks::Several(Box::new(BlockCounters::new(layout)))
        };
        Self { tick: 0, len: 0, kv: 0, blocks, surplus: 0 }
    }

    /// The same lane without members.
    pub(crate) fn emptied(&self) -> Self {
        let mut lane = self.clone();
        (lane.len, lane.kv, lane.surplus) = (0, 0, 0);
        match &mut lane.blocks {
            Blocks::One(phases) => phases.clear(),
            Blocks::Several(groups) => groups.clear(),
        }
        lane
    }

    /// Steps taken since the start.
    pub fn tick(&self) -> i64 {
        self.tick
    }

    /// Members.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether it has no members.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// KV tokens that the members hold together.
    pub fn kv(&self) -> u64 {
        self.kv
    }

    /// Blocks that the next step takes, less those it frees.
    #[inline]
    pub fn block_change(&self) -> i64 {
        let change = match &self.blocks {
            Blocks::One(phases) => i64::from(phases.due()),
            Blocks::Several(groups) => groups.change(),
        };
        change - self.surplus
    }

    /// Blocks that the next step takes at most, those it frees not counted.
    #[inline]
    pub fn blocks_taken(&self) -> i64 {
        match &self.blocks {
            Blocks::One(_) => self.block_change(),
            Blocks::Several(groups) => groups.taken() + (-self.surplus).max(0),
        }
    }

    /// Adds a member that holds `kv` tokens, and `surplus` blocks more than a decode of that size needs; returns its
    /// base.
    #[inline(always)]
    pub(crate) fn join(&mut self, kv: u32, surplus: i64) -> i64 {
        let base = self.tick - i64::from(kv);
        match &mut self.blocks {
            Blocks::One(phases) => phases.insert(kv),
            Blocks::Several(groups) => groups.insert(kv),
        }
        self.len += 1;
        self.kv += u64::from(kv);
        self.surplus += surplus;
        base
    }

    /// Removes a member, with its `surplus` if it has not stepped since it joined; returns the KV tokens it holds.
    #[inline(always)]
    pub(crate) fn leave(&mut self, base: i64, surplus: i64) -> u32 {
        let kv = self.kv_of(base);
        match &mut self.blocks {
            Blocks::One(phases) => phases.remove(kv),
            Blocks::Several(groups) => groups.remove(kv),
        }
        self.len -= 1;
        self.kv -= u64::from(kv);
        self.surplus -= surplus;
        kv
    }

    #[inline]
    pub(crate) fn kv_of(&self, base: i64) -> u32 {
        (self.tick - base) as u32
    }

    /// One token for every member; returns the blocks taken, less those freed.
    #[inline]
    pub(crate) fn step(&mut self) -> i64 {
        let change = self.block_change();
        self.tick += 1;
        self.kv += u64::from(self.len);
        self.surplus = 0;
        match &mut self.blocks {
            Blocks::One(phases) => phases.advance(),
            Blocks::Several(groups) => groups.advance(),
        }
        change
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::{GroupKind, KvGroup};

    fn full(block_size: u32) -> KvLayout {
        KvLayout::new(block_size, &[], 64, 0)
    }

    #[test]
    fn a_member_gains_a_token_a_step_and_a_block_where_its_blocks_are_full() {
        let mut lane = Lane::new(&full(4));
        assert!(lane.is_empty());
        let base = lane.join(6, 0);
        assert_eq!((lane.len(), lane.kv(), lane.kv_of(base), lane.block_change()), (1, 6, 6, 0));
        let taken: Vec<i64> = (0..6).map(|_| lane.step()).collect();
        // 6 → 7 → 8 → 9: the ninth token opens a third block, the thirteenth would open the fourth.
        assert_eq!(taken, [0, 0, 1, 0, 0, 0]);
        assert_eq!((lane.tick(), lane.kv(), lane.kv_of(base)), (6, 12, 12));
        assert_eq!(lane.block_change(), 1);
        assert_eq!(lane.leave(base, 0), 12);
        assert_eq!((lane.len(), lane.kv(), lane.block_change()), (0, 0, 0));
        assert_eq!(lane, lane.emptied());
    }

    #[test]
    fn what_a_prompt_holds_beyond_its_window_is_freed_by_the_first_decode() {
        let window = KvGroup { kind: GroupKind::SlidingWindow { window: 4 }, block_size: None, count: 2 };
        let layout = KvLayout::new(2, &[window], 64, 0);
        let (held, mut lane) = (layout.after(0, 9), Lane::new(&layout));
        let surplus = i64::from(held) - i64::from(layout.decoding(9));
        assert_eq!((held, surplus), (10, 4));
        lane.join(9, surplus);
        assert_eq!(i64::from(held) + lane.step(), i64::from(layout.decoding(10)));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Join(u32, i64),
        Leave(usize),
        Step,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (1..200u32, -1..3_i64).prop_map(|(kv, surplus)| Op::Join(kv, surplus)),
            any::<usize>().prop_map(Op::Leave),
            Just(Op::Step),
            Just(Op::Step)
        ]
    }

    fn group() -> impl Strategy<Value = KvGroup> {
        (1..6_u32, 1..3_u32, 0..4_u8, 1..40_u32).prop_map(|(size, count, kind, n)| {
            let kind = match kind {
                0 => GroupKind::Full,
                1 => GroupKind::SlidingWindow { window: n },
                2 => GroupKind::ChunkedLocal { chunk: n.div_ceil(size) * size },
                _ => GroupKind::State { blocks: n, aligned: n > 20 },
            };
            KvGroup { kind, block_size: Some(size), count }
        })
    }

    proptest! {
        #[test]
        fn counts_equal_a_list_of_members(
            block_size in 1..20u32,
            groups in prop::collection::vec(group(), 0..4),
            lookahead in 0..7_u32,
            ops in prop::collection::vec(op(), 0..200),
        ) {
            let layout = KvLayout::new(block_size, &groups, 64, lookahead);
            let mut lane = Lane::new(&layout);
            // Base, KV tokens, blocks held, and whether it has stepped.
            let mut members: Vec<(i64, u32, i64, bool)> = Vec::new();
            let need = |kv| i64::from(layout.decoding(kv));
            for op in ops {
                match op {
                    Op::Join(kv, surplus) => members.push((lane.join(kv, surplus), kv, need(kv) + surplus, false)),
                    Op::Leave(at) if !members.is_empty() => {
                        let (base, kv, held, stepped) = members.swap_remove(at % members.len());
                        prop_assert_eq!(lane.leave(base, if stepped { 0 } else { held - need(kv) }), kv);
                    }
                    Op::Leave(_) => {}
                    Op::Step => {
                        let before: i64 = members.iter().map(|member| member.2).sum();
                        for member in &mut members {
                            member.1 += 1;
                            (member.2, member.3) = (need(member.1), true);
                        }
                        let after: i64 = members.iter().map(|member| member.2).sum();
                        prop_assert_eq!(lane.block_change(), after - before);
                        prop_assert_eq!(lane.step(), after - before);
                    }
                }
                prop_assert_eq!(lane.len() as usize, members.len());
                prop_assert_eq!(lane.kv(), members.iter().map(|member| u64::from(member.1)).sum::<u64>());
                let mut recounted = lane.emptied();
                for &(base, kv, held, stepped) in &members {
                    prop_assert_eq!(lane.kv_of(base), kv);
                    recounted.join(kv, if stepped { 0 } else { held - need(kv) });
                }
                prop_assert_eq!(&lane, &recounted);
            }
        }
    }
}
