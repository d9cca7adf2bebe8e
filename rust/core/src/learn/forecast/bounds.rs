//! Bounds for what is expected from some horizon on, at a fraction of the cost of the sums: octave by octave of progress.

use super::cohorts::YOUNG;
use super::outlook::{Outlook, deviation};
use super::sums::Squared;
use super::{CERTAIN, COLUMNS, Candidate, Forecast, PART, PARTS, POOLED, STRIDE};
use crate::learn::OCTAVE;

/// Octaves of a class. A place counts in the octave of its number: so do the young, which are in the first two by birth,
/// and share the bounds of all young rows.
pub(super) const OCTAVES: usize = STRIDE / OCTAVE as usize;

/// Bounds for all horizons from one on: the largest, over them, of the chance p times 1 and the rise r up to the
/// horizon, and of p (1 − p) times 1, 2r and r².
#[derive(Clone, Copy, Debug)]
struct Bound {
    mean: [f64; 2],
    variance: [f64; 3],
}

/// The members of a class in an octave of progress.
#[derive(Clone, Debug)]
pub(super) struct Octave {
    pub(super) members: Squared,
    /// By part, from its first horizon on; the largest over the rows.
    bounds: [Bound; PARTS],
    /// Whether they follow from the curve in force.
    pub(super) fresh: bool,
}

impl Bound {
    const NONE: Self = Self { mean: [0.0; 2], variance: [0.0; 3] };
}

impl Octave {
    pub(super) const EMPTY: Self = Self { members: Squared::NONE, bounds: [Bound::NONE; PARTS], fresh: false };

    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.members.tally.count == 0
    }
}

/// The larger of two numbers; neither is a NaN, which `f64::max` would look for.
#[inline(always)]
fn larger(a: f64, b: f64) -> f64 {
    if b > a { b } else { a }
}

/// The octave of a row or a place.
#[inline(always)]
pub(super) fn octave_of(place: usize) -> usize {
    place / OCTAVE as usize
}

/// Mean and variance that no horizon of a part, or of a later one, exceeds: of the residents, and of the first requests
/// beside them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bounded {
    mean: f64,
    variance: f64,
    beside: usize,
}

impl Bounded {
    /// Adds so many members, with the sum of their KV tokens n and that of the squares, which hold a n + c each.
    #[inline(always)]
    fn add(&mut self, bound: &Bound, [count, kv, squares]: [f64; 3], (slope, fixed): (f64, f64)) {
        // Σ (a n + c) and Σ (a n + c)²
        let held = slope * kv + fixed * count;
        let squared = slope * (slope * squares + 2.0 * fixed * kv) + fixed * fixed * count;
        let ([alive, risen], [one, first, second]) = (bound.mean, bound.variance);
        self.mean += held * alive + count * risen;
        self.variance += squared * one + held * first + count * second;
    }
}

impl Forecast {
    /// Mean and standard deviation that no horizon of a part, or of a later one, exceeds; none where there is no bound but
    /// the sums themselves.
    pub(crate) fn bound(
        &mut self,
        outlook: &mut Outlook,
        part: usize,
        beside: &[Candidate],
        candidate: &Candidate,
    ) -> Option<(f64, f64)> {
        if self.population[CERTAIN] > 0 {
            return None;
        }
        let bounded = outlook.bounded[part].get_or_insert_with(|| self.bound_residents(part));
        for candidate in &beside[bounded.beside..] {
            self.bound_with(bounded, part, candidate)?;
            bounded.beside += 1;
        }
        let mut bounded = *bounded;
        self.bound_with(&mut bounded, part, candidate)?;
        Some((bounded.mean, deviation(bounded.mean, bounded.variance)))
    }

    fn bound_residents(&mut self, part: usize) -> Bounded {
        let (mut bounded, line) = (Bounded::default(), self.footprint.line_above());
        for octave in POOLED * OCTAVES..self.octaves.len() {
            if !self.octaves[octave].is_empty() {
                self.refresh_octave(octave);
                let octave = &self.octaves[octave];
                bounded.add(&octave.bounds[part], octave.members.at(self.tick), line);
            }
        }
        bounded
    }

    /// Adds a request; none if its length is known.
    #[inline]
    fn bound_with(&mut self, bounded: &mut Bounded, part: usize, candidate: &Candidate) -> Option<()> {
        if candidate.class == CERTAIN {
            return None;
        }
        let (octave, kv) = (octave_of(candidate.row()), f64::from(candidate.kv));
        self.refresh_octave(octave);
        bounded.add(&self.octaves[octave].bounds[part], [1.0, kv, kv * kv], self.footprint.line_above());
        Some(())
    }

    /// Brings the bounds of an octave up to date.
    #[inline]
    fn refresh_octave(&mut self, octave: usize) {
        if !self.octaves[octave].fresh {
            self.set_bounds(octave);
        }
    }

    #[cold]
    fn set_bounds(&mut self, octave: usize) {
        let class = octave / OCTAVES * OCTAVES;
        let young = class..octave_of(class * OCTAVE as usize + YOUNG);
        let octaves = if young.contains(&octave) { young } else { octave..octave + 1 };
        let (mut alive, mut spread) = ([0.0; COLUMNS], [0.0; COLUMNS]);
        for row in octaves.start * OCTAVE as usize..octaves.end * OCTAVE as usize {
            self.refresh(row);
            for j in 0..COLUMNS {
                alive[j] = larger(alive[j], self.chances[row].alive[j]);
                spread[j] = larger(spread[j], self.chances[row].spread[j]);
            }
        }
        let (mut bounds, mut bound) = ([Bound::NONE; PARTS], Bound::NONE);
        for j in (0..COLUMNS).rev() {
            let (p, s, r) = (alive[j], spread[j], self.rise[j]);
            let ([alive, risen], [one, first, second]) = (bound.mean, bound.variance);
            bound.mean = [larger(alive, p), larger(risen, p * r)];
            bound.variance = [larger(one, s), larger(first, 2.0 * s * r), larger(second, s * r * r)];
            bounds[j / PART] = bound;
        }
        for octave in &mut self.octaves[octaves] {
            (octave.bounds, octave.fresh) = (bounds, true);
        }
    }
}
