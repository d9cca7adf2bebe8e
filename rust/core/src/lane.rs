//! A lane is a set of decoding requests that step together.
//!
//! Each step adds one KV token to every member, so a member's KV is `lane.tick − base` with `base` fixed when it joins:
//! a step costs O(1), whatever the number of members. Members also need a new block when their KV reaches a multiple
//! of the block size; counted by `base mod block_size`, that is one look-up a step as well.

/// Counts over the members of one lane.
#[derive(Clone, Debug)]
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
