//! Pacing: where outputs are alike, admission at no more than C/E[A] requests an iteration, the balanced composition of
//! the fluid model.
//!
//! Requests of nearly equal length that enter together leave together: memory then swings between full and half empty
//! forever, because the queue refills it at once. A bucket of KV tokens · iterations that fills with C an iteration, and of
//! which each request takes E[A] when it is first admitted, spreads them. Different lengths disperse a cohort by
//! themselves, and so do preemptions, where few requests fill the cache and idle slots cost more than they do.

use serde::{Deserialize, Serialize};

use super::traffic::Traffic;

/// Rate of the bucket over C: what one iteration leaves unused another may use.
const SLACK: f64 = 1.05;
/// Size of the bucket, in C · E[l']. Its debt is bounded, so that many requests that enter without asking (resumed, or
/// admitted by the host itself) delay others for a while, not for as long as they stay.
const BURST: f64 = 0.05;
/// What it holds where no request waits, in C · E[l']: a cohort forms only where the queue refills the memory.
const AT_REST: f64 = 0.2;
/// Output tokens that a request holds on average, as a share of all it holds: with fewer a cohort leaves too little of the
/// memory idle.
const GROWTH: f64 = 0.2;
/// Requests of mean size whose recomputation must cost more than the slots idle until the balanced composition, admitted
/// at once, would overflow.
const RECOMPUTED: f64 = 2.0;

/// Most that a bucket holds or owes: the largest cache for as many iterations as the longest output has.
const MOST: f64 = (1_u64 << 60) as f64;

/// The bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pace {
    /// What the bucket holds, KV tokens · iterations.
    credit: f64,
}

impl Pace {
    /// Whether it could have been learned.
    pub(super) fn is_sound(self) -> bool {
        self.credit.abs() <= MOST
    }

    /// This many iterations with `capacity` KV tokens have passed.
    pub(super) fn fill(&mut self, traffic: &Traffic, iterations: i64, capacity: f64) {
        let most = BURST * capacity * traffic.output();
        let filled = self.credit.max(-most) + SLACK * capacity * iterations as f64;
        self.credit = if traffic.is_known() { filled.min(most.max(self.credit)) } else { most };
    }

    /// No request waits.
    pub(super) fn rest(&mut self, traffic: &Traffic, capacity: f64) {
        self.credit = self.credit.max(AT_REST * capacity * traffic.output());
    }

    /// A request was admitted for the first time.
    pub(super) fn take(&mut self, traffic: &Traffic) {
        self.credit -= traffic.cost();
    }

    /// The host refused it.
    pub(super) fn give_back(&mut self, traffic: &Traffic) {
        self.credit += traffic.cost();
    }

    /// Whether pacing pays where a slot is worth `slot` prompt tokens an iteration. Admitted at once, the balanced
    /// composition overflows after half an output.
    pub(super) fn pays(traffic: &Traffic, slot: f64) -> bool {
        let half = 0.5 * traffic.output();
        let held = traffic.cost() / traffic.output();
        half >= GROWTH * held && half * slot < RECOMPUTED * held
    }

    /// Whether one more may enter after `pending` others.
    pub(super) fn admits(self, traffic: &Traffic, pending: usize) -> bool {
        self.credit >= pending as f64 * traffic.cost()
    }

    /// What the bucket holds, in admissions.
    pub(super) fn admissions(self, traffic: &Traffic) -> f64 {
        self.credit / traffic.cost().max(1.0)
    }
}
