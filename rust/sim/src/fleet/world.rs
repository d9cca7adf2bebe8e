//! The clock of a fleet, and what happens as it moves.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use wait_core::routing::{self, Router};

use self::door::{Door, Held};
use self::reports::InTransit;
use super::replica::Replica;
use super::{Change, ChangeKind, Fleet, FleetRun, Served, merged};
use crate::clients::Clients;
use crate::engine::{Begun, Engine};
use crate::error::SimError;
use crate::recorder::Columns;
use crate::requests::{Arrival, Requests};

mod door;
mod reports;

/// Served by no replica.
const NO_REPLICA: u32 = u32::MAX;

pub(super) struct World<'a> {
    fleet: &'a Fleet,
    requests: Requests<'a>,
    clients: Clients<'a>,
    columns: Columns<'a>,
    router: Router,
    replicas: Vec<Replica<'a>>,
    now_ns: u64,
    /// Ends of iterations, and when policies want to look again: (time, replica, its stamp).
    events: BinaryHeap<Reverse<(u64, u32, u32)>>,
    reports: VecDeque<InTransit>,
    changes: VecDeque<Change>,
    door: Door,
    /// Whether anything has happened that the router may decide by, since it held one last.
    ask_again: bool,
    /// Replicas of which an iteration is to begin now.
    due: Vec<usize>,
    under_way: usize,
    failed: usize,
    hashes: Vec<u64>,
    replica_of: Vec<u32>,
    predicted_ttft_s: Vec<f32>,
    resent: u64,
    held: u64,
    held_ns: u64,
}

impl<'a> World<'a> {
    pub(super) fn new(fleet: &'a Fleet, requests: Requests<'a>) -> Result<Self, SimError> {
        let mut changes: Vec<Change> = fleet.changes.clone();
        changes.sort_by_key(|change| change.at_ns);
        let joins_later = |at: usize| {
            changes.iter().find(|change| change.replica == at).is_some_and(|change| change.kind == ChangeKind::Join)
        };
        let mut replicas = Vec::with_capacity(fleet.engines.len());
        let mut grouped = false;
        for (at, (config, law)) in fleet.engines.iter().enumerate() {
            let engine = Engine::new(&fleet.setup, (config, law), requests, at)?;
            grouped |= !engine.scheduler.view().layout().groups().is_empty();
            replicas.push(Replica::new((!joins_later(at)).then_some(engine)));
        }
        let mut world = Self {
            fleet,
            requests,
            clients: Clients::new(requests, fleet.setup.max_concurrency),
            columns: Columns::new(requests.arrivals, grouped),
            router: Router::new(fleet.routing)?,
            replicas,
            now_ns: requests.arrivals.first().map_or(0, |arrival| arrival.at_ns),
            events: BinaryHeap::new(),
            reports: VecDeque::new(),
            changes: changes.into(),
            door: Door::default(),
            ask_again: false,
            due: Vec::new(),
            under_way: 0,
            failed: 0,
            hashes: Vec::new(),
            replica_of: vec![NO_REPLICA; requests.arrivals.len()],
            predicted_ttft_s: vec![-1.0; requests.arrivals.len()],
            resent: 0,
            held: 0,
            held_ns: 0,
        };
        for at in 0..world.replicas.len() {
            if world.replicas[at].engine.is_some() {
                world.joins(at)?;
            }
        }
        Ok(world)
    }

    pub(super) fn completed(&self) -> usize {
        self.replicas.iter().map(Replica::completed).sum()
    }

    /// All that happens at the next time at which anything does. False when all is done.
    pub(super) fn advance(&mut self) -> Result<bool, SimError> {
        while self.events.peek().is_some_and(|event| self.is_void(event.0)) {
            self.events.pop();
        }
        let arrival_ns = self.clients.due_ns(self.under_way);
        let events = [
            self.events.peek().map(|event| event.0.0),
            arrival_ns,
            self.changes.front().map(|change| change.at_ns),
            self.reports.front().map(|report| report.arrives_ns),
        ];
        let Some(next_ns) = events.into_iter().flatten().min() else { return self.open_gates() };
        self.now_ns = self.now_ns.max(next_ns);
        self.receive_reports()?;
        self.end_iterations()?;
        self.change_replicas()?;
        self.open_door()?;
        self.send_requests()?;
        self.begin_iterations()?;
        // What is reported at once may open the door, which may have iterations begin.
        while self.reports.front().is_some_and(|report| report.arrives_ns <= self.now_ns) {
            self.receive_reports()?;
            self.open_door()?;
            self.begin_iterations()?;
        }
        Ok(true)
    }

    fn is_void(&self, (_, replica, stamp): (u64, u32, u32)) -> bool {
        self.replicas[replica as usize].stamp != stamp
    }

    fn end_iterations(&mut self) -> Result<(), SimError> {
        while let Some(&Reverse(event)) = self.events.peek().filter(|event| event.0.0 <= self.now_ns) {
            self.events.pop();
            if self.is_void(event) {
                continue;
            }
            let at = event.1 as usize;
            let replica = &mut self.replicas[at];
            if replica.computing
                && let Some(engine) = &mut replica.engine
            {
                replica.computing = false;
                let finished = engine.end(&mut self.columns)?;
                for &id in finished {
                    self.router.finished(self.now_ns, id);
                }
                self.under_way -= finished.len();
                self.ask_again |= !finished.is_empty();
                self.clients.finished(finished, self.now_ns);
            }
            self.is_due(at);
        }
        Ok(())
    }

    /// An iteration of a replica is to begin now.
    fn is_due(&mut self, at: usize) {
        if !std::mem::replace(&mut self.replicas[at].due, true) {
            self.due.push(at);
        }
    }

    fn change_replicas(&mut self) -> Result<(), SimError> {
        while let Some(&Change { replica: at, kind, .. }) =
            self.changes.front().filter(|change| change.at_ns <= self.now_ns)
        {
            self.changes.pop_front();
            self.ask_again = true;
            let present = self.replicas[at].engine.is_some();
            match kind {
                ChangeKind::Fail if present => self.fails(at),
                ChangeKind::Drain => drop(self.router.drain_replica(at as u64)),
                ChangeKind::Join if !present => {
                    let (config, law) = &self.fleet.engines[at];
                    // Each engine has a noise of its own.
                    let number = at + self.replicas.len() * self.replicas[at].before.len();
                    let mut engine = Engine::new(&self.fleet.setup, (config, law), self.requests, number)?;
                    engine.now_ns = self.now_ns;
                    self.replicas[at].engine = Some(engine);
                    self.joins(at)?;
                }
                // One that drains takes requests again.
                ChangeKind::Join => {
                    self.router.reopen_replica(at as u64);
                }
                ChangeKind::Fail => {}
            }
        }
        Ok(())
    }

    fn joins(&mut self, at: usize) -> Result<(), SimError> {
        let (config, law) = &self.fleet.engines[at];
        let what = routing::Replica {
            model: String::new(),
            kv_blocks: config.kv_blocks,
            block_size: config.block_size,
            max_num_seqs: config.max_num_seqs,
            token_budget: config.token_budget,
            iteration_time: Some(law.clone()),
            ttft_target: config.ttft_target,
        };
        Ok(self.router.add_replica(at as u64, what)?)
    }

    /// What a replica had not ended goes to the front of the door.
    fn fails(&mut self, at: usize) {
        self.replicas[at].fail();
        self.due.retain(|&due| due != at);
        let lost = self.router.remove_replica(at as u64);
        self.resent += lost.len() as u64;
        for id in lost.into_iter().rev() {
            let sent_ns = match self.columns.arrival_ns[id as usize] {
                crate::record::NEVER_NS => self.now_ns,
                sent_ns => sent_ns,
            };
            self.columns.lose(id);
            self.replica_of[id as usize] = NO_REPLICA;
            self.door.push_front(Held { id: id as u32, sent_ns, since_ns: self.now_ns });
        }
    }

    fn begin_iterations(&mut self) -> Result<(), SimError> {
        let mut due = std::mem::take(&mut self.due);
        due.sort_unstable();
        for at in due.drain(..) {
            self.replicas[at].due = false;
            self.begin(at)?;
        }
        self.due = due;
        Ok(())
    }

    fn begin(&mut self, at: usize) -> Result<(), SimError> {
        let Some(mut engine) = self.replicas[at].engine.take() else { return Ok(()) };
        engine.now_ns = self.now_ns;
        while let Some((id, sent_ns)) = self.replicas[at].inbox.pop_front() {
            if !engine.add(&mut self.columns, id as usize, sent_ns)? {
                engine.recorder.reject(1);
                self.reject(id.into());
            }
        }
        let stale_ns = self.fleet.staleness_ns / 2;
        let reads = self.fleet.routing.router.reads_reports();
        let last_ns = self.replicas[at].reported.map(|(taken_ns, _)| taken_ns);
        if reads && last_ns.is_none_or(|last_ns| self.now_ns >= last_ns + stale_ns) {
            self.report(at, &mut engine);
        }
        let (clients, door, now_ns) = (&self.clients, &self.door, self.now_ns);
        let coming = || !door.is_empty() || clients.next_ns(now_ns).is_some();
        let begun = engine.begin(&mut self.columns, now_ns, coming)?;
        let refused: Vec<u64> = engine.refused().collect();
        engine.recorder.reject(refused.len());
        let replica = &mut self.replicas[at];
        replica.stamp += 1;
        let event = |at_ns: u64, stamp: u32| Reverse((at_ns, at as u32, stamp));
        match begun {
            Begun::Computes => {
                replica.computing = true;
                self.events.push(event(engine.now_ns, replica.stamp));
            }
            Begun::Idle(wake_ns) => {
                self.events.extend(wake_ns.map(|wake_ns| event(wake_ns, replica.stamp)));
                // What it said while it was busy is not left standing.
                if reads {
                    self.report(at, &mut engine);
                }
            }
        }
        self.replicas[at].engine = Some(engine);
        for id in refused {
            self.reject(id);
        }
        Ok(())
    }

    /// A refused request fails, and with it all that would have followed.
    fn reject(&mut self, id: u64) {
        self.router.finished(self.now_ns, id);
        self.failed += self.clients.refused(id);
        self.under_way -= 1;
        self.ask_again = true;
    }

    /// Nothing will happen by itself any more: gates open, and what no replica is left to serve fails. False when all is
    /// done.
    fn open_gates(&mut self) -> Result<bool, SimError> {
        let mut opened = false;
        for at in 0..self.replicas.len() {
            if let Some(engine) = &mut self.replicas[at].engine
                && engine.open_gates()?
            {
                opened = true;
                self.is_due(at);
            }
        }
        if let Some(Held { id, sent_ns, .. }) = self.door.pop_front() {
            opened = true;
            self.columns.send(id.into(), sent_ns, 0);
            self.failed += 1;
            self.reject(id.into());
            // Others may be due.
            self.open_door()?;
        }
        self.begin_iterations()?;
        Ok(opened)
    }

    pub(super) fn finish(self, offered: &[Arrival]) -> FleetRun {
        let of = |replica: Replica| {
            let now = replica.engine.map(Engine::finish);
            merged(replica.before.into_iter().chain(now).collect())
        };
        let mut replicas: Vec<_> = self.replicas.into_iter().map(of).collect();
        // By far the largest part, which is not kept twice.
        let gaps: Vec<_> = replicas.iter_mut().map(|run| std::mem::take(&mut run.gaps)).collect();
        let mut beside = merged(replicas.clone());
        beside.gaps = gaps.concat();
        beside.failed += self.failed;
        FleetRun {
            run: self.columns.join(beside, offered),
            served: Served {
                replicas,
                replica_of: self.replica_of,
                predicted_ttft_s: self.predicted_ttft_s,
                resent: self.resent,
                held: self.held,
                held_ns: self.held_ns,
            },
        }
    }
}
