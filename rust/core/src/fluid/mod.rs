//! The mathematics of the paper (arXiv 2504.11320): equilibrium, thresholds, safety buffer, and the bounds that no policy
//! exceeds. Functions of a workload, a law and limits; nothing here has a state. Absent: the policies that apply thresholds
//! (policy/wait/, policy/nested_wait/).

pub mod capacity;
mod equilibrium;
pub mod goodput;
mod nested_thresholds;
mod prefill_mixture;
mod queue_bound;
mod safety_buffer;
mod segments;
mod stage_caps;
mod wait_thresholds;

pub use capacity::*;
pub use equilibrium::*;
pub use nested_thresholds::*;
pub use queue_bound::*;
pub use safety_buffer::*;
pub use segments::*;
pub use stage_caps::*;
pub use wait_thresholds::*;
