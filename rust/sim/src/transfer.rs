//! KV that is computed elsewhere and transferred over a network.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use wait_core::{Error, Hit, Phase, Result, Scheduler};

use crate::column::Column;
use crate::columns::Columns;

/// How KV is transferred: it is sent once the engine has allocated memory for it. The link of an engine carries one transfer at a
/// time, at its whole bandwidth, and the next one afterwards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transfer {
    /// Bytes of KV a token, of all layers.
    pub bytes_per_token: f64,
    /// Bytes a second that the link of an engine carries; infinite where KV takes no time.
    pub bandwidth: f64,
    /// Further time per transfer, s.
    pub latency_s: f64,
}

impl Transfer {
    /// KV that is available immediately: the decode-only setting of arXiv 2504.11320.
    pub const INSTANT: Self = Self { bytes_per_token: 0.0, bandwidth: f64::INFINITY, latency_s: 0.0 };

    /// Time for the KV of this many tokens where nothing else is transferred, ns.
    pub fn nanos(&self, tokens: u32) -> u64 {
        ((self.latency_s + self.seconds_on_link(tokens)) * 1e9 + 0.5) as u64
    }

    /// How long the KV of this many tokens occupies a link, ns.
    pub(crate) fn nanos_on_link(&self, tokens: u32) -> u64 {
        (self.seconds_on_link(tokens) * 1e9 + 0.5) as u64
    }

    fn seconds_on_link(&self, tokens: u32) -> f64 {
        f64::from(tokens) * self.bytes_per_token / self.bandwidth
    }

    fn check(&self) -> Result<()> {
        for (name, value) in [("bytes_per_token", self.bytes_per_token), ("latency", self.latency_s)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::invalid(format!("transfer.{name}"), value, "must be finite and at least 0"));
            }
        }
        if self.bandwidth > 0.0 {
            return Ok(());
        }
        Err(Error::invalid("transfer.bandwidth", self.bandwidth, "must be above 0"))
    }
}

/// The transfers under way.
#[derive(Debug)]
pub(crate) struct Transfers {
    transfer: Option<Transfer>,
    /// When the link has carried all transfers that were begun, ns.
    free_ns: u64,
    /// (when the KV is there, request, its stamp): void once the request has left.
    ready: BinaryHeap<Reverse<(u64, u32, u32)>>,
    received: Vec<u64>,
    lost: Vec<(u64, Hit)>,
}

impl Transfers {
    pub(crate) fn new(transfer: Option<Transfer>) -> Result<Self> {
        transfer.iter().try_for_each(Transfer::check)?;
        Ok(Self { transfer, free_ns: 0, ready: BinaryHeap::new(), received: Vec::new(), lost: Vec::new() })
    }

    /// The part of a prompt that is computed elsewhere, all but its last token, and whether it comes later than the
    /// request.
    pub(crate) fn of(&self, prompt: u32) -> (Hit, bool) {
        let computed = |_| Hit { computed: prompt - 1, shared: 0, evicted: 0 };
        let later = self.transfer.is_some_and(|transfer| transfer.nanos(prompt - 1) > 0);
        (self.transfer.map(computed).unwrap_or_default(), later)
    }

    /// Requests admitted by the last plan, at `now_ns`: the transfer of their KV begins. Preempted requests have lost theirs.
    #[inline]
    pub(crate) fn follow(&mut self, scheduler: &Scheduler, columns: &Columns, now_ns: u64) {
        if let Some(transfer) = self.transfer {
            self.send(transfer, scheduler, columns, now_ns);
        }
    }

    #[cold]
    fn send(&mut self, transfer: Transfer, scheduler: &Scheduler, columns: &Columns, now_ns: u64) {
        let (plan, view) = (scheduler.last_plan(), scheduler.view());
        for chunk in plan.chunks() {
            let request = view.request(chunk.slot);
            if request.phase == Phase::Receiving {
                let (at, tokens) = (chunk.id as usize, request.prompt - 1);
                let begins_ns = now_ns.max(self.free_ns).max(columns.kv_from_ns(at));
                self.free_ns = begins_ns.saturating_add(transfer.nanos_on_link(tokens));
                let ready_ns = begins_ns.saturating_add(transfer.nanos(tokens));
                self.ready.push(Reverse((ready_ns, chunk.id as u32, columns.stamps.get(at))));
            }
        }
        self.lost.clear();
        // A request that had not received all of it will be sent it again.
        let all_there = plan.preempted().iter().filter(|&&(slot, _)| !view.request(slot).receives);
        self.lost.extend(all_there.map(|&(_, id)| (id, Hit::default())));
    }

    /// Requests whose KV the last plan's preemptions have lost: they compute it themselves.
    pub(crate) fn lost(&self) -> &[(u64, Hit)] {
        &self.lost
    }

    /// Requests whose KV has arrived by `now_ns`, not reported before.
    pub(crate) fn received(&mut self, stamps: &Column<u32>, now_ns: u64) -> &[u64] {
        self.received.clear();
        while let Some(&Reverse((_, id, stamp))) = self.ready.peek().filter(|entry| entry.0.0 <= now_ns) {
            self.ready.pop();
            if stamps.get(id as usize) == stamp {
                self.received.push(id.into());
            }
        }
        &self.received
    }

    /// When the next KV will have come.
    #[inline]
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.ready.peek().map(|entry| entry.0.0)
    }
}
