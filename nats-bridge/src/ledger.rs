//! Which messages were handled, for effects that must not happen twice.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::kv::{CreateErrorKind, Operation, Store};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::bridge::Bridge;
use crate::error::{Error, ErrorKind, Result};
use crate::provision::BucketSpec;

/// A key-value bucket with one entry for each id that was begun or done. Clones share it.
///
/// A message may come twice: its handler died behind the effect and before the ack, or it was published again after the
/// stream's duplicate window. With a ledger the second handling sees that the first was done. What it cannot do: when a
/// worker dies between the effect and [`Entry::done`], the next one begins again; an effect that must be exactly once even
/// then has to be stored together with the id, in one transaction of its database.
///
/// ```no_run
/// # async fn charge(_: &[u8]) -> nats_bridge::Result<()> { Ok(()) }
/// # async fn example(bridge: nats_bridge::Bridge, delivery: nats_bridge::Delivery) -> nats_bridge::Result<()> {
/// use std::time::Duration;
/// use nats_bridge::ledger::Begun;
///
/// let day = Duration::from_secs(24 * 3600);
/// let ledger = bridge.ledger("billing-done", day, Duration::from_secs(30)).await?;
/// match ledger.begin(delivery.id().unwrap_or_default()).await? {
///     Begun::First(entry) => {
///         charge(delivery.payload()).await?;
///         entry.done().await?;
///         delivery.ack().await?;
///     }
///     Begun::Done => drop(delivery.ack().await?),
///     Begun::Elsewhere => drop(delivery.retry("another worker has it").await?),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    lease: Duration,
    // Entries of others that were not done when they were seen: since when, and in which revision.
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    first: HashMap<String, (u64, Instant)>,
    order: VecDeque<String>,
}

/// What became of [`Ledger::begin`].
#[derive(Debug)]
pub enum Begun {
    /// Nobody has done it: do it, and say so.
    First(Entry),
    /// It was done before.
    Done,
    /// Another worker has begun it and its lease is not over: come back later.
    Elsewhere,
}

/// An id that this process has begun.
#[derive(Debug)]
pub struct Entry {
    ledger: Ledger,
    key: String,
    revision: u64,
}

const BEGUN: &str = "begun";
const DONE: &str = "done";
/// How many entries of others are remembered; one that is forgotten is waited for again.
const SEEN: usize = 10_000;

impl Bridge {
    /// Opens the ledger in this bucket, which is made if it does not exist: 64 MiB, entries kept for `keep`.
    ///
    /// `keep` is how long a message may come again: longer than its stream keeps it. `lease` is how long an entry that was
    /// begun and not done is left to the worker that began it, counted from when another worker sees it first; longer than
    /// a handler runs.
    ///
    /// # Errors
    /// `Config`: the bucket's name or a time is not legal. Else as JetStream answers.
    pub async fn ledger(&self, bucket: impl Into<String>, keep: Duration, lease: Duration) -> Result<Ledger> {
        let name = bucket.into();
        let spec =
            BucketSpec { name: name.clone(), ttl: Some(keep), max_bytes: Some(64 << 20), ..BucketSpec::default() };
        spec.check()?;
        let stream = spec.stream();
        match self.unless_denied(crate::api::ask(self.jetstream(), format!("STREAM.INFO.{stream}"))).await {
            Ok(_) => {}
            // An existing one is left as it is: its bounds are the operator's.
            Err(error) if error.kind() == ErrorKind::NotFound => self.ensure_bucket(&spec).await?,
            Err(error) => return Err(error),
        }
        let store = self
            .jetstream()
            .get_key_value(&name)
            .await
            .map_err(|e| Error::new(ErrorKind::Unreachable).with("bucket", &name).because(e))?;
        Ok(Ledger(Arc::new(Inner { store, lease, seen: Mutex::default() })))
    }
}

impl Ledger {
    /// Begins to handle the message with this id, unless that was done, or another worker is at it.
    ///
    /// # Errors
    /// `InvalidMessage`: the id is empty. `Unreachable`: the bucket cannot be read or written; nothing is known then.
    pub async fn begin(&self, id: &str) -> Result<Begun> {
        if id.is_empty() {
            return Err(Error::new(ErrorKind::InvalidMessage).with("why", "a ledger needs ids"));
        }
        let key = key(id);
        match self.0.store.create(&key, BEGUN.into()).await {
            Ok(revision) => return Ok(Begun::First(Entry { ledger: self.clone(), key, revision })),
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {}
            Err(error) => return Err(self.error(error)),
        }
        let entry = self.0.store.entry(&key).await.map_err(|e| self.error(e))?;
        match entry {
            Some(entry) if entry.operation == Operation::Put && entry.value == DONE => Ok(Begun::Done),
            Some(entry) => self.take_over(key, entry.revision).await,
            // It ran out, or was undone, a moment ago.
            None => Ok(Begun::Elsewhere),
        }
    }

    // Whoever has seen the same revision for the whole lease takes it by compare-and-set: no clocks are compared.
    async fn take_over(&self, key: String, revision: u64) -> Result<Begun> {
        if !self.is_over(&key, revision, Instant::now()) {
            return Ok(Begun::Elsewhere);
        }
        match self.0.store.update(&key, BEGUN.into(), revision).await {
            Ok(revision) => {
                tracing::warn!(
                    bucket = self.0.store.name,
                    key,
                    "a worker did not finish what it had begun; begun again"
                );
                metrics::counter!("natsbridge_ledger_taken_over_total", "bucket" => self.0.store.name.clone())
                    .increment(1);
                Ok(Begun::First(Entry { ledger: self.clone(), key, revision }))
            }
            // Somebody else did.
            Err(_) => Ok(Begun::Elsewhere),
        }
    }

    fn is_over(&self, key: &str, revision: u64, now: Instant) -> bool {
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.first.get(key) {
            Some((known, since)) if *known == revision => now.duration_since(*since) >= self.0.lease,
            known => {
                if known.is_none() {
                    seen.order.push_back(key.to_owned());
                }
                seen.first.insert(key.to_owned(), (revision, now));
                if seen.order.len() > SEEN
                    && let Some(oldest) = seen.order.pop_front()
                {
                    seen.first.remove(&oldest);
                }
                false
            }
        }
    }

    fn error(&self, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::new(ErrorKind::Unreachable).with("bucket", &self.0.store.name).with("why", &error).because(error)
    }
}

impl Entry {
    /// Says that it is done: whoever begins it again is told so.
    ///
    /// # Errors
    /// `Conflict`: the lease was over and another worker has begun it. `Unreachable`: the bucket cannot be written; it may
    /// have been.
    pub async fn done(self) -> Result<()> {
        match self.ledger.0.store.update(&self.key, DONE.into(), self.revision).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == async_nats::jetstream::kv::UpdateErrorKind::WrongLastRevision => {
                Err(Error::new(ErrorKind::Conflict).with("bucket", &self.ledger.0.store.name).with("key", &self.key))
            }
            Err(error) => Err(self.ledger.error(error)),
        }
    }

    /// Says that it was not done: whoever comes next begins at once. Dropped without a word, the lease has to run out.
    ///
    /// # Errors
    /// As [`Entry::done`].
    pub async fn undo(self) -> Result<()> {
        let deleted = self.ledger.0.store.delete_expect_revision(&self.key, Some(self.revision)).await;
        deleted.map_err(|e| self.ledger.error(e))
    }
}

// Keys have fewer characters than ids, and a bounded length.
fn key(id: &str) -> String {
    match id.len() <= 180 {
        true => format!("i.{}", URL_SAFE_NO_PAD.encode(id)),
        false => format!("h.{}", URL_SAFE_NO_PAD.encode(Sha256::digest(id))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_id_has_a_legal_key_of_its_own() {
        let long = "x".repeat(500);
        let keys: std::collections::HashSet<String> =
            ["a", "a b", "a.b", "*", ">", "ü", &long, &long[1..]].into_iter().map(key).collect();
        assert_eq!(keys.len(), 8);
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        assert!(keys.iter().all(|key| key.len() < 250 && key.chars().all(legal)));
    }
}
