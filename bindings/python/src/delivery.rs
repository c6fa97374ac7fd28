//! One delivered message, and its settlement.

use std::future::Future;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use nats_bridge::{Failure, Reason, Received};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict};

use crate::completions::Completions;
use crate::errors;
use crate::home::{Home, Owned, lock};
use crate::options::{flag, millis, text};

/// A delivered message. The Python classes `nats_bridge.Delivery` and `nats_bridge.aio.Delivery` are its two faces.
#[pyclass(frozen, module = "nats_bridge._native")]
pub struct Delivery {
    received: Received,
    payload: PyOnceLock<Py<PyBytes>>,
    // None once it is settled.
    core: Owned<Mutex<Option<nats_bridge::Delivery>>>,
}

/// What became of a delivery.
#[pyclass(frozen, eq, get_all, module = "nats_bridge")]
#[derive(PartialEq)]
pub struct Settled {
    /// `acked`, `retried` or `dead_lettered`.
    outcome: &'static str,
    /// `retried`: not before this time has passed.
    after_ms: Option<u64>,
    /// `dead_lettered`: the dead-letter stream.
    stream: Option<String>,
    /// `dead_lettered`: its sequence there.
    sequence: Option<u64>,
}

impl From<nats_bridge::Settled> for Settled {
    fn from(core: nats_bridge::Settled) -> Self {
        let none = Settled { outcome: "acked", after_ms: None, stream: None, sequence: None };
        match core {
            nats_bridge::Settled::Acked => none,
            nats_bridge::Settled::Retried { after } => {
                Settled { outcome: "retried", after_ms: u64::try_from(after.as_millis()).ok(), ..none }
            }
            nats_bridge::Settled::DeadLettered { stream, sequence } => {
                let (stream, sequence) = (Some(stream.to_string()), Some(sequence));
                Settled { outcome: "dead_lettered", stream, sequence, ..none }
            }
        }
    }
}

#[pymethods]
impl Settled {
    fn __repr__(&self) -> String {
        match self {
            Settled { after_ms: Some(ms), .. } => format!("Settled(outcome='retried', after_ms={ms})"),
            Settled { stream: Some(stream), sequence: Some(sequence), .. } => {
                format!("Settled(outcome='dead_lettered', stream='{stream}', sequence={sequence})")
            }
            Settled { outcome, .. } => format!("Settled(outcome='{outcome}')"),
        }
    }
}

impl Delivery {
    /// Wraps a delivery of the core.
    pub fn new(home: &'static Home, delivery: nats_bridge::Delivery) -> Self {
        let received = delivery.received();
        Delivery { received, payload: PyOnceLock::new(), core: Owned::new(home, Mutex::new(Some(delivery))) }
    }

    /// A message that something else settles.
    pub fn of(home: &'static Home, received: Received) -> Self {
        Delivery { received, payload: PyOnceLock::new(), core: Owned::new(home, Mutex::new(None)) }
    }

    /// The core's delivery, unless it was settled.
    pub fn take(&self) -> PyResult<nats_bridge::Delivery> {
        let taken = lock(self.core.get()?).take();
        taken.ok_or_else(|| errors::already_settled(self.received.subject(), self.received.sequence()))
    }

    fn wait(
        &self,
        py: Python<'_>,
        settle: impl Future<Output = nats_bridge::Result<nats_bridge::Settled>> + Send,
    ) -> PyResult<Settled> {
        self.core.home().wait(py, settle)?.map(Settled::from).map_err(|e| errors::from_core(&e))
    }
}

/// The name that a header of a dead letter had on the original message; `None` for one that the dead letter added.
#[pyfunction]
pub fn original_name(name: &Bound<'_, PyAny>) -> PyResult<Option<String>> {
    Ok(nats_bridge::dead_letter::original_name(&text("name", name)?))
}

fn start(
    completions: &Completions,
    py: Python<'_>,
    settle: impl Future<Output = nats_bridge::Result<nats_bridge::Settled>> + Send + 'static,
) -> PyResult<Py<PyAny>> {
    completions.start(py, settle, |py, settled| {
        let settled = settled.map_err(|e| errors::from_core(&e))?;
        Ok(Py::new(py, Settled::from(settled))?.into_any())
    })
}

async fn ack(core: nats_bridge::Delivery, confirmed: bool) -> nats_bridge::Result<nats_bridge::Settled> {
    if confirmed { core.ack_confirmed().await } else { core.ack().await }
}

async fn retry(
    core: nats_bridge::Delivery,
    failure: Failure,
    pause: Option<Duration>,
) -> nats_bridge::Result<nats_bridge::Settled> {
    match pause {
        Some(pause) => core.retry_after(pause, failure).await,
        None => core.retry(failure).await,
    }
}

/// The reason with this name.
pub fn reason(name: &str) -> PyResult<Reason> {
    name.parse().map_err(|error| errors::from_core(&error))
}

#[pymethods]
impl Delivery {
    /// Acks and waits.
    fn ack(&self, py: Python<'_>, confirmed: &Bound<'_, PyAny>) -> PyResult<Settled> {
        let confirmed = flag("confirmed", confirmed)?;
        self.wait(py, ack(self.take()?, confirmed))
    }

    /// Acks, or gives what to wait for.
    fn ack_start(
        &self,
        completions: &Completions,
        py: Python<'_>,
        confirmed: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let confirmed = flag("confirmed", confirmed)?;
        start(completions, py, ack(self.take()?, confirmed))
    }

    /// Retries and waits.
    fn retry(
        &self,
        py: Python<'_>,
        kind: String,
        detail: String,
        delay_ms: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Settled> {
        let pause = delay_ms.map(|ms| millis("delay_ms", ms)).transpose()?;
        self.wait(py, retry(self.take()?, Failure::of(kind, detail), pause))
    }

    /// Retries, or gives what to wait for.
    fn retry_start(
        &self,
        completions: &Completions,
        py: Python<'_>,
        kind: String,
        detail: String,
        delay_ms: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let pause = delay_ms.map(|ms| millis("delay_ms", ms)).transpose()?;
        start(completions, py, retry(self.take()?, Failure::of(kind, detail), pause))
    }

    /// Dead-letters and waits.
    fn dead_letter(
        &self,
        py: Python<'_>,
        reason: &Bound<'_, PyAny>,
        kind: String,
        detail: String,
    ) -> PyResult<Settled> {
        let reason = self::reason(&text("reason", reason)?)?;
        self.wait(py, self.take()?.dead_letter(reason, Failure::of(kind, detail)))
    }

    /// Dead-letters, or gives what to wait for.
    fn dead_letter_start(
        &self,
        completions: &Completions,
        py: Python<'_>,
        reason: &Bound<'_, PyAny>,
        kind: String,
        detail: String,
    ) -> PyResult<Py<PyAny>> {
        let reason = self::reason(&text("reason", reason)?)?;
        start(completions, py, self.take()?.dead_letter(reason, Failure::of(kind, detail)))
    }

    /// Whether it was settled.
    #[getter]
    fn settled(&self) -> PyResult<bool> {
        Ok(lock(self.core.get()?).is_none())
    }

    /// The subject it was published to.
    #[getter]
    fn subject(&self) -> &str {
        self.received.subject()
    }

    /// The payload.
    #[getter]
    fn payload(&self, py: Python<'_>) -> Py<PyBytes> {
        self.payload.get_or_init(py, || PyBytes::new(py, self.received.payload()).unbind()).clone_ref(py)
    }

    /// The id that it was published with.
    #[getter]
    fn id(&self) -> Option<&str> {
        self.received.id()
    }

    /// All headers.
    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let headers = PyDict::new(py);
        for (name, values) in self.received.headers().into_iter().flat_map(|headers| headers.iter()) {
            let values: Vec<&str> = values.iter().map(|value| value.as_str()).collect();
            headers.set_item(name.to_string(), values)?;
        }
        Ok(headers)
    }

    /// The first value of a header.
    fn header(&self, name: &Bound<'_, PyAny>) -> PyResult<Option<&str>> {
        Ok(self.received.header(&text("name", name)?))
    }

    /// The key that the payload was decrypted with.
    #[getter]
    fn key_id(&self) -> Option<&str> {
        self.received.key_id()
    }

    /// Which delivery of this message it is.
    #[getter]
    fn attempt(&self) -> u64 {
        self.received.attempt()
    }

    /// Under which lease of the single active consumer it came.
    #[getter]
    fn fencing_number(&self) -> Option<u64> {
        self.received.fencing_number()
    }

    /// Its sequence in the stream.
    #[getter]
    fn sequence(&self) -> u64 {
        self.received.sequence()
    }

    /// When the stream stored it.
    #[getter]
    fn stored_at(&self) -> SystemTime {
        self.received.stored_at()
    }

    /// How many messages the consumer had still to deliver after this one.
    #[getter]
    fn pending(&self) -> u64 {
        self.received.pending()
    }
}
