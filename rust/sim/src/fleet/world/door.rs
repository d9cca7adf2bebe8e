//! From the clients to the replicas: each request is routed, or held until a router finds a place for it.

use wait_core::routing::Incoming;

use super::World;
use crate::error::SimError;

/// A request at the door of a pool.
#[derive(Clone, Copy)]
pub(in crate::fleet) struct Held {
    pub(super) id: u32,
    /// When the pool was first sent it, and since when it is held, ns.
    pub(super) sent_ns: u64,
    pub(super) since_ns: u64,
}

impl World<'_> {
    /// Asks the routers again for those that they hold.
    pub(super) fn open_doors(&mut self) -> Result<(), SimError> {
        for pool in 0..self.pools.len() {
            if !std::mem::take(&mut self.pools[pool].ask_again) {
                continue;
            }
            while let Some(&Held { id, sent_ns, since_ns }) = self.pools[pool].door.front() {
                if !self.route(pool, id, sent_ns)? {
                    break;
                }
                self.held_ns += self.now_ns - since_ns;
                self.pools[pool].door.pop_front();
            }
        }
        Ok(())
    }

    /// Takes what clients send now.
    pub(super) fn send_requests(&mut self) -> Result<(), SimError> {
        while let Some((at, sent_ns)) = self.clients.send(self.now_ns, self.under_way) {
            self.under_way += 1;
            self.enter(0, at as u32, sent_ns)?;
        }
        Ok(())
    }

    /// A request is sent to a pool; behind others at the door it waits for its turn.
    pub(super) fn enter(&mut self, pool: usize, id: u32, sent_ns: u64) -> Result<(), SimError> {
        if !self.pools[pool].door.is_empty() || !self.route(pool, id, sent_ns)? {
            self.pools[pool].door.push_back(Held { id, sent_ns, since_ns: self.now_ns });
            self.held += 1;
        }
        Ok(())
    }

    /// Sends a request to where the router of a pool proposes; false if that holds it.
    fn route(&mut self, pool: usize, id: u32, sent_ns: u64) -> Result<bool, SimError> {
        self.report_idle(pool)?;
        let (at, of) = (id as usize, pool);
        let pool = &mut self.pools[pool];
        let arrival = pool.requests.arrivals[at];
        let (config, _) = &self.fleet.engines[pool.stage.replicas.start];
        self.hashes.clear();
        if config.prefix_caching && pool.router.settings().router.reads_prefixes() {
            pool.requests.block_hashes(at, config.block_size, &mut self.hashes);
            self.hashes.truncate((arrival.prompt / config.block_size) as usize);
        }
        let incoming = Incoming {
            id: id.into(),
            prompt: arrival.prompt,
            max_tokens: pool.stage.setup.max_tokens,
            block_hashes: &self.hashes,
        };
        let choice = pool.router.route(self.now_ns, &incoming)?;
        let Some(place) = choice.replica else { return Ok(false) };
        let place = place as usize;
        self.replica_of[at] = place as u32;
        if of == 0 {
            // Where it decodes its first token has come.
            self.predicted_ttft_s[at] = choice.ttft.map_or(-1.0, |ttft| ttft as f32);
        }
        self.replicas[place].inbox.push_back((id, sent_ns));
        if !self.replicas[place].computing {
            self.is_due(place);
        }
        Ok(true)
    }
}
