//! The single active consumer: of all instances of a durable consumer, the one that holds the lease pulls.
//!
//! The lease is one key of a bucket, kept by compare-and-set; clocks of two machines are never compared. Whoever has it renews
//! it, and pulls, hands out messages and keeps them alive only for [`Terms::hold`] after a renewal was *sent*. Another instance
//! takes it when it has seen the same revision for [`Terms::wait`]. Between the two lies more than the life of a pull and an
//! `ack_wait`, so that by then the server delivers again, and first, what the former one held: order is kept over the change. What
//! the former one may still do is fenced by the [fencing number](crate::Received::fencing_number).

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::kv::{CreateErrorKind, Operation, Store, UpdateErrorKind};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::sync::Notify;
use tokio::time::timeout;
use ulid::Ulid;

use super::shared::Shared;
use super::{ConsumeConfig, ConsumerState};
use crate::bridge::Bridge;
use crate::error::{Error, ErrorKind, Result};
use crate::provision::{BucketSpec, make_bucket_if_absent, replicas_of};

/// The lease as this instance has it.
pub(super) struct Active {
    store: Store,
    key: String,
    terms: Terms,
    held: Mutex<Option<Held>>,
    /// It was lost, and what was delivered under it is to go before it may be had again.
    pub lost: Notify,
    pub cleared: Notify,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    fencing_number: u64,
    until: Instant,
}

/// The times of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Terms {
    /// Between two renewals.
    renew: Duration,
    /// For how long a renewal counts for the one that sent it.
    hold: Duration,
    /// For how long others wait for a renewal.
    wait: Duration,
    /// How often others look.
    look: Duration,
}

/// How long a pull of a single active consumer stays open on the server: by then nothing more comes to one that has stopped.
pub(super) fn pull_expires(ack_wait: Duration) -> Duration {
    (ack_wait / 4).min(Duration::from_secs(2))
}

impl Terms {
    fn of(ack_wait: Duration) -> Terms {
        Terms {
            renew: ack_wait / 6,
            hold: ack_wait / 2,
            wait: ack_wait * 2,
            look: (ack_wait / 8).clamp(Duration::from_millis(20), Duration::from_millis(500)),
        }
    }
}

/// The revision that was seen last, and since when.
#[derive(Debug, Default)]
struct Seen(Option<(u64, Instant)>);

impl Seen {
    /// Whether this revision has been the last one for as long as that.
    fn is_older_than(&mut self, wait: Duration, revision: u64, now: Instant) -> bool {
        match self.0 {
            Some((known, since)) if known == revision => now.duration_since(since) >= wait,
            _ => {
                self.0 = Some((revision, now));
                false
            }
        }
    }
}

/// The bucket of a stream's leases.
fn bucket_of(stream: &str) -> String {
    format!("{stream}_ACTIVE")
}

impl Active {
    /// Opens the bucket of the leases, which is made if it does not exist: with as many replicas as the stream has.
    pub async fn open(bridge: &Bridge, config: &ConsumeConfig) -> Result<Active> {
        let name = bucket_of(&config.stream);
        let js = bridge.jetstream();
        let replicas = replicas_of(js, &config.stream).await?;
        let spec = BucketSpec { name: name.clone(), max_bytes: Some(1 << 20), replicas, ..BucketSpec::default() };
        make_bucket_if_absent(js, &spec).await?;
        let store = js.get_key_value(&name).await;
        let store = store.map_err(|e| Error::new(ErrorKind::Unreachable).with("bucket", &name).because(e))?;
        Ok(Active {
            store,
            // Durable names have characters that keys have not.
            key: URL_SAFE_NO_PAD.encode(&config.name),
            terms: Terms::of(config.ack_wait),
            held: Mutex::new(None),
            lost: Notify::new(),
            cleared: Notify::new(),
        })
    }

    /// Of the lease that this instance has, or had last as far as it knows.
    pub fn fencing_number(&self) -> Option<u64> {
        self.held().map(|held| held.fencing_number)
    }

    fn is_held(&self, now: Instant) -> bool {
        self.held().is_some_and(|held| now < held.until)
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the lease, keeps it and waits for it again, until the consumer ended and it was given back.
    pub async fn contend(&self, shared: &Shared) {
        let token = Ulid::new().to_string();
        loop {
            let Some((fencing_number, revision)) = self.win(shared, &token).await else { return };
            tracing::info!(consumer = shared.config.name, fencing_number, "this instance is the active consumer");
            shared.metrics.activated.increment(1);
            self.keep(shared, &token, fencing_number, revision).await;
            *self.held() = None;
            shared.now_waiting();
            if shared.end.is_cancelled() {
                return;
            }
            tracing::warn!(
                consumer = shared.config.name,
                fencing_number,
                "another instance is the active consumer now"
            );
            self.lost.notify_one();
            tokio::select! {
                () = self.cleared.notified() => {}
                () = shared.end.cancelled() => return,
            }
        }
    }

    // Gives the fencing number and the revision of the lease that is held now; none when the consumer ended first.
    async fn win(&self, shared: &Shared, token: &str) -> Option<(u64, u64)> {
        let mut seen = Seen::default();
        while !shared.drain.is_cancelled() && !shared.end.is_cancelled() {
            shared.now_waiting();
            match timeout(self.terms.wait, self.try_to_win(&mut seen, token)).await {
                Ok(Ok(Some(won))) => return Some(won),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%error, consumer = shared.config.name, "the lease cannot be asked for at present");
                }
                Err(_) => tracing::debug!(consumer = shared.config.name, "no answer about the lease"),
            }
            tokio::select! {
                () = tokio::time::sleep(self.terms.look) => {}
                () = shared.drain.cancelled() => {}
                () = shared.end.cancelled() => {}
            }
        }
        None
    }

    async fn try_to_win(&self, seen: &mut Seen, token: &str) -> Result<Option<(u64, u64)>> {
        let entry = self.store.entry(&self.key).await.map_err(|e| self.error(e))?;
        let taken = match entry.filter(|entry| entry.operation == Operation::Put) {
            None => match self.store.create(&self.key, token.to_owned().into()).await {
                Ok(revision) => revision,
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => return Ok(None),
                Err(error) => return Err(self.error(error)),
            },
            // What this instance sent and did not hear of.
            Some(entry) if entry.value == token.as_bytes() => entry.revision,
            Some(entry) if seen.is_older_than(self.terms.wait, entry.revision, Instant::now()) => {
                match self.store.update(&self.key, token.to_owned().into(), entry.revision).await {
                    Ok(revision) => revision,
                    Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => return Ok(None),
                    Err(error) => return Err(self.error(error)),
                }
            }
            Some(_) => return Ok(None),
        };
        // A renewal of its own, so that it is known when it was sent.
        let sent = Instant::now();
        match self.store.update(&self.key, token.to_owned().into(), taken).await {
            Ok(revision) => {
                *self.held() = Some(Held { fencing_number: taken, until: sent + self.terms.hold });
                Ok(Some((taken, revision)))
            }
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(None),
            Err(error) => Err(self.error(error)),
        }
    }

    // Until another instance has it, or the consumer ended: then it is given back.
    async fn keep(&self, shared: &Shared, token: &str, fencing_number: u64, mut revision: u64) {
        loop {
            match self.is_held(Instant::now()) {
                true => shared.now_active(),
                false => shared.now_waiting(),
            }
            tokio::select! {
                () = tokio::time::sleep(self.terms.renew) => {}
                () = shared.end.cancelled() => {
                    // If that does not arrive, the others wait for as long as they do after a crash.
                    let gone = self.store.delete_expect_revision(&self.key, Some(revision));
                    let _ = timeout(self.terms.renew, gone).await;
                    return;
                }
            }
            let sent = Instant::now();
            let renewal = self.store.update(&self.key, token.to_owned().into(), revision);
            match timeout(self.terms.renew, renewal).await {
                Ok(Ok(renewed)) => {
                    revision = renewed;
                    *self.held() = Some(Held { fencing_number, until: sent + self.terms.hold });
                }
                Ok(Err(error)) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                    match timeout(self.terms.renew, self.store.entry(&self.key)).await {
                        // A renewal that was not heard of.
                        Ok(Ok(Some(entry))) if entry.value == token.as_bytes() && entry.revision > revision => {
                            revision = entry.revision;
                        }
                        Ok(Ok(Some(entry))) if entry.value == token.as_bytes() => {}
                        Ok(Ok(_)) => return,
                        Ok(Err(_)) | Err(_) => {}
                    }
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, consumer = shared.config.name, "the lease cannot be renewed at present");
                }
                Err(_) => tracing::debug!(consumer = shared.config.name, "no answer to a renewal of the lease"),
            }
        }
    }

    fn error(&self, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::new(ErrorKind::Unreachable).with("bucket", &self.store.name).because(error)
    }
}

impl Shared {
    /// Whether messages may be handed out and kept alive now.
    pub fn may_work(&self, now: Instant) -> bool {
        self.active.as_ref().is_none_or(|active| active.is_held(now))
    }

    fn now_active(&self) {
        self.metrics.active.set(1.0);
        let changed = self.state.send_if_modified(|state| {
            let waited = *state == ConsumerState::Waiting;
            if waited {
                *state = ConsumerState::Running;
            }
            waited
        });
        if changed {
            self.credit.notify_one();
            self.arrived.notify_one();
        }
    }

    fn now_waiting(&self) {
        self.metrics.active.set(0.0);
        self.state.send_if_modified(|state| {
            let ran = *state == ConsumerState::Running;
            if ran {
                *state = ConsumerState::Waiting;
            }
            ran
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_the_lease_has_waited_until_the_server_gave_back_what_the_former_one_held() {
        for ack_wait in [1_000, 5_000, 30_000].map(Duration::from_millis) {
            let terms = Terms::of(ack_wait);
            // The last pull and the last sign of life were sent before `hold` was over.
            assert!(terms.hold + pull_expires(ack_wait) + ack_wait < terms.wait, "{terms:?}");
            assert!(terms.renew * 2 < terms.hold, "one renewal may be lost: {terms:?}");
        }
    }

    #[test]
    fn a_revision_is_old_when_it_was_seen_for_long_and_no_other() {
        let (start, wait) = (Instant::now(), Duration::from_secs(2));
        let at = |s| start + Duration::from_secs(s);
        let mut seen = Seen::default();
        assert!(!seen.is_older_than(wait, 7, at(0)));
        assert!(!seen.is_older_than(wait, 7, at(1)));
        assert!(seen.is_older_than(wait, 7, at(2)));
        assert!(!seen.is_older_than(wait, 8, at(3)), "it was renewed");
        assert!(!seen.is_older_than(wait, 7, at(4)), "and an older one is another one");
    }
}
