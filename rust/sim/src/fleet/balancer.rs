//! The load balancer in front of several routers.
//!
//! It gives each request to the next router, whatever conversation it belongs to: the API is stateless, and load balancers,
//! Kubernetes services among them, have no session affinity unless it is configured. Where it is, by a header that the client
//! sends, all requests of a session come to one router.

/// Not assigned yet.
const NO_ROUTER: u16 = u16::MAX;

/// The router of each request, the same in all pools.
pub(super) struct Balancer<'a> {
    /// The session of each request, as the index of one of its requests; empty: each request is a session of its own.
    sessions: &'a [u32],
    routers: u16,
    next: u16,
    /// By session; empty for a single router.
    of: Vec<u16>,
}

impl<'a> Balancer<'a> {
    pub(super) fn new(routers: usize, requests: usize, sessions: &'a [u32]) -> Self {
        let several = if routers > 1 { requests } else { 0 };
        Self { sessions, routers: routers as u16, next: 0, of: vec![NO_ROUTER; several] }
    }

    fn session(&self, id: u64) -> usize {
        self.sessions.get(id as usize).map_or(id as usize, |&session| session as usize)
    }

    /// A client sends a request: it comes to the next router, or to that of its session.
    pub(super) fn assign(&mut self, id: u64) {
        let session = self.session(id);
        if let Some(of @ &mut NO_ROUTER) = self.of.get_mut(session) {
            *of = self.next;
            self.next = (self.next + 1) % self.routers;
        }
    }

    /// The router that a request has come to.
    pub(super) fn router_of(&self, id: u64) -> usize {
        self.of.get(self.session(id)).map_or(0, |&router| router.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(routers: usize, sessions: &[u32], sent: &[u64]) -> Vec<usize> {
        let mut balancer = Balancer::new(routers, 6, sessions);
        for &id in sent {
            balancer.assign(id);
        }
        sent.iter().map(|&id| balancer.router_of(id)).collect()
    }

    #[test]
    fn requests_come_to_the_routers_in_turn() {
        assert_eq!(assigned(1, &[], &[0, 3, 1]), [0, 0, 0]);
        assert_eq!(assigned(2, &[], &[0, 3, 1, 4, 2, 5]), [0, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn all_requests_of_a_session_come_to_one_router() {
        let sessions = [0, 0, 0, 3, 3, 5];
        assert_eq!(assigned(2, &sessions, &[0, 3, 1, 4, 5, 2]), [0, 1, 0, 1, 0, 0]);
        assert_eq!(assigned(1, &sessions, &[0, 3, 1]), [0, 0, 0]);
    }
}
