//! Messages that wait on disk.

use napi::bindgen_prelude::{Array, Either, Env, PromiseRaw, Uint8ArraySlice};
use napi_derive::napi;
use tokio::runtime::Handle;

use crate::bridge::Bridge;
use crate::errors;
use crate::held::{Eventually, Held};
use crate::publish;

/// An outbox.
#[napi]
pub struct Outbox {
    core: Held<nats_bridge::outbox::Outbox>,
}

/// A message that is on disk.
#[napi(object)]
pub struct Queued {
    /// Its number in the outbox. Exact up to 2^53.
    pub number: f64,
    /// The id that it will be published with.
    pub id: String,
}

impl From<nats_bridge::outbox::Queued> for Queued {
    fn from(core: nats_bridge::outbox::Queued) -> Self {
        Queued { number: core.number as f64, id: core.id }
    }
}

/// Opens the file that the settings, as JSON, name.
#[napi]
pub fn open_outbox(env: &Env, json: String) -> napi::Result<PromiseRaw<'_, Outbox>> {
    let config = nats_bridge_verbs::outbox::config(&json).map_err(|e| errors::from_fault(&e))?;
    env.spawn_future(async move {
        nats_bridge_verbs::metrics::start(&Handle::current());
        let core = nats_bridge::outbox::Outbox::open(config).await.map_err(|e| errors::from_core(&e))?;
        Ok(Outbox { core: Held::new(core) })
    })
}

#[napi]
impl Outbox {
    /// Publishes over this connection from now on.
    #[napi]
    pub fn start<'env>(&self, env: &'env Env, bridge: &Bridge) -> napi::Result<Eventually<'env, ()>> {
        let (core, bridge) = (self.core.get().clone(), bridge.core().clone());
        self.core.promise(env, async move { core.start(&bridge).await }, |()| ())
    }

    /// Takes a message; the promise resolves when it is on disk.
    #[napi]
    pub fn put<'env>(
        &self,
        env: &'env Env,
        subject: String,
        payload: Either<String, Uint8ArraySlice<'_>>,
        id: Option<Either<String, bool>>,
        headers: Vec<String>,
        schema: Option<String>,
    ) -> napi::Result<Eventually<'env, Queued>> {
        let message = publish::message(subject, payload, id, headers, schema)?;
        let core = self.core.get().clone();
        self.core.promise(env, async move { core.put(message).await }, Queued::from)
    }

    /// Takes many, all or none: for each, subject, payload, id, headers and schema in turn.
    #[napi]
    pub fn put_many<'env>(&self, env: &'env Env, messages: Array<'_>) -> napi::Result<Eventually<'env, Vec<Queued>>> {
        let messages = publish::messages(&messages)?;
        let core = self.core.get().clone();
        let put = async move { core.put_many(messages).await };
        self.core.promise(env, put, |put| put.into_iter().map(Queued::from).collect())
    }

    /// Does what `verb` says with arguments of JSON; the promise resolves to the answer as JSON.
    #[napi]
    pub fn ask<'env>(&self, env: &'env Env, verb: String, json: String) -> napi::Result<PromiseRaw<'env, String>> {
        let core = self.core.get().clone();
        let answer = nats_bridge_verbs::outbox::ask(core, verb, json);
        env.spawn_future(async move { answer.await.map_err(|e| errors::from_fault(&e)) })
    }

    /// What it holds, as JSON.
    #[napi]
    pub fn status(&self) -> String {
        nats_bridge_verbs::outbox::status(self.core.get())
    }
}
