//! The replicas as the router sees them: the last report of each, and what has been sent and has ended since.

use std::collections::{HashMap, VecDeque};

use super::forecast::Pace;
use super::load::{Load, Replica};
use super::prefixes::KnownPrefixes;
use super::{Incoming, ReplicaId};
use crate::error::{Error, Result};
use crate::lookup::BuildIdHasher;

/// Mean output length while none is known, tokens.
const MEAN_OUTPUT: f64 = 256.0;

/// A request that was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) at_ns: u64,
    pub(super) prompt: u32,
    /// Prompt tokens to compute.
    pub(super) uncomputed: u32,
    /// Whether it was late for its target.
    pub(super) late: bool,
}

/// Requests and prompt tokens, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sums {
    pub(super) requests: u32,
    pub(super) prompt: u64,
}

impl Sums {
    fn add(&mut self, prompt: u32) {
        self.requests += 1;
        self.prompt += u64::from(prompt);
    }

    fn take(&mut self, prompt: u32) {
        self.requests -= 1;
        self.prompt -= u64::from(prompt);
    }
}

/// Prompt tokens that a replica still had to compute at some time: from then on it works them off.
#[derive(Clone, Copy, Debug, Default)]
struct Backlog {
    tokens: f64,
    at_ns: u64,
}

impl Backlog {
    fn at(self, now_ns: u64, per_second: f64) -> f64 {
        let seconds = now_ns.saturating_sub(self.at_ns) as f64 * 1e-9;
        (self.tokens - seconds * per_second).max(0.0)
    }
}

/// One replica.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) id: ReplicaId,
    pub(super) what: Replica,
    pub(super) drains: bool,
    /// The last report, and its time, ns.
    reported: Option<(u64, Load)>,
    /// All that was sent and has not ended.
    pub(super) in_flight: Sums,
    /// What was sent, and what has ended, since the last report.
    sent: VecDeque<Sent>,
    ended: VecDeque<(u64, u32)>,
    pub(super) since: Sums,
    pub(super) left: Sums,
    /// Late requests that were sent and have not ended, and when the last of them was sent, ns.
    late: u32,
    late_ns: Option<u64>,
    backlog: Backlog,
    /// How fast it computes beside its decodes, by its last report.
    pub(super) pace: Pace,
    pub(super) known: KnownPrefixes,
}

impl Standing {
    fn new(id: ReplicaId, what: Replica) -> Self {
        let known = KnownPrefixes::new(what.kv_blocks);
        let mut standing = Self {
            id,
            what,
            drains: false,
            reported: None,
            in_flight: Sums::default(),
            sent: VecDeque::new(),
            ended: VecDeque::new(),
            since: Sums::default(),
            left: Sums::default(),
            late: 0,
            late_ns: None,
            backlog: Backlog::default(),
            pace: Pace::default(),
            known,
        };
        standing.refresh_pace();
        standing
    }

    /// The last report, unless it is older than `stale_ns`.
    pub(super) fn fresh(&self, now_ns: u64, stale_ns: u64) -> Option<&Load> {
        let (at_ns, load) = self.reported.as_ref()?;
        (now_ns.saturating_sub(*at_ns) <= stale_ns).then_some(load)
    }

    /// Whether a late request was sent that the last report need not include yet.
    pub(super) fn has_late(&self) -> bool {
        let reported = |late_ns| self.reported.is_some_and(|(at_ns, _)| at_ns > late_ns);
        self.late_ns.is_some_and(|late_ns| !reported(late_ns))
    }

    /// Requests that this router had sent by the last report, and that had not ended then.
    fn sent_by_report(&self) -> u32 {
        (self.in_flight.requests + self.left.requests).saturating_sub(self.since.requests)
    }

    /// Prompt tokens left to compute.
    pub(super) fn backlog(&self, now_ns: u64) -> f64 {
        self.backlog.at(now_ns, self.pace.prefill_rate())
    }

    fn refresh_pace(&mut self) {
        let load = self.reported.map(|(_, load)| load).unwrap_or_default();
        self.pace = Pace::of(&self.what, load.residents, load.kv_tokens);
    }

    fn push_backlog(&mut self, sent: &Sent) {
        let tokens = self.backlog(sent.at_ns) + f64::from(sent.uncomputed);
        self.backlog = Backlog { tokens, at_ns: self.backlog.at_ns.max(sent.at_ns) };
    }

    fn send(&mut self, sent: Sent, hashes: &[u64]) {
        self.in_flight.add(sent.prompt);
        self.since.add(sent.prompt);
        self.push_backlog(&sent);
        if sent.late {
            self.late += 1;
            self.late_ns = Some(sent.at_ns);
        }
        self.sent.push_back(sent);
        if !hashes.is_empty() {
            self.known.learn(hashes);
        }
    }

    fn leave(&mut self, now_ns: u64, prompt: u32, late: bool) {
        self.in_flight.take(prompt);
        self.late -= u32::from(late);
        self.left.add(prompt);
        self.ended.push_back((now_ns, prompt));
    }

    /// What was sent or ended by `at_ns` is included in a report of that time.
    fn settle(&mut self, at_ns: u64) {
        while let Some(sent) = self.sent.front().copied().filter(|sent| sent.at_ns <= at_ns) {
            self.sent.pop_front();
            self.since.take(sent.prompt);
        }
        while let Some((_, prompt)) = self.ended.front().copied().filter(|&(ended_ns, _)| ended_ns <= at_ns) {
            self.ended.pop_front();
            self.left.take(prompt);
        }
    }

    /// Since when something is kept for a report, ns.
    fn oldest_ns(&self) -> u64 {
        let (sent, ended) = (self.sent.front().map(|sent| sent.at_ns), self.ended.front().map(|&(at_ns, _)| at_ns));
        sent.into_iter().chain(ended).min().unwrap_or(u64::MAX)
    }

    fn report(&mut self, at_ns: u64, load: &Load) -> bool {
        if self.reported.is_some_and(|(known_ns, _)| known_ns > at_ns) {
            return false;
        }
        self.reported = Some((at_ns, *load));
        self.settle(at_ns);
        self.refresh_pace();
        // Requests sent since are worked off after those in the report.
        let waiting = if self.what.receives { load.waiting.into() } else { load.waiting_tokens };
        self.backlog = Backlog { tokens: (waiting + load.prefill_tokens) as f64, at_ns };
        for at in 0..self.sent.len() {
            let sent = self.sent[at];
            self.push_backlog(&sent);
        }
        true
    }
}

/// All replicas.
#[derive(Clone, Debug)]
pub(super) struct Fleet {
    standings: Vec<Standing>,
    stale_ns: u64,
    /// Where each is, how many accept requests, and whether any of those orders its own queue by a target.
    places: HashMap<ReplicaId, usize, BuildIdHasher>,
    open: usize,
    ordered: bool,
    /// No event that is kept for a report is older, ns.
    oldest_ns: u64,
}

impl Fleet {
    pub(super) fn new(stale_after: f64) -> Self {
        Self {
            standings: Vec::new(),
            stale_ns: (stale_after * 1e9) as u64,
            places: HashMap::default(),
            open: 0,
            ordered: false,
            oldest_ns: u64::MAX,
        }
    }

    pub(super) fn standings(&self) -> &[Standing] {
        &self.standings
    }

    /// Indices of those that accept requests.
    pub(super) fn open(&self) -> impl Iterator<Item = (usize, &Standing)> + '_ {
        self.standings.iter().enumerate().filter(|(_, standing)| !standing.drains)
    }

    /// How many of them there are.
    pub(super) fn open_count(&self) -> usize {
        self.open
    }

    /// Whether any of them orders its own queue by a target.
    pub(super) fn is_ordered(&self) -> bool {
        self.ordered
    }

    pub(super) fn stale_ns(&self) -> u64 {
        self.stale_ns
    }

    /// Mean output length, tokens: the mean of what replicas have learned.
    pub(super) fn mean_output(&self) -> f64 {
        let learned = || self.standings.iter().filter_map(|standing| standing.reported?.1.mean_output);
        let (sum, count) = learned().fold((0.0, 0.0), |(sum, count), mean| (sum + mean, count + 1.0));
        if count > 0.0 { (sum / count).max(1.0) } else { MEAN_OUTPUT }
    }

    /// Estimates how many routers send to the replicas, at least 1: the requests that the replicas report, as a multiple of
    /// those that this router had sent by then.
    pub(super) fn routers(&self, now_ns: u64) -> f64 {
        let (mut all, mut own) = (0, 0);
        for standing in &self.standings {
            if let Some(load) = standing.fresh(now_ns, self.stale_ns) {
                all += u64::from(load.residents) + u64::from(load.waiting);
                own += u64::from(standing.sent_by_report());
            }
        }
        (all as f64 / own.max(1) as f64).max(1.0)
    }

    /// Whether any replica has a late request.
    pub(super) fn any_late(&self) -> bool {
        self.standings.iter().any(|standing| standing.late > 0)
    }

    /// Whether any open replica has a report that is not stale.
    pub(super) fn any_fresh(&self, now_ns: u64) -> bool {
        self.open().any(|(_, standing)| standing.fresh(now_ns, self.stale_ns).is_some())
    }

    /// Requests sent earlier than a report may be old are no longer kept for a report.
    pub(super) fn forget_stale(&mut self, now_ns: u64) {
        let Some(stale_ns) = now_ns.checked_sub(self.stale_ns.saturating_add(1)) else { return };
        if stale_ns < self.oldest_ns {
            return;
        }
        self.oldest_ns = u64::MAX;
        for standing in &mut self.standings {
            standing.settle(stale_ns);
            self.oldest_ns = self.oldest_ns.min(standing.oldest_ns());
        }
    }

    fn of(&mut self, id: ReplicaId) -> Option<&mut Standing> {
        self.places.get(&id).map(|&place| &mut self.standings[place])
    }

    /// Replicas have come, gone or changed.
    fn survey(&mut self) {
        self.places = self.standings.iter().enumerate().map(|(place, standing)| (standing.id, place)).collect();
        self.open = self.open().count();
        let ordered = self.open().any(|(_, standing)| standing.what.ttft_target.is_some());
        self.ordered = ordered;
    }

    pub(super) fn add(&mut self, id: ReplicaId, what: Replica) -> Result<()> {
        what.validate()?;
        if let Some(other) = self.standings.iter().find(|other| other.id != id && other.what.model != what.model) {
            let rule = format!("the other replicas serve {:?}: a router serves one model", other.what.model);
            return Err(Error::invalid("model", format!("{:?}", what.model), rule));
        }
        match self.of(id) {
            Some(standing) => {
                standing.known.set_capacity(what.kv_blocks);
                standing.what = what;
                standing.refresh_pace();
            }
            None => self.standings.push(Standing::new(id, what)),
        }
        self.survey();
        Ok(())
    }

    pub(super) fn drain(&mut self, id: ReplicaId, drains: bool) -> bool {
        let known = self.of(id).map(|standing| standing.drains = drains).is_some();
        self.survey();
        known
    }

    pub(super) fn remove(&mut self, id: ReplicaId) -> bool {
        let before = self.standings.len();
        self.standings.retain(|standing| standing.id != id);
        self.survey();
        self.standings.len() < before
    }

    pub(super) fn report(&mut self, id: ReplicaId, at_ns: u64, load: &Load) -> bool {
        self.of(id).is_some_and(|standing| standing.report(at_ns, load))
    }

    pub(super) fn send(&mut self, place: usize, at: (u64, bool), request: &Incoming, cached: u32, hashes: &[u64]) {
        let standing = &mut self.standings[place];
        let (at_ns, late) = at;
        self.oldest_ns = self.oldest_ns.min(at_ns);
        let uncomputed = standing.what.uncomputed(request.prompt, cached);
        standing.send(Sent { at_ns, prompt: request.prompt, uncomputed, late }, hashes);
    }

    pub(super) fn leave(&mut self, id: ReplicaId, now_ns: u64, prompt: u32, late: bool) {
        self.oldest_ns = self.oldest_ns.min(now_ns);
        if let Some(standing) = self.of(id) {
            standing.leave(now_ns, prompt, late);
        }
    }
}
