//! A timing wheel: what is due at which tick.

use super::NIL;

/// Slots of the wheel; what is due later comes up early, and is scheduled again.
const PLACES: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Node {
    next: u32,
    previous: u32,
    place: u32,
}

/// Numbers, each due at a tick, in lists by tick.
#[derive(Clone, Debug)]
pub(super) struct Wheel {
    places: Box<[u32; PLACES]>,
    nodes: Vec<Node>,
}

impl Wheel {
    pub(super) fn new() -> Self {
        Self { places: Box::new([NIL; PLACES]), nodes: Vec::new() }
    }

    /// Schedules `number` at a tick after `now`; it may come up earlier.
    pub(super) fn schedule(&mut self, number: u32, now: i64, due: i64) {
        if self.nodes.len() <= number as usize {
            self.nodes.resize(number as usize + 1, Node { next: NIL, previous: NIL, place: NIL });
        }
        let place = due.clamp(now + 1, now + PLACES as i64 - 1) as usize % PLACES;
        let next = std::mem::replace(&mut self.places[place], number);
        self.nodes[number as usize] = Node { next, previous: NIL, place: place as u32 };
        if next != NIL {
            self.nodes[next as usize].previous = number;
        }
    }

    /// Removes `number`, if it was scheduled.
    pub(super) fn cancel(&mut self, number: u32) {
        let Some(node) = self.nodes.get_mut(number as usize) else { return };
        let Node { next, previous, place } = *node;
        if place == NIL {
            return;
        }
        node.place = NIL;
        if next != NIL {
            self.nodes[next as usize].previous = previous;
        }
        match previous {
            NIL => self.places[place as usize] = next,
            previous => self.nodes[previous as usize].next = next,
        }
    }

    /// Takes out one number that is due at a tick.
    pub(super) fn pop(&mut self, tick: i64) -> Option<u32> {
        let place = &mut self.places[tick as usize % PLACES];
        let number = *place;
        let node = self.nodes.get_mut(number as usize)?;
        *place = node.next;
        node.place = NIL;
        if *place != NIL {
            let next = *place as usize;
            self.nodes[next].previous = NIL;
        }
        Some(number)
    }
}
