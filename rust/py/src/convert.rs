//! Python values in, Rust values out, with the name of what was wrong.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyList, PyTuple};
use serde::de::DeserializeOwned;
use wait_core::Config;

use crate::error::{self, WaitCoreError};

/// Settings from keyword arguments or a dictionary.
pub(crate) fn config(settings: Option<&Bound<'_, PyDict>>) -> PyResult<Config> {
    let value = match settings {
        Some(settings) => {
            refuse_nonfinite(settings.as_any(), "settings")?;
            json(settings.as_any(), "settings")?
        }
        None => serde_json::Map::new(),
    };
    Config::from_map(value).map_err(error::core)
}

/// Any serialisable Python value, `name` for messages.
pub(crate) fn json<T: DeserializeOwned>(value: &Bound<'_, PyAny>, name: &str) -> PyResult<T> {
    refuse_nonfinite(value, name)?;
    pythonize::depythonize(value).map_err(|error| WaitCoreError::new_err(format!("{name}: {error}")))
}

/// JSON has no NaN, and would turn it into null: name it while its place is known.
fn refuse_nonfinite(value: &Bound<'_, PyAny>, name: &str) -> PyResult<()> {
    if let Ok(number) = value.cast::<PyFloat>() {
        let number = number.value();
        if !number.is_finite() {
            return Err(WaitCoreError::new_err(format!("{name} = {number}: must be finite")));
        }
    } else if let Ok(map) = value.cast::<PyDict>() {
        for (key, item) in map {
            let key = key.str()?.to_string();
            let path = if name == "settings" { key } else { format!("{name}.{key}") };
            refuse_nonfinite(&item, &path)?;
        }
    } else if value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>() {
        for (i, item) in value.try_iter()?.enumerate() {
            refuse_nonfinite(&item?, &format!("{name}[{i}]"))?;
        }
    }
    Ok(())
}
