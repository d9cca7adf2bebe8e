//! Token counts that a busy engine tries out, so that its law is known where it could save time.
//!
//! An engine that always computes all there is sees few token counts, and knows nothing of the stairs between them.
//! While more is waiting than a step must take, steps occasionally end at a count at which a stair may end, as long as
//! one of these counts may still turn out to have the least time per token.

use core::cmp::Reverse;

use super::moments::{CELLS, cell_of};
use crate::model::IterationTime;

/// Edges of tiles are multiples of `TILE` tokens, and of an eighth of the power of two below them.
const TILE: u64 = 64;
const PER_OCTAVE: u64 = 8;
/// How often each count is tried: before any law is known, at least, and at most. Its time is then known to a hundredth
/// even where single times differ by a sixth. A law that needs large steps (a mixture of experts) pays for each trial.
const FIRST_LOOKS: u16 = 8;
const LEAST_LOOKS: u16 = 4;
const MOST_LOOKS: u16 = 256;
/// A count is ruled out if its mean time per token exceeds the best by this many standard errors.
const STANDARD_ERRORS: f64 = 3.0;

/// How often each count was tried, by the cell that it ends.
#[derive(Clone, Debug)]
pub(crate) struct Trials([u16; CELLS]);

impl Default for Trials {
    fn default() -> Self {
        Self([0; CELLS])
    }
}

impl Trials {
    /// As if each count had been tried as often as its cell remembers, but at most as often as it must be: the other
    /// times in the cell say less about its end.
    pub(crate) fn remembered(counts: impl Iterator<Item = f64>) -> Self {
        let mut tried = Self::default();
        tried.0.iter_mut().zip(counts).for_each(|(looks, count)| *looks = count.min(LEAST_LOOKS.into()) as u16);
        tried
    }

    /// The count above `least` and below `most` that was tried least among those that need it, the largest of equals.
    /// Times differ by `error` from what `law` predicts, relatively, if there is a law yet.
    pub(crate) fn next(&mut self, least: u64, most: u64, law: Option<(&IterationTime, f64)>) -> Option<u64> {
        let per_token = |n: u64| law.map_or(0.0, |(law, _)| law.token_seconds(n) / n as f64);
        let cheapest = counts().take_while(|&n| n <= most).map(per_token).fold(f64::INFINITY, f64::min);
        let needs = |&n: &u64| {
            let looks = self.0[cell_of(n)];
            let Some((_, error)) = law else { return looks < FIRST_LOOKS };
            let unknown = STANDARD_ERRORS * error / libm::sqrt(f64::from(looks.max(1)));
            let unsure = unknown > FINE && per_token(n) * (1.0 - unknown) < cheapest;
            looks < LEAST_LOOKS || looks < MOST_LOOKS && unsure
        };
        let within = counts().skip_while(|&n| n <= least).take_while(|&n| n < most);
        let next = within.filter(needs).min_by_key(|&n| (self.0[cell_of(n)], Reverse(n)))?;
        self.0[cell_of(next)] += 1;
        Some(next)
    }
}

/// A time known to this, relatively, is known well enough.
const FINE: f64 = 0.01;

/// Counts at which stairs may end.
fn counts() -> impl Iterator<Item = u64> {
    let after = |&n: &u64| Some(n + TILE.max((n + 1).next_power_of_two() / PER_OCTAVE));
    core::iter::successors(Some(TILE), after).take_while(|&n| cell_of(n + 1) < CELLS - 1)
}
