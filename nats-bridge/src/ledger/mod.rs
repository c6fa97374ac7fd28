//! Which messages were handled, for effects that must not happen twice.
//!
//! - [`Ledger`] in a key-value bucket ([`Bridge::ledger`](crate::Bridge::ledger)) or in Redis (`Ledger::redis`, feature `redis`): for effects
//!   of any kind. When a worker dies between the effect and [`Entry::done`], the next one begins again.
//! - `ledger::postgres` (feature `postgres`): for effects in that database; the id is committed with the effect or not at all, so
//!   that an effect happens exactly once whatever dies.

mod bucket;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
mod redis;

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};

/// One entry for each id that was begun or done. Clones share it.
///
/// A message may come twice: its handler died behind the effect and before the ack, or it was published again after the
/// stream's duplicate window. With a ledger the second handling sees that the first was done. What it cannot do: when a
/// worker dies between the effect and [`Entry::done`], the next one begins again; an effect that must be exactly once even
/// then has to be stored together with the id, in one transaction of its database, as `ledger::postgres` does.
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
pub struct Ledger(Place);

#[derive(Debug, Clone)]
enum Place {
    Bucket(Arc<bucket::Bucket>),
    #[cfg(feature = "redis")]
    Redis(Arc<redis::Redis>),
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
pub struct Entry(Claim);

#[derive(Debug)]
enum Claim {
    Bucket(bucket::Claim),
    #[cfg(feature = "redis")]
    Redis(redis::Claim),
}

/// What a place knows of an id.
enum Known<C> {
    First(C),
    Done,
    Elsewhere,
}

impl<C> Known<C> {
    fn claimed(self, claim: impl FnOnce(C) -> Claim) -> Begun {
        match self {
            Known::First(inner) => Begun::First(Entry(claim(inner))),
            Known::Done => Begun::Done,
            Known::Elsewhere => Begun::Elsewhere,
        }
    }
}

impl Ledger {
    /// Begins to handle the message with this id, unless that was done, or another worker is at it.
    ///
    /// # Errors
    /// `InvalidMessage`: the id is empty. `Unreachable`: the ledger cannot be read or written; nothing is known then. `Rejected`: Redis
    /// refused it.
    pub async fn begin(&self, id: &str) -> Result<Begun> {
        if id.is_empty() {
            return Err(Error::new(ErrorKind::InvalidMessage).with("why", "a ledger needs ids"));
        }
        match &self.0 {
            Place::Bucket(bucket) => Ok(bucket.begin(id).await?.claimed(Claim::Bucket)),
            #[cfg(feature = "redis")]
            Place::Redis(redis) => Ok(redis.begin(id).await?.claimed(Claim::Redis)),
        }
    }
}

impl Entry {
    /// Says that it is done: whoever begins it again is told so.
    ///
    /// # Errors
    /// `Conflict`: the lease was over and another worker has begun it. `Unreachable`: the ledger cannot be written; it may
    /// have been.
    pub async fn done(self) -> Result<()> {
        match self.0 {
            Claim::Bucket(claim) => claim.done().await,
            #[cfg(feature = "redis")]
            Claim::Redis(claim) => claim.done().await,
        }
    }

    /// Says that it was not done: whoever comes next begins at once. Dropped without a word, the lease has to run out.
    ///
    /// # Errors
    /// As [`Entry::done`].
    pub async fn undo(self) -> Result<()> {
        match self.0 {
            Claim::Bucket(claim) => claim.undo().await,
            #[cfg(feature = "redis")]
            Claim::Redis(claim) => claim.undo().await,
        }
    }
}
