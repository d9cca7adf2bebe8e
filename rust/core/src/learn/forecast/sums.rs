//! Residents of one class in one row of progress, kept as sums.

use super::COLUMNS;

/// How many there are, the sum of their bases (tick minus KV), and how many have ended by which horizon. All are
/// integers, so that removing members leaves no rounding error.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    pub(super) count: i64,
    pub(super) base: i64,
    /// A bit for each column at which some are the first time certain to have ended.
    pub(super) ending: u32,
    /// How many those are, and the sum of their bases.
    ended: [i32; COLUMNS],
    ended_base: [i64; COLUMNS],
}

impl Sums {
    pub(super) const NONE: Self = Self { count: 0, base: 0, ending: 0, ended: [0; COLUMNS], ended_base: [0; COLUMNS] };

    /// `count` more (or fewer) that have ended from column `columns` on.
    #[inline]
    pub(super) fn change(&mut self, count: i64, base: i64, columns: usize) {
        self.count += count;
        self.base += base;
        if columns < COLUMNS {
            let ended = &mut self.ended[columns];
            let had_none = *ended == 0;
            *ended += count as i32;
            self.ended_base[columns] += base;
            if had_none != (*ended == 0) {
                self.ending ^= 1 << columns;
            }
        }
    }

    /// How many there are in all, and the KV tokens that they hold now.
    pub(super) fn all(&self, tick: i64) -> (f64, f64) {
        (self.count as f64, (self.count * tick - self.base) as f64)
    }

    /// The same for those that still run, for each of N columns from `first` on.
    pub(super) fn running<const N: usize>(&self, first: usize, tick: i64) -> ([f64; N], [f64; N]) {
        let (mut count, mut base) = (self.count, self.base);
        let mut bits = self.ending & ((1 << first) - 1);
        while bits != 0 {
            let column = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            count -= i64::from(self.ended[column]);
            base -= self.ended_base[column];
        }
        let mut found = ([0.0; N], [0.0; N]);
        for j in 0..N {
            count -= i64::from(self.ended[first + j]);
            base -= self.ended_base[first + j];
            (found.0[j], found.1[j]) = (count as f64, (count * tick - base) as f64);
        }
        found
    }
}

/// The members of a place: what they are in sum, and the stages that they have passed there.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) all: Sums,
    /// Up to a tick t they have passed `passed + count · t` stages, if they pass one an iteration.
    passed: i64,
}

impl Place {
    pub(super) const EMPTY: Self = Self { all: Sums::NONE, passed: 0 };

    #[inline]
    pub(super) fn change(&mut self, count: i64, base: i64, columns: usize, tick: i64) {
        self.passed -= count * tick;
        self.all.change(count, base, columns);
    }

    /// Hands over the stages passed since the last call, member by member.
    #[inline]
    pub(super) fn drain(&mut self, tick: i64) -> i64 {
        let passed = self.passed + self.all.count * tick;
        self.passed -= passed;
        passed
    }
}
