//! When the members of a lane take and free blocks of a group: members counted by where in their period they are.
//!
//! All members of a lane gain a token in each step, so those that have n ≡ r (mod m) tokens do so together from then on:
//! one counter for each residue, and the index of the residue that is due, determine what a step does.

use super::kv_group::GroupKind;
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

/// The blocks of several groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BlockCounters {
    /// Groups whose blocks are full at the same tokens, counted together: how many, and the members by when that is.
    fills: Box<[(i64, Phases)]>,
    /// Of each kind of group that frees blocks: how many groups, and what a step frees in one.
    releases: Box<[(i64, Release)]>,
}

/// What a step frees.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Release {
    /// A block of each member that the window has just left behind.
    Window {
        /// Members with at least a window of tokens.
        beyond: Phases,
        /// The others: those are due that have a whole window with the next token.
        within: Phases,
    },
    /// All blocks of the chunk that each of these members has completed.
    Chunk { complete: Phases, blocks: i64 },
    /// The copy of a state, one step after it was made.
    Copy { copied: Phases },
}

impl BlockCounters {
    pub(super) fn new(layout: &KvLayout) -> Self {
        let (mut fills, mut releases) = (Vec::<(i64, Phases)>::new(), Vec::new());
        for group in layout.groups() {
            let (count, size) = (i64::from(group.count), group.block_size.unwrap_or(layout.block_size()));
            let ahead = match group.kind {
                // A state that is not copied neither grows nor shrinks.
                GroupKind::State { aligned: false, .. } => continue,
                GroupKind::State { aligned: true, .. } => 0,
                _ => layout.lookahead(),
            };
            let fill = Phases::new(size, ahead);
            match fills.iter_mut().find(|(_, other)| *other == fill) {
                Some((groups, _)) => *groups += count,
                None => fills.push((count, fill)),
            }
            releases.extend(Release::new(group.kind, size).map(|release| (count, release)));
        }
        Self { fills: fills.into(), releases: releases.into() }
    }

    #[cold]
    pub(super) fn insert(&mut self, kv: u32) {
        self.fills.iter_mut().for_each(|(_, fill)| fill.insert(kv));
        self.releases.iter_mut().for_each(|(_, release)| release.phases(kv).insert(kv));
    }

    #[cold]
    pub(super) fn remove(&mut self, kv: u32) {
        self.fills.iter_mut().for_each(|(_, fill)| fill.remove(kv));
        self.releases.iter_mut().for_each(|(_, release)| release.phases(kv).remove(kv));
    }

    pub(super) fn clear(&mut self) {
        self.fills.iter_mut().for_each(|(_, fill)| fill.clear());
        self.releases.iter_mut().for_each(|(_, release)| release.clear());
    }

    /// Blocks that the next step takes.
    pub(super) fn taken(&self) -> i64 {
        self.fills.iter().map(|(groups, fill)| groups * i64::from(fill.due())).sum()
    }

    /// Blocks that the next step takes, less those it frees.
    #[cold]
    pub(super) fn change(&self) -> i64 {
        self.taken() - self.releases.iter().map(|(groups, release)| groups * release.due()).sum::<i64>()
    }

    /// The lane steps.
    #[cold]
    pub(super) fn advance(&mut self) {
        self.fills.iter_mut().for_each(|(_, fill)| fill.advance());
        self.releases.iter_mut().for_each(|(_, release)| release.advance());
    }
}

impl Release {
    /// Nothing for full attention.
    fn new(kind: GroupKind, size: u32) -> Option<Self> {
        match kind {
            GroupKind::Full => None,
            GroupKind::SlidingWindow { window } => {
                // At n tokens the step frees by n − W + 1.
                let ahead = (1 + size - window % size) % size;
                Some(Self::Window { beyond: Phases::new(size, ahead), within: Phases::new(window, 1) })
            }
            GroupKind::ChunkedLocal { chunk } => {
                Some(Self::Chunk { complete: Phases::new(chunk, 0), blocks: i64::from(chunk / size) })
            }
            GroupKind::State { .. } => Some(Self::Copy { copied: Phases::new(size, size - 1) }),
        }
    }

    /// The counters in which a member with `kv` tokens is.
    #[inline]
    fn phases(&mut self, kv: u32) -> &mut Phases {
        match self {
            Self::Window { within, .. } if kv < within.period() => within,
            Self::Window { beyond, .. } => beyond,
            Self::Chunk { complete, .. } => complete,
            Self::Copy { copied } => copied,
        }
    }

    fn clear(&mut self) {
        match self {
            Self::Window { beyond, within } => {
                beyond.clear();
                within.clear();
            }
            Self::Chunk { complete, .. } => complete.clear(),
            Self::Copy { copied } => copied.clear(),
        }
    }

    /// Blocks that the next step frees in one group.
    #[inline]
    fn due(&self) -> i64 {
        match self {
            Self::Window { beyond, .. } => i64::from(beyond.due()),
            Self::Chunk { complete, blocks } => blocks * i64::from(complete.due()),
            Self::Copy { copied } => i64::from(copied.due()),
        }
    }

    #[inline]
    fn advance(&mut self) {
        match self {
            Self::Window { beyond, within } => {
                let whole = within.take_due();
                within.advance();
                beyond.advance();
                if whole > 0 {
                    *beyond.at(within.period()) += whole;
                }
            }
            Self::Chunk { complete, .. } => complete.advance(),
            Self::Copy { copied } => copied.advance(),
        }
    }
}
