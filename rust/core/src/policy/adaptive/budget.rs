//! Tokens per iteration, chosen from the iteration-time law.
//!
//! GEMM tiles make the law a staircase: a token past the edge of a stair costs a whole stair. A busy engine therefore
//! fills the stair that pays best, prefill tokens priced at what a token costs at the best edge of all. An engine that
//! has memory and time to spare computes all there is at once: what it loses nobody is waiting for.

use crate::cost::{BatchShape, IterationTime};
use crate::plan::Plan;
use crate::view::View;

/// An engine is busy if prefills take more than this share of its time …
const PREFILL_SHARE: f64 = 0.15;
/// … or more than this share of its memory, or of its seats, is in use.
const MEMORY_SHARE: f64 = 0.25;
const SEAT_SHARE: f64 = 0.25;
/// Most iterations in a row that may leave behind what the best edge has room for.
const PATIENCE: u32 = 16;
/// Time over which the share of prefills is taken, iterations.
const WINDOW: f64 = 1000.0;

/// The lever and what it remembers.
#[derive(Clone, Debug)]
pub(super) struct TokenBudget {
    law: IterationTime,
    /// Whether the budget is chosen at all; otherwise it is the configured one.
    chooses: bool,
    /// Token counts at which a stair ends, ascending.
    edges: Vec<u64>,
    /// The best of them.
    best: u64,
    /// What a token costs at the best edge, s.
    price: f64,
    /// Seconds spent on prefills and in all, fading.
    prefill_s: f64,
    total_s: f64,
    /// Iterations in a row that left prefill tokens behind though the best edge has room for them.
    deferred: u32,
}

impl TokenBudget {
    /// For iterations of at most `most` tokens.
    pub(super) fn new(law: &IterationTime, most: u32, chooses: bool) -> Self {
        let mut budget = Self {
            law: law.clone(),
            chooses,
            edges: Vec::new(),
            best: 0,
            price: 0.0,
            prefill_s: 0.0,
            total_s: 0.0,
            deferred: 0,
        };
        budget.follow(law, most);
        budget
    }

    /// The law has changed.
    pub(super) fn follow(&mut self, law: &IterationTime, most: u32) {
        let most = u64::from(most);
        self.law.clone_from(law);
        self.best = law.best_budget(most).unwrap_or(most);
        self.price = law.token_seconds(self.best) / self.best as f64;
        self.edges.clear();
        self.edges.extend(law.stairs().iter().map(|stair| stair.last).filter(|&n| n < most));
    }

    /// The token budget of an iteration with so many decodes and prefill tokens that could be computed; `held` if
    /// requests wait for memory.
    pub(super) fn choose(&self, view: &View, decodes: u32, backlog: u32, held: bool) -> u32 {
        let limits = view.limits();
        let roomy = (view.pool().used() as f64) < MEMORY_SHARE * f64::from(view.pool().capacity())
            && f64::from(decodes) < SEAT_SHARE * f64::from(limits.max_num_seqs);
        if !self.chooses || !held && roomy && self.prefill_s <= PREFILL_SHARE * self.total_s {
            return limits.token_budget;
        }
        let all = u64::from(decodes.saturating_add(backlog).min(limits.token_budget));
        if self.deferred >= PATIENCE {
            return all as u32;
        }
        let gain = |n: u64| self.price * n as f64 - self.law.token_seconds(n);
        let edges = self.edges.iter().copied().filter(|&n| n > u64::from(decodes) && n < all);
        edges.chain([all]).reduce(|best, n| if gain(n) > gain(best) { n } else { best }).unwrap_or(all) as u32
    }

    /// Seconds of an iteration.
    pub(super) fn seconds(&self, shape: &BatchShape) -> f64 {
        self.law.seconds(shape)
    }

    /// The largest budget up to `tokens` whose iteration takes no longer than `target` seconds; at least the stair that
    /// the decodes have begun, and one token, or prefills would never end.
    pub(super) fn within(&self, view: &View, decodes: u32, tokens: u32, target: Option<f64>) -> u32 {
        let Some(target) = target else { return tokens };
        let decodes = u64::from(decodes);
        let seconds = |n: u64| {
            let prefill_tokens = n - decodes;
            let decode_kv = view.lanes()[0].kv();
            self.law.seconds(&BatchShape { prefill_tokens, decodes, decode_kv, ..BatchShape::default() })
        };
        let most = u64::from(tokens);
        if most <= decodes || seconds(most) <= target {
            return tokens;
        }
        let mut edges = self.edges.iter().copied().filter(|&n| n > decodes && n < most);
        let first = edges.next().unwrap_or(most);
        edges.take_while(|&n| seconds(n) <= target).last().unwrap_or(first) as u32
    }

    /// Takes note of what was planned, of a backlog of so many tokens.
    pub(super) fn settle(&mut self, view: &View, plan: &Plan, backlog: u32) {
        let (decodes, tokens) = (u64::from(plan.decodes()), u64::from(plan.tokens()));
        if tokens == 0 {
            return;
        }
        let all = decodes + u64::from(backlog);
        self.deferred = if tokens < all && all <= self.best { self.deferred + 1 } else { 0 };
        let shape = |prefill_tokens| BatchShape {
            prefill_tokens,
            decodes,
            decode_kv: view.lanes()[0].kv(),
            ..BatchShape::default()
        };
        let total = self.law.seconds(&shape(tokens - decodes));
        let decode = if decodes > 0 { self.law.seconds(&shape(0)) } else { 0.0 };
        let keep = 1.0 - 1.0 / WINDOW;
        self.prefill_s = self.prefill_s * keep + total - decode;
        self.total_s = self.total_s * keep + total;
    }
}
