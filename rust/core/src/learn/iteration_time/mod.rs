//! What is learned online from what a host reports: how long iterations take. Absent: what a policy makes of it.

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
