//! The AMQP listener inside the process.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use amqp_compat::backend::jetstream::User;
use amqp_compat::gateway::{Gateway, GatewayConfig, GatewayState};
use amqp_compat::listener::TlsFiles;
use nats_bridge_verbs::listener::Listener;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMapping};

use crate::bridge;
use crate::completions::Completions;
use crate::errors;
use crate::home::{self, Home, Owned};
use crate::options::{self, Given, millis};

/// A listener for AMQP clients. The Python classes `nats_bridge.AmqpListener` and `nats_bridge.aio.AmqpListener` are its two
/// faces.
#[pyclass(frozen, module = "nats_bridge._native")]
pub struct AmqpListener {
    core: Owned<Listener>,
}

impl AmqpListener {
    /// Wraps what clients connect to.
    pub fn new(home: &'static Home, core: Listener) -> Self {
        AmqpListener { core: Owned::new(home, core) }
    }
}

// Ends when it has stopped; the text is why it stopped by itself.
fn ended(core: Listener) -> impl Future<Output = Option<String>> + Send {
    let mut state = core.watch();
    drop(core);
    async move {
        let ended = |state: &GatewayState| matches!(state, GatewayState::Stopped | GatewayState::Failed { .. });
        match state.wait_for(ended).await.as_deref() {
            Ok(GatewayState::Failed { why }) => Some(why.clone()),
            // Stopped, or dropped, which stops it.
            _ => None,
        }
    }
}

fn outcome(failed: Option<String>) -> PyResult<()> {
    failed.map_or(Ok(()), |why| Err(errors::closed(&why)))
}

#[pymethods]
impl AmqpListener {
    /// Starts it and waits until it takes clients.
    #[staticmethod]
    fn start(py: Python<'_>, nats: Vec<String>, options: &Bound<'_, PyDict>) -> PyResult<AmqpListener> {
        let home = home::here(py)?;
        let config = config(nats, options)?;
        let core = home.wait(py, Gateway::start(config))?.map_err(|e| errors::from_fault(&e.into()))?;
        Ok(AmqpListener::new(home, Listener::Gateway(Arc::new(core))))
    }

    /// Starts it, or gives what to wait for.
    #[staticmethod]
    fn start_start(
        py: Python<'_>,
        completions: &Completions,
        nats: Vec<String>,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<Py<PyAny>> {
        let home = home::here(py)?;
        let config = config(nats, options)?;
        completions.start(py, Gateway::start(config), move |py, started| {
            let core = started.map_err(|e| errors::from_fault(&e.into()))?;
            Ok(Py::new(py, AmqpListener::new(home, Listener::Gateway(Arc::new(core))))?.into_any())
        })
    }

    /// Sends clients away, and waits until they are gone; after `budget_ms` they are cut.
    fn stop(&self, py: Python<'_>, budget_ms: &Bound<'_, PyAny>) -> PyResult<()> {
        let (core, budget) = (self.core.get()?, millis("budget_ms", budget_ms)?);
        self.core.home().wait(py, core.stop(budget))
    }

    /// Stops it, or gives what to wait for.
    fn stop_start(
        &self,
        completions: &Completions,
        py: Python<'_>,
        budget_ms: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let (core, budget) = (self.core.get()?.clone(), millis("budget_ms", budget_ms)?);
        completions.start(py, async move { core.stop(budget).await }, |py, ()| Ok(py.None()))
    }

    /// Waits until it has stopped.
    fn wait(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.core.get()?.clone();
        outcome(self.core.home().wait(py, ended(core))?)
    }

    /// Waits until it has stopped, or gives what to wait for.
    fn wait_start(&self, completions: &Completions, py: Python<'_>) -> PyResult<Py<PyAny>> {
        completions.start(py, ended(self.core.get()?.clone()), |py, failed| {
            outcome(failed)?;
            Ok(py.None())
        })
    }

    /// The URL for a client on this machine.
    #[getter]
    fn url(&self) -> PyResult<&str> {
        Ok(self.core.get()?.url())
    }

    /// Host and port that AMQP clients connect to.
    #[getter]
    fn address(&self) -> PyResult<(String, u16)> {
        let address = self.core.get()?.address();
        Ok((address.ip().to_string(), address.port()))
    }

    /// Host and port that AMQPS clients connect to.
    #[getter]
    fn tls_address(&self) -> PyResult<Option<(String, u16)>> {
        Ok(self.core.get()?.tls_address().map(|address| (address.ip().to_string(), address.port())))
    }

    /// How many clients are connected.
    #[getter]
    fn connections(&self) -> PyResult<usize> {
        Ok(self.core.get()?.connections())
    }

    /// How it is, and why.
    #[getter]
    fn state(&self) -> PyResult<(&'static str, Option<String>)> {
        Ok(match self.core.get()?.state() {
            GatewayState::Running => ("running", None),
            GatewayState::Draining => ("draining", None),
            GatewayState::Stopped => ("stopped", None),
            GatewayState::Failed { why } => ("failed", Some(why)),
        })
    }
}

/// The settings for `nats` and what `options` say.
fn config(nats: Vec<String>, options: &Bound<'_, PyDict>) -> PyResult<GatewayConfig> {
    let py = options.py();
    let mut config =
        GatewayConfig { nats: bridge::config(nats.clone(), &PyDict::new(py), "")?, ..GatewayConfig::default() };
    let mut listen_tls: Option<String> = None;
    let (mut certificate, mut key, mut client_ca): (Option<PathBuf>, Option<PathBuf>, Option<PathBuf>) =
        Default::default();
    let mut client_optional = false;
    options::each(options, "", |name, given| {
        match name {
            "connect" => {
                let (options, within) = given.options()?;
                config.nats = bridge::config(nats.clone(), options, &within)?;
            }
            "listen" => config.listen = given.read()?,
            "listen_tls" => listen_tls = Some(given.read()?),
            "tls_cert" => certificate = Some(given.read()?),
            "tls_key" => key = Some(given.read()?),
            "tls_client_ca" => client_ca = Some(given.read()?),
            "tls_client_optional" => client_optional = given.read()?,
            "users" => config.users = users(given)?,
            "vhosts" => config.vhosts = given.read()?,
            "replicas" => config.replicas = given.count("it is 1 to 5")?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    config.listen_tls = match (listen_tls, certificate, key) {
        (Some(_), Some(_), Some(_)) if client_optional && client_ca.is_none() => {
            return Err(errors::invalid("tls_client_optional", "it goes with tls_client_ca"));
        }
        (Some(place), Some(certificate), Some(key)) => {
            Some((place, TlsFiles { certificate, key, client_ca, client_optional }))
        }
        (None, None, None) if client_ca.is_none() && !client_optional => None,
        _ => return Err(errors::invalid("listen_tls", "listen_tls, tls_cert and tls_key go together")),
    };
    Ok(config)
}

fn users(given: &Given<'_>) -> PyResult<Vec<User>> {
    let pairs = given.read::<Bound<'_, PyMapping>>()?.items()?;
    let user =
        |pair: Bound<'_, PyAny>| pair.extract::<(String, String)>().map(|(name, password)| User { name, password });
    pairs.iter().map(|pair| user(pair).map_err(|_| given.is_no("a mapping of str to str"))).collect()
}
