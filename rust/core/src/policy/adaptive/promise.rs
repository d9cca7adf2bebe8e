//! A promised time to first token: who can no longer have it lets those go first that still can.
//!
//! First come, first served, an overloaded engine serves everybody late: the line is longer than the target, and whoever
//! reaches its head has waited for all of it. So a request that is found late, when it is looked at, goes to a line of
//! its own. That line is served when nobody waits who is in time, and in every `SHARE`-th admission, so that nobody
//! starves: with m late requests before it, a late one is passed by at most `SHARE` · (m + 1) that are in time.
//!
//! Late is who would get the first token after the target: what it has waited, the time that the prompts before it and
//! its own take at the pace measured where prompts were left over, and a margin.

use crate::plan::{Hold, HoldReason, Plan};
use crate::request::Slot;
use crate::view::View;

/// The usual line.
pub(super) const USUAL: usize = 0;
/// The line of the late.
pub(super) const LATE: usize = 1;
/// The late get one admission of so many. More for them is less goodput, in overload a share of 1 / `SHARE`; fewer let
/// them wait longer where a request that is in time always waits. Between 4 and 16 that is all there is to it.
const SHARE: u32 = 8;
/// Iterations added to the time of the prompts: one in which the last of them begins, and one because no two take equally
/// long. With one, several in 100 of those admitted in time miss the target where iterations are short; a third buys no
/// goodput.
const MARGIN: f64 = 2.0;
/// Iterations with prefills over which durations are taken, and requests over which it is counted how many are late.
const MEMORY: f64 = 64.0;
/// How many times its mean a duration may count for: a host that was stopped for a while says nothing of iterations.
const MOST: f64 = 4.0;

/// An iteration that computes prompts, as planned.
#[derive(Clone, Copy, Debug)]
struct Planned {
    at_ns: u64,
    tokens: u32,
    /// Whether it left prompt tokens behind.
    full: bool,
}

/// The promise, and what is known of how long first tokens take.
#[derive(Clone, Debug)]
pub(super) struct Promise {
    target_ns: f64,
    /// Share of the late among those last admitted in time or found late.
    late_share: f64,
    /// Admissions since the last of a late request, while late ones waited.
    passes: u32,
    planned: Option<Planned>,
    /// Mean duration of an iteration that computes prompts, ns; 0 before the first.
    iteration_ns: f64,
    /// Duration and prompt tokens of those that left some behind, fading.
    full_ns: f64,
    full_tokens: f64,
    /// Who was found late in the current plan, by rank.
    found: Vec<Slot>,
}

impl Promise {
    pub(super) fn new(seconds: f64) -> Self {
        Self {
            target_ns: 1e9 * seconds,
            late_share: 0.0,
            passes: 0,
            planned: None,
            iteration_ns: 0.0,
            full_ns: 0.0,
            full_tokens: 0.0,
            found: Vec::new(),
        }
    }

    /// Begins a plan: the time since the last one is how long its iteration took.
    pub(super) fn begin(&mut self, view: &View) {
        self.found.clear();
        // Without residents the engine has been idle.
        let Some(planned) = self.planned.take().filter(|_| view.residents() > 0) else { return };
        let mut duration = view.now_ns().saturating_sub(planned.at_ns) as f64;
        if self.iteration_ns > 0.0 {
            duration = duration.min(MOST * self.iteration_ns);
            self.iteration_ns += (duration - self.iteration_ns) / MEMORY;
        } else {
            self.iteration_ns = duration;
        }
        if planned.full {
            let keep = 1.0 - 1.0 / MEMORY;
            self.full_ns = self.full_ns * keep + duration;
            self.full_tokens = self.full_tokens * keep + f64::from(planned.tokens);
        }
    }

    /// Takes note of what was planned, of a backlog of so many prompt tokens.
    pub(super) fn settle(&mut self, view: &View, plan: &Plan, backlog: u32) {
        let tokens = plan.tokens() - plan.decodes();
        self.planned = (tokens > 0).then(|| Planned { at_ns: view.now_ns(), tokens, full: tokens < backlog });
    }

    /// A request was admitted.
    pub(super) fn admitted(&mut self, view: &View, slot: Slot) {
        let request = view.request(slot);
        if request.preemptions > 0 {
            return;
        }
        let late = usize::from(request.line) == LATE;
        if !late {
            self.late_share -= self.late_share / MEMORY;
        }
        self.passes = if late || view.waiting(LATE) == 0 { 0 } else { self.passes + 1 };
    }

    /// Whether a request would get its first token too late, behind a backlog of so many prompt tokens.
    fn is_late(&self, view: &View, slot: Slot, backlog: u32) -> bool {
        let request = view.request(slot);
        let waited = view.now_ns().saturating_sub(request.arrival_ns) as f64;
        let tokens = f64::from(backlog) + f64::from(request.prefill_target());
        let pace = if self.full_tokens > 0.0 { self.full_ns / self.full_tokens } else { 0.0 };
        waited + tokens * pace + MARGIN * self.iteration_ns > self.target_ns
    }

    /// How long a request that arrives now would wait, where behind n others it is `behind(n)` ns: up to the target its
    /// turn among those in time; if that is later, the target where most of the last requests were admitted in time, a
    /// place behind everybody where most were late.
    pub(super) fn predicted_wait_ns(&self, view: &View, behind: &dyn Fn(u32) -> u64) -> u64 {
        let before = view.waiting(USUAL) + view.resuming();
        let in_time = behind(before + view.waiting(LATE).min(before / (SHARE - 1)));
        let target = self.target_ns as u64;
        if in_time <= target {
            in_time
        } else if self.late_share > 0.5 {
            behind(view.waiting_total())
        } else {
            target
        }
    }

    /// Why the late wait while somebody waits who is in time.
    pub(super) fn hold(&self, view: &View) -> Hold {
        let head = view.head(LATE).or(self.found.first().copied());
        let waited = head.map_or(0, |slot| view.now_ns().saturating_sub(view.request(slot).arrival_ns));
        Hold::new(HoldReason::TtftTarget, 1e-9 * waited as f64, 1e-9 * self.target_ns)
    }
}

/// Who is next, while a plan is made: the preempted, then those in time and the late as the promise has it.
pub(super) struct Turns {
    resuming: Option<Slot>,
    usual: Option<Slot>,
    late: Option<Slot>,
    /// How many of those found late in this plan have had their turn.
    found: usize,
    passes: u32,
    /// Only those of this line are looked at from now on.
    only: Option<usize>,
}

impl Turns {
    pub(super) fn new(view: &View, promise: Option<&Promise>) -> Self {
        Self {
            resuming: view.head(view.queues()),
            usual: view.head(USUAL),
            late: promise.and_then(|_| view.head(LATE)),
            found: 0,
            passes: promise.map_or(0, |promise| promise.passes),
            only: None,
        }
    }

    /// The line of the next request, and the request.
    pub(super) fn next(
        &mut self,
        view: &View,
        plan: &mut Plan,
        promise: Option<&mut Promise>,
        backlog: u32,
    ) -> Option<(usize, Slot)> {
        if let Some(slot) = self.resuming {
            self.resuming = view.behind(slot);
            return Some((view.queues(), slot));
        }
        if let Some(promise) = promise {
            while let Some(slot) = self.usual.filter(|&slot| promise.is_late(view, slot, backlog)) {
                self.usual = view.behind(slot);
                plan.change_line(slot, LATE);
                promise.found.push(slot);
                promise.late_share += (1.0 - promise.late_share) / MEMORY;
            }
            let found = promise.found.get(self.found).copied();
            let due = self.usual.is_none() || self.passes + 1 >= SHARE;
            if (due || self.only == Some(LATE)) && (self.late.is_some() || found.is_some()) {
                return (self.only != Some(USUAL)).then(|| (LATE, self.next_late(view, found)));
            }
            if self.only == Some(LATE) {
                return None;
            }
        }
        let slot = self.usual?;
        self.usual = view.behind(slot);
        Some((USUAL, slot))
    }

    /// The next of the late: those that were late before, and those found in this plan, are two lines by rank.
    fn next_late(&mut self, view: &View, found: Option<Slot>) -> Slot {
        let rank = |slot: Slot| view.request(slot).rank;
        match (self.late, found) {
            (Some(late), None) => {
                self.late = view.behind(late);
                late
            }
            (Some(late), Some(found)) if rank(late) <= rank(found) => {
                self.late = view.behind(late);
                late
            }
            (_, Some(found)) => {
                self.found += 1;
                found
            }
            (None, None) => unreachable!("somebody is late"),
        }
    }

    /// The request of this line that was next will enter.
    pub(super) fn enters(&mut self, queue: usize, promise: Option<&Promise>) {
        let Some(promise) = promise else { return };
        if queue == LATE {
            self.passes = 0;
        } else if queue == USUAL && (self.late.is_some() || self.found < promise.found.len()) {
            self.passes += 1;
        }
    }

    /// The preempted hold nobody else up.
    pub(super) fn leave_resuming(&mut self) {
        self.resuming = None;
    }

    /// Nobody of another line is looked at in this plan.
    pub(super) fn stay_in(&mut self, queue: usize) {
        self.only = Some(queue);
    }
}
