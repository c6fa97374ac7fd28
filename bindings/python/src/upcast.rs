//! Steps to newer versions of a schema, which are Python callables.

use std::collections::BTreeMap;

use bytes::Bytes;
use nats_bridge::schema::Upcasters;
use pyo3::exceptions::{PyKeyboardInterrupt, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::options::Given;
use crate::publish;

/// The core's steps, by schema and by the version that each begins with.
pub fn upcasters(given: &Given<'_>, py: Python<'_>) -> PyResult<Upcasters> {
    let mut upcasters = Upcasters::new();
    for (schema, steps) in given.read::<BTreeMap<String, BTreeMap<u32, Py<PyAny>>>>()? {
        for (from, step) in steps {
            if !step.bind(py).is_callable() {
                let text = format!(
                    "argument 'upcast': version {from} of '{schema}' has a callable, not {}",
                    step.bind(py).get_type().name()?
                );
                return Err(PyTypeError::new_err(text));
            }
            upcasters = upcasters.step(&schema, from, move |payload| run(&step, payload));
        }
    }
    Ok(upcasters)
}

// On any thread, holding no lock of the core's.
fn run(step: &Py<PyAny>, payload: &[u8]) -> Result<Bytes, String> {
    let outcome = tokio::task::block_in_place(|| Python::try_attach(|py| attempt(py, step, payload)));
    match outcome {
        Some(outcome) => outcome,
        // The interpreter ends: the message is no dead letter, the server delivers it to another process.
        None => loop {
            std::thread::park();
        },
    }
}

fn attempt(py: Python<'_>, step: &Py<PyAny>, payload: &[u8]) -> Result<Bytes, String> {
    let mut interrupted = false;
    let outcome = loop {
        let made = step.call1(py, (PyBytes::new(py, payload),)).and_then(|made| newer(made.bind(py)));
        match made {
            // Ctrl-C is for who waits, and says nothing of this message.
            Err(error) if error.is_instance_of::<PyKeyboardInterrupt>(py) => interrupted = true,
            Err(error) => break Err(error.to_string()),
            Ok(payload) => break Ok(payload),
        }
    };
    match interrupted.then(|| py.import("_thread")?.call_method0("interrupt_main")) {
        Some(Err(error)) => Err(error.to_string()),
        Some(Ok(_)) | None => outcome,
    }
}

fn newer(made: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    let kind = made.get_type().name()?;
    publish::bytes(made).map_err(|_| PyTypeError::new_err(format!("the step returned {kind}, not bytes")))
}
