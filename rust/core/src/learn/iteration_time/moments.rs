//! Sufficient statistics of iteration times: sums of products, by cells of the token count.
//!
//! A law that is a line in the tokens on each cell and a sum of costs beside it is fitted to these sums as well as to the
//! observations themselves, wherever its stairs are: cells that no stair separates are added up.

use crate::model::BatchShape;

/// The regressors of an iteration time, in this order, and the time itself: a constant, tokens, decodes, prompt tokens,
/// KV tokens of the decodes, whether there are prompt tokens, KV tokens of the prefills, their attention, ns.
pub(super) const ONE: usize = 0;
pub(super) const TOKENS: usize = 1;
pub(super) const DECODES: usize = 2;
pub(super) const PREFILL_TOKENS: usize = 3;
pub(super) const DECODE_KV: usize = 4;
pub(super) const ANY_PREFILL: usize = 5;
pub(super) const PREFILL_KV: usize = 6;
pub(super) const PREFILL_ATTENTION: usize = 7;
pub(super) const TIME: usize = 8;
const WIDTH: usize = 9;

pub(super) type Row = [f64; WIDTH];

/// Returns the regressors of the time of a batch, and the time.
pub(super) fn row(shape: &BatchShape, ns: f64) -> Row {
    [
        1.0,
        shape.tokens() as f64,
        shape.decodes as f64,
        shape.prefill_tokens as f64,
        shape.decode_kv as f64,
        f64::from(u8::from(shape.prefill_tokens > 0)),
        shape.prefill_kv as f64,
        0.5 * shape.prefill_attention as f64,
        ns,
    ]
}

/// Sums of the products of each two entries, weighted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Moments {
    /// Number of observations, weighted.
    pub(super) count: f64,
    products: [[f64; WIDTH]; WIDTH],
}

impl Moments {
    /// An observation that counts for `count`, its square divided by that of the time expected.
    pub(super) fn add(&mut self, row: &Row, count: f64, expected_ns: f64) {
        let weight = count / (expected_ns * expected_ns);
        self.count += count;
        for (products, entry) in self.products.iter_mut().zip(row) {
            for (product, other) in products.iter_mut().zip(row) {
                *product += weight * entry * other;
            }
        }
    }

    /// The sums of both.
    pub(super) fn plus(&self, other: &Self) -> Self {
        let mut sum = *self;
        sum.count += other.count;
        for (products, others) in sum.products.iter_mut().zip(&other.products) {
            for (product, other) in products.iter_mut().zip(others) {
                *product += other;
            }
        }
        sum
    }

    /// Scales the weight of everything in it.
    pub(super) fn fade(&mut self, keep: f64) {
        self.count *= keep;
        self.products.iter_mut().flatten().for_each(|product| *product *= keep);
    }

    /// The sum of products of two entries.
    #[inline]
    pub(super) fn of(&self, one: usize, other: usize) -> f64 {
        self.products[one][other]
    }

    /// The lower triangle, row by row.
    pub(super) fn to_triangle(self) -> Vec<f64> {
        (0..WIDTH).flat_map(|one| (0..=one).map(move |other| self.products[one][other])).collect()
    }

    /// The inverse of `to_triangle`; none if no observations in this cell give these sums.
    pub(super) fn from_triangle(cell: usize, count: f64, triangle: &[f64]) -> Option<Self> {
        let mut moments = Self { count, ..Self::default() };
        if triangle.len() != WIDTH * (WIDTH + 1) / 2 || !triangle.iter().all(|sum| (0.0..=MOST_SUM).contains(sum)) {
            return None;
        }
        let places = (0..WIDTH).flat_map(|one| (0..=one).map(move |other| (one, other)));
        for ((one, other), &sum) in places.zip(triangle) {
            moments.products[one][other] = sum;
            moments.products[other][one] = sum;
        }
        moments.is_of(cell).then_some(moments)
    }

    /// Whether observations in this cell give these sums, up to rounding.
    fn is_of(&self, cell: usize) -> bool {
        /// Rounding, relative.
        const SLACK: f64 = 1.0 + 1e-6;
        let weight = self.of(ONE, ONE);
        if !(self.count > 0.0 && weight > 0.0) {
            return false;
        }
        let mean = |entry| self.of(ONE, entry) / weight;
        let expected_squared = self.count / weight;
        let near = |one: f64, other: f64| (one - other).abs() <= 1e-6 * (one.abs() + other.abs());
        let squares_bound = |one, other| {
            let bound = self.of(one, one) * self.of(other, other);
            self.of(one, other) * self.of(one, other) <= bound * SLACK
        };
        let tokens = (start_of(cell) as f64 / SLACK)..=(end_of(cell) as f64 * SLACK);
        tokens.contains(&mean(TOKENS))
            && near(self.of(ONE, DECODES) + self.of(ONE, PREFILL_TOKENS), self.of(ONE, TOKENS))
            && mean(ANY_PREFILL) <= SLACK
            && (1.0 / SLACK..=MOST_NS * MOST_NS * SLACK).contains(&expected_squared)
            // A time counts for a bounded multiple of what was expected.
            && self.of(TIME, TIME) <= MOST_RATIO * MOST_RATIO * self.count * SLACK
            && self.of(ONE, TIME) > 0.0
            && (0..WIDTH).all(|one| (0..one).all(|other| squares_bound(one, other)))
    }
}

/// Largest sum that is taken over from elsewhere.
const MOST_SUM: f64 = 1e60;
/// Longest iteration that is learned from, ns: an hour.
pub(super) const MOST_NS: f64 = 3.6e12;
/// Most that a time counts for, in multiples of what was expected.
pub(super) const MOST_RATIO: f64 = 16.0;

/// Cells of the token count: GEMM tiles, and so the edges of stairs, are multiples of 64, 128 or 256 tokens; small counts
/// are distinguished by powers of two, large ones in coarser steps, because there a stair is a small part of the whole.
pub(super) const CELLS: usize = 68;
/// (first cell, tokens before it, width) of each run of equal cells.
const RUNS: [(usize, u64, u64); 3] = [(59, 8192, 1024), (35, 2048, 256), (4, 64, 64)];

/// The cell of a token count, at least 1.
pub(super) fn cell_of(tokens: u64) -> usize {
    if tokens <= 64 {
        return (tokens.saturating_sub(1) / 8 + 1).next_power_of_two().trailing_zeros() as usize;
    }
    let (first, before, width) = *RUNS.iter().find(|run| tokens > run.1).unwrap_or(&RUNS[2]);
    (first + ((tokens - before - 1) / width) as usize).min(CELLS - 1)
}

/// The last token count of a cell; the last cell has none, and is as wide as the one before it where a width is needed.
pub(super) fn end_of(cell: usize) -> u64 {
    if cell < 4 {
        return 8 << cell;
    }
    let (first, before, width) = *RUNS.iter().find(|run| cell >= run.0).unwrap_or(&RUNS[2]);
    before + width * (cell - first + 1) as u64
}

/// The first token count of a cell.
pub(super) fn start_of(cell: usize) -> u64 {
    cell.checked_sub(1).map_or(1, |before| end_of(before) + 1)
}
