//! `adaptive`, for serving: output lengths unknown, traffic unknown, nothing to tune.
//!
//! Running requests decode every iteration; if memory overflows, the request admitted last is preempted. The next in
//! queue is admitted at once if everything fits up to its `max_tokens`, or if at every horizon an overflow is expected to
//! cost no more time than an idle slot (`overflow_margin.rs`); and always if nothing runs. Output lengths are learned
//! online, from what has ended and what still runs. Admission is paced only where outputs are so alike that cohorts
//! would form, and memory holds so many that preemptions cost more than idle slots (`pace.rs`). How many prompt tokens an iteration computes follows from the iteration-time law
//! (`token_budget.rs`), given by the host or learned (`law.rs`).

mod entry;
mod events;
mod law;
mod length_classes;
mod overflow_margin;
mod pace;
mod steady_state;
mod tenants;
mod token_budget;
mod traffic;
mod ttft_deadline;
mod turns;

use self::entry::{Entry, Looked};
use self::law::Law;
use self::length_classes::Learned;
use self::overflow_margin::{BALANCE, OverflowMargin};
use self::pace::Pace;
use self::tenants::Tenants;
use self::token_budget::{Backlog, TokenBudget};
use self::traffic::Traffic;
use self::ttft_deadline::TtftDeadline;
use self::turns::Turns;
use serde::{Deserialize, Serialize};

use super::{Event, Expected, LearnedLaw, Policy, Step};
use crate::config::{Config, Order, Part};
use crate::learn::iteration_time::{FitState, IterationTimeFit};
use crate::learn::{Candidate, Forecast, KvForecast};
use crate::model::{LengthHint, Request, Slot};
use crate::plan::{HoldReason, Plan};
use crate::state::View;

/// Resolution of the order by work between two levels of priority that do not age.
const WORK_STEPS: i64 = 1 << 20;

/// State of `adaptive`.
#[derive(Clone, Debug)]
pub struct Adaptive {
    forecast: Forecast,
    learned: Learned,
    traffic: Traffic,
    pace: Pace,
    law: Law,
    budget: Option<TokenBudget>,
    margin: OverflowMargin,
    looked: Looked,
    order: Order,
    /// None: priorities do not age.
    ageing_ns: Option<f64>,
    skip_ahead: u32,
    /// s
    tpot_target: Option<f64>,
    /// The deadline for the first token.
    deadline: Option<TtftDeadline>,
    /// The tenants, among which served tokens are shared by weight.
    tenants: Option<Tenants>,
    /// Which queue is next in the current plan.
    turns: Turns,
    without: Vec<Part>,
    /// KV tokens of the residents' shared prefixes, counted for each.
    shared: u64,
    /// Requests that may enter in the current plan, and how many of them, the first, are in time.
    entering: Vec<Slot>,
    in_time: usize,
    /// Requests of the current plan that do not decode yet: those whose prompt is being computed, and those that may enter.
    beside: Vec<Candidate>,
}

impl Adaptive {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            forecast: Forecast::new(config.kv_layout().footprint()),
            learned: Learned::new(&config.without),
            traffic: Traffic::default(),
            pace: Pace::default(),
            law: Law::new(config),
            budget: config.iteration_time.as_ref().map(|law| {
                TokenBudget::of_given(law, config.token_budget, !config.without.contains(&Part::TokenBudget))
            }),
            margin: OverflowMargin::new(config),
            looked: Looked::default(),
            order: config.order,
            ageing_ns: config.ageing.map(|seconds| 1e9 * seconds),
            skip_ahead: config.skip_ahead,
            tpot_target: config.tpot_target,
            deadline: config.ttft_target.map(|seconds| TtftDeadline::new(seconds, config.late)),
            tenants: (!config.tenant_weights.is_empty()).then(|| Tenants::new(&config.tenant_weights)),
            turns: Turns::default(),
            without: config.without.clone(),
            shared: 0,
            entering: Vec::new(),
            in_time: 0,
            beside: Vec::new(),
        }
    }

    fn has(&self, part: Part) -> bool {
        !self.without.contains(&part)
    }

    /// Brings the forecast to the lane's tick.
    fn advance(&mut self, view: &View) {
        let passed = view.lanes()[0].tick() - self.forecast.tick();
        if passed > 0 {
            self.pace.fill(&self.traffic, passed, view.pool().tokens() as f64);
            (0..passed).for_each(|_| self.forecast.step());
        }
    }

    /// The request, when its prompt will have been computed, without what it shares.
    fn candidate(&self, view: &View, slot: Slot) -> Candidate {
        let request = view.request(slot);
        Candidate {
            class: self.learned.class(label(request.type_id), request.output),
            kv: (request.prefill_target() - request.hit.shared).saturating_add(self.encoder_kv(view, slot)),
            stage: request.kept + 1,
            last: request.output.exact().unwrap_or(u32::MAX).min(request.max_tokens),
        }
    }

    /// What a request holds beside its tokens, as tokens that it had from the start: to the forecast that is the same.
    fn encoder_kv(&self, view: &View, slot: Slot) -> u32 {
        match view.request(slot).encoder_tokens(view.layout()) {
            0 => 0,
            tokens => (f64::from(tokens) / self.forecast.footprint().slope().max(1.0)).round() as u32,
        }
    }

    /// Queues of requests in time; with a deadline there are as many queues of late requests.
    fn tenant_queues(&self) -> usize {
        self.tenants.as_ref().map_or(1, Tenants::len)
    }

    /// Collects the requests that may enter, in turn; true if only the token budget keeps more from entering. Behind a
    /// head that does not fit in memory, others of its queue are considered if they arrived within the ageing time
    /// after it.
    fn collect(&mut self, view: &View, plan: &mut Plan, entry: &mut Entry) -> bool {
        // Taken out temporarily, so that the checks may borrow everything else.
        let mut turns = std::mem::take(&mut self.turns);
        turns.begin(view, self.tenant_queues());
        if let Some(tenants) = &mut self.tenants {
            tenants.begin();
        }
        let short_of_tokens = self.collect_in_turn(view, plan, entry, &mut turns);
        self.turns = turns;
        short_of_tokens
    }

    fn collect_in_turn(&mut self, view: &View, plan: &mut Plan, entry: &mut Entry, turns: &mut Turns) -> bool {
        // The first request that was held: up to which rank others may overtake it, and how many more are considered.
        let mut overtake: Option<(i64, u32)> = None;
        while let Some((queue, slot)) =
            turns.next(view, plan, self.tenants.as_ref(), self.deadline.as_mut(), entry.before())
        {
            if plan.fits_alone(view, slot).is_err() {
                continue;
            }
            if let Some((latest, looks)) = &mut overtake {
                if *looks == 0 || view.request(slot).rank > *latest {
                    return false;
                }
                *looks -= 1;
            }
            let idle = plan.residents() == 0 && self.entering.is_empty();
            let late = turns.is_late(queue) || self.is_late(view, slot);
            if late {
                entry.begin_late();
            }
            match self.leaves(view, slot, late && !idle).and_then(|()| self.check(view, plan, entry, slot, idle)) {
                Ok(()) => {
                    self.entering.push(slot);
                    self.in_time += usize::from(!late);
                    self.enters(view, slot, late);
                }
                Err(_) if overtake.is_some() => {}
                Err(hold) => {
                    plan.hold_queue(queue, hold);
                    self.hold_queues(view, plan, queue, hold);
                    if queue == view.queues()
                        || !matches!(hold.reason, HoldReason::NoBlocks | HoldReason::ForecastOverflow)
                    {
                        return hold.reason == HoldReason::BatchCap && entry.seats > 0;
                    }
                    let ageing_ns = self.ageing_ns.map_or(i64::MAX, |ns| ns as i64);
                    let latest = view.request(slot).rank.saturating_add(ageing_ns);
                    overtake = Some((latest, self.skip_ahead));
                    turns.stay_in(queue);
                }
            }
        }
        false
    }
}

/// The label by which lengths are learned. Types are counted from 1: an absent one is 0.
fn label(type_id: u16) -> Option<u16> {
    type_id.checked_sub(1)
}

/// Why a state is refused that could not have been learned.
const UNSOUND: &str = "counts that no traffic gives";

/// What is learned from the traffic, as it is saved and restored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    lengths: Learned,
    traffic: Traffic,
    pace: Pace,
    /// Absent before the first iterations are learned from.
    #[serde(default)]
    iteration_time: Option<FitState>,
}

impl Policy for Adaptive {
    fn reserves_prompts(&self) -> bool {
        false
    }

    fn queues(&self) -> usize {
        if self.deadline.is_some() { 2 * self.tenant_queues() } else { self.tenant_queues() }
    }

    /// A type is a label: it never changes what a request may do.
    fn types(&self) -> Option<usize> {
        None
    }

    fn classify(&self, request: &Request) -> u16 {
        request.type_id.map_or(0, |label| label.saturating_add(1))
    }

    /// Its arrival time plus the ageing time for each level of priority, and for its share of the longest work;
    /// without ageing its priority, then its work, then its arrival.
    fn rank(&self, view: &View, request: &Request, max_tokens: u32) -> i64 {
        let work = || {
            let (mean, squared) = match request.output {
                LengthHint::Exact(tokens) => (f64::from(tokens), f64::from(tokens) * f64::from(tokens)),
                hint => {
                    let class = self.learned.class(request.type_id, hint);
                    self.forecast.curve(class).moments()
                }
            };
            let most = f64::from(max_tokens);
            let work = f64::from(request.prompt) * mean.min(most) + 0.5 * squared.min(most * most);
            let length = f64::from(view.max_model_len());
            libm::log1p(work) / libm::log1p(0.5 * length * length)
        };
        let share = if self.order == Order::Srpt { work() } else { 0.0 };
        let Some(ageing_ns) = self.ageing_ns else {
            let steps = if self.order == Order::Srpt { WORK_STEPS } else { 1 };
            return request.priority.saturating_mul(steps).saturating_add((share * steps as f64) as i64);
        };
        // Saturates.
        let rank = request.arrival_ns as f64 + ageing_ns * (request.priority as f64 + share);
        match &self.deadline {
            Some(deadline) if self.order == Order::Fcfs => (rank + deadline.rank_ns(work)) as i64,
            _ => rank as i64,
        }
    }

    fn predicted_wait_ns(&self, view: &View, behind: &dyn Fn(u32) -> u64) -> u64 {
        match &self.deadline {
            Some(deadline) => {
                let in_time = (0..self.tenant_queues()).map(|queue| view.waiting(queue)).sum::<u32>() + view.resuming();
                deadline.predicted_wait_ns(view, in_time, behind)
            }
            None => behind(view.waiting_total()),
        }
    }

    fn refuses(&self, request: &Request, wait_ns: u64) -> Option<(u64, u64)> {
        self.deadline.as_ref()?.refuses(request.prompt, wait_ns)
    }

    fn learned(&self) -> Option<serde_json::Value> {
        let (lengths, traffic, pace) = (self.learned.clone(), self.traffic, self.pace);
        let iteration_time = self.law.fit().state();
        serde_json::to_value(State { lengths, traffic, pace, iteration_time }).ok()
    }

    fn restore(&mut self, view: &View, state: &serde_json::Value) -> Result<(), String> {
        let state = State::deserialize(state).map_err(|error| error.to_string())?;
        let State { lengths, traffic, pace, iteration_time } = state;
        let fit = iteration_time.map(|state| IterationTimeFit::restored(&state).ok_or(UNSOUND)).transpose()?;
        let mut forecast = Forecast::at(view.lanes()[0].tick(), self.forecast.footprint().clone());
        traffic.check(f64::from(view.max_model_len()), self.forecast.footprint())?;
        if !pace.is_sound() || !self.learned.take_over(lengths, &mut forecast) {
            return Err(UNSOUND.to_owned());
        }
        (self.forecast, self.traffic, self.pace) = (forecast, traffic, pace);
        if let Some(fit) = fit {
            self.law.restore(fit);
        }
        Ok(())
    }

    // Both are as of the last plan: the forecast follows the lane with the next one, before which requests may yet arrive.

    fn kv_forecast(&mut self, view: &View) -> Vec<KvForecast> {
        self.overflows(view)
    }

    fn expects(&mut self, view: &View) -> Option<Expected> {
        self.learned.has_begun().then(|| self.expected(view))
    }

    fn step(&mut self, step: Step) {
        self.law.step(step);
    }

    fn learned_law(&self) -> Option<LearnedLaw> {
        Some(self.law.learned())
    }

    fn observe(&mut self, view: &View, slot: Slot, event: Event) {
        self.follow(view, slot, event);
    }

    fn plan(&mut self, view: &View, plan: &mut Plan) {
        self.advance(view);
        self.follow_law(view);
        plan.decode(view, 0);
        plan.make_room(view);
        if view.waiting_total() == 0 {
            self.pace.rest(&self.traffic, view.pool().tokens() as f64);
        }
        self.entering.clear();
        self.in_time = 0;
        if let Some(budget) = &mut self.budget {
            let mix = || self.traffic.mix(self.learned.moments(&self.forecast), self.forecast.footprint());
            budget.refresh(view, mix);
        }
        let tenant_queues = self.tenant_queues();
        if let Some(deadline) = &mut self.deadline {
            deadline.begin(view, plan, tenant_queues);
        }
        let preempts = !plan.preempted().is_empty();
        let backlog = if preempts || view.waiting_total() == 0 {
            let left = |slot: &Slot| view.request(*slot).prefill_target() - view.kv(*slot);
            let tokens = view.prefilling().iter().map(left).sum();
            let held = view.waiting_total().max(u32::from(preempts));
            Backlog { tokens, beyond: 0, requests: view.prefilling().len() as u32, held, late: false }
        } else {
            let mut entry = self.entry(view, plan);
            let short_of_tokens = self.collect(view, plan, &mut entry);
            let requests = (view.prefilling().len() + self.entering.len()) as u32;
            let held = view.waiting_total() - self.entering.len() as u32;
            let late =
                !plan.refused().is_empty() || (tenant_queues..view.queues()).any(|queue| view.waiting(queue) > 0);
            let beyond = if short_of_tokens { entry.would_fit(view).min(held) } else { 0 };
            Backlog { tokens: entry.backlog(), beyond, requests, held, late }
        };
        if let Some(budget) = &mut self.budget {
            let tokens = budget.choose(view, plan.decode_tokens(), &backlog);
            plan.set_budget(view, budget.within(view, plan.decode_tokens(), tokens, self.tpot_target));
        }
        let all = plan.decode_tokens().saturating_add(backlog.tokens).min(plan.token_budget());
        if let Some(tokens) = self.trial(plan.decode_tokens(), all, backlog.is_scarce()) {
            plan.set_budget(view, tokens);
        }
        self.continue_in_time(view, plan);
        let admits = Self::admit(view, plan, &self.entering[..self.in_time]);
        if self.deadline.is_some() {
            self.continue_late(view, plan);
            let late = if admits { &self.entering[self.in_time..] } else { &[] };
            Self::admit(view, plan, late);
        }
        if let Some(budget) = &mut self.budget {
            budget.settle(view, plan);
        }
        if let Some(deadline) = &mut self.deadline {
            deadline.settle(view, plan, backlog.tokens);
        }
    }
}
