//! Placeholder.
#![forbid(unsafe_code)]

pub mod capacity;
pub mod cost;
pub mod fluid;
pub mod planning_error;
pub mod safety;
pub mod segment;
pub mod threshold;
pub mod workload;
