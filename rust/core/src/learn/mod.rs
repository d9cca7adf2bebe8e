//! What is learned online: how long outputs last, what the residents will hold, how long iterations take. Absent: what a
//! policy makes of it.

mod forecast;
pub(crate) mod iteration_time;
mod survival;

pub use forecast::KvForecast;
pub(crate) use forecast::*;
pub(crate) use survival::*;
