//! Blocks, counted one by one from what the kinds of KV cache keep, and a pool of them.

use std::collections::BTreeSet;

use wait_core::{Config, GroupKind, KvGroup};

#[derive(Clone, Debug)]
pub(crate) struct Kv {
    groups: Vec<KvGroup>,
    pub(crate) block_size: u32,
    lookahead: u32,
}

impl Kv {
    pub(crate) fn new(config: &Config) -> Self {
        let mut groups = config.kv_groups.clone();
        if groups.is_empty() {
            groups.push(KvGroup { kind: GroupKind::Full, block_size: None, count: 1 });
        }
        Self { groups, block_size: config.block_size, lookahead: config.num_lookahead_tokens }
    }

    fn sum(&self, blocks: impl Fn(GroupKind, u32) -> u32) -> u32 {
        let each = |group: &KvGroup| group.count * blocks(group.kind, group.block_size.unwrap_or(self.block_size));
        self.groups.iter().map(each).sum()
    }

    /// Those of the first `end` tokens whose blocks remain after a step that begins at `start`.
    fn keeps(kind: GroupKind, start: u32) -> u32 {
        match kind {
            GroupKind::SlidingWindow { window } => (start + 1).saturating_sub(window),
            GroupKind::ChunkedLocal { chunk } => start - start % chunk,
            GroupKind::Full | GroupKind::State { .. } => 0,
        }
    }

    /// Blocks that are computed twice, by these hashes of each request, where its last step began, and its tokens.
    pub(crate) fn duplicates(&self, requests: &[(&[u64], u32, u32)]) -> i64 {
        let of_group = |group: &KvGroup| {
            let size = group.block_size.unwrap_or(self.block_size);
            let each = (size / self.block_size) as usize;
            // The last hash of each full block that is held still.
            let held = |&(hashes, start, kv): &(&[u64], u32, u32)| {
                let full = hashes.len().min((kv / self.block_size) as usize) / each;
                let blocks = (Self::keeps(group.kind, start) / size) as usize..full;
                blocks.map(|block| hashes[(block + 1) * each - 1]).collect::<Vec<_>>()
            };
            let all: Vec<u64> = requests.iter().flat_map(held).collect();
            let twice = all.len() - all.iter().collect::<BTreeSet<_>>().len();
            i64::from(group.count) * twice as i64
        };
        self.groups.iter().filter(|group| !matches!(group.kind, GroupKind::State { .. })).map(of_group).sum()
    }

    /// Blocks after a step from `start` to `end` tokens: all that hold a token to which a later one attends.
    pub(crate) fn after(&self, start: u32, end: u32) -> u32 {
        self.sum(|kind, size| match kind {
            GroupKind::State { blocks, aligned } => {
                // A new block begins: the state at the end of the last one is kept.
                blocks + u32::from(aligned && start > 0 && end.div_ceil(size) > start.div_ceil(size))
            }
            _ => (0..end.div_ceil(size)).filter(|block| (block + 1) * size > Self::keeps(kind, start)).count() as u32,
        })
    }

    pub(crate) fn decoding(&self, kv: u32) -> u32 {
        let start = kv.saturating_sub(1);
        // A state takes nothing ahead, and is copied by the step that enters a block.
        self.after(start, kv + self.lookahead)
            + self.sum(|kind, size| match kind {
                GroupKind::State { aligned: true, .. } => u32::from(start.is_multiple_of(size)),
                _ => 0,
            })
            - self.sum(|kind, size| match kind {
                GroupKind::State { aligned: true, .. } => {
                    u32::from(start > 0 && (kv + self.lookahead).div_ceil(size) > start.div_ceil(size))
                }
                _ => 0,
            })
    }

    /// Whether this many blocks hold a token in all groups.
    pub(crate) fn holds_one(&self, blocks: u32) -> bool {
        // With the slots for its drafts.
        self.whole(self.lookahead.max(1)) <= blocks
    }

    /// Blocks if nothing were given back.
    pub(crate) fn whole(&self, tokens: u32) -> u32 {
        self.sum(|kind, size| match kind {
            GroupKind::State { blocks, aligned } => blocks + u32::from(aligned),
            _ => tokens.div_ceil(size),
        })
    }

    /// Full blocks of a prefix that a request continuing from it holds.
    pub(crate) fn filled(&self, tokens: u32) -> u32 {
        let full = |kind, size: u32| {
            (0..tokens / size).filter(|block| (block + 1) * size > Self::keeps(kind, tokens)).count() as u32
        };
        self.sum(|kind, size| if matches!(kind, GroupKind::State { .. }) { 0 } else { full(kind, size) })
    }
}

/// Plans for which a host's count of free blocks is used.
const MAX_SILENCE: u32 = 16;

#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pub(crate) capacity: u32,
    /// By how much fewer blocks are in use than the residents hold.
    pub(crate) drift: i64,
    /// Plans since the host reported how many are free.
    pub(crate) silence: u32,
}

impl Pool {
    pub(crate) fn new(capacity: u32) -> Self {
        Self { capacity, drift: 0, silence: u32::MAX }
    }

    pub(crate) fn trusted(&self) -> bool {
        self.silence <= MAX_SILENCE
    }

    /// Blocks in use, if the residents hold this many.
    pub(crate) fn used(&self, held: i64) -> i64 {
        (held - self.drift).max(0)
    }

    /// One leaves: others hold what it shared. Without the host's report it is not known which do.
    pub(crate) fn release(&mut self, blocks: u32, shared: u32, left: i64) {
        self.drift -= if self.trusted() { i64::from(shared) } else { self.drift.clamp(0, i64::from(blocks)) };
        // No more can be shared than is held; with nothing held there is nothing to disagree about.
        self.drift = if left == 0 { 0 } else { self.drift.min(left) };
    }

    pub(crate) fn reconcile(&mut self, free: u32, held: i64) {
        self.silence = 0;
        self.drift = held - (i64::from(self.capacity) - i64::from(free));
    }
}
