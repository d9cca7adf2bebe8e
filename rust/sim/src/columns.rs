//! For each request a row of what happened to it, whichever engine serves it.

use crate::column::Column;
use crate::record::{NEVER_NS, Run};
use crate::requests::Arrival;

/// In no lane.
pub(crate) const NO_LANE: u16 = u16::MAX;

/// The record of each request, by its index.
#[derive(Debug)]
pub(crate) struct Columns<'a> {
    pub(crate) arrivals: &'a [Arrival],
    pub(crate) arrival_ns: Column<u64>,
    predicted_wait_ns: Column<u64>,
    pub(crate) admitted_ns: Column<u64>,
    pub(crate) first_token_ns: Column<u64>,
    pub(crate) finished_ns: Column<u64>,
    pub(crate) preemptions: Column<u32>,
    /// Lane of each request, and time of its last token; the time is valid while it is in none.
    pub(crate) lane_of: Column<u16>,
    pub(crate) last_token_ns: Column<u64>,
    /// Tokens before the last chunk of each request, by which its blocks divide; empty with one group of full attention.
    pub(crate) chunk_start: Column<u32>,
    /// How often each has left a lane, or the cache.
    pub(crate) stamps: Column<u32>,
    /// From when on the engine that has computed its prompt has its link free for its KV, ns; empty where none does.
    kv_from_ns: Column<u64>,
}

impl<'a> Columns<'a> {
    /// `grouped`: whether some engine has a cache of other groups than one of full attention. `apart`: whether prompts are
    /// computed by other engines.
    pub(crate) fn new(arrivals: &'a [Arrival], grouped: bool, apart: bool) -> Self {
        let n = arrivals.len();
        Self {
            arrivals,
            arrival_ns: Column::new(NEVER_NS, n),
            predicted_wait_ns: Column::new(0, n),
            admitted_ns: Column::new(NEVER_NS, n),
            first_token_ns: Column::new(NEVER_NS, n),
            finished_ns: Column::new(NEVER_NS, n),
            preemptions: Column::new(0, n),
            lane_of: Column::new(NO_LANE, n),
            last_token_ns: Column::new(NEVER_NS, n),
            chunk_start: if grouped { Column::new(0, n) } else { Column::new(0, 0) },
            stamps: Column::new(0, n),
            kv_from_ns: Column::new(0, if apart { n } else { 0 }),
        }
    }

    /// One that has its first token was sent before: it goes on elsewhere.
    pub(crate) fn send(&self, id: u64, at_ns: u64, predicted_wait_ns: u64) {
        if self.first_token_ns.get(id as usize) != NEVER_NS {
            return;
        }
        self.arrival_ns.set(id as usize, at_ns);
        self.predicted_wait_ns.set(id as usize, predicted_wait_ns);
    }

    /// A request that ended on one engine continues on another, which may be sent its KV from `kv_from_ns` on.
    pub(crate) fn hand_over(&self, id: u64, kv_from_ns: u64) {
        self.finished_ns.set(id as usize, NEVER_NS);
        self.kv_from_ns.set(id as usize, kv_from_ns);
    }

    /// From when on the KV of a request may be sent, ns.
    pub(crate) fn kv_from_ns(&self, row: usize) -> u64 {
        if self.kv_from_ns.is_empty() { 0 } else { self.kv_from_ns.get(row) }
    }

    /// Requests that have ended.
    pub(crate) fn finished(&self) -> usize {
        self.finished_ns.iter().filter(|&ns| ns != NEVER_NS).count()
    }

    /// What an engine did for a request is lost with it: the request starts over elsewhere.
    pub(crate) fn lose(&self, id: u64) {
        let id = id as usize;
        self.first_token_ns.set(id, NEVER_NS);
        self.admitted_ns.set(id, NEVER_NS);
        self.lane_of.set(id, NO_LANE);
        self.stamps.count(id);
    }

    /// The columns with everything recorded beside them. `offered` are the outputs before `max_tokens` cut them.
    pub(crate) fn join(self, beside: Run, offered: &[Arrival]) -> Run {
        // They are the same slice where nothing is cut.
        let offered = if std::ptr::eq(self.arrivals, offered) { &[] } else { offered };
        let finished = self.finished_ns.iter().map(|ns| ns != NEVER_NS);
        let outputs = self.arrivals.iter().zip(offered);
        let cut = finished.zip(outputs).filter(|&(done, (real, offered))| done && real.output < offered.output);
        Run {
            finished_by_length: cut.count(),
            prompt: self.arrivals.iter().map(|arrival| arrival.prompt).collect(),
            output: self.arrivals.iter().map(|arrival| arrival.output).collect(),
            arrival_ns: self.arrival_ns.into_vec(),
            predicted_wait_ns: self.predicted_wait_ns.into_vec(),
            admitted_ns: self.admitted_ns.into_vec(),
            first_token_ns: self.first_token_ns.into_vec(),
            finished_ns: self.finished_ns.into_vec(),
            preemptions: self.preemptions.into_vec(),
            ..beside
        }
    }
}
