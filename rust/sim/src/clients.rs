//! The clients: when each request is sent.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::requests::{Follow, LATEST_NS, Requests};

/// No request.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct Clients<'a> {
    requests: Requests<'a>,
    /// The first unsent request that follows none.
    next: usize,
    /// Requests that follow a finished one: (when they are sent, index).
    due: BinaryHeap<Reverse<(u64, u32)>>,
    /// First of the requests that follow each, and next of those that follow the same one; empty in an open loop.
    first: Vec<u32>,
    sibling: Vec<u32>,
    /// Followers that cannot be sent yet.
    pending: usize,
    /// Most requests under way.
    most: usize,
    /// When the last request ended, ns.
    freed_ns: u64,
}

impl<'a> Clients<'a> {
    pub(crate) fn new(requests: Requests<'a>, max_concurrency: Option<usize>) -> Self {
        let n = requests.follows.len();
        let (mut first, mut sibling) = (vec![NONE; n], vec![NONE; n]);
        // From the last one on, so that each list ascends.
        for (id, follow) in requests.follows.iter().enumerate().rev() {
            if let Some(Follow { after, .. }) = *follow {
                sibling[id] = std::mem::replace(&mut first[after as usize], id as u32);
            }
        }
        let pending = requests.follows.iter().flatten().count();
        let most = max_concurrency.unwrap_or(usize::MAX);
        Self { requests, next: 0, due: BinaryHeap::new(), first, sibling, pending, most, freed_ns: 0 }
    }

    /// The next request to be sent that does not follow another one, and its time.
    #[inline]
    fn peek(&self) -> Option<(u64, usize)> {
        let own = self.requests.arrivals.get(self.next).map(|arrival| (arrival.at_ns, self.next));
        let Some(&Reverse((at_ns, id))) = self.due.peek() else { return own };
        let due = (at_ns, id as usize);
        Some(own.map_or(due, |own| own.min(due)))
    }

    /// The next request that is sent by `now_ns`, and when, with this many requests under way.
    #[inline]
    pub(crate) fn send(&mut self, now_ns: u64, under_way: usize) -> Option<(usize, u64)> {
        let (at_ns, id) = self.peek().filter(|&(at_ns, _)| at_ns <= now_ns)?;
        if under_way >= self.most {
            return None;
        }
        if id == self.next {
            self.next += 1;
            while self.requests.follow(self.next).is_some() {
                self.next += 1;
            }
        } else {
            self.due.pop();
        }
        // What the client held back is sent as soon as there was room again.
        let sent_ns = if self.most == usize::MAX { at_ns } else { at_ns.max(self.freed_ns) };
        Some((id, sent_ns))
    }

    /// When the next request is sent with this many under way; none while the client holds all back.
    pub(crate) fn due_ns(&self, under_way: usize) -> Option<u64> {
        self.peek().map(|(at_ns, _)| at_ns).filter(|_| under_way < self.most)
    }

    /// Requests have finished: those that follow them will be sent.
    #[inline]
    pub(crate) fn finished(&mut self, ids: &[u64], now_ns: u64) {
        if ids.is_empty() {
            return;
        }
        self.freed_ns = now_ns;
        if self.pending > 0 {
            self.release(ids, now_ns);
        }
    }

    fn release(&mut self, ids: &[u64], now_ns: u64) {
        for &id in ids {
            let mut next = self.first[id as usize];
            while next != NONE {
                let follow = self.requests.follows[next as usize].map_or(0, |follow| follow.think_ns);
                let at_ns = (now_ns + follow).max(self.requests.arrivals[next as usize].at_ns).min(LATEST_NS);
                self.due.push(Reverse((at_ns, next)));
                self.pending -= 1;
                next = self.sibling[next as usize];
            }
        }
    }

    /// A request was refused: how many follow it, directly or indirectly, and are never sent.
    pub(crate) fn refused(&mut self, id: u64) -> usize {
        let mut lost = 0;
        let mut left: Vec<u32> = self.first.get(id as usize).copied().into_iter().collect();
        while let Some(next) = left.pop().filter(|&next| next != NONE) {
            lost += 1;
            left.extend([self.sibling[next as usize], self.first[next as usize]].iter().filter(|&&id| id != NONE));
        }
        self.pending -= lost;
        lost
    }

    /// When the next request after `after_ns` is sent that does not wait for another: one that the client holds back is
    /// no event of its own.
    pub(crate) fn next_ns(&self, after_ns: u64) -> Option<u64> {
        let own = self.requests.arrivals.get(self.next).map(|arrival| arrival.at_ns);
        let due = self.due.peek().map(|&Reverse((at_ns, _))| at_ns);
        own.into_iter().chain(due).filter(|&at_ns| at_ns > after_ns).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::Arrival;

    fn arrivals(times: &[u64]) -> Vec<Arrival> {
        let arrival = |(i, &at_ns): (usize, &u64)| Arrival { at_ns, prompt: 2 * i as u32 + 1, output: 1, label: 0 };
        times.iter().enumerate().map(arrival).collect()
    }

    #[test]
    fn turns_are_sent_after_those_they_follow_and_ties_go_by_index() {
        let arrivals = arrivals(&[5, 5, 5, 20, 20]);
        let after = |after, think_ns| Some(Follow { after, think_ns });
        let follows = [None, after(0, 10), after(0, 3), None, after(3, 0)];
        let mut clients =
            Clients::new(Requests { arrivals: &arrivals, follows: &follows, ..Requests::default() }, None);
        assert_eq!((clients.send(4, 0), clients.next_ns(0)), (None, Some(5)));
        assert_eq!((clients.send(9, 0), clients.send(9, 0)), (Some((0, 5)), None));
        clients.finished(&[0], 10);
        assert_eq!((clients.next_ns(10), clients.next_ns(13), clients.next_ns(20)), (Some(13), Some(20), None));
        // Two at 20: the lower index goes first.
        let sent: Vec<_> = std::iter::from_fn(|| clients.send(20, 0)).collect();
        assert_eq!(sent, [(2, 13), (1, 20), (3, 20)]);
        clients.finished(&[3], 20);
        assert_eq!((clients.send(20, 0), clients.send(99, 0)), (Some((4, 20)), None));
    }

    #[test]
    fn a_follower_is_not_sent_before_its_own_time() {
        let arrivals = arrivals(&[1, 50]);
        let follows = [None, Some(Follow { after: 0, think_ns: 4 })];
        let mut clients =
            Clients::new(Requests { arrivals: &arrivals, follows: &follows, ..Requests::default() }, None);
        assert_eq!(clients.send(1, 0), Some((0, 1)));
        clients.finished(&[0], 10);
        assert_eq!((clients.send(49, 0), clients.send(60, 0)), (None, Some((1, 50))));
    }

    #[test]
    fn with_a_refused_turn_the_rest_of_its_conversation_is_lost() {
        let arrivals = arrivals(&[0; 6]);
        let after = |after| Some(Follow { after, think_ns: 0 });
        let follows = [None, after(0), after(1), after(1), after(3), None];
        let mut clients =
            Clients::new(Requests { arrivals: &arrivals, follows: &follows, ..Requests::default() }, None);
        assert_eq!(clients.send(0, 0), Some((0, 0)));
        clients.finished(&[0], 7);
        assert_eq!((clients.send(7, 0), clients.send(7, 0)), (Some((5, 0)), Some((1, 7))));
        assert_eq!((clients.refused(1), clients.refused(5)), (3, 0));
    }

    #[test]
    fn what_was_held_back_is_sent_when_another_ends() {
        let arrivals = arrivals(&[0, 3]);
        let mut clients = Clients::new((&arrivals).into(), Some(1));
        assert_eq!((clients.send(5, 0), clients.send(5, 1)), (Some((0, 0)), None));
        clients.finished(&[0], 9);
        assert_eq!(clients.send(9, 0), Some((1, 9)));
    }
}
