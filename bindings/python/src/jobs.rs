//! The work of a handler, which Python runs.

use std::sync::{Arc, Mutex};

use nats_bridge::Failure;
use nats_bridge::consume::{self, Answer};
use pyo3::prelude::*;

use crate::completions::Completions;
use crate::delivery::{self, Delivery};
use crate::errors;
use crate::home::{Home, Owned, lock};

/// What a handler has to do, piece by piece. Let go, it drains the consumer.
#[pyclass(frozen, module = "nats_bridge._native")]
pub struct Jobs {
    core: Owned<Arc<tokio::sync::Mutex<consume::Jobs>>>,
}

/// A piece of work, to be answered once: `key`, `done` or `failed`. Let go, it counts as failed.
#[pyclass(frozen, module = "nats_bridge._native")]
pub struct Job {
    message: Py<Delivery>,
    // None once it is answered.
    answer: Mutex<Option<Open>>,
    wants_key: bool,
}

enum Open {
    Key(Answer<String>),
    Handle(Answer<()>),
}

impl Jobs {
    /// Wraps jobs of the core.
    pub fn new(home: &'static Home, jobs: consume::Jobs) -> Self {
        Jobs { core: Owned::new(home, Arc::new(tokio::sync::Mutex::new(jobs))) }
    }
}

async fn next(core: Arc<tokio::sync::Mutex<consume::Jobs>>) -> nats_bridge::Result<Option<consume::Job>> {
    core.lock().await.next().await
}

fn arrive(
    py: Python<'_>,
    home: &'static Home,
    next: nats_bridge::Result<Option<consume::Job>>,
) -> PyResult<Option<Job>> {
    let Some(job) = next.map_err(|e| errors::from_core(&e))? else { return Ok(None) };
    let (received, wants_key, answer) = match job {
        consume::Job::Key(received, answer) => (received, true, Open::Key(answer)),
        consume::Job::Handle(received, answer) => (received, false, Open::Handle(answer)),
    };
    let message = Py::new(py, Delivery::of(home, received))?;
    Ok(Some(Job { message, answer: Mutex::new(Some(answer)), wants_key }))
}

#[pymethods]
impl Jobs {
    /// Waits for the next piece of work; `None` when the consumer was drained and everything is answered.
    fn next(&self, py: Python<'_>) -> PyResult<Option<Job>> {
        let (core, home) = (self.core.get()?.clone(), self.core.home());
        arrive(py, home, home.wait(py, next(core))?)
    }

    /// Waits for the next piece of work, or gives what to wait for.
    fn next_start(&self, completions: &Completions, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let (core, home) = (self.core.get()?.clone(), self.core.home());
        completions.start(py, next(core), move |py, next| Ok(arrive(py, home, next)?.into_pyobject(py)?.unbind()))
    }
}

#[pymethods]
impl Job {
    /// The message, which the answer settles.
    #[getter]
    fn message(&self, py: Python<'_>) -> Py<Delivery> {
        self.message.clone_ref(py)
    }

    /// Whether its key is wanted, and not that it is handled.
    #[getter]
    fn wants_key(&self) -> bool {
        self.wants_key
    }

    /// Says which key it has.
    fn key(&self, key: String) {
        if let Some(Open::Key(answer)) = lock(&self.answer).take() {
            answer.give(Ok(key));
        }
    }

    /// Says that it is handled.
    fn done(&self) {
        if let Some(Open::Handle(answer)) = lock(&self.answer).take() {
            answer.give(Ok(()));
        }
    }

    /// Gives it back: nobody will handle it here, and that is no failure.
    fn give_back(&self) {
        match lock(&self.answer).take() {
            Some(Open::Key(answer)) => answer.give_back(),
            Some(Open::Handle(answer)) => answer.give_back(),
            None => {}
        }
    }

    /// Says that it failed; with `give_up`, that it becomes a dead letter for this reason at once.
    fn failed(&self, kind: String, detail: String, give_up: Option<&str>) -> PyResult<()> {
        let failure = Failure { class: kind, detail, give_up: give_up.map(delivery::reason).transpose()? };
        match lock(&self.answer).take() {
            Some(Open::Key(answer)) => answer.give(Err(failure)),
            Some(Open::Handle(answer)) => answer.give(Err(failure)),
            None => {}
        }
        Ok(())
    }
}
