//! Which prefixes a replica has probably cached: those of the requests that were sent to it, evicted least recently
//! used first beyond the number of its blocks.
//!
//! A block is used whenever one behind it is, and of the blocks of one request the last is evicted first: the known
//! blocks always form whole prefixes, so the longest is found by bisection.

use std::collections::{HashMap, VecDeque};

use crate::lookup::BuildIdHasher;

#[derive(Clone, Debug)]
pub(super) struct KnownPrefixes {
    /// When each block was used last, in requests.
    used: HashMap<u64, u64, BuildIdHasher>,
    /// Uses in their order; void if the block was used again.
    order: VecDeque<(u64, u64)>,
    clock: u64,
    capacity: usize,
}

impl KnownPrefixes {
    pub(super) fn new(capacity: u32) -> Self {
        Self { used: HashMap::default(), order: VecDeque::new(), clock: 0, capacity: capacity as usize }
    }

    pub(super) fn set_capacity(&mut self, blocks: u32) {
        self.capacity = blocks as usize;
        self.forget();
    }

    /// How many of the first blocks are known.
    pub(super) fn matching(&self, hashes: &[u64]) -> usize {
        if self.used.is_empty() { 0 } else { hashes.partition_point(|hash| self.used.contains_key(hash)) }
    }

    /// A request with these blocks was sent.
    pub(super) fn learn(&mut self, hashes: &[u64]) {
        self.clock += 1;
        for &hash in hashes.iter().rev() {
            self.used.insert(hash, self.clock);
            self.order.push_back((hash, self.clock));
        }
        self.forget();
    }

    fn forget(&mut self) {
        while self.used.len() > self.capacity {
            let Some((hash, at)) = self.order.pop_front() else { break };
            if self.used.get(&hash) == Some(&at) {
                self.used.remove(&hash);
            }
        }
        // Most uses are void where few blocks are used over and over.
        if self.order.len() > 2 * self.capacity + 2 * self.used.len() {
            let used = &self.used;
            self.order.retain(|(hash, at)| used.get(hash) == Some(at));
        }
    }
}
