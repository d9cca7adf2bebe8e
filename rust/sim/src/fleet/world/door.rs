//! From the clients to the replicas: each request is routed, or held until a router finds a place for it.

use std::collections::VecDeque;

use wait_core::routing::{DoorHold, Incoming};

use super::World;
use crate::error::SimError;
use crate::fleet::server::OnItsWay;

/// A request at the door of a pool.
#[derive(Clone, Copy)]
pub(super) struct Held {
    pub(super) id: u32,
    /// When the pool was first sent it, and since when it is held, ns.
    pub(super) sent_ns: u64,
    pub(super) since_ns: u64,
}

/// Requests that the router holds, first come, first served; those that it found late after all others.
#[derive(Default)]
pub(in crate::fleet) struct Door {
    queue: VecDeque<Held>,
    late: VecDeque<Held>,
}

impl Door {
    pub(in crate::fleet) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.late.is_empty()
    }

    pub(super) fn push_front(&mut self, held: Held) {
        self.queue.push_front(held);
    }

    pub(super) fn pop_front(&mut self) -> Option<Held> {
        self.queue.pop_front().or_else(|| self.late.pop_front())
    }
}

impl World<'_> {
    /// Asks the routers again for those that they hold.
    pub(super) fn open_doors(&mut self) -> Result<(), SimError> {
        for pool in 0..self.pools.len() {
            for front in 0..self.pools[pool].fronts.len() {
                if std::mem::take(&mut self.pools[pool].fronts[front].ask_again) {
                    self.open_door(pool, front)?;
                }
            }
        }
        Ok(())
    }

    fn open_door(&mut self, pool: usize, front: usize) -> Result<(), SimError> {
        while let Some(&held) = self.pools[pool].fronts[front].door.queue.front() {
            match self.route(pool, held.id, held.sent_ns)? {
                None => self.held_ns += self.now_ns - held.since_ns,
                Some(DoorHold::Late) => self.pools[pool].fronts[front].door.late.push_back(held),
                Some(_) => return Ok(()),
            }
            self.pools[pool].fronts[front].door.queue.pop_front();
        }
        while let Some(&held) = self.pools[pool].fronts[front].door.late.front() {
            if self.route(pool, held.id, held.sent_ns)?.is_some() {
                break;
            }
            self.held_ns += self.now_ns - held.since_ns;
            self.pools[pool].fronts[front].door.late.pop_front();
        }
        Ok(())
    }

    /// Takes what clients send now.
    pub(super) fn send_requests(&mut self) -> Result<(), SimError> {
        while let Some((at, sent_ns)) = self.clients.send(self.now_ns, self.under_way) {
            self.under_way += 1;
            self.balancer.assign(at as u64);
            self.enter(0, at as u32, sent_ns)?;
        }
        Ok(())
    }

    /// A request is sent to a pool; behind others at the door it waits for its turn.
    pub(super) fn enter(&mut self, pool: usize, id: u32, sent_ns: u64) -> Result<(), SimError> {
        let front = self.balancer.router_of(id.into());
        let hold = if self.pools[pool].fronts[front].door.queue.is_empty() {
            let Some(hold) = self.route(pool, id, sent_ns)? else { return Ok(()) };
            Some(hold)
        } else {
            None
        };
        let held = Held { id, sent_ns, since_ns: self.now_ns };
        let door = &mut self.pools[pool].fronts[front].door;
        if hold == Some(DoorHold::Late) {
            door.late.push_back(held);
        } else {
            door.queue.push_back(held);
        }
        self.held += 1;
        Ok(())
    }

    /// Sends a request to where the router of a pool proposes; otherwise returns why it is held.
    fn route(&mut self, pool: usize, id: u32, sent_ns: u64) -> Result<Option<DoorHold>, SimError> {
        self.report_idle(pool)?;
        let (at, of) = (id as usize, pool);
        let pool = &mut self.pools[pool];
        let arrival = pool.requests.arrivals[at];
        let (config, _) = &self.fleet.engines[pool.stage.replicas.start];
        self.hashes.clear();
        if config.prefix_caching && pool.router().reads_prefixes() {
            pool.requests.block_hashes(at, config.block_size, &mut self.hashes);
            self.hashes.truncate((arrival.prompt / config.block_size) as usize);
        }
        let incoming = Incoming {
            id: id.into(),
            prompt: arrival.prompt,
            max_tokens: pool.stage.setup.max_tokens,
            block_hashes: &self.hashes,
            arrived_ns: Some(sent_ns),
        };
        let router = &mut pool.fronts[self.balancer.router_of(id.into())].router;
        let choice = router.route(self.now_ns, &incoming)?;
        let Some(place) = choice.replica else { return Ok(choice.hold) };
        let place = place as usize;
        self.replica_of[at] = place as u32;
        if of == 0 {
            // Where it decodes its first token has come.
            self.predicted_ttft_s[at] = choice.ttft.map_or(-1.0, |ttft| ttft as f32);
        }
        self.replicas[place].inbox.push_back(OnItsWay { id, sent_ns, from_ns: self.now_ns });
        self.routed += 1;
        if !self.replicas[place].computing {
            self.is_due(place, self.now_ns);
        }
        Ok(None)
    }
}
