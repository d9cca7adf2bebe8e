//! What is learned online from the reports of a host: how long iterations take. Absent: how a policy uses it.

mod fit;
mod moments;
mod nonnegative;
mod planned_steps;
#[cfg(test)]
mod tests;
mod trials;

pub(crate) use fit::{FitState, IterationTimeFit};
pub(crate) use planned_steps::PlannedSteps;
pub(crate) use trials::Trials;
