//! The model that the cache must equal: every block by itself, with its reference count, and a queue of the free ones.

use std::collections::{HashMap, VecDeque};

use super::Hit;

#[derive(Default)]
struct Block {
    holders: u32,
    hash: Option<u64>,
}

pub(super) struct Pool {
    capacity: u32,
    blocks: Vec<Block>,
    queue: VecDeque<usize>,
    /// Blocks of each hash, in the order in which they were named.
    cached: HashMap<u64, Vec<usize>>,
    /// Blocks that are to disappear as soon as they are free.
    excess: u32,
}

impl Pool {
    pub(super) fn new(capacity: u32) -> Self {
        let blocks = (0..capacity).map(|_| Block::default()).collect();
        let queue = (0..capacity as usize).collect();
        Self { capacity, blocks, queue, cached: HashMap::new(), excess: 0 }
    }

    pub(super) fn free(&self) -> i64 {
        self.queue.len() as i64 - i64::from(self.excess)
    }

    pub(super) fn queue(&self) -> (i64, Vec<u64>) {
        let all: Vec<Option<u64>> = self.queue.iter().map(|&id| self.blocks[id].hash).collect();
        let anonymous = all.iter().take_while(|hash| hash.is_none()).count();
        let named = all[anonymous..].iter().map(|hash| hash.expect("no anonymous block behind a named one"));
        (anonymous as i64 - i64::from(self.excess), named.collect())
    }

    fn cached(&self, hashes: &[u64]) -> Vec<usize> {
        hashes.iter().map_while(|hash| self.cached.get(hash).map(|ids| ids[0])).collect()
    }

    pub(super) fn hit(&self, hashes: &[u64]) -> Hit {
        let ids = self.cached(hashes);
        let held = ids.iter().filter(|&&id| self.blocks[id].holders > 0).count();
        Hit { blocks: ids.len() as u32, held: held as u32 }
    }

    pub(super) fn take_prefix(&mut self, hashes: &[u64]) -> Vec<usize> {
        let ids = self.cached(hashes);
        for &id in &ids {
            self.queue.retain(|&free| free != id);
            self.blocks[id].holders += 1;
        }
        ids
    }

    /// A block that leaves the queue, without its name.
    fn pop(&mut self) -> Option<usize> {
        let id = self.queue.pop_front()?;
        if let Some(hash) = self.blocks[id].hash.take() {
            let ids = self.cached.get_mut(&hash).expect("a named block is cached");
            ids.retain(|&other| other != id);
            if ids.is_empty() {
                self.cached.remove(&hash);
            }
        }
        Some(id)
    }

    fn create(&mut self) -> usize {
        self.blocks.push(Block::default());
        self.blocks.len() - 1
    }

    pub(super) fn take(&mut self, blocks: u32) -> Vec<usize> {
        let take = |_| {
            let id = self.pop().unwrap_or_else(|| {
                self.excess += 1;
                self.create()
            });
            self.blocks[id].holders = 1;
            id
        };
        (0..blocks).map(take).collect()
    }

    pub(super) fn name(&mut self, id: usize, hash: u64) {
        self.blocks[id].hash = Some(hash);
        self.cached.entry(hash).or_default().push(id);
    }

    pub(super) fn give(&mut self, ids: &[usize]) {
        let mut first = Vec::new();
        for &id in ids.iter().rev() {
            self.blocks[id].holders -= 1;
            match self.blocks[id] {
                Block { holders: 0, hash: None } => first.push(id),
                Block { holders: 0, hash: Some(_) } => self.queue.push_back(id),
                _ => {}
            }
        }
        first.into_iter().rev().for_each(|id| self.queue.push_front(id));
        self.shrink();
    }

    pub(super) fn set_capacity(&mut self, capacity: u32) {
        for _ in capacity..self.capacity {
            self.excess += 1;
        }
        self.shrink();
        for _ in self.capacity..capacity {
            if self.excess > 0 {
                self.excess -= 1;
            } else {
                let id = self.create();
                self.queue.push_front(id);
            }
        }
        self.capacity = capacity;
    }

    pub(super) fn reset(&mut self) -> bool {
        let idle = self.blocks.iter().all(|block| block.holders == 0);
        if idle {
            self.cached.clear();
            self.blocks.iter_mut().for_each(|block| block.hash = None);
        }
        idle
    }

    fn shrink(&mut self) {
        while self.excess > 0 && self.pop().is_some() {
            self.excess -= 1;
        }
    }
}
