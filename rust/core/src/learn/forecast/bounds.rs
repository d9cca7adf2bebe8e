//! Bounds for what is expected from some horizon on, at a fraction of the cost of the sums: octave by octave of progress.

use super::chances::Chances;
use super::cohorts::YOUNG;
use super::outlook::deviation;
use super::sums::Squared;
use super::{CERTAIN, COLUMNS, Candidate, Forecast, PART, PARTS, POOLED, STRIDE};
use crate::learn::OCTAVE;

/// Octaves of a class. A place counts in the octave of its number: so do the young, who are in the first two by birth,
/// and whose bounds are those of all young rows.
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

    /// Raises the bounds to these, where they are lower.
    #[inline(always)]
    fn include(&mut self, other: &Self) {
        // None is a NaN, which `f64::max` would look for.
        let raise = |(bound, value): (&mut f64, f64)| *bound = if value > *bound { value } else { *bound };
        self.mean.iter_mut().zip(other.mean).for_each(raise);
        self.variance.iter_mut().zip(other.variance).for_each(raise);
    }
}

impl Octave {
    pub(super) const EMPTY: Self = Self { members: Squared::NONE, bounds: [Bound::NONE; PARTS], fresh: false };

    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.members.tally.count == 0
    }
}

/// The octave of a row or a place.
#[inline(always)]
pub(super) fn octave_of(place: usize) -> usize {
    place / OCTAVE as usize
}

impl Forecast {
    /// Mean and standard deviation that no horizon of a part, or of a later one, exceeds; none where there is no bound but
    /// the sums themselves.
    pub(crate) fn bound(&mut self, part: usize, beside: &[Candidate], candidate: &Candidate) -> Option<(f64, f64)> {
        if self.population[CERTAIN] > 0 {
            return None;
        }
        let plateaus: f64 = self.footprint.plateaus().iter().map(|group| group.peak).sum();
        let (slope, fixed) = (self.footprint.slope(), self.footprint.fixed() + plateaus);
        let (mut mean, mut variance) = (0.0, 0.0);
        // Of members that hold a n + c each of n KV tokens: Σ (a n + c) and Σ (a n + c)².
        let mut add = |bound: &Bound, [count, kv, squares]: [f64; 3]| {
            let held = slope * kv + fixed * count;
            let squared = slope * (slope * squares + 2.0 * fixed * kv) + fixed * fixed * count;
            let ([alive, risen], [one, first, second]) = (bound.mean, bound.variance);
            mean += held * alive + count * risen;
            variance += squared * one + held * first + count * second;
        };
        for octave in POOLED * OCTAVES..self.octaves.len() {
            if !self.octaves[octave].is_empty() {
                self.refresh_octave(octave);
                let octave = &self.octaves[octave];
                add(&octave.bounds[part], octave.members.at(self.tick));
            }
        }
        for candidate in beside.iter().chain([candidate]) {
            if candidate.class == CERTAIN {
                return None;
            }
            let (octave, kv) = (octave_of(candidate.row()), f64::from(candidate.kv));
            self.refresh_octave(octave);
            add(&self.octaves[octave].bounds[part], [1.0, kv, kv * kv]);
        }
        Some((mean, deviation(mean, variance)))
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
        let mut bounds = [Bound::NONE; PARTS];
        for row in octaves.start * OCTAVE as usize..octaves.end * OCTAVE as usize {
            self.refresh(row);
            let Chances { alive, spread, .. } = &self.chances[row];
            for j in 0..COLUMNS {
                let (p, s, r) = (alive[j], spread[j], self.rise[j]);
                bounds[j / PART].include(&Bound { mean: [p, p * r], variance: [s, 2.0 * s * r, s * r * r] });
            }
        }
        for part in (1..PARTS).rev() {
            let later = bounds[part];
            bounds[part - 1].include(&later);
        }
        for octave in &mut self.octaves[octaves] {
            (octave.bounds, octave.fresh) = (bounds, true);
        }
    }
}
