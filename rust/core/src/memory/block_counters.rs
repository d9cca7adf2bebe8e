//! When the members of a lane take and free blocks of a group: members counted by residues of their bases.
//!
//! A member of base β has n = tick − β tokens. What happens at n ≡ r (mod m) happens to all of β ≡ tick − r, so that
//! one counter for each residue of β, and the index of the residue that is due, determine what a step does.

use super::kv_group::{GroupKind, KvGroup};
use super::kv_layout::KvLayout;

/// Members by residue of their bases; those are due whose tokens + `ahead` are a multiple of the period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Phases {
    /// The residue that is due, kept so that a step needs no division.
    due: usize,
    members: Box<[u32]>,
}

impl Phases {
    pub(super) fn new(period: u32, ahead: u32) -> Self {
        Self { due: (ahead % period) as usize, members: vec![0; period as usize].into() }
    }

    #[inline]
    fn of(&self, base: i64) -> usize {
        base.rem_euclid(self.members.len() as i64) as usize
    }

    #[inline]
    pub(super) fn insert(&mut self, base: i64) {
        self.members[self.of(base)] += 1;
    }

    #[inline]
    pub(super) fn remove(&mut self, base: i64) {
        self.members[self.of(base)] -= 1;
    }

    pub(super) fn clear(&mut self) {
        self.members.fill(0);
    }

    #[inline]
    pub(super) fn due(&self) -> u32 {
        self.members[self.due]
    }

    #[inline]
    pub(super) fn advance(&mut self) {
        self.due = if self.due + 1 == self.members.len() { 0 } else { self.due + 1 };
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
        /// The others by base: within a window's length no two bases share a place.
        within: Box<[u32]>,
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
                Release::Window { beyond: Phases::new(size, ahead), within: vec![0; window as usize].into() }
            }
            GroupKind::ChunkedLocal { chunk } => {
                Release::Chunk { complete: Phases::new(chunk, 0), blocks: i64::from(chunk / size) }
            }
        };
        let ahead = if matches!(release, Release::Copy { .. }) { 0 } else { layout.lookahead() };
        Some(Self { count: i64::from(group.count), fill: Phases::new(size, ahead), release })
    }

    #[inline]
    pub(super) fn insert(&mut self, base: i64, kv: u32) {
        self.fill.insert(base);
        match &mut self.release {
            Release::Nothing => {}
            Release::Window { within, .. } if (kv as usize) < within.len() => within[place(within, base)] += 1,
            Release::Window { beyond, .. } => beyond.insert(base),
            Release::Chunk { complete, .. } => complete.insert(base),
            Release::Copy { copied } => copied.insert(base),
        }
    }

    #[inline]
    pub(super) fn remove(&mut self, base: i64, kv: u32) {
        self.fill.remove(base);
        match &mut self.release {
            Release::Nothing => {}
            Release::Window { within, .. } if (kv as usize) < within.len() => within[place(within, base)] -= 1,
            Release::Window { beyond, .. } => beyond.remove(base),
            Release::Chunk { complete, .. } => complete.remove(base),
            Release::Copy { copied } => copied.remove(base),
        }
    }

    pub(super) fn clear(&mut self) {
        self.fill.clear();
        match &mut self.release {
            Release::Nothing => {}
            Release::Window { beyond, within } => {
                beyond.clear();
                within.fill(0);
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

    /// The lane has stepped to `tick`.
    pub(super) fn advance(&mut self, tick: i64) {
        self.fill.advance();
        match &mut self.release {
            Release::Nothing => {}
            Release::Window { beyond, within } => {
                beyond.advance();
                // These now have a whole window of tokens.
                let base = tick - within.len() as i64;
                let members = std::mem::take(&mut within[place(within, base)]);
                if members > 0 {
                    let of = beyond.of(base);
                    beyond.members[of] += members;
                }
            }
            Release::Chunk { complete, .. } => complete.advance(),
            Release::Copy { copied } => copied.advance(),
        }
    }
}

fn place(within: &[u32], base: i64) -> usize {
    base.rem_euclid(within.len() as i64) as usize
}
