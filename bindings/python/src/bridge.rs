//! The connection.

use nats_bridge::{Config, Login};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::completions::Completions;
use crate::errors;
use crate::home::{self, Home, Owned};
use crate::options;

/// A connection. The Python classes `nats_bridge.Bridge` and `nats_bridge.aio.Bridge` are its two faces.
#[pyclass(frozen, module = "nats_bridge._native")]
pub struct Bridge {
    core: Owned<nats_bridge::Bridge>,
}

impl Bridge {
    fn new(home: &'static Home, core: nats_bridge::Bridge) -> Self {
        Bridge { core: Owned::new(home, core) }
    }
}

#[pymethods]
impl Bridge {
    /// Connects and waits.
    #[staticmethod]
    fn connect(py: Python<'_>, servers: Vec<String>, options: &Bound<'_, PyDict>) -> PyResult<Bridge> {
        let home = home::here(py)?;
        let config = config(servers, options)?;
        let core = home.wait(py, nats_bridge::Bridge::connect_with(config))?.map_err(|e| errors::from_core(&e))?;
        Ok(Bridge::new(home, core))
    }

    /// Connects, and sets `future`.
    #[staticmethod]
    fn connect_start(
        py: Python<'_>,
        completions: &Completions,
        future: Py<PyAny>,
        servers: Vec<String>,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<u64> {
        let home = home::here(py)?;
        let config = config(servers, options)?;
        completions.start(future, nats_bridge::Bridge::connect_with(config), move |py, made| {
            let core = made.map_err(|e| errors::from_core(&e))?;
            Ok(Py::new(py, Bridge::new(home, core))?.into_any())
        })
    }

    /// The version of the server that is connected now.
    #[getter]
    fn server_version(&self) -> PyResult<String> {
        Ok(self.core.get()?.server_version())
    }
}

/// The core's settings for `servers` and what `options` say.
fn config(servers: Vec<String>, options: &Bound<'_, PyDict>) -> PyResult<Config> {
    let mut config = Config { servers, ..Config::default() };
    let (mut user, mut password) = (None, None);
    let (mut certificate, mut key) = (None, None);
    options::each(options, |name, given| {
        match name {
            "name" => config.name = given.read()?,
            "user" => user = Some(given.read()?),
            "password" => password = Some(given.read()?),
            "token" => config.login = Login::Token(given.read()?),
            "nkey" => config.login = Login::Nkey(given.read()?),
            "credentials_file" => config.login = Login::CredentialsFile(given.read()?),
            "root_certificates" => config.root_certificates = given.read()?,
            "client_certificate" => certificate = Some(given.read()?),
            "client_key" => key = Some(given.read()?),
            "require_tls" => config.require_tls = given.read()?,
            "connect_timeout_ms" => config.connect_timeout = given.millis()?,
            "request_timeout_ms" => config.request_timeout = given.millis()?,
            "ping_interval_ms" => config.ping_interval = given.millis()?,
            "reconnect_pause_max_ms" => config.reconnect_pause_max = given.millis()?,
            "region" => config.region = given.read()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    match (user, password) {
        (Some(user), Some(password)) => config.login = Login::Password { user, password },
        (None, None) => {}
        _ => return Err(errors::invalid("user", "user and password go together")),
    }
    match (certificate, key) {
        (Some(certificate), Some(key)) => config.client_certificate = Some((certificate, key)),
        (None, None) => {}
        _ => return Err(errors::invalid("client_certificate", "client_certificate and client_key go together")),
    }
    Ok(config)
}
