//! The routers that are known from elsewhere, and the random choices.

use super::door::Due;
use super::fleet::{Fleet, Standing};
use super::forecast::{Prediction, Terms};
use super::{DoorHold, Incoming, RouterName, Routing, forecast};

/// What a router proposes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Proposal {
    /// Place of the replica in the fleet.
    pub(super) place: Option<usize>,
    pub(super) hold: Option<DoorHold>,
    pub(super) ttft: Option<f64>,
    pub(super) overflow: Option<f64>,
    pub(super) cached: u32,
    /// For how long it could wait and be in time, s; below 0: it is late. None where nothing is predicted.
    pub(super) spare: Option<f64>,
}

impl Proposal {
    pub(super) fn held(hold: DoorHold) -> Self {
        Self { hold: Some(hold), ..Self::default() }
    }

    /// Held by so much too late, s.
    pub(super) fn late(spare: f64) -> Self {
        Self { spare: Some(spare), ..Self::held(DoorHold::Late) }
    }

    pub(super) fn to(place: usize) -> Self {
        Self { place: Some(place), ..Self::default() }
    }
}

/// Random numbers: the state of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
#[derive(Clone, Debug)]
pub(super) struct Draws(u64);

impl Draws {
    /// A number in `0..n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let once = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let twice = (once ^ (once >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(twice ^ (twice >> 31)) * n as u128) >> 64) as usize
    }
}

/// What routers remember from choice to choice.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    draws: Draws,
    /// Choices so far: ties are broken in turn.
    turn: usize,
    affinity_load: f64,
    longest_queue: f64,
    /// Predictions for the replicas, recomputed each time.
    predictions: Vec<(usize, Prediction)>,
}

impl Rules {
    pub(super) fn new(settings: &Routing) -> Self {
        let Routing { seed, affinity_load, longest_queue, .. } = *settings;
        Self { draws: Draws(seed), turn: 0, affinity_load, longest_queue, predictions: Vec::new() }
    }

    pub(super) fn propose(
        &mut self,
        by: RouterName,
        fleet: &Fleet,
        now_ns: u64,
        request: &Incoming,
        due: Option<&Due>,
    ) -> Proposal {
        let open = fleet.open_count();
        if open == 0 {
            return Proposal { spare: due.map(|due| due.left), ..Proposal::held(DoorHold::NoReplica) };
        }
        self.turn += 1;
        let turn = self.turn - 1;
        let nth = |n: usize| fleet.open().nth(n).map_or(0, |(place, _)| place);
        match by {
            RouterName::Random => Proposal::to(nth(self.draws.below(open))),
            RouterName::RoundRobin => Proposal::to(nth(turn % open)),
            RouterName::LeastRequests => Proposal::to(least(fleet, turn, requests)),
            RouterName::PowerOfTwo => {
                let first = self.draws.below(open);
                // Another than the first, if there is one.
                let second = (first + 1 + self.draws.below(open.max(2) - 1)) % open;
                let (first, second) = (nth(first), nth(second));
                let of = |place: usize| fleet.standings()[place].in_flight.requests;
                Proposal::to(if of(second) < of(first) { second } else { first })
            }
            RouterName::LeastKv => {
                Proposal::to(least(fleet, turn, |standing| kv_usage(standing, now_ns, fleet.stale_ns())))
            }
            RouterName::Vllm => {
                Proposal::to(least(fleet, turn, |standing| vllm_score(standing, now_ns, fleet.stale_ns())))
            }
            RouterName::PrefixAffinity => self.affinity(fleet, turn, open, request),
            RouterName::Forecast => {
                let terms = Terms::new(self.longest_queue, due);
                let (draws, found) = (&mut self.draws, &mut self.predictions);
                forecast::propose(fleet, turn, now_ns, request, &terms, draws, found)
            }
        }
    }

    fn affinity(&self, fleet: &Fleet, turn: usize, open: usize, request: &Incoming) -> Proposal {
        let all: u32 = fleet.open().map(|(_, standing)| standing.in_flight.requests).sum();
        // With this request; the mean rounded up, so that one replica is always within.
        let most = libm::ceil(self.affinity_load * f64::from(all + 1) / open as f64) as u32;
        let within = |standing: &Standing| standing.in_flight.requests < most;
        let known = |standing: &Standing| standing.known.matching(request.block_hashes) as f64;
        let place = least(fleet, turn, |standing| {
            let cached = if within(standing) { known(standing) } else { -1.0 };
            // Fewer requests among equals: there are fewer than 2^32 of them.
            requests(standing) / f64::from(u32::MAX) - cached
        });
        Proposal { cached: cached_tokens(&fleet.standings()[place], request), ..Proposal::to(place) }
    }
}

/// Index of the open replica with the least score. Ties are broken in turn.
pub(super) fn least(fleet: &Fleet, turn: usize, score: impl Fn(&Standing) -> f64) -> usize {
    let standings = fleet.standings();
    let start = turn % standings.len();
    let (mut best, mut least) = (None, f64::INFINITY);
    for place in (start..standings.len()).chain(0..start) {
        if standings[place].drains {
            continue;
        }
        let score = score(&standings[place]);
        if best.is_none() || score < least {
            (best, least) = (Some(place), score);
        }
    }
    best.unwrap_or(start)
}

fn requests(standing: &Standing) -> f64 {
    f64::from(standing.in_flight.requests)
}

/// Prompt tokens that are assumed to be cached on a replica; at least one is left to compute.
pub(super) fn cached_tokens(standing: &Standing, request: &Incoming) -> u32 {
    let blocks = standing.known.matching(request.block_hashes) as u64;
    (blocks * u64::from(standing.what.block_size)).min(u64::from(request.prompt) - 1) as u32
}

/// The reported share of the KV cache in use: scorers that read a gauge know no more.
fn kv_usage(standing: &Standing, now_ns: u64, stale_ns: u64) -> f64 {
    let free = standing.fresh(now_ns, stale_ns).map_or(standing.what.kv_blocks, |load| load.free_blocks);
    1.0 - f64::from(free) / f64::from(standing.what.kv_blocks)
}

/// vLLM 0.32's score of a data-parallel rank (v1/engine/core_client.py), with one client: what was sent since the last report
/// counts as waiting.
fn vllm_score(standing: &Standing, now_ns: u64, stale_ns: u64) -> f64 {
    let (waiting, running) = standing.fresh(now_ns, stale_ns).map_or((0, 0), |load| (load.waiting, load.residents));
    let waiting = f64::from(waiting + standing.since.requests);
    let pressure = (kv_usage(standing, now_ns, stale_ns) - 0.5).max(0.0);
    requests(standing).max(waiting + f64::from(running)) + 6.0 * waiting * pressure
}
