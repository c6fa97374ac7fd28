//! The core's errors as Python exceptions. The classes are in `nats_bridge/errors.py`.

use nats_bridge::{Error, ErrorKind, Landed};
use nats_bridge_verbs::{Fault, spelled, type_text};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

/// What Python calls what is given by name, options included.
pub const ARGUMENT: &str = "argument";

/// The exception for an error of the core.
pub fn from_core(error: &Error) -> PyErr {
    let (text, context) = spelled(error, str::to_owned);
    build(error.kind().name(), error.landed(), error.is_temporary(), &text, &context)
}

/// The same for one of many messages, with its place among them.
pub fn of_message(index: usize, error: &Error) -> PyErr {
    let (text, mut context) = spelled(error, str::to_owned);
    context.push(("index".to_owned(), index.to_string()));
    let text = format!("messages[{index}]: {text}");
    build(error.kind().name(), error.landed(), error.is_temporary(), &text, &context)
}

/// The exception for a verb that failed.
pub fn from_fault(fault: &Fault) -> PyErr {
    match fault {
        Fault::Argument { field, why } => invalid(field, why),
        Fault::Type { option, why } => PyTypeError::new_err(type_text(ARGUMENT, option, why.as_deref())),
        Fault::Core(error) => from_core(error),
        Fault::Told { code, text, context } => build(code, Landed::No, false, text, context),
    }
}

/// The exception for something that ended by itself.
pub fn closed(why: &str) -> PyErr {
    let context = [("why", why.to_owned())];
    build(ErrorKind::Closed.name(), Landed::No, false, &format!("closed: {why}"), &context)
}

/// The exception for a second settle of one delivery.
pub fn already_settled(subject: &str, sequence: u64) -> PyErr {
    let context = [("subject", subject.to_owned()), ("sequence", sequence.to_string())];
    let text = format!("already settled: subject={subject} sequence={sequence}");
    build(ErrorKind::AlreadySettled.name(), Landed::No, false, &text, &context)
}

/// The exception for an argument that the core was not asked about because its type cannot hold it.
pub fn invalid(field: &str, why: &str) -> PyErr {
    let context = [("field", field.to_owned()), ("why", why.to_owned())];
    build(ErrorKind::Config.name(), Landed::No, false, &format!("config: field={field} why={why}"), &context)
}

/// The exception for use in a process other than the one that connected.
pub fn forked(pid: u32) -> PyErr {
    let text = format!(
        "forked: connected in process {pid}, used in process {}: a connection does not survive a fork, connect again in the child",
        std::process::id()
    );
    build("forked", Landed::No, false, &text, &[("connected_in", pid.to_string())])
}

/// The exception for work that ended without a result, which is a defect of ours.
pub fn abandoned() -> PyErr {
    let text = "closed: the call ended without a result (the message may have been stored)";
    build(ErrorKind::Closed.name(), Landed::Unknown, false, text, &[] as &[(&str, String)])
}

fn build(code: &str, landed: Landed, temporary: bool, text: &str, context: &[(impl AsRef<str>, String)]) -> PyErr {
    Python::attach(|py| {
        let made = || {
            let pairs = PyDict::new(py);
            for (key, value) in context {
                pairs.set_item(key.as_ref(), value)?;
            }
            static BUILD: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
            let build = BUILD.import(py, "nats_bridge.errors", "build")?;
            Ok(PyErr::from_value(build.call1((code, landed.name(), temporary, text, pairs))?))
        };
        made().unwrap_or_else(|error: PyErr| error)
    })
}
