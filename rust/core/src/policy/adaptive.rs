//! `adaptive`, for serving: output lengths unknown, traffic unknown, nothing to tune.
//!
//! Running requests decode every iteration. The next in line is admitted at once if everybody fits up to their
//! `max_tokens`, or if for every horizon h the forecast of the KV in use, mean + z(δ) · deviation, stays within the
//! capacity; and always if nothing runs. Lengths are learned online from what ends and from what still runs. Admission is
//! paced at C/E[A] where lengths are so alike that cohorts would form. Where the iteration-time law is known, the tokens
//! of an iteration end at the edge of a stair of the law. The deviation is the safety buffer of arXiv 2504.11320 §4:
//! the logarithm of 1/δ times the spread of how many requests go on, here of the residents as they are.

mod budget;
mod learned;
mod pace;

use self::budget::TokenBudget;
use self::learned::Learned;
use self::pace::Pace;
use super::{Event, Policy};
use crate::config::Config;
use crate::forecast::{CERTAIN, Candidate, Forecast, Outlook, POOLED};
use crate::plan::{Hold, HoldReason, Plan};
use crate::request::Slot;
use crate::view::View;

/// Standard error of the forecast's mean, relative: what the curves get wrong for all residents alike.
const MODEL_ERROR: f32 = 0.015;

/// z(δ): the buffer, in standard deviations.
const DEVIATIONS: f32 = 2.0;

/// State of `adaptive`.
#[derive(Clone, Debug)]
pub struct Adaptive {
    forecast: Forecast,
    learned: Learned,
    pace: Pace,
    budget: Option<TokenBudget>,
    /// Who may enter in the current plan.
    entering: Vec<Slot>,
}

/// Who may enter: what has been checked so far.
struct Entry {
    outlook: Outlook,
    /// KV tokens the cache holds, less what other requests' shared prefixes save.
    capacity: f64,
    /// Charged to each request beside its KV: its last block is half empty.
    overhead: f32,
    free: i64,
    seats: u32,
    /// Prefill tokens of the residents and of those who enter.
    backlog: u32,
}

impl Adaptive {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            forecast: Forecast::new(),
            learned: Learned::default(),
            pace: Pace::default(),
            budget: config.iteration_time.as_ref().map(|law| TokenBudget::new(law, config.token_budget)),
            entering: Vec::new(),
        }
    }

    /// Follows the lane.
    fn advance(&mut self, view: &View) {
        let passed = view.lanes()[0].tick() - self.forecast.tick();
        if passed > 0 {
            self.pace.fill(passed, view.pool().tokens() as f64);
            (0..passed).for_each(|_| self.forecast.step());
        }
    }

    /// The request, when its prompt will have been computed.
    fn candidate(view: &View, slot: Slot) -> Candidate {
        let request = view.request(slot);
        Candidate {
            class: if request.output.exact().is_some() { CERTAIN } else { POOLED },
            kv: request.prefill_target(),
            stage: request.kept + 1,
            last: request.output.exact().unwrap_or(u32::MAX).min(request.max_tokens),
        }
    }

    /// What is known before anybody enters.
    fn entry(&mut self, view: &View, plan: &Plan) -> Entry {
        let pool = view.pool();
        let overhead = 0.5 * (pool.block_size() - 1) as f32;
        let shared = (pool.counted() - pool.used()).max(0) as f64 * f64::from(pool.block_size());
        self.learned.refresh(&mut self.forecast);
        let mut entry = Entry {
            outlook: self.forecast.outlook(overhead),
            capacity: pool.tokens() as f64 + shared,
            overhead,
            free: plan.free(),
            seats: view.limits().max_num_seqs.saturating_sub(plan.residents()),
            backlog: 0,
        };
        for &slot in view.prefilling() {
            // A host may have taken it back from decoding.
            self.forecast.leave(slot);
            let candidate = Self::candidate(view, slot);
            self.forecast.add(&mut entry.outlook, &candidate, overhead);
            entry.backlog += candidate.kv - view.kv(slot);
            entry.free -= i64::from(pool.blocks_for(candidate.kv)) - i64::from(view.blocks(slot));
        }
        entry
    }

    /// Collects who may enter, the preempted first, first come first served; false if somebody has to wait for memory or
    /// a seat.
    fn collect(&mut self, view: &View, plan: &mut Plan, entry: &mut Entry) -> bool {
        for queue in [view.queues(), 0] {
            for slot in view.iter_waiting(queue) {
                let idle = plan.residents() == 0 && self.entering.is_empty();
                match self.check(view, plan, entry, slot, idle) {
                    Ok(()) => self.entering.push(slot),
                    Err(hold) => {
                        plan.hold_queue(queue, hold);
                        // A preempted request that has become too large for the cache holds nobody else up.
                        if idle && queue > 0 && hold.reason == HoldReason::NoBlocks {
                            break;
                        }
                        plan.hold_queue(0, hold);
                        // Tokens left over are no reason to hurry, nor to wait.
                        return hold.reason == HoldReason::BatchCap && entry.seats > 0;
                    }
                }
            }
        }
        true
    }

    /// Whether a request may enter beside all that `entry` holds; it then holds this one too.
    fn check(&mut self, view: &View, plan: &Plan, entry: &mut Entry, slot: Slot, idle: bool) -> Result<(), Hold> {
        let seats = view.limits().max_num_seqs;
        if entry.seats == 0 {
            return Err(Hold::new(HoldReason::BatchCap, seats + 1, seats));
        }
        let tokens = plan.decodes() + entry.backlog;
        if tokens >= view.limits().token_budget {
            return Err(Hold::new(HoldReason::BatchCap, tokens + 1, view.limits().token_budget));
        }
        let blocks = view.pool().blocks_for(view.request(slot).prefill_target());
        if i64::from(blocks) > entry.free {
            return Err(Hold::new(HoldReason::NoBlocks, blocks, entry.free as f64));
        }
        let mut candidate = Self::candidate(view, slot);
        let prompt = candidate.kv;
        candidate.kv -= view.request(slot).shared_prefix;
        let mut outlook = entry.outlook;
        self.forecast.add(&mut outlook, &candidate, entry.overhead);
        if !idle && outlook.reserved > entry.capacity {
            let (needs, limit) = (Self::worst(&outlook), entry.capacity);
            if needs > limit {
                return Err(Hold::new(HoldReason::ForecastOverflow, needs, limit));
            }
            if !self.pace.admits(self.entering.len()) {
                let enter = self.entering.len() as f64;
                return Err(Hold::new(HoldReason::BelowThreshold, enter + 1.0, self.pace.admissions()));
            }
        }
        entry.outlook = outlook;
        entry.backlog += prompt;
        entry.free -= i64::from(blocks);
        entry.seats -= 1;
        Ok(())
    }

    /// The largest of mean + buffer over the horizons, KV tokens.
    fn worst(outlook: &Outlook) -> f64 {
        let mut worst = 0.0_f32;
        for ((certain, mean), variance) in outlook.certain.iter().zip(&outlook.mean).zip(&outlook.variance) {
            let error = MODEL_ERROR * mean;
            let buffer = DEVIATIONS * libm::sqrtf(variance + error * error);
            worst = worst.max(certain + mean + buffer);
        }
        f64::from(worst)
    }
}

impl Policy for Adaptive {
    /// A type is a label: it never changes what a request may do.
    fn types(&self) -> Option<usize> {
        None
    }

    fn observe(&mut self, view: &View, slot: Slot, event: Event) {
        match event {
            Event::Arrived => {}
            Event::Admitted => self.pace.take(),
            Event::Joined => {
                self.advance(view);
                let candidate = Candidate { kv: view.kv(slot), stage: view.stage(slot), ..Self::candidate(view, slot) };
                self.forecast.join(slot, &candidate);
            }
            Event::Finished => {
                self.advance(view);
                if let Some((class, stage)) = self.forecast.leave(slot) {
                    self.learned.end(class, stage - 1);
                    let kv = f64::from(view.request(slot).prompt) + 0.5 * f64::from(stage);
                    self.pace.learn(f64::from(stage), kv);
                }
            }
            Event::Preempted | Event::Aborted => {
                self.advance(view);
                self.forecast.leave(slot);
            }
        }
    }

    fn plan(&mut self, view: &View, plan: &mut Plan) {
        self.advance(view);
        plan.decode(view, 0);
        plan.make_room(view);
        self.entering.clear();
        let evicts = !plan.preempted().is_empty();
        let (backlog, held) = if evicts || view.waiting_total() == 0 {
            let left = |slot: &Slot| view.request(*slot).prefill_target() - view.kv(*slot);
            (view.prefilling().iter().map(left).sum(), evicts)
        } else {
            let mut entry = self.entry(view, plan);
            let held = !self.collect(view, plan, &mut entry);
            (entry.backlog, held)
        };
        if let Some(budget) = &self.budget {
            plan.set_budget(view, budget.choose(view, plan.decodes(), backlog, held));
        }
        plan.continue_prefills(view);
        for &slot in &self.entering {
            if plan.tokens_left() == 0 || !plan.preempted().is_empty() {
                plan.hold_queue(0, Hold::new(HoldReason::BatchCap, plan.tokens() + 1, plan.token_budget()));
                break;
            }
            plan.admit(view, slot, plan.tokens_left(), false);
        }
        if let Some(budget) = &mut self.budget {
            budget.settle(view, plan, backlog);
        }
    }
}
