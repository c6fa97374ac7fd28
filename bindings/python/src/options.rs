//! Options: a Python dict of names and values, read one by one into a struct of the core.
//!
//! A name that is not known is refused, never ignored; `None` leaves the core's default.

use std::path::PathBuf;
use std::time::Duration;

use nats_bridge::encryption::Keys;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors;

/// The value given for one option.
pub struct Given<'py> {
    name: String,
    value: Bound<'py, PyAny>,
}

impl<'py> Given<'py> {
    /// The value as `T`.
    pub fn read<T>(&self) -> PyResult<T>
    where
        T: for<'a> FromPyObject<'a, 'py>,
    {
        self.value.extract::<T>().map_err(|error| {
            let error: PyErr = error.into();
            PyTypeError::new_err(format!("option '{}': {}", self.name, error.value(self.value.py())))
        })
    }

    /// A number of milliseconds that is not negative.
    pub fn millis(&self) -> PyResult<Duration> {
        Ok(Duration::from_millis(self.count()?))
    }

    /// The keys that a path, or `env:NAME`, says where to find.
    pub fn keys(&self) -> PyResult<Keys> {
        let source = self.read::<PathBuf>()?;
        let source = source.to_str().ok_or_else(|| errors::invalid(&self.name, "it is not Unicode"))?;
        Keys::from_source(source).map_err(|e| errors::from_core(&e))
    }

    /// A number that is not negative and fits `T`.
    pub fn count<T: TryFrom<i64>>(&self) -> PyResult<T> {
        T::try_from(self.read::<i64>()?).map_err(|_| errors::invalid(&self.name, "out of range"))
    }
}

/// Gives each option that is not `None` to `set`, which answers whether it knows the name.
pub fn each<'py>(
    options: &Bound<'py, PyDict>,
    mut set: impl FnMut(&str, &Given<'py>) -> PyResult<bool>,
) -> PyResult<()> {
    for (name, value) in options {
        let given = Given { name: name.extract()?, value };
        if !given.value.is_none() && !set(&given.name, &given)? {
            return Err(PyTypeError::new_err(format!("there is no option '{}'", given.name)));
        }
    }
    Ok(())
}

/// A number of milliseconds that is not negative.
pub fn millis(field: &str, ms: i64) -> PyResult<Duration> {
    u64::try_from(ms).map(Duration::from_millis).map_err(|_| errors::invalid(field, "must not be negative"))
}
