//! When requests end: each is looked at when it joins a lane and when it is due, and never in between.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use wait_core::{Slot, View};

#[derive(Debug)]
pub(crate) struct Ends {
    /// One for each lane: (lane tick, request, stamp) at which members finish. An entry is void once the request's
    /// stamp has moved on, which it does whenever the request leaves a lane.
    calendars: Vec<BinaryHeap<Reverse<(i64, u32, u32)>>>,
    stamps: Vec<u32>,
}

impl Ends {
    pub(crate) fn new(requests: usize, lanes: usize) -> Self {
        Self { calendars: vec![BinaryHeap::new(); lanes], stamps: vec![0; requests] }
    }

    /// How often a request has left.
    pub(crate) fn stamp(&self, id: u64) -> u32 {
        self.stamps[id as usize]
    }

    /// The request leaves its lane, or the cache.
    pub(crate) fn leaves(&mut self, id: u64) {
        self.stamps[id as usize] += 1;
    }

    /// The request is in a lane now, and ends after so many steps of it.
    pub(crate) fn joins(&mut self, view: &View, slot: Slot, left: u32) {
        let (lane, id) = (usize::from(view.request(slot).lane), view.request(slot).id);
        let due = view.lanes()[lane].tick() + i64::from(left);
        let stamp = self.stamp(id);
        self.calendars[lane].push(Reverse((due, id as u32, stamp)));
    }

    /// Adds those that have ended to `finished`.
    pub(crate) fn collect(&mut self, view: &View, finished: &mut Vec<u64>) {
        for (lane, calendar) in self.calendars.iter_mut().enumerate() {
            let tick = view.lanes()[lane].tick();
            while let Some(&Reverse((_, id, stamp))) = calendar.peek().filter(|entry| entry.0.0 <= tick) {
                calendar.pop();
                if self.stamps[id as usize] == stamp {
                    finished.push(u64::from(id));
                }
            }
        }
    }
}
