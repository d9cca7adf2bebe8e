//! What is expected at each horizon: sums over the rows that have members.
//!
//! Horizons are evaluated part by part, the nearest first: beyond some part little is left, which a bound shows
//! (`bounds.rs`).

use super::bounds::{Bounded, OCTAVES};
use super::cohorts::{YOUNG, young_row};
use super::sums::Sums;
use super::{CERTAIN, COLUMNS, Candidate, Forecast, HORIZONS, MODEL_ERROR, POOLED, STRIDE, columns};
use crate::memory::Footprint;

/// Horizons of a part, and the number of parts.
pub(crate) const PART: usize = 8;
pub(crate) const PARTS: usize = COLUMNS / PART;
const _: () = assert!(PARTS * PART == COLUMNS);
/// The horizons as floats, as the sums use them.
const AHEAD: [f64; COLUMNS] = {
    let mut ahead = [0.0; COLUMNS];
    let mut column = 0;
    while column < COLUMNS {
        ahead[column] = HORIZONS[column] as f64;
        column += 1;
    }
    ahead
};

/// Expected KV at N consecutive horizons, in tokens of the first KV group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span<const N: usize> {
    first: usize,
    /// Held by requests of known length.
    pub(super) certain: [f64; N],
    /// Mean of what the others hold.
    pub(super) mean: [f64; N],
    /// Variance of it, given the survival curves.
    pub(super) variance: [f64; N],
}

/// All that is held at a horizon, in tokens of the first KV group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments {
    /// Iterations ahead.
    pub(crate) horizon: u32,
    pub(crate) mean: f64,
    /// Given the survival curves: which requests leave, and which stay.
    pub(crate) variance: f64,
    /// Standard deviation, the error of the curves included.
    pub(crate) deviation: f64,
}

/// The KV expected of the residents and of the requests admitted beside them; each part is summed when first read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outlook {
    parts: [Option<(Span<PART>, usize)>; PARTS],
    pub(super) bounded: [Option<Bounded>; PARTS],
}

/// A place with members.
#[derive(Clone, Copy, Debug)]
pub(super) struct Occupied {
    place: u32,
    row: u32,
    /// Columns at which members are certain to have ended.
    ending: u32,
    /// Whether some of its groups still grow.
    grows: bool,
    count: f64,
    /// KV of a member now, on average: of the groups that no longer grow, for good.
    each: f64,
}

impl<const N: usize> Span<N> {
    /// Column of its first horizon.
    pub(crate) fn first(&self) -> usize {
        self.first
    }

    /// All that is held, by horizon.
    pub(crate) fn moments(&self) -> impl Iterator<Item = Moments> + '_ {
        (0..N).map(|j| Moments {
            horizon: HORIZONS[self.first + j],
            mean: self.certain[j] + self.mean[j],
            variance: self.variance[j],
            deviation: deviation(self.mean[j], self.variance[j]),
        })
    }
}

impl Outlook {
    /// Whether a part has been summed.
    pub(crate) fn has_seen(&self, part: usize) -> bool {
        self.parts[part].is_some()
    }
}

/// Standard deviation of what is held, the error of the curves included.
pub(super) fn deviation(mean: f64, variance: f64) -> f64 {
    let error = MODEL_ERROR * mean;
    libm::sqrt(variance + error * error)
}

impl Forecast {
    /// All horizons, of the residents and those beside them.
    pub(crate) fn outlook(&mut self, beside: &[Candidate]) -> [Span<PART>; PARTS] {
        let mut outlook = Outlook::default();
        std::array::from_fn(|part| self.look(&mut outlook, part, beside))
    }

    /// One part of an outlook, brought up to date.
    pub(crate) fn look(&mut self, outlook: &mut Outlook, part: usize, beside: &[Candidate]) -> Span<PART> {
        self.gather();
        let seen = &mut outlook.parts[part];
        let (span, counted) = seen.get_or_insert_with(|| (self.sum(part * PART), 0));
        for candidate in &beside[*counted..] {
            self.add(span, candidate);
        }
        *counted = beside.len();
        *span
    }

    /// A single horizon.
    pub(crate) fn glance(&mut self, column: usize, beside: &[Candidate]) -> Span<1> {
        self.gather();
        let mut span = self.sum(column);
        for candidate in beside {
            self.add(&mut span, candidate);
        }
        span
    }

    /// Adds a request to a span.
    pub(crate) fn add<const N: usize>(&mut self, span: &mut Span<N>, candidate: &Candidate) {
        let row = self.refreshed(candidate);
        let before = columns(i64::from(candidate.left())).saturating_sub(span.first).min(N);
        let chances = &self.chances[row];
        let kv = f64::from(candidate.kv);
        let fixed = self.footprint.slope() * kv + self.footprint.fixed();
        let (rise, ahead) = (columns_from::<N>(&self.rise, span.first), columns_from::<N>(&AHEAD, span.first));
        let alive = columns_from::<N>(&chances.alive, span.first);
        let spread = columns_from::<N>(&chances.spread, span.first);
        for j in 0..before {
            let mut held = fixed + rise[j];
            for group in self.footprint.plateaus() {
                held += group.at(kv + ahead[j]);
            }
            if candidate.class == CERTAIN {
                span.certain[j] += held;
            } else {
                span.mean[j] += alive[j] * held;
                span.variance[j] += spread[j] * held * held;
            }
        }
    }

    /// The row of a request that is not in a lane, with its chances brought up to date.
    fn refreshed(&mut self, candidate: &Candidate) -> usize {
        let row = candidate.row();
        self.refresh(row);
        row
    }

    /// Lists the places that have members anew, if they may have changed.
    fn gather(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        let mut occupied = std::mem::take(&mut self.occupied);
        occupied.clear();
        for octave in 0..self.octaves.len() {
            if octave == POOLED * OCTAVES {
                self.certain = occupied.len();
            }
            if self.octaves[octave].is_empty() {
                continue;
            }
            let places = octave * STRIDE / OCTAVES..(octave + 1) * STRIDE / OCTAVES;
            let young = places.start % STRIDE < YOUNG;
            for place in places {
                if !self.places[place].is_empty() {
                    let row = if young { young_row(place, self.tick) } else { place };
                    self.refresh(row);
                    occupied.push(self.stand(place, row));
                }
            }
        }
        self.occupied = occupied;
    }

    /// What the members of a place hold now.
    #[inline(always)]
    fn stand(&self, place: usize, row: usize) -> Occupied {
        let sums = &self.places[place].sums;
        let (place, row, ending) = (place as u32, row as u32, sums.ending);
        let (count, kv) = sums.all.at(self.tick);
        let mut each = self.footprint.slope() * kv / count + self.footprint.fixed();
        let mut grows = false;
        if self.growing.is_empty() {
            return Occupied { place, row, ending, grows, count, each };
        }
        for (group, growing) in self.footprint.plateaus().iter().zip(self.growing_of(place)) {
            if growing.all.count == 0 {
                each += group.level;
                continue;
            }
            let share = growing.all.count as f64 / count;
            each += group.level * (1.0 - share);
            grows = true;
        }
        Occupied { place, row, ending, grows, count, each }
    }

    /// Sums N columns from `first` on over all members. In the variance, and in what the groups that still grow will
    /// hold, the members of a row all count with their mean (for a window an upper bound: it is concave).
    fn sum<const N: usize>(&self, first: usize) -> Span<N> {
        let (certain, others) = self.occupied.split_at(self.certain);
        let certain = self.pass::<N>(certain, first).0;
        let (mean, variance) = self.pass::<N>(others, first);
        Span { first, certain, mean, variance }
    }

    fn pass<const N: usize>(&self, rows: &[Occupied], first: usize) -> ([f64; N], [f64; N]) {
        let rise = columns_from::<N>(&self.rise, first);
        let through = u32::MAX >> (32 - first - N);
        let (mut mean, mut variance) = ([0.0; N], [0.0; N]);
        for row in rows {
            let chances = &self.chances[row.row as usize];
            let alive = columns_from::<N>(&chances.alive, first);
            let spread = columns_from::<N>(&chances.spread, first);
            if row.grows || row.ending & through != 0 {
                let (running, each) = self.held::<N>(row, first);
                for j in 0..N {
                    mean[j] += alive[j] * running[j];
                    variance[j] += spread[j] * running[j] * each[j];
                }
                continue;
            }
            for j in 0..N {
                let each = row.each + rise[j];
                let held = row.count * each;
                mean[j] += alive[j] * held;
                variance[j] += spread[j] * held * each;
            }
        }
        (mean, variance)
    }

    /// By column, what the members that then run hold if all of those do, and what a member holds on average.
    fn held<const N: usize>(&self, row: &Occupied, first: usize) -> ([f64; N], [f64; N]) {
        let place = row.place;
        let (rise, ahead) = (columns_from::<N>(&self.rise, first), columns_from::<N>(&AHEAD, first));
        let mut each = [row.each; N];
        for j in 0..N {
            each[j] += rise[j];
        }
        if row.grows {
            for (group, growing) in self.footprint.plateaus().iter().zip(self.growing_of(place)) {
                let (count, kv) = growing.all.at(self.tick);
                if count > 0.0 {
                    let (now, share) = (kv / count, count / row.count);
                    let (slope, full, window) = (share * group.slope, share * group.level, f64::from(group.window));
                    for j in 0..N {
                        let n = now + ahead[j];
                        let grown = slope * n;
                        each[j] += if n < window { grown } else { full };
                    }
                }
            }
        }
        let through = u32::MAX >> (32 - first - N);
        if row.ending & through == 0 {
            let mut running = each;
            for j in 0..N {
                running[j] *= row.count;
            }
            return (running, each);
        }
        let (count, kv) = self.places[place as usize].sums.running::<N>(first, self.tick);
        let mut running = [0.0; N];
        for j in 0..N {
            running[j] = self.footprint.slope() * kv[j] + (rise[j] + self.footprint.fixed()) * count[j];
        }
        for (group, growing) in self.footprint.plateaus().iter().zip(self.growing_of(place)) {
            let (growing, growing_kv) = growing.running::<N>(first, self.tick);
            let window = f64::from(group.window);
            for j in 0..N {
                let n = growing_kv[j] + ahead[j] * growing[j];
                let below = n < window * growing[j];
                running[j] += if below { group.slope * n } else { group.level * growing[j] };
                running[j] += group.level * (count[j] - growing[j]);
            }
        }
        (running, each)
    }

    /// The members of a place whose part of a group still grows, group by group.
    fn growing_of(&self, place: u32) -> &[Sums] {
        let (index, groups) = (place as usize, self.footprint.plateaus().len());
        &self.growing[index * groups..(index + 1) * groups]
    }

    /// What a request holds if it runs to its certain end: the most at any time until then.
    pub(crate) fn footprint(&self) -> &Footprint {
        &self.footprint
    }
}

fn columns_from<const N: usize>(column: &[f64; COLUMNS], first: usize) -> &[f64; N] {
    column[first..].first_chunk().expect("as many columns as are summed")
}
