//! Whether what a service needs is there.

use std::sync::Arc;

use nats_bridge_verbs::{health, metrics};
use pyo3::prelude::*;

use crate::completions::Completions;
use crate::home::{Home, Owned};

/// A health check. The Python classes `nats_bridge.HealthCheck` and `nats_bridge.aio.HealthCheck` are its two faces.
#[pyclass(frozen, module = "nats_bridge._native")]
pub struct HealthCheck {
    core: Owned<Arc<nats_bridge::health::HealthCheck>>,
}

impl HealthCheck {
    /// Wraps a check of the core.
    pub fn new(home: &'static Home, check: nats_bridge::health::HealthCheck) -> Self {
        HealthCheck { core: Owned::new(home, Arc::new(check)) }
    }
}

#[pymethods]
impl HealthCheck {
    /// Looks, and gives what was found as JSON.
    fn look(&self, py: Python<'_>) -> PyResult<String> {
        let core = self.core.get()?;
        self.core.home().wait(py, health::look(core))
    }

    /// Looks, or gives what to wait for.
    fn look_start(&self, completions: &Completions, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let core = self.core.get()?.clone();
        completions.start(py, async move { health::look(&core).await }, |py, found| {
            Ok(found.into_pyobject(py)?.into_any().unbind())
        })
    }
}

/// All that this process counts, in Prometheus' text format.
#[pyfunction]
pub fn render_metrics() -> String {
    metrics::render()
}
