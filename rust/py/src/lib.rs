//! `wait_core._core`: thin wrappers around the crates, one file a class. Nothing is decided here.

mod batch;
mod columns;
mod convert;
mod error;
mod fleet;
mod plan;
mod planning;
mod routing;
mod run;
mod scheduler;
mod simulation;

/// The compiled core of wait-core.
#[pyo3::pymodule]
mod _core {
    #[pymodule_export]
    use super::batch::batch;
    #[pymodule_export]
    use super::error::{CapacityError, DeadlineError, DuplicateIdError, QueueFullError, StalledError, WaitCoreError};
    #[pymodule_export]
    use super::plan::{Hold, Plan};
    #[pymodule_export]
    use super::planning::{Planner, SafetyBuffer};
    #[pymodule_export]
    use super::routing::{Choice, Router};
    #[pymodule_export]
    use super::run::{Run, run};
    #[pymodule_export]
    use super::scheduler::Scheduler;
    #[pymodule_export]
    use super::simulation::{group_types, iteration_seconds, probe, sample};

    #[pymodule_init]
    fn init(module: &pyo3::Bound<'_, pyo3::types::PyModule>) -> pyo3::PyResult<()> {
        use pyo3::types::PyModuleMethods;
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("SETTINGS", wait_core::Config::keys())?;
        module.add("ROUTERS", wait_core::routing::RouterName::ALL.map(wait_core::routing::RouterName::name))?;
        module.add("DEBUG_BUILD", cfg!(debug_assertions))
    }
}
