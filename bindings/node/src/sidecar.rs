//! The sidecar inside the process: between the application's AMQP clients and two brokers.

use std::sync::Arc;

use napi::bindgen_prelude::{Env, PromiseRaw};
use napi_derive::napi;
use nats_bridge_verbs::{metrics, sidecar as verbs};
use tokio::runtime::Handle;

use crate::bridge::ConnectOptions;
use crate::errors;
use crate::held::Held;
use crate::listener::AmqpListener;

/// A sidecar.
#[napi]
pub struct Sidecar {
    core: Held<Arc<verbs::Running>>,
}

/// Starts a sidecar; the promise resolves when it takes clients. `options` are JSON.
#[napi]
pub fn start_sidecar(
    env: &Env,
    nats: Vec<String>,
    connect: ConnectOptions,
    options: String,
) -> napi::Result<PromiseRaw<'_, Sidecar>> {
    let config = verbs::config(connect.config(nats)?, &options).map_err(|e| errors::from_fault(&e))?;
    env.spawn_future(async move {
        metrics::start(&Handle::current());
        let core = verbs::Running::start(config).await.map_err(|e| errors::from_fault(&e))?;
        Ok(Sidecar { core: Held::new(Arc::new(core)) })
    })
}

#[napi]
impl Sidecar {
    /// Where its clients connect to, and how it is stopped.
    #[napi]
    pub fn listener(&self) -> AmqpListener {
        AmqpListener::beside(&self.core, self.core.get().listener())
    }

    /// Asks its cutover what `verb` says with arguments of JSON; the promise resolves to the answer as JSON.
    #[napi]
    pub fn ask<'env>(&self, env: &'env Env, verb: String, json: String) -> napi::Result<PromiseRaw<'env, String>> {
        let work = self.core.get().ask(verb, json);
        env.spawn_future(async move { work.await.map_err(|e| errors::from_fault(&e)) })
    }
}
