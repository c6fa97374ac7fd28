//! How results reach an asyncio event loop: a queue and one wake-up, drained by the loop itself.
//!
//! Tokio's threads never take the GIL. They queue a result and, if the queue was empty, write one byte to a socket that
//! the loop watches; the loop then sets many futures at once. So a busy loop costs no thread switches for each result, and
//! nothing waits for the interpreter while it ends.

use std::collections::HashMap;
use std::future::Future;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nats_bridge_verbs::Fault;
use nats_bridge_verbs::eager::Begun;
use pyo3::intern;
use pyo3::prelude::*;
use tokio::task::AbortHandle;

use crate::errors;
use crate::home::{self, Home, lock};

type Outcome = Box<dyn FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send>;

/// The futures of one connection that wait for the core.
#[pyclass(frozen, module = "nats_bridge._native")]
pub struct Completions {
    home: &'static Home,
    queue: Arc<Queue>,
    reader: UnixStream,
    next_token: AtomicU64,
    waiting: Mutex<HashMap<u64, Entry>>,
    event_loop: Py<PyAny>,
}

struct Entry {
    future: Py<PyAny>,
    task: AbortHandle,
}

/// A call whose result is not there yet.
#[pyclass(frozen, get_all, module = "nats_bridge._native")]
pub struct Waiting {
    /// The future of it.
    future: Py<PyAny>,
    /// By which [`Completions::cancel`] knows it.
    token: u64,
}

struct Queue {
    done: Mutex<Vec<(u64, Outcome)>>,
    wake: UnixStream,
}

impl Queue {
    fn push(&self, token: u64, outcome: Outcome) {
        let mut done = lock(&self.done);
        let was_empty = done.is_empty();
        done.push((token, outcome));
        if was_empty {
            // A full socket means that a wake-up is on its way; a closed one, that the loop is gone.
            let _ = (&self.wake).write(&[1]);
        }
    }
}

// Queues an error if the task ends without a result, so that no future waits for ever.
struct Promise {
    queue: Arc<Queue>,
    token: u64,
    kept: bool,
}

impl Promise {
    fn keep(mut self, outcome: Outcome) {
        self.kept = true;
        self.queue.push(self.token, outcome);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if !self.kept {
            self.queue.push(self.token, Box::new(|_| Err(errors::abandoned())));
        }
    }
}

impl Completions {
    /// Begins `work`, and gives what `convert` makes of its result if it is there at once; else a [`Waiting`], whose future the event
    /// loop sets later.
    pub fn start<T: Send + 'static>(
        &self,
        py: Python<'_>,
        work: impl Future<Output = T> + Send + 'static,
        convert: impl FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
    ) -> PyResult<Py<PyAny>> {
        self.home.check()?;
        let rest = match self.home.begin(work) {
            Begun::Done(result) => return convert(py, result),
            Begun::Waits(rest) => rest,
        };
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let future = self.event_loop.call_method0(py, intern!(py, "create_future"))?;
        let promise = Promise { queue: self.queue.clone(), token, kept: false };
        // The result cannot be drained before the entry is made: draining needs the GIL, which is held here.
        let task = self.home.spawn(async move {
            let result = rest.await;
            promise.keep(Box::new(move |py| convert(py, result)));
        });
        lock(&self.waiting).insert(token, Entry { future: future.clone_ref(py), task });
        Ok(Py::new(py, Waiting { future, token })?.into_any())
    }

    /// As [`Completions::start`], for a verb whose answer is JSON.
    pub fn start_ask(
        &self,
        py: Python<'_>,
        work: impl Future<Output = Result<String, Fault>> + Send + 'static,
    ) -> PyResult<Py<PyAny>> {
        self.start(py, work, |py, answer| {
            Ok(answer.map_err(|e| errors::from_fault(&e))?.into_pyobject(py)?.into_any().unbind())
        })
    }
}

fn set(future: &Bound<'_, PyAny>, outcome: PyResult<Py<PyAny>>) -> PyResult<()> {
    match outcome {
        Ok(value) => future.call_method1("set_result", (value,)),
        Err(error) => future.call_method1("set_exception", (error,)),
    }
    .map(drop)
}

#[pymethods]
impl Completions {
    #[new]
    fn new(py: Python<'_>, event_loop: Py<PyAny>) -> PyResult<Self> {
        let (reader, wake) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        wake.set_nonblocking(true)?;
        Ok(Completions {
            home: home::here(py)?,
            queue: Arc::new(Queue { done: Mutex::new(Vec::new()), wake }),
            reader,
            next_token: AtomicU64::new(0),
            waiting: Mutex::new(HashMap::new()),
            event_loop,
        })
    }

    /// The descriptor that is readable when there are results to drain.
    fn fileno(&self) -> i32 {
        self.reader.as_raw_fd()
    }

    /// Sets the futures whose results are there. Called by the event loop.
    fn drain(&self, py: Python<'_>) -> PyResult<()> {
        self.home.check()?;
        let mut bytes = [0; 16];
        // Nothing to read is normal: an earlier drain may have taken this wake-up's results.
        let _ = (&self.reader).read(&mut bytes);
        let done = std::mem::take(&mut *lock(&self.queue.done));
        for (token, outcome) in done {
            let Some(Entry { future, .. }) = lock(&self.waiting).remove(&token) else { continue };
            let future = future.into_bound(py);
            if future.call_method0("done")?.is_truthy()? {
                continue;
            }
            set(&future, outcome(py))?;
        }
        Ok(())
    }

    /// Stops the work behind `token` and forgets its future.
    fn cancel(&self, token: u64) -> PyResult<()> {
        self.home.check()?;
        if let Some(Entry { task, .. }) = lock(&self.waiting).remove(&token) {
            task.abort();
        }
        // What it holds may be another one's, who does not wait for the loop.
        let result = {
            let mut done = lock(&self.queue.done);
            let at = done.iter().position(|(done, _)| *done == token);
            at.map(|at| done.remove(at))
        };
        drop(result);
        Ok(())
    }
}
