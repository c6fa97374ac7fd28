//! Arguments: values of Python, read by name, and options, a Python dict of names and values, read one by one into a struct of the
//! core.
//!
//! What has another type is a `TypeError`, what is out of range a `Config` error; both name the argument, and those it is within. A
//! name that is not known is refused, never ignored; `None` leaves the core's default.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use nats_bridge::encryption::Keys;
use nats_bridge_verbs::type_text;
use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMapping};

use crate::errors;

/// The exception for an argument of another type.
pub fn wrong_type(name: &str, wanted: &str, given: &Bound<'_, PyAny>) -> PyErr {
    let given = given.get_type().name().map(|name| name.to_string()).unwrap_or_default();
    PyTypeError::new_err(type_text(errors::ARGUMENT, name, Some(&format!("{wanted} is wanted, not {given}"))))
}

/// A type that options have.
pub trait Wanted {
    /// What it is called in Python.
    const WANTED: &'static str;
}

macro_rules! wanted {
    ($($type:ty: $name:literal),* $(,)?) => {
        $(impl Wanted for $type { const WANTED: &'static str = $name; })*
    };
}

wanted! {
    bool: "bool",
    f64: "float",
    String: "str",
    PathBuf: "str or os.PathLike",
    Vec<String>: "list[str]",
    Vec<PathBuf>: "list[str | os.PathLike]",
    Bound<'_, PyMapping>: "a mapping of str to str",
    BTreeMap<String, BTreeMap<u32, Py<PyAny>>>: "a mapping of schemas to mappings of versions (int) to callables",
}

/// A value given under a name.
pub struct Given<'py> {
    name: String,
    value: Bound<'py, PyAny>,
}

impl<'py> Given<'py> {
    /// The value as `T`.
    pub fn read<T>(&self) -> PyResult<T>
    where
        T: for<'a> FromPyObject<'a, 'py> + Wanted,
    {
        self.value.extract::<T>().map_err(|_| wrong_type(&self.name, T::WANTED, &self.value))
    }

    /// The refusal of a value of another type than this.
    pub fn is_no(&self, wanted: &str) -> PyErr {
        wrong_type(&self.name, wanted, &self.value)
    }

    /// Gives each option of those that it holds to `set`; see [`each`].
    pub fn each(&self, set: impl FnMut(&str, &Given<'py>) -> PyResult<bool>) -> PyResult<()> {
        let options = self.value.cast::<PyDict>().map_err(|_| wrong_type(&self.name, "dict", &self.value))?;
        each(options, &format!("{}.", self.name), set)
    }

    /// The options that it holds, and what to say before their names.
    pub fn options(&self) -> PyResult<(&Bound<'py, PyDict>, String)> {
        let options = self.value.cast::<PyDict>().map_err(|_| wrong_type(&self.name, "dict", &self.value))?;
        Ok((options, format!("{}.", self.name)))
    }

    /// A number of milliseconds that is not negative.
    pub fn millis(&self) -> PyResult<Duration> {
        millis(&self.name, &self.value)
    }

    /// The keys that a path, or `env:NAME`, says where to find.
    pub fn keys(&self) -> PyResult<Keys> {
        let source = self.read::<PathBuf>()?;
        let source = source.to_str().ok_or_else(|| errors::invalid(&self.name, "it is not Unicode"))?;
        Keys::from_source(source).map_err(|e| errors::from_core(&e))
    }

    /// A whole number that fits `T` and is within what the option may be, which `bounds` says.
    pub fn count<T: TryFrom<i64>>(&self, bounds: &str) -> PyResult<T> {
        T::try_from(whole(&self.name, &self.value)?).map_err(|_| errors::invalid(&self.name, bounds))
    }
}

/// Gives each option that is not `None` to `set`, which answers whether it knows the name; `within` is said before it.
pub fn each<'py>(
    options: &Bound<'py, PyDict>,
    within: &str,
    mut set: impl FnMut(&str, &Given<'py>) -> PyResult<bool>,
) -> PyResult<()> {
    for (name, value) in options {
        let short = text("name of an option", &name)?;
        let given = Given { name: format!("{within}{short}"), value };
        if !given.value.is_none() && !set(&short, &given)? {
            return Err(PyTypeError::new_err(type_text(errors::ARGUMENT, &given.name, None)));
        }
    }
    Ok(())
}

/// A text.
pub fn text(name: &str, given: &Bound<'_, PyAny>) -> PyResult<String> {
    given.extract().map_err(|_| wrong_type(name, "str", given))
}

/// A truth value.
pub fn flag(name: &str, given: &Bound<'_, PyAny>) -> PyResult<bool> {
    given.extract().map_err(|_| wrong_type(name, "bool", given))
}

/// A whole number; one that is too large for any use is as large as it can be.
pub fn whole(name: &str, given: &Bound<'_, PyAny>) -> PyResult<i64> {
    match given.extract::<i64>() {
        Ok(number) => Ok(number),
        Err(error) if error.is_instance_of::<PyOverflowError>(given.py()) => {
            Ok(if given.lt(0)? { i64::MIN } else { i64::MAX })
        }
        Err(_) => Err(wrong_type(name, "int", given)),
    }
}

/// A number of milliseconds that is not negative.
pub fn millis(field: &str, given: &Bound<'_, PyAny>) -> PyResult<Duration> {
    let ms = whole(field, given)?;
    u64::try_from(ms)
        .map(Duration::from_millis)
        .map_err(|_| errors::invalid(field, "it is a number of milliseconds, at least 0"))
}
