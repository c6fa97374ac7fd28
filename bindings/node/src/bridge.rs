//! The connection.

use napi::bindgen_prelude::{Either, Env, PromiseRaw, Uint8Array};
use napi_derive::napi;
use nats_bridge::{Config, Login};

use crate::consumer::{ConsumeOptions, Consumer};
use crate::errors;
use crate::held::Held;
use crate::options::millis;
use crate::provision::Spec;
use crate::publish::{self, PublishOptions, Published};

/// A connection.
#[napi]
pub struct Bridge {
    core: Held<nats_bridge::Bridge>,
}

/// What may be said about a connection; what is left out has the core's default.
#[napi(object)]
pub struct ConnectOptions {
    /// The connection's name.
    pub name: Option<String>,
    /// A user name, with `password`.
    pub user: Option<String>,
    /// The password of `user`.
    pub password: Option<String>,
    /// A shared token to log in with.
    pub token: Option<String>,
    /// The seed of an nkey to log in with.
    pub nkey: Option<String>,
    /// A file with a JWT and a seed to log in with.
    pub credentials_file: Option<String>,
    /// Files of certificate authorities (PEM) in addition to the system's.
    pub root_certificates: Option<Vec<String>>,
    /// The file of a client certificate (PEM), with `client_key`.
    pub client_certificate: Option<String>,
    /// The file of the key (PEM) of `client_certificate`.
    pub client_key: Option<String>,
    /// Refuses a connection without TLS.
    pub require_tls: Option<bool>,
    /// The longest wait for one connection attempt.
    pub connect_timeout_ms: Option<f64>,
    /// The longest wait for an answer of JetStream's API.
    pub request_timeout_ms: Option<f64>,
    /// Time between pings that detect a dead connection.
    pub ping_interval_ms: Option<f64>,
    /// The longest pause between reconnect attempts.
    pub reconnect_pause_max_ms: Option<f64>,
    /// A word that generated message ids start with.
    pub region: Option<String>,
    /// The bounds of publishing.
    pub publish: Option<PublishOptions>,
}

impl ConnectOptions {
    fn config(self, servers: Vec<String>) -> napi::Result<Config> {
        let mut config = Config { servers, ..Config::default() };
        if let Some(name) = self.name {
            config.name = name;
        }
        match (self.user, self.password) {
            (Some(user), Some(password)) => config.login = Login::Password { user, password },
            (None, None) => {}
            _ => return Err(errors::invalid("user", "user and password go together")),
        }
        if let Some(token) = self.token {
            config.login = Login::Token(token);
        }
        if let Some(seed) = self.nkey {
            config.login = Login::Nkey(seed);
        }
        if let Some(path) = self.credentials_file {
            config.login = Login::CredentialsFile(path.into());
        }
        if let Some(paths) = self.root_certificates {
            config.root_certificates = paths.into_iter().map(Into::into).collect();
        }
        match (self.client_certificate, self.client_key) {
            (Some(certificate), Some(key)) => config.client_certificate = Some((certificate.into(), key.into())),
            (None, None) => {}
            _ => return Err(errors::invalid("clientCertificate", "clientCertificate and clientKey go together")),
        }
        if let Some(required) = self.require_tls {
            config.require_tls = required;
        }
        if let Some(ms) = self.connect_timeout_ms {
            config.connect_timeout = millis("connectTimeoutMs", ms)?;
        }
        if let Some(ms) = self.request_timeout_ms {
            config.request_timeout = millis("requestTimeoutMs", ms)?;
        }
        if let Some(ms) = self.ping_interval_ms {
            config.ping_interval = millis("pingIntervalMs", ms)?;
        }
        if let Some(ms) = self.reconnect_pause_max_ms {
            config.reconnect_pause_max = millis("reconnectPauseMaxMs", ms)?;
        }
        config.region = self.region;
        if let Some(publish) = self.publish {
            config.publish = publish.config()?;
        }
        Ok(config)
    }
}

/// Connects.
#[napi]
pub fn connect(env: &Env, servers: Vec<String>, options: ConnectOptions) -> napi::Result<PromiseRaw<'_, Bridge>> {
    let config = options.config(servers)?;
    env.spawn_future(async move {
        let core = nats_bridge::Bridge::connect_with(config).await.map_err(|e| errors::from_core(&e))?;
        Ok(Bridge { core: Held::new(core) })
    })
}

#[napi]
impl Bridge {
    /// Publishes; the promise resolves when the message is stored.
    #[napi]
    pub fn publish<'env>(
        &self,
        env: &'env Env,
        subject: String,
        payload: Uint8Array,
        id: Option<Either<String, bool>>,
        headers: Vec<String>,
    ) -> napi::Result<PromiseRaw<'env, Published>> {
        let message = publish::message(subject, payload, id, headers)?;
        let core = self.core.get().clone();
        self.core.promise(env, async move { core.publish(message).await }, Published::from)
    }

    /// Starts consuming.
    #[napi]
    pub fn consume<'env>(
        &self,
        env: &'env Env,
        stream: String,
        name: String,
        options: ConsumeOptions,
    ) -> napi::Result<PromiseRaw<'env, Consumer>> {
        let config = options.config(stream, name)?;
        let core = self.core.get().clone();
        self.core.promise(env, async move { core.consume(config).await }, Consumer::new)
    }

    /// Makes a stream or consumer as it should be.
    #[napi]
    pub fn ensure<'env>(&self, env: &'env Env, kind: String, json: String) -> napi::Result<PromiseRaw<'env, ()>> {
        let work = Spec::read(&kind, &json)?.ensure(self.core.get().clone());
        self.core.promise(env, work, |()| ())
    }

    /// Waits at most `budget_ms` for what is outstanding, then closes.
    #[napi]
    pub fn close<'env>(&self, env: &'env Env, budget_ms: f64) -> napi::Result<PromiseRaw<'env, ()>> {
        let budget = millis("budgetMs", budget_ms)?;
        let core = self.core.get().clone();
        self.core.promise(env, async move { core.close(budget).await }, |()| ())
    }

    /// The version of the server that is connected now.
    #[napi(getter)]
    pub fn server_version(&self) -> String {
        self.core.get().server_version()
    }
}
