//! The clock of a fleet, and what happens as it moves.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use wait_core::routing;

pub(super) use self::door::Door;
use self::door::Held;
use self::reports::InTransit;
use super::pool::{Pool, Stage};
use super::replica::Replica;
use super::{Change, ChangeKind, Fleet, FleetRun, Served, merged};
use crate::clients::Clients;
use crate::engine::{Begun, Engine};
use crate::error::SimError;
use crate::record::Run;
use crate::recorder::Columns;
use crate::requests::{Arrival, Requests};

mod door;
mod ends;
mod reports;

/// Served by no replica.
const NO_REPLICA: u32 = u32::MAX;

pub(super) struct World<'a> {
    fleet: &'a Fleet,
    requests: Requests<'a>,
    clients: Clients<'a>,
    columns: Columns<'a>,
    /// In the order in which a request passes through them.
    pools: Vec<Pool<'a>>,
    replicas: Vec<Replica<'a>>,
    now_ns: u64,
    /// Ends of iterations, and when policies want to look again: (time, replica, its stamp).
    events: BinaryHeap<Reverse<(u64, u32, u32)>>,
    reports: VecDeque<InTransit>,
    changes: VecDeque<Change>,
    /// Replicas of which an iteration is to begin now.
    due: Vec<usize>,
    /// Requests whose prompts have been computed now and that decode elsewhere, and those that end with that.
    handed_over: Vec<u64>,
    ended: Vec<u64>,
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
    pub(super) fn new(fleet: &'a Fleet, requests: Requests<'a>, stages: &'a [Stage<'a>]) -> Result<Self, SimError> {
        let mut changes: Vec<Change> = fleet.changes.clone();
        changes.sort_by_key(|change| change.at_ns);
        let joins_later = |at: usize| {
            changes.iter().find(|change| change.replica == at).is_some_and(|change| change.kind == ChangeKind::Join)
        };
        let mut replicas = Vec::with_capacity(fleet.engines.len());
        let mut grouped = false;
        let mut pools = Vec::with_capacity(stages.len());
        for (number, stage) in stages.iter().enumerate() {
            let pool = Pool::new(stage, requests)?;
            for at in stage.replicas.clone() {
                let (config, law) = &fleet.engines[at];
                let engine = Engine::new(&stage.setup, (config, law), pool.requests, at)?;
                grouped |= !engine.scheduler.view().layout().groups().is_empty();
                replicas.push(Replica::new(number, (!joins_later(at)).then(|| Box::new(engine))));
            }
            pools.push(pool);
        }
        let mut world = Self {
            fleet,
            requests,
            clients: Clients::new(requests, fleet.setup.max_concurrency),
            columns: Columns::new(requests.arrivals, grouped),
            pools,
            replicas,
            now_ns: requests.arrivals.first().map_or(0, |arrival| arrival.at_ns),
            events: BinaryHeap::new(),
            reports: VecDeque::new(),
            changes: changes.into(),
            due: Vec::new(),
            handed_over: Vec::new(),
            ended: Vec::new(),
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
        let last = self.pools.len() - 1;
        self.replicas.iter().filter(|replica| replica.pool == last).map(Replica::completed).sum()
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
        self.open_doors()?;
        self.hand_over()?;
        self.send_requests()?;
        self.begin_iterations()?;
        // What is reported at once may open the door, which may have iterations begin.
        while self.reports.front().is_some_and(|report| report.arrives_ns <= self.now_ns) {
            self.receive_reports()?;
            self.open_doors()?;
            self.begin_iterations()?;
        }
        Ok(true)
    }

    fn is_void(&self, (_, replica, stamp): (u64, u32, u32)) -> bool {
        self.replicas[replica as usize].stamp != stamp
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
            let number = self.replicas[at].pool;
            let pool = &mut self.pools[number];
            pool.ask_again = true;
            let present = self.replicas[at].engine.is_some();
            match kind {
                ChangeKind::Fail if present => self.fails(at),
                ChangeKind::Drain => drop(pool.router.drain_replica(at as u64)),
                ChangeKind::Join if !present => {
                    let (config, law) = &self.fleet.engines[at];
                    // Each engine has a noise of its own.
                    let number = at + self.replicas.len() * self.replicas[at].before.len();
                    let mut engine = Engine::new(&pool.stage.setup, (config, law), pool.requests, number)?;
                    engine.now_ns = self.now_ns;
                    self.replicas[at].engine = Some(Box::new(engine));
                    self.joins(at)?;
                }
                // One that drains takes requests again.
                ChangeKind::Join => {
                    pool.router.reopen_replica(at as u64);
                }
                ChangeKind::Fail => {}
            }
        }
        Ok(())
    }

    fn joins(&mut self, at: usize) -> Result<(), SimError> {
        let (config, law) = &self.fleet.engines[at];
        let pool = &mut self.pools[self.replicas[at].pool];
        let what = routing::Replica {
            model: String::new(),
            kv_blocks: config.kv_blocks,
            block_size: config.block_size,
            max_num_seqs: config.max_num_seqs,
            token_budget: config.token_budget,
            iteration_time: Some(law.clone()),
            ttft_target: config.ttft_target,
            receives: pool.stage.setup.transfer.is_some(),
        };
        Ok(pool.router.add_replica(at as u64, what)?)
    }

    /// What a replica had not ended goes to the front of the first door: where it decoded, its KV is gone.
    fn fails(&mut self, at: usize) {
        self.replicas[at].fail();
        self.due.retain(|&due| due != at);
        let lost = self.pools[self.replicas[at].pool].router.remove_replica(at as u64);
        self.resent += lost.len() as u64;
        self.pools[0].ask_again = true;
        for id in lost.into_iter().rev() {
            let sent_ns = match self.columns.arrival_ns[id as usize] {
                crate::record::NEVER_NS => self.now_ns,
                sent_ns => sent_ns,
            };
            self.columns.lose(id);
            self.replica_of[id as usize] = NO_REPLICA;
            self.pools[0].door.push_front(Held { id: id as u32, sent_ns, since_ns: self.now_ns });
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
        let reads = self.pools[self.replicas[at].pool].reads_reports();
        let last_ns = self.replicas[at].reported.map(|(taken_ns, _)| taken_ns);
        if reads && last_ns.is_none_or(|last_ns| self.now_ns >= last_ns + stale_ns) {
            self.report(at, &mut engine);
        }
        let (clients, pools, replicas, now_ns) = (&self.clients, &self.pools, &self.replicas, self.now_ns);
        let before = &replicas[..pools[replicas[at].pool].stage.replicas.start];
        let coming = || {
            pools.iter().any(|pool| !pool.door.is_empty())
                || clients.next_ns(now_ns).is_some()
                || before.iter().any(|replica| replica.engine.is_some() && !replica.is_idle())
        };
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
        for pool in &mut self.pools {
            pool.router.finished(self.now_ns, id);
            pool.ask_again = true;
        }
        self.failed += self.clients.refused(id);
        self.under_way -= 1;
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
        if let Some(Held { id, sent_ns, .. }) = self.pools.iter_mut().find_map(|pool| pool.door.pop_front()) {
            opened = true;
            self.columns.send(id.into(), sent_ns, 0);
            self.failed += 1;
            self.reject(id.into());
            // Others may be due.
            self.open_doors()?;
        }
        self.begin_iterations()?;
        Ok(opened)
    }

    pub(super) fn finish(self, offered: &[Arrival]) -> FleetRun {
        let of = |replica: Replica| {
            let now = replica.engine.map(|engine| engine.finish());
            merged(replica.before.into_iter().chain(now).collect())
        };
        let mut replicas: Vec<_> = self.replicas.into_iter().map(of).collect();
        // By far the largest part, which is not kept twice.
        let gaps: Vec<_> = replicas.iter_mut().map(|run| std::mem::take(&mut run.gaps)).collect();
        let mut beside = merged(replicas.clone());
        beside.gaps = gaps.concat();
        beside.failed += self.failed;
        if let [first, _] = &self.pools[..] {
            // What goes on to a decode replica has not ended before, and its prompt is counted once.
            let of_first = |count: fn(&Run) -> u64| replicas[first.stage.replicas.clone()].iter().map(count).sum();
            beside.completed = self.columns.finished();
            beside.failed = offered.len() - beside.completed;
            beside.prompt_tokens = of_first(|run| run.prompt_tokens);
            beside.cached_tokens = of_first(|run| run.cached_tokens);
        }
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
