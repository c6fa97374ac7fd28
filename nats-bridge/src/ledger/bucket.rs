//! A ledger in a key-value bucket.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::kv::{CreateErrorKind, Operation, Store};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use foldhash::HashMap;
use sha2::{Digest, Sha256};

use super::{Known, Ledger, Place};
use crate::bridge::Bridge;
use crate::error::{Error, ErrorKind, Result};
use crate::provision::{BucketSpec, make_bucket_if_absent};

#[derive(Debug)]
pub(super) struct Bucket {
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

/// An id that this process has begun.
#[derive(Debug)]
pub(super) struct Claim {
    bucket: Arc<Bucket>,
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
        self.unless_denied(make_bucket_if_absent(self.jetstream(), &spec)).await?;
        let store = self
            .jetstream()
            .get_key_value(&name)
            .await
            .map_err(|e| Error::new(ErrorKind::Unreachable).with("bucket", &name).because(e))?;
        Ok(Ledger(Place::Bucket(Arc::new(Bucket { store, lease, seen: Mutex::default() }))))
    }
}

impl Bucket {
    pub async fn begin(self: &Arc<Self>, id: &str) -> Result<Known<Claim>> {
        let key = key(id);
        match self.store.create(&key, BEGUN.into()).await {
            Ok(revision) => return Ok(Known::First(Claim { bucket: self.clone(), key, revision })),
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {}
            Err(error) => return Err(self.error(error)),
        }
        let entry = self.store.entry(&key).await.map_err(|e| self.error(e))?;
        match entry {
            Some(entry) if entry.operation == Operation::Put && entry.value == DONE => Ok(Known::Done),
            Some(entry) => self.take_over(key, entry.revision).await,
            // It ran out, or was undone, a moment ago.
            None => Ok(Known::Elsewhere),
        }
    }

    // Whoever has seen the same revision for the whole lease takes it by compare-and-set: no clocks are compared.
    async fn take_over(self: &Arc<Self>, key: String, revision: u64) -> Result<Known<Claim>> {
        if !self.is_over(&key, revision, Instant::now()) {
            return Ok(Known::Elsewhere);
        }
        match self.store.update(&key, BEGUN.into(), revision).await {
            Ok(revision) => {
                tracing::warn!(bucket = self.store.name, key, "a worker did not finish what it had begun; begun again");
                metrics::counter!("natsbridge_ledger_taken_over_total", "bucket" => self.store.name.clone())
                    .increment(1);
                Ok(Known::First(Claim { bucket: self.clone(), key, revision }))
            }
            // Somebody else did.
            Err(_) => Ok(Known::Elsewhere),
        }
    }

    fn is_over(&self, key: &str, revision: u64, now: Instant) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.first.get(key) {
            Some((known, since)) if *known == revision => now.duration_since(*since) >= self.lease,
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
        Error::new(ErrorKind::Unreachable).with("bucket", &self.store.name).with("why", &error).because(error)
    }
}

impl Claim {
    pub async fn done(self) -> Result<()> {
        match self.bucket.store.update(&self.key, DONE.into(), self.revision).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == async_nats::jetstream::kv::UpdateErrorKind::WrongLastRevision => {
                Err(Error::new(ErrorKind::Conflict).with("bucket", &self.bucket.store.name).with("key", &self.key))
            }
            Err(error) => Err(self.bucket.error(error)),
        }
    }

    pub async fn undo(self) -> Result<()> {
        let deleted = self.bucket.store.delete_expect_revision(&self.key, Some(self.revision)).await;
        deleted.map_err(|e| self.bucket.error(e))
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
