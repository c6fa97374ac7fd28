//! Messages that wait on disk.

use nats_bridge::outbox::Queued;
use pyo3::prelude::*;

use crate::bridge::Bridge;
use crate::completions::Completions;
use crate::errors;
use crate::home::{self, Home, Owned};
use crate::publish;

/// An outbox. The Python classes `nats_bridge.Outbox` and `nats_bridge.aio.Outbox` are its two faces.
#[pyclass(frozen, module = "nats_bridge._native")]
pub struct Outbox {
    core: Owned<nats_bridge::outbox::Outbox>,
}

impl Outbox {
    fn new(home: &'static Home, core: nats_bridge::outbox::Outbox) -> Self {
        Outbox { core: Owned::new(home, core) }
    }
}

fn queued(queued: Queued) -> (u64, String) {
    (queued.number, queued.id)
}

#[pymethods]
impl Outbox {
    /// Opens the file and waits.
    #[staticmethod]
    fn open(py: Python<'_>, json: &str) -> PyResult<Outbox> {
        let home = home::here(py)?;
        let config = nats_bridge_verbs::outbox::config(json).map_err(|e| errors::from_fault(&e))?;
        let core = home.wait(py, nats_bridge::outbox::Outbox::open(config))?.map_err(|e| errors::from_core(&e))?;
        Ok(Outbox::new(home, core))
    }

    /// Opens the file, or gives what to wait for.
    #[staticmethod]
    fn open_start(py: Python<'_>, completions: &Completions, json: &str) -> PyResult<Py<PyAny>> {
        let home = home::here(py)?;
        let config = nats_bridge_verbs::outbox::config(json).map_err(|e| errors::from_fault(&e))?;
        completions.start(py, nats_bridge::outbox::Outbox::open(config), move |py, opened| {
            let core = opened.map_err(|e| errors::from_core(&e))?;
            Ok(Py::new(py, Outbox::new(home, core))?.into_any())
        })
    }

    /// Publishes over this connection from now on.
    fn start(&self, py: Python<'_>, bridge: &Bridge) -> PyResult<()> {
        let work = self.core.get()?.start(bridge.core()?);
        self.core.home().wait(py, work)?.map_err(|e| errors::from_core(&e))
    }

    /// Publishes over this connection from now on, or gives what to wait for.
    fn start_start(&self, completions: &Completions, py: Python<'_>, bridge: &Bridge) -> PyResult<Py<PyAny>> {
        let (core, bridge) = (self.core.get()?.clone(), bridge.core()?.clone());
        completions.start(py, async move { core.start(&bridge).await }, |py, started| {
            started.map_err(|e| errors::from_core(&e))?;
            Ok(py.None())
        })
    }

    /// Takes a message and waits until it is on disk.
    fn put(
        &self,
        py: Python<'_>,
        subject: &Bound<'_, PyAny>,
        payload: &Bound<'_, PyAny>,
        id: Option<&Bound<'_, PyAny>>,
        headers: Option<&Bound<'_, PyAny>>,
        schema: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<(u64, String)> {
        let core = self.core.get()?;
        let message = publish::message(subject, payload, id, headers, schema)?;
        Ok(queued(self.core.home().wait(py, core.put(message))?.map_err(|e| errors::from_core(&e))?))
    }

    /// Takes a message, or gives what to wait for until it is on disk.
    #[allow(clippy::too_many_arguments)]
    fn put_start(
        &self,
        completions: &Completions,
        py: Python<'_>,
        subject: &Bound<'_, PyAny>,
        payload: &Bound<'_, PyAny>,
        id: Option<&Bound<'_, PyAny>>,
        headers: Option<&Bound<'_, PyAny>>,
        schema: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let core = self.core.get()?.clone();
        let message = publish::message(subject, payload, id, headers, schema)?;
        completions.start(py, async move { core.put(message).await }, |py, put| {
            Ok(queued(put.map_err(|e| errors::from_core(&e))?).into_pyobject(py)?.into_any().unbind())
        })
    }

    /// Takes many, all or none, and waits until they are on disk.
    fn put_many(&self, py: Python<'_>, messages: &Bound<'_, PyAny>) -> PyResult<Vec<(u64, String)>> {
        let core = self.core.get()?;
        let messages = publish::messages(messages)?;
        let put = self.core.home().wait(py, core.put_many(messages))?.map_err(|e| errors::from_core(&e))?;
        Ok(put.into_iter().map(queued).collect())
    }

    /// Takes many, all or none, or gives what to wait for until they are on disk.
    fn put_many_start(
        &self,
        completions: &Completions,
        py: Python<'_>,
        messages: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let core = self.core.get()?.clone();
        let messages = publish::messages(messages)?;
        completions.start(py, async move { core.put_many(messages).await }, |py, put| {
            let put = put.map_err(|e| errors::from_core(&e))?;
            let put: Vec<(u64, String)> = put.into_iter().map(queued).collect();
            Ok(put.into_pyobject(py)?.into_any().unbind())
        })
    }

    /// Does what `verb` says with arguments of JSON, and gives the answer as JSON.
    fn ask(&self, py: Python<'_>, verb: String, json: String) -> PyResult<String> {
        let work = nats_bridge_verbs::outbox::ask(self.core.get()?.clone(), verb, json);
        self.core.home().wait(py, work)?.map_err(|e| errors::from_fault(&e))
    }

    /// Does what `verb` says, or gives what to wait for.
    fn ask_start(&self, completions: &Completions, py: Python<'_>, verb: String, json: String) -> PyResult<Py<PyAny>> {
        let work = nats_bridge_verbs::outbox::ask(self.core.get()?.clone(), verb, json);
        completions.start_ask(py, work)
    }

    /// What it holds, as JSON.
    fn status(&self) -> PyResult<String> {
        Ok(nats_bridge_verbs::outbox::status(self.core.get()?))
    }
}
