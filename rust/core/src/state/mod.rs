//! Where every request is, and what the engine holds, updated step by step. Absent: any decision (policy/), and what
//! memory costs (memory/).

mod invariants;
pub(crate) mod linked_list;
mod prefixes;
pub(crate) mod queue;
mod tracked;
mod view;

pub(crate) use prefixes::{Found, Prefixes};
pub use tracked::{Phase, Tracked};
pub use view::{Limits, View};
