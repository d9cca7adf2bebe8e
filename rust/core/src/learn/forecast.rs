//! Forecast of what the residents will hold of the KV cache: mean and variance, by horizon.
//!
//! All residents step together, so a request's stage and KV are the lane's tick minus constants, and residents of the
//! same class and row of progress share one survival. It is enough to keep, for each row, how many there are and the
//! sum of their constants. Requests that joined together and have the same latest end, a cohort, change their row, or
//! pass a horizon before their certain end (`max_tokens`, or a known length), at a tick that is known in advance, and
//! so does a request whose part of a KV group stops growing: a timing wheel moves each of them once, at that tick. A
//! step costs what moves in it, a forecast (rows in use) × horizons, a bound for it a few sums by octave of progress
//! (`bounds.rs`); none depends on the number of residents.

#![allow(clippy::needless_range_loop)] // several columns move together, and the loops vectorise as they stand

use crate::learn::{Curve, ROWS, row_of, row_start, row_width};
use crate::memory::Footprint;

mod bounds;
mod chances;
mod cohorts;
mod outlook;
mod overflow;
mod sums;
#[cfg(test)]
mod tests;
mod wheel;

use self::bounds::{OCTAVES, Octave};
use self::chances::{Chances, Targets};
use self::cohorts::{Cohort, Member, RECENT, YOUNG};
use self::outlook::Occupied;
pub(crate) use self::outlook::{Moments, Outlook, PART, PARTS, Span};
pub use self::overflow::KvForecast;
pub(crate) use self::overflow::forecast;
use self::sums::{Place, Squared, Sums, Tally};
use self::wheel::Wheel;

/// Horizons, iterations ahead.
pub(crate) const HORIZONS: [u32; COLUMNS] = [
    4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384,
    24576,
];
pub(crate) const COLUMNS: usize = 24;
const NIL: u32 = u32::MAX;
/// Rows of a class, as they are stored.
const STRIDE: usize = 128;
/// Class of the requests whose length is known.
pub(crate) const CERTAIN: usize = 0;
/// Class of the requests without a label.
pub(crate) const POOLED: usize = 1;

/// Standard error of the forecast's mean, relative: the error of the curves, which all residents share.
const MODEL_ERROR: f64 = 0.015;

/// The decoding residents, by class and progress.
#[derive(Clone, Debug)]
pub(crate) struct Forecast {
    tick: i64,
    footprint: Footprint,
    /// Growth of a request without plateaus by each horizon.
    rise: [f64; COLUMNS],
    /// Members by place: by class, then by row, the young by birth.
    places: Vec<Place>,
    /// For each place and group of the footprint that stops growing, the members of which it still grows.
    growing: Vec<Sums>,
    /// By class, then by octave of progress.
    octaves: Vec<Octave>,
    /// By row.
    chances: Vec<Chances>,
    /// By row, the stages that the young have passed there.
    exposure: Vec<[i64; YOUNG]>,
    /// The places that have members, those of known length first.
    occupied: Vec<Occupied>,
    certain: usize,
    /// Whether `occupied` must be rebuilt.
    stale: bool,
    /// Members of each class.
    population: Vec<u32>,
    curves: Vec<Curve>,
    /// How often the curve of each class was set.
    #[cfg(test)]
    versions: Vec<u64>,
    /// By slot.
    members: Vec<Member>,
    cohorts: Vec<Cohort>,
    /// By cohort, then by group: those of it that still grow.
    cohort_growing: Vec<Tally>,
    vacant: Vec<u32>,
    recent: Vec<u32>,
    /// When cohorts change, and when members fill a group.
    changes: Wheel,
    fills: Wheel,
    /// Σ of the KV that the members hold just before their certain end, and the most that their plateaus take.
    reserved: i64,
    reserved_plateaus: f64,
    targets: Vec<Targets>,
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

    fn row(&self) -> usize {
        self.class * STRIDE + row_of(self.stage)
    }

    /// Most that it takes up to its certain end.
    pub(crate) fn reserved(&self, footprint: &Footprint) -> f64 {
        footprint.most(f64::from(self.kv) + f64::from(self.left()))
    }
}

/// Horizons at which a request with this many iterations before its certain end counts: rounded up to the next horizon,
/// for it may hold its most just before it ends.
fn columns(left: i64) -> usize {
    let before = HORIZONS.partition_point(|&h| i64::from(h) < left);
    (before + 1).min(COLUMNS)
}

impl Forecast {
    pub(crate) fn new(footprint: Footprint) -> Self {
        Self::at(0, footprint)
    }

    /// A request that joins at a tick of the lane.
    pub(crate) fn at(tick: i64, footprint: Footprint) -> Self {
        let mut forecast = Self {
            tick,
            rise: HORIZONS.map(|h| footprint.slope() * f64::from(h)),
            footprint,
            places: Vec::new(),
            growing: Vec::new(),
            octaves: Vec::new(),
            chances: Vec::new(),
            exposure: Vec::new(),
            occupied: Vec::new(),
            certain: 0,
            stale: true,
            population: Vec::new(),
            curves: Vec::new(),
            #[cfg(test)]
            versions: Vec::new(),
            members: Vec::new(),
            cohorts: Vec::new(),
            cohort_growing: Vec::new(),
            vacant: Vec::new(),
            recent: Vec::with_capacity(RECENT),
            changes: Wheel::new(),
            fills: Wheel::new(),
            reserved: 0,
            reserved_plateaus: 0.0,
            targets: chances::targets(),
        };
        forecast.add_class();
        forecast.add_class();
        forecast
    }

    /// Adds a class; returns its number.
    pub(crate) fn add_class(&mut self) -> usize {
        let rows = self.places.len() + STRIDE;
        self.places.resize(rows, Place::EMPTY);
        self.exposure.push([0; YOUNG]);
        self.growing.resize(rows * self.footprint.plateaus().len(), Sums::NONE);
        self.octaves.resize(rows / STRIDE * OCTAVES, Octave::EMPTY);
        self.chances.resize(rows, Chances::CERTAIN);
        self.curves.push(Curve::default());
        #[cfg(test)]
        self.versions.push(0);
        self.population.push(0);
        self.stale = true;
        self.curves.len() - 1
    }

    /// Tick of the lane at which the forecast is.
    pub(crate) fn tick(&self) -> i64 {
        self.tick
    }

    /// Sets the survival of a class. The chances of a row are updated when it is next read.
    pub(crate) fn set_curve(&mut self, class: usize, curve: Curve) {
        debug_assert_ne!(class, CERTAIN);
        self.curves[class] = curve;
        #[cfg(test)]
        {
            self.versions[class] += 1;
        }
        self.chances[class * STRIDE..][..STRIDE].iter_mut().for_each(|chances| chances.fresh = false);
        self.octaves[class * OCTAVES..][..OCTAVES].iter_mut().for_each(|octave| octave.fresh = false);
        self.stale = true;
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

    /// Brings the chances of a row up to date.
    #[inline]
    fn refresh(&mut self, index: usize) {
        if !self.chances[index].fresh {
            let (class, row) = (index / STRIDE, index % STRIDE);
            self.chances[index].set(&self.curves[class], row, &self.targets[row]);
        }
    }

    /// What is held if every member runs to its certain end.
    pub(crate) fn reserved(&self) -> f64 {
        let members: u32 = self.population.iter().sum();
        self.footprint.slope() * self.reserved as f64
            + self.reserved_plateaus
            + self.footprint.fixed() * f64::from(members)
    }
}

/// Middle of a row, stages.
fn middle(row: usize) -> f64 {
    f64::from(row_start(row)) + 0.5 * f64::from(row_width(row) - 1)
}
