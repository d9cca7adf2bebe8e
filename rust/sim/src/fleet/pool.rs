//! Pools of replicas: one that serves requests whole, or one that computes prompts and, behind it, one that decodes.

use std::borrow::Cow;
use std::ops::Range;

use wait_core::Result;
use wait_core::routing::{Router, RouterName, Routing};

use super::Fleet;
use super::world::Door;
use crate::requests::{Arrival, Requests};
use crate::setup::{Lengths, Setup};

/// What the replicas of a pool do of each request.
pub(super) struct Stage<'a> {
    pub(super) setup: Cow<'a, Setup>,
    pub(super) arrivals: Cow<'a, [Arrival]>,
    routing: Routing,
    pub(super) replicas: Range<usize>,
}

/// The stages of a request whose `arrivals` are as clients send them.
pub(super) fn stages<'a>(fleet: &'a Fleet, arrivals: &'a [Arrival]) -> Vec<Stage<'a>> {
    let (setup, all) = (&fleet.setup, fleet.engines.len());
    let Some(prefill) = fleet.prefill else {
        let (setup, arrivals) = (Cow::Borrowed(setup), Cow::Borrowed(arrivals));
        return vec![Stage { setup, arrivals, routing: fleet.routing, replicas: 0..all }];
    };
    let prompts = arrivals.iter().map(|arrival| Arrival { output: 1, ..*arrival });
    // What was learned is learned of whole outputs.
    let first = Setup { lengths: Lengths::Known, max_tokens: Some(1), learned: None, transfer: None, ..setup.clone() };
    // The first token is the end of the prompt then, the KV of which is still to be computed.
    let rest = arrivals.iter().map(|arrival| Arrival {
        prompt: arrival.prompt.saturating_add(1),
        output: (arrival.output - 1).max(1),
        ..*arrival
    });
    let second = Setup { max_tokens: setup.max_tokens.map(|most| (most - 1).max(1)), ..setup.clone() };
    vec![
        Stage {
            setup: Cow::Owned(first),
            arrivals: prompts.collect(),
            routing: prefill.routing,
            replicas: 0..prefill.replicas,
        },
        Stage {
            setup: Cow::Owned(second),
            arrivals: rest.collect(),
            // First tokens come from the others.
            routing: Routing { ttft_target: None, ..fleet.routing },
            replicas: prefill.replicas..all,
        },
    ]
}

/// One of the routers of a pool, and the requests that it holds. It sees what all replicas report, and of all else only what it
/// has sent itself.
pub(super) struct Front {
    pub(super) router: Router,
    pub(super) door: Door,
    /// Whether anything has happened that the router may decide by, since it held one last.
    pub(super) ask_again: bool,
}

/// A pool while it serves.
pub(super) struct Pool<'a> {
    pub(super) stage: &'a Stage<'a>,
    /// As this stage has them.
    pub(super) requests: Requests<'a>,
    pub(super) fronts: Vec<Front>,
}

impl<'a> Pool<'a> {
    pub(super) fn new(stage: &'a Stage<'a>, requests: Requests<'a>, routers: usize) -> Result<Self> {
        let front = |number: usize| {
            // Each draws for itself.
            let routing = Routing { seed: stage.routing.seed.wrapping_add(number as u64), ..stage.routing };
            Ok(Front { router: Router::new(routing)?, door: Door::default(), ask_again: false })
        };
        Ok(Self {
            stage,
            requests: Requests { arrivals: &stage.arrivals, ..requests },
            fronts: (0..routers).map(front).collect::<Result<_>>()?,
        })
    }

    /// Something has happened that all routers may decide by.
    pub(super) fn ask_all_again(&mut self) {
        self.fronts.iter_mut().for_each(|front| front.ask_again = true);
    }

    /// A replica takes no more requests, or takes them again.
    pub(super) fn drain_replica(&mut self, id: u64, drains: bool) {
        for Front { router, .. } in &mut self.fronts {
            if drains {
                router.drain_replica(id)
            } else {
                router.reopen_replica(id)
            };
        }
    }

    /// Whether a router holds a request.
    pub(super) fn holds(&self) -> bool {
        self.fronts.iter().any(|front| !front.door.is_empty())
    }

    /// How its routers choose.
    pub(super) fn router(&self) -> RouterName {
        self.stage.routing.router
    }

    /// The request of the most tokens.
    pub(super) fn largest(&self) -> Option<u64> {
        let tokens = |arrival: &Arrival| u64::from(arrival.prompt) + u64::from(arrival.output);
        let largest = self.requests.arrivals.iter().enumerate().max_by_key(|(_, arrival)| tokens(arrival));
        largest.map(|(at, _)| at as u64)
    }

    /// Whether its router decides by what replicas report.
    pub(super) fn reads_reports(&self) -> bool {
        self.router().reads_reports()
    }
}
