//! The connection.

use nats_bridge::Config;
use nats_bridge_verbs::login::LoginOptions;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::completions::Completions;
use crate::consumer::{self, Consumer};
use crate::errors;
use crate::health::HealthCheck;
use crate::home::{self, Home, Owned};
use crate::ledger::Ledger;
use crate::options::{self, text};
use crate::publish::{self, Published};

/// A connection. The Python classes `nats_bridge.Bridge` and `nats_bridge.aio.Bridge` are its two faces.
#[pyclass(frozen, module = "nats_bridge._native")]
pub struct Bridge {
    core: Owned<nats_bridge::Bridge>,
}

impl Bridge {
    fn new(home: &'static Home, core: nats_bridge::Bridge) -> Self {
        Bridge { core: Owned::new(home, core) }
    }

    /// The connection of the core.
    pub fn core(&self) -> PyResult<&nats_bridge::Bridge> {
        self.core.get()
    }
}

#[pymethods]
impl Bridge {
    /// Connects and waits.
    #[staticmethod]
    fn connect(py: Python<'_>, servers: Vec<String>, options: &Bound<'_, PyDict>) -> PyResult<Bridge> {
        let home = home::here(py)?;
        let config = config(servers, options, "")?;
        let core = home.wait(py, nats_bridge::Bridge::connect_with(config))?.map_err(|e| errors::from_core(&e))?;
        Ok(Bridge::new(home, core))
    }

    /// Connects, or gives what to wait for.
    #[staticmethod]
    fn connect_start(
        py: Python<'_>,
        completions: &Completions,
        servers: Vec<String>,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<Py<PyAny>> {
        let home = home::here(py)?;
        let config = config(servers, options, "")?;
        completions.start(py, nats_bridge::Bridge::connect_with(config), move |py, made| {
            let core = made.map_err(|e| errors::from_core(&e))?;
            Ok(Py::new(py, Bridge::new(home, core))?.into_any())
        })
    }

    /// Publishes and waits until the message is stored.
    fn publish(
        &self,
        py: Python<'_>,
        subject: &Bound<'_, PyAny>,
        payload: &Bound<'_, PyAny>,
        id: Option<&Bound<'_, PyAny>>,
        headers: Option<&Bound<'_, PyAny>>,
        schema: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Published> {
        let core = self.core.get()?;
        let message = publish::message(subject, payload, id, headers, schema)?;
        let stored = self.core.home().wait(py, core.publish(message))?.map_err(|e| errors::from_core(&e))?;
        Ok(stored.into())
    }

    /// Publishes, or gives what to wait for until the message is stored.
    #[allow(clippy::too_many_arguments)]
    fn publish_start(
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
        completions.start(py, async move { core.publish(message).await }, |py, stored| {
            let stored = stored.map_err(|e| errors::from_core(&e))?;
            Ok(Py::new(py, Published::from(stored))?.into_any())
        })
    }

    /// Publishes many, and waits until each has its outcome.
    fn publish_many(&self, py: Python<'_>, messages: &Bound<'_, PyAny>) -> PyResult<Py<PyList>> {
        let core = self.core.get()?;
        let messages = publish::messages(messages)?;
        publish::outcomes(py, self.core.home().wait(py, core.publish_many(messages))?)
    }

    /// Publishes many, or gives what to wait for until each has its outcome.
    fn publish_many_start(
        &self,
        completions: &Completions,
        py: Python<'_>,
        messages: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let core = self.core.get()?.clone();
        let messages = publish::messages(messages)?;
        completions.start(py, async move { core.publish_many(messages).await }, |py, outcomes| {
            Ok(publish::outcomes(py, outcomes)?.into_any())
        })
    }

    /// Starts consuming and waits until it has begun.
    fn consume(
        &self,
        py: Python<'_>,
        stream: &Bound<'_, PyAny>,
        name: &Bound<'_, PyAny>,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<Consumer> {
        let (core, home) = (self.core.get()?, self.core.home());
        let config = consumer::config(text("stream", stream)?, text("name", name)?, options)?;
        let consumer = home.wait(py, core.consume(config))?.map_err(|e| errors::from_core(&e))?;
        Ok(Consumer::new(home, consumer))
    }

    /// Starts consuming, or gives what to wait for.
    fn consume_start(
        &self,
        completions: &Completions,
        py: Python<'_>,
        stream: &Bound<'_, PyAny>,
        name: &Bound<'_, PyAny>,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<Py<PyAny>> {
        let (core, home) = (self.core.get()?.clone(), self.core.home());
        let config = consumer::config(text("stream", stream)?, text("name", name)?, options)?;
        completions.start(py, async move { core.consume(config).await }, move |py, consumer| {
            let consumer = consumer.map_err(|e| errors::from_core(&e))?;
            Ok(Py::new(py, Consumer::new(home, consumer))?.into_any())
        })
    }

    /// Does what `verb` says with arguments of JSON, and gives the answer as JSON.
    fn ask(&self, py: Python<'_>, verb: String, json: String) -> PyResult<String> {
        let work = nats_bridge_verbs::ask(self.core.get()?.clone(), verb, json, || true);
        self.core.home().wait(py, work)?.map_err(|e| errors::from_fault(&e))
    }

    /// Does what `verb` says, or gives what to wait for.
    fn ask_start(&self, completions: &Completions, py: Python<'_>, verb: String, json: String) -> PyResult<Py<PyAny>> {
        let work = nats_bridge_verbs::ask(self.core.get()?.clone(), verb, json, || true);
        completions.start_ask(py, work)
    }

    /// The connection as it is now, as JSON.
    fn stats(&self) -> PyResult<String> {
        Ok(nats_bridge_verbs::stats(self.core.get()?))
    }

    /// A health check of what is required.
    fn health_check(&self, required: &str) -> PyResult<HealthCheck> {
        let check = nats_bridge_verbs::health::check(self.core.get()?, required);
        Ok(HealthCheck::new(self.core.home(), check.map_err(|e| errors::from_fault(&e))?))
    }

    /// Opens a ledger and waits.
    fn ledger(
        &self,
        py: Python<'_>,
        bucket: &Bound<'_, PyAny>,
        keep_ms: &Bound<'_, PyAny>,
        lease_ms: &Bound<'_, PyAny>,
    ) -> PyResult<Ledger> {
        let (core, home) = (self.core.get()?, self.core.home());
        let bucket = text("bucket", bucket)?;
        let (keep, lease) = (options::millis("keep_ms", keep_ms)?, options::millis("lease_ms", lease_ms)?);
        let ledger = home.wait(py, core.ledger(bucket, keep, lease))?.map_err(|e| errors::from_core(&e))?;
        Ok(Ledger::new(home, ledger))
    }

    /// Opens a ledger, or gives what to wait for.
    fn ledger_start(
        &self,
        completions: &Completions,
        py: Python<'_>,
        bucket: &Bound<'_, PyAny>,
        keep_ms: &Bound<'_, PyAny>,
        lease_ms: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let (core, home) = (self.core.get()?.clone(), self.core.home());
        let bucket = text("bucket", bucket)?;
        let (keep, lease) = (options::millis("keep_ms", keep_ms)?, options::millis("lease_ms", lease_ms)?);
        completions.start(py, async move { core.ledger(bucket, keep, lease).await }, move |py, ledger| {
            let ledger = ledger.map_err(|e| errors::from_core(&e))?;
            Ok(Py::new(py, Ledger::new(home, ledger))?.into_any())
        })
    }

    /// Waits at most `budget_ms` for what is outstanding, then closes.
    fn close(&self, py: Python<'_>, budget_ms: &Bound<'_, PyAny>) -> PyResult<()> {
        let (core, budget) = (self.core.get()?, options::millis("budget_ms", budget_ms)?);
        self.core.home().wait(py, core.close(budget))?.map_err(|e| errors::from_core(&e))
    }

    /// Closes, or gives what to wait for.
    fn close_start(
        &self,
        completions: &Completions,
        py: Python<'_>,
        budget_ms: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let (core, budget) = (self.core.get()?.clone(), options::millis("budget_ms", budget_ms)?);
        completions.start(py, async move { core.close(budget).await }, |py, closed| {
            closed.map_err(|e| errors::from_core(&e))?;
            Ok(py.None())
        })
    }

    /// The version of the server that is connected now.
    #[getter]
    fn server_version(&self) -> PyResult<String> {
        Ok(self.core.get()?.server_version())
    }
}

/// The core's settings for `servers` and what `options` say; `within` is said before their names.
pub fn config(servers: Vec<String>, options: &Bound<'_, PyDict>, within: &str) -> PyResult<Config> {
    let mut config = Config { servers, ..Config::default() };
    let mut login = LoginOptions::default();
    let (mut certificate, mut key) = (None, None);
    options::each(options, within, |name, given| {
        match name {
            "name" => config.name = given.read()?,
            "user" => login.user = Some(given.read()?),
            "password" => login.password = Some(given.read()?),
            "password_file" => login.password_file = Some(given.read()?),
            "token" => login.token = Some(given.read()?),
            "token_file" => login.token_file = Some(given.read()?),
            "nkey" => login.nkey = Some(given.read()?),
            "nkey_file" => login.nkey_file = Some(given.read()?),
            "credentials_file" => login.credentials_file = Some(given.read()?),
            "root_certificates" => config.root_certificates = given.read()?,
            "client_certificate" => certificate = Some(given.read()?),
            "client_key" => key = Some(given.read()?),
            "require_tls" => config.require_tls = given.read()?,
            "connect_timeout_ms" => config.connect_timeout = given.millis()?,
            "request_timeout_ms" => config.request_timeout = given.millis()?,
            "ping_interval_ms" => config.ping_interval = given.millis()?,
            "reconnect_pause_max_ms" => config.reconnect_pause_max = given.millis()?,
            "publish" => config.publish = publish::config(given)?,
            "region" => config.region = Some(given.read()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    config.login = login.login(|name| format!("{within}{name}")).map_err(|fault| errors::from_fault(&fault))?;
    match (certificate, key) {
        (Some(certificate), Some(key)) => config.client_certificate = Some((certificate, key)),
        (None, None) => {}
        _ => {
            return Err(errors::invalid(
                &format!("{within}client_certificate"),
                "client_certificate and client_key go together",
            ));
        }
    }
    Ok(config)
}
