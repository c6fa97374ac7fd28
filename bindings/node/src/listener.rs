//! The AMQP listener inside the process.

use std::sync::Arc;

use amqp_compat::backend::jetstream::User;
use amqp_compat::gateway::{Gateway, GatewayConfig, GatewayState};
use amqp_compat::listener::TlsFiles;
use napi::bindgen_prelude::{Env, PromiseRaw};
use napi_derive::napi;
use nats_bridge_verbs::listener::Listener;

use crate::bridge::ConnectOptions;
use crate::consumer::State;
use crate::errors;
use crate::held::{Eventually, Held};
use crate::options::{count, millis};

/// A listener for AMQP clients.
#[napi]
pub struct AmqpListener {
    core: Held<Listener>,
}

/// What a listener serves, and where; what is left out has the gateway's default.
#[napi(object)]
pub struct AmqpListenerOptions {
    /// `HOST:PORT` for AMQP clients.
    pub listen: Option<String>,
    /// `HOST:PORT` for AMQPS clients.
    pub listen_tls: Option<String>,
    /// The file of the certificate (PEM) for AMQPS clients.
    pub tls_cert: Option<String>,
    /// The file of the key (PEM) of `tls_cert`.
    pub tls_key: Option<String>,
    /// The file of the authorities (PEM) of clients' certificates.
    pub tls_client_ca: Option<String>,
    /// Whether clients without a certificate are let in as well.
    pub tls_client_optional: Option<bool>,
    /// Names and passwords in turn.
    pub users: Option<Vec<String>>,
    /// The virtual hosts that exist.
    pub vhosts: Option<Vec<String>>,
    /// How many servers of a cluster hold a durable classic queue.
    pub replicas: Option<f64>,
    /// How to log in to NATS.
    pub connect: Option<ConnectOptions>,
}

/// Where a listener is.
#[napi(object)]
pub struct Address {
    /// The host.
    pub host: String,
    /// The port.
    pub port: u32,
}

impl From<std::net::SocketAddr> for Address {
    fn from(address: std::net::SocketAddr) -> Self {
        Address { host: address.ip().to_string(), port: address.port().into() }
    }
}

impl AmqpListenerOptions {
    fn config(self, nats: Vec<String>) -> napi::Result<GatewayConfig> {
        let nats = self.connect.unwrap_or_default().config(nats)?;
        let mut config = GatewayConfig { nats, ..GatewayConfig::default() };
        if let Some(place) = self.listen {
            config.listen = place;
        }
        config.listen_tls = match (self.listen_tls, self.tls_cert, self.tls_key) {
            (Some(place), Some(certificate), Some(key)) => {
                let client_ca = self.tls_client_ca.map(Into::into);
                let client_optional = self.tls_client_optional.unwrap_or_default();
                if client_optional && client_ca.is_none() {
                    return Err(errors::invalid("tlsClientOptional", "it goes with tlsClientCa"));
                }
                Some((place, TlsFiles { certificate: certificate.into(), key: key.into(), client_ca, client_optional }))
            }
            (None, None, None) if self.tls_client_ca.is_none() && self.tls_client_optional.is_none() => None,
            _ => return Err(errors::invalid("listenTls", "listenTls, tlsCert and tlsKey go together")),
        };
        let mut users = self.users.unwrap_or_default().into_iter();
        while let (Some(name), Some(password)) = (users.next(), users.next()) {
            config.users.push(User { name, password });
        }
        if let Some(vhosts) = self.vhosts {
            config.vhosts = vhosts;
        }
        if let Some(number) = self.replicas {
            config.replicas = count("replicas", number)?;
        }
        Ok(config)
    }
}

/// Starts a listener; the promise resolves when it takes clients.
#[napi]
pub fn start_amqp_listener(
    env: &Env,
    nats: Vec<String>,
    options: AmqpListenerOptions,
) -> napi::Result<PromiseRaw<'_, AmqpListener>> {
    let config = options.config(nats)?;
    env.spawn_future(async move {
        nats_bridge_verbs::metrics::start(&tokio::runtime::Handle::current());
        let core = Gateway::start(config).await.map_err(|e| errors::from_fault(&e.into()))?;
        Ok(AmqpListener { core: Held::new(Listener::Gateway(Arc::new(core))) })
    })
}

impl AmqpListener {
    /// Wraps what clients connect to, on the runtime of something else that is held.
    pub fn beside<U>(other: &Held<U>, core: Listener) -> Self {
        AmqpListener { core: Held::beside(other, core) }
    }
}

#[napi]
impl AmqpListener {
    /// Sends clients away; the promise resolves when they are gone, or were cut after `budget_ms`.
    #[napi]
    pub fn stop<'env>(&self, env: &'env Env, budget_ms: f64) -> napi::Result<Eventually<'env, ()>> {
        let budget = millis("budgetMs", budget_ms)?;
        let core = self.core.get().clone();
        let stop = async move {
            core.stop(budget).await;
            Ok(())
        };
        self.core.promise(env, stop, |()| ())
    }

    /// The promise resolves when it has stopped, and rejects when it ended by itself.
    #[napi]
    pub fn wait<'env>(&self, env: &'env Env) -> napi::Result<PromiseRaw<'env, ()>> {
        let mut state = self.core.get().watch();
        env.spawn_future(async move {
            let ended = |state: &GatewayState| matches!(state, GatewayState::Stopped | GatewayState::Failed { .. });
            match state.wait_for(ended).await.as_deref() {
                Ok(GatewayState::Failed { why }) => Err(errors::closed(why)),
                // Stopped, or dropped, which stops it.
                _ => Ok(()),
            }
        })
    }

    /// The URL for a client on this machine.
    #[napi(getter)]
    pub fn url(&self) -> String {
        self.core.get().url().to_owned()
    }

    /// Where AMQP clients connect to.
    #[napi(getter)]
    pub fn address(&self) -> Address {
        self.core.get().address().into()
    }

    /// Where AMQPS clients connect to.
    #[napi(getter)]
    pub fn tls_address(&self) -> Option<Address> {
        self.core.get().tls_address().map(Address::from)
    }

    /// How many clients are connected.
    #[napi(getter)]
    pub fn connections(&self) -> u32 {
        u32::try_from(self.core.get().connections()).unwrap_or(u32::MAX)
    }

    /// How it is, and why.
    #[napi(getter)]
    pub fn state(&self) -> State {
        let (state, why) = match self.core.get().state() {
            GatewayState::Running => ("running", None),
            GatewayState::Draining => ("draining", None),
            GatewayState::Stopped => ("stopped", None),
            GatewayState::Failed { why } => ("failed", Some(why)),
        };
        State { state: state.to_owned(), why }
    }
}
