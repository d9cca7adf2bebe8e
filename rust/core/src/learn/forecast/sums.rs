//! Residents of one class in one row of progress, kept as sums.

use super::COLUMNS;

/// KV tokens whose square fits in 63 bits.
const MOST_SQUARED: f64 = 3e9;

/// A number of members, and the sum of their bases (tick minus KV). Both are integers, so that taking members out leaves
/// no rounding error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) count: i64,
    pub(super) base: i64,
}

impl Tally {
    pub(super) const NONE: Self = Self { count: 0, base: 0 };

    #[inline(always)]
    pub(super) fn add(&mut self, other: Self) {
        (self.count, self.base) = (self.count + other.count, self.base + other.base);
    }

    #[inline(always)]
    pub(super) fn take(&mut self, other: Self) {
        (self.count, self.base) = (self.count - other.count, self.base - other.base);
    }

    /// How many there are, and the KV tokens that they hold at a tick.
    #[inline(always)]
    pub(super) fn at(self, tick: i64) -> (f64, f64) {
        (self.count as f64, (self.count * tick - self.base) as f64)
    }
}

/// A tally, and the sum of the squares of the bases, modulo 2^64.
#[derive(Clone, Copy, Debug)]
pub(super) struct Squared {
    pub(super) tally: Tally,
    squares: i64,
}

impl Squared {
    pub(super) const NONE: Self = Self { tally: Tally::NONE, squares: 0 };

    /// One member.
    pub(super) fn one(base: i64) -> Self {
        Self { tally: Tally { count: 1, base }, squares: base.wrapping_mul(base) }
    }

    #[inline(always)]
    pub(super) fn add(&mut self, other: Self) {
        self.tally.add(other.tally);
        self.squares = self.squares.wrapping_add(other.squares);
    }

    #[inline(always)]
    pub(super) fn take(&mut self, other: Self) {
        self.tally.take(other.tally);
        self.squares = self.squares.wrapping_sub(other.squares);
    }

    /// How many there are, the KV tokens that they hold at a tick, and a bound for the sum of the squares of these.
    #[inline(always)]
    pub(super) fn at(self, tick: i64) -> [f64; 3] {
        let (count, kv) = self.tally.at(tick);
        // Σ (tick − base)², which 64 bits hold though not its terms: it is at most the square of the sum.
        let crossed = tick.wrapping_mul(self.tally.count * tick - 2 * self.tally.base);
        let squares = self.squares.wrapping_add(crossed) as f64;
        [count, kv, if kv < MOST_SQUARED { squares } else { kv * kv }]
    }
}

/// All there are, and those that have ended by which horizon.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    pub(super) all: Tally,
    /// A bit for each column at which some are the first time certain to have ended.
    pub(super) ending: u32,
    ended: [Tally; COLUMNS],
}

impl Sums {
    pub(super) const NONE: Self = Self { all: Tally::NONE, ending: 0, ended: [Tally::NONE; COLUMNS] };

    /// Adds members, which will have ended from column `columns` on.
    #[inline(always)]
    pub(super) fn add(&mut self, members: Tally, columns: usize) {
        self.all.add(members);
        if let Some(ended) = self.ended.get_mut(columns) {
            ended.add(members);
            self.ending |= 1 << columns;
        }
    }

    /// Takes them out.
    #[inline(always)]
    pub(super) fn take(&mut self, members: Tally, columns: usize) {
        self.all.take(members);
        if let Some(ended) = self.ended.get_mut(columns) {
            ended.take(members);
            if ended.count == 0 {
                self.ending &= !(1 << columns);
            }
        }
    }

    /// How many still run, and their KV tokens at a tick, for each of N columns from `first` on.
    pub(super) fn running<const N: usize>(&self, first: usize, tick: i64) -> ([f64; N], [f64; N]) {
        let mut running = self.all;
        let mut bits = self.ending & ((1 << first) - 1);
        while bits != 0 {
            running.take(self.ended[bits.trailing_zeros() as usize]);
            bits &= bits - 1;
        }
        let mut found = ([0.0; N], [0.0; N]);
        for j in 0..N {
            running.take(self.ended[first + j]);
            (found.0[j], found.1[j]) = running.at(tick);
        }
        found
    }
}

/// The members of a place: what they are in sum, and the stages that they have passed there.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) sums: Sums,
    /// Up to a tick t they have passed `passed + count · t` stages, if they pass one an iteration.
    passed: i64,
}

impl Place {
    pub(super) const EMPTY: Self = Self { sums: Sums::NONE, passed: 0 };

    #[inline(always)]
    pub(super) fn add(&mut self, members: Tally, columns: usize, tick: i64) {
        self.passed -= members.count * tick;
        self.sums.add(members, columns);
    }

    #[inline(always)]
    pub(super) fn take(&mut self, members: Tally, columns: usize, tick: i64) {
        self.passed += members.count * tick;
        self.sums.take(members, columns);
    }

    /// Whether it has no members.
    pub(super) fn is_empty(&self) -> bool {
        self.sums.all.count == 0
    }

    /// Hands over the stages passed since the last call, member by member.
    #[inline]
    pub(super) fn drain(&mut self, tick: i64) -> i64 {
        let passed = self.passed + self.sums.all.count * tick;
        self.passed -= passed;
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_are_exact_though_their_terms_exceed_64_bits_and_never_too_small() {
        let at = |tick: i64, kv: &[i64]| {
            let mut all = Squared::NONE;
            for kv in kv {
                all.add(Squared::one(tick - kv));
            }
            all.at(tick).map(|sum| sum as i128)
        };
        let kv = [1, 77, 131_072, 1 << 30];
        let squares: i128 = kv.iter().map(|&kv| i128::from(kv).pow(2)).sum();
        let sum: i128 = kv.iter().map(|&kv| i128::from(kv)).sum();
        for tick in [0, 1_000, 1 << 40, 1 << 50] {
            assert_eq!(at(tick, &kv), [4, sum, squares as f64 as i128], "at {tick}");
        }
        let [count, kv, bound] = at(5, &[1 << 31; 3]);
        assert_eq!((count, kv), (3, 3 << 31));
        assert!(bound >= 3 << 62);
    }
}
