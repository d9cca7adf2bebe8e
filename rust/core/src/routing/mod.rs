//! Which of several engines a request goes to: a router proposes a replica from what the replicas have reported and
//! what it has sent itself since. Absent: what a replica does with the request (scheduler/), the clock, and the
//! sending.
//!
//! A report is old when it is read, but a router's own recent choices are not: every figure of a replica is the one it
//! reported, plus what was sent to it since, less what has ended there since. Several requests may be routed before the
//! first of them has arrived anywhere.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, nearest};
use crate::lookup::BuildIdHasher;
use crate::model::RequestId;

mod door;
mod fleet;
mod forecast;
mod load;
mod prefixes;
mod rules;
#[cfg(test)]
mod tests;

pub use load::{Load, Replica};

use self::door::{Door, Due};
use self::fleet::Fleet;
use self::rules::{Proposal, Rules};

/// A replica's name, chosen by the host.
pub type ReplicaId = u64;

/// How a replica is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouterName {
    /// Any, with equal chances.
    Random,
    /// One after the other.
    RoundRobin,
    /// The one with the fewest requests sent to it that have not ended.
    LeastRequests,
    /// Of two drawn at random the one with fewer requests, as Ray Serve does.
    PowerOfTwo,
    /// The one that has reported the least share of its KV cache in use.
    LeastKv,
    /// vLLM's score for its data-parallel ranks: requests, and waiting requests weighted by how full the cache is.
    Vllm,
    /// The one that has most of the prompt cached, among those with few more requests than the mean.
    PrefixAffinity,
    /// The one on which the request is predicted to cost the least time, its own and that of the requests there, if its
    /// first token comes soon there; held at the door while none could start it.
    #[default]
    Forecast,
}

impl RouterName {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Random,
        Self::RoundRobin,
        Self::LeastRequests,
        Self::PowerOfTwo,
        Self::LeastKv,
        Self::Vllm,
        Self::PrefixAffinity,
        Self::Forecast,
    ];

    /// The name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "round-robin",
            Self::LeastRequests => "least-requests",
            Self::PowerOfTwo => "power-of-two",
            Self::LeastKv => "least-kv",
            Self::Vllm => "vllm",
            Self::PrefixAffinity => "prefix-affinity",
            Self::Forecast => "forecast",
        }
    }

    /// The router with this name.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the nearest name there is.
    pub fn parse(name: &str) -> Result<Self> {
        if let Some(found) = Self::ALL.into_iter().find(|router| router.name() == name) {
            return Ok(found);
        }
        let known = Self::ALL.map(Self::name);
        let near = nearest(name, known).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
        Err(Error::invalid("router", format!("{name:?}"), format!("one of {}{near}", known.join(", "))))
    }

    /// Whether it decides by anything of its replicas but which there are: their requests, their prefixes, or their reports.
    pub fn reads_replicas(self) -> bool {
        !matches!(self, Self::Random | Self::RoundRobin)
    }

    /// Whether it decides by what replicas report.
    pub fn reads_reports(self) -> bool {
        matches!(self, Self::LeastKv | Self::Vllm | Self::Forecast)
    }

    /// Whether it decides by which blocks of the prompt are cached where, for which it needs their hashes.
    pub fn reads_prefixes(self) -> bool {
        matches!(self, Self::PrefixAffinity | Self::Forecast)
    }
}

/// Settings of a router.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// How a replica is chosen.
    pub router: RouterName,
    /// Seed of the random choices.
    pub seed: u64,
    /// Age from which a report is stale, s. Such a replica is judged by what the router itself has sent to it, and if
    /// no report is younger, a router that reads reports falls back to power of two.
    pub stale_after: f64,
    /// By how much a replica that `prefix-affinity` chooses may exceed the mean number of requests, as a factor.
    pub affinity_load: f64,
    /// Longest predicted wait on a replica for memory or a seat, s: `forecast` holds a request at the door while it
    /// would wait longer on all of them.
    pub longest_queue: f64,
    /// Longest time to first token, s, that `forecast` keeps where it can: it then holds requests at the door for the sake of
    /// their order, and one that can no longer be in time yields to those that can. None: no request is late.
    pub ttft_target: Option<f64>,
}

impl Default for Routing {
    fn default() -> Self {
        Self {
            router: RouterName::default(),
            seed: 0,
            stale_after: 30.0,
            affinity_load: 1.25,
            longest_queue: 1.0,
            ttft_target: None,
        }
    }
}

impl Routing {
    fn validate(&self) -> Result<()> {
        for (name, value) in [("stale_after", self.stale_after), ("longest_queue", self.longest_queue)] {
            if value.is_nan() || value < 0.0 {
                return Err(Error::invalid(name, value, "must be at least 0 s"));
            }
        }
        if self.affinity_load.is_nan() || self.affinity_load < 1.0 {
            return Err(Error::invalid("affinity_load", self.affinity_load, "must be at least 1"));
        }
        if let Some(seconds) = self.ttft_target.filter(|seconds| !(seconds.is_finite() && *seconds > 0.0)) {
            return Err(Error::invalid("ttft_target", seconds, "must be finite and above 0 seconds"));
        }
        Ok(())
    }
}

/// A request as the router sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Incoming<'a> {
    /// Id, unique among the requests that have not ended.
    pub id: RequestId,
    /// Prompt length, tokens; at least 1.
    pub prompt: u32,
    /// Most output tokens; absent: the model's limit.
    pub max_tokens: Option<u32>,
    /// One for each full block of the prompt, each identifying all tokens up to there; empty if unknown.
    pub block_hashes: &'a [u64],
    /// When it arrived, ns, on the clock by which requests are routed; absent: when it was asked for first. A target for the
    /// first token counts from there.
    pub arrived_ns: Option<u64>,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The replica; none: it is held at the door, to be routed again when a replica has reported or a request has ended.
    pub replica: Option<ReplicaId>,
    /// Why it is held.
    pub hold: Option<DoorHold>,
    /// Which router decided: not the one configured, where that one knew too little.
    pub by: RouterName,
    /// When its first token is predicted, s from now; none if not predicted.
    pub ttft: Option<f64>,
    /// The probability that the replica's KV cache overflows with it; none if not predicted.
    pub overflow: Option<f64>,
    /// Prompt tokens that are assumed to be cached on the replica.
    pub cached: u32,
}

/// Why a request is held at the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoorHold {
    /// There is no replica, or all are draining.
    NoReplica,
    /// No replica could start it soon: it would wait in a queue that others might leave sooner.
    AllFull,
    /// No replica could start it in time any more: it yields to those that can be, and goes where it is started at once.
    Late,
}

impl DoorHold {
    /// The name that hosts see.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoReplica => "no-replica",
            Self::AllFull => "all-full",
            Self::Late => "late",
        }
    }
}

/// A request that was routed and has not ended.
#[derive(Clone, Copy, Debug)]
struct Routed {
    replica: ReplicaId,
    prompt: u32,
    late: bool,
}

/// Routes requests to the replicas of one model.
///
/// ```
/// use wait_core::routing::{Incoming, Load, Replica, Router, RouterName, Routing};
///
/// let mut router = Router::new(Routing { router: RouterName::LeastRequests, ..Routing::default() })?;
/// for id in 0..2 {
///     router.add_replica(id, Replica { kv_blocks: 1000, ..Replica::default() })?;
/// }
/// let first = router.route(0, &Incoming { id: 1, prompt: 100, ..Incoming::default() })?.replica;
/// let second = router.route(0, &Incoming { id: 2, prompt: 100, ..Incoming::default() })?.replica;
/// assert_eq!((first, second), (Some(0), Some(1)));
/// assert!(router.finished(5_000_000_000, 1));
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Router {
    settings: Routing,
    fleet: Fleet,
    door: Door,
    rules: Rules,
    routed: HashMap<RequestId, Routed, BuildIdHasher>,
    unknown_reports: u64,
}

impl Router {
    /// A router without replicas.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the setting that is refused.
    pub fn new(settings: Routing) -> Result<Self> {
        settings.validate()?;
        Ok(Self {
            settings,
            fleet: Fleet::new(settings.stale_after),
            door: Door::new(settings.ttft_target),
            rules: Rules::new(&settings),
            routed: HashMap::default(),
            unknown_reports: 0,
        })
    }

    /// Settings in force.
    pub fn settings(&self) -> &Routing {
        &self.settings
    }

    /// Replicas present, draining ones included.
    pub fn replicas(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.fleet.standings().iter().map(|standing| standing.id)
    }

    /// Adds a replica, or updates it if it is present (a law that was learned, more memory).
    ///
    /// # Errors
    /// [`Error::Invalid`] for a size of 0, or a model that is not that of the others. Nothing changes then.
    pub fn add_replica(&mut self, id: ReplicaId, replica: Replica) -> Result<()> {
        self.fleet.add(id, replica)
    }

    /// A replica accepts no more requests, and finishes those it has. False if there is no such replica.
    pub fn drain_replica(&mut self, id: ReplicaId) -> bool {
        self.fleet.drain(id, true)
    }

    /// A draining replica accepts requests again. False if there is no such replica.
    pub fn reopen_replica(&mut self, id: ReplicaId) -> bool {
        self.fleet.drain(id, false)
    }

    /// A replica is gone. Returns the requests that it has not ended, in ascending order, for the host to route again;
    /// none if there is no such replica.
    pub fn remove_replica(&mut self, id: ReplicaId) -> Vec<RequestId> {
        if !self.fleet.remove(id) {
            return Vec::new();
        }
        let of_it = self.routed.iter().filter(|(_, routed)| routed.replica == id);
        let mut lost: Vec<RequestId> = of_it.map(|(&id, _)| id).collect();
        lost.sort_unstable();
        for id in &lost {
            self.routed.remove(id);
        }
        lost
    }

    /// The load of a replica at `at_ns`, on the clock by which requests are routed. False, and nothing changes, if the
    /// replica is gone or a later report is known.
    ///
    /// # Errors
    /// [`Error::Invalid`] for figures that are not finite or negative.
    pub fn report(&mut self, id: ReplicaId, at_ns: u64, load: &Load) -> Result<bool> {
        load.validate()?;
        let known = self.fleet.report(id, at_ns, load);
        self.unknown_reports += u64::from(!known);
        Ok(known)
    }

    /// Reports of replicas that were gone, or older than one already known.
    pub fn unknown_reports(&self) -> u64 {
        self.unknown_reports
    }

    /// Chooses a replica, and counts the request as sent there. A request that is already present moves: it is routed
    /// again.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty prompt. Nothing changes then.
    pub fn route(&mut self, now_ns: u64, request: &Incoming) -> Result<Choice> {
        if request.prompt == 0 {
            return Err(Error::invalid("prompt", 0, "must be at least 1 token"));
        }
        self.left(now_ns, request.id);
        self.fleet.forget_stale(now_ns);
        let asked = self.settings.router;
        let blind = asked.reads_reports() && !self.fleet.any_fresh(now_ns);
        let by = if blind { RouterName::PowerOfTwo } else { asked };
        let due = self.door.due(now_ns, request.id, request.arrived_ns);
        let proposal = self.rules.propose(by, &self.fleet, now_ns, request, due.as_ref());
        Ok(self.apply(by, now_ns, request, due.as_ref(), &proposal))
    }

    fn apply(
        &mut self,
        by: RouterName,
        now_ns: u64,
        request: &Incoming,
        due: Option<&Due>,
        proposal: &Proposal,
    ) -> Choice {
        let Proposal { place, hold, ttft, overflow, cached, spare } = *proposal;
        let replica = place.map(|place| self.fleet.standings()[place].id);
        if let (Some(place), Some(replica)) = (place, replica) {
            let late = spare.is_some_and(|spare| spare < 0.0);
            let hashes = if self.settings.router.reads_prefixes() { request.block_hashes } else { &[] };
            self.fleet.send(place, (now_ns, late), request, cached, hashes);
            self.routed.insert(request.id, Routed { replica, prompt: request.prompt, late });
            self.door.leave(request.id);
        } else if let Some(due) = due {
            self.door.hold(now_ns, request.id, due, spare);
        }
        Choice { replica, hold, by, ttft, overflow, cached }
    }

    /// Whether a request was routed, or is at the door and has to be known there, and has not ended.
    pub fn knows(&self, id: RequestId) -> bool {
        self.routed.contains_key(&id) || self.door.has(id)
    }

    /// A request has ended, in whatever way, also at the door, where its client has left. False if it was neither routed
    /// nor, where there is a target, at the door.
    pub fn finished(&mut self, now_ns: u64, id: RequestId) -> bool {
        self.door.leave(id) | self.left(now_ns, id)
    }

    fn left(&mut self, now_ns: u64, id: RequestId) -> bool {
        let Some(routed) = self.routed.remove(&id) else { return false };
        self.fleet.leave(routed.replica, now_ns, routed.prompt, routed.late);
        true
    }
}
