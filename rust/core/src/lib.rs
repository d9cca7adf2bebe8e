//! wait-core: the scheduling core of an LLM inference server.
//!
//! Decisions only: no clock, no I/O, no randomness. The model, the vocabulary and the two paper policies are those of
//! *Optimizing LLM Inference: Fluid-Guided Online Scheduling with Memory Constraints* (arXiv 2504.11320).
#![forbid(unsafe_code)]

pub mod capacity;
pub mod config;
pub mod cost;
pub mod error;
pub mod fluid;
mod forecast;
mod hold;
mod invariants;
mod lane;
mod learn;
mod lengths;
mod line;
mod list;
mod memory;
mod mixture;
mod plan;
pub mod planning_error;
pub mod policy;
mod report;
mod request;
pub mod safety;
mod scheduler;
pub mod segment;
pub mod threshold;
mod view;
mod waiting_time;
pub mod workload;

pub use config::Config;
pub use error::{Error, Result};
pub use forecast::KvForecast;
pub use lane::Lane;
pub use memory::BlockPool;
pub use plan::{Chunk, Hold, HoldReason, Origin, Plan, Refusal};
pub use report::{Report, StepTime};
pub use request::{LengthHint, Phase, Request, RequestId, Slot, Tracked};
pub use scheduler::{Scheduler, Stats};
pub use view::{Limits, View};
