//! From a key of 64 bits to a number: open addressing with linear probing.
//!
//! Entries come and go for as long as the engine runs. That is the worst case of a map that marks deleted entries: it has
//! to clear them away from time to time, all at once. Here the entries behind a deleted one move up instead, and every
//! operation costs the same however long the index has been in use. The keys are not in it: the owner of the numbers has
//! them at hand, and says whether a number has the key.

use super::hash::mixed;

const EMPTY: Entry = Entry { tag: 0, number: u32::MAX };
/// A power of two, as all sizes are.
const FEWEST: usize = 16;

/// Eight to a cache line. `number` is `u32::MAX` in an empty one.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Its last bits are the entry's preferred place; the rest tells it from its neighbours.
    tag: u32,
    number: u32,
}

/// Where a key is in an index, or would be; until the index changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    tag: u32,
    at: usize,
    /// The number that the key stands for.
    pub(crate) number: Option<u32>,
}

/// Numbers below `u32::MAX`, by key.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    /// At most half of them in use.
    entries: Box<[Entry]>,
    len: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self { entries: vec![EMPTY; FEWEST].into(), len: 0 }
    }
}

/// 32 well mixed bits of a key: each depends on every bit of it.
///
/// A host may use anything that distinguishes things: digests, which are random in every bit, but also counters,
/// addresses, or values that differ in their upper bits alone. The second factor is SplitMix64's (Steele, Lea and Flood
/// 2014). It is no defence against keys chosen to collide: that needs a secret.
fn tag(key: u64) -> u32 {
    (mixed(key).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) as u32
}

impl Index {
    /// Where `key` is, or would be. `is` says whether that of a number is its key.
    #[inline(always)]
    pub(crate) fn locate(&self, key: u64, is: impl Fn(u32) -> bool) -> Place {
        let tag = tag(key);
        match self.position(tag, is) {
            Ok(at) => Place { tag, at, number: Some(self.entries[at].number) },
            Err(at) => Place { tag, at, number: None },
        }
    }

    /// The number that `key` stands for.
    #[inline(always)]
    pub(crate) fn find(&self, key: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
        self.locate(key, is).number
    }

    /// Have `key` stand for `number`, unless it stands for another: that is then returned.
    pub(crate) fn insert(&mut self, key: u64, number: u32, is: impl Fn(u32) -> bool) -> Option<u32> {
        let place = self.locate(key, is);
        if place.number.is_none() {
            self.insert_at(place, number);
        }
        place.number
    }

    /// Have the key of a place stand for `number`: it stands for none yet.
    #[inline(always)]
    pub(crate) fn insert_at(&mut self, place: Place, number: u32) {
        debug_assert!(place.number.is_none());
        self.entries[place.at] = Entry { tag: place.tag, number };
        self.len += 1;
        if 2 * self.len > self.entries.len() {
            self.grow();
        }
    }

    /// Have `key` stand for `other`, if it stands for `number`.
    pub(crate) fn replace(&mut self, key: u64, number: u32, other: u32) {
        if let Ok(at) = self.position(tag(key), |found| found == number) {
            self.entries[at].number = other;
        }
    }

    /// Remove `key`, if it stands for `number`.
    pub(crate) fn remove(&mut self, key: u64, number: u32) {
        let place = self.locate(key, |found| found == number);
        if place.number.is_some() {
            self.remove_at(place);
        }
    }

    /// Remove the key of a place.
    #[inline]
    pub(crate) fn remove_at(&mut self, place: Place) {
        debug_assert!(place.number.is_some());
        self.len -= 1;
        let mut hole = place.at;
        let mut at = hole;
        loop {
            at = self.after(at);
            let entry = self.entries[at];
            if entry.number == EMPTY.number {
                break;
            }
            // It may move up to the hole unless that is before the place where a search for it starts.
            if self.distance(self.home(entry.tag), at) >= self.distance(hole, at) {
                self.entries[hole] = entry;
                hole = at;
            }
        }
        self.entries[hole] = EMPTY;
    }

    /// Keys that stand for a number.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn clear(&mut self) {
        self.entries.fill(EMPTY);
        self.len = 0;
    }

    /// Where the entry is, or where it would be.
    fn position(&self, tag: u32, is: impl Fn(u32) -> bool) -> Result<usize, usize> {
        let mut at = self.home(tag);
        loop {
            let entry = self.entries[at];
            if entry.number == EMPTY.number {
                return Err(at);
            }
            if entry.tag == tag && is(entry.number) {
                return Ok(at);
            }
            at = self.after(at);
        }
    }

    #[cold]
    fn grow(&mut self) {
        let larger = vec![EMPTY; 2 * self.entries.len()].into();
        for entry in std::mem::replace(&mut self.entries, larger) {
            if entry.number != EMPTY.number
                && let Err(at) = self.position(entry.tag, |_| false)
            {
                self.entries[at] = entry;
            }
        }
    }

    fn home(&self, tag: u32) -> usize {
        tag as usize & (self.entries.len() - 1)
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.entries.len() - 1)
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.entries.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    impl Index {
        pub(crate) fn size(&self) -> usize {
            self.entries.len()
        }

        /// Entries probed to find those there are, on average and at most.
        fn probes(&self) -> (f64, usize) {
            let used = |at: &usize| self.entries[*at].number != EMPTY.number;
            let probes = |at: usize| self.distance(self.home(self.entries[at].tag), at) + 1;
            let all = (0..self.entries.len()).filter(used).map(probes);
            (all.clone().sum::<usize>() as f64 / self.len as f64, all.max().unwrap_or(0))
        }
    }

    #[test]
    fn patterns_of_hashes_spread_as_random_ones_do() {
        const COUNT: u64 = 1 << 13; // exactly half full: 1.5 probes on average for random places
        let check = |name: &str, pattern: &dyn Fn(u64) -> u64| {
            let mut index = Index::default();
            for i in 0..COUNT {
                index.insert(pattern(i), i as u32 + 1, |_| false);
            }
            assert_eq!(index.size() as u64, 2 * COUNT);
            let (average, most) = index.probes();
            assert!(average < 1.6 && most < 64, "{name}: {average} probes on average, {most} at most");
        };
        check("bit reversed", &u64::reverse_bits);
        check("complement", &|i| !i);
        check("both ends", &|i| i & 0xff | (i >> 8) << 56);
        check("squares", &|i| i * i);
        for shift in 0..=51 {
            check(&format!("<< {shift}"), &|i| i << shift);
        }
        for stride in [3, 1000, 0x1_0001, u64::MAX / COUNT, 0x9e37_79b9_7f4a_7c15] {
            check(&format!("times {stride}"), &|i| i.wrapping_mul(stride));
        }
    }

    #[test]
    fn hashes_with_one_tag_are_distinguished() {
        let mut seen = HashMap::new();
        let pair = (0..1 << 20).find_map(|key| Some([seen.insert(tag(key), key)?, key]));
        let hashes = pair.expect("among 2^20 keys some have one tag of 32 bits");
        let mut index = Index::default();
        let is = |hash: u64| move |block: u32| hashes[block as usize - 1] == hash;
        for (block, hash) in (1..).zip(hashes) {
            assert_eq!(index.insert(hash, block, is(hash)), None);
        }
        assert_eq!(hashes.map(|hash| index.find(hash, is(hash))), [Some(1), Some(2)]);
        index.remove(hashes[0], 1);
        assert_eq!(hashes.map(|hash| index.find(hash, is(hash))), [None, Some(2)]);
    }

    proptest! {
        #[test]
        fn it_is_a_map(
            // More hashes than the smallest table has room for, so that it is full most of the time, and grows.
            ops in prop::collection::vec((0..24u64, 0..3u8), 0..200),
        ) {
            let (mut index, mut map) = (Index::default(), HashMap::new());
            for (number, (hash, op)) in (1..).zip(ops) {
                match (op, map.get(&hash).copied()) {
                    (0, Some(block)) => {
                        index.replace(hash, block, number);
                        map.insert(hash, number);
                    }
                    (1, Some(block)) => {
                        index.remove(hash, block);
                        map.remove(&hash);
                    }
                    (_, Some(block)) => {
                        prop_assert_eq!(index.insert(hash, number, |found| found == block), Some(block));
                        index.replace(hash, u32::MAX, number);
                        index.remove(hash, u32::MAX);
                    }
                    (_, None) => {
                        prop_assert_eq!(index.insert(hash, number, |_| false), None);
                        map.insert(hash, number);
                    }
                }
                prop_assert_eq!(index.len, map.len());
                for hash in 0..24 {
                    let found = index.find(hash, |block| map.get(&hash) == Some(&block));
                    prop_assert_eq!(found, map.get(&hash).copied());
                }
            }
        }
    }
}
