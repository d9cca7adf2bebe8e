//! When the members of a lane take and free blocks of a group: members counted by where in their period they are.
//!
//! All members of a lane gain a token in each step, so those that have n ≡ r (mod m) tokens do so together from then on:
//! one counter for each residue, and the index of the residue that is due, determine what a step does.

use super::kv_group::{GroupKind, KvGroup};
use super::kv_layout::KvLayout;

/// Members by residue of their tokens; those are due whose tokens + `ahead` are a multiple of the period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Phases {
    ahead: u32,
    /// Place of those that are due. It moves by one in each step, and the members stay where they are.
    due: u32,
    members: Box<[u32]>,
}

impl Phases {
    pub(super) fn new(period: u32, ahead: u32) -> Self {
        Self { ahead, due: 0, members: vec![0; period as usize].into() }
    }

    #[inline]
    fn period(&self) -> u32 {
        self.members.len() as u32
    }

    /// The members that stand where one with `kv` tokens does.
    #[inline]
    fn at(&mut self, kv: u32) -> &mut u32 {
        let period = self.period();
        let past = (kv + self.ahead) % period;
        let place = if past <= self.due { self.due - past } else { self.due + period - past };
        &mut self.members[place as usize]
    }

    #[inline]
    pub(super) fn insert(&mut self, kv: u32) {
        *self.at(kv) += 1;
    }

    #[inline]
    pub(super) fn remove(&mut self, kv: u32) {
        *self.at(kv) -= 1;
    }

    pub(super) fn clear(&mut self) {
        self.members.fill(0);
    }

    #[inline]
    pub(super) fn due(&self) -> u32 {
        self.members[self.due as usize]
    }

    /// Those that are due leave.
    fn take_due(&mut self) -> u32 {
        std::mem::take(&mut self.members[self.due as usize])
    }

    #[inline]
    pub(super) fn advance(&mut self) {
        self.due = if self.due + 1 == self.period() { 0 } else { self.due + 1 };
    }
}

/// The blocks of one kind of group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BlockCounters {
    count: i64,
    /// Members whose blocks are full.
    fill: Phases,
    release: Release,
}

/// What a step frees.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Release {
    Nothing,
    /// A block of each member that the window has just left behind.
    Window {
        /// Members with at least a window of tokens.
        beyond: Phases,
        /// The others: those are due that have a whole window with the next token.
        within: Phases,
    },
    /// All blocks of the chunk that each of these members has completed.
    Chunk {
        complete: Phases,
        blocks: i64,
    },
    /// The copy of a state, one step after it was made.
    Copy {
        copied: Phases,
    },
}

impl BlockCounters {
    /// None for a state that neither grows nor shrinks.
    pub(super) fn new(group: &KvGroup, layout: &KvLayout) -> Option<Self> {
        let size = group.block_size.unwrap_or(layout.block_size());
        let release = match group.kind {
            GroupKind::State { aligned: false, .. } => return None,
            GroupKind::State { aligned: true, .. } => Release::Copy { copied: Phases::new(size, size - 1) },
            GroupKind::Full => Release::Nothing,
            GroupKind::SlidingWindow { window } => {
                // At n tokens the step frees by n − W + 1.
                let ahead = (1 + size - window % size) % size;
                Release::Window { beyond: Phases::new(size, ahead), within: Phases::new(window, 1) }
            }
            GroupKind::ChunkedLocal { chunk } => {
                Release::Chunk { complete: Phases::new(chunk, 0), blocks: i64::from(chunk / size) }
            }
        };
        let ahead = if matches!(release, Release::Copy { .. }) { 0 } else { layout.lookahead() };
        Some(Self { count: i64::from(group.count), fill: Phases::new(size, ahead), release })
    }

    #[inline]
    pub(super) fn insert(&mut self, kv: u32) {
        self.fill.insert(kv);
        match &mut self.release {
            Release::Nothing => {}
            Release::Window { within, .. } if kv < within.period() => within.insert(kv),
            Release::Window { beyond, .. } => beyond.insert(kv),
            Release::Chunk { complete, .. } => complete.insert(kv),
            Release::Copy { copied } => copied.insert(kv),
        }
    }

    #[inline]
    pub(super) fn remove(&mut self, kv: u32) {
        self.fill.remove(kv);
        match &mut self.release {
            Release::Nothing => {}
            Release::Window { within, .. } if kv < within.period() => within.remove(kv),
            Release::Window { beyond, .. } => beyond.remove(kv),
            Release::Chunk { complete, .. } => complete.remove(kv),
            Release::Copy { copied } => copied.remove(kv),
        }
    }

    pub(super) fn clear(&mut self) {
        self.fill.clear();
        match &mut self.release {
            Release::Nothing => {}
            Release::Window { beyond, within } => {
                beyond.clear();
                within.clear();
            }
            Release::Chunk { complete, .. } => complete.clear(),
            Release::Copy { copied } => copied.clear(),
        }
    }

    /// Blocks that the next step takes.
    pub(super) fn taken(&self) -> i64 {
        self.count * i64::from(self.fill.due())
    }

    /// Blocks that the next step takes, less those it frees.
    pub(super) fn change(&self) -> i64 {
        let freed = match &self.release {
            Release::Nothing => 0,
            Release::Window { beyond, .. } => i64::from(beyond.due()),
            Release::Chunk { complete, blocks } => blocks * i64::from(complete.due()),
            Release::Copy { copied } => i64::from(copied.due()),
        };
        self.count * (i64::from(self.fill.due()) - freed)
    }

    /// The lane steps.
    pub(super) fn advance(&mut self) {
        self.fill.advance();
        match &mut self.release {
            Release::Nothing => {}
            Release::Window { beyond, within } => {
                let whole = within.take_due();
                within.advance();
                beyond.advance();
                if whole > 0 {
                    *beyond.at(within.period()) += whole;
                }
            }
            Release::Chunk { complete, .. } => complete.advance(),
            Release::Copy { copied } => copied.advance(),
        }
    }
}
