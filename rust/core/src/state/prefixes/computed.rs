//! Which prefixes have been computed lately, whether or not they are still cached.
//!
//! A block that was computed and is not cached has been evicted: with more memory it would have been found. A table with eight
//! times as many entries as the cache has blocks remembers what requests leave behind. It is direct-mapped: a newer hash
//! overwrites an older one in its place, so that old ones fade away without any order being kept.

use crate::lookup::mixed;

/// Prefixes by the hash of their last block.
#[derive(Clone, Debug)]
pub(super) struct Computed {
    /// The upper half of each mixed hash, 0 for an empty place; the length is a power of two.
    tags: Box<[u32]>,
}

impl Computed {
    /// For a cache of this many blocks.
    pub(super) fn new(blocks: u32) -> Self {
        Self { tags: vec![0; (8 * blocks as usize).next_power_of_two()].into() }
    }

    fn place(&self, hash: u64) -> (usize, u32) {
        let mixed = mixed(hash);
        (mixed as usize & (self.tags.len() - 1), (mixed >> 32) as u32 | 1)
    }

    pub(super) fn insert(&mut self, hashes: &[u64]) {
        for &hash in hashes {
            let (at, tag) = self.place(hash);
            self.tags[at] = tag;
        }
    }

    /// How many of these have been computed.
    pub(super) fn count(&self, hashes: &[u64]) -> u32 {
        let is_known = |&&hash: &&u64| {
            let (at, tag) = self.place(hash);
            self.tags[at] == tag
        };
        hashes.iter().filter(is_known).count() as u32
    }

    pub(super) fn clear(&mut self) {
        self.tags.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_remembered_and_the_others_fade() {
        let mut computed = Computed::new(500);
        let hashes: Vec<u64> = (0..100_000).collect();
        computed.insert(&hashes);
        assert!(computed.count(&hashes[99_900..]) > 90, "{}", computed.count(&hashes[99_900..]));
        assert!(computed.count(&hashes[..50_000]) < 50, "{}", computed.count(&hashes[..50_000]));
        assert_eq!(computed.count(&[1 << 40, u64::MAX]), 0);
        computed.clear();
        assert_eq!(computed.count(&hashes), 0);
    }
}
