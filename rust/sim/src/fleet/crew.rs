//! Threads that advance engines.
//!
//! An engine is often advanced within microseconds, less than it takes to wake a thread, so threads look for the next one for a
//! while before they sleep; and where other programs need the cores, one thread may well be faster than several, which is tried
//! now and then. Which of them advances an engine, and when, decides nothing: each depends on itself alone.

use std::collections::VecDeque;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope, Thread};
use std::time::{Duration, Instant};

use super::server::Server;
use crate::columns::Columns;

/// How often a thread looks for work before it lets others run, and before it sleeps.
const LOOKS: u32 = 1 << 10;
const YIELDS: u32 = 1 << 8;

/// How long each way is tried, and for how long the faster one is kept.
const TRIAL: Duration = Duration::from_millis(3);
const KEPT: Duration = Duration::from_millis(100);
/// Engines that go through so many iterations at a time are worth another thread in any case.
const MANY: usize = 16;

/// What the threads share.
pub(super) struct Bench<'a> {
    columns: &'a Columns<'a>,
    sent: Mutex<VecDeque<Box<Server<'a>>>>,
    #[allow(clippy::vec_box)] // they are large, and move
    advanced: Mutex<Vec<Box<Server<'a>>>>,
    /// How many no thread has taken yet, and how many have not been advanced.
    left: AtomicUsize,
    under_way: AtomicUsize,
    closes: AtomicBool,
}

impl<'a> Bench<'a> {
    pub(super) fn new(columns: &'a Columns<'a>) -> Self {
        Self {
            columns,
            sent: Mutex::default(),
            advanced: Mutex::default(),
            left: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            closes: AtomicBool::new(false),
        }
    }

    fn take(&self) -> Option<Box<Server<'a>>> {
        let mut sent = lock(&self.sent);
        self.left.store(sent.len().saturating_sub(1), Ordering::Relaxed);
        sent.pop_front()
    }

    /// Advances engines until each has been taken by a thread.
    fn work(&self) {
        while self.left.load(Ordering::Acquire) > 0 {
            let Some(mut server) = self.take() else { return };
            let done = Done(&self.under_way);
            server.advance(self.columns);
            lock(&self.advanced).push(server);
            drop(done);
        }
    }

    fn serve(&self) {
        loop {
            let mut looks = 0;
            while self.left.load(Ordering::Acquire) == 0 {
                if self.closes.load(Ordering::Acquire) {
                    return;
                }
                looks += 1;
                match looks {
                    ..LOOKS => spin_loop(),
                    LOOKS.. if looks < LOOKS + YIELDS => thread::yield_now(),
                    _ => thread::park(),
                }
            }
            self.work();
        }
    }
}

/// One engine is no longer under way, even if the thread that advanced it panics.
struct Done<'b>(&'b AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The threads beside the one that runs the fleet.
pub(super) struct Crew<'b, 'a> {
    bench: &'b Bench<'a>,
    threads: Vec<Thread>,
    /// Sent and not collected; those that are not shared are advanced then.
    out: usize,
    #[allow(clippy::vec_box)] // they are large, and move
    kept: Vec<Box<Server<'a>>>,
    pace: Pace,
}

/// Whether threads pay.
struct Pace {
    /// Engines are shared with the other threads.
    shared: bool,
    /// Both ways are being tried.
    tries: bool,
    since: Instant,
    iterations: usize,
    /// Iterations a second by one thread, at the last trial.
    alone: f64,
}

impl Pace {
    fn new() -> Self {
        Self { shared: false, tries: true, since: Instant::now(), iterations: 0, alone: 0.0 }
    }

    /// So many engines went through so many iterations.
    fn note(&mut self, engines: usize, iterations: usize) {
        if iterations >= MANY * engines {
            *self = Self { shared: true, ..Self::new() };
            return;
        }
        self.iterations += iterations;
        let spent = self.since.elapsed();
        if spent < if self.tries { TRIAL } else { KEPT } {
            return;
        }
        let rate = self.iterations as f64 / spent.as_secs_f64();
        match (self.tries, self.shared) {
            (true, false) => (self.alone, self.shared) = (rate, true),
            (true, true) => (self.tries, self.shared) = (false, rate > self.alone),
            (false, _) => (self.tries, self.shared) = (true, false),
        }
        (self.since, self.iterations) = (Instant::now(), 0);
    }
}

impl<'b, 'a> Crew<'b, 'a> {
    pub(super) fn new<'scope>(scope: &'scope Scope<'scope, '_>, bench: &'b Bench<'a>, threads: usize) -> Self
    where
        'b: 'scope,
    {
        let threads = (1..threads).map(|_| scope.spawn(|| bench.serve()).thread().clone()).collect();
        Self { bench, threads, out: 0, kept: Vec::new(), pace: Pace::new() }
    }

    /// Advances an engine, now or when all are collected.
    pub(super) fn send(&mut self, server: Box<Server<'a>>) {
        self.out += 1;
        if !self.pace.shared || self.threads.is_empty() {
            self.kept.push(server);
            return;
        }
        self.bench.under_way.fetch_add(1, Ordering::Relaxed);
        let mut sent = lock(&self.bench.sent);
        sent.push_back(server);
        self.bench.left.store(sent.len(), Ordering::Release);
        drop(sent);
        self.threads[self.out % self.threads.len()].unpark();
    }

    /// Whether engines were sent that are not collected.
    pub(super) fn is_busy(&self) -> bool {
        self.out > 0
    }

    /// All that were sent, in whatever order.
    #[allow(clippy::vec_box)] // they are large, and move
    pub(super) fn collect(&mut self, into: &mut Vec<Box<Server<'a>>>) {
        let count = std::mem::take(&mut self.out);
        self.kept.iter_mut().for_each(|server| server.advance(self.bench.columns));
        into.append(&mut self.kept);
        if self.threads.is_empty() || count == 0 {
            return;
        }
        self.bench.work();
        let mut looks = 0_u32;
        while self.bench.under_way.load(Ordering::Acquire) > 0 {
            looks = looks.saturating_add(1);
            if looks < LOOKS { spin_loop() } else { thread::yield_now() }
        }
        into.append(&mut lock(&self.bench.advanced));
        assert!(into.len() == count, "a thread that advanced an engine has panicked");
        self.pace.note(count, into.iter().map(|server| server.iterations).sum());
    }
}

impl Drop for Crew<'_, '_> {
    fn drop(&mut self) {
        self.bench.closes.store(true, Ordering::Release);
        self.threads.iter().for_each(Thread::unpark);
    }
}
