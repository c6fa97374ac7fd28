//! The state of the cutover in a NATS KV bucket, changed by compare-and-set.

use std::time::Duration;

use amqp_compat::backend::jetstream::open_bucket;
use async_nats::jetstream::kv::{self, CreateErrorKind, UpdateErrorKind};
use async_nats::jetstream::stream::StorageType;
use futures::StreamExt;
use nats_bridge::Bridge;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::control_api::{BackfillReport, Phase, Rehearsal, Unmapped, Weight};
use crate::dual::logins::Accepted;
use crate::fence::Shift;
use crate::phase::Position;

/// The bucket.
pub const BUCKET: &str = "BRIDGE_STATE";
const STATE: &str = "state";
const UNMAPPED: &str = "unmapped";
const LOGINS: &str = "login";
const BACKFILL: &str = "backfill";
const REHEARSAL: &str = "rehearsal";
/// The longest that a write may take: a change is to be in force within a second.
const WRITE: Duration = Duration::from_millis(600);
/// The longest that reading the history may take.
const READ: Duration = Duration::from_secs(5);

/// What survives a restart of the sidecar.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The phase in force.
    pub phase: Phase,
    /// The weight in force, in per cent.
    pub weight_percent: Weight,
    /// Grows by one with every change.
    pub epoch: u64,
    /// Of the hash that spreads ordering keys over buckets; hexadecimal. Never changes, or keys would change sides.
    pub salt: String,
    /// Who made the last change.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When, as RFC 3339 in UTC.
    pub at: String,
    /// Whether NATS has ever owned anything.
    pub nats_may_hold: bool,
    /// The last change of weight, until the losing side is known to be drained of what moved.
    pub shift: Option<Shift>,
    /// The changes before it, oldest first, that were not known to be drained either; at most [`State::EARLIER`].
    #[serde(default)]
    pub earlier: Vec<Shift>,
    /// Whether the last change was made against the gate's no.
    #[serde(default)]
    pub forced: bool,
    /// Why the sidecar has rolled back by itself, until somebody looks into it (`observe`) or forces more weight.
    #[serde(default)]
    pub rolled_back: Option<String>,
    /// Whether RabbitMQ was given up for good. Before `native`: that was interrupted, and has to be asked for again.
    #[serde(default)]
    pub rabbit_given_up: bool,
}

impl State {
    /// How many changes that are not drained are kept besides the last one. Who makes more, one after the other, while nothing is
    /// consumed, risks the order of the oldest when the sidecar is killed then.
    pub const EARLIER: usize = 64;

    /// Phase and weight.
    pub fn position(&self) -> Position {
        Position { phase: self.phase, weight: self.weight_percent }
    }

    /// The salt as a number.
    pub fn salt(&self) -> u64 {
        u64::from_str_radix(&self.salt, 16).unwrap_or(0)
    }
}

/// Why a write did not happen, or may not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Somebody else has changed it meanwhile. Nothing was written.
    #[error("somebody else has changed the state")]
    Conflict,
    /// NATS did not answer. It may have been written.
    #[error("the state cannot be written: {0}")]
    Unreachable(String),
}

/// The bucket that holds the state.
#[derive(Debug, Clone)]
pub struct Store {
    bucket: kv::Store,
}

impl Store {
    /// Opens the bucket, and makes it where there is none.
    ///
    /// # Errors
    /// A text for people: what JetStream said.
    pub async fn open(bridge: &Bridge) -> Result<Self, String> {
        let config = kv::Config {
            bucket: BUCKET.to_owned(),
            description: "nats-bridge: the state of the cutover".to_owned(),
            // Who changed what and why, without a limit that a human would reach.
            history: 64,
            storage: StorageType::File,
            ..Default::default()
        };
        Ok(Self { bucket: open_bucket(bridge, config).await? })
    }

    /// Reads the state and its revision; writes `first` where there is none.
    ///
    /// # Errors
    /// A text for people: what JetStream said, or that the state is not one of this version.
    pub async fn load(&self, first: State) -> Result<(State, u64), String> {
        loop {
            let entry = self.bucket.entry(STATE).await.map_err(|e| format!("the state cannot be read: {e}"))?;
            if let Some(entry) = entry.filter(|e| e.operation == kv::Operation::Put) {
                let state = serde_json::from_slice(&entry.value)
                    .map_err(|e| format!("the state in {BUCKET} is not one of this version: {e}"))?;
                return Ok((state, entry.revision));
            }
            match self.bucket.create(STATE, encode(&first)).await {
                Ok(revision) => return Ok((first, revision)),
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => continue,
                Err(error) => return Err(format!("the state cannot be written: {error}")),
            }
        }
    }

    /// Writes the state if nobody else has since `revision`; answers the new revision.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn save(&self, state: &State, revision: u64) -> Result<u64, WriteError> {
        match timeout(WRITE, self.bucket.update(STATE, encode(state), revision)).await {
            Ok(Ok(revision)) => Ok(revision),
            Ok(Err(error)) if error.kind() == UpdateErrorKind::WrongLastRevision => Err(WriteError::Conflict),
            Ok(Err(error)) => Err(WriteError::Unreachable(error.to_string())),
            Err(_) => Err(WriteError::Unreachable(format!("no answer within {} ms", WRITE.as_millis()))),
        }
    }

    /// Reads the state, if there is one of this version.
    ///
    /// # Errors
    /// A text for people: what JetStream said.
    pub async fn peek(&self) -> Result<Option<State>, String> {
        let entry = timeout(WRITE, self.bucket.get(STATE)).await.map_err(|_| "no answer in time".to_owned())?;
        Ok(entry.map_err(|e| e.to_string())?.and_then(|value| serde_json::from_slice(&value).ok()))
    }

    /// Raises the epoch, as one that follows a sidecar: what that one may still write names a revision that is not the last any more.
    ///
    /// # Errors
    /// A text for people: what JetStream said.
    pub async fn succeed(&self, mut state: State, mut revision: u64, how: &str) -> Result<(State, u64), String> {
        loop {
            state.epoch += 1;
            (state.by, state.reason, state.at) = ("nats-bridge".to_owned(), how.to_owned(), super::now());
            match self.save(&state, revision).await {
                Ok(revision) => return Ok((state, revision)),
                Err(WriteError::Conflict) => (state, revision) = self.load(state).await?,
                Err(error @ WriteError::Unreachable(_)) => return Err(error.to_string()),
            }
        }
    }

    /// Sends the state and its revision, and every one that is written from now on, until the watch ends or nobody
    /// listens.
    ///
    /// # Errors
    /// A text for people: why the watch ended.
    pub async fn watch(&self, each: &mpsc::Sender<(State, u64)>) -> Result<(), String> {
        let mut entries = self.bucket.watch_with_history(STATE).await.map_err(|e| e.to_string())?;
        while let Some(entry) = entries.next().await {
            let entry = entry.map_err(|e| e.to_string())?;
            if let Ok(state) = serde_json::from_slice(&entry.value) {
                each.send((state, entry.revision)).await.map_err(|e| e.to_string())?;
            }
        }
        Ok(())
    }

    /// The states so far, oldest first, as far as the bucket has kept them.
    ///
    /// # Errors
    /// A text for people: what JetStream said.
    pub async fn history(&self) -> Result<Vec<State>, String> {
        let read = async {
            let mut entries = self.bucket.history(STATE).await.map_err(|e| e.to_string())?;
            let mut states = Vec::new();
            while let Some(entry) = entries.next().await {
                let entry = entry.map_err(|e| e.to_string())?;
                states.extend(serde_json::from_slice::<State>(&entry.value).ok());
            }
            Ok(states)
        };
        timeout(READ, read).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }

    /// Asks JetStream for something that is there.
    ///
    /// # Errors
    /// A text for people: what JetStream said.
    pub async fn sign_of_life(&self) -> Result<(), String> {
        self.bucket.entry(STATE).await.map(|_| ()).map_err(|e| e.to_string())
    }

    /// What was known to be unmapped in earlier runs.
    ///
    /// # Errors
    /// A text for people: what JetStream said.
    pub async fn unmapped(&self) -> Result<Vec<Unmapped>, String> {
        Ok(self.document(UNMAPPED).await?.unwrap_or_default())
    }

    /// Keeps what is unmapped, so that a restart does not open the way to more weight.
    ///
    /// # Errors
    /// A text for people: what JetStream said.
    pub async fn keep_unmapped(&self, all: &[Unmapped]) -> Result<(), String> {
        self.keep(UNMAPPED, all, WRITE).await
    }

    async fn document<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, String> {
        let known = self.bucket.get(key).await.map_err(|e| e.to_string())?;
        Ok(known.and_then(|value| serde_json::from_slice(&value).ok()))
    }

    async fn keep(&self, key: &str, document: &(impl Serialize + ?Sized), limit: Duration) -> Result<(), String> {
        let value = serde_json::to_vec(document).map_err(|e| e.to_string())?;
        match timeout(limit, self.bucket.put(key, value.into())).await {
            Ok(put) => put.map(|_| ()).map_err(|e| e.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }

    /// How far the last backfill was.
    ///
    /// # Errors
    /// A text for people: what JetStream said.
    pub async fn backfill(&self) -> Result<Option<BackfillReport>, String> {
        self.document(BACKFILL).await
    }

    /// Keeps how far a backfill is.
    ///
    /// # Errors
    /// A text for people: what JetStream said.
    pub async fn keep_backfill(&self, report: &BackfillReport) -> Result<(), String> {
        self.keep(BACKFILL, report, READ).await
    }

    /// The last rehearsal of a rollback.
    ///
    /// # Errors
    /// A text for people: what JetStream said.
    pub async fn rehearsal(&self) -> Result<Option<Rehearsal>, String> {
        self.document(REHEARSAL).await
    }

    /// Keeps a rehearsal.
    ///
    /// # Errors
    /// A text for people: what JetStream said.
    pub async fn keep_rehearsal(&self, rehearsal: &Rehearsal) -> Result<(), String> {
        self.keep(REHEARSAL, rehearsal, READ).await
    }

    /// The logins that RabbitMQ accepted in earlier runs.
    ///
    /// # Errors
    /// A text for people: what JetStream said.
    pub async fn logins(&self) -> Result<Vec<Accepted>, String> {
        let mut keys = self.bucket.keys().await.map_err(|e| e.to_string())?;
        let mut all = Vec::new();
        while let Some(key) = keys.next().await {
            let key = key.map_err(|e| e.to_string())?;
            if key.starts_with(LOGINS)
                && let Ok(Some(value)) = self.bucket.get(&key).await
                && let Ok(accepted) = serde_json::from_slice(&value)
            {
                all.push(accepted);
            }
        }
        Ok(all)
    }

    /// Keeps a login that RabbitMQ accepted: a salted hash, not the password.
    ///
    /// # Errors
    /// A text for people: what JetStream said.
    pub async fn keep_login(&self, accepted: &Accepted) -> Result<(), String> {
        let hex = |text: &str| text.bytes().map(|b| format!("{b:02x}")).collect::<String>();
        let key = format!("{LOGINS}.{}_.{}_", hex(&accepted.vhost), hex(&accepted.user));
        let value = serde_json::to_vec(accepted).map_err(|e| e.to_string())?;
        self.bucket.put(key, value.into()).await.map(|_| ()).map_err(|e| e.to_string())
    }
}

fn encode(state: &State) -> bytes::Bytes {
    serde_json::to_vec(state).expect("a state has only keys that are text").into()
}
