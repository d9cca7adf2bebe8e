//! wait-sim: a discrete-event simulator of an LLM server, built on the wait-core scheduling core.
//!
//! Integer nanoseconds, seeded randomness, no platform mathematics: the same inputs give the same report everywhere.
#![forbid(unsafe_code)]

mod batch;
mod clients;
mod column;
mod columns;
mod conversations;
pub mod dataset;
mod ends;
mod engine;
mod error;
mod fleet;
mod prefixes;
mod probe;
mod record;
mod recorder;
mod report;
mod requests;
mod rng;
mod run;
mod setup;
mod speculation;
mod transfer;

pub use batch::{Batch, Outcome, batch};
pub use conversations::Conversations;
pub use dataset::{Dataset, Sampled};
pub use error::SimError;
pub use fleet::{Change, ChangeKind, Fleet, FleetRun, PrefillPool, Served, fleet};
pub use prefixes::Prefixes;
pub use probe::{Probes, probe};
pub use record::{NEVER_NS, Run, Sample};
pub use report::{Slo, Spread, Summary};
pub use requests::{Arrival, Follow, Requests};
pub use rng::Stream;
pub use run::run;
pub use setup::{Hint, Lengths, Setup, StepTimes};
pub use transfer::Transfer;
