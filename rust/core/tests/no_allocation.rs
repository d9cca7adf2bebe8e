//! A steady iteration allocates nothing, and a waiting request costs a bounded number of bytes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use wait_core::{Config, LengthHint, Report, Request, Scheduler};

struct Counting;

thread_local! {
    /// The test harness allocates as well, in threads of its own: each test counts its thread alone.
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static LIVE: Cell<i64> = const { Cell::new(0) };
}

// SAFETY: every call is forwarded unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        LIVE.set(LIVE.get() + layout.size() as i64);
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

fn scheduler(policy: &str, running: u64) -> Scheduler {
    let settings = serde_json::json!({
        "policy": policy,
        "kv_blocks": running * 64,
        "max_num_seqs": running,
        "token_budget": 4 * running,
        "max_model_len": 1024,
        "types": [{"prompt": 40, "output": 300, "rate": 1.0}],
    });
    let serde_json::Value::Object(settings) = settings else { unreachable!() };
    Scheduler::new(&Config::from_map(settings).unwrap()).unwrap()
}

fn request(id: u64) -> Request {
    Request { id, prompt: 20 + (id % 40) as u32, output: LengthHint::Exact(300), ..Request::default() }
}

/// Serves with `running` seats; a request finishes at its 300th token and another arrives in its place.
fn serve(scheduler: &mut Scheduler, next: &mut u64, finished: &mut Vec<u64>, iterations: u64) {
    for _ in 0..iterations {
        scheduler.plan(0);
        finished.clear();
        let view = scheduler.view();
        let done = view.iter_residents().filter(|&slot| view.stage(slot) >= 300);
        finished.extend(done.map(|slot| view.request(slot).id).take(64));
        scheduler.complete(&Report { finished, ..Report::default() });
        for _ in 0..finished.len() {
            scheduler.add(&request(*next)).unwrap();
            *next += 1;
        }
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "debug builds recount the invariants, which allocates; run with --release")]
fn a_steady_iteration_allocates_nothing() {
    for policy in ["vllm", "wait", "adaptive"] {
        let mut scheduler = scheduler(policy, 64);
        let mut finished = Vec::with_capacity(64);
        let mut next = 0;
        for _ in 0..128 {
            scheduler.add(&request(next)).unwrap();
            next += 1;
        }
        serve(&mut scheduler, &mut next, &mut finished, 3_000);
        let (before, served) = (CALLS.get(), scheduler.stats().finished);
        serve(&mut scheduler, &mut next, &mut finished, 3_000);
        assert!(scheduler.stats().finished > served + 200, "{policy}: requests must come and go meanwhile");
        let calls = CALLS.get() - before;
        assert_eq!(calls, 0, "{policy}: {calls} allocations in 3,000 iterations");
    }
}

#[test]
fn a_million_waiting_requests_take_less_than_200_mb() {
    let before = LIVE.get();
    let mut scheduler = scheduler("vllm", 64);
    for id in 0..1_000_000 {
        scheduler.add(&request(id)).unwrap();
    }
    let bytes = LIVE.get() - before;
    assert!(bytes < 200_000_000, "{bytes} bytes");
    // Between two doublings of the tables half their room may be unused; what a request itself needs is less.
    assert!(bytes / 1_000_000 <= 200, "{} bytes a request", bytes / 1_000_000);
    let entry = std::mem::size_of::<wait_core::Tracked>();
    assert!(entry + 24 <= 128, "{entry} bytes in the table, 24 in the index");
}
