//! Consuming.

use std::sync::Arc;
use std::time::Duration;

use nats_bridge::{ConsumeConfig, ConsumerHandle, ConsumerState, RetryPolicy};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::completions::Completions;
use crate::delivery::Delivery;
use crate::errors;
use crate::home::{Home, Owned};
use crate::jobs::Jobs;
use crate::options::{self, Given, millis, whole};
use crate::upcast::upcasters;

/// A consumer. The Python classes `nats_bridge.Consumer` and `nats_bridge.aio.Consumer` are its two faces.
#[pyclass(frozen, module = "nats_bridge._native")]
pub struct Consumer {
    core: Owned<Core>,
    handle: Owned<ConsumerHandle>,
}

// None once a handler runs over it.
type Core = Arc<tokio::sync::Mutex<Option<nats_bridge::Consumer>>>;

impl Consumer {
    /// Wraps a consumer of the core.
    pub fn new(home: &'static Home, consumer: nats_bridge::Consumer) -> Self {
        let handle = consumer.handle();
        let core = Arc::new(tokio::sync::Mutex::new(Some(consumer)));
        Consumer { core: Owned::new(home, core), handle: Owned::new(home, handle) }
    }
}

/// How many messages a handler may have at once.
const MOST_AT_ONCE: usize = 1024;

/// A delivery on its way to Python. When nobody takes it, because the wait was cancelled meanwhile, it goes back and is the
/// next one's: dropped, it would count as failed.
struct OnItsWay(Option<nats_bridge::Delivery>);

impl Drop for OnItsWay {
    fn drop(&mut self) {
        if let Some(delivery) = self.0.take() {
            delivery.give_back();
        }
    }
}

impl OnItsWay {
    fn arrive(mut self, home: &'static Home) -> Option<Delivery> {
        self.0.take().map(|delivery| Delivery::new(home, delivery))
    }
}

// Cancel safe, as what it awaits is.
async fn next(core: Core, limit: Option<Duration>) -> nats_bridge::Result<OnItsWay> {
    let wait = async {
        match core.lock().await.as_mut() {
            Some(consumer) => consumer.next().await,
            None => Ok(None),
        }
    };
    let delivery = match limit {
        Some(limit) => tokio::time::timeout(limit, wait).await.unwrap_or(Ok(None))?,
        None => wait.await?,
    };
    Ok(OnItsWay(delivery))
}

/// How a consumer ends.
#[derive(Clone, Copy)]
enum End {
    /// What was not handed out is given back.
    Leave,
    /// The rest is waited for as well.
    Drain,
}

async fn end(handle: ConsumerHandle, end: End, budget: Duration) -> nats_bridge::Result<()> {
    match end {
        End::Leave => handle.give_back(budget).await,
        End::Drain => handle.drain(budget).await,
    }
}

impl Consumer {
    fn end(&self, py: Python<'_>, how: End, budget_ms: &Bound<'_, PyAny>) -> PyResult<()> {
        let (handle, budget) = (self.handle.get()?.clone(), millis("budget_ms", budget_ms)?);
        self.handle.home().wait(py, end(handle, how, budget))?.map_err(|e| errors::from_core(&e))
    }

    fn end_start(
        &self,
        completions: &Completions,
        py: Python<'_>,
        how: End,
        budget_ms: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let (handle, budget) = (self.handle.get()?.clone(), millis("budget_ms", budget_ms)?);
        completions.start(py, end(handle, how, budget), |py, ended| {
            ended.map_err(|e| errors::from_core(&e))?;
            Ok(py.None())
        })
    }
}

#[pymethods]
impl Consumer {
    /// Waits for the next delivery; `None` when there is none within the time, or when the consumer was drained.
    fn next(&self, py: Python<'_>, timeout_ms: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Delivery>> {
        let (core, home) = (self.core.get()?.clone(), self.core.home());
        let limit = timeout_ms.map(|ms| millis("timeout_ms", ms)).transpose()?;
        let next = home.wait(py, next(core, limit))?.map_err(|e| errors::from_core(&e))?;
        Ok(next.arrive(home))
    }

    /// Waits for the next delivery, or gives what to wait for.
    fn next_start(
        &self,
        completions: &Completions,
        py: Python<'_>,
        timeout_ms: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let (core, home) = (self.core.get()?.clone(), self.core.home());
        let limit = timeout_ms.map(|ms| millis("timeout_ms", ms)).transpose()?;
        completions.start(py, next(core, limit), move |py, next| {
            let delivery = next.map_err(|e| errors::from_core(&e))?.arrive(home);
            Ok(delivery.into_pyobject(py)?.unbind())
        })
    }

    /// Takes back a delivery that arrived for nobody: it is the next one's.
    fn give_back(&self, delivery: &Delivery) -> PyResult<()> {
        delivery.take()?.give_back();
        Ok(())
    }

    /// Begins to give its deliveries as the work of a handler.
    fn jobs(&self, concurrency: &Bound<'_, PyAny>, keyed: bool) -> PyResult<Jobs> {
        let (core, home) = (self.core.get()?, self.core.home());
        let concurrency =
            usize::try_from(whole("concurrency", concurrency)?).ok().filter(|n| (1..=MOST_AT_ONCE).contains(n));
        let concurrency = concurrency.ok_or_else(|| errors::invalid("concurrency", "it is 1 to 1024"))?;
        let busy = || errors::invalid("run", "something else takes the deliveries of this consumer");
        let consumer = core.try_lock().map_err(|_| busy())?.take().ok_or_else(busy)?;
        Ok(home.within(|| Jobs::new(home, consumer.jobs(concurrency, keyed))))
    }

    /// Stops pulling, and gives back what was not handed out.
    fn begin_to_drain(&self) -> PyResult<()> {
        self.handle.get()?.begin_to_drain();
        Ok(())
    }

    /// Stops pulling, and waits at most `budget_ms` until the server has back what was not handed out.
    fn leave(&self, py: Python<'_>, budget_ms: &Bound<'_, PyAny>) -> PyResult<()> {
        self.end(py, End::Leave, budget_ms)
    }

    /// The same, or gives what to wait for.
    fn leave_start(
        &self,
        completions: &Completions,
        py: Python<'_>,
        budget_ms: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        self.end_start(completions, py, End::Leave, budget_ms)
    }

    /// Stops pulling, gives back what was not handed out, and waits at most `budget_ms` until the rest is settled.
    fn drain(&self, py: Python<'_>, budget_ms: &Bound<'_, PyAny>) -> PyResult<()> {
        self.end(py, End::Drain, budget_ms)
    }

    /// Drains, or gives what to wait for.
    fn drain_start(
        &self,
        completions: &Completions,
        py: Python<'_>,
        budget_ms: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        self.end_start(completions, py, End::Drain, budget_ms)
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
    options::each(options, "", |name, given| {
        match name {
            "filter_subjects" => config.filter_subjects = given.read()?,
            "retry" => config.retry = retry(given)?,
            "ack_wait_ms" => config.ack_wait = given.millis()?,
            "max_run_ms" => config.max_run = given.millis()?,
            "max_messages" => config.max_messages = given.count("it is 1 to 32768")?,
            "max_bytes" => config.max_bytes = given.count("it is 1 to 2 GiB")?,
            "dead_letter_stream" => config.dead_letter_stream = Some(given.read()?),
            "dead_letter_max_bytes" => config.dead_letter_max_bytes = Some(given.count("it is at least 1")?),
            "advisories" => config.advisories = given.read()?,
            "stalled_after_ms" => config.stalled_after = given.millis()?,
            "heartbeat_ms" => config.heartbeat = given.millis()?,
            "decrypt" => config.decrypt = Some(given.keys()?),
            "schemas" => config.schemas = Some(given.read()?),
            "accept_without_schema" => config.accept_without_schema = given.read()?,
            "upcast" => config.upcast = Some(upcasters(given, options.py())?),
            "single_active" => config.single_active = given.read()?,
            "accept_unencrypted" => config.accept_unencrypted = given.read()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(config)
}

fn retry(options: &Given<'_>) -> PyResult<RetryPolicy> {
    let mut policy = RetryPolicy::default();
    options.each(|name, given| {
        match name {
            "attempts" => policy.attempts = given.count("it is 1 to 4294967295")?,
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
