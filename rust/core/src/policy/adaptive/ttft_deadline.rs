//! A deadline for the first token: a request that can no longer meet it is late, and costs those in time nothing.
//!
//! First come, first served, an overloaded engine serves every request late: the queue is longer than the target, and
//! whatever reaches its head has waited for all of it. A request that is found late leaves that queue. It is refused
//! (`late` = `refuse`), or it waits among the late requests and is admitted when no request in time waits and its whole
//! stay fits what the traffic leaves of the engine: all but the recent share of the requests in time, those found late
//! included, plus a deviation, beside all that late residents will hold. (What requests in time hold does not measure
//! what they need: late residents push them out, and would leave room for more late ones.) One late resident is always
//! allowed, so that m late requests take at most m stays once no request in time waits. Once those in time want less of the
//! engine than the next late one, they have ceased, and late requests are admitted like any others. The prompt of a late
//! resident is computed with the tokens that prompts in time leave.
//!
//! A request is late if it would get its first token after the target: the time it has waited, plus the time that the
//! prompts before it and its own take at the pace measured where prompts were left over, plus a margin. While requests
//! are found late, new arrivals are ranked by their work, so that more of them are in time.

use std::collections::VecDeque;

use crate::config::Late;
use crate::model::{RequestId, Slot};
use crate::plan::{Hold, HoldReason, Plan};
use crate::state::{Phase, View};

/// Iterations added to the time of the prompts: one in which the last of them begins, and one because iterations differ
/// in length. With one, several in 100 of those admitted in time miss the target where iterations are short; a third
/// gains no goodput.
const MARGIN: f64 = 2.0;
/// Iterations with prefills over which durations are taken, and requests over which it is counted how many are late.
const MEMORY: f64 = 64.0;
/// Stays over which the share that the traffic wants is taken, and fewest iterations.
const SHARE_STAYS: f64 = 0.2;
const SHARE_ITERATIONS: f64 = 16.0;
/// Deviations of that share which late requests leave free: one more costs 1 % of throughput where outputs are long, and
/// gains 1 to 2 % of goodput.
const DEVIATIONS: f64 = 1.0;
/// Largest share of the traffic that counts as late in that share.
const MOST_LATE: f64 = 0.9;
/// Most that a duration counts for, in multiples of its mean: a host that was stopped says nothing about iterations.
const MOST: f64 = 4.0;
/// Share of late requests from which on arrivals are ranked by their work.
const OVERLOADED: f64 = 0.02;
/// Targets by which the longest work is ranked behind the shortest: works differ by a few hundredths of that.
const SPAN: f64 = 16.0;

/// An iteration that computes prompts, as planned.
#[derive(Clone, Copy, Debug)]
struct Planned {
    at_ns: u64,
    tokens: u32,
    /// Whether it left prompt tokens behind.
    full: bool,
}

/// A late request in the KV cache.
#[derive(Clone, Copy, Debug)]
struct Resident {
    slot: Slot,
    /// Share of the engine that it takes at most, as expected.
    share: f64,
}

/// The target, and the statistics of first tokens and of what requests in time leave of the engine.
#[derive(Clone, Debug)]
pub(super) struct TtftDeadline {
    target_ns: f64,
    late: Late,
    /// Share of late requests among those last admitted in time or found late.
    late_share: f64,
    planned: Option<Planned>,
    /// Mean duration of an iteration that computes prompts, ns; 0 before the first.
    iteration_ns: f64,
    /// Duration and prompt tokens of those that left some behind, fading.
    full_ns: f64,
    full_tokens: f64,
    /// Share of the engine, at most all of it, that all would take if none were late: mean and mean square.
    wanted: f64,
    wanted_squared: f64,
    /// Mean output of those that ended, tokens: how many iterations a stay is.
    stay: f64,
    residents: Vec<Resident>,
    /// Share of the late requests that enter in the current plan.
    entering: f64,
    /// Those that wait in time, in the order of their arrival, and some that no longer do.
    arrivals: VecDeque<RequestId>,
    /// What was found late in the current plan.
    found: Vec<Slot>,
    /// By slot, the plan in which it was found.
    found_in: Vec<u64>,
    plans: u64,
}

impl TtftDeadline {
    pub(super) fn new(seconds: f64, late: Late) -> Self {
        Self {
            target_ns: 1e9 * seconds,
            late,
            late_share: 0.0,
            planned: None,
            iteration_ns: 0.0,
            full_ns: 0.0,
            full_tokens: 0.0,
            wanted: 0.0,
            wanted_squared: 0.0,
            stay: 0.0,
            residents: Vec::new(),
            entering: 0.0,
            arrivals: VecDeque::new(),
            found: Vec::new(),
            found_in: Vec::new(),
            plans: 0,
        }
    }

    /// Begins a plan: the time since the last one is how long its iteration took.
    /// What is late by now, with no prompt before it at all, leaves the `tenant_queues` in time.
    pub(super) fn begin(&mut self, view: &View, plan: &mut Plan, tenant_queues: usize) {
        self.found.clear();
        self.entering = 0.0;
        self.plans += 1;
        self.measure_share(view);
        self.measure_pace(view);
        self.find_late(view, plan, tenant_queues);
    }

    fn measure_pace(&mut self, view: &View) {
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

    /// Records what was planned, with a backlog of this many prompt tokens.
    pub(super) fn settle(&mut self, view: &View, plan: &Plan, backlog: u32) {
        let tokens = plan.tokens() - plan.decode_tokens();
        self.planned = (tokens > 0).then(|| Planned { at_ns: view.now_ns(), tokens, full: tokens < backlog });
    }

    /// A request has arrived.
    pub(super) fn arrived(&mut self, view: &View, slot: Slot) {
        self.arrivals.push_back(view.request(slot).id);
    }

    /// A request was admitted: as a late one if `late`, which will take `share` of the engine.
    pub(super) fn admitted(&mut self, view: &View, slot: Slot, late: bool, share: f64) {
        if late {
            self.residents.push(Resident { slot, share });
        } else if view.request(slot).preemptions == 0 {
            self.late_share -= self.late_share / MEMORY;
        }
    }

    /// An output has ended after this many tokens.
    pub(super) fn ended(&mut self, tokens: u32) {
        self.stay += (f64::from(tokens) - self.stay) / MEMORY;
    }

    /// A late request enters in the current plan.
    pub(super) fn enters(&mut self, share: f64) {
        self.entering += share;
    }

    /// A request has left the KV cache, if it was there.
    pub(super) fn left(&mut self, slot: Slot) {
        if let Some(at) = self.residents.iter().position(|resident| resident.slot == slot) {
            self.residents.swap_remove(at);
        }
    }

    fn measure_share(&mut self, view: &View) {
        let late: u64 = self.residents.iter().map(|resident| u64::from(view.blocks(resident.slot))).sum();
        let tokens = (view.pool().used() as f64 - late as f64) * f64::from(view.pool().block_size());
        let seats = view.residents() - self.residents.len() as u32;
        let in_time = share(view, tokens.max(0.0), f64::from(seats));
        let wanted = (in_time / (1.0 - self.late_share.min(MOST_LATE))).min(1.0);
        let iterations = (SHARE_STAYS * self.stay).max(SHARE_ITERATIONS);
        self.wanted += (wanted - self.wanted) / iterations;
        self.wanted_squared += (wanted * wanted - self.wanted_squared) / iterations;
    }

    /// Whether a late request that takes this share of the engine fits what the traffic leaves of it. Traffic that wants less
    /// than that has ceased: its deviation, which fades more slowly, is not left free.
    pub(super) fn leaves(&self, share: f64) -> bool {
        let late = self.residents.iter().map(|resident| resident.share).sum::<f64>() + self.entering;
        let variance = (self.wanted_squared - self.wanted * self.wanted).max(0.0);
        late == 0.0 || self.wanted < share || late + share + self.wanted + DEVIATIONS * libm::sqrt(variance) <= 1.0
    }

    /// When a request would get its first token, ns after its arrival, if it is admitted in this many ns behind a
    /// backlog of this many prompt tokens.
    fn first_token_ns(&self, waited_ns: f64, tokens: f64) -> f64 {
        let pace = if self.full_tokens > 0.0 { self.full_ns / self.full_tokens } else { 0.0 };
        waited_ns + tokens * pace + MARGIN * self.iteration_ns
    }

    fn expected_ns(&self, view: &View, slot: Slot, backlog: u32) -> f64 {
        let request = view.request(slot);
        let waited = view.now_ns().saturating_sub(request.arrival_ns) as f64;
        self.first_token_ns(waited, f64::from(backlog) + f64::from(request.prefill_target()))
    }

    /// Whether a request that is first among those in time, behind this backlog, is late; it then leaves its queue,
    /// which is one of `tenant_queues` in time.
    pub(super) fn finds_late(
        &mut self,
        view: &View,
        plan: &mut Plan,
        slot: Slot,
        backlog: u32,
        tenant_queues: usize,
    ) -> bool {
        if self.found_in.get(slot as usize) == Some(&self.plans) {
            return true;
        }
        let expected = self.expected_ns(view, slot, backlog);
        if expected <= self.target_ns {
            return false;
        }
        if self.found_in.len() <= slot as usize {
            self.found_in.resize(slot as usize + 1, 0);
        }
        self.found_in[slot as usize] = self.plans;
        self.late_share += (1.0 - self.late_share) / MEMORY;
        match self.late {
            Late::Park => {
                plan.change_queue(slot, usize::from(view.request(slot).queue) + tenant_queues);
                self.found.push(slot);
            }
            Late::Refuse => plan.refuse(view, slot, HoldReason::TtftTarget, expected as u64),
        }
        true
    }

    /// Finds late requests anywhere in the queues, the longest wait first.
    fn find_late(&mut self, view: &View, plan: &mut Plan, tenant_queues: usize) {
        let in_time = |&slot: &Slot| {
            let request = view.request(slot);
            request.phase == Phase::Waiting && request.preemptions == 0 && usize::from(request.queue) < tenant_queues
        };
        while let Some(&id) = self.arrivals.front() {
            if let Some(slot) = view.slot(id).filter(in_time)
                && !self.finds_late(view, plan, slot, 0, tenant_queues)
            {
                break;
            }
            self.arrivals.pop_front();
        }
    }

    /// What was found late in this plan and is to wait.
    pub(super) fn found(&self) -> &[Slot] {
        &self.found
    }

    /// By how much later than its arrival a request of this share of the longest work is ranked, ns; none while
    /// requests are in time.
    pub(super) fn rank_ns(&self, share: impl FnOnce() -> f64) -> f64 {
        if self.late_share > OVERLOADED { SPAN * self.target_ns * share() } else { 0.0 }
    }

    /// How long a request that arrives now would wait, where `in_time` others go before it if it is in time, and behind n
    /// others it is `behind(n)` ns: behind all, if its turn in time came after the target and most of the last requests
    /// were late.
    pub(super) fn predicted_wait_ns(&self, view: &View, in_time: u32, behind: &dyn Fn(u32) -> u64) -> u64 {
        let wait = behind(in_time);
        let overtaken = self.late == Late::Park && wait as f64 > self.target_ns && self.late_share > 0.5;
        if overtaken { behind(view.waiting_total()) } else { wait }
    }

    /// Time to first token of a request with this prompt that waits `wait_ns` for its admission, and the target, ns, if
    /// requests that miss it are refused.
    pub(super) fn refuses(&self, prompt: u32, wait_ns: u64) -> Option<(u64, u64)> {
        let expected = self.first_token_ns(wait_ns as f64, f64::from(prompt));
        (self.late == Late::Refuse).then_some((expected as u64, self.target_ns as u64))
    }

    /// Why late requests wait: how long the first of them, `head`, has waited, and the target, s.
    pub(super) fn hold(&self, view: &View, head: Option<Slot>) -> Hold {
        let head = head.or(self.found.first().copied());
        let waited = head.map_or(0, |slot| view.now_ns().saturating_sub(view.request(slot).arrival_ns));
        Hold::new(HoldReason::TtftTarget, 1e-9 * waited as f64, 1e-9 * self.target_ns)
    }
}

/// The share of the engine that this many KV tokens and slots are: of its memory or of its slots, whichever is more.
pub(super) fn share(view: &View, tokens: f64, seats: f64) -> f64 {
    (tokens / view.pool().tokens() as f64).max(seats / f64::from(view.limits().max_num_seqs))
}
