//! The chance that a member of a row still runs at a horizon.

use super::{COLUMNS, HORIZONS, PART, PARTS, middle};
use crate::learn::{Curve, ROWS, row_of, row_start, row_width};

/// For each horizon, the row in which the middle of a row will be, and how far into it.
pub(super) type Targets = [(u16, f64); COLUMNS];

/// Where the rows will be.
pub(super) fn targets() -> Vec<Targets> {
    let target = |row: usize, h: u32| {
        let stage = middle(row) + f64::from(h);
        let target = row_of(stage as u32);
        let into = (stage - f64::from(row_start(target))) / f64::from(row_width(target));
        (target as u16, into.min(1.0))
    };
    (0..ROWS).map(|row| HORIZONS.map(|h| target(row, h))).collect()
}

/// Bounds for all horizons from one on: the largest, over them, of the chance p times 1 and the rise r up to the
/// horizon, and of p (1 − p) times 1, 2r and r².
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    pub(super) mean: [f64; 2],
    pub(super) variance: [f64; 3],
}

/// Of one row, by horizon.
#[derive(Clone, Debug)]
pub(super) struct Chances {
    /// The chance p that a member runs.
    pub(super) alive: [f64; COLUMNS],
    /// p (1 − p)
    pub(super) spread: [f64; COLUMNS],
    /// By part, from its first horizon on.
    pub(super) bounds: [Bound; PARTS],
}

impl Chances {
    /// Of requests that are certain to run.
    pub(super) const CERTAIN: Self = Self {
        alive: [1.0; COLUMNS],
        spread: [0.0; COLUMNS],
        bounds: [Bound { mean: [1.0, f64::INFINITY], variance: [0.0; 3] }; PARTS],
    };

    pub(super) fn set(&mut self, curve: &Curve, row: usize, targets: &Targets, rise: &[f64; COLUMNS]) {
        let now = curve.alive(row, 0.5 - 0.5 / f64::from(row_width(row)));
        for (alive, &(target, into)) in self.alive.iter_mut().zip(targets) {
            *alive = (curve.alive(usize::from(target), into) / now).min(1.0);
        }
        self.spread = self.alive.map(|alive| alive * (1.0 - alive));
        let mut bound = Bound { mean: [0.0; 2], variance: [0.0; 3] };
        for part in (0..PARTS).rev() {
            for j in part * PART..(part + 1) * PART {
                let (alive, spread, rise) = (self.alive[j], self.spread[j], rise[j]);
                let ([alive_most, risen], [one, first, second]) = (bound.mean, bound.variance);
                bound.mean = [alive_most.max(alive), risen.max(alive * rise)];
                bound.variance = [one.max(spread), first.max(2.0 * spread * rise), second.max(spread * rise * rise)];
            }
            self.bounds[part] = bound;
        }
    }
}
