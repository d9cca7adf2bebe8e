//! Requests at the door, where there is a target for the first token: those that were held, and have neither been sent nor
//! ended since.
//!
//! Hosts ask for each of them separately, in any order, and often only at intervals. So no request is given a turn, which
//! could be missed: those in time go as soon as they may, and a late one yields while any of them is there. A request counts
//! as in time until its time has passed, whether it is asked for or not: one whose client has left silently delays the others
//! by no more than the target.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::lookup::BuildIdHasher;
use crate::model::RequestId;

/// A request at the door.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    arrived_ns: u64,
    /// Until when it can be in time; none: it is late.
    until_ns: Option<u64>,
}

/// What the target leaves of a request's time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Due {
    /// When it arrived, ns.
    arrived_ns: u64,
    /// The target, s.
    pub(super) target: f64,
    /// Until its first token is late, s from now; below 0: since when.
    pub(super) left: f64,
    /// Whether others at the door are in time.
    pub(super) others: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Door {
    target: Option<f64>,
    waiting: HashMap<RequestId, Waiting, BuildIdHasher>,
    /// When those in time become late; void where it was found late before, or has left.
    lapses: BinaryHeap<Reverse<(u64, RequestId)>>,
    in_time: usize,
}

impl Door {
    pub(super) fn new(target: Option<f64>) -> Self {
        Self { target, ..Self::default() }
    }

    /// Whether a request is there.
    pub(super) fn has(&self, id: RequestId) -> bool {
        self.waiting.contains_key(&id)
    }

    /// What the target leaves of a request; none without a target. Where `arrived_ns` is absent, it arrived when it was first
    /// held.
    pub(super) fn due(&mut self, now_ns: u64, id: RequestId, arrived_ns: Option<u64>) -> Option<Due> {
        let target = self.target?;
        self.lapse(now_ns);
        let before = self.waiting.get(&id);
        let arrived_ns = arrived_ns.or(before.map(|waiting| waiting.arrived_ns)).unwrap_or(now_ns);
        let itself = before.is_some_and(|waiting| waiting.until_ns.is_some());
        Some(Due {
            arrived_ns,
            target,
            left: target - now_ns.saturating_sub(arrived_ns) as f64 * 1e-9,
            others: self.in_time > usize::from(itself),
        })
    }

    /// A request is held that can wait for `spare` s and be in time; below 0, or none: it is late.
    pub(super) fn hold(&mut self, now_ns: u64, id: RequestId, due: &Due, spare: Option<f64>) {
        let waiting = self.waiting.entry(id).or_insert(Waiting { arrived_ns: due.arrived_ns, until_ns: None });
        waiting.arrived_ns = due.arrived_ns;
        match (waiting.until_ns, spare.filter(|&spare| spare >= 0.0)) {
            (None, Some(spare)) => {
                let until_ns = now_ns.saturating_add((spare * 1e9) as u64);
                waiting.until_ns = Some(until_ns);
                self.lapses.push(Reverse((until_ns, id)));
                self.in_time += 1;
            }
            (Some(_), None) => {
                waiting.until_ns = None;
                self.in_time -= 1;
            }
            _ => {}
        }
    }

    /// A request is no longer at the door. False if it was not there.
    pub(super) fn leave(&mut self, id: RequestId) -> bool {
        let Some(waiting) = self.waiting.remove(&id) else { return false };
        self.in_time -= usize::from(waiting.until_ns.is_some());
        true
    }

    /// How many there are, and how many entries tell when they become late.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        (self.waiting.len(), self.lapses.len())
    }

    /// Those whose time has passed are late.
    fn lapse(&mut self, now_ns: u64) {
        while let Some(&Reverse((until_ns, id))) = self.lapses.peek().filter(|lapse| lapse.0.0 < now_ns) {
            self.lapses.pop();
            if let Some(waiting) = self.waiting.get_mut(&id).filter(|waiting| waiting.until_ns == Some(until_ns)) {
                waiting.until_ns = None;
                self.in_time -= 1;
            }
        }
    }
}
