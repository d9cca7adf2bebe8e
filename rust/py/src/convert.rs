//! Python values in, Rust values out, with the name of what was wrong.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyList, PyTuple};
use serde::de::DeserializeOwned;
use wait_core::Config;

use crate::error::{self, WaitCoreError};

/// Settings from keyword arguments or a dictionary.
pub(crate) fn config(settings: Option<&Bound<'_, PyDict>>) -> PyResult<Config> {
    let value = match settings {
        Some(settings) => json(settings.as_any(), "settings")?,
        None => serde_json::Map::new(),
    };
    Config::from_map(value).map_err(error::core)
}

/// Any serialisable Python value, `name` for messages.
pub(crate) fn json<T: DeserializeOwned>(value: &Bound<'_, PyAny>, name: &str) -> PyResult<T> {
    check(value, name, 0)?;
    pythonize::depythonize(value).map_err(|error| WaitCoreError::new_err(format!("{name}: {error}")))
}

/// Deepest nesting of settings.
const DEPTH: usize = 16;

/// Refuses what JSON cannot hold (NaN, numbers beyond 64 bits, objects) while its place in the settings is known.
fn check(value: &Bound<'_, PyAny>, name: &str, depth: usize) -> PyResult<()> {
    if depth == DEPTH {
        return Err(WaitCoreError::new_err(format!("{name}: nested too deeply")));
    }
    if let Ok(map) = value.cast::<PyDict>() {
        for (key, item) in map {
            let key = key.str()?.to_string();
            let path = if name == "settings" { key } else { format!("{name}.{key}") };
            check(&item, &path, depth + 1)?;
        }
    } else if value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>() {
        for (i, item) in value.try_iter()?.enumerate() {
            check(&item?, &format!("{name}[{i}]"), depth + 1)?;
        }
    } else if let Ok(number) = value.cast::<PyFloat>() {
        let number = number.value();
        if !number.is_finite() {
            return Err(WaitCoreError::new_err(format!("{name} = {number}: must be finite")));
        }
    } else if let Err(error) = pythonize::depythonize::<serde_json::Value>(value) {
        return Err(WaitCoreError::new_err(format!("{name} = {}: {error}", value.repr()?)));
    }
    Ok(())
}
