//! Doubly linked lists threaded through the request table: O(1) push, take and abort, no allocation.

use crate::request::{Slot, Tracked};

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

    pub(crate) fn push_back(&mut self, table: &mut [Tracked], slot: Slot) {
        table[slot as usize].link = Link { prev: self.tail, next: NIL };
        match some(self.tail) {
            Some(tail) => table[tail as usize].link.next = slot,
            None => self.head = slot,
        }
        self.tail = slot;
        self.len += 1;
    }

    pub(crate) fn push_front(&mut self, table: &mut [Tracked], slot: Slot) {
        table[slot as usize].link = Link { prev: NIL, next: self.head };
        match some(self.head) {
            Some(head) => table[head as usize].link.prev = slot,
            None => self.tail = slot,
        }
        self.head = slot;
        self.len += 1;
    }

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
