//! Members as they join, step and leave: where each is counted, and when that changes next.

use super::bounds::octave_of;
use super::{Candidate, Forecast, HORIZONS, NIL, ROWS, STRIDE, Squared, Tally, columns, row_of, row_start, row_width};
use crate::model::Slot;

/// The last cohorts, among which a request looks for its own.
pub(super) const RECENT: usize = 8;
/// The first rows, of one stage each. A member would leave them at every step: it is kept by birth instead, from which
/// the row follows, until it has passed them all.
pub(super) const YOUNG: usize = 16;
const _: () = assert!(row_width(YOUNG - 1) == 1 && YOUNG.is_power_of_two());
/// First stage of each row, and a sentinel after the last.
const STARTS: [i64; STRIDE] = {
    let mut starts = [i64::MAX / 2; STRIDE];
    let mut row = 0;
    while row < ROWS {
        starts[row] = row_start(row) as i64;
        row += 1;
    }
    starts
};

#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    cohort: u32,
    /// Groups of the footprint that no longer grow.
    full: u32,
    /// Tick minus KV tokens.
    base: i64,
}

impl Member {
    const NONE: Self = Self { cohort: NIL, full: 0, base: 0 };
}

/// Requests of one class that joined at one tick and stage and end at one tick at the latest: they move together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cohort {
    /// Where it is counted: by class, then by progress.
    place: u32,
    /// Horizons before which it may still run.
    columns: u32,
    members: Squared,
    /// Tick minus stage.
    birth: i64,
    /// Tick at which it ends at the latest.
    end: i64,
    /// Ticks at which it changes its place, and at which it passes a horizon before its end.
    leaving: i64,
    closing: i64,
}

impl Forecast {
    /// Hands over the stages passed since the last call, by row.
    pub(crate) fn drain_exposure(&mut self, class: usize, mut into: impl FnMut(usize, f64)) {
        let first = class * STRIDE;
        (first..first + YOUNG).for_each(|place| self.expose(place));
        for (row, stages) in self.exposure[class].iter_mut().enumerate() {
            if *stages > 0 {
                into(row, std::mem::take(stages) as f64);
            }
        }
        for row in YOUNG..ROWS {
            let stages = self.places[first + row].drain(self.tick);
            if stages > 0 {
                into(row, stages as f64);
            }
        }
    }

    /// Counts the stages that the young members of a place have passed, row by row: all came by the same rows.
    fn expose(&mut self, place: usize) {
        let members = self.places[place].sums.all.count;
        if members > 0 {
            let passed = self.places[place].drain(self.tick) / members;
            let next = young_row(place, self.tick - 1) % STRIDE + 1;
            let rows = &mut self.exposure[place / STRIDE][next - passed as usize..next];
            for stages in rows {
                *stages += members;
            }
        }
    }

    /// One iteration of the lane.
    pub(crate) fn step(&mut self) {
        self.tick += 1;
        self.stale = true;
        self.recent.clear();
        // What is moved becomes due elsewhere on the wheel.
        while let Some(slot) = self.fills.pop(self.tick) {
            self.fill(slot);
        }
        while let Some(cohort) = self.changes.pop(self.tick) {
            self.move_on(cohort);
        }
    }

    /// A request joins the lane.
    pub(crate) fn join(&mut self, slot: Slot, candidate: &Candidate) {
        self.leave(slot);
        self.stale = true;
        let base = self.tick - i64::from(candidate.kv);
        let end = self.tick + i64::from(candidate.left());
        let cohort = self.cohort(candidate.class, self.tick - i64::from(candidate.stage), end);
        if self.members.len() <= slot as usize {
            self.members.resize(slot as usize + 1, Member::NONE);
        }
        self.members[slot as usize] = Member { cohort, full: 0, base };
        let member = Squared::one(base);
        let joined = &mut self.cohorts[cohort as usize];
        joined.members.add(member);
        let (place, columns) = (joined.place as usize, joined.columns as usize);
        self.count_in(place, member.tally, columns);
        self.octaves[octave_of(place)].members.add(member);
        self.population[candidate.class] += 1;
        self.reserve(slot, 1);
        let groups = self.footprint.plateaus().len();
        if groups > 0 {
            for group in 0..groups {
                self.cohort_growing[cohort as usize * groups + group].add(member.tally);
                self.growing[place * groups + group].add(member.tally, columns);
            }
            self.fills.reserve(self.members.len());
            self.fill(slot);
        }
    }

    /// A request leaves the lane; returns its class and stage, if it was there.
    pub(crate) fn leave(&mut self, slot: Slot) -> Option<(usize, u32)> {
        let Member { cohort, full, base } = *self.members.get(slot as usize).filter(|member| member.cohort != NIL)?;
        self.stale = true;
        self.reserve(slot, -1);
        for group in full as usize..self.footprint.plateaus().len() {
            self.stop_growing(cohort, group, base);
        }
        self.fills.cancel(slot);
        self.members[slot as usize] = Member::NONE;
        let member = Squared::one(base);
        let left = &mut self.cohorts[cohort as usize];
        left.members.take(member);
        let (place, columns, birth) = (left.place as usize, left.columns as usize, left.birth);
        if left.members.tally.count == 0 {
            self.changes.cancel(cohort);
            self.vacant.push(cohort);
        }
        self.count_out(place, member.tally, columns);
        self.octaves[octave_of(place)].members.take(member);
        let class = place / STRIDE;
        self.population[class] -= 1;
        Some((class, (self.tick - birth) as u32))
    }

    /// Whether a request is in the lane.
    pub(crate) fn holds(&self, slot: Slot) -> bool {
        self.members.get(slot as usize).is_some_and(|member| member.cohort != NIL)
    }

    /// The cohort of requests that join now: that of others that did, or a new one.
    fn cohort(&mut self, class: usize, birth: i64, end: i64) -> u32 {
        let same = |&&at: &&u32| {
            let other = &self.cohorts[at as usize];
            other.members.tally.count > 0
                && (other.place as usize / STRIDE, other.birth, other.end) == (class, birth, end)
        };
        if let Some(&at) = self.recent.iter().find(same) {
            return at;
        }
        let row = row_of((self.tick - birth) as u32);
        let (leaving, place) =
            if row < YOUNG { (birth + YOUNG as i64, birth as usize % YOUNG) } else { (birth + STARTS[row + 1], row) };
        let place = (class * STRIDE + place) as u32;
        let mut new = Cohort { place, columns: 0, members: Squared::NONE, birth, end, leaving, closing: 0 };
        new.close(self.tick);
        let groups = self.footprint.plateaus().len();
        let at = if let Some(at) = self.vacant.pop() {
            self.cohorts[at as usize] = new;
            at
        } else {
            self.cohorts.push(new);
            self.cohort_growing.resize(self.cohorts.len() * groups, Tally::NONE);
            self.changes.reserve(self.cohorts.len());
            (self.cohorts.len() - 1) as u32
        };
        self.changes.schedule(at, self.tick, new.due());
        if self.recent.len() == RECENT {
            self.recent.clear();
        }
        self.recent.push(at);
        at
    }

    /// Counts a member no longer among those of its cohort and place whose part of a group still grows.
    fn stop_growing(&mut self, cohort: u32, group: usize, base: i64) {
        let groups = self.footprint.plateaus().len();
        let member = Tally { count: 1, base };
        self.cohort_growing[cohort as usize * groups + group].take(member);
        let Cohort { place, columns, .. } = self.cohorts[cohort as usize];
        self.growing[place as usize * groups + group].take(member, columns as usize);
    }

    #[inline]
    fn count_in(&mut self, place: usize, members: Tally, columns: usize) {
        if place % STRIDE < YOUNG {
            self.expose(place);
        }
        self.places[place].add(members, columns, self.tick);
    }

    #[inline]
    fn count_out(&mut self, place: usize, members: Tally, columns: usize) {
        if place % STRIDE < YOUNG {
            self.expose(place);
        }
        self.places[place].take(members, columns, self.tick);
    }

    /// Counts the most that a member takes, or no longer counts it.
    fn reserve(&mut self, slot: Slot, sign: i64) {
        let Member { cohort, base, .. } = self.members[slot as usize];
        let most = self.cohorts[cohort as usize].end - base;
        self.reserved += sign * most;
        for group in self.footprint.plateaus() {
            self.reserved_plateaus += sign as f64 * group.most(most as f64);
        }
    }

    /// Moves a cohort to its current place, and notes when that changes next.
    #[inline]
    fn move_on(&mut self, at: u32) {
        let tick = self.tick;
        let cohort = &mut self.cohorts[at as usize];
        let (from, before) = (cohort.place as usize, cohort.columns as usize);
        if tick >= cohort.leaving {
            let first = from / STRIDE * STRIDE;
            let to = (from + 1).max(first + YOUNG);
            cohort.place = to as u32;
            cohort.leaving = cohort.birth + STARTS[(to + 1) % STRIDE];
        }
        if tick >= cohort.closing {
            cohort.close(tick);
        }
        let Cohort { place, columns, members, .. } = *cohort;
        self.changes.schedule(at, tick, cohort.due());
        let (to, columns) = (place as usize, columns as usize);
        if (to, columns) == (from, before) {
            return;
        }
        self.count_out(from, members.tally, before);
        self.count_in(to, members.tally, columns);
        if octave_of(from) != octave_of(to) {
            self.octaves[octave_of(from)].members.take(members);
            self.octaves[octave_of(to)].members.add(members);
        }
        let groups = self.footprint.plateaus().len();
        for group in 0..groups {
            let growing = self.cohort_growing[at as usize * groups + group];
            if growing.count > 0 {
                self.growing[from * groups + group].take(growing, before);
                self.growing[to * groups + group].add(growing, columns);
            }
        }
    }

    /// Takes a member out of the groups that it has filled, and notes when it fills the next.
    fn fill(&mut self, slot: Slot) {
        let Member { cohort, full, base } = self.members[slot as usize];
        let mut group = full as usize;
        while let Some(next) = self.footprint.plateaus().get(group) {
            let due = base + i64::from(next.window);
            if due > self.tick {
                self.fills.schedule(slot, self.tick, due);
                break;
            }
            self.stop_growing(cohort, group, base);
            group += 1;
        }
        self.members[slot as usize].full = group as u32;
    }
}

impl Cohort {
    /// Counts the horizons that it may reach by now.
    fn close(&mut self, tick: i64) {
        let columns = columns(self.end - tick);
        self.columns = columns as u32;
        self.closing = columns.checked_sub(2).map_or(i64::MAX, |before| self.end - i64::from(HORIZONS[before]));
    }

    /// The tick at which something changes.
    fn due(&self) -> i64 {
        self.leaving.min(self.closing)
    }
}

/// The row at which the young members counted at a place are at a tick.
#[inline]
pub(super) fn young_row(place: usize, tick: i64) -> usize {
    place / YOUNG * YOUNG + (tick as usize).wrapping_sub(place) % YOUNG
}
