//! The connection.

use napi::bindgen_prelude::{Array, Either, Env, Function, PromiseRaw, Uint8ArraySlice};
use napi_derive::napi;
use nats_bridge::Config;
use nats_bridge_verbs::login::LoginOptions;
use tokio::runtime::Handle;

use crate::consumer::{ConsumeOptions, Consumer};
use crate::errors;
use crate::health::HealthCheck;
use crate::held::{Eventually, Held};
use crate::ledger::Ledger;
use crate::options::{camel, millis};
use crate::publish::{self, PublishOptions, Published};
use crate::stop::Stop;
use crate::upcast::{Asked, Step, Stepped, upcasters};

/// A connection.
#[napi]
pub struct Bridge {
    core: Held<nats_bridge::Bridge>,
}

/// What may be said about a connection; what is left out has the core's default.
#[napi(object)]
#[derive(Default)]
pub struct ConnectOptions {
    /// The connection's name.
    pub name: Option<String>,
    /// A user name, with `password` or `password_file`.
    pub user: Option<String>,
    /// The password of `user`.
    pub password: Option<String>,
    /// The file with the password of `user`.
    pub password_file: Option<String>,
    /// A shared token to log in with.
    pub token: Option<String>,
    /// The file with a shared token to log in with.
    pub token_file: Option<String>,
    /// The seed of an nkey to log in with.
    pub nkey: Option<String>,
    /// The file with the seed of an nkey to log in with.
    pub nkey_file: Option<String>,
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
    /// The core's settings for `servers`.
    pub fn config(self, servers: Vec<String>) -> napi::Result<Config> {
        let mut config = Config { servers, ..Config::default() };
        if let Some(name) = self.name {
            config.name = name;
        }
        let login = LoginOptions {
            user: self.user,
            password: self.password,
            password_file: self.password_file.map(Into::into),
            token: self.token,
            token_file: self.token_file.map(Into::into),
            nkey: self.nkey,
            nkey_file: self.nkey_file.map(Into::into),
            credentials_file: self.credentials_file.map(Into::into),
        };
        config.login = login.login(camel).map_err(|fault| errors::from_fault(&fault))?;
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

impl Bridge {
    /// The connection of the core.
    pub fn core(&self) -> &nats_bridge::Bridge {
        self.core.get()
    }
}

/// Connects.
#[napi]
pub fn connect(env: &Env, servers: Vec<String>, options: ConnectOptions) -> napi::Result<PromiseRaw<'_, Bridge>> {
    let config = options.config(servers)?;
    env.spawn_future(async move {
        nats_bridge_verbs::metrics::start(&Handle::current());
        let core = nats_bridge::Bridge::connect_with(config).await.map_err(|e| errors::from_core(&e))?;
        Ok(Bridge { core: Held::new(core) })
    })
}

#[napi]
impl Bridge {
    /// Publishes; the promise resolves when the message is stored, or to none when it was to end before that.
    #[napi]
    #[allow(clippy::too_many_arguments)]
    pub fn publish<'env>(
        &self,
        env: &'env Env,
        subject: String,
        payload: Either<String, Uint8ArraySlice<'_>>,
        id: Option<Either<String, bool>>,
        headers: Vec<String>,
        schema: Option<String>,
        stop: Option<&Stop>,
    ) -> napi::Result<Eventually<'env, Option<Published>>> {
        let message = publish::message(subject, payload, id, headers, schema)?;
        let core = self.core.get().clone();
        let work = Stop::unless_told(stop.cloned(), async move { core.publish(message).await });
        self.core.promise(env, work, |stored| stored.map(Published::from))
    }

    /// Publishes many: for each, subject, payload, id, headers and schema in turn. The promise resolves when each has its outcome.
    #[napi]
    pub fn publish_many<'env>(
        &self,
        env: &'env Env,
        messages: Array<'_>,
        stop: Option<&Stop>,
    ) -> napi::Result<Eventually<'env, Option<Vec<publish::Outcome>>>> {
        let messages = publish::messages(&messages)?;
        let core = self.core.get().clone();
        let work = Stop::unless_told(stop.cloned(), async move { Ok(core.publish_many(messages).await) });
        self.core.promise(env, work, |outcomes| {
            outcomes.map(|outcomes| outcomes.into_iter().enumerate().map(publish::outcome).collect())
        })
    }

    /// Starts consuming.
    #[napi]
    pub fn consume<'env>(
        &self,
        env: &'env Env,
        stream: String,
        name: String,
        options: ConsumeOptions,
        steps: Vec<Step>,
        run: Option<Function<'_, Asked, Stepped>>,
    ) -> napi::Result<Eventually<'env, Consumer>> {
        let mut config = options.config(stream, name)?;
        config.upcast = run.map(|run| upcasters(steps, run)).transpose()?;
        let (core, runs_steps) = (self.core.get().clone(), config.upcast.is_some());
        self.core.promise(env, async move { core.consume(config).await }, move |made| Consumer::new(made, runs_steps))
    }

    /// Does what `verb` says with arguments of JSON; the promise resolves to the answer as JSON.
    #[napi]
    pub fn ask<'env>(
        &self,
        env: &'env Env,
        verb: String,
        json: String,
        stop: Option<&Stop>,
    ) -> napi::Result<PromiseRaw<'env, String>> {
        let (core, stop) = (self.core.get().clone(), stop.cloned().unwrap_or_default());
        env.spawn_future(async move {
            let answer = nats_bridge_verbs::ask(core, verb, json, || !stop.is_told()).await;
            answer.map_err(|e| errors::from_fault(&e))
        })
    }

    /// What `stats` says, at once.
    #[napi]
    pub fn stats(&self) -> String {
        nats_bridge_verbs::stats(self.core.get())
    }

    /// A health check of what is required.
    #[napi]
    pub fn health_check(&self, required: String) -> napi::Result<HealthCheck> {
        let check = nats_bridge_verbs::health::check(self.core.get(), &required);
        Ok(HealthCheck::new(&self.core, check.map_err(|e| errors::from_fault(&e))?))
    }

    /// Opens a ledger.
    #[napi]
    pub fn ledger<'env>(
        &self,
        env: &'env Env,
        bucket: String,
        keep_ms: f64,
        lease_ms: f64,
    ) -> napi::Result<Eventually<'env, Ledger>> {
        let (keep, lease) = (millis("keepMs", keep_ms)?, millis("leaseMs", lease_ms)?);
        let core = self.core.get().clone();
        self.core.promise(env, async move { core.ledger(bucket, keep, lease).await }, Ledger::new)
    }

    /// Waits at most `budget_ms` for what is outstanding, then closes.
    #[napi]
    pub fn close<'env>(&self, env: &'env Env, budget_ms: f64) -> napi::Result<Eventually<'env, ()>> {
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
