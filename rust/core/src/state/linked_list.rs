//! Doubly linked lists threaded through the request table: O(1) push, take and abort, no allocation.

use crate::model::Slot;
use crate::state::Tracked;

const NIL: Slot = Slot::MAX;

/// A request's neighbours in the one list it is in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) prev: Slot,
    pub(crate) next: Slot,
}

impl Default for Link {
    fn default() -> Self {
        Self { prev: NIL, next: NIL }
    }
}

/// Ends and length of a list.
#[derive(Clone, Debug)]
pub(crate) struct List {
    head: Slot,
    tail: Slot,
    len: u32,
}

impl Default for List {
    fn default() -> Self {
        Self { head: NIL, tail: NIL, len: 0 }
    }
}

fn some(slot: Slot) -> Option<Slot> {
    (slot != NIL).then_some(slot)
}

impl List {
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(crate) fn head(&self) -> Option<Slot> {
        some(self.head)
    }

    pub(crate) fn tail(&self) -> Option<Slot> {
        some(self.tail)
    }

    #[inline]
    pub(crate) fn push_back(&mut self, table: &mut [Tracked], slot: Slot) {
        table[slot as usize].link = Link { prev: self.tail, next: NIL };
        match some(self.tail) {
            Some(tail) => table[tail as usize].link.next = slot,
            None => self.head = slot,
        }
        self.tail = slot;
        self.len += 1;
    }

    #[inline]
    pub(crate) fn push_front(&mut self, table: &mut [Tracked], slot: Slot) {
        table[slot as usize].link = Link { prev: NIL, next: self.head };
        match some(self.head) {
            Some(head) => table[head as usize].link.prev = slot,
            None => self.tail = slot,
        }
        self.head = slot;
        self.len += 1;
    }

    /// Just behind `before`; at the front without one.
    pub(crate) fn insert_after(&mut self, table: &mut [Tracked], before: Option<Slot>, slot: Slot) {
        let Some(before) = before else { return self.push_front(table, slot) };
        let Some(next) = some(table[before as usize].link.next) else { return self.push_back(table, slot) };
        table[slot as usize].link = Link { prev: before, next };
        table[before as usize].link.next = slot;
        table[next as usize].link.prev = slot;
        self.len += 1;
    }

    #[inline]
    pub(crate) fn remove(&mut self, table: &mut [Tracked], slot: Slot) {
        let Link { prev, next } = table[slot as usize].link;
        match some(prev) {
            Some(prev) => table[prev as usize].link.next = next,
            None => self.head = next,
        }
        match some(next) {
            Some(next) => table[next as usize].link.prev = prev,
            None => self.tail = prev,
        }
        self.len -= 1;
    }

    /// Front to back.
    pub(crate) fn iter<'a>(&self, table: &'a [Tracked]) -> impl Iterator<Item = Slot> + use<'a> {
        let mut at = some(self.head);
        std::iter::from_fn(move || {
            let slot = at?;
            at = some(table[slot as usize].link.next);
            Some(slot)
        })
    }
}

pub(crate) fn previous(table: &[Tracked], slot: Slot) -> Option<Slot> {
    some(table[slot as usize].link.prev)
}

pub(crate) fn following(table: &[Tracked], slot: Slot) -> Option<Slot> {
    some(table[slot as usize].link.next)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::model::Request;
    use crate::state::View;

    fn table(n: u64) -> Vec<Tracked> {
        let config = crate::Config { kv_blocks: 8, ..crate::Config::default() };
        let mut view = View::new(&config, 1, 1, false);
        (0..n)
            .map(|id| {
                let slot = view.insert(view.locate(id), &Request { id, prompt: 1, ..Request::default() }, 1, 0, 0, 0);
                Tracked { link: Link::default(), ..view.request(slot).clone() }
            })
            .collect()
    }

    impl List {
        /// Walks the list both ways, and returns its elements.
        fn check(&self, table: &[Tracked]) -> Vec<Slot> {
            let forward: Vec<Slot> = self.iter(table).collect();
            let back = std::iter::successors(self.tail(), |&slot| previous(table, slot));
            let mut backward: Vec<Slot> = back.collect();
            backward.reverse();
            assert_eq!(forward, backward, "a list reads the same both ways");
            assert_eq!(forward.len(), self.len() as usize, "length of a list");
            forward
        }
    }

    #[test]
    fn an_empty_list_has_no_ends() {
        let list = List::default();
        assert_eq!((list.len(), list.head(), list.tail()), (0, None, None));
        assert_eq!(list.check(&table(1)), [] as [Slot; 0]);
    }

    #[test]
    fn ends_middle_and_the_only_one_can_leave() {
        let (mut list, mut table) = (List::default(), table(4));
        for slot in 0..3 {
            list.push_back(&mut table, slot);
        }
        list.push_front(&mut table, 3);
        assert_eq!(list.check(&table), [3, 0, 1, 2]);
        assert_eq!(
            (list.head(), list.tail(), previous(&table, 0), previous(&table, 3)),
            (Some(3), Some(2), Some(3), None)
        );
        list.remove(&mut table, 0);
        assert_eq!(list.check(&table), [3, 1, 2]);
        list.remove(&mut table, 3);
        list.remove(&mut table, 2);
        assert_eq!(list.check(&table), [1]);
        list.remove(&mut table, 1);
        assert_eq!((list.check(&table), list.head(), list.tail()), (vec![], None, None));
        list.push_front(&mut table, 2);
        assert_eq!(list.check(&table), [2]);
    }

    proptest! {
        #[test]
        fn a_list_is_a_deque(ops in prop::collection::vec((0..3u8, 0..12u32), 0..100)) {
            let (mut list, mut table, mut deque) = (List::default(), table(12), VecDeque::new());
            for (op, slot) in ops {
                let at = deque.iter().position(|&other| other == slot);
                match (op, at) {
                    (0, None) => { list.push_back(&mut table, slot); deque.push_back(slot); }
                    (1, None) => { list.push_front(&mut table, slot); deque.push_front(slot); }
                    (2, Some(at)) => { list.remove(&mut table, slot); deque.remove(at); }
                    _ => {}
                }
                prop_assert_eq!(list.check(&table), Vec::from(deque.clone()));
                prop_assert_eq!((list.head(), list.tail()), (deque.front().copied(), deque.back().copied()));
            }
        }
    }
}
