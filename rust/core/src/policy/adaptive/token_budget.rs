//! Tokens of an iteration: how many prompt tokens are worth the time that they take from the decodes beside them.
//!
//! While requests are held for lack of memory, slots or tokens, and nearly as many arrive as pass, the budget is the
//! static one that maximises throughput in the fluid model (`steady_state.rs`), or of several that the model cannot tell
//! apart the one with the least delay just below that throughput. It ends where prompt tokens are cheapest: at the edge of
//! a stair of the law, or where it bends from memory-bound to compute-bound; more of them in an iteration would only slow
//! down the decodes, and with them the release of memory.
//!
//! While none are, or far fewer arrive, first tokens weigh more: the waiting prompts are computed in iterations of the n
//! tokens that minimise the total delay: of the first tokens, by the time until they come, and of the decodes, by what
//! the prompts add to their iterations. Both count as shares of what they take: a second of the former weighs as much
//! more as a request takes longer than its first token. But of the time until then a share q has been spent for lack of
//! memory or slots, waiting or computing again what was evicted from the prefix cache, and that part grows with the
//! decodes, by its elasticity ε: delaying them costs 1 + ε q times as much. And a longer iteration makes the next ones
//! longer, in which more requests decode then, as long as memory has room for what arrives: with a feedback κ it costs
//! 1 / (1 − κ) times as much.
//!
//! Long waits are to be no longer than in iterations as large as configured. So where q is near 0, no budget is taken
//! that brings the last of these first tokens much later, unless the latest of them come as late in those anyway.

use super::steady_state::{Expected, expected, feedback};
use super::traffic::Mix;
use crate::model::{BatchShape, IterationTime};
use crate::plan::Plan;
use crate::state::View;

/// Iterations over which the cost of a prompt token is taken.
const WINDOW: f64 = 1000.0;
/// Iterations between two evaluations of the steady state.
const REFRESH: i64 = 64;
/// Share of the throughput that a budget with less delay may cost, which is as much as the model can tell apart.
const LEVEL: f64 = 0.002;
/// Share of the highest throughput at which delays are compared: beyond it there is no steady state.
const LOAD: f64 = 0.9;
/// Share of the last `RECENT` iterations in which requests were held, and share of the highest throughput that arrives,
/// from which the engine counts as saturated. With fewer arrivals a queue is that of a burst: it drains with any budget.
const SATURATED: f64 = 0.05;
const LOADED: f64 = 0.7;
const RECENT: f64 = 256.0;
/// Least share of the configured budget's pace of prompts that a budget has for requests that wait for tokens alone.
const LEAST_PACE: f64 = 0.5;
/// Most that the last first token of the prompts at hand may come later than in iterations as large as configured, as a
/// factor, unless it then comes within this quantile of how late they come in those, or this share of the time until
/// first tokens was for lack of memory or slots.
const LATER: f64 = 1.2;
const QUANTILE: f64 = 0.99;
const SCARCE: f64 = 0.02;
/// Iterations over which that share is taken: memory runs full in stretches of hundreds.
const LONG: f64 = 16_384.0;
/// Relative step by which the quantile follows the times (Robbins and Monro 1951).
const STEP: f64 = 0.05;
/// Weight of a first token before the traffic is known, and the most it has.
const WEIGHT: f64 = 5.0;
const MOST_WEIGHT: f64 = 100.0;
/// Most of the feedback that is counted: prompts are done long before it has run its course.
const MOST_FEEDBACK: f64 = 0.8;

/// The prompts to be computed beside the decodes of an iteration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backlog {
    /// Tokens and requests: those whose prompts are being computed, and those that enter.
    pub(super) tokens: u32,
    pub(super) requests: u32,
    /// Requests beyond these that only the tokens of an iteration keep from entering.
    pub(super) beyond: u32,
    /// Requests that are held, for whatever reason.
    pub(super) held: u32,
    /// Whether requests are late for their target: parked, or refused in this plan.
    pub(super) late: bool,
}

/// The budget, and the state it is chosen from.
#[derive(Clone, Debug)]
pub(super) struct TokenBudget {
    law: IterationTime,
    /// Whether the budget is chosen at all; otherwise it is the configured one.
    chooses: bool,
    /// Token counts at which a stair of the law ends, ascending, and the configured budget.
    edges: Vec<u64>,
    /// What is expected of each in overload; kept so that evaluating it allocates nothing.
    overloaded: Vec<Expected>,
    /// The static budget with which most requests pass, and the prompt tokens that it leaves room for, where nearly as
    /// many arrive.
    passes_most: Option<(u64, f64)>,
    /// What a second of waiting for a first token weighs, in seconds of decoding.
    weight: f64,
    refreshed: i64,
    /// Share of the recent iterations in which requests were held.
    held: f64,
    /// Share of the prompt tokens that had been computed and was evicted.
    evicted: f64,
    /// Requests without their first token in the iterations so far, and those of them held for memory or slots or, by
    /// their share of the tokens, computing what was evicted; fading.
    pending: f64,
    waiting: f64,
    /// Prompt tokens computed, the seconds they added to their iterations, and iterations, fading.
    prompt_tokens: f64,
    prompt_s: f64,
    iterations: f64,
    /// Seconds from an iteration to the last first token of its prompts, in iterations as large as configured: the
    /// quantile.
    long: f64,
}

/// How prompts are computed: in how many iterations, and the seconds of the first and of all.
struct Computation {
    iterations: f64,
    first: f64,
    seconds: f64,
}

impl Backlog {
    /// Prompt tokens, with those of the requests beyond.
    fn prompt_tokens(&self, view: &View) -> u64 {
        let each_beyond = view.waiting_tokens() / u64::from(view.waiting_total().max(1));
        u64::from(self.tokens) + u64::from(self.beyond) * each_beyond
    }

    /// Whether memory or slots are short, and not only the tokens of an iteration.
    pub(super) fn is_scarce(&self) -> bool {
        self.held > 0 && self.beyond == 0
    }
}

impl TokenBudget {
    /// For iterations of at most `most` tokens.
    pub(super) fn new(law: &IterationTime, most: u32, chooses: bool) -> Self {
        let mut budget = Self {
            law: law.clone(),
            chooses,
            edges: Vec::new(),
            overloaded: Vec::new(),
            passes_most: None,
            weight: WEIGHT,
            refreshed: 0,
            held: 0.0,
            evicted: 0.0,
            pending: 0.0,
            waiting: 0.0,
            prompt_tokens: f64::from(most),
            prompt_s: law.token_seconds(u64::from(most)),
            iterations: 1.0,
            long: law.token_seconds(1),
        };
        budget.follow(law, most);
        budget
    }

    /// The same, for a law that is given and not learned. Nothing is known of the times yet, so that at first prompts may
    /// take as long as a full iteration; where the law is learned first, an engine with short ones would lose by that.
    pub(super) fn of_given(law: &IterationTime, most: u32, chooses: bool) -> Self {
        Self { long: law.token_seconds(u64::from(most)), ..Self::new(law, most, chooses) }
    }

    /// The law has changed.
    pub(super) fn follow(&mut self, law: &IterationTime, most: u32) {
        let most = u64::from(most);
        self.law.clone_from(law);
        self.edges.clear();
        self.edges.extend(law.stairs().into_iter().map(|stair| stair.last).filter(|&n| n < most));
        self.edges.push(most);
        self.overloaded.reserve(self.edges.len());
    }

    /// Evaluates the steady state, at intervals.
    pub(super) fn refresh(&mut self, view: &View, mix: impl FnOnce() -> Option<Mix>) {
        let tick = view.lanes()[0].tick();
        if !self.chooses || tick - self.refreshed < REFRESH {
            return;
        }
        self.refreshed = tick;
        let Some(mix) = mix() else { return };
        let limits = view.limits();
        let room = view.pool().tokens() as f64 / mix.held;
        let residents = room.min(f64::from(limits.max_num_seqs)).max(1.0);
        let n = u64::from(limits.token_budget);
        let configured = expected(&self.law, &mix, n, residents);
        let feedback = feedback(&self.law, &mix, n, &configured);
        let (longer, short) = (configured.decoding / configured.first_token, self.short());
        let weight = 1.0 + longer * (1.0 - short) / (1.0 + configured.elasticity * short);
        self.weight = (1.0 - feedback.clamp(0.0, MOST_FEEDBACK)) * weight.min(MOST_WEIGHT);
        self.evicted = mix.evicted;
        let steady = |rate: f64, n: u64| expected(&self.law, &Mix { rate, ..mix }, n, residents);
        self.overloaded.clear();
        self.overloaded.extend(self.edges.iter().map(|&n| steady(f64::INFINITY, n)));
        let most = self.overloaded.iter().map(|expected| expected.rate).fold(0.0, f64::max);
        if mix.rate < LOADED * most {
            self.passes_most = None;
            return;
        }
        let level = self.edges.iter().zip(&self.overloaded).filter(|(_, at)| at.rate >= (1.0 - LEVEL) * most);
        let timed = level.map(|(&n, at)| {
            let Expected { first_token, decoding, .. } = steady(mix.rate.min(LOAD * most), n);
            (first_token + decoding, n, at.prompts)
        });
        let best = timed.reduce(|best, next| if next.0 <= best.0 { next } else { best });
        self.passes_most = best.map(|(_, n, prompts)| (n, prompts));
    }

    /// Share of the recent iterations in which requests were held, but for the queue of a burst.
    pub(super) fn queued(&self) -> f64 {
        if self.passes_most.is_some() { self.held } else { 0.0 }
    }

    /// What a second of waiting for a first token weighs, in seconds of decoding.
    pub(super) fn weight(&self) -> f64 {
        self.weight
    }

    /// Share of the time until the first token that was for lack of memory or slots.
    fn short(&self) -> f64 {
        if self.pending > 0.0 { self.waiting / self.pending } else { 0.0 }
    }

    /// The token budget of an iteration with this many tokens of decodes beside the prompts to be computed.
    pub(super) fn choose(&mut self, view: &View, decodes: u32, backlog: &Backlog) -> u32 {
        let most = u64::from(view.limits().token_budget);
        self.held += (f64::from(backlog.held > 0) - self.held) / RECENT;
        let short = if backlog.is_scarce() || backlog.late { backlog.held } else { 0 };
        self.pending += f64::from(backlog.requests.saturating_add(backlog.held)) - self.pending / LONG;
        let again = self.evicted * f64::from(backlog.requests);
        self.waiting += f64::from(short) + again - self.waiting / LONG;
        let decodes = u64::from(decodes);
        if !self.chooses || backlog.tokens == 0 || decodes >= most {
            return most as u32;
        }
        let tokens = backlog.prompt_tokens(view);
        let all = (decodes + tokens).min(most);
        let at_once = self.computes(view, decodes, tokens, all - decodes);
        self.long *= if at_once.seconds > self.long { 1.0 + QUANTILE * STEP } else { 1.0 - (1.0 - QUANTILE) * STEP };
        let steady = self.passes_most.filter(|_| self.queued() > SATURATED).map(|(best, prompts)| {
            // More decodes than in balance still leave half the room to the prompts, or memory would empty.
            let least = decodes + (0.5 * prompts) as u64 + 1;
            if least <= best { best } else { self.edge_from(least).unwrap_or(most) }
        });
        let pace = |n: u64| (n - decodes) as f64 / self.law.seconds(&beside(view, decodes, n - decodes));
        let helps = |n: &u64| backlog.beyond == 0 || pace(*n) >= LEAST_PACE * pace(most);
        let n =
            steady.filter(helps).unwrap_or_else(|| self.least_delay(view, decodes, tokens, (all, &at_once), backlog));
        n.min(most) as u32
    }

    /// The first edge at or above this many tokens.
    fn edge_from(&self, tokens: u64) -> Option<u64> {
        self.edges.get(self.edges.partition_point(|&n| n < tokens)).copied()
    }

    /// The computation of this many prompt tokens beside the decodes, `each` of them in an iteration.
    fn computes(&self, view: &View, decodes: u64, tokens: u64, each: u64) -> Computation {
        let seconds = |prompts: u64| self.law.seconds(&beside(view, decodes, prompts));
        let full = (tokens - 1) / each;
        let first = seconds(each.min(tokens));
        let seconds = full as f64 * first + seconds(tokens - full * each);
        Computation { iterations: (full + 1) as f64, first, seconds }
    }

    /// The budget that delays first tokens and decodes least until the backlog, of this many prompt tokens, is computed:
    /// `all` tokens, in which that is done as `at_once`, or an edge below.
    fn least_delay(
        &self,
        view: &View,
        decodes: u64,
        tokens: u64,
        (all, at_once): (u64, &Computation),
        backlog: &Backlog,
    ) -> u64 {
        let base = if decodes > 0 { self.law.seconds(&beside(view, decodes, 0)) } else { 0.0 };
        let decoding_requests = decodes as f64 / f64::from(view.limits().decode_tokens);
        let requests = f64::from(backlog.requests + backlog.beyond).max(1.0);
        let delay = |&Computation { iterations, first, seconds }: &Computation| {
            let decoding = seconds - iterations * base;
            // The first prompt is complete after an iteration or its share of the time, the last at the end.
            let first_tokens = 0.5 * requests * (seconds + first.max(seconds / requests));
            decoding_requests * decoding + self.weight * first_tokens
        };
        let latest = if self.short() > SCARCE { f64::INFINITY } else { self.long.max(LATER * at_once.seconds) };
        let edges = self.edges.iter().rev().copied().filter(|&n| n > decodes && n < all);
        let computed = edges.map(|n| (self.computes(view, decodes, tokens, n - decodes), n));
        let delays = computed.filter(|(at, _)| at.seconds <= latest).map(|(at, n)| (delay(&at), n));
        delays.fold((delay(at_once), all), |best, next| if next.0 < best.0 { next } else { best }).1
    }

    /// What a slot of the batch is worth per iteration, and the iteration itself, in prompt tokens: two iterations take
    /// longer than one of twice the work, and that is what twice the slots save.
    pub(super) fn worth(&self, view: &View, decodes: u32, kv: u64) -> (f64, f64) {
        let slots = u64::from(decodes.max(1));
        let tokens = slots * u64::from(view.limits().decode_tokens);
        let prompts = (self.prompt_tokens / self.iterations) as u64;
        let seconds = |times: u64| {
            let (prefill_tokens, decodes, decode_kv) = (times * prompts, times * tokens, times * kv);
            self.law.seconds(&BatchShape { prefill_tokens, decodes, decode_kv, ..BatchShape::default() })
        };
        let price = (self.prompt_s / self.prompt_tokens).max(f64::MIN_POSITIVE);
        let (one, two) = (seconds(1), seconds(2));
        ((2.0 * one - two).max(0.0) / (price * slots as f64), one / price)
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
        let seconds = |n: u64| self.law.seconds(&beside(view, decodes, n - decodes));
        let most = u64::from(tokens);
        if most <= decodes || seconds(most) <= target {
            return tokens;
        }
        let mut edges = self.edges.iter().copied().filter(|&n| n > decodes && n < most);
        let first = edges.next().unwrap_or(most);
        edges.take_while(|&n| seconds(n) <= target).last().unwrap_or(first) as u32
    }

    /// Records what was planned.
    pub(super) fn settle(&mut self, view: &View, plan: &Plan) {
        if plan.is_empty() {
            return;
        }
        let keep = 1.0 - 1.0 / WINDOW;
        self.iterations = self.iterations * keep + 1.0;
        self.prompt_tokens *= keep;
        self.prompt_s *= keep;
        let decodes = u64::from(plan.decode_tokens());
        let prompts = u64::from(plan.tokens()) - decodes;
        if prompts > 0 {
            let seconds = |prompts: u64| self.law.seconds(&beside(view, decodes, prompts));
            self.prompt_tokens += prompts as f64;
            self.prompt_s += seconds(prompts) - if decodes > 0 { seconds(0) } else { 0.0 };
        }
    }
}

/// An iteration of this many prompt tokens beside the decodes.
fn beside(view: &View, decodes: u64, prefill_tokens: u64) -> BatchShape {
    BatchShape { prefill_tokens, decodes, decode_kv: view.lanes()[0].kv(), ..BatchShape::default() }
}
