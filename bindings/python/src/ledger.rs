//! Which messages were handled.

use std::future::Future;
use std::sync::Mutex;

use nats_bridge::ledger::{Begun, Entry};
use pyo3::prelude::*;

use crate::completions::Completions;
use crate::errors;
use crate::home::{Home, Owned, lock};
use crate::options::text;

/// A ledger. The Python classes `nats_bridge.Ledger` and `nats_bridge.aio.Ledger` are its two faces.
#[pyclass(frozen, module = "nats_bridge._native")]
pub struct Ledger {
    core: Owned<nats_bridge::ledger::Ledger>,
}

/// An id that was begun, here or elsewhere.
#[pyclass(frozen, module = "nats_bridge._native")]
pub struct LedgerEntry {
    state: &'static str,
    // None unless it is `first`, and once it was ended.
    core: Owned<Mutex<Option<Entry>>>,
}

impl Ledger {
    /// Wraps a ledger of the core.
    pub fn new(home: &'static Home, ledger: nats_bridge::ledger::Ledger) -> Self {
        Ledger { core: Owned::new(home, ledger) }
    }
}

impl LedgerEntry {
    fn new(home: &'static Home, begun: nats_bridge::Result<Begun>) -> PyResult<Self> {
        let (state, entry) = match begun.map_err(|e| errors::from_core(&e))? {
            Begun::First(entry) => ("first", Some(entry)),
            Begun::Done => ("done", None),
            Begun::Elsewhere => ("elsewhere", None),
        };
        Ok(LedgerEntry { state, core: Owned::new(home, Mutex::new(entry)) })
    }

    fn take(&self) -> PyResult<Entry> {
        let taken = lock(self.core.get()?).take();
        taken.ok_or_else(|| errors::invalid("entry", "it is not this worker's, or was ended before"))
    }

    fn wait(&self, py: Python<'_>, end: impl Future<Output = nats_bridge::Result<()>> + Send) -> PyResult<()> {
        self.core.home().wait(py, end)?.map_err(|e| errors::from_core(&e))
    }
}

fn start(
    completions: &Completions,
    py: Python<'_>,
    end: impl Future<Output = nats_bridge::Result<()>> + Send + 'static,
) -> PyResult<Py<PyAny>> {
    completions.start(py, end, |py, ended| {
        ended.map_err(|e| errors::from_core(&e))?;
        Ok(py.None())
    })
}

#[pymethods]
impl Ledger {
    /// Begins an id and waits.
    fn begin(&self, py: Python<'_>, id: &Bound<'_, PyAny>) -> PyResult<LedgerEntry> {
        let (core, home) = (self.core.get()?, self.core.home());
        LedgerEntry::new(home, home.wait(py, core.begin(&text("id", id)?))?)
    }

    /// Begins an id, or gives what to wait for.
    fn begin_start(&self, completions: &Completions, py: Python<'_>, id: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let (core, home) = (self.core.get()?.clone(), self.core.home());
        let id = text("id", id)?;
        completions.start(py, async move { core.begin(&id).await }, move |py, begun| {
            Ok(Py::new(py, LedgerEntry::new(home, begun)?)?.into_any())
        })
    }
}

#[pymethods]
impl LedgerEntry {
    /// `first`, `done` or `elsewhere`.
    #[getter]
    fn state(&self) -> &'static str {
        self.state
    }

    /// Says that it is done, and waits.
    fn done(&self, py: Python<'_>) -> PyResult<()> {
        self.wait(py, self.take()?.done())
    }

    /// Says that it is done, or gives what to wait for.
    fn done_start(&self, completions: &Completions, py: Python<'_>) -> PyResult<Py<PyAny>> {
        start(completions, py, self.take()?.done())
    }

    /// Says that it was not done, and waits.
    fn undo(&self, py: Python<'_>) -> PyResult<()> {
        self.wait(py, self.take()?.undo())
    }

    /// Says that it was not done, or gives what to wait for.
    fn undo_start(&self, completions: &Completions, py: Python<'_>) -> PyResult<Py<PyAny>> {
        start(completions, py, self.take()?.undo())
    }
}
