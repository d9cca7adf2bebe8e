//! A steady iteration allocates nothing, and a waiting request costs a bounded number of bytes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[path = "common/steady.rs"]
mod steady;

use steady::{CASES, Engine};

struct Counting;

thread_local! {
    /// The test harness allocates as well, in threads of its own: each test counts its thread alone.
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

// SAFETY: every call is forwarded unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        LIVE.set(LIVE.get() + layout.size() as i64);
        PEAK.set(PEAK.get().max(LIVE.get()));
        // SAFETY: the caller's obligations are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get() - layout.size() as i64);
        // SAFETY: the caller's obligations are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
#[cfg_attr(debug_assertions, ignore = "debug builds recount the invariants, which allocates; run with --release")]
fn a_steady_iteration_allocates_nothing() {
    for case in CASES {
        let mut engine = Engine::loaded(case, 64, 128);
        // Buffers have grown to the most that ever enter, or are preempted, at once.
        (0..60_000).for_each(|_| engine.step(1));
        let (before, served) = (CALLS.get(), *engine.scheduler.stats());
        (0..5_000).for_each(|_| engine.step(1));
        let stats = engine.scheduler.stats();
        let (admitted, finished) = (stats.admitted - served.admitted, stats.finished - served.finished);
        assert!(admitted > 4_900 && finished == 5_000, "{case}: {admitted} came and {finished} went");
        let calls = CALLS.get() - before;
        assert_eq!(calls, 0, "{case}: {calls} allocations in 5,000 iterations");
    }
}

#[test]
fn a_million_waiting_requests_take_at_most_140_mb() {
    for case in CASES {
        let mut engine = Engine::empty(case, 64, 1);
        // The curves of classes exist once one request of each has arrived.
        engine.add(128);
        let before = LIVE.get();
        PEAK.set(before);
        engine.add(1_000_000);
        let (bytes, peak) = (LIVE.get() - before, PEAK.get() - before);
        println!("{case}: {bytes} bytes, {peak} while the tables grew");
        assert!(peak < 200_000_000, "{case}: {peak} bytes while the tables grew");
        // Just after a doubling of the tables half their room is unused; a million nearly fills them.
        // With a deadline they are listed by arrival as well.
        let most = if case == "adaptive, late and tenants" { 148 } else { 140 };
        assert!(bytes <= most * 1_000_000, "{case}: {bytes} bytes for a million requests");
    }
}
