//! The sidecar inside the process: between the application's AMQP clients and two brokers.

use std::sync::Arc;

use nats_bridge_verbs::sidecar as verbs;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::bridge;
use crate::completions::Completions;
use crate::errors;
use crate::home::{self, Home, Owned};
use crate::listener::AmqpListener;

/// A sidecar. The Python classes `nats_bridge.Sidecar` and `nats_bridge.aio.Sidecar` are its two faces.
#[pyclass(frozen, module = "nats_bridge._native")]
pub struct Sidecar {
    core: Owned<Arc<verbs::Running>>,
}

impl Sidecar {
    fn new(home: &'static Home, core: verbs::Running) -> Self {
        Sidecar { core: Owned::new(home, Arc::new(core)) }
    }
}

#[pymethods]
impl Sidecar {
    /// Starts it and waits until it takes clients. `options` are JSON.
    #[staticmethod]
    fn start(py: Python<'_>, nats: Vec<String>, connect: &Bound<'_, PyDict>, options: &str) -> PyResult<Sidecar> {
        let home = home::here(py)?;
        let config =
            verbs::config(bridge::config(nats, connect, "connect.")?, options).map_err(|e| errors::from_fault(&e))?;
        let core = home.wait(py, verbs::Running::start(config))?.map_err(|e| errors::from_fault(&e))?;
        Ok(Sidecar::new(home, core))
    }

    /// Starts it, or gives what to wait for.
    #[staticmethod]
    fn start_start(
        py: Python<'_>,
        completions: &Completions,
        nats: Vec<String>,
        connect: &Bound<'_, PyDict>,
        options: &str,
    ) -> PyResult<Py<PyAny>> {
        let home = home::here(py)?;
        let config =
            verbs::config(bridge::config(nats, connect, "connect.")?, options).map_err(|e| errors::from_fault(&e))?;
        completions.start(py, verbs::Running::start(config), move |py, started| {
            let core = started.map_err(|e| errors::from_fault(&e))?;
            Ok(Py::new(py, Sidecar::new(home, core))?.into_any())
        })
    }

    /// Where its clients connect to, and how it is stopped.
    #[getter]
    fn listener(&self) -> PyResult<AmqpListener> {
        Ok(AmqpListener::new(self.core.home(), self.core.get()?.listener()))
    }

    /// Asks its cutover what `verb` says with arguments of JSON, and gives the answer as JSON.
    fn ask(&self, py: Python<'_>, verb: String, json: String) -> PyResult<String> {
        let work = self.core.get()?.ask(verb, json);
        self.core.home().wait(py, work)?.map_err(|e| errors::from_fault(&e))
    }

    /// Asks its cutover, or gives what to wait for.
    fn ask_start(&self, completions: &Completions, py: Python<'_>, verb: String, json: String) -> PyResult<Py<PyAny>> {
        let work = self.core.get()?.ask(verb, json);
        completions.start_ask(py, work)
    }
}
