//! The queue before prefill: prompt tokens that wait at the start of each iteration, beside a fixed number of decodes.
//!
//! W' = W − min(W, room) + the tokens of the prompts that arrive while the iteration lasts, a Poisson number whose mean
//! grows with the iteration. W is kept on a grid; its stationary law is found by iterating the chain.

use crate::mixture::{Grid, Mixture};

/// Bounds on the grid points up to the token budget, and on the size of the chain.
const POINTS: (u64, u64) = (32, 128);
const SIZES: (usize, usize) = (256, 1024);
/// Grid points up to the longest prompt, if the budget's allow it: the chain then has room for eight of them.
const LONGEST: f64 = 128.0;
/// Steps of the chain at most: where it has not settled by then, a real queue has not either.
const MOST_STEPS: usize = 1500;
/// Decodes after a prefill for which the surplus is followed.
const FOLLOWED: usize = 400;
/// Prompt lengths for which a request of its own is followed.
const REPRESENTATIVES: usize = 12;
/// Full iterations before the one that ends a prefill, at most.
const MOST_FULL: usize = 200;
/// Probabilities below this are left out.
const NEGLIGIBLE: f64 = 1e-9;

/// What the queue means for a request.
pub(super) struct PrefillQueue {
    /// Arrival to the end of prefill, seconds, once there is a seat.
    pub(super) ttft: f64,
    /// Its first part: the rest of the iteration that is under way at the arrival.
    pub(super) residual: f64,
    /// Mean seconds of an iteration.
    pub(super) iteration_time: f64,
    /// Surplus of the first 1, 2, … decodes over as many average iterations, seconds.
    surplus: Vec<f64>,
}

impl PrefillQueue {
    pub(super) fn new(mixture: &Mixture, decodes: f64, rate: f64) -> Self {
        let points = LONGEST * mixture.room(decodes) / mixture.longest();
        let grid = mixture.grid(decodes, (points as u64).clamp(POINTS.0, POINTS.1));
        let chain = Chain::new(mixture, &grid, decodes, rate);
        let stationary = chain.stationary();
        chain.follow(&stationary, &grid)
    }

    /// Surplus of so many decodes after the prefill, seconds.
    pub(super) fn surplus(&self, decodes: u32) -> f64 {
        match decodes as usize {
            0 => 0.0,
            n => self.surplus[n.min(self.surplus.len()) - 1],
        }
    }
}

struct Chain {
    /// Steps of prompt tokens that fit in one iteration.
    room: usize,
    size: usize,
    /// Seconds of an iteration with 0, 1, …, room steps of prefill.
    times: Vec<f64>,
    /// Distribution of the steps that arrive meanwhile.
    arrivals: Vec<Vec<f64>>,
}

impl Chain {
    fn new(mixture: &Mixture, grid: &Grid, decodes: f64, rate: f64) -> Self {
        let size = (4 * grid.room).max(8 * grid.longest()).clamp(SIZES.0, SIZES.1).max(grid.room + 1);
        let times: Vec<f64> = (0..=grid.room).map(|p| mixture.seconds(decodes, p as f64 * grid.step)).collect();
        let arrivals = times.iter().map(|time| {
            let mut pmf = grid.poisson(rate * time, size);
            while pmf.len() > 1 && pmf.last().is_some_and(|&p| p < NEGLIGIBLE * 0.01) {
                pmf.pop();
            }
            pmf
        });
        Self { room: grid.room, size, arrivals: arrivals.collect(), times }
    }

    /// One iteration on; what would pass the end of the grid stays at its end.
    fn advance(&self, from: &[f64]) -> Vec<f64> {
        let mut to = vec![0.0; self.size];
        for (w, &mass) in from.iter().enumerate().filter(|&(_, &mass)| mass > 0.0) {
            let computed = w.min(self.room);
            let left = w - computed;
            let mut rest = mass;
            for (to, p) in to[left..].iter_mut().zip(&self.arrivals[computed]) {
                *to += mass * p;
                rest -= mass * p;
            }
            to[self.size - 1] += rest;
        }
        to
    }

    fn stationary(&self) -> Vec<f64> {
        let mut now = vec![0.0; self.size];
        now[0] = 1.0;
        for _ in 0..MOST_STEPS {
            let mut next = self.advance(&now);
            for p in &mut next {
                *p = if *p < 1e-14 { 0.0 } else { *p };
            }
            let change: f64 = next.iter().zip(&now).map(|(a, b)| (a - b).abs()).sum();
            now = next;
            if change < 1e-8 {
                break;
            }
        }
        let total: f64 = now.iter().sum();
        for p in &mut now {
            *p /= total;
        }
        now
    }

    fn time(&self, waiting: usize) -> f64 {
        self.times[waiting.min(self.room)]
    }

    fn mean_time(&self, states: &[f64]) -> f64 {
        states.iter().enumerate().map(|(w, p)| p * self.time(w)).sum()
    }

    /// Follows a request that arrives at a random time: to the end of its prefill, and through its first decodes.
    fn follow(&self, stationary: &[f64], grid: &Grid) -> PrefillQueue {
        let mean = self.mean_time(stationary);
        let mut own = grid.representatives(REPRESENTATIVES);
        let shares: f64 = own.iter().map(|&(_, share)| share).sum();
        for (_, share) in &mut own {
            *share /= shares;
        }
        let mut residual = 0.0;
        // The tokens that wait when the first iteration after the arrival starts, its own included, by the number of full
        // iterations before the one that ends its prefill.
        let mut starts: Vec<Vec<f64>> = Vec::new();
        for (w, p) in stationary.iter().enumerate() {
            // It arrives during this iteration, and meets what is left over and the others that arrive meanwhile.
            let during = p * self.time(w) / mean;
            if during < NEGLIGIBLE {
                continue;
            }
            let left = w - w.min(self.room);
            residual += during * self.time(w) / 2.0;
            let arrivals = self.arrivals[w.min(self.room)].iter().enumerate();
            for (others, q) in arrivals.filter(|&(_, &q)| q > NEGLIGIBLE) {
                // All of the others come before it or all behind: right for one of them, and on average for more.
                for (&(prompt, share), ahead) in own.iter().flat_map(|own| [(own, 0), (own, others)]) {
                    let full = ((left + ahead + prompt).div_ceil(self.room) - 1).min(MOST_FULL);
                    if starts.len() <= full {
                        starts.resize(full + 1, vec![0.0; self.size]);
                    }
                    starts[full][(left + others + prompt).min(self.size - 1)] += during * q * share / 2.0;
                }
            }
        }
        let mut ttft = residual;
        let mut states = vec![0.0; self.size];
        while let Some(start) = starts.pop() {
            // Full iterations gather arrivals that join the last one.
            states = self.advance(&states);
            for (state, p) in states.iter_mut().zip(start) {
                ttft += p * starts.len() as f64 * self.times[self.room];
                *state += p;
            }
        }
        ttft += self.mean_time(&states);
        let (mut surplus, mut sum) = (Vec::with_capacity(FOLLOWED), 0.0);
        for _ in 0..FOLLOWED {
            states = self.advance(&states);
            let total: f64 = states.iter().sum();
            let extra = self.mean_time(&states) / total - mean;
            sum += extra;
            surplus.push(sum);
            if extra.abs() < 1e-5 * mean {
                break;
            }
        }
        PrefillQueue { ttft, residual, iteration_time: mean, surplus }
    }
}
