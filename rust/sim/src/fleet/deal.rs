//! Which of several routers each request comes to.
//!
//! A load balancer stands in front of them. It gives each request to the next one, whatever conversation it belongs to: the API
//! is stateless, a request does not say what came before it, and balancers, Kubernetes services among them, have no session
//! affinity unless it is configured. Where it is, by a header that the client sends, the requests of one session come to one
//! router.

/// Not dealt yet.
const NO_ROUTER: u16 = u16::MAX;

/// The router of each request, the same in all pools.
pub(super) struct Deal<'a> {
    /// Which session each request belongs to, as the index of one of its requests; empty: each is one of its own.
    sessions: &'a [u32],
    routers: u16,
    next: u16,
    /// By session; empty for a single router.
    of: Vec<u16>,
}

impl<'a> Deal<'a> {
    pub(super) fn new(routers: usize, requests: usize, sessions: &'a [u32]) -> Self {
        let several = if routers > 1 { requests } else { 0 };
        Self { sessions, routers: routers as u16, next: 0, of: vec![NO_ROUTER; several] }
    }

    fn session(&self, id: u64) -> usize {
        self.sessions.get(id as usize).map_or(id as usize, |&session| session as usize)
    }

    /// A client sends a request: it comes to the next router, or to that of its session.
    pub(super) fn deal(&mut self, id: u64) {
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

    fn dealt(routers: usize, sessions: &[u32], sent: &[u64]) -> Vec<usize> {
        let mut deal = Deal::new(routers, 6, sessions);
        for &id in sent {
            deal.deal(id);
        }
        sent.iter().map(|&id| deal.router_of(id)).collect()
    }

    #[test]
    fn requests_are_dealt_in_the_order_in_which_they_are_sent() {
        assert_eq!(dealt(1, &[], &[0, 3, 1]), [0, 0, 0]);
        assert_eq!(dealt(2, &[], &[0, 3, 1, 4, 2, 5]), [0, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn those_of_a_session_come_to_one_router() {
        let sessions = [0, 0, 0, 3, 3, 5];
        assert_eq!(dealt(2, &sessions, &[0, 3, 1, 4, 5, 2]), [0, 1, 0, 1, 0, 0]);
        assert_eq!(dealt(1, &sessions, &[0, 3, 1]), [0, 0, 0]);
    }
}
