//! When requests end: each is touched when it joins a lane and when it is due, and never in between.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use wait_core::{Slot, View};

use crate::column::Column;

#[derive(Debug)]
pub(crate) struct Ends {
    /// One for each lane: (lane tick, request, stamp) at which members finish. An entry is void once the request's
    /// stamp has moved on, which it does whenever the request leaves a lane.
    calendars: Vec<BinaryHeap<Reverse<(i64, u32, u32)>>>,
}

impl Ends {
    pub(crate) fn new(lanes: usize) -> Self {
        Self { calendars: vec![BinaryHeap::new(); lanes] }
    }

    /// The request is in a lane now, and ends after this many steps of it.
    pub(crate) fn joins(&mut self, stamps: &Column<u32>, view: &View, slot: Slot, left: u32) {
        let (lane, id) = (usize::from(view.request(slot).lane), view.request(slot).id);
        let due = view.lanes()[lane].tick() + i64::from(left);
        self.calendars[lane].push(Reverse((due, id as u32, stamps.get(id as usize))));
    }

    /// Adds those that have ended to `finished`.
    #[inline]
    pub(crate) fn collect(&mut self, stamps: &Column<u32>, view: &View, finished: &mut Vec<u64>) {
        for (lane, calendar) in self.calendars.iter_mut().enumerate() {
            let tick = view.lanes()[lane].tick();
            while let Some(&Reverse((_, id, stamp))) = calendar.peek().filter(|entry| entry.0.0 <= tick) {
                calendar.pop();
                if stamps.get(id as usize) == stamp {
                    finished.push(u64::from(id));
                }
            }
        }
    }
}
