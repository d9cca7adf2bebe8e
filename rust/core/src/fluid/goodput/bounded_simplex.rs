//! max Σ gain · x with Σ rows · x ≤ limits (few rows) and 0 ≤ x ≤ most (many columns): the simplex method on bounded
//! variables, with the inverse of a basis that is as small as the number of rows.
//!
//! A column that goes from one bound to the other does not change the basis, so most steps are cheap. The limits are
//! relaxed by up to `WIDER`, each by a different amount, so that no step is degenerate: that is the error of the
//! solution, from above.

/// A variable.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column<const M: usize> {
    pub(super) gain: f64,
    pub(super) most: f64,
    pub(super) rows: [f64; M],
}

/// Most that is added to a limit, relative to 1.
const WIDER: f64 = 1e-7;
/// Gains and pivots below this are rounding errors.
const TINY: f64 = 1e-11;
/// Changes of the basis between two inversions from scratch.
const REFRESH: u32 = 32;

struct Basis<const M: usize> {
    /// Columns of the basis: those of the program, then the slack of each row.
    members: [usize; M],
    inverse: [[f64; M]; M],
    values: [f64; M],
}

/// The best x. Every limit is at least 0, so 0 is a solution to begin with.
pub(super) fn maximise<const M: usize>(columns: &[Column<M>], limits: [f64; M]) -> Vec<f64> {
    let n = columns.len();
    let limits: [f64; M] = std::array::from_fn(|r| limits[r] + WIDER * (r + 1) as f64 / M as f64);
    let unit = |r: usize| std::array::from_fn(|i| if i == r { 1.0 } else { 0.0 });
    let column =
        |j: usize| if j < n { columns[j] } else { Column { gain: 0.0, most: f64::INFINITY, rows: unit(j - n) } };
    let mut basis =
        Basis { members: std::array::from_fn(|r| n + r), inverse: std::array::from_fn(unit), values: limits };
    let mut at_most = vec![false; n + M];
    let mut is_basic: Vec<bool> = (0..n + M).map(|j| j >= n).collect();
    let mut changes = 0;
    // Every step gains; the bound on their number only guards against rounding.
    for _ in 0..50 * (n + M) {
        let price: [f64; M] = std::array::from_fn(|r| {
            basis.members.iter().zip(&basis.inverse).map(|(&j, row)| column(j).gain * row[r]).sum()
        });
        let mut enter: Option<(usize, f64)> = None;
        for j in (0..n + M).filter(|&j| !is_basic[j]) {
            let Column { gain, rows, .. } = column(j);
            let gain = gain - rows.iter().zip(&price).map(|(a, p)| a * p).sum::<f64>();
            let better = if at_most[j] { -gain } else { gain };
            if better > enter.map_or(TINY, |(_, most)| most) {
                enter = Some((j, better));
            }
        }
        let Some((enter, _)) = enter else { break };
        // The entering variable moves off its bound, up or down, and the basic ones follow.
        let sign = if at_most[enter] { -1.0 } else { 1.0 };
        let entering = column(enter);
        let follow: [f64; M] =
            basis.inverse.map(|row| sign * row.iter().zip(&entering.rows).map(|(a, b)| a * b).sum::<f64>());
        let (mut step, mut leave) = (entering.most, None);
        for (r, &slope) in follow.iter().enumerate() {
            let room = if slope > TINY {
                basis.values[r] / slope
            } else if slope < -TINY {
                (column(basis.members[r]).most - basis.values[r]) / -slope
            } else {
                f64::INFINITY
            };
            if room < step {
                (step, leave) = (room.max(0.0), Some((r, slope < 0.0)));
            }
        }
        for (value, slope) in basis.values.iter_mut().zip(follow) {
            *value -= step * slope;
        }
        let Some((row, upper)) = leave else {
            // Nothing holds an unbounded variable: the program has no such column.
            if step.is_infinite() {
                break;
            }
            at_most[enter] = !at_most[enter];
            continue;
        };
        let from = if at_most[enter] { entering.most } else { 0.0 };
        let left = std::mem::replace(&mut basis.members[row], enter);
        (is_basic[left], at_most[left], is_basic[enter], at_most[enter]) = (false, upper, true, false);
        basis.values[row] = from + sign * step;
        changes += 1;
        if changes % REFRESH == 0 {
            basis.invert(&column, limits, &at_most);
        } else {
            basis.pivot(row, follow.map(|slope| sign * slope));
        }
    }
    basis.invert(&column, limits, &at_most);
    let mut x: Vec<f64> = (0..n).map(|j| if at_most[j] { columns[j].most } else { 0.0 }).collect();
    for (&j, &value) in basis.members.iter().zip(&basis.values) {
        if j < n {
            x[j] = value.clamp(0.0, columns[j].most);
        }
    }
    x
}

impl<const M: usize> Basis<M> {
    /// The inverse after the member of `row` was replaced by a column that is `follow` in terms of the old basis.
    fn pivot(&mut self, row: usize, follow: [f64; M]) {
        let pivot = self.inverse[row].map(|value| value / follow[row]);
        for (r, slope) in follow.into_iter().enumerate() {
            if r != row {
                self.inverse[r].iter_mut().zip(pivot).for_each(|(value, p)| *value -= slope * p);
            }
        }
        self.inverse[row] = pivot;
    }

    /// Inverts the basis from scratch, and solves for the values of its members.
    fn invert(&mut self, column: &impl Fn(usize) -> Column<M>, limits: [f64; M], at_most: &[bool]) {
        let members = self.members.map(|j| column(j).rows);
        let mut rows: [[f64; M]; M] = std::array::from_fn(|r| std::array::from_fn(|c| members[c][r]));
        let mut inverse: [[f64; M]; M] = std::array::from_fn(|r| std::array::from_fn(|c| f64::from(u8::from(r == c))));
        for i in 0..M {
            let largest = (i..M).max_by(|&a, &b| rows[a][i].abs().total_cmp(&rows[b][i].abs())).unwrap_or(i);
            rows.swap(i, largest);
            inverse.swap(i, largest);
            let scale = 1.0 / rows[i][i];
            rows[i].iter_mut().chain(&mut inverse[i]).for_each(|value| *value *= scale);
            let (pivot, pivot_inverse) = (rows[i], inverse[i]);
            for r in (0..M).filter(|&r| r != i) {
                let factor = rows[r][i];
                rows[r].iter_mut().zip(pivot).for_each(|(value, p)| *value -= factor * p);
                inverse[r].iter_mut().zip(pivot_inverse).for_each(|(value, p)| *value -= factor * p);
            }
        }
        self.inverse = inverse;
        let mut left = limits;
        for (j, _) in at_most.iter().enumerate().filter(|(_, most)| **most) {
            let Column { most, rows, .. } = column(j);
            left.iter_mut().zip(rows).for_each(|(limit, a)| *limit -= a * most);
        }
        self.values = inverse.map(|row| row.iter().zip(&left).map(|(a, b)| a * b).sum());
    }
}
