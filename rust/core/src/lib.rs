//! wait-core: the scheduling core of an LLM inference server.
//!
//! Decisions only: no clock, no I/O, no randomness. The model, the vocabulary and the two paper policies are those of
//! *Optimizing LLM Inference: Fluid-Guided Online Scheduling with Memory Constraints* (arXiv 2504.11320).
#![forbid(unsafe_code)]

pub mod config;
pub mod error;
pub mod fluid;
mod learn;
mod lookup;
mod memory;
pub mod model;
mod plan;
pub mod policy;
pub mod routing;
mod scheduler;
mod state;

pub use config::Config;
pub use error::{Error, Result, from_json};
pub use learn::KvForecast;
pub use memory::{BlockPool, GroupKind, KvGroup, KvLayout, Lane};
pub use model::{Hit, LengthHint, Request, RequestId, Slot};
pub use plan::{Chunk, Hold, HoldReason, Origin, Plan, Refusal};
pub use scheduler::{Report, Scheduler, Stats, StepTime};
pub use state::{Limits, Phase, Tracked, View};
