//! From the clients to the replicas: each request is routed, or held until the router finds a place for it.

use std::collections::VecDeque;

use wait_core::routing::{DoorHold, Incoming};

use super::World;
use crate::error::SimError;

/// A request at the door.
#[derive(Clone, Copy)]
pub(super) struct Held {
    pub(super) id: u32,
    /// When the client sent it, and since when it is held, ns.
    pub(super) sent_ns: u64,
    pub(super) since_ns: u64,
}

/// Requests that the router holds, first come first served; those that it has found late after all others.
#[derive(Default)]
pub(super) struct Door {
    queue: VecDeque<Held>,
    late: VecDeque<Held>,
}

impl Door {
    pub(super) fn is_empty(&self) -> bool {
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
    /// Asks the router again for those that it holds.
    pub(super) fn open_door(&mut self) -> Result<(), SimError> {
        if !std::mem::take(&mut self.ask_again) {
            return Ok(());
        }
        while let Some(&held) = self.door.queue.front() {
            match self.route(held.id, held.sent_ns)? {
                None => self.held_ns += self.now_ns - held.since_ns,
                Some(DoorHold::Late) => self.door.late.push_back(held),
                Some(_) => return Ok(()),
            }
            self.door.queue.pop_front();
        }
        while let Some(&held) = self.door.late.front() {
            if self.route(held.id, held.sent_ns)?.is_some() {
                break;
            }
            self.held_ns += self.now_ns - held.since_ns;
            self.door.late.pop_front();
        }
        Ok(())
    }

    /// Takes what clients send now.
    pub(super) fn send_requests(&mut self) -> Result<(), SimError> {
        while let Some((at, sent_ns)) = self.clients.send(self.now_ns, self.under_way) {
            self.under_way += 1;
            let held = Held { id: at as u32, sent_ns, since_ns: self.now_ns };
            // Behind others it waits for its turn.
            if self.door.queue.is_empty() {
                match self.route(held.id, sent_ns)? {
                    None => continue,
                    Some(DoorHold::Late) => self.door.late.push_back(held),
                    Some(_) => self.door.queue.push_back(held),
                }
            } else {
                self.door.queue.push_back(held);
            }
            self.held += 1;
        }
        Ok(())
    }

    /// Sends a request to where the router proposes; else why that holds it.
    fn route(&mut self, id: u32, sent_ns: u64) -> Result<Option<DoorHold>, SimError> {
        self.report_idle()?;
        let (at, setup) = (id as usize, &self.fleet.setup);
        let arrival = self.requests.arrivals[at];
        let (config, _) = &self.fleet.engines[0];
        self.hashes.clear();
        if self.fleet.routing.router.reads_prefixes() && config.prefix_caching {
            self.requests.block_hashes(at, config.block_size, &mut self.hashes);
            self.hashes.truncate((arrival.prompt / config.block_size) as usize);
        }
        let incoming = Incoming {
            id: id.into(),
            prompt: arrival.prompt,
            max_tokens: setup.max_tokens,
            block_hashes: &self.hashes,
            arrived_ns: Some(sent_ns),
        };
        let choice = self.router.route(self.now_ns, &incoming)?;
        let Some(place) = choice.replica else { return Ok(choice.hold) };
        let place = place as usize;
        self.replica_of[at] = place as u32;
        self.predicted_ttft_s[at] = choice.ttft.map_or(-1.0, |ttft| ttft as f32);
        self.replicas[place].inbox.push_back((id, sent_ns));
        if !self.replicas[place].computing {
            self.is_due(place);
        }
        Ok(None)
    }
}
