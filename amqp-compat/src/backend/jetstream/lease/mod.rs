//! The lease on a NATS account: one gateway at a time serves it.
//!
//! Two would pull from the same queues, each taking the other's deliveries for lost. The lease is a document in a key-value
//! bucket; `terms` has its rules, `holder` says who has it.

mod holder;
pub mod terms;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::kv::{self, CreateErrorKind, Operation, UpdateErrorKind};
use async_nats::jetstream::stream::StorageType;
use async_trait::async_trait;
use bytes::Bytes;
use nats_bridge::Bridge;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use holder::{Holder, Reached};
use terms::{Candidate, Holding, Lock, Seen, Standing, Step, Terms, Write};

use super::bucket::open_bucket;
use crate::error::{AmqpError, ReplyCode};

/// The bucket, and the key in it.
pub const BUCKET: &str = "BRIDGE_LEASE";
/// See [`BUCKET`].
pub const KEY: &str = "gateway";

/// How long a gateway may be silent before another one takes its place, unless told otherwise.
pub const LEASE: Duration = Duration::from_secs(10);

/// How often a candidate looks, and a holder tries again that got no answer.
const LOOK: Duration = Duration::from_millis(250);

/// The right to serve a NATS account; clones share it. It is given back when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Lease(Arc<Held>);

/// A lock elsewhere than in NATS, for what a holder does elsewhere; see [`terms`].
#[async_trait]
pub trait SecondLock: std::fmt::Debug + Send + Sync {
    /// Takes it, unless another process has it, and says whether it is this process' own now.
    async fn hold(&self) -> Lock;
    /// Gives it back.
    async fn let_go(&self);
}

/// Who contends, for how long a lease, and how.
struct Entrant<'a> {
    here: Holder,
    /// Told who has it, by who may follow that one.
    leads: Option<&'a watch::Sender<Option<Holder>>>,
    second: Option<Arc<dyn SecondLock>>,
}

#[derive(Debug)]
struct Held {
    standing: watch::Receiver<Tenure>,
    /// Until when it may be relied on, in milliseconds since `start`.
    until: Arc<AtomicU64>,
    start: Instant,
    let_go: CancellationToken,
    _guard: DropGuard,
}

/// How a tenure stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Tenure {
    Holds,
    Released,
    Lost(String),
}

/// Why there is no lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Another gateway has it.
    #[error(
        "another gateway serves this NATS account: {0}. Only one may, or both would deliver the same messages: stop that \
         one, or give this one a NATS account of its own"
    )]
    Held(Holder),
    /// NATS did not answer, or refuses what is needed.
    #[error("the lease in the KV bucket {BUCKET} cannot be taken: {0}")]
    Nats(String),
}

impl From<LeaseError> for AmqpError {
    fn from(error: LeaseError) -> Self {
        let code = match error {
            LeaseError::Held(_) => ReplyCode::ResourceLocked,
            LeaseError::Nats(_) => ReplyCode::InternalError,
        };
        AmqpError::new(code, error.to_string())
    }
}

impl Lease {
    /// Takes the lease of [`LEASE`].
    ///
    /// # Errors
    /// As [`Lease::acquire_for`].
    pub async fn acquire(bridge: &Bridge) -> Result<Self, LeaseError> {
        Self::acquire_for(bridge, LEASE).await
    }

    /// Takes the lease, and keeps it until the last clone is dropped. `lease` is how long a silent gateway keeps it; all
    /// gateways of an account have to agree on it.
    ///
    /// A holder that has not given it back is waited for, with a warning: for `lease` when it is silent, a fifth more when
    /// it lives; not at all when it was a process of this machine and is gone.
    ///
    /// # Errors
    /// `Held` when another gateway lives; `Nats` when NATS does not answer.
    ///
    /// # Cancel safety
    /// A dropped future may leave a lease behind that runs out by itself.
    pub async fn acquire_for(bridge: &Bridge, lease: Duration) -> Result<Self, LeaseError> {
        let entrant = Entrant { here: Holder::here(false), leads: None, second: None };
        Self::contend(bridge, lease, entrant).await.map(|(lease, _)| lease)
    }

    /// Takes the lease as one of several gateways that share an account: while another one of them has it, `leads` is told
    /// who, and this one waits. Says also whether it was taken from a holder that had not given it back.
    ///
    /// # Errors
    /// `Held` when a gateway has it that does not share; `Nats` when NATS does not answer and nobody was seen to have it.
    pub(super) async fn share(
        bridge: &Bridge,
        lease: Duration,
        here: Holder,
        leads: &watch::Sender<Option<Holder>>,
    ) -> Result<(Self, bool), LeaseError> {
        Self::contend(bridge, lease, Entrant { here, leads: Some(leads), second: None }).await
    }

    /// Takes the lease and the second lock as one of several sidecars: while another one of them leads, `leads` is told who, and this
    /// one waits. What has it stops by itself when it hears of neither lock any more. Says also whether it was taken from a
    /// holder that had not given it back.
    ///
    /// # Errors
    /// `Held` when a gateway has it that is no such sidecar; `Nats` when NATS does not answer and nobody was seen to have it.
    ///
    /// # Cancel safety
    /// As [`Lease::acquire_for`].
    pub async fn follow(
        bridge: &Bridge,
        here: Holder,
        second: Arc<dyn SecondLock>,
        leads: &watch::Sender<Option<Holder>>,
    ) -> Result<(Self, bool), LeaseError> {
        Self::contend(bridge, LEASE, Entrant { here, leads: Some(leads), second: Some(second) }).await
    }

    async fn contend(bridge: &Bridge, lease: Duration, entrant: Entrant<'_>) -> Result<(Self, bool), LeaseError> {
        let Entrant { here, leads, second } = entrant;
        let terms = Terms { lease };
        let bucket = open(bridge).await?;
        let mut overtakes = false;
        let document = Bytes::from(serde_json::to_vec(&here).map_err(|e| LeaseError::Nats(e.to_string()))?);
        let start = Instant::now();
        let mut candidate = Candidate::new(terms, Duration::ZERO);
        let mut waits = false;
        loop {
            let (seen, holder, why) = match timeout(terms.renew(), bucket.entry(KEY)).await {
                Ok(Ok(Some(entry))) if entry.operation == Operation::Put => {
                    let holder: Holder = serde_json::from_slice(&entry.value).unwrap_or_default();
                    let seen = Seen::Held { revision: entry.revision, is_dead: holder.is_dead(&here) };
                    (seen, holder, String::new())
                }
                Ok(Ok(_)) => (Seen::Free, Holder::default(), String::new()),
                Ok(Err(error)) => (Seen::Nothing, Holder::default(), error.to_string()),
                Err(_) => (Seen::Nothing, Holder::default(), "no answer".to_owned()),
            };
            let sent = start.elapsed();
            let is_shared = matches!(seen, Seen::Held { .. }) && holder.is_with(&here) && holder.id != here.id;
            if let Some(leads) = leads.filter(|_| is_shared) {
                leads.send_if_modified(|known| {
                    let is_new = known.as_ref() != Some(&holder);
                    if is_new {
                        *known = Some(holder.clone());
                    }
                    is_new
                });
            }
            let mut step = candidate.look(seen, sent);
            if let Some(second) = second.as_ref().filter(|_| holder.id != here.id) {
                let lock = match candidate.wants_lock(seen, sent) {
                    true => timeout(terms.renew(), second.hold()).await.unwrap_or(Lock::NotMine),
                    false => {
                        second.let_go().await;
                        Lock::NotMine
                    }
                };
                step = candidate.with_lock(step, seen, lock, sent);
            }
            let taken = match step {
                Step::Take => match timeout(terms.renew(), bucket.create(KEY, document.clone())).await {
                    Ok(Ok(revision)) => revision,
                    Ok(Err(error)) if error.kind() == CreateErrorKind::AlreadyExists => continue,
                    Ok(Err(error)) => return Err(LeaseError::Nats(error.to_string())),
                    // It may have been stored: the next look shows.
                    Err(_) => continue,
                },
                Step::TakeOver(revision) => {
                    overtakes = true;
                    tracing::info!(%holder, "taking over from a gateway that ended without a word");
                    match timeout(terms.renew(), bucket.update(KEY, document.clone(), revision)).await {
                        Ok(Ok(revision)) => revision,
                        Ok(Err(error)) if error.kind() == UpdateErrorKind::WrongLastRevision => continue,
                        Ok(Err(error)) => return Err(LeaseError::Nats(error.to_string())),
                        Err(_) => continue,
                    }
                }
                // Our own write, whose answer got lost.
                Step::Wait if holder.id == here.id => match seen {
                    Seen::Held { revision, .. } => revision,
                    Seen::Free | Seen::Nothing => continue,
                },
                // Whoever follows goes on waiting.
                Step::GiveUp
                    if leads.is_some_and(|leads| is_shared || leads.borrow().is_some() && seen == Seen::Nothing) =>
                {
                    candidate = Candidate::new(terms, sent);
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                Step::Wait => {
                    if !waits && seen != Seen::Nothing && !(is_shared && leads.is_some()) {
                        waits = true;
                        let seconds = lease.as_secs();
                        tracing::warn!(
                            %holder,
                            "another gateway serves this NATS account; waiting up to {seconds} s for it to end"
                        );
                    }
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                Step::GiveUp if seen == Seen::Nothing => return Err(LeaseError::Nats(why)),
                Step::GiveUp => return Err(LeaseError::Held(holder)),
            };
            let let_go = CancellationToken::new();
            let (tell, standing) = watch::channel(Tenure::Holds);
            let holding = Holding::new(terms, taken, sent);
            let until = Arc::new(AtomicU64::new(u64::MAX));
            let keeper = Keeper { bucket, document, here, start, terms, holding, second, until: until.clone() };
            keeper.relies();
            tokio::spawn(keeper.keep(let_go.clone(), tell));
            let guard = let_go.clone().drop_guard();
            return Ok((Self(Arc::new(Held { standing, until, start, let_go, _guard: guard })), overtakes));
        }
    }

    /// Waits until the lease is lost: another gateway serves the account, and this one has to stop at once. For ever when
    /// that does not happen.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn lost(&self) -> AmqpError {
        let mut standing = self.0.standing.clone();
        loop {
            if let Tenure::Lost(why) = &*standing.borrow_and_update() {
                return AmqpError::new(ReplyCode::ConnectionForced, why.as_str());
            }
            if standing.changed().await.is_err() {
                // Given back, so that it cannot be lost any more.
                return std::future::pending().await;
            }
        }
    }

    /// Whether it is lost. With a second lock also when that is not known yet, because this process stood still.
    pub fn is_lost(&self) -> bool {
        let until = self.0.until.load(Ordering::Acquire);
        until != u64::MAX && millis(self.0.start.elapsed()) >= until
            || matches!(*self.0.standing.borrow(), Tenure::Lost(_))
    }

    /// Gives it back, and waits until the next gateway may have it, a moment at most.
    pub async fn release(&self) {
        self.0.let_go.cancel();
        let mut standing = self.0.standing.clone();
        // Without an answer it runs out by itself.
        let _ = timeout(Duration::from_secs(2), standing.wait_for(|tenure| *tenure != Tenure::Holds)).await;
    }
}

/// Opens the bucket in which it is kept.
pub(super) async fn open(bridge: &Bridge) -> Result<kv::Store, LeaseError> {
    let config = kv::Config {
        bucket: BUCKET.to_owned(),
        description: "nats-bridge: which gateway serves this account".to_owned(),
        history: 1,
        storage: StorageType::File,
        ..Default::default()
    };
    open_bucket(bridge, config).await.map_err(LeaseError::Nats)
}

/// Renews a lease until it is given back or lost.
struct Keeper {
    bucket: kv::Store,
    document: Bytes,
    here: Holder,
    start: Instant,
    terms: Terms,
    holding: Holding,
    second: Option<Arc<dyn SecondLock>>,
    until: Arc<AtomicU64>,
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Keeper {
    /// Says until when the lease may be relied on; for ever without a second lock, as NATS stands between it and its successor.
    fn relies(&self) -> tokio::time::Instant {
        match &self.second {
            Some(_) => {
                self.until.store(millis(self.holding.until()), Ordering::Release);
                (self.start + self.holding.until()).into()
            }
            None => (Instant::now() + self.terms.lease * 1000).into(),
        }
    }

    /// Asks for the second lock, where there is one.
    async fn lock(&self) -> Option<Lock> {
        let second = self.second.as_ref()?;
        Some(timeout(self.terms.renew(), second.hold()).await.unwrap_or(Lock::NotMine))
    }

    async fn keep(mut self, let_go: CancellationToken, tell: watch::Sender<Tenure>) {
        let mut pause = Duration::ZERO;
        loop {
            let until = self.relies();
            tokio::select! {
                () = let_go.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
            let sent = self.start.elapsed();
            let renewed = async { tokio::join!(self.write(), self.lock()) };
            let ((write, why), lock) = tokio::select! {
                renewed = renewed => renewed,
                () = tokio::time::sleep_until(until) => {
                    let why = "neither NATS nor RabbitMQ has answered for so long that another sidecar may lead; this one stops, so \
                               that not both deliver the same messages";
                    tracing::error!(why, "the lease is lost");
                    tell.send_replace(Tenure::Lost(why.to_owned()));
                    return;
                }
            };
            if let Some(lock) = lock {
                self.holding.asked(lock, sent);
            }
            pause = if matches!(write, Write::Stored(_)) { self.terms.renew() } else { LOOK };
            match self.holding.wrote(write, sent, self.start.elapsed()) {
                Standing::Holds => {}
                Standing::Overdue => tracing::warn!(
                    why,
                    "the lease cannot be renewed for {} s: another gateway may take it",
                    self.terms.lease.as_secs()
                ),
                Standing::Lost => {
                    let why = format!(
                        "another gateway has taken the NATS account over ({why}) while this one was silent; it stops, so \
                         that not both deliver the same messages"
                    );
                    tracing::error!(why, "the lease is lost");
                    tell.send_replace(Tenure::Lost(why));
                    return;
                }
            }
        }
        if let Some(second) = &self.second {
            let _ = timeout(self.terms.renew(), second.let_go()).await;
        }
        let delete = self.bucket.delete_expect_revision(KEY, Some(self.holding.revision()));
        // Without an answer it runs out by itself.
        let _ = timeout(self.terms.renew(), delete).await;
        tell.send_replace(Tenure::Released);
    }

    /// Renews the lease once; the text says who has it, or why there is no answer.
    async fn write(&self) -> (Write, String) {
        let patience = self.terms.renew();
        let no_answer = |why: String| (Write::NoAnswer, why);
        let update = self.bucket.update(KEY, self.document.clone(), self.holding.revision());
        match timeout(patience, update).await {
            Ok(Ok(revision)) => return (Write::Stored(revision), String::new()),
            Ok(Err(error)) if error.kind() == UpdateErrorKind::WrongLastRevision => {}
            Ok(Err(error)) => return no_answer(error.to_string()),
            Err(_) => return no_answer("no answer".to_owned()),
        }
        match timeout(patience, self.bucket.entry(KEY)).await {
            Ok(Ok(Some(entry))) if entry.operation == Operation::Put => {
                let holder: Holder = serde_json::from_slice(&entry.value).unwrap_or_default();
                match holder.id == self.here.id {
                    true => (Write::Behind(entry.revision), String::new()),
                    false => (Write::Overtaken, holder.to_string()),
                }
            }
            Ok(Ok(_)) => (Write::Overtaken, "which has ended since".to_owned()),
            Ok(Err(error)) => no_answer(error.to_string()),
            Err(_) => no_answer("no answer".to_owned()),
        }
    }
}
