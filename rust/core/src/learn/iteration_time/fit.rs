//! How long iterations take, fitted online to what the host measured.
//!
//! Observations are buffered and learned from in batches. Each is first compared with the current law: that is the
//! law's error, on iterations it was not fitted to. Then it is added to its cell, divided by the time expected, because
//! a long iteration may be off by more than a short one; and the law is refitted (`nonnegative`). An outlier that took
//! far longer than expected counts little, and as if it had taken twice as long: a host that stalled carries no
//! information on iterations, while a law that is still far off catches up within a few batches.

use serde::{Deserialize, Serialize};

use super::moments::{self, CELLS, MOST_NS, MOST_RATIO, Moments, cell_of, end_of, start_of};
use super::nonnegative::{FEWEST, NonnegativeFit};
use crate::model::{AttentionCosts, BatchShape, IterationTime, MeasuredLaw, TokenStep};

/// Iterations to a batch.
const BATCH: usize = 64;
/// The first `EARLY` batches are each followed by a fit, later every `SELDOM`-th: a good law changes little.
const EARLY: u64 = 32;
const SELDOM: u64 = 4;
/// Observations that a cell remembers, and over which the error is averaged.
const MEMORY: f64 = 2_000.0;
const ERROR_MEMORY: f64 = 512.0;
/// The law is used once this many iterations have been predicted, with a mean error of at most this.
const PREDICTED: f64 = 256.0;
const LARGEST_ERROR: f64 = 0.2;
/// An iteration is an outlier if it takes longer than expected by more than this many usual deviations, and by more
/// than this, relatively; it then counts only this much.
const OUTLIER: f64 = 8.0;
const FAR: f64 = 1.0;
const OUTLIER_COUNT: f64 = 0.1;
/// Iterations shorter than the usual one by more than this factor weigh as if they were that long.
const SHORTEST: f64 = 8.0;
/// If most of a batch took this much longer or shorter, the machine has changed: all earlier observations count half.
const SHIFT: f64 = 0.1;
/// A new law replaces the last one if it differs by more than this anywhere that was observed.
const MOVED: f64 = 0.005;

/// The statistics, the law, and its error.
#[derive(Clone, Debug)]
pub(crate) struct IterationTimeFit {
    batch: Vec<(BatchShape, f64)>,
    cells: Vec<Moments>,
    /// The same of those iterations alone that end a cell: there stairs may end, and budgets are chosen.
    ends: Vec<Moments>,
    fit: NonnegativeFit,
    law: Option<IterationTime>,
    /// How often the law, or whether it is used, has changed.
    version: u32,
    record: Record,
    /// Reused, so that nothing is allocated.
    steps: Vec<TokenStep>,
    errors: Vec<f64>,
}

/// How well iterations were predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Iterations learned from.
    observations: u64,
    /// Iterations predicted before they were learned from, at most as many as the error is averaged over.
    #[serde(alias = "foretold")] // its key in earlier versions
    predicted: f64,
    /// Mean relative error, each at most 1.
    error: f64,
}

/// What is kept of a fit: the sums of the cells that have seen anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FitState {
    record: Record,
    cells: Vec<CellState>,
    /// Of the iterations that end a cell.
    ends: Vec<CellState>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CellState {
    /// Its first token count.
    from: u64,
    count: f64,
    /// Sums of products, the lower triangle row by row.
    sums: Vec<f64>,
}

impl Default for IterationTimeFit {
    fn default() -> Self {
        Self {
            batch: Vec::with_capacity(BATCH),
            cells: vec![Moments::default(); CELLS],
            ends: vec![Moments::default(); CELLS],
            fit: NonnegativeFit::default(),
            law: None,
            version: 0,
            record: Record::default(),
            steps: Vec::with_capacity(CELLS),
            errors: Vec::with_capacity(BATCH),
        }
    }
}

impl IterationTimeFit {
    /// Learns how long an iteration took. One that computed nothing or took no time is ignored.
    pub(crate) fn observe(&mut self, shape: &BatchShape, ns: u64) {
        if shape.tokens() == 0 || ns == 0 {
            return;
        }
        self.batch.push((*shape, (ns as f64).min(MOST_NS)));
        if self.batch.len() == BATCH {
            self.learn();
            self.batch.clear();
        }
    }

    /// The law fitted last, good or not; none before the first batch.
    pub(crate) fn law(&self) -> Option<&IterationTime> {
        self.law.as_ref()
    }

    /// Whether the host reports how long iterations take.
    pub(crate) fn has_begun(&self) -> bool {
        self.record.observations > 0 || !self.batch.is_empty()
    }

    /// Whether the law's error is known and small.
    pub(crate) fn is_trusted(&self) -> bool {
        self.law.is_some() && self.record.predicted >= PREDICTED && self.record.error <= LARGEST_ERROR
    }

    /// A number that changes with the law and with whether it is trusted.
    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    /// The same with a version other than that of the fit whose place it takes.
    pub(crate) fn following(mut self, before: &Self) -> Self {
        self.version = before.version.wrapping_add(1);
        self
    }

    /// Mean relative error of the last predictions; none before the first.
    pub(crate) fn error(&self) -> Option<f64> {
        (self.record.predicted > 0.0).then_some(self.record.error)
    }

    /// Iterations learned from.
    pub(crate) fn observations(&self) -> u64 {
        self.record.observations
    }

    /// How many observations each cell of the token count remembers.
    pub(crate) fn counts(&self) -> impl Iterator<Item = f64> + '_ {
        self.cells.iter().map(|cell| cell.count)
    }

    fn learn(&mut self) {
        let trusted = self.is_trusted();
        if self.law.is_none() {
            self.begin();
        } else {
            self.test();
        }
        let shifted = self.take_in();
        let batches = self.record.observations / BATCH as u64;
        if shifted || batches < EARLY || batches.is_multiple_of(SELDOM) {
            self.refit();
        }
        self.record.observations += BATCH as u64;
        self.version = self.version.wrapping_add(u32::from(self.is_trusted() != trusted));
    }

    /// An initial law, by which to weigh the first batch: every iteration takes the typical time.
    fn begin(&mut self) {
        self.errors.clear();
        self.errors.extend(self.batch.iter().map(|(_, ns)| *ns));
        let usual = median(&mut self.errors);
        for (shape, ns) in &self.batch {
            let row = moments::row(shape, ns.min(MOST_RATIO * usual));
            self.cells[cell_of(shape.tokens())].add(&row, 1.0, usual);
        }
        self.refit();
        self.cells.iter_mut().for_each(|cell| *cell = Moments::default());
    }

    /// Compares the batch with the law, before learning from it.
    fn test(&mut self) {
        let Some(law) = &self.law else { return };
        for (shape, ns) in &self.batch {
            let error = (ns / expected(law, shape) - 1.0).abs().min(1.0);
            self.record.predicted = (self.record.predicted + 1.0).min(ERROR_MEMORY);
            self.record.error += (error - self.record.error) / self.record.predicted;
        }
    }

    /// Adds the batch to the cells; true if the machine has changed.
    fn take_in(&mut self) -> bool {
        let Some(law) = &self.law else { return false };
        self.errors.clear();
        self.errors.extend(self.batch.iter().map(|(_, ns)| *ns));
        let least = median(&mut self.errors) / SHORTEST;
        // A law that is still far off must not give a few iterations all the weight.
        let expected = |shape: &BatchShape| expected(law, shape).clamp(least, MOST_NS);
        self.errors.clear();
        self.errors.extend(self.batch.iter().map(|(shape, ns)| ns / expected(shape) - 1.0));
        let shift = median(&mut self.errors);
        self.errors.iter_mut().for_each(|error| *error = (*error - shift).abs());
        // Of a normal variable the median deviation is 0.6745 standard deviations.
        let deviation = 1.4826 * median(&mut self.errors);
        let far = (1.0 + shift.max(0.0)) * (1.0 + (OUTLIER * deviation).max(FAR));
        if shift.abs() > SHIFT {
            self.cells.iter_mut().chain(&mut self.ends).for_each(|cell| cell.fade(0.5));
        }
        for (shape, ns) in &self.batch {
            let expected = expected(shape);
            let most = expected * far.min(MOST_RATIO);
            let (ns, count) = if *ns > most { (most, OUTLIER_COUNT) } else { (*ns, 1.0) };
            let (row, cell) = (moments::row(shape, ns), cell_of(shape.tokens()));
            self.cells[cell].add(&row, count, expected);
            if shape.tokens() == end_of(cell) {
                self.ends[cell].add(&row, count, expected);
            }
        }
        for cell in self.cells.iter_mut().chain(&mut self.ends) {
            if cell.count > MEMORY {
                cell.fade(MEMORY / cell.count);
            }
        }
        shift.abs() > SHIFT
    }

    /// Fits the law to the cells.
    fn refit(&mut self) {
        self.fit.fit(&self.cells);
        let attention = self.build();
        if self.steps.is_empty() {
            return;
        }
        let law = IterationTime::Measured(MeasuredLaw::fitted(std::mem::take(&mut self.steps), attention));
        let spare = if self.has_moved(&law) {
            self.version = self.version.wrapping_add(1);
            self.law.replace(law)
        } else {
            Some(law)
        };
        if let Some(IterationTime::Measured(law)) = spare {
            self.steps = law.into_steps();
        }
    }

    fn has_moved(&self, law: &IterationTime) -> bool {
        let Some(before) = &self.law else { return true };
        let differ = |one: f64, other: f64| (one - other).abs() > MOVED * other;
        self.seen()
            .flat_map(|cell| [start_of(cell), end_of(cell)])
            .any(|n| differ(law.token_seconds(n), before.token_seconds(n)))
            || self.batch.iter().any(|(shape, _)| differ(expected(law, shape), expected(before, shape)))
    }

    /// Cells that have columns of their own.
    fn seen(&self) -> impl Iterator<Item = usize> + '_ {
        (0..CELLS).filter(|&cell| self.cells[cell].count >= FEWEST)
    }

    /// Writes the steps of the law; returns the costs beside them. Where nothing was seen a line leads from what was seen
    /// below to what was seen above; below all the time is that of the least seen; above all each token costs as much
    /// as it does on the last line or on the upper half of what was seen, whichever is more.
    fn build(&mut self) -> AttentionCosts {
        let cost = |entry| self.fit.cost(entry);
        // Every token is one of a decode or of a prompt: what both cost is the token's, and belongs to the stairs.
        let shared = cost(moments::DECODES).min(cost(moments::PREFILL_TOKENS));
        let attention = AttentionCosts {
            per_decode_ns: cost(moments::DECODES) - shared,
            per_decode_kv_ns: cost(moments::DECODE_KV),
            prefill_base_ns: cost(moments::ANY_PREFILL),
            per_prefill_token_ns: cost(moments::PREFILL_TOKENS) - shared,
            per_prefill_kv_ns: cost(moments::PREFILL_KV),
            per_prefill_attention_ns: cost(moments::PREFILL_ATTENTION),
            ..AttentionCosts::default()
        };
        let lines = self.fit.lines();
        let mut steps = std::mem::take(&mut self.steps);
        steps.clear();
        let mut reached: Option<(u64, f64)> = None;
        for cell in self.seen() {
            let (start, end) = (start_of(cell) as f64, end_of(cell));
            let at = |n: f64| lines[cell].base + (lines[cell].slope + shared) * n;
            let least = reached.map_or(LEAST_NS, |(_, ns)| ns);
            let left = |moments: &Moments| self.fit.left(&self.cells, moments, lines[cell]);
            let last = (at(end as f64)
                + left(if self.ends[cell].count < FEWEST { &self.cells[cell] } else { &self.ends[cell] }))
            .max(least);
            let first = (at(start) + left(&self.cells[cell])).clamp(least, last);
            let slope = (last - first) / (end as f64 - start);
            match reached {
                None if cell > 0 => push(&mut steps, start_of(cell) - 1, first, 0.0),
                Some((n, ns)) if n + 1 < start_of(cell) => {
                    let slope = ((first - ns) / (start - n as f64)).max(0.0);
                    push(&mut steps, start_of(cell) - 1, ns - slope * n as f64, slope);
                }
                _ => {}
            }
            push(&mut steps, end, first - slope * start, slope);
            reached = Some((end, last));
        }
        if let Some((end, last_ns)) = reached {
            let half = (end / 2).max(1);
            let at = |n: u64| {
                let step = steps[steps.partition_point(|step| step.up_to < n)];
                step.base_ns + step.per_token_ns * n as f64
            };
            let mean = (last_ns - at(half)) / (end - half).max(1) as f64;
            let slope = mean.max(steps[steps.len() - 1].per_token_ns);
            push(&mut steps, end_of(CELLS), last_ns - slope * end as f64, slope);
        }
        self.steps = steps;
        attention
    }

    /// The state to save; none before a law could be fitted to it.
    pub(crate) fn state(&self) -> Option<FitState> {
        let cell = |(at, cell): (usize, &Moments)| CellState {
            from: start_of(at),
            count: cell.count,
            sums: cell.to_triangle(),
        };
        let kept =
            |cells: &[Moments]| cells.iter().enumerate().filter(|(_, cell)| cell.count > 0.0).map(cell).collect();
        self.seen().next().map(|_| FitState { record: self.record, cells: kept(&self.cells), ends: kept(&self.ends) })
    }

    /// The fit that was saved; none if no traffic could have produced it.
    pub(crate) fn restored(state: &FitState) -> Option<Self> {
        let Record { observations, predicted, error } = state.record;
        let sound = (1..=1 << 52).contains(&observations)
            && (0.0..=ERROR_MEMORY).contains(&predicted)
            && predicted <= observations as f64
            && (0.0..=1.0).contains(&error);
        if !sound {
            return None;
        }
        let mut fit = Self { record: state.record, ..Self::default() };
        for (into, kept) in [(&mut fit.cells, &state.cells), (&mut fit.ends, &state.ends)] {
            let mut next = 0;
            for CellState { from, count, sums } in kept {
                let cell = (next..CELLS).find(|&cell| start_of(cell) == *from)?;
                if !(0.0..=MEMORY).contains(count) {
                    return None;
                }
                into[cell] = Moments::from_triangle(cell, *count, sums)?;
                next = cell + 1;
            }
        }
        // Columns enter a few per fit.
        (0..RESTORE_FITS).for_each(|_| fit.refit());
        // The law is fitted anew, so it may differ; times that no hardware gives may fit none for a while.
        (!(state.cells.is_empty() && state.ends.is_empty())).then_some(fit)
    }
}

/// Fits after which a restored law has all its columns.
const RESTORE_FITS: usize = 8;
/// Shortest iteration, ns.
const LEAST_NS: f64 = 1.0;

fn expected(law: &IterationTime, shape: &BatchShape) -> f64 {
    (1e9 * law.seconds(shape)).max(LEAST_NS)
}

/// Appends a step, or lengthens the last one if it is the same line.
fn push(steps: &mut Vec<TokenStep>, up_to: u64, base_ns: f64, per_token_ns: f64) {
    if let Some(last) = steps.last_mut() {
        let gap = |n: u64| (base_ns - last.base_ns + (per_token_ns - last.per_token_ns) * n as f64).abs();
        let scale = 1e-9 * (base_ns + per_token_ns * up_to as f64).abs();
        if gap(last.up_to) <= scale && gap(up_to) <= scale {
            last.up_to = up_to;
            return;
        }
    }
    steps.push(TokenStep { up_to, base_ns, per_token_ns });
}

/// The median; reorders the values, of which there is at least one.
fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}
