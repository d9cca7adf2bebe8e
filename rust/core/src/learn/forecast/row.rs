//! Residents of one class at one stage of progress, kept as sums.

use super::{COLUMNS, Column, HORIZONS, Outlook};

/// Counts and sums, exact below 2^53.
type ExactColumn = [f64; COLUMNS];

/// Residents of one class in one row of progress.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) members: i64,
    /// Sum of their bases.
    pub(super) base: i64,
    /// Stages that members have passed here since `since`, and before it.
    pub(super) exposure: i64,
    since: i64,
    /// Members that end before some horizon, and by horizon how many have ended and the sum of their bases. All
    /// integers, exact below 2^53.
    bounded: u32,
    ended: ExactColumn,
    ended_base: ExactColumn,
    /// Chance that a member runs at a horizon, and the curve it comes from.
    pub(super) alive: Column,
    pub(super) version: u64,
}

impl Row {
    pub(super) fn new() -> Self {
        let none = [0.0; COLUMNS];
        Self {
            members: 0,
            base: 0,
            exposure: 0,
            since: 0,
            bounded: 0,
            ended: none,
            ended_base: none,
            alive: [1.0; COLUMNS],
            version: 0,
        }
    }

    pub(super) fn change(&mut self, sign: i64, base: i64, columns: u32, tick: i64) {
        self.exposure += self.members * (tick - self.since);
        self.since = tick;
        self.members += sign;
        self.base += sign * base;
        let columns = columns as usize;
        if columns < COLUMNS {
            self.bounded = self.bounded.wrapping_add_signed(sign as i32);
            let (count, sum) = (sign as f64, (sign * base) as f64);
            for j in columns..COLUMNS {
                self.ended[j] += count;
                self.ended_base[j] += sum;
            }
        }
    }

    /// Adds the members to an outlook.
    pub(super) fn add_to(&self, sum: &mut Outlook, certain: bool, tick: i64, overhead: f32) {
        let count = self.members as f32;
        let kv = (self.members * tick - self.base) as f32 + count * overhead;
        let each = kv / count;
        let mut total: Column = HORIZONS.map(|h| kv + count * h as f32);
        if self.bounded > 0 {
            let tick = tick as f64;
            for j in 0..COLUMNS {
                let (ended, base) = (self.ended[j], self.ended_base[j]);
                total[j] -= (ended * tick - base) as f32 + ended as f32 * (overhead + HORIZONS[j] as f32);
            }
        }
        if certain {
            for j in 0..COLUMNS {
                sum.certain[j] += total[j];
            }
            return;
        }
        for j in 0..COLUMNS {
            let expected = self.alive[j] * total[j];
            sum.mean[j] += expected;
            sum.variance[j] += expected * (1.0 - self.alive[j]) * (each + HORIZONS[j] as f32);
        }
    }
}
