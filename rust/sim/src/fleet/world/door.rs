//! From the clients to the replicas: each request is routed, or held until the router finds a place for it.

use wait_core::routing::Incoming;

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

impl World<'_> {
    /// Asks the router again for those that it holds.
    pub(super) fn open_door(&mut self) -> Result<(), SimError> {
        if !std::mem::take(&mut self.ask_again) {
            return Ok(());
        }
        while let Some(&Held { id, sent_ns, since_ns }) = self.door.front() {
            if !self.route(id, sent_ns)? {
                break;
            }
            self.held_ns += self.now_ns - since_ns;
            self.door.pop_front();
        }
        Ok(())
    }

    /// Takes what clients send now.
    pub(super) fn send_requests(&mut self) -> Result<(), SimError> {
        while let Some((at, sent_ns)) = self.clients.send(self.now_ns, self.under_way) {
            self.under_way += 1;
            // Behind others it waits for its turn.
            if !self.door.is_empty() || !self.route(at as u32, sent_ns)? {
                self.door.push_back(Held { id: at as u32, sent_ns, since_ns: self.now_ns });
                self.held += 1;
            }
        }
        Ok(())
    }

    /// Sends a request to where the router proposes; false if that holds it.
    fn route(&mut self, id: u32, sent_ns: u64) -> Result<bool, SimError> {
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
        };
        let choice = self.router.route(self.now_ns, &incoming)?;
        let Some(place) = choice.replica else { return Ok(false) };
        let place = place as usize;
        self.replica_of[at] = place as u32;
        self.predicted_ttft_s[at] = choice.ttft.map_or(-1.0, |ttft| ttft as f32);
        self.replicas[place].inbox.push_back((id, sent_ns));
        if !self.replicas[place].computing {
            self.is_due(place);
        }
        Ok(true)
    }
}
