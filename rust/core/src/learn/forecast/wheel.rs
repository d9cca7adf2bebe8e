//! A timing wheel: what is due at which tick.

/// Ticks ahead that are kept apart; what is due later comes up early, and is scheduled again.
const PLACES: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Node {
    next: u32,
    previous: u32,
}

/// Numbers, each due at a tick, in rings by tick.
#[derive(Clone, Debug)]
pub(super) struct Wheel {
    /// First a node for each place, at which its ring begins and ends, then one for each number; what is in no ring is
    /// a ring of itself.
    nodes: Vec<Node>,
}

impl Wheel {
    pub(super) fn new() -> Self {
        let mut wheel = Self { nodes: Vec::new() };
        wheel.extend_to(PLACES);
        wheel
    }

    fn extend_to(&mut self, nodes: usize) {
        self.nodes.extend((self.nodes.len() as u32..nodes as u32).map(|at| Node { next: at, previous: at }));
    }

    /// Makes room for numbers below `count`.
    pub(super) fn reserve(&mut self, count: usize) {
        self.extend_to(PLACES + count);
    }

    /// Schedules `number`, for which there is room, at a tick after `now`; it may come up earlier.
    #[inline(always)]
    pub(super) fn schedule(&mut self, number: u32, now: i64, due: i64) {
        debug_assert!(due > now, "due at {due}, and it is {now}");
        let place = due.min(now + PLACES as i64 - 1) as usize % PLACES;
        let at = PLACES + number as usize;
        let next = std::mem::replace(&mut self.nodes[place].next, at as u32);
        self.nodes[next as usize].previous = at as u32;
        self.nodes[at] = Node { next, previous: place as u32 };
    }

    /// Takes out `number`, if it is scheduled.
    #[inline(always)]
    pub(super) fn cancel(&mut self, number: u32) {
        let at = PLACES + number as usize;
        let Some(&Node { next, previous }) = self.nodes.get(at) else { return };
        self.nodes[previous as usize].next = next;
        self.nodes[next as usize].previous = previous;
        self.nodes[at] = Node { next: at as u32, previous: at as u32 };
    }

    /// Takes out one number that is due at a tick.
    #[inline(always)]
    pub(super) fn pop(&mut self, tick: i64) -> Option<u32> {
        let next = self.nodes[tick as usize % PLACES].next as usize;
        let number = next.checked_sub(PLACES)? as u32;
        self.cancel(number);
        Some(number)
    }
}
