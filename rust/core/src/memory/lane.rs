//! A lane is a set of decoding requests that step together.
//!
//! Each step adds one KV token to every member, so a member's KV is `lane.tick − base` with `base` fixed when it joins:
//! a step costs O(1), whatever the number of members. Members also need a new block when their KV reaches a multiple
//! of the block size; counted by `base mod block_size`, that is one look-up a step as well.

/// Counts over the members of one lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    tick: i64,
    /// `tick mod block_size`, kept so that a step needs no division.
    phase: usize,
    len: u32,
    kv: u64,
    /// Members by `base mod block_size`.
    by_phase: Box<[u32]>,
}

impl Lane {
    pub(crate) fn new(block_size: u32) -> Self {
        Self { tick: 0, phase: 0, len: 0, kv: 0, by_phase: vec![0; block_size as usize].into() }
    }

    /// The same lane without members.
    pub(crate) fn emptied(&self) -> Self {
        Self { tick: self.tick, phase: self.phase, ..Self::new(self.by_phase.len() as u32) }
    }

    /// Steps taken since the start.
    pub fn tick(&self) -> i64 {
        self.tick
    }

    /// Members.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// True without members.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// KV tokens that the members hold together.
    pub fn kv(&self) -> u64 {
        self.kv
    }

    /// Blocks that the next step must allocate: one for each member whose blocks are full.
    pub fn blocks_needed(&self) -> u32 {
        self.by_phase[self.phase]
    }

    fn phase_of(&self, base: i64) -> usize {
        base.rem_euclid(self.by_phase.len() as i64) as usize
    }

    /// Whether the member with this base needs a block in the next step.
    pub(crate) fn needs_block(&self, base: i64) -> bool {
        self.phase_of(base) == self.phase
    }

    /// Takes in a member that holds `kv` tokens; returns its base.
    pub(crate) fn join(&mut self, kv: u32) -> i64 {
        let base = self.tick - i64::from(kv);
        let phase = self.phase_of(base);
        self.by_phase[phase] += 1;
        self.len += 1;
        self.kv += u64::from(kv);
        base
    }

    /// Lets a member go; returns the KV tokens it holds.
    pub(crate) fn leave(&mut self, base: i64) -> u32 {
        let kv = self.kv_of(base);
        let phase = self.phase_of(base);
        self.by_phase[phase] -= 1;
        self.len -= 1;
        self.kv -= u64::from(kv);
        kv
    }

    pub(crate) fn kv_of(&self, base: i64) -> u32 {
        (self.tick - base) as u32
    }

    /// One token for every member; returns the blocks newly allocated.
    pub(crate) fn step(&mut self) -> u32 {
        let blocks = self.blocks_needed();
        self.tick += 1;
        self.phase = if self.phase + 1 == self.by_phase.len() { 0 } else { self.phase + 1 };
        self.kv += u64::from(self.len);
        blocks
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_member_gains_a_token_a_step_and_a_block_where_its_blocks_are_full() {
        let mut lane = Lane::new(4);
        assert!(lane.is_empty());
        let base = lane.join(6);
        assert_eq!((lane.len(), lane.kv(), lane.kv_of(base), lane.needs_block(base)), (1, 6, 6, false));
        let taken: Vec<u32> = (0..6).map(|_| lane.step()).collect();
        // 6 → 7 → 8 → 9: the ninth token opens a third block, the thirteenth would open the fourth.
        assert_eq!(taken, [0, 0, 1, 0, 0, 0]);
        assert_eq!((lane.tick(), lane.kv(), lane.kv_of(base)), (6, 12, 12));
        assert!(lane.needs_block(base));
        assert_eq!(lane.blocks_needed(), 1);
        assert_eq!(lane.leave(base), 12);
        assert_eq!((lane.len(), lane.kv(), lane.blocks_needed()), (0, 0, 0));
        assert_eq!(lane, Lane { tick: 6, phase: 2, ..Lane::new(4) });
    }

    #[test]
    fn blocks_of_one_token_are_needed_at_every_step() {
        let mut lane = Lane::new(1);
        lane.join(0);
        lane.join(7);
        assert_eq!([lane.step(), lane.step()], [2, 2]);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Join(u32),
        Leave(usize),
        Step,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![(0..200u32).prop_map(Op::Join), any::<usize>().prop_map(Op::Leave), Just(Op::Step), Just(Op::Step)]
    }

    proptest! {
        #[test]
        fn counts_equal_a_list_of_members(block_size in 1..20u32, ops in prop::collection::vec(op(), 0..200)) {
            let mut lane = Lane::new(block_size);
            let mut members: Vec<(i64, u32)> = Vec::new();
            for op in ops {
                match op {
                    Op::Join(kv) => members.push((lane.join(kv), kv)),
                    Op::Leave(at) if !members.is_empty() => {
                        let (base, kv) = members.swap_remove(at % members.len());
                        prop_assert_eq!(lane.leave(base), kv);
                    }
                    Op::Leave(_) => {}
                    Op::Step => {
                        let before: u32 = members.iter().map(|&(_, kv)| kv.div_ceil(block_size)).sum();
                        for member in &mut members {
                            member.1 += 1;
                        }
                        let after: u32 = members.iter().map(|&(_, kv)| kv.div_ceil(block_size)).sum();
                        prop_assert_eq!(lane.step(), after - before);
                    }
                }
                prop_assert_eq!(lane.len() as usize, members.len());
                prop_assert_eq!(lane.kv(), members.iter().map(|&(_, kv)| u64::from(kv)).sum::<u64>());
                let full = members.iter().filter(|&&(_, kv)| kv.is_multiple_of(block_size)).count();
                prop_assert_eq!(lane.blocks_needed() as usize, full);
                for &(base, kv) in &members {
                    prop_assert_eq!(lane.kv_of(base), kv);
                    prop_assert_eq!(lane.needs_block(base), kv.is_multiple_of(block_size));
                }
            }
        }
    }
}
