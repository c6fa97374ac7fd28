//! What the core logs, for `nats_bridge/_logs.py` to pass on to `logging`.

use std::time::SystemTime;

use nats_bridge_verbs::logs::{self, Record};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Level, logger, text, fields and time of each record, and how many did not fit.
type Batch = (Vec<(&'static str, String, String, Py<PyDict>, f64)>, u64);

/// Begins to gather what this process logs, from `debug` or from `info` on.
#[pyfunction]
pub fn collect_logs(debug: bool) {
    logs::start(if debug { tracing::Level::DEBUG } else { tracing::Level::INFO }, || {});
}

/// Waits for what is logged; `None` once it is closed.
#[pyfunction]
pub fn next_logs(py: Python<'_>) -> PyResult<Option<Batch>> {
    let Some(logs) = logs::here() else { return Ok(None) };
    let Some(batch) = py.detach(|| logs.wait()) else { return Ok(None) };
    let records = batch.records.into_iter().map(|record| convert(py, record)).collect::<PyResult<_>>()?;
    Ok(Some((records, batch.dropped)))
}

/// Ends the wait once everything is taken, and gathers nothing more.
#[pyfunction]
pub fn close_logs() {
    if let Some(logs) = logs::here() {
        logs.close();
    }
}

fn convert(py: Python<'_>, record: Record) -> PyResult<(&'static str, String, String, Py<PyDict>, f64)> {
    let fields = PyDict::new(py);
    for (name, value) in record.fields {
        fields.set_item(name, value)?;
    }
    let at = record.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Ok((record.level.as_str(), record.name, record.text, fields.unbind(), at))
}
