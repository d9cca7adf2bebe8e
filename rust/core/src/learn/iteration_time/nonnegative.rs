//! Nonnegative least squares on the moments of all cells, with as few costs as the observations support.
//!
//! The columns are those of a time that never falls with the tokens: from each cell on a jump (the edge of a stair), a
//! slope within it, and a slope for good; beside them the costs of decodes, prefill and attention. A column enters where
//! it lowers the sum of squares by more than noise does, the one that lowers it most first, and leaves where its cost
//! would be negative (Lawson and Hanson, *Solving Least Squares Problems*, ch. 23) or is no longer distinguishable from
//! noise. So stairs that the data do not support are merged. The columns of the last solution are where the next
//! begins.

use super::moments::{
    ANY_PREFILL, CELLS, DECODE_KV, DECODES, Moments, ONE, PREFILL_ATTENTION, PREFILL_KV, PREFILL_TOKENS, TIME, TOKENS,
    end_of, start_of,
};

/// The costs beside the tokens', as entries of a row.
pub(super) const COSTS: [usize; 6] = [DECODES, PREFILL_TOKENS, DECODE_KV, ANY_PREFILL, PREFILL_KV, PREFILL_ATTENTION];

/// Most columns in a solution, and most that enter in one call: what bounds its work.
const MOST_COLUMNS: usize = 40;
const MOST_ENTER: usize = 12;
/// A column enters if it lowers the sum of squares by this many times the variance, and leaves if it lowers it by less
/// than this many: the greatest of a hundred squares of normal variables is about 9.
const ENTER: f64 = 7.0;
const LEAVE: f64 = 4.0;
/// No law is fitted to better than this, relatively.
const FINEST: f64 = 1e-3;
/// Relative deviation of the cells from what the columns explain.
const SPREAD: f64 = 0.02;
/// Fewest observations from which on a cell has columns of its own.
pub(super) const FEWEST: f64 = 4.0;
/// Least share of a column that the others must leave unexplained.
const LEAST_PIVOT: f64 = 1e-7;

/// A column of the least-squares problem.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Column {
    /// 1 from a cell on.
    Jump(usize),
    /// The tokens past the first of a cell, up to the first of the next.
    Ramp(usize),
    /// The tokens past the first of a cell.
    Hinge(usize),
    /// A cost beside the tokens'.
    Cost(usize),
}

/// The entries of a row that a column is made of, each with a factor.
type Terms = [(usize, f64); 2];

impl Column {
    /// The first cell in which it is not 0.
    fn cell(self) -> usize {
        match self {
            Self::Jump(cell) | Self::Ramp(cell) | Self::Hinge(cell) => cell,
            Self::Cost(_) => 0,
        }
    }

    /// In that cell.
    fn here(self) -> Terms {
        match self {
            Self::Jump(_) => [(ONE, 1.0), (ONE, 0.0)],
            Self::Ramp(cell) | Self::Hinge(cell) => [(TOKENS, 1.0), (ONE, -(start_of(cell) as f64))],
            Self::Cost(entry) => [(entry, 1.0), (ONE, 0.0)],
        }
    }

    /// In the cells after it.
    fn beyond(self) -> Terms {
        match self {
            Self::Ramp(cell) => [(ONE, width(cell)), (ONE, 0.0)],
            other => other.here(),
        }
    }
}

fn width(cell: usize) -> f64 {
    (end_of(cell) + 1 - start_of(cell)) as f64
}

#[inline]
fn form(moments: &Moments, one: Terms, other: Terms) -> f64 {
    let half = |(entry, factor): (usize, f64)| {
        factor * (other[0].1 * moments.of(entry, other[0].0) + other[1].1 * moments.of(entry, other[1].0))
    };
    half(one[0]) + half(one[1])
}

/// The time by tokens of one cell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Line {
    /// At 0 tokens, ns.
    pub(super) base: f64,
    /// ns a token.
    pub(super) slope: f64,
}

/// A solution, and what it takes to find the next.
#[derive(Clone, Debug, Default)]
pub(super) struct NonnegativeFit {
    columns: Vec<Column>,
    /// ns a unit, one a column.
    costs: Vec<f64>,
    /// Lower triangle of the Cholesky factor of the columns' products, each column divided by its length; row by row.
    factor: Vec<f64>,
    lengths: Vec<f64>,
    /// Sums over each cell and all after it.
    tails: Vec<Moments>,
    solution: Vec<f64>,
    /// Columns and costs before the factor was recomputed, and a row: reused, so that nothing is allocated.
    before: (Vec<Column>, Vec<f64>),
    candidates: Vec<(Column, f64)>,
    scratch: Vec<f64>,
}

impl NonnegativeFit {
    /// Fits the moments of all cells, from the last solution on.
    pub(super) fn fit(&mut self, cells: &[Moments]) {
        self.sum_up(cells);
        if self.tails[0].count <= 0.0 {
            return;
        }
        self.factorise(cells);
        self.descend(cells);
        for _ in 0..MOST_ENTER {
            if self.columns.len() == MOST_COLUMNS {
                break;
            }
            let Some((column, gain)) = self.best(cells) else { break };
            if gain <= ENTER * self.variance(cells) || !self.append(cells, column) {
                break;
            }
            self.costs.push(0.0);
            self.descend(cells);
            if !self.columns.contains(&column) {
                break;
            }
        }
        self.prune(cells);
    }

    /// The time by tokens in each cell.
    pub(super) fn lines(&self) -> [Line; CELLS] {
        let mut lines = [Line::default(); CELLS];
        for (&column, &cost) in self.columns.iter().zip(&self.costs) {
            if matches!(column, Column::Cost(_)) {
                continue;
            }
            for (cell, line) in lines.iter_mut().enumerate().skip(column.cell()) {
                for (entry, factor) in if cell == column.cell() { column.here() } else { column.beyond() } {
                    *(if entry == TOKENS { &mut line.slope } else { &mut line.base }) += cost * factor;
                }
            }
        }
        lines
    }

    /// By how much the mean time of some of a cell's observations is off its line, ns, as far as it stands out from
    /// noise: times differ by `SPREAD` from what few columns explain, and a mean by the deviation of a single time over
    /// the root of the count.
    pub(super) fn left(&self, cells: &[Moments], moments: &Moments, line: Line) -> f64 {
        if moments.count < FEWEST {
            return 0.0;
        }
        let explained = |entry: usize| {
            let beside: f64 = COSTS.iter().map(|&other| self.cost(other) * moments.of(entry, other)).sum();
            line.base * moments.of(entry, ONE) + line.slope * moments.of(entry, TOKENS) + beside
        };
        let noise = self.variance(cells) / moments.count;
        let share = SPREAD * SPREAD / (SPREAD * SPREAD + noise);
        share * (moments.of(ONE, TIME) - explained(ONE)) / moments.of(ONE, ONE)
    }

    /// A cost beside the tokens', ns a unit.
    pub(super) fn cost(&self, entry: usize) -> f64 {
        let at = self.columns.iter().position(|&column| column == Column::Cost(entry));
        at.map_or(0.0, |at| self.costs[at])
    }

    fn sum_up(&mut self, cells: &[Moments]) {
        self.tails.resize(CELLS + 1, Moments::default());
        self.tails[CELLS] = Moments::default();
        for cell in (0..CELLS).rev() {
            self.tails[cell] = self.tails[cell + 1].plus(&cells[cell]);
        }
    }

    /// Mean squared relative error of the solution.
    fn variance(&self, cells: &[Moments]) -> f64 {
        let explained: f64 = self.columns.iter().zip(&self.costs).map(|(&c, &cost)| cost * self.target(cells, c)).sum();
        let all = &self.tails[0];
        ((all.of(TIME, TIME) - explained) / all.count).max(FINEST * FINEST)
    }

    fn product(&self, cells: &[Moments], one: Column, other: Column) -> f64 {
        let (first, last) = if one.cell() <= other.cell() { (one, other) } else { (other, one) };
        let cell = last.cell();
        let here = if first.cell() == cell { first.here() } else { first.beyond() };
        form(&cells[cell], here, last.here()) + form(&self.tails[cell + 1], first.beyond(), last.beyond())
    }

    fn target(&self, cells: &[Moments], column: Column) -> f64 {
        let time = [(TIME, 1.0), (ONE, 0.0)];
        let cell = column.cell();
        form(&cells[cell], column.here(), time) + form(&self.tails[cell + 1], column.beyond(), time)
    }

    /// The length of a column, and the share of its square that the columns in the factor do not explain; its row of
    /// the factor is left in `scratch`. None if they explain it all.
    fn orthogonal(&mut self, cells: &[Moments], column: Column) -> Option<(f64, f64)> {
        let length = libm::sqrt(self.product(cells, column, column));
        let mut row = std::mem::take(&mut self.scratch);
        row.clear();
        let products = self.columns.iter().zip(&self.lengths);
        row.extend(products.map(|(&other, &theirs)| self.product(cells, column, other) / (length * theirs)));
        self.forward(&mut row, 0);
        let pivot = 1.0 - row.iter().map(|entry| entry * entry).sum::<f64>();
        self.scratch = row;
        (length > 0.0 && pivot > LEAST_PIVOT).then_some((length, pivot))
    }

    /// Adds a column to the factor; false if those in it explain it already.
    fn append(&mut self, cells: &[Moments], column: Column) -> bool {
        let Some((length, pivot)) = self.orthogonal(cells, column) else { return false };
        self.factor.extend_from_slice(&self.scratch);
        self.factor.push(libm::sqrt(pivot));
        self.columns.push(column);
        self.lengths.push(length);
        true
    }

    /// Solves with the factor, in place; entries before `first` are 0.
    fn forward(&self, vector: &mut [f64], first: usize) {
        for at in first..vector.len() {
            let row = &self.factor[at * (at + 1) / 2..][..=at];
            let sum: f64 = row[first..at].iter().zip(&vector[first..at]).map(|(l, y)| l * y).sum();
            vector[at] = (vector[at] - sum) / row[at];
        }
    }

    /// Recomputes the factor; columns that the others explain are removed.
    fn factorise(&mut self, cells: &[Moments]) {
        std::mem::swap(&mut self.columns, &mut self.before.0);
        std::mem::swap(&mut self.costs, &mut self.before.1);
        self.columns.clear();
        self.costs.clear();
        self.factor.clear();
        self.lengths.clear();
        for at in 0..self.before.0.len() {
            if self.append(cells, self.before.0[at]) {
                self.costs.push(self.before.1[at]);
            }
        }
    }

    /// Least squares on the columns; those whose cost would be negative are removed.
    fn descend(&mut self, cells: &[Moments]) {
        while !self.columns.is_empty() {
            self.solve(cells);
            let shares = self.costs.iter().zip(&self.solution).filter(|(_, wanted)| **wanted <= 0.0);
            let share = shares.map(|(cost, wanted)| cost / (cost - wanted).max(f64::MIN_POSITIVE)).fold(1.0, f64::min);
            if self.solution.iter().all(|wanted| *wanted > 0.0) {
                self.costs.copy_from_slice(&self.solution);
                return;
            }
            // Move towards the solution until the first cost reaches 0.
            let mut least = (f64::INFINITY, 0);
            for at in 0..self.costs.len() {
                self.costs[at] += share * (self.solution[at] - self.costs[at]);
                if self.solution[at] <= 0.0 {
                    let left = self.costs[at] * self.lengths[at];
                    least = if left < least.0 { (left, at) } else { least };
                }
            }
            self.remove(cells, least.1);
        }
    }

    fn solve(&mut self, cells: &[Moments]) {
        let mut wanted = std::mem::take(&mut self.solution);
        wanted.clear();
        wanted.extend(
            self.columns.iter().zip(&self.lengths).map(|(&column, length)| self.target(cells, column) / length),
        );
        self.forward(&mut wanted, 0);
        for at in (0..wanted.len()).rev() {
            let below = (at + 1..wanted.len()).map(|row| self.factor[row * (row + 1) / 2 + at] * wanted[row]);
            wanted[at] = (wanted[at] - below.sum::<f64>()) / self.factor[at * (at + 1) / 2 + at];
        }
        wanted.iter_mut().zip(&self.lengths).for_each(|(cost, length)| *cost /= length);
        self.solution = wanted;
    }

    fn remove(&mut self, cells: &[Moments], at: usize) {
        self.columns.remove(at);
        self.costs.remove(at);
        self.factorise(cells);
    }

    /// The column that would lower the sum of squares most, and by how much.
    fn best(&mut self, cells: &[Moments]) -> Option<(Column, f64)> {
        let mut candidates = std::mem::take(&mut self.candidates);
        self.descents(cells, &mut candidates);
        let mut best: Option<(Column, f64)> = None;
        for &(column, descent) in &candidates {
            let Some((length, pivot)) = self.orthogonal(cells, column) else { continue };
            let gain = descent * descent / (length * length * pivot);
            if best.is_none_or(|(_, most)| gain > most) {
                best = Some((column, gain));
            }
        }
        self.candidates = candidates;
        best
    }

    /// The columns along which the sum of squares falls, and how steeply: the residual, times the column.
    fn descents(&self, cells: &[Moments], found: &mut Vec<(Column, f64)>) {
        found.clear();
        let mut consider = |column: Column, descent: f64| {
            if descent > 0.0 && !self.columns.contains(&column) {
                found.push((column, descent));
            }
        };
        let lines = self.lines();
        let solved = COSTS.map(|entry| self.cost(entry));
        // The residual, times each entry, summed over the cells after the one at hand.
        let (mut constant, mut tokens, mut costs) = (0.0, 0.0, [0.0; COSTS.len()]);
        let mut lowest = 0;
        for (cell, (moments, line)) in cells.iter().zip(&lines).enumerate().rev() {
            if moments.count <= 0.0 {
                continue;
            }
            let left = |entry: usize| {
                let beside: f64 = COSTS.iter().zip(solved).map(|(&other, cost)| cost * moments.of(entry, other)).sum();
                moments.of(entry, TIME)
                    - line.base * moments.of(entry, ONE)
                    - line.slope * moments.of(entry, TOKENS)
                    - beside
            };
            let start = start_of(cell) as f64;
            let (ones, past) = (left(ONE), left(TOKENS) - start * left(ONE));
            if moments.count >= FEWEST {
                consider(Column::Jump(cell), ones + constant);
                consider(Column::Ramp(cell), past + width(cell) * constant);
                consider(Column::Hinge(cell), past + tokens - start * constant);
            }
            constant += ones;
            tokens += left(TOKENS);
            costs.iter_mut().zip(COSTS).for_each(|(sum, entry)| *sum += left(entry));
            lowest = cell;
        }
        if cells[lowest].count < FEWEST {
            consider(Column::Jump(lowest), constant);
        }
        costs.into_iter().zip(COSTS).for_each(|(descent, entry)| consider(Column::Cost(entry), descent));
    }

    /// Removes what is no longer distinguishable from noise.
    fn prune(&mut self, cells: &[Moments]) {
        for _ in 0..MOST_ENTER {
            let mut least = (LEAVE * self.variance(cells), None);
            let mut unit = std::mem::take(&mut self.scratch);
            for at in 0..self.columns.len() {
                unit.clear();
                unit.resize(self.columns.len(), 0.0);
                unit[at] = 1.0;
                self.forward(&mut unit, at);
                let inverse: f64 = unit[at..].iter().map(|entry| entry * entry).sum();
                let cost = self.costs[at] * self.lengths[at];
                let held = cost * cost / inverse;
                least = if held < least.0 { (held, Some(at)) } else { least };
            }
            self.scratch = unit;
            let Some(at) = least.1 else { return };
            self.remove(cells, at);
            self.descend(cells);
        }
    }
}
