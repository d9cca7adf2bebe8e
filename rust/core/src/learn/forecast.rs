//! Forecast of the KV tokens that the residents will hold: mean and variance, by horizon.
//!
//! How to think about it: all residents step together, so a request's stage and KV are the lane's tick minus constants,
//! and residents of the same class and row of progress share one survival. It is enough to keep, for each row, how many
//! there are and the sum of their constants. A request changes its row, or passes a horizon before its certain end
//! (`max_tokens`, or a known length), at a tick that is known in advance: a timing wheel moves it then, once.
//! A step costs what moves in it, a forecast (rows in use) × horizons, both whatever the number of residents.

#![allow(clippy::needless_range_loop)] // several columns move together, and the loops vectorise as they stand

use crate::learn::{Curve, ROWS, row_of, row_start, row_width};
use crate::model::Slot;

mod overflow;
mod row;
#[cfg(test)]
mod tests;

pub use self::overflow::KvForecast;
use self::row::Row;

/// Horizons, iterations ahead.
pub(crate) const HORIZONS: [u32; COLUMNS] = [
    4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384,
    24576,
];
pub(crate) const COLUMNS: usize = 24;
/// Places of the timing wheel; what is due later is looked at again before.
const WHEEL: usize = 4096;
const NIL: u32 = u32::MAX;

/// A value for each horizon.
type Column = [f32; COLUMNS];

/// Class of the requests whose length is known.
pub(crate) const CERTAIN: usize = 0;
/// Class of the requests without a label.
pub(crate) const POOLED: usize = 1;

#[derive(Clone, Debug)]
struct Member {
    /// Tick minus KV tokens.
    base: i64,
    /// Tick minus stage.
    birth: i64,
    /// Tick at which it ends at the latest.
    end: i64,
    row: u32,
    /// Horizons before which it may still run.
    columns: u32,
    next: u32,
    previous: u32,
    place: u32,
}

/// The residents that decode, by class and progress.
#[derive(Clone, Debug)]
pub(crate) struct Forecast {
    tick: i64,
    /// By class, then by row.
    rows: Vec<Row>,
    /// Members of each class.
    population: Vec<u32>,
    curves: Vec<Curve>,
    /// How often the curve of each class was set.
    versions: Vec<u64>,
    members: Vec<Member>,
    vacant: Vec<u32>,
    /// Member of each slot.
    index: Vec<u32>,
    wheel: Vec<u32>,
    /// Σ of the KV that the members hold just before their certain end.
    reserved: i64,
    /// For each row and horizon, the row in which its middle will be, and how far into it.
    targets: Vec<[(u16, f32); COLUMNS]>,
}

/// What is expected of the residents at each horizon, in KV tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outlook {
    /// KV of those whose length is known.
    pub(crate) certain: Column,
    /// Mean KV of the others.
    pub(crate) mean: Column,
    /// Variance of it, given the survival curves.
    pub(crate) variance: Column,
}

/// A request that is not in a lane yet, or not yet admitted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) class: usize,
    /// KV tokens when it joins.
    pub(crate) kv: u32,
    /// Stage when it joins.
    pub(crate) stage: u32,
    /// Stage at which it ends at the latest.
    pub(crate) last: u32,
}

impl Candidate {
    /// Iterations until its certain end.
    fn left(&self) -> u32 {
        self.last.saturating_sub(self.stage).max(1)
    }

    /// KV tokens it holds if it runs up to its certain end, with the `overhead` tokens it is charged beside.
    pub(crate) fn reserved(&self, overhead: f32) -> f64 {
        f64::from(self.kv as f32 + overhead) + f64::from(self.left())
    }
}

/// Horizons at which a request with so many iterations before its certain end counts: rounded up to the next horizon,
/// for it may hold its most just before it ends.
fn columns(left: i64) -> u32 {
    let before = HORIZONS.partition_point(|&h| i64::from(h) < left);
    (before + 1).min(COLUMNS) as u32
}

/// Standard error of the forecast's mean, relative: what the curves get wrong for all residents alike.
const MODEL_ERROR: f32 = 0.015;

impl Outlook {
    /// By horizon: iterations ahead, mean and standard deviation of all KV tokens.
    pub(crate) fn moments(&self) -> impl Iterator<Item = (u32, f64, f64)> + '_ {
        (0..COLUMNS).map(|j| {
            let error = MODEL_ERROR * self.mean[j];
            let deviation = libm::sqrtf(self.variance[j] + error * error);
            (HORIZONS[j], f64::from(self.certain[j] + self.mean[j]), f64::from(deviation))
        })
    }
}

impl Forecast {
    pub(crate) fn new() -> Self {
        Self::at(0)
    }

    /// One that begins at a tick of the lane.
    pub(crate) fn at(tick: i64) -> Self {
        let target = |row: usize, h: u32| {
            let stage = middle(row) + f64::from(h);
            let target = row_of(stage as u32);
            let into = (stage - f64::from(row_start(target))) / f64::from(row_width(target));
            (target as u16, into.min(1.0) as f32)
        };
        let mut forecast = Self {
            tick,
            rows: Vec::new(),
            population: Vec::new(),
            curves: Vec::new(),
            versions: Vec::new(),
            members: Vec::new(),
            vacant: Vec::new(),
            index: Vec::new(),
            wheel: vec![NIL; WHEEL],
            reserved: 0,
            targets: (0..ROWS).map(|row| HORIZONS.map(|h| target(row, h))).collect(),
        };
        forecast.add_class();
        forecast.add_class();
        forecast
    }

    /// Adds a class; returns its number.
    pub(crate) fn add_class(&mut self) -> usize {
        self.rows.resize(self.rows.len() + ROWS, Row::new());
        self.curves.push(Curve::default());
        self.versions.push(0);
        self.population.push(0);
        self.curves.len() - 1
    }

    /// Tick of the lane up to which the forecast stands.
    pub(crate) fn tick(&self) -> i64 {
        self.tick
    }

    /// Sets the survival of a class. The chances of a row follow when it is next looked at.
    pub(crate) fn set_curve(&mut self, class: usize, curve: Curve) {
        debug_assert_ne!(class, CERTAIN);
        self.curves[class] = curve;
        self.versions[class] += 1;
    }

    /// How often the curve of a class was set.
    #[cfg(test)]
    pub(crate) fn version(&self, class: usize) -> u64 {
        self.versions[class]
    }

    /// Members of a class.
    pub(crate) fn population(&self, class: usize) -> u32 {
        self.population[class]
    }

    /// The survival of a class.
    pub(crate) fn curve(&self, class: usize) -> &Curve {
        &self.curves[class]
    }

    /// Hands over the stages passed since the last call, by row.
    pub(crate) fn drain_exposure(&mut self, class: usize, mut into: impl FnMut(usize, f64)) {
        for (row, seen) in self.rows[class * ROWS..(class + 1) * ROWS].iter_mut().enumerate() {
            seen.change(0, 0, COLUMNS as u32, self.tick);
            if seen.exposure > 0 {
                into(row, std::mem::take(&mut seen.exposure) as f64);
            }
        }
    }

    /// One iteration of the lane.
    pub(crate) fn step(&mut self) {
        self.tick += 1;
        let place = self.tick as usize % WHEEL;
        let mut at = std::mem::replace(&mut self.wheel[place], NIL);
        while at != NIL {
            let next = self.members[at as usize].next;
            self.take_out(at);
            self.put_in(at);
            at = next;
        }
    }

    /// A request joins the lane.
    pub(crate) fn join(&mut self, slot: Slot, candidate: &Candidate) {
        self.leave(slot);
        let member = Member {
            base: self.tick - i64::from(candidate.kv),
            birth: self.tick - i64::from(candidate.stage),
            end: self.tick + i64::from(candidate.left()),
            row: (candidate.class * ROWS) as u32,
            columns: 0,
            next: NIL,
            previous: NIL,
            place: 0,
        };
        self.reserved += member.end - member.base;
        let at = if let Some(at) = self.vacant.pop() {
            self.members[at as usize] = member;
            at
        } else {
            self.members.push(member);
            (self.members.len() - 1) as u32
        };
        if self.index.len() <= slot as usize {
            self.index.resize(slot as usize + 1, NIL);
        }
        self.index[slot as usize] = at;
        self.population[candidate.class] += 1;
        self.put_in(at);
    }

    /// A request leaves the lane; returns its class and stage, if it was there.
    pub(crate) fn leave(&mut self, slot: Slot) -> Option<(usize, u32)> {
        let place = self.index.get_mut(slot as usize).filter(|at| **at != NIL)?;
        let at = std::mem::replace(place, NIL);
        self.unlink(at);
        self.take_out(at);
        self.vacant.push(at);
        let member = &self.members[at as usize];
        self.reserved -= member.end - member.base;
        let class = member.row as usize / ROWS;
        self.population[class] -= 1;
        Some((class, (self.tick - member.birth) as u32))
    }

    /// Whether a request is in the lane.
    pub(crate) fn holds(&self, slot: Slot) -> bool {
        self.index.get(slot as usize).is_some_and(|&at| at != NIL)
    }

    fn unlink(&mut self, at: u32) {
        let Member { next, previous, place, .. } = self.members[at as usize];
        if next != NIL {
            self.members[next as usize].previous = previous;
        }
        match previous {
            NIL => self.wheel[place as usize] = next,
            previous => self.members[previous as usize].next = next,
        }
    }

    fn take_out(&mut self, at: u32) {
        let Member { base, row, columns, .. } = self.members[at as usize];
        self.rows[row as usize].change(-1, base, columns, self.tick);
    }

    /// Counts a member where it stands now, and notes when that changes next.
    fn put_in(&mut self, at: u32) {
        let tick = self.tick;
        let member = &mut self.members[at as usize];
        let row = row_of((tick - member.birth).max(0) as u32);
        member.row = (member.row as usize / ROWS * ROWS + row) as u32;
        member.columns = columns(member.end - tick);
        let mut due = if row + 1 < ROWS { member.birth + i64::from(row_start(row + 1)) } else { i64::MAX };
        if let Some(closing) = (member.columns as usize).checked_sub(2) {
            due = due.min(member.end - i64::from(HORIZONS[closing]));
        }
        let place = (due.clamp(tick + 1, tick + WHEEL as i64 - 1) as usize % WHEEL) as u32;
        member.place = place;
        member.previous = NIL;
        member.next = std::mem::replace(&mut self.wheel[place as usize], at);
        let Member { base, row, columns, next, .. } = *member;
        if next != NIL {
            self.members[next as usize].previous = at;
        }
        self.rows[row as usize].change(1, base, columns, tick);
    }

    /// Brings the chances of a row up to date.
    fn refresh(&mut self, index: usize) {
        let row = &mut self.rows[index];
        let version = self.versions[index / ROWS];
        if row.version == version || index < (CERTAIN + 1) * ROWS {
            return;
        }
        row.version = version;
        let curve = &self.curves[index / ROWS];
        let width = f64::from(row_width(index % ROWS));
        let now = curve.alive(index % ROWS, 0.5 - 0.5 / width);
        for (alive, &(target, into)) in row.alive.iter_mut().zip(&self.targets[index % ROWS]) {
            *alive = (curve.alive(usize::from(target), f64::from(into)) / now).min(1.0) as f32;
        }
    }

    /// KV if every member runs up to its certain end, `overhead` tokens beside for each.
    pub(crate) fn reserved(&self, overhead: f32) -> f64 {
        self.reserved as f64 + f64::from(overhead) * (self.members.len() - self.vacant.len()) as f64
    }

    /// Mean and variance over all members. Each is charged `overhead` tokens beside its KV: blocks are not full. Members
    /// of a row count as alike, with their mean KV, in the variance.
    pub(crate) fn outlook(&mut self, overhead: f32) -> Outlook {
        let mut sum = Outlook { certain: [0.0; COLUMNS], mean: [0.0; COLUMNS], variance: [0.0; COLUMNS] };
        for class in 0..self.curves.len() {
            if self.population[class] == 0 {
                continue;
            }
            for index in class * ROWS..(class + 1) * ROWS {
                if self.rows[index].members > 0 {
                    self.refresh(index);
                    self.rows[index].add_to(&mut sum, class == CERTAIN, self.tick, overhead);
                }
            }
        }
        sum
    }

    /// Adds a request to an outlook.
    pub(crate) fn add(&mut self, sum: &mut Outlook, candidate: &Candidate, overhead: f32) {
        let index = candidate.class * ROWS + row_of(candidate.stage);
        self.refresh(index);
        let kv = candidate.kv as f32 + overhead;
        let columns = columns(i64::from(candidate.left())) as usize;
        let alive = &self.rows[index].alive;
        for j in 0..columns {
            let weight = kv + HORIZONS[j] as f32;
            if candidate.class == CERTAIN {
                sum.certain[j] += weight;
            } else {
                let expected = alive[j] * weight;
                sum.mean[j] += expected;
                sum.variance[j] += expected * (1.0 - alive[j]) * weight;
            }
        }
    }
}

/// Middle of a row, stages.
fn middle(row: usize) -> f64 {
    f64::from(row_start(row)) + 0.5 * f64::from(row_width(row) - 1)
}
