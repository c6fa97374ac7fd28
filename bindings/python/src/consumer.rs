//! Consuming.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nats_bridge::{ConsumeConfig, ConsumerHandle, ConsumerState, RetryPolicy};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tokio::sync::Notify;

use crate::completions::Completions;
use crate::delivery::Delivery;
use crate::errors;
use crate::home::{Home, Owned, lock};
use crate::jobs::Jobs;
use crate::options::{self, millis};
use crate::upcast::upcasters;

/// A consumer. The Python classes `nats_bridge.Consumer` and `nats_bridge.aio.Consumer` are its two faces.
#[pyclass(frozen, module = "nats_bridge._native")]
pub struct Consumer {
    core: Owned<Arc<Shared>>,
    handle: Owned<ConsumerHandle>,
}

struct Shared {
    // None once a handler runs over it.
    consumer: tokio::sync::Mutex<Option<nats_bridge::Consumer>>,
    returned: Mutex<VecDeque<nats_bridge::Delivery>>,
    some_returned: Notify,
}

impl Consumer {
    /// Wraps a consumer of the core.
    pub fn new(home: &'static Home, consumer: nats_bridge::Consumer) -> Self {
        let handle = consumer.handle();
        let shared = Shared {
            consumer: tokio::sync::Mutex::new(Some(consumer)),
            returned: Mutex::default(),
            some_returned: Notify::new(),
        };
        Consumer { core: Owned::new(home, Arc::new(shared)), handle: Owned::new(home, handle) }
    }
}

/// How many messages a handler may have at once.
const MOST_AT_ONCE: usize = 1024;

/// A delivery on its way to Python. When nobody takes it, because the wait was cancelled meanwhile, it goes back and is the
/// next one's: dropped, it would count as failed.
struct OnItsWay {
    delivery: Option<nats_bridge::Delivery>,
    shared: Arc<Shared>,
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        if let Some(delivery) = self.delivery.take() {
            lock(&self.shared.returned).push_back(delivery);
            self.shared.some_returned.notify_one();
        }
    }
}

impl OnItsWay {
    fn arrive(mut self, home: &'static Home) -> Option<Delivery> {
        self.delivery.take().map(|delivery| Delivery::new(home, delivery))
    }
}

// Cancel safe, as what it awaits is.
async fn next(shared: Arc<Shared>, limit: Option<Duration>) -> nats_bridge::Result<OnItsWay> {
    let wait = async {
        let mut consumer = shared.consumer.lock().await;
        let Some(consumer) = consumer.as_mut() else { return Ok(None) };
        loop {
            if let Some(delivery) = lock(&shared.returned).pop_front() {
                return Ok(Some(delivery));
            }
            tokio::select! {
                delivery = consumer.next() => return delivery,
                () = shared.some_returned.notified() => {}
            }
        }
    };
    let delivery = match limit {
        Some(limit) => tokio::time::timeout(limit, wait).await.unwrap_or(Ok(None))?,
        None => wait.await?,
    };
    Ok(OnItsWay { delivery, shared })
}

async fn drain(shared: Arc<Shared>, handle: ConsumerHandle, budget: Duration) -> nats_bridge::Result<()> {
    handle.begin_to_drain();
    shared.give_back_returned().await;
    handle.drain(budget).await
}

async fn leave(shared: Arc<Shared>, handle: ConsumerHandle, budget: Duration) -> nats_bridge::Result<()> {
    handle.begin_to_drain();
    shared.give_back_returned().await;
    handle.give_back(budget).await
}

impl Shared {
    async fn give_back_returned(&self) {
        let returned = std::mem::take(&mut *lock(&self.returned));
        for delivery in returned {
            delivery.give_back().await;
        }
    }
}

#[pymethods]
impl Consumer {
    /// Waits for the next delivery; `None` when there is none within the time, or when the consumer was drained.
    fn next(&self, py: Python<'_>, timeout_ms: Option<i64>) -> PyResult<Option<Delivery>> {
        let (shared, home) = (self.core.get()?.clone(), self.core.home());
        let limit = timeout_ms.map(|ms| millis("timeout_ms", ms)).transpose()?;
        let next = home.wait(py, next(shared, limit))?.map_err(|e| errors::from_core(&e))?;
        Ok(next.arrive(home))
    }

    /// Waits for the next delivery, or gives what to wait for.
    fn next_start(&self, completions: &Completions, py: Python<'_>, timeout_ms: Option<i64>) -> PyResult<Py<PyAny>> {
        let (shared, home) = (self.core.get()?.clone(), self.core.home());
        let limit = timeout_ms.map(|ms| millis("timeout_ms", ms)).transpose()?;
        completions.start(py, next(shared, limit), move |py, next| {
            let delivery = next.map_err(|e| errors::from_core(&e))?.arrive(home);
            Ok(delivery.into_pyobject(py)?.unbind())
        })
    }

    /// Takes back a delivery that arrived for nobody: it is the next one's.
    fn give_back(&self, delivery: &Delivery) -> PyResult<()> {
        let shared = self.core.get()?.clone();
        drop(OnItsWay { delivery: Some(delivery.take()?), shared });
        Ok(())
    }

    /// Begins to give its deliveries as the work of a handler.
    fn jobs(&self, concurrency: i64, keyed: bool) -> PyResult<Jobs> {
        let (shared, home) = (self.core.get()?, self.core.home());
        let concurrency = usize::try_from(concurrency).ok().filter(|n| (1..=MOST_AT_ONCE).contains(n));
        let concurrency = concurrency.ok_or_else(|| errors::invalid("concurrency", "1 to 1024"))?;
        let busy = || errors::invalid("run", "something else takes the deliveries of this consumer");
        let consumer = shared.consumer.try_lock().map_err(|_| busy())?.take().ok_or_else(busy)?;
        let returned = std::mem::take(&mut *lock(&shared.returned));
        Ok(home.within(|| {
            home.spawn(async move {
                for delivery in returned {
                    delivery.give_back().await;
                }
            });
            Jobs::new(home, consumer.jobs(concurrency, keyed))
        }))
    }

    /// Stops pulling, and gives back what was not handed out.
    fn begin_to_drain(&self) -> PyResult<()> {
        self.handle.get()?.begin_to_drain();
        Ok(())
    }

    /// Stops pulling, and waits at most `budget_ms` until the server has back what was not handed out.
    fn leave(&self, py: Python<'_>, budget_ms: i64) -> PyResult<()> {
        let (shared, handle) = (self.core.get()?.clone(), self.handle.get()?.clone());
        let left = leave(shared, handle, millis("budget_ms", budget_ms)?);
        self.handle.home().wait(py, left)?.map_err(|e| errors::from_core(&e))
    }

    /// The same, or gives what to wait for.
    fn leave_start(&self, completions: &Completions, py: Python<'_>, budget_ms: i64) -> PyResult<Py<PyAny>> {
        let (shared, handle) = (self.core.get()?.clone(), self.handle.get()?.clone());
        completions.start(py, leave(shared, handle, millis("budget_ms", budget_ms)?), |py, left| {
            left.map_err(|e| errors::from_core(&e))?;
            Ok(py.None())
        })
    }

    /// Stops pulling, gives back what was not handed out, and waits at most `budget_ms` until the rest is settled.
    fn drain(&self, py: Python<'_>, budget_ms: i64) -> PyResult<()> {
        let (shared, handle) = (self.core.get()?.clone(), self.handle.get()?.clone());
        let drained = drain(shared, handle, millis("budget_ms", budget_ms)?);
        self.handle.home().wait(py, drained)?.map_err(|e| errors::from_core(&e))
    }

    /// Drains, or gives what to wait for.
    fn drain_start(&self, completions: &Completions, py: Python<'_>, budget_ms: i64) -> PyResult<Py<PyAny>> {
        let (shared, handle) = (self.core.get()?.clone(), self.handle.get()?.clone());
        completions.start(py, drain(shared, handle, millis("budget_ms", budget_ms)?), |py, drained| {
            drained.map_err(|e| errors::from_core(&e))?;
            Ok(py.None())
        })
    }

    /// How it is, and why.
    #[getter]
    fn state(&self) -> PyResult<(&'static str, Option<String>)> {
        Ok(match self.handle.get()?.state() {
            ConsumerState::Running => ("running", None),
            ConsumerState::Waiting => ("waiting", None),
            ConsumerState::Paused { why } => ("paused", Some(why)),
            ConsumerState::Draining => ("draining", None),
            ConsumerState::Stopped => ("stopped", None),
            ConsumerState::Failed { why } => ("failed", Some(why)),
            other => ("unknown", Some(format!("{other:?}"))),
        })
    }

    /// How many deliveries are here and not settled, waiting ones included.
    #[getter]
    fn held(&self) -> PyResult<usize> {
        Ok(self.handle.get()?.held())
    }
}

/// The core's settings for consuming `stream` under `name` and what `options` say.
pub fn config(stream: String, name: String, options: &Bound<'_, PyDict>) -> PyResult<ConsumeConfig> {
    let mut config = ConsumeConfig::new(stream, name);
    options::each(options, |name, given| {
        match name {
            "filter_subjects" => config.filter_subjects = given.read()?,
            "retry" => config.retry = retry(&given.read()?)?,
            "ack_wait_ms" => config.ack_wait = given.millis()?,
            "max_run_ms" => config.max_run = given.millis()?,
            "max_messages" => config.max_messages = given.count()?,
            "max_bytes" => config.max_bytes = given.count()?,
            "dead_letter_stream" => config.dead_letter_stream = given.read()?,
            "dead_letter_max_bytes" => config.dead_letter_max_bytes = Some(given.count()?),
            "advisories" => config.advisories = given.read()?,
            "stalled_after_ms" => config.stalled_after = given.millis()?,
            "heartbeat_ms" => config.heartbeat = given.millis()?,
            "decrypt" => config.decrypt = Some(given.keys()?),
            "schemas" => config.schemas = given.read()?,
            "accept_without_schema" => config.accept_without_schema = given.read()?,
            "upcast" => config.upcast = Some(upcasters(given.read()?, options.py())?),
            "single_active" => config.single_active = given.read()?,
            "accept_unencrypted" => config.accept_unencrypted = given.read()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(config)
}

fn retry(options: &Bound<'_, PyDict>) -> PyResult<RetryPolicy> {
    let mut policy = RetryPolicy::default();
    options::each(options, |name, given| {
        match name {
            "attempts" => policy.attempts = given.count()?,
            "first_pause_ms" => policy.first_pause = given.millis()?,
            "factor" => policy.factor = given.read()?,
            "max_pause_ms" => policy.max_pause = given.millis()?,
            "max_elapsed_ms" => policy.max_elapsed = Some(given.millis()?),
            "jitter" => policy.jitter = given.read()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(policy)
}
