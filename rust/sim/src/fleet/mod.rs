//! Many engines behind a router, on one virtual clock.
//!
//! What happens next is the earliest of: an iteration ends, a request is sent, a report arrives at the router, a replica
//! fails, drains or joins. At one time all of these happen before any iteration begins, in the order of the replicas, so
//! that the result depends on nothing but the inputs. A request is routed when it is sent, and handed to its engine at
//! the engine's next iteration, as between the processes of a real server.

use std::ops::ControlFlow;
use std::thread;

use serde::{Deserialize, Serialize};
use wait_core::model::IterationTime;
use wait_core::routing::Routing;
use wait_core::{Config, Error, Result};

use crate::batch::MOST_THREADS;
use crate::columns::Columns;
use crate::error::SimError;
use crate::record::Run;
use crate::requests::Requests;
use crate::setup::Setup;

mod balancer;
mod crew;
mod merge;
mod pool;
mod replica;
mod server;
mod world;

use self::crew::{Bench, Crew};
use self::merge::merged;
use self::pool::stages;
use self::world::World;

/// What a fleet needs.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// What all replicas have in common; its configuration and law are not used.
    pub setup: Setup,
    /// Configuration and law of each replica.
    pub engines: Vec<(Config, IterationTime)>,
    /// The router; of the decode replicas, where prefill is apart.
    pub routing: Routing,
    /// How many routers of this kind there are, of each pool, at least 1. Each sees of the others' choices what replicas report.
    pub routers: usize,
    /// Session affinity of the load balancer in front of several routers: which session each request belongs to, as the index of
    /// one of its requests; those of a session come to one router. Empty: requests come to the routers in turn, as they are sent.
    pub sessions: Vec<u32>,
    /// Disaggregated serving: some replicas only compute prompts, for the others to go on from.
    pub prefill: Option<PrefillPool>,
    /// How old what the router knows of a replica is at most, ns: half of it passes between two reports of a replica, and
    /// half until one arrives. 0: with each iteration, at once. When a request ends the router sees itself.
    pub staleness_ns: u64,
    /// What happens to replicas.
    pub changes: Vec<Change>,
    /// Threads that advance engines, at least 1. The results do not depend on it.
    pub threads: usize,
}

/// Replicas that compute prompts and nothing else. With its first token a request goes on to one of the other replicas, which
/// takes memory for it, is sent its KV as `Setup::transfer` says, and decodes the rest. The link of a prefill replica carries the
/// KV of one request at a time too, in the order in which prompts are computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrefillPool {
    /// How many: the first of `Fleet::engines`.
    pub replicas: usize,
    /// Their router.
    pub routing: Routing,
}

/// Something that happens to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// When, ns.
    pub at_ns: u64,
    /// Which replica, by its place in `Fleet::engines`.
    pub replica: usize,
    /// What.
    pub kind: ChangeKind,
}

/// What happens to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// It is gone at once; its requests start over elsewhere.
    Fail,
    /// It takes no more requests, and ends those it has.
    Drain,
    /// It is there, empty. A replica whose first change this is was not there before.
    Join,
}

/// What became of the requests of a fleet.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetRun {
    /// Of all replicas: the columns as the clients saw it; counts and blocks are sums, peaks the sum of each one's own.
    pub run: Run,
    /// Which replicas served them.
    pub served: Served,
}

/// Which replicas served the requests of a fleet, and what the router did with them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Served {
    /// What was recorded of each replica, without the columns and the gaps.
    pub replicas: Vec<Run>,
    /// The replica that served each request last; `u32::MAX` where none did.
    pub replica_of: Vec<u32>,
    /// When the router predicted the first token of each, s after it was sent on; -1 where it predicted nothing.
    pub predicted_ttft_s: Vec<f32>,
    /// Times a request was sent again because its replica was gone.
    pub resent: u64,
    /// Requests held at the router's door.
    pub held: u64,
    /// Sum of the times they were held, ns.
    pub held_ns: u64,
}

/// Most replicas.
const MOST_REPLICAS: usize = 1 << 16;

/// Most routers.
const MOST_ROUTERS: usize = 1 << 10;

/// How often the callback is called, in iterations.
const CALLBACK_EVERY: u64 = 1 << 15;

/// Runs all requests to their end. `callback(completed)` is called now and then and may stop the run.
///
/// # Errors
/// [`SimError`] for refused settings or requests, an interruption, or a policy that stalls.
pub fn fleet<'a>(
    fleet: &Fleet,
    requests: impl Into<Requests<'a>>,
    mut callback: impl FnMut(usize) -> ControlFlow<()>,
) -> std::result::Result<FleetRun, SimError> {
    let offered = requests.into();
    offered.check()?;
    fleet.setup.check(offered.arrivals.len())?;
    fleet.check(offered.arrivals.len())?;
    let arrivals = &offered.ended(fleet.setup.max_tokens);
    let stages = stages(fleet, arrivals);
    let grouped = fleet.engines.iter().any(|(config, _)| !config.kv_groups.is_empty());
    let columns = Columns::new(arrivals, grouped, fleet.prefill.is_some());
    let mut world = World::new(fleet, Requests { arrivals, ..offered }, &stages, &columns)?;
    let bench = Bench::new(&columns);
    let (beside, served) = thread::scope(|scope| {
        let mut crew = Crew::new(scope, &bench, fleet.threads.min(fleet.engines.len()));
        let mut next_call = CALLBACK_EVERY;
        while world.advance(&mut crew)? {
            if world.iterations() >= next_call {
                next_call = world.iterations() + CALLBACK_EVERY;
                if callback(world.completed()).is_break() {
                    return Err(SimError::Interrupted {
                        completed: world.completed(),
                        offered: offered.arrivals.len(),
                    });
                }
            }
        }
        let _ = callback(world.completed());
        Ok(world.finish(offered.arrivals.len()))
    })?;
    Ok(FleetRun { run: columns.join(beside, offered.arrivals), served })
}

impl Fleet {
    fn check(&self, requests: usize) -> Result<()> {
        let replicas = self.engines.len();
        if replicas == 0 || replicas > MOST_REPLICAS {
            return Err(Error::invalid("replicas", replicas, format!("must be between 1 and {MOST_REPLICAS}")));
        }
        let block_size = self.engines[0].0.block_size;
        let caches = self.engines.iter().any(|(config, _)| config.prefix_caching);
        if let Some((config, _)) = self.engines.iter().find(|(config, _)| caches && config.block_size != block_size) {
            let rule = format!("{block_size} on another replica: hashes stand for blocks of one size");
            return Err(Error::invalid("block_size", config.block_size, rule));
        }
        if let Some(PrefillPool { replicas: prefill, .. }) = self.prefill {
            if prefill == 0 || prefill >= replicas {
                let rule = format!("must be at least 1, and leave some of the {replicas} replicas to decode");
                return Err(Error::invalid("prefill_replicas", prefill, rule));
            }
            if self.setup.transfer.is_none() {
                return Err(Error::invalid(
                    "transfer",
                    "none",
                    "must be given: KV goes from prefill to decode replicas",
                ));
            }
            if self.engines[prefill..].iter().any(|(config, _)| config.prefix_caching) {
                let rule = "must be off on decode replicas: all KV comes from prefill replicas";
                return Err(Error::invalid("prefix_caching", true, rule));
            }
        }
        for (name, value, most) in [("threads", self.threads, MOST_THREADS), ("routers", self.routers, MOST_ROUTERS)] {
            if !(1..=most).contains(&value) {
                return Err(Error::invalid(name, value, format!("must be between 1 and {most}")));
            }
        }
        if !self.sessions.is_empty() && self.sessions.len() != requests {
            return Err(Error::invalid(
                "sessions",
                self.sessions.len(),
                format!("must be {requests}, one for each request"),
            ));
        }
        if let Some(session) = self.sessions.iter().find(|&&session| session as usize >= requests) {
            return Err(Error::invalid(
                "sessions",
                session,
                format!("must be below {requests}, the index of a request"),
            ));
        }
        if let Some(change) = self.changes.iter().find(|change| change.replica >= replicas) {
            return Err(Error::invalid("changes.replica", change.replica, format!("must be below {replicas}")));
        }
        Ok(())
    }
}
