//! What planning refuses, and why: bad arguments, unstable workloads, infeasible thresholds.

use std::fmt;

use thiserror::Error;

/// Why a plan could not be made. Every variant names the quantity and its value.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum PlanningError {
    /// An argument lies outside the range in which the formulas mean anything.
    #[error("{argument} = {value}: must be {requirement}")]
    InvalidArgument {
        /// Name of the argument, with its index where it is one of several.
        argument: String,
        /// The value as given.
        value: String,
        /// What would be accepted.
        requirement: &'static str,
    },
    /// The demand exceeds what the GPU serves with any batch, however large the memory (arXiv 2504.11320 §3, x ≥ 1).
    #[error(
        "unstable: the workload needs x = {load:.4} of the GPU's time (below 1 is stable); it is stable at {:.4} times \
         its rate or less",
        1.0 / load
    )]
    Unstable {
        /// x, the fraction of the GPU's time that the workload needs at the most efficient batch size.
        load: f64,
    },
    /// Some inequality of the feasible set fails.
    #[error("infeasible thresholds: {}", join(.violations))]
    Infeasible {
        /// The inequalities that fail, in the order in which they are checked.
        violations: Vec<Violation>,
    },
}

/// One inequality `left ≤ right` (or `<`) that fails.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    /// Which inequality, in the paper's symbols.
    pub condition: String,
    /// Value of the smaller side.
    pub left: f64,
    /// Value of the larger side.
    pub right: f64,
    /// What would make it hold.
    pub remedy: String,
}

impl Violation {
    /// How far the inequality is from holding, in its own unit; at or above 0.
    pub fn excess(&self) -> f64 {
        self.left - self.right
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (left, right, excess) = (self.left, self.right, self.excess());
        write!(f, "{} fails: {left:.6} against {right:.6}, off by {excess:.6}; {}", self.condition, self.remedy)
    }
}

fn join(violations: &[Violation]) -> String {
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

pub(crate) fn invalid(argument: impl Into<String>, value: &impl ToString, requirement: &'static str) -> PlanningError {
    PlanningError::InvalidArgument { argument: argument.into(), value: value.to_string(), requirement }
}

/// `value`, if it is finite and above 0.
pub(crate) fn positive(argument: &str, value: f64) -> Result<f64, PlanningError> {
    if value.is_finite() && value > 0.0 { Ok(value) } else { Err(invalid(argument, &value, "finite and above 0")) }
}

/// `value`, if it is finite and at least 0.
pub(crate) fn non_negative(argument: &str, value: f64) -> Result<f64, PlanningError> {
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err(invalid(argument, &value, "finite and at least 0")) }
}
