//! The inputs: requests as a host declares them, workloads as the paper describes them, the iteration-time law. Absent:
//! what the scheduler knows of a request beyond that (state/).

mod iteration_time;
mod request;
mod workload;

pub use iteration_time::*;
pub use request::{Hit, LengthHint, Request, RequestId, Slot};
pub use workload::*;
