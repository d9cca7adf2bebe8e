//! The covering program min Σ cost · share, with Σ share · supply ≥ 1 for every need, share ≥ 0.
//!
//! Its dual, max Σ price with supply · price ≤ cost for every column, price ≥ 0, has few variables and many constraints
//! and starts feasible at price 0 because costs are positive: the primal simplex method on the dual needs no first
//! phase, and a pivot touches one small row per column. Bland's rule guarantees that it terminates.

/// Solution of a covering program.
pub(super) struct Cover<const N: usize> {
    pub(super) cost: f64,
    /// Per column.
    pub(super) shares: Vec<f64>,
    /// Per need.
    pub(super) prices: [f64; N],
}

/// Coefficients below this, relative to their row's largest, are rounding errors of pivots.
const TINY: f64 = 1e-11;

/// Solves the program for the active needs; `None` if some need is supplied by no column.
pub(super) fn cover<const N: usize>(supply: &[[f64; N]], costs: &[f64], active: [bool; N]) -> Option<Cover<N>> {
    // A dictionary: row c is the slack cost − supply · price, written in the nonbasic variables. Variables are numbered
    // prices first (0..N), then slacks.
    let mut rows: Vec<[f64; N]> = supply.to_vec();
    let mut values = costs.to_vec();
    let mut gain = active.map(|on| if on { 1.0 } else { 0.0 });
    let mut nonbasic: [usize; N] = std::array::from_fn(|i| i);
    let mut basic: Vec<usize> = (N..N + costs.len()).collect();
    while let Some(enter) = (0..N).filter(|&i| gain[i] > TINY).min_by_key(|&i| nonbasic[i]) {
        let mut leave: Option<(usize, f64)> = None;
        for (c, row) in rows.iter().enumerate() {
            let largest = row.iter().fold(0.0, |m: f64, a| m.max(a.abs()));
            if row[enter] <= TINY * largest {
                continue;
            }
            let ratio = values[c] / row[enter];
            if leave.is_none_or(|(l, least)| ratio < least || (ratio <= least && basic[c] < basic[l])) {
                leave = Some((c, ratio));
            }
        }
        let (pivot, ratio) = leave?;
        let old = rows[pivot];
        let mut solved = old.map(|a| a / old[enter]);
        solved[enter] = 1.0 / old[enter];
        for (c, row) in rows.iter_mut().enumerate() {
            let factor = row[enter];
            if c == pivot || factor == 0.0 {
                continue;
            }
            values[c] = (values[c] - factor * ratio).max(0.0);
            row[enter] = 0.0;
            for (a, s) in row.iter_mut().zip(solved) {
                *a -= factor * s;
            }
        }
        let factor = gain[enter];
        gain[enter] = 0.0;
        for (g, s) in gain.iter_mut().zip(solved) {
            *g -= factor * s;
        }
        rows[pivot] = solved;
        values[pivot] = ratio;
        std::mem::swap(&mut basic[pivot], &mut nonbasic[enter]);
    }
    // The basis is right, but pivoting has rounded its values: solve for them again from the program itself.
    let (tight, used): (Vec<usize>, Vec<usize>) = (
        (0..N).filter(|i| !nonbasic.contains(i)).collect(),
        nonbasic.iter().filter(|&&v| v >= N).map(|v| v - N).collect(),
    );
    let by_need = tight.iter().map(|&i| used.iter().map(|&c| supply[c][i]).chain([1.0]).collect()).collect();
    let by_column = used.iter().map(|&c| tight.iter().map(|&i| supply[c][i]).chain([costs[c]]).collect()).collect();
    let mut solution = Cover { cost: 0.0, shares: vec![0.0; costs.len()], prices: [0.0; N] };
    for (&column, share) in used.iter().zip(solve(by_need)) {
        solution.shares[column] = share.max(0.0);
        solution.cost += solution.shares[column] * costs[column];
    }
    for (&need, price) in tight.iter().zip(solve(by_column)) {
        solution.prices[need] = price.max(0.0);
    }
    Some(solution)
}

/// Solves a regular system of linear equations, each given as its coefficients and its right side.
fn solve(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
    let n = rows.len();
    for i in 0..n {
        let largest = (i..n).max_by(|&a, &b| rows[a][i].abs().total_cmp(&rows[b][i].abs())).unwrap_or(i);
        rows.swap(i, largest);
        let pivot = rows[i].clone();
        for row in rows.iter_mut().enumerate().filter(|&(r, _)| r != i).map(|(_, row)| row) {
            let factor = row[i] / pivot[i];
            row.iter_mut().zip(&pivot).for_each(|(a, p)| *a -= factor * p);
        }
    }
    rows.iter().enumerate().map(|(i, row)| row[n] / row[i]).collect()
}
