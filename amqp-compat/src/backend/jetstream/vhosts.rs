//! The vhosts of a backend: those that it is started with, and those that are made and deleted while it runs.
//!
//! The latter are kept in the bucket `AMQP_VHOSTS`, a key for each, so that the next gateway serves them as well.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex as StdMutex, PoisonError, RwLock};
use std::time::Instant;

use async_nats::jetstream::kv;
use foldhash::HashMap;
use futures::TryStreamExt as _;
use nats_bridge::Bridge;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::JetStreamBackend;
use super::bucket::{is_there, open_bucket};
use super::vhost::VhostRuntime;
use crate::error::{AmqpError, ReplyCode};
use crate::mapping::name;

const BUCKET: &str = "AMQP_VHOSTS";

/// AMQP's `connection.open` has room for no longer name, in bytes.
const LONGEST: usize = 255;

/// What is said of a vhost, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// What it is for.
    pub description: String,
    /// Words to find it by.
    pub tags: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Document {
    name: String,
    #[serde(flatten)]
    about: About,
}

#[derive(Debug)]
struct Running {
    vhost: Arc<VhostRuntime>,
    about: About,
}

/// The vhosts of a backend.
#[derive(Debug, Default)]
pub(super) struct Vhosts {
    running: RwLock<BTreeMap<String, Running>>,
    /// Held while one is made or deleted.
    changing: Mutex<()>,
    /// By deleted vhost, when which of its queues was deleted: one of that name that is made again has to know.
    graves: StdMutex<HashMap<String, HashMap<String, Instant>>>,
}

impl Vhosts {
    pub(super) fn get(&self, name: &str) -> Option<Arc<VhostRuntime>> {
        let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
        running.get(name).map(|running| running.vhost.clone())
    }

    /// Their names, in order.
    pub(super) fn names(&self) -> Vec<String> {
        self.running.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    pub(super) fn about(&self, name: &str) -> Option<About> {
        let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
        running.get(name).map(|running| running.about.clone())
    }

    pub(super) fn insert(&self, name: &str, vhost: Arc<VhostRuntime>, about: About) {
        let mut running = self.running.write().unwrap_or_else(PoisonError::into_inner);
        running.insert(name.to_owned(), Running { vhost, about });
    }

    fn remove(&self, name: &str) {
        self.running.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

/// The vhosts that gateways have made.
pub(super) async fn stored(bridge: &Bridge) -> Result<BTreeMap<String, About>, AmqpError> {
    if !is_there(bridge, BUCKET).await? {
        return Ok(BTreeMap::new());
    }
    let bucket = open(bridge).await?;
    let keys = bucket.keys().await.map_err(failed)?;
    let keys: Vec<String> = keys.try_collect().await.map_err(failed)?;
    let mut stored = BTreeMap::new();
    for key in keys {
        let Some(value) = bucket.get(&key).await.map_err(failed)? else { continue };
        match serde_json::from_slice::<Document>(&value) {
            Ok(Document { name, about }) => drop(stored.insert(name, about)),
            Err(error) => tracing::error!(key, %error, "a vhost's entry cannot be read, and it is not served"),
        }
    }
    Ok(stored)
}

async fn open(bridge: &Bridge) -> Result<kv::Store, AmqpError> {
    let config = kv::Config {
        bucket: BUCKET.to_owned(),
        description: "AMQP vhosts that were made while a gateway ran".to_owned(),
        history: 1,
        ..Default::default()
    };
    open_bucket(bridge, config).await.map_err(failed)
}

impl JetStreamBackend {
    /// Makes a vhost, or says something else of one that is there. True when it was made.
    ///
    /// # Errors
    /// `PreconditionFailed` for a name that cannot be one; `NotImplemented` where several gateways share the account;
    /// `ResourceLocked` when another gateway serves it now; `InternalError` when JetStream does not answer: then it may be
    /// stored, and putting it again is safe.
    pub async fn put_vhost(&self, name: &str, about: About) -> Result<bool, AmqpError> {
        self.still_serves().await?;
        let _changing = self.vhosts.changing.lock().await;
        let known = self.vhosts.about(name);
        if known.as_ref() == Some(&about) {
            return Ok(false);
        }
        self.may_change_vhosts()?;
        if name.is_empty() || name.len() > LONGEST {
            let text = format!("a vhost's name has 1 to {LONGEST} bytes");
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
        }
        let bucket = name::topology_bucket(name);
        let same = |other: &String| other != name && name::topology_bucket(other) == bucket;
        if let Some(other) = self.vhosts.names().into_iter().find(same) {
            let text = format!("vhost '{name}' cannot be told from vhost '{other}' in the names of NATS");
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
        }
        let vhost = match self.vhosts.get(name) {
            Some(vhost) if vhost.gone.is_cancelled() => return Err(vhost.is_deleted()),
            Some(vhost) => vhost,
            None => VhostRuntime::load(name, &self.bridge, &self.config).await?,
        };
        if let Some(deleted) = self.graves().remove(name) {
            vhost.remember_deleted(deleted);
        }
        let document = Document { name: name.to_owned(), about };
        let value = serde_json::to_vec(&document).map_err(failed)?;
        open(&self.bridge).await?.put(key(name), value.into()).await.map_err(failed)?;
        self.vhosts.insert(name, vhost, document.about);
        Ok(known.is_none())
    }

    /// Deletes a vhost with all that is in it, and closes its connections. False when there is none.
    ///
    /// # Errors
    /// `PreconditionFailed` for one that the gateway is started with; `NotImplemented` where several gateways share the
    /// account; `ResourceLocked` when another gateway serves it now; `InternalError` when JetStream does not answer: then
    /// some of it may be gone, nobody can connect to it, and deleting it again is safe.
    pub async fn delete_vhost(&self, name: &str) -> Result<bool, AmqpError> {
        self.still_serves().await?;
        let _changing = self.vhosts.changing.lock().await;
        let Some(vhost) = self.vhosts.get(name) else { return Ok(false) };
        self.may_change_vhosts()?;
        if self.config.vhosts.iter().any(|fixed| fixed == name) {
            let text = format!("vhost '{name}' cannot be deleted: the gateway is started with it");
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
        }
        vhost.destroy().await?;
        self.drop_permissions(name).await?;
        // Last: a gateway that dies before this has the rest of it.
        open(&self.bridge).await?.purge(key(name)).await.map_err(failed)?;
        self.vhosts.remove(name);
        self.graves().insert(name.to_owned(), vhost.deleted());
        Ok(true)
    }

    /// Whether vhosts can be made and deleted.
    ///
    /// # Errors
    /// `NotImplemented` where several gateways share the account.
    pub fn may_change_vhosts(&self) -> Result<(), AmqpError> {
        if self.config.gateways.is_none() {
            return Ok(());
        }
        let text = "vhosts cannot be made or deleted while several gateways share an account; see docs/mapping.md of nats-bridge";
        Err(AmqpError::not_implemented(text))
    }

    fn graves(&self) -> std::sync::MutexGuard<'_, HashMap<String, HashMap<String, Instant>>> {
        let mut graves = self.vhosts.graves.lock().unwrap_or_else(PoisonError::into_inner);
        graves.retain(|_, deleted| VhostRuntime::is_recent(deleted));
        graves
    }

    pub(super) async fn still_serves(&self) -> Result<(), AmqpError> {
        if self.config.is_overtaken() { Err(self.config.lease_lost().await) } else { Ok(()) }
    }
}

fn key(name: &str) -> String {
    name::short(&name::token(name), 200)
}

fn failed(error: impl std::fmt::Display) -> AmqpError {
    AmqpError::new(ReplyCode::InternalError, format!("cannot use the list of vhosts: {error}"))
}
