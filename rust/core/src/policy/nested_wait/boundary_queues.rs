//! Boundary queues of Nested WAIT: requests that have passed a segment without finishing and wait, resident, to enter
//! the next one.
//!
//! A lane is a segment, and its members step together, so the tick at which a member reaches the boundary is known when
//! it joins: a calendar for each lane. Entries are not removed when a request leaves early; its stamp changes, which
//! makes them void. Stamps ascend in the order in which requests join, which is the order among those that arrive at a
//! boundary together.

use std::collections::VecDeque;

use crate::model::Slot;
use crate::state::{Phase, View};

/// The queue before one segment. Void entries are skipped; `len` counts the others.
#[derive(Clone, Debug, Default)]
struct Queue {
    entries: VecDeque<(Slot, u64, u64)>,
    len: u32,
    /// How many have come with the current plan.
    came: u32,
}

/// The queues' record of a request.
#[derive(Clone, Copy, Debug, Default)]
struct Seat {
    stamp: u64,
    /// Segment it waits for; 0 while it waits for none.
    queue: u16,
}

#[derive(Clone, Debug)]
pub(super) struct Boundaries {
    /// Last stage of each segment; requests never leave the last segment.
    last_stage: Vec<u32>,
    /// For each lane but the last, ascending: (tick at the boundary, stamp, request).
    calendars: Vec<VecDeque<(i64, u64, Slot)>>,
    /// By segment; the first has none.
    queues: Vec<Queue>,
    seats: Vec<Seat>,
    /// The last stamp given out.
    stamp: u64,
}

impl Boundaries {
    /// Boundaries behind the given stages, ascending.
    pub(super) fn new(last_stage: Vec<u32>) -> Self {
        let segments = last_stage.len();
        Self {
            last_stage,
            calendars: vec![VecDeque::new(); segments - 1],
            queues: vec![Queue::default(); segments],
            seats: Vec::new(),
            stamp: 0,
        }
    }

    pub(super) fn segments(&self) -> usize {
        self.last_stage.len()
    }

    /// The lane of a request whose next stage is `stage`; at a boundary, the lane before it.
    pub(super) fn lane(&self, stage: u32) -> usize {
        // The first stage of a segment is served from the queue before it.
        self.last_stage.partition_point(|&last| last + 1 < stage).min(self.segments() - 1)
    }

    /// Requests that wait for segment `k`.
    pub(super) fn waiting(&self, k: usize) -> u32 {
        self.queues[k].len
    }

    /// Members of lane `k` at the boundary behind it, in the current plan.
    pub(super) fn reached(&self, k: usize) -> u32 {
        self.queues.get(k + 1).map_or(0, |behind| behind.came)
    }

    /// Since when the first request waits for segment `k`, ns.
    pub(super) fn waiting_since_ns(&mut self, k: usize) -> Option<u64> {
        let (queue, seats) = (&mut self.queues[k], &self.seats);
        while queue.entries.front().is_some_and(|&(slot, stamp, _)| seats[slot as usize].stamp != stamp) {
            queue.entries.pop_front();
        }
        queue.entries.front().map(|&(_, _, since_ns)| since_ns)
    }

    /// Gives a request a new stamp and the queue it waits in (0 for none); returns the one it had.
    fn seat(&mut self, slot: Slot, queue: usize) -> Seat {
        if self.seats.len() <= slot as usize {
            self.seats.resize(slot as usize + 1, Seat::default());
        }
        self.stamp += 1;
        std::mem::replace(&mut self.seats[slot as usize], Seat { stamp: self.stamp, queue: queue as u16 })
    }

    /// A request has joined a lane after its prefill.
    pub(super) fn joined(&mut self, view: &View, slot: Slot) {
        let lane = usize::from(view.request(slot).lane);
        let left = i64::from(self.last_stage[lane] + 1) - i64::from(view.stage(slot));
        self.follow(slot, lane, view.lanes()[lane].tick() + left);
    }

    fn follow(&mut self, slot: Slot, lane: usize, due: i64) {
        self.seat(slot, 0);
        let Some(calendar) = self.calendars.get_mut(lane) else { return };
        // Only one that was preempted within its segment overtakes others.
        if calendar.back().is_some_and(|last| last.0 > due) {
            calendar.insert(calendar.partition_point(|other| other.0 <= due), (due, self.stamp, slot));
        } else {
            calendar.push_back((due, self.stamp, slot));
        }
    }

    /// A request has left the KV cache, or the engine.
    pub(super) fn left(&mut self, slot: Slot) {
        let queue = usize::from(self.seat(slot, 0).queue);
        if queue > 0 {
            self.queues[queue].len -= 1;
        }
    }

    /// Moves the members that have reached a boundary into the queue behind it; `reached` lists them, lane by lane.
    pub(super) fn collect(&mut self, view: &View, reached: &mut Vec<Slot>) {
        reached.clear();
        for lane in 0..self.calendars.len() {
            let tick = view.lanes()[lane].tick();
            let before = reached.len();
            while let Some(&(_, stamp, slot)) = self.calendars[lane].front().filter(|entry| entry.0 <= tick) {
                self.calendars[lane].pop_front();
                if self.seats[slot as usize].stamp == stamp && view.request(slot).phase == Phase::Decoding {
                    self.seat(slot, lane + 1);
                    self.queues[lane + 1].entries.push_back((slot, self.stamp, view.now_ns()));
                    self.queues[lane + 1].len += 1;
                    reached.push(slot);
                }
            }
            self.queues[lane + 1].came = (reached.len() - before) as u32;
        }
    }

    /// Moves the first request in the queue before segment `k` into its lane.
    pub(super) fn take(&mut self, view: &View, k: usize) -> Option<Slot> {
        self.waiting_since_ns(k)?;
        let (slot, ..) = self.queues[k].entries.pop_front()?;
        self.queues[k].len -= 1;
        let width = self.last_stage[k] - self.last_stage[k - 1];
        self.follow(slot, k, view.lanes()[k].tick() + i64::from(width));
        Some(slot)
    }
}
