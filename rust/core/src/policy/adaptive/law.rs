//! The iteration-time law in force: the one that the host gave, or else the one learned from its reports, once its
//! error is known and small.

use super::token_budget::TokenBudget;
use super::{Adaptive, Part};
use crate::config::Config;
use crate::learn::iteration_time::{IterationTimeFit, PlannedSteps, Trials};
use crate::model::IterationTime;
use crate::policy::{LearnedLaw, Step};
use crate::state::View;

/// One in so many steps with prompts is cut for a trial: fewer first tokens are among the latest than with one in 20, and
/// the law is known as soon (`bench/worlds.py`, `bench/learned_law.py`).
const UNCUT: u32 = 50;

/// The law, and what has been learned of it.
#[derive(Clone, Debug)]
pub(super) struct Law {
    given: Option<IterationTime>,
    fit: IterationTimeFit,
    planned: PlannedSteps,
    trials: Trials,
    /// Steps with prompts since the last that was cut for a trial.
    uncut: u32,
    /// The version that dependents were last updated to.
    followed: u32,
}

impl Law {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            given: config.iteration_time.clone(),
            fit: IterationTimeFit::default(),
            planned: PlannedSteps::default(),
            trials: Trials::default(),
            uncut: 0,
            followed: 0,
        }
    }

    /// The law in force; none before it is known.
    pub(super) fn law(&self) -> Option<&IterationTime> {
        let learned = || self.fit.law().filter(|_| self.fit.is_trusted());
        self.given.as_ref().or_else(learned)
    }

    /// A number that changes whenever the law in force may have.
    pub(super) fn version(&self) -> u32 {
        if self.given.is_some() { 0 } else { self.fit.version() }
    }

    /// Records what was planned, and how long it took.
    pub(super) fn step(&mut self, step: Step) {
        match step {
            Step::Planned { iteration, shape } => self.planned.push(iteration, shape),
            Step::Corrected => self.planned.void_last(),
            Step::Took { iteration, ns } => {
                if let Some(shape) = self.planned.take(iteration) {
                    self.fit.observe(&shape, ns);
                }
            }
        }
    }

    /// A token count above `least` and below `most` that is to be tried; none where no law is to be learned, or the
    /// host does not report how long iterations take. A trial delays the prompts at hand: unless requests are `held`,
    /// which wait anyway, few steps are cut for one.
    pub(super) fn trial(&mut self, least: u32, most: u32, held: bool) -> Option<u32> {
        if self.given.is_some() || !self.fit.has_begun() || most <= least {
            return None;
        }
        self.uncut += 1;
        if !held && self.uncut < UNCUT {
            return None;
        }
        let law = self.fit.law().filter(|_| self.fit.is_trusted()).zip(self.fit.error());
        let tokens = self.trials.next(least.into(), most.into(), law)?;
        self.uncut = 0;
        Some(tokens as u32)
    }

    /// What was learned.
    pub(super) fn fit(&self) -> &IterationTimeFit {
        &self.fit
    }

    /// Restores what was learned before.
    pub(super) fn restore(&mut self, fit: IterationTimeFit) {
        self.trials = Trials::remembered(fit.counts());
        self.fit = fit.following(&self.fit);
    }

    pub(super) fn learned(&self) -> LearnedLaw {
        LearnedLaw {
            law: self.fit.law().cloned(),
            error: self.fit.error(),
            observations: self.fit.observations(),
            used: self.given.is_none() && self.fit.is_trusted(),
        }
    }
}

impl Adaptive {
    /// The tokens of a step that is to try out the law, if any.
    pub(super) fn trial(&mut self, decodes: u32, all: u32, held: bool) -> Option<u32> {
        if self.has(Part::TokenBudget) { self.law.trial(decodes, all, held) } else { None }
    }

    /// Passes the law on to what is built from it, if it has changed.
    pub(super) fn follow_law(&mut self, view: &View) {
        if self.law.version() == self.law.followed {
            return;
        }
        self.law.followed = self.law.version();
        match (self.law.law(), &mut self.budget) {
            (Some(law), Some(budget)) => budget.follow(law, view.limits().token_budget),
            (Some(law), none) => {
                let chooses = !self.without.contains(&Part::TokenBudget);
                *none = Some(TokenBudget::new(law, view.limits().token_budget, chooses));
            }
            (None, budget) => *budget = None,
        }
    }
}
