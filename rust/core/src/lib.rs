//! Placeholder.
#![forbid(unsafe_code)]

pub mod cost;
pub mod fluid;
pub mod planning_error;
pub mod threshold;
pub mod workload;
