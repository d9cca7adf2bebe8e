//! A threshold of WAIT or Nested WAIT: how many requests may enter at the next service.
//!
//! An integer threshold n admits n requests at each service. A fractional one accrues as credit: each service adds n,
//! the integer part enters, the rest is carried over; in n services exactly ⌊n · services⌋ enter. That keeps the mean
//! composition of the fluid model where C is below one request at every stage, n < 1; such runs are called paced. A cap
//! on the requests inside then takes the place of the caps per stage.

use crate::plan::{Hold, HoldReason};

/// Rounding errors of planned thresholds are not fractions.
const EPSILON: f64 = 1e-9;

#[derive(Clone, Debug)]
pub(in crate::policy) struct Gate {
    threshold: f64,
    /// Most that may enter at one service: the threshold, rounded up.
    width: f64,
    /// Share accrued in earlier services and not used.
    credit: f64,
    /// Most requests inside: n at each of the stages behind the gate.
    cap: u32,
    /// Whether what is behind the gate is served in the current plan.
    pub(in crate::policy) open: bool,
    /// Requests that may still enter in the current plan.
    share: u32,
    entered: u32,
    inside: u32,
}

impl Gate {
    /// A gate before `stages` stages.
    pub(in crate::policy) fn new(threshold: f64, stages: u32) -> Self {
        let cap = libm::ceil(threshold * f64::from(stages) - EPSILON).max(1.0) as u32;
        Self { threshold, width: width(threshold), credit: 0.0, cap, open: false, share: 0, entered: 0, inside: 0 }
    }

    pub(in crate::policy) fn threshold(&self) -> f64 {
        self.threshold
    }

    /// A gate that limits entries only.
    pub(in crate::policy) fn uncapped(threshold: f64) -> Self {
        Self { cap: u32::MAX, ..Self::new(threshold, 1) }
    }

    pub(in crate::policy) fn set_threshold(&mut self, threshold: f64) {
        (self.threshold, self.width) = (threshold, width(threshold));
    }

    /// Requests that enter at the next service, if this many wait.
    pub(in crate::policy) fn due(&self) -> u32 {
        (self.credit + self.threshold + EPSILON).min(self.width) as u32
    }

    /// Begins a plan with this many requests before and behind the gate: it opens if as many wait as are due.
    pub(in crate::policy) fn begin(&mut self, waiting: u32, inside: u32) {
        let due = self.due();
        self.open = waiting >= due;
        self.share = due.min(self.cap.saturating_sub(inside));
        (self.entered, self.inside) = (0, inside);
    }

    /// Whether one more may enter in this plan.
    pub(in crate::policy) fn admits(&self) -> bool {
        self.open && self.share > 0
    }

    /// One enters. Beyond its share if the policy has a reason, such as a limit on holds.
    pub(in crate::policy) fn enter(&mut self) {
        self.share = self.share.saturating_sub(1);
        self.entered += 1;
    }

    /// Services after which one may enter at the next; 0 if one may already.
    pub(in crate::policy) fn services_until_due(&self) -> f64 {
        (libm::ceil((1.0 - EPSILON - self.credit) / self.threshold) - 1.0).max(0.0)
    }

    /// This many services pass in which nothing is computed and no request enters, before one may.
    pub(in crate::policy) fn pass(&mut self, services: f64) {
        self.credit += services * self.threshold;
    }

    /// Ends a plan that computes something: a service, if the gate was open.
    pub(in crate::policy) fn settle(&mut self) {
        if self.open {
            // What earlier services left unused never admits more than `width` at once.
            let most = self.width + 1.0;
            self.credit = ((self.credit + self.threshold).min(most) - f64::from(self.entered)).max(0.0);
        }
    }

    /// Why the next one does not enter, where `waiting` wait.
    pub(in crate::policy) fn hold(&self, waiting: u32) -> Hold {
        let inside = self.inside + self.entered;
        let (needs, limit) = match (self.open, inside >= self.cap) {
            (false, _) => (self.due(), waiting),
            (true, true) => (inside + 1, self.cap),
            (true, false) => (self.entered + 1, self.due()),
        };
        Hold::new(HoldReason::BelowThreshold, needs, limit)
    }
}

fn width(threshold: f64) -> f64 {
    libm::ceil(threshold - EPSILON)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(threshold: f64, waiting: &[u32], forced: bool) -> Vec<u32> {
        let mut gate = Gate::new(threshold, 10);
        let service = |&waiting: &u32| {
            gate.begin(waiting, 0);
            gate.open |= forced;
            let mut left = waiting;
            while gate.admits() && left > 0 {
                gate.enter();
                left -= 1;
            }
            gate.settle();
            waiting - left
        };
        waiting.iter().map(service).collect()
    }

    #[test]
    fn integer_thresholds_let_exactly_n_enter() {
        assert_eq!(entries(3.0, &[3, 5, 9, 2, 4], false), [3, 3, 3, 0, 3]);
        assert_eq!(entries(3.0, &[3, 5, 9, 2, 4], true), [3, 3, 3, 2, 3]);
        assert_eq!(entries(2.0 + 1e-12, &[9, 9], false), [2, 2], "rounding errors are not fractions");
        assert_eq!(entries(2.0 - 1e-12, &[9, 9], false), [2, 2]);
    }

    #[test]
    fn fractions_accrue_as_credit() {
        assert_eq!(entries(2.5, &[9; 6], false), [2, 3, 2, 3, 2, 3]);
        assert_eq!(entries(0.25, &[9; 9], false), [0, 0, 0, 1, 0, 0, 0, 1, 0]);
        assert_eq!(entries(0.5, &[0, 0, 0, 0, 9, 9, 9], false), [0, 0, 0, 0, 1, 0, 1], "a closed gate accrues nothing");
    }

    #[test]
    fn services_without_a_batch_accrue_up_to_the_next_entry() {
        let mut gate = Gate::new(0.25, 10);
        let mut passed = Vec::new();
        for _ in 0..3 {
            passed.push(gate.services_until_due());
            gate.pass(gate.services_until_due());
            gate.begin(9, 0);
            assert!(gate.admits());
            gate.enter();
            gate.settle();
        }
        assert!(
            passed.iter().all(|&services| (services - 3.0).abs() < f64::EPSILON),
            "every fourth service: {passed:?}"
        );
        assert!(Gate::new(2.5, 10).services_until_due() < f64::EPSILON);
    }

    #[test]
    fn unused_credit_is_bounded() {
        assert_eq!(entries(0.5, &[0, 0, 0, 0, 0, 0, 9, 9, 9, 9], true), [0, 0, 0, 0, 0, 0, 1, 1, 1, 0]);
        assert_eq!(entries(2.5, &[0, 0, 0, 9, 9, 9], true), [0, 0, 0, 3, 3, 3]);
    }

    #[test]
    fn the_cap_limits_what_is_inside() {
        let mut gate = Gate::new(0.25, 10);
        (0..20).for_each(|_| {
            gate.begin(5, 3);
            gate.settle();
        });
        assert!(!gate.admits(), "three are inside, the cap is 0.25 · 10");
        gate.begin(5, 2);
        assert!(gate.admits());
    }
}
