//! What is learned online: how long outputs are, what the residents will hold, how long iterations take. Absent: how a
//! policy uses it.

mod forecast;
pub(crate) mod iteration_time;
mod survival;

pub use forecast::KvForecast;
pub(crate) use forecast::*;
pub(crate) use survival::*;
