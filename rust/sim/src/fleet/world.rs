//! The clock of a fleet, and what happens as it moves.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use wait_core::routing;

use self::begin::UNSEEN;
pub(super) use self::door::Door;
use self::door::Held;
use self::reports::Taken;
use super::balancer::Balancer;
use super::crew::Crew;
use super::pool::{Pool, Stage};
use super::replica::Replica;
use super::server::Server;
use super::{Change, ChangeKind, Fleet, Served, merged};
use crate::clients::Clients;
use crate::columns::Columns;
use crate::engine::Engine;
use crate::error::SimError;
use crate::record::Run;
use crate::requests::{LATEST_NS, Requests};

mod begin;
mod door;
mod ends;
mod reports;

/// Served by no replica.
const NO_REPLICA: u32 = u32::MAX;

pub(super) struct World<'a> {
    fleet: &'a Fleet,
    requests: Requests<'a>,
    clients: Clients<'a>,
    columns: &'a Columns<'a>,
    /// In the order in which a request passes through them.
    pools: Vec<Pool<'a>>,
    balancer: Balancer<'a>,
    replicas: Vec<Replica<'a>>,
    now_ns: u64,
    /// Ends of iterations, and when policies want to look again: (time, replica, its stamp).
    events: BinaryHeap<Reverse<(u64, u32, u32)>>,
    /// What replicas have reported and no router has received, in the order of time.
    reports: VecDeque<Taken>,
    changes: VecDeque<Change>,
    /// For how long nothing depends on an iteration that begins, ns.
    lookahead_ns: u64,
    /// Most iterations of an engine until it is collected.
    most_iterations: usize,
    /// Replicas of which an iteration is to begin, and by when the first of them, or of those that are being advanced, is to
    /// have begun.
    due: Vec<usize>,
    due_by_ns: u64,
    #[allow(clippy::vec_box)] // they are large, and move
    back: Vec<Box<Server<'a>>>,
    /// Requests routed since replicas were advanced last, and all iterations of those.
    routed: usize,
    iterations: u64,
    /// Requests whose prompts have been computed now and that decode elsewhere, and those that end with that.
    handed_over: Vec<u64>,
    over: Vec<u64>,
    under_way: usize,
    completed: usize,
    failed: usize,
    hashes: Vec<u64>,
    replica_of: Vec<u32>,
    predicted_ttft_s: Vec<f32>,
    resent: u64,
    held: u64,
    held_ns: u64,
}

impl<'a> World<'a> {
    pub(super) fn new(
        fleet: &'a Fleet,
        requests: Requests<'a>,
        stages: &'a [Stage<'a>],
        columns: &'a Columns<'a>,
    ) -> Result<Self, SimError> {
        let mut changes: Vec<Change> = fleet.changes.clone();
        changes.sort_by_key(|change| change.at_ns);
        let joins_later = |at: usize| {
            changes.iter().find(|change| change.replica == at).is_some_and(|change| change.kind == ChangeKind::Join)
        };
        let mut replicas = Vec::with_capacity(fleet.engines.len());
        let mut pools = Vec::with_capacity(stages.len());
        let mut lookahead_ns = LATEST_NS;
        for (number, stage) in stages.iter().enumerate() {
            let pool = Pool::new(stage, requests, fleet.routers)?;
            let largest = pool.largest();
            if pool.reads_reports() {
                lookahead_ns = lookahead_ns.min(fleet.staleness_ns / 2);
            }
            for at in stage.replicas.clone() {
                let (config, law) = &fleet.engines[at];
                let engine = Engine::new(&stage.setup, (config, law), pool.requests, at)?;
                lookahead_ns = lookahead_ns.min(largest.map_or(0, |largest| engine.shortest_ns(largest)));
                replicas.push(Replica::new(number, (!joins_later(at)).then(|| Box::new(Server::new(at, engine)))));
            }
            pools.push(pool);
        }
        for fails in changes.iter().filter(|change| change.kind == ChangeKind::Fail) {
            replicas[fails.replica].fails_ns.push_back(fails.at_ns);
        }
        let waits = fleet.setup.max_concurrency.is_some() || !requests.follows.is_empty();
        if let [pool] = &pools[..]
            && !waits
            && !pool.router().reads_replicas()
        {
            lookahead_ns = UNSEEN;
        }
        let mut world = Self {
            fleet,
            requests,
            clients: Clients::new(requests, fleet.setup.max_concurrency),
            columns,
            pools,
            balancer: Balancer::new(fleet.routers, requests.arrivals.len(), &fleet.sessions),
            replicas,
            now_ns: requests.arrivals.first().map_or(0, |arrival| arrival.at_ns),
            events: BinaryHeap::new(),
            reports: VecDeque::new(),
            changes: changes.into(),
            lookahead_ns,
            most_iterations: begin::most_iterations(lookahead_ns, fleet.engines.len()),
            due: Vec::new(),
            due_by_ns: u64::MAX,
            back: Vec::new(),
            routed: 0,
            iterations: 0,
            handed_over: Vec::new(),
            over: Vec::new(),
            under_way: 0,
            completed: 0,
            failed: 0,
            hashes: Vec::new(),
            replica_of: vec![NO_REPLICA; requests.arrivals.len()],
            predicted_ttft_s: vec![-1.0; requests.arrivals.len()],
            resent: 0,
            held: 0,
            held_ns: 0,
        };
        for at in 0..world.replicas.len() {
            if world.replicas[at].server.is_some() {
                world.joins(at)?;
            }
        }
        Ok(world)
    }

    /// Requests that have ended on a replica of the last pool.
    pub(super) fn completed(&self) -> usize {
        self.completed
    }

    /// Iterations so far.
    pub(super) fn iterations(&self) -> u64 {
        self.iterations
    }

    /// All that happens at the next time at which anything does, or what is due by then. False when all is done.
    pub(super) fn advance(&mut self, crew: &mut Crew<'_, 'a>) -> Result<bool, SimError> {
        while self.events.peek().is_some_and(|event| self.is_void(event.0)) {
            self.events.pop();
        }
        let arrival_ns = self.clients.due_ns(self.under_way);
        let events = [
            self.events.peek().map(|event| event.0.0),
            arrival_ns,
            self.changes.front().map(|change| change.at_ns),
            self.reports.front().map(|report| report.at_ns + self.fleet.staleness_ns / 2),
        ];
        let next_ns = events.into_iter().flatten().min();
        if self.is_ahead(next_ns, crew) {
            self.begin_iterations(crew)?;
            return Ok(true);
        }
        let Some(next_ns) = next_ns else { return self.open_gates() };
        self.now_ns = self.now_ns.max(next_ns);
        self.receive_reports()?;
        self.end_iterations();
        self.change_replicas()?;
        self.open_doors()?;
        self.hand_over()?;
        self.send_requests()?;
        self.begin_early(crew);
        Ok(true)
    }

    fn is_void(&self, (_, replica, stamp): (u64, u32, u32)) -> bool {
        self.replicas[replica as usize].stamp != stamp
    }

    fn change_replicas(&mut self) -> Result<(), SimError> {
        while let Some(&Change { replica: at, kind, .. }) =
            self.changes.front().filter(|change| change.at_ns <= self.now_ns)
        {
            self.changes.pop_front();
            let number = self.replicas[at].pool;
            let pool = &mut self.pools[number];
            pool.ask_all_again();
            let present = self.replicas[at].server.is_some();
            if kind == ChangeKind::Fail {
                self.replicas[at].fails_ns.pop_front();
            }
            match kind {
                ChangeKind::Fail if present => self.fails(at),
                ChangeKind::Drain => pool.drain_replica(at as u64, true),
                ChangeKind::Join if !present => {
                    let (config, law) = &self.fleet.engines[at];
                    // Each engine has a noise of its own.
                    let number = at + self.replicas.len() * self.replicas[at].before.len();
                    let mut engine = Engine::new(&pool.stage.setup, (config, law), pool.requests, number)?;
                    engine.now_ns = self.now_ns;
                    self.replicas[at].server = Some(Box::new(Server::new(at, engine)));
                    self.joins(at)?;
                }
                // One that drains takes requests again.
                ChangeKind::Join => {
                    pool.drain_replica(at as u64, false);
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
        pool.fronts.iter_mut().try_for_each(|front| front.router.add_replica(at as u64, what.clone()))?;
        Ok(())
    }

    /// What a replica had not ended goes to the front of the first door: where it decoded, its KV is gone.
    fn fails(&mut self, at: usize) {
        self.replicas[at].fail();
        self.due.retain(|&due| due != at);
        let fronts = &mut self.pools[self.replicas[at].pool].fronts;
        let lost: Vec<u64> = fronts.iter_mut().flat_map(|front| front.router.remove_replica(at as u64)).collect();
        self.resent += lost.len() as u64;
        self.pools[0].ask_all_again();
        for id in lost.into_iter().rev() {
            let sent_ns = match self.columns.arrival_ns.get(id as usize) {
                crate::record::NEVER_NS => self.now_ns,
                sent_ns => sent_ns,
            };
            self.columns.lose(id);
            self.replica_of[id as usize] = NO_REPLICA;
            self.pools[0].fronts[self.balancer.router_of(id)].door.push_front(Held {
                id: id as u32,
                sent_ns,
                since_ns: self.now_ns,
            });
        }
    }

    /// A refused request fails, and with it all that would have followed.
    fn reject(&mut self, id: u64) {
        let number = self.balancer.router_of(id);
        for front in self.pools.iter_mut().map(|pool| &mut pool.fronts[number]) {
            front.router.finished(self.now_ns, id);
            front.ask_again = true;
        }
        self.failed += self.clients.refused(id);
        self.under_way -= 1;
    }

    /// Nothing will happen by itself any more: gates open, and what no replica is left to serve fails. False when all is
    /// done.
    fn open_gates(&mut self) -> Result<bool, SimError> {
        let mut opened = false;
        // Unseen, engines went on after the last event.
        let engines = self.replicas.iter().filter_map(|replica| replica.server.as_ref());
        self.now_ns = engines.map(|server| server.engine.now_ns).fold(self.now_ns, u64::max);
        for at in 0..self.replicas.len() {
            if let Some(server) = &mut self.replicas[at].server
                && server.engine.open_gates()?
            {
                opened = true;
                self.is_due(at, self.now_ns);
            }
        }
        let mut fronts = self.pools.iter_mut().flat_map(|pool| &mut pool.fronts);
        if let Some(Held { id, sent_ns, .. }) = fronts.find_map(|front| front.door.pop_front()) {
            opened = true;
            self.columns.send(id.into(), sent_ns, 0);
            self.failed += 1;
            self.reject(id.into());
            // Others may be due.
            self.open_doors()?;
        }
        Ok(opened)
    }

    /// What was recorded beside the columns.
    pub(super) fn finish(self, offered: usize) -> (Run, Served) {
        let of = |replica: Replica| {
            let now = replica.server.map(|server| server.engine.finish());
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
            beside.failed = offered - beside.completed;
            beside.prompt_tokens = of_first(|run| run.prompt_tokens);
            beside.cached_tokens = of_first(|run| run.cached_tokens);
        }
        let served = Served {
            replicas,
            replica_of: self.replica_of,
            predicted_ttft_s: self.predicted_ttft_s,
            resent: self.resent,
            held: self.held,
            held_ns: self.held_ns,
        };
        (beside, served)
    }
}
