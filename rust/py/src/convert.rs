//! Python values in, Rust values out, with the name of whatever was wrong.

use std::fmt::{self, Display, Formatter};

use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use serde::de::DeserializeOwned;
use wait_core::{Config, Hit, RequestId};

use crate::error::{self, WaitCoreError};

/// Settings from keyword arguments or a dictionary.
pub(crate) fn config(settings: Option<&Bound<'_, PyDict>>) -> PyResult<Config> {
    let value = match settings {
        Some(settings) => json(settings.as_any(), "settings")?,
        None => serde_json::Map::new(),
    };
    Config::from_map(value).map_err(error::core)
}

/// A number or a text of the caller's, or a list of them: what its Rust type cannot hold is refused like any other input.
pub(crate) fn ranged<'py, T: FromPyObjectOwned<'py>>(value: &Bound<'py, PyAny>) -> PyResult<T> {
    value.extract::<T>().map_err(|error| {
        let (py, error): (_, PyErr) = (value.py(), error.into());
        if error.is_instance_of::<PyOverflowError>(py) {
            WaitCoreError::new_err(format!("{} is out of range", shown(value)))
        } else if error.is_instance_of::<PyValueError>(py) && !error.is_instance_of::<WaitCoreError>(py) {
            WaitCoreError::new_err(format!("{}: {}", shown(value), error.value(py)))
        } else {
            error
        }
    })
}

/// A hit in Python: (id, computed tokens, shared tokens) or (id, computed tokens, shared tokens, evicted tokens).
pub(crate) struct HitOf(pub(crate) RequestId, pub(crate) Hit);

impl<'py> FromPyObject<'_, 'py> for HitOf {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let (id, computed, shared, evicted) = match value.len() {
            Ok(4) => value.extract()?,
            _ => value.extract::<(_, _, _)>().map(|(id, computed, shared)| (id, computed, shared, 0))?,
        };
        Ok(Self(id, Hit { computed, shared, evicted }))
    }
}

/// A Python value made of what JSON has, `name` for messages.
pub(crate) fn json<T: DeserializeOwned>(value: &Bound<'_, PyAny>, name: &str) -> PyResult<T> {
    check(value, &Place::Root(name), 0, &mut MOST_VALUES.clone())?;
    // Through JSON, so that errors are found and worded as those of settings are: with the place of the wrong value.
    let plain: serde_json::Value = pythonize::depythonize(value)
        .map_err(|error| WaitCoreError::new_err(error::short(format!("{name}: {error}"))))?;
    wait_core::from_json(&plain, name).map_err(error::core)
}

/// Deepest nesting of settings.
const DEPTH: usize = 16;

/// Most values in them: far above what a learned state or a table of types has, and read in well under a second.
const MOST_VALUES: usize = 1 << 20;

/// Where in the settings a value stands.
enum Place<'a> {
    Root(&'a str),
    Key(&'a Place<'a>, &'a str),
    Index(&'a Place<'a>, usize),
}

impl Display for Place<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Place::Root(name) => f.write_str(name),
            Place::Key(Place::Root("settings"), key) => f.write_str(key),
            Place::Key(within, key) => write!(f, "{within}.{key}"),
            Place::Index(within, i) => write!(f, "{within}[{i}]"),
        }
    }
}

/// Refuses, while its place is known, whatever JSON cannot hold (NaN, numbers beyond 64 bits, objects, containers of
/// other kinds), and what never ends: a container in itself, at any depth or breadth. `depythonize` follows any
/// container to any depth, so everything that reaches it must have been checked here.
fn check(value: &Bound<'_, PyAny>, place: &Place<'_>, depth: usize, left: &mut usize) -> PyResult<()> {
    let refuse = |problem: &str| Err(WaitCoreError::new_err(error::short(format!("{place}{problem}"))));
    if depth == DEPTH {
        return refuse(": nested too deeply");
    }
    let Some(fewer) = left.checked_sub(1) else {
        return refuse(&format!(": more than {MOST_VALUES} values"));
    };
    *left = fewer;
    if let Ok(map) = value.cast::<PyDict>() {
        for (key, item) in map {
            let Ok(text) = key.cast::<PyString>() else {
                return refuse(&format!(": the key {} is not a string", shown(&key)));
            };
            let Ok(text) = text.to_cow() else {
                return refuse(&format!(": the key {} is not Unicode", shown(&key)));
            };
            check(&item, &Place::Key(place, &text), depth + 1, left)?;
        }
    } else if let Ok(list) = value.cast::<PyList>() {
        for (i, item) in list.iter().enumerate() {
            check(&item, &Place::Index(place, i), depth + 1, left)?;
        }
    } else if let Ok(tuple) = value.cast::<PyTuple>() {
        for (i, item) in tuple.iter().enumerate() {
            check(&item, &Place::Index(place, i), depth + 1, left)?;
        }
    } else if let Ok(number) = value.cast::<PyFloat>() {
        let number = number.value();
        if !number.is_finite() {
            return refuse(&format!(" = {number}: must be finite"));
        }
    } else if value.is_instance_of::<PyInt>() {
        if value.extract::<u64>().is_err() && value.extract::<i64>().is_err() {
            return refuse(&format!(" = {}: beyond 64 bits", shown(value)));
        }
    } else if let Ok(text) = value.cast::<PyString>() {
        if text.to_cow().is_err() {
            return refuse(&format!(" = {}: not Unicode", shown(value)));
        }
    } else if !value.is_none() {
        return refuse(&format!(" = {}: not a number, a string, a list or a dictionary", shown(value)));
    }
    Ok(())
}

/// A value as messages show it: truncated, or its type where it cannot be shown.
fn shown(value: &Bound<'_, PyAny>) -> String {
    const WIDTH: usize = 60;
    match value.repr() {
        Ok(text) => {
            let text = text.to_string_lossy();
            let cut: String = text.chars().take(WIDTH).collect();
            if cut.len() < text.len() { cut + "…" } else { cut }
        }
        Err(_) => value.get_type().to_string(),
    }
}
