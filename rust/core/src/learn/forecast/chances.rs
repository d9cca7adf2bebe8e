//! The chance that a member of a row still runs at a horizon.

use super::{COLUMNS, HORIZONS, middle};
use crate::learn::{Curve, ROWS, row_of, row_start, row_width};

/// Where the middle of a row is, as its first stages count, and where it will be at each horizon: a row, and how far
/// into it.
#[derive(Clone, Debug)]
pub(super) struct Targets {
    now: f64,
    ahead: [(u16, f64); COLUMNS],
}

/// Where the rows will be.
pub(super) fn targets() -> Vec<Targets> {
    let target = |row: usize, h: u32| {
        let stage = middle(row) + f64::from(h);
        let target = row_of(stage as u32);
        let into = (stage - f64::from(row_start(target))) / f64::from(row_width(target));
        (target as u16, into.min(1.0))
    };
    let of = |row| Targets { now: 0.5 - 0.5 / f64::from(row_width(row)), ahead: HORIZONS.map(|h| target(row, h)) };
    (0..ROWS).map(of).collect()
}

/// Of one row, by horizon.
#[derive(Clone, Debug)]
pub(super) struct Chances {
    /// The chance p that a member runs.
    pub(super) alive: [f64; COLUMNS],
    /// p (1 − p)
    pub(super) spread: [f64; COLUMNS],
    /// Whether they follow from the curve in force.
    pub(super) fresh: bool,
}

impl Chances {
    /// Of requests that are certain to run.
    pub(super) const CERTAIN: Self = Self { alive: [1.0; COLUMNS], spread: [0.0; COLUMNS], fresh: true };

    #[cold]
    pub(super) fn set(&mut self, curve: &Curve, row: usize, targets: &Targets) {
        let now = curve.alive(row, targets.now);
        for (alive, &(target, into)) in self.alive.iter_mut().zip(&targets.ahead) {
            let share = curve.alive(usize::from(target), into) / now;
            *alive = if share < 1.0 { share } else { 1.0 };
        }
        self.spread = self.alive.map(|alive| alive * (1.0 - alive));
        self.fresh = true;
    }
}
