//! A queue: by rank, lowest first, and first come first served among equals.
//!
//! Almost always a request goes to the back, which is a link. Only when one must go further ahead is the queue indexed
//! by rank, until it is empty again: a policy that never ranks pays nothing.

use std::collections::BTreeMap;

use crate::model::Slot;
use crate::state::Tracked;
use crate::state::linked_list::{List, previous};

#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    list: List,
    /// Tokens that its requests would prefill.
    tokens: u64,
    /// Last request of each rank, while the queue is indexed.
    last: Option<BTreeMap<i64, Slot>>,
}

fn rank(table: &[Tracked], slot: Slot) -> i64 {
    table[slot as usize].rank
}

fn tokens(table: &[Tracked], slot: Slot) -> u64 {
    u64::from(table[slot as usize].prefill_target())
}

impl Queue {
    pub(crate) fn list(&self) -> &List {
        &self.list
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Behind its equals.
    #[inline(always)]
    pub(crate) fn insert(&mut self, table: &mut [Tracked], slot: Slot) {
        self.tokens += tokens(table, slot);
        let rank_of = rank(table, slot);
        if self.last.is_none() && self.list.tail().is_none_or(|tail| rank(table, tail) <= rank_of) {
            return self.list.push_back(table, slot);
        }
        self.insert_ahead(table, slot);
    }

    /// Further ahead than the back.
    #[cold]
    fn insert_ahead(&mut self, table: &mut [Tracked], slot: Slot) {
        let rank_of = rank(table, slot);
        let last = self.index(table);
        let before = last.range(..=rank_of).next_back().map(|(_, &slot)| slot);
        last.insert(rank_of, slot);
        self.list.insert_after(table, before, slot);
    }

    /// Before its equals: it was the first of them.
    pub(crate) fn put_back(&mut self, table: &mut [Tracked], slot: Slot) {
        self.tokens += tokens(table, slot);
        let rank_of = rank(table, slot);
        if self.last.is_none() && self.list.head().is_none_or(|head| rank_of <= rank(table, head)) {
            return self.list.push_front(table, slot);
        }
        if self.last.is_none() && self.list.tail().is_some_and(|tail| rank(table, tail) < rank_of) {
            return self.list.push_back(table, slot);
        }
        let last = self.index(table);
        let before = last.range(..rank_of).next_back().map(|(_, &slot)| slot);
        last.entry(rank_of).or_insert(slot);
        self.list.insert_after(table, before, slot);
    }

    /// At the front, whatever its rank: for a queue that is last in, first out.
    pub(crate) fn push_front(&mut self, table: &mut [Tracked], slot: Slot) {
        debug_assert!(self.last.is_none(), "an indexed queue goes by rank");
        self.tokens += tokens(table, slot);
        self.list.push_front(table, slot);
    }

    #[inline]
    pub(crate) fn remove(&mut self, table: &mut [Tracked], slot: Slot) {
        self.tokens -= tokens(table, slot);
        if self.last.is_some() {
            self.unindex(table, slot);
        }
        self.list.remove(table, slot);
    }

    /// Takes one off the index, if there is one.
    #[cold]
    fn unindex(&mut self, table: &[Tracked], slot: Slot) {
        let Some(last) = &mut self.last else { return };
        let rank_of = rank(table, slot);
        if last.get(&rank_of) == Some(&slot) {
            match previous(table, slot).filter(|&before| rank(table, before) == rank_of) {
                Some(before) => last.insert(rank_of, before),
                None => last.remove(&rank_of),
            };
        }
        if last.is_empty() {
            self.last = None;
        }
    }

    fn index(&mut self, table: &[Tracked]) -> &mut BTreeMap<i64, Slot> {
        let list = &self.list;
        self.last.get_or_insert_with(|| list.iter(table).map(|slot| (rank(table, slot), slot)).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Request;
    use crate::state::View;
    use crate::state::linked_list::Link;

    fn table(ranks: &[i64]) -> Vec<Tracked> {
        let config = crate::Config { kv_blocks: 8, ..crate::Config::default() };
        let mut view = View::new(&config, 1, 1, false);
        let mut tracked = |(id, &rank): (usize, &i64)| {
            let slot = view.insert(
                view.locate(id as u64),
                &Request { id: id as u64, prompt: 1, ..Request::default() },
                1,
                0,
                0,
                0,
            );
            Tracked { link: Link::default(), rank, ..view.request(slot).clone() }
        };
        ranks.iter().enumerate().map(&mut tracked).collect()
    }

    proptest! {
        #[test]
        fn a_queue_is_a_list_sorted_by_rank(
            ranks in prop::collection::vec(-3..4i64, 12),
            ops in prop::collection::vec((0..3u8, 0..12u32), 0..100),
        ) {
            let (mut queue, mut table, mut slow) = (Queue::default(), table(&ranks), Vec::<Slot>::new());
            for (op, slot) in ops {
                let rank = ranks[slot as usize];
                match (op, slow.iter().position(|&other| other == slot)) {
                    (0, None) => {
                        queue.insert(&mut table, slot);
                        slow.insert(slow.partition_point(|&other| ranks[other as usize] <= rank), slot);
                    }
                    (1, None) => {
                        queue.put_back(&mut table, slot);
                        slow.insert(slow.partition_point(|&other| ranks[other as usize] < rank), slot);
                    }
                    (2, Some(at)) => {
                        queue.remove(&mut table, slot);
                        slow.remove(at);
                    }
                    _ => {}
                }
                prop_assert_eq!(queue.list().iter(&table).collect::<Vec<_>>(), slow.clone());
                prop_assert_eq!(queue.tokens(), slow.len() as u64);
            }
        }
    }
}
