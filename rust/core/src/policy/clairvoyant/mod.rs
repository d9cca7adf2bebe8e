//! Clairvoyant: knows every output length and never preempts; the reference for what is possible without preemption.
//!
//! Running requests decode every iteration. The next request in `order` is admitted if the future KV use of all, up to
//! each release, provably stays within the capacity: `profile.rs`, exact to the block. Prompts are computed in turn, as
//! far as the token budget reaches, so the course of each request is known when it is admitted. Orders: `fcfs`; `paced`,
//! first come first served at C/E[A] requests an iteration, the balanced composition of the fluid model; `srpt`, the
//! least cost A in KV tokens · iterations first. No order is best at everything: first come, first served, one long output
//! at the head holds back all behind it, and where outputs are of two kinds and recomputation is cheap, a policy that
//! preempts serves more. What known lengths are worth to such a policy shows in `adaptive` with lengths known.
//! A length that is not declared exactly counts as `max_tokens`.

mod kv_schedule;

use self::kv_schedule::{Course, Profile};
use super::wait::gate::Gate;
use super::{Event, Policy, admission};
use crate::config::{Config, Order};
use crate::model::{LengthHint, Request, RequestId, Slot};
use crate::plan::{Hold, HoldReason, Plan};
use crate::state::{Tracked, View};

/// State of the clairvoyant policy.
#[derive(Clone, Debug)]
pub struct Clairvoyant {
    order: Order,
    profile: Profile,
    /// By slot, its course while it is resident.
    courses: Vec<Option<Course>>,
    pace: Gate,
    /// E[A] over the requests seen, and their number.
    mean_cost: f64,
    seen: u64,
    blocked: Option<Blocked>,
}

/// A request that did not fit, and does not before `tick` unless a request leaves early.
#[derive(Clone, Copy, Debug)]
struct Blocked {
    id: RequestId,
    tick: i64,
    capacity: i64,
    hold: Hold,
}

impl Clairvoyant {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            order: config.order,
            profile: Profile::new(&config.kv_layout()),
            courses: Vec::new(),
            pace: Gate::uncapped(1.0),
            mean_cost: 0.0,
            seen: 0,
            blocked: None,
        }
    }

    /// The course of a request whose prompt starts now, after what has been planned so far.
    fn course(&self, view: &View, plan: &Plan, slot: Slot) -> Course {
        let request = view.request(slot);
        let prompt = request.prefill_target();
        let mut joined = view.lanes()[0].tick() + 1;
        let mut left = prompt.saturating_sub(plan.tokens_left());
        // No other prompt starts before this one is complete: it gets all of the budget that the decodes leave.
        let each = view.limits().decode_tokens;
        let mut alive = self.profile.alive();
        while left > 0 {
            left = left.saturating_sub(plan.token_budget().saturating_sub(alive(joined).saturating_mul(each)));
            joined += 1;
        }
        let decodes = iterations(request).saturating_sub(request.kept + 1);
        // What it holds beside its tokens is held from the start, as a longer prompt would be.
        let prompt = prompt.saturating_add(request.encoder_tokens(view.layout()));
        Course { last: joined + i64::from(decodes), base: joined - i64::from(prompt), prompt }
    }

    fn fits(&mut self, view: &View, plan: &Plan, slot: Slot) -> Result<Course, Hold> {
        plan.seat(view)?;
        plan.fits(view, slot, 0)?;
        let (id, tick) = (view.request(slot).id, view.lanes()[0].tick());
        let capacity = view.pool().free() + view.pool().counted();
        if let Some(blocked) = self.blocked.filter(|b| b.id == id && tick < b.tick && capacity <= b.capacity) {
            return Err(blocked.hold);
        }
        self.blocked = None;
        let course = self.course(view, plan, slot);
        match self.profile.check(course, capacity) {
            Err(overflow) if plan.residents() > 0 => {
                let hold = Hold::new(HoldReason::ForecastOverflow, overflow.blocks as f64, capacity as f64);
                self.blocked = Some(Blocked { id, tick: tick + overflow.ticks, capacity, hold });
                Err(hold)
            }
            _ => Ok(course),
        }
    }

    fn admit(&mut self, view: &View, plan: &mut Plan) {
        let idle = plan.residents() == 0;
        admission::in_order(view, plan, admission::preempted_first(view), |plan, slot| {
            if self.order == Order::Paced && !self.pace.admits() && !idle {
                return Err(self.pace.hold(0));
            }
            let course = self.fits(view, plan, slot)?;
            plan.admit(view, slot, plan.tokens_left());
            self.pace.enter();
            self.profile.insert(course);
            self.courses[slot as usize] = Some(course);
            Ok(())
        });
    }

    fn arrived(&mut self, view: &View, slot: Slot) {
        let request = view.request(slot);
        let iterations = iterations(request);
        self.seen += 1;
        // A request's last block is half empty on average.
        let half = f64::from(view.pool().block_size() - 1) / 2.0;
        let held = cost(request.prompt.saturating_add(request.encoder_tokens(view.layout())), iterations) as f64
            + f64::from(iterations) * half;
        self.mean_cost += (held - self.mean_cost) / self.seen as f64;
        if self.courses.len() <= slot as usize {
            self.courses.resize(slot as usize + 1, None);
        }
    }

    /// A request leaves the KV cache, if it was there.
    fn left(&mut self, view: &View, slot: Slot) {
        if let Some(course) = self.courses[slot as usize].take() {
            self.profile.remove(course);
            if course.last != view.lanes()[0].tick() {
                self.blocked = None;
            }
        }
    }
}

fn iterations(request: &Tracked) -> u32 {
    most(request.output, request.max_tokens)
}

/// Most iterations of a request.
fn most(output: LengthHint, max_tokens: u32) -> u32 {
    output.exact().map_or(max_tokens, |tokens| tokens.min(max_tokens))
}

/// A, KV tokens · iterations.
fn cost(prompt: u32, iterations: u32) -> u64 {
    let (prompt, iterations) = (u64::from(prompt), u64::from(iterations));
    iterations * (2 * prompt + iterations - 1) / 2
}

impl Policy for Clairvoyant {
    fn classify(&self, request: &crate::model::Request) -> u16 {
        request.type_id.unwrap_or(0)
    }

    fn rank(&self, _view: &View, request: &Request, max_tokens: u32) -> i64 {
        match self.order {
            Order::Srpt => cost(request.prompt, most(request.output, max_tokens)) as i64,
            Order::Fcfs | Order::Paced => 0,
        }
    }

    fn observe(&mut self, view: &View, slot: Slot, event: Event) {
        match event {
            Event::Arrived => self.arrived(view, slot),
            Event::Finished | Event::Aborted | Event::Preempted | Event::Refused => self.left(view, slot),
            Event::Admitted => {}
            Event::Joined => {
                // As predicted, unless the host computed another number of tokens.
                let (now, request) = (view.lanes()[0].tick(), view.request(slot));
                let held = view.kv(slot).saturating_add(request.encoder_tokens(view.layout()));
                let left = iterations(request).saturating_sub(view.stage(slot));
                let course = Course { last: now + i64::from(left), base: now - i64::from(held), prompt: held };
                if self.courses[slot as usize] != Some(course) {
                    self.left(view, slot);
                    self.profile.insert(course);
                    self.courses[slot as usize] = Some(course);
                }
            }
        }
    }

    fn plan(&mut self, view: &View, plan: &mut Plan) {
        plan.decode(view, 0);
        plan.make_room(view);
        plan.continue_prefills(view);
        self.pace.set_threshold(view.pool().tokens() as f64 / self.mean_cost.max(1.0));
        self.pace.begin(u32::MAX, 0);
        if plan.preempted().is_empty() {
            self.admit(view, plan);
        }
        if !plan.is_empty() {
            self.pace.settle();
        }
    }
}
