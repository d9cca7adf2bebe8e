//! The core's errors as Python exceptions. The one place where they are converted.

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::{PyErr, create_exception};
use wait_core::Error;
use wait_sim::SimError;

create_exception!(wait_core, WaitCoreError, PyValueError, "An input that wait-core refuses; nothing has changed.");
create_exception!(wait_core, CapacityError, WaitCoreError, "A request that could not run even alone.");
create_exception!(wait_core, DuplicateIdError, WaitCoreError, "A request id that is in use.");
create_exception!(wait_core, QueueFullError, WaitCoreError, "The bound on waiting requests or tokens is reached.");
create_exception!(wait_core, DeadlineError, WaitCoreError, "A request that would wait longer than it may.");
create_exception!(wait_core, StalledError, WaitCoreError, "A policy under which nothing will ever run again.");

/// The exception for an error of the core.
#[allow(clippy::needless_pass_by_value)] // the shape that map_err wants
pub(crate) fn core(error: Error) -> PyErr {
    let message = short(error.to_string());
    match error {
        Error::TooLarge { .. } => CapacityError::new_err(message),
        Error::DuplicateId { .. } => DuplicateIdError::new_err(message),
        Error::QueueFull { .. } => QueueFullError::new_err(message),
        Error::DeadlineUnreachable { .. } => DeadlineError::new_err(message),
        _ => WaitCoreError::new_err(message),
    }
}

/// The exception for an error of the simulator; an interruption is the caller's own exception, already raised.
pub(crate) fn simulation(error: SimError) -> PyErr {
    match error {
        SimError::Refused(error) => core(error),
        SimError::Stalled { .. } => StalledError::new_err(error.to_string()),
        SimError::Interrupted { .. } => PyRuntimeError::new_err(error.to_string()),
    }
}

/// The exception for an error of the planning formulas.
pub(crate) fn planning(error: &Error) -> PyErr {
    WaitCoreError::new_err(short(error.to_string()))
}

/// A readable message: names and values come from files, and may be of any length.
pub(crate) fn short(message: String) -> String {
    const BEGIN: usize = 300;
    const END: usize = 300;
    let length = message.chars().count();
    if length <= BEGIN + END {
        return message;
    }
    let begin = message.chars().take(BEGIN);
    let end = message.chars().skip(length - END);
    begin.chain(['…']).chain(end).collect()
}
