//! The hash for looking up requests: ids are the host's, of any pattern, and one look-up is most of the cost of an
//! arrival or a departure.
//!
//! A 64-bit product is folded: its upper half is mixed by all bits of the id, and the lower takes them to where the
//! table looks. A product that keeps its lower half only, as FxHash does, puts ids that differ in their upper bits
//! alone into one chain. Folding costs two more instructions; it is no defence against a host that looks for
//! collisions, which could as well send nonsense.

use std::hash::{BuildHasherDefault, Hasher};

/// Builds the hash of a table of ids.
pub(crate) type BuildIdHasher = BuildHasherDefault<IdHasher>;

/// Digits of π: a pattern that ids will not have.
const FLIP: u64 = 0x243f_6a88_85a3_08d3;
/// 2^64 over the golden ratio, whose multiples are spread most evenly.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// A product of 64 bits, folded.
pub(crate) fn mixed(id: u64) -> u64 {
    let product = u128::from(id ^ FLIP) * u128::from(FACTOR);
    (product as u64) ^ (product >> 64) as u64
}

/// Hashes one id.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write_u64(&mut self, id: u64) {
        self.0 = mixed(id);
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(self.0 ^ u64::from(byte));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::hash::BuildHasher;

    use super::*;

    /// FxHash's factor of 64 bits, and its inverse.
    const FX: u64 = 0xf135_7aea_2e62_a9c5;

    fn inverse(of: u64) -> u64 {
        (0..6).fold(of, |x, _| x.wrapping_mul(2_u64.wrapping_sub(of.wrapping_mul(x))))
    }

    /// The longest chain among 2^15 places, and how many of 128 tags, the uppermost bits, there are.
    fn chain_and_tags(ids: impl Iterator<Item = u64>) -> (u32, usize) {
        let (mut places, mut tags) = (HashMap::<u64, u32>::new(), HashSet::new());
        for id in ids {
            let hash = BuildIdHasher::default().hash_one(id);
            *places.entry(hash % (1 << 15)).or_default() += 1;
            tags.insert(hash >> 57);
        }
        (places.values().copied().max().unwrap_or(0), tags.len())
    }

    #[test]
    fn ids_of_any_pattern_spread() {
        assert_eq!(FX.wrapping_mul(inverse(FX)), 1);
        let spreads = |pattern: &str, id: &dyn Fn(u64) -> u64| {
            let (longest, tags) = chain_and_tags((0..1 << 14).map(id));
            // At random the longest chain is of 6 or so.
            assert!(longest <= 8 && tags == 128, "{pattern}: {longest} in one place, {tags} tags");
        };
        for shift in 0..=50 {
            spreads(&format!("multiples of 2^{shift}"), &|i| i << shift);
            // All of these fall into one place of a table with FxHash.
            spreads(&format!("FxHash's, of 2^{shift}"), &|i| (i << shift).wrapping_mul(inverse(FX)));
        }
        spreads("counted down", &|i| u64::MAX - i);
    }
}
