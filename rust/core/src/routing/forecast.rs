//! `forecast`: the replica on which a request costs the least time, among those on which its first token comes soon
//! enough.
//!
//! A replica serves all its requests at once, so a request costs time for itself and for the others. Under the
//! iteration-time law the time until its first token is what the prompts before it and its own take beside the decodes
//! there, less what is cached; before that it waits for a seat, and until enough of the KV cache is free. Then each of
//! its tokens takes an iteration. The requests decoding there wait for its prompt in the meantime, and its decode
//! lengthens their iterations. It goes where the sum is least; among equals, where more of its prompt is cached, then
//! where there are fewer requests. A replica is ruled out if the first token comes later there than elsewhere, and
//! takes more than sixteen iterations of decodes. A replica that receives KV computes one token of each prompt.
//!
//! Several routers that judge replicas alike would all send to the best one, until it reports what it was sent. Where replicas
//! report more requests than this router has sent them, it looks at a part of them only, drawn at random for each request: with
//! R routers at one in R, as the power of two choices looks at two (Mitzenmacher, IEEE TPDS 12(10), 2001).
//!
//! The KV cache will hold the peak that the replica expects of its residents, plus what each request that waits or was
//! sent since adds: for a request of p prompt tokens, if outputs end at a constant rate after m tokens on average, the
//! largest of (p + h)·e^(−h/m) over the iterations h.

use super::door::Due;
use super::fleet::{Fleet, Standing};
use super::load::Replica;
use super::rules::{Draws, Proposal, cached_tokens};
use super::{DoorHold, Incoming};
use crate::model::{BatchShape, BesideDecodes};

/// Deviations from the expected peak that are kept free.
const MARGIN: f64 = 1.0;
/// A first token within as many iterations of decodes is soon enough. Over the cells of `bench/fleet.py` fourteen make the
/// latest first tokens 4 % earlier and the mean end 0.5 % later; twenty make them 9 % later and the mean end 1 % earlier (seeds 1
/// and 11 to 15). A share of the time that all decodes take would let the first tokens of long outputs come late.
const SOON: f64 = 16.0;
/// The share of a target that a request may wait on a replica. On chat at load 1.2 a fifth to a half serve as many in time,
/// and a tenth 2 to 4 % fewer.
const QUEUE: f64 = 0.25;
/// The share of a target that is left for errors of the prediction. There a fifth serves 2 to 5 % fewer in time, and a half
/// 1 to 3 % more on 16 and 64 replicas and fewer on 4.
const SPARE: f64 = 1.0 / 3.0;
/// Replicas that are looked at, at least, if there are as many.
const FEWEST: usize = 2;
/// KV tokens over which the cost of reading one is taken.
const KV_STEP: u64 = 1 << 12;
/// Costs that differ by less than this share are equal.
const EQUAL: f64 = 1e-9;

/// What is predicted of a request on a replica.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prediction {
    /// Until it is admitted, s.
    wait: f64,
    /// Until its first token, s.
    ttft: f64,
    /// An iteration of the decodes with it, s.
    iteration: f64,
    /// Until its end, s, and what it delays the others, summed.
    cost: f64,
    /// KV tokens that the cache needs with it, and their standard deviation.
    needs: f64,
    deviation: f64,
    cached: u32,
    requests: u32,
    /// Whether it is started at once: nothing waits there, and no late request was sent there since the last report. Without
    /// reports in between a replica seems to have room for more of them than it has.
    at_once: bool,
}

/// When a request is started, and when it is held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Longest wait on a replica for memory or a seat, s.
    queue: f64,
    /// Time until which its first token is to come by the prediction, s from now; infinite without a target.
    left: f64,
    /// Whether others that can be in time are at the door.
    others: bool,
}

impl Terms {
    pub(super) fn new(longest_queue: f64, due: Option<&Due>) -> Self {
        due.map_or(Self { queue: longest_queue, left: f64::INFINITY, others: false }, |due| Self {
            queue: longest_queue.min(QUEUE * due.target),
            left: due.left - SPARE * due.target,
            others: due.others,
        })
    }

    /// For how long a request can wait at the door and be in time, if a replica takes it then, s; below 0: it is late.
    fn spare(&self, found: &[(usize, Prediction)]) -> f64 {
        let taken = found.iter().map(|(_, each)| each.ttft - each.wait + each.wait.min(self.queue));
        self.left - taken.fold(f64::INFINITY, f64::min)
    }
}

pub(super) fn propose(
    fleet: &Fleet,
    turn: usize,
    now_ns: u64,
    request: &Incoming,
    terms: &Terms,
    draws: &mut Draws,
    found: &mut Vec<(usize, Prediction)>,
) -> Proposal {
    let standings = fleet.standings();
    // In their queues the order is better than at the door.
    let ordered = fleet.is_ordered();
    if !ordered && terms.others && terms.left < 0.0 {
        return Proposal::late(terms.left);
    }
    let start = turn % standings.len();
    found.clear();
    // Outputs are equally long on all replicas: what each has learned differs only by chance.
    let mean = fleet.mean_output().min(request.max_tokens.map_or(f64::INFINITY, f64::from));
    let own = Own { output: mean, holds: hold(f64::from(request.prompt), mean) };
    for place in (start..standings.len()).chain(0..start) {
        if !standings[place].drains {
            found.push((place, predict(&standings[place], fleet.stale_ns(), now_ns, request, &own)));
        }
    }
    let spare = terms.spare(found);
    if !ordered && spare < 0.0 {
        if terms.others {
            return Proposal::late(spare);
        }
        if fleet.any_late() {
            found.retain(|(_, each)| each.at_once);
        }
    }
    let shortest = found.iter().map(|(_, each)| each.wait).fold(f64::INFINITY, f64::min);
    thin(found, fleet.routers(now_ns), terms, draws);
    let earliest = found.iter().map(|(_, each)| each.ttft).fold(f64::INFINITY, f64::min);
    let latest = |each: &Prediction| earliest.max((SOON * each.iteration).min(terms.left));
    let in_time = found.iter().filter(|(_, each)| each.ttft <= latest(each));
    let best = in_time.copied().reduce(|best, each| if each.1.is_better(&best.1) { each } else { best });
    let Some((place, found)) = best else { return Proposal::late(spare) };
    let predicted = Proposal {
        ttft: Some(found.ttft).filter(|ttft| ttft.is_finite()),
        overflow: Some(exceeds(standings[place].what.tokens(), found.needs, found.deviation)),
        spare: Some(spare),
        ..Proposal::default()
    };
    if spare >= 0.0 && shortest > terms.queue && !ordered {
        return Proposal { hold: Some(DoorHold::AllFull), ..predicted };
    }
    Proposal { place: Some(place), cached: found.cached, ..predicted }
}

/// Keeps one in `routers` of the predictions, drawn at random, and that with most of the prompt cached. Keeps all of them where
/// only others meet the terms.
fn thin(found: &mut Vec<(usize, Prediction)>, routers: f64, terms: &Terms, draws: &mut Draws) {
    let keep = (libm::ceil(found.len() as f64 / routers) as usize).max(FEWEST);
    if keep >= found.len() {
        return;
    }
    let most = (0..found.len()).max_by_key(|&at| found[at].1.cached).filter(|&at| found[at].1.cached > 0);
    let kept = usize::from(most.is_some());
    if let Some(most) = most {
        found.swap(0, most);
    }
    for at in kept..keep {
        let drawn = at + draws.below(found.len() - at);
        found.swap(at, drawn);
    }
    let meets = |(_, each): &(usize, Prediction)| each.wait <= terms.queue && each.ttft <= terms.left;
    if found[..keep].iter().any(meets) || !found.iter().any(meets) {
        found.truncate(keep);
    }
}

impl Prediction {
    fn is_better(&self, other: &Self) -> bool {
        if (self.cost - other.cost).abs() > EQUAL * other.cost {
            return self.cost < other.cost;
        }
        (self.cached, other.requests) > (other.cached, self.requests)
    }
}

/// What is on a replica now: its report, plus what was sent since, less what has ended since. For a replica whose
/// report is stale, the router's own record.
#[derive(Default)]
struct Present {
    decodes: f64,
    kv: f64,
    requests: f64,
    /// Mean and deviation of the most KV tokens that they will hold.
    peak: f64,
    deviation: f64,
    /// Those that wait for memory or a seat.
    queue: f64,
    gap: f64,
    /// Whether some did when it reported.
    waits: bool,
}

fn present(standing: &Standing, stale_ns: u64, now_ns: u64, mean: f64) -> Present {
    let Some(load) = standing.fresh(now_ns, stale_ns) else {
        let requests = f64::from(standing.in_flight.requests);
        let kv = standing.in_flight.prompt as f64 + 0.5 * mean * requests;
        return Present { decodes: requests, kv, requests, peak: kv, ..Present::default() };
    };
    let (residents, waiting) = (f64::from(load.residents), f64::from(load.waiting));
    let (sent, sent_prompt) = (f64::from(standing.since.requests), standing.since.prompt as f64);
    // Those that have ended since held as much as the others.
    let entered = residents + sent;
    let stays = if entered > 0.0 { 1.0 - (f64::from(standing.left.requests) / entered).min(1.0) } else { 1.0 };
    let of_mean_prompt = |tokens: f64, requests: f64| if requests > 0.0 { hold(tokens / requests, mean) } else { 0.0 };
    let held = load.kv_tokens as f64;
    let expected = load.kv_peak.unwrap_or(held + load.prefill_tokens as f64 + 0.5 * mean * residents);
    Present {
        decodes: stays * entered,
        kv: stays * (held + sent_prompt),
        requests: stays * entered + waiting,
        peak: stays * (expected + sent * of_mean_prompt(sent_prompt, sent))
            + waiting * of_mean_prompt(load.waiting_tokens as f64, waiting),
        deviation: load.kv_deviation.unwrap_or(0.0),
        queue: (waiting + sent - f64::from(standing.left.requests)).max(0.0),
        gap: if load.waiting > 0 { load.admission_gap_ns as f64 * 1e-9 } else { 0.0 },
        waits: load.waiting > 0,
    }
}

/// Most KV tokens that a request is expected to hold.
fn hold(prompt: f64, mean: f64) -> f64 {
    if prompt >= mean { prompt } else { mean * libm::exp(prompt / mean - 1.0) }
}

/// A request, independent of the replica.
struct Own {
    /// Output tokens expected, and the most KV tokens.
    output: f64,
    holds: f64,
}

fn predict(standing: &Standing, stale_ns: u64, now_ns: u64, request: &Incoming, own: &Own) -> Prediction {
    let (what, pace, mean) = (&standing.what, &standing.pace, own.output);
    let there = present(standing, stale_ns, now_ns, mean);
    let cached = if request.block_hashes.is_empty() { 0 } else { cached_tokens(standing, request) };
    let uncomputed = f64::from(what.uncomputed(request.prompt, cached));
    let (capacity, seats) = (what.tokens(), f64::from(what.max_num_seqs));
    let decode = pace.decode(there.decodes.min(seats), there.kv.min(capacity));

    // What is cached is assumed to be held by others, and is not held twice.
    let needs = there.peak + (own.holds - f64::from(cached)).max(0.0);
    // The time until that share of what is held is left: each request holds its part for as long as its output takes.
    let lacking = (needs + MARGIN * there.deviation - capacity).max(0.0) / needs.min(capacity);
    let unseated = (there.requests + 1.0 - seats).max(0.0) / seats;
    // One that would be alone is started at once.
    let alone = there.requests < 0.5;
    let queued = (mean * decode * lacking.max(unseated)).max(there.gap * there.queue);
    let wait = if alone { 0.0 } else { queued };
    let at_once = alone || (wait == 0.0 && !there.waits && !standing.has_late());

    // Half of the iteration that is under way, then the prompts.
    let (backlog, prefill) = (standing.backlog(now_ns), pace.prefill(what, uncomputed));
    let prompts = if backlog > 0.0 { pace.prefill(what, backlog + uncomputed) } else { prefill };
    let ttft = wait + 0.5 * decode + prompts;
    let more = pace.per_decode + pace.per_kv * (f64::from(request.prompt) + 0.5 * mean);
    let iteration = decode + more;
    let delays = there.decodes * ((prefill - pace.decode).max(0.0) + mean * more);
    Prediction {
        wait,
        ttft,
        iteration,
        cost: ttft + mean * iteration + delays,
        needs,
        deviation: there.deviation,
        cached,
        requests: standing.in_flight.requests,
        at_once,
    }
}

/// The probability that a normal variable is above a limit.
fn exceeds(limit: f64, mean: f64, deviation: f64) -> f64 {
    if deviation > 0.0 {
        0.5 * libm::erfc((limit - mean) / (deviation * core::f64::consts::SQRT_2))
    } else {
        f64::from(mean > limit)
    }
}

/// How fast a replica computes beside this many decodes. What depends on them alone is computed once per report.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// An iteration of the decodes alone, s.
    decode: f64,
    /// By how much a decode without KV lengthens an iteration, s, over the range of nearby batches: the next arrival or
    /// end leaves the batches at which the law steps.
    per_decode: f64,
    /// The same for a token of KV that a decode reads.
    per_kv: f64,
    /// Prompt tokens that an iteration has room for, and how long one takes that is full, s.
    room: f64,
    full: f64,
    /// Prompt tokens a second at that.
    rate: f64,
    decodes: f64,
    kv: f64,
    /// What the law says beside them.
    beside: BesideDecodes,
}

/// For a replica whose law is not known: an iteration of 10 ms, plus as much again for each 512 tokens and 64 decodes.
/// Such replicas are compared only with one another.
fn nominal(prefill_tokens: f64, decodes: f64) -> f64 {
    0.01 * (1.0 + prefill_tokens / 512.0 + decodes / 64.0)
}

impl Pace {
    pub(super) fn of(what: &Replica, decodes: u32, kv: u64) -> Self {
        let decodes = u64::from(decodes.min(what.max_num_seqs));
        let kv = kv.min(what.tokens() as u64);
        let of = |decodes: u64, decode_kv: u64| {
            let shape = BatchShape { decodes: decodes.max(1), decode_kv, ..BatchShape::default() };
            what.iteration_time.as_ref().map_or_else(|| nominal(0.0, shape.decodes as f64), |law| law.seconds(&shape))
        };
        let most = u64::from(what.max_num_seqs).max(decodes + 1);
        let (fewer, more) = (decodes - decodes / 4, (decodes + decodes / 4 + 16).min(most));
        let room = (f64::from(what.token_budget) - decodes as f64).max(1.0);
        let decode = of(decodes, kv);
        let mut pace = Self {
            decode,
            per_decode: (of(more, kv) - of(fewer, kv)) / (more - fewer) as f64,
            per_kv: (of(decodes, kv + KV_STEP) - decode) / KV_STEP as f64,
            room,
            full: 0.0,
            rate: 0.0,
            decodes: decodes as f64,
            kv: kv as f64,
            beside: what.iteration_time.as_ref().map_or_else(BesideDecodes::default, |law| law.beside(decodes, kv)),
        };
        pace.full = pace.with_prefill(what, room);
        pace.rate = room / pace.full;
        pace
    }

    /// Prompt tokens a second.
    pub(super) fn prefill_rate(&self) -> f64 {
        self.rate
    }

    /// An iteration of this many decodes alone, s.
    fn decode(&self, decodes: f64, kv: f64) -> f64 {
        let more = self.per_decode * (decodes - self.decodes) + self.per_kv * (kv - self.kv);
        (self.decode + more).max(0.5 * self.decode)
    }

    /// Time to compute this many prompt tokens beside the decodes, s.
    fn prefill(&self, what: &Replica, tokens: f64) -> f64 {
        if tokens < self.room {
            return self.with_prefill(what, tokens.max(1.0));
        }
        let whole = (tokens / self.room).floor();
        whole * self.full + self.with_prefill(what, (tokens - whole * self.room).max(1.0))
    }

    fn with_prefill(&self, what: &Replica, tokens: f64) -> f64 {
        let law = what.iteration_time.as_ref();
        let tokens = tokens as u64;
        law.map_or_else(|| nominal(tokens as f64, self.decodes), |law| law.seconds_beside(&self.beside, tokens))
    }
}
