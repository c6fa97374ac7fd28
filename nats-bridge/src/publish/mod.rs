//! Publishing with confirms.
//!
//! - [`Publisher`]: publishes with ids, waits for confirms, sends again what has no answer, in a bounded window.
//! - [`ConfirmInbox`]: the layer below; one subscription for the confirms of many publishes.
//! - [`OrderedInbox`]: the same, for publishes that keep their order when the connection is lost.
//! - [`Stored`], [`Rejection`]: what JetStream answers.
//!
//! ```no_run
//! # async fn example(bridge: nats_bridge::Bridge) -> nats_bridge::Result<()> {
//! use nats_bridge::{ErrorKind, Landed, Message, PublishConfig};
//!
//! let at = bridge.publish(Message::new("orders.new", r#"{"order":17}"#).id("order-17")).await?;
//! println!("stored in {} at {}, duplicate: {}", at.stream, at.sequence, at.duplicate);
//!
//! // A window of its own: at most 500 messages and 1 MiB without a confirm.
//! let config = PublishConfig { max_in_flight: 500, max_in_flight_bytes: 1 << 20, ..PublishConfig::default() };
//! let publisher = bridge.publisher(config).await?;
//! let pending = publisher.publish_later(Message::new("orders.new", "18").id("order-18")).await?;
//! match pending.await {
//!     Ok(at) => println!("stored at {}", at.sequence),
//!     Err(error) if error.landed() == Landed::No => println!("not stored: {error}"),
//!     Err(error) => println!("may be stored; again only with the same id: {error}"),
//! }
//! match publisher.try_publish(Message::new("orders.new", "19")) {
//!     Ok(pending) => drop(pending.await?),
//!     Err(error) if error.kind() == ErrorKind::WindowFull => println!("no room now"),
//!     Err(error) => return Err(error),
//! }
//! # Ok(())
//! # }
//! ```

mod breaker;
mod confirm;
mod inbox;
mod keeper;
mod ordered;
mod publisher;
mod takers;
mod window;

use std::sync::Arc;
use std::time::Duration;

pub use breaker::{BreakerConfig, BreakerState};
pub use confirm::{Rejection, Stored};
pub use inbox::{Confirm, ConfirmInbox, Confirms};
pub use ordered::OrderedInbox;
pub(crate) use ordered::Writers;
pub use publisher::{Pending, Publisher};

use crate::encryption::Keys;
use crate::retry::RetryPolicy;

/// Where a published message is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The stream that holds it.
    pub stream: Arc<str>,
    /// Its sequence in that stream; for a duplicate, the sequence of the first one.
    pub sequence: u64,
    /// Whether the id was already seen inside the stream's duplicate window. Also true when a resend of the SDK's own
    /// found that the first send had been stored.
    pub duplicate: bool,
    /// The id it carries, also when it was generated.
    pub id: Option<String>,
}

/// The bounds of a [`Publisher`].
#[derive(Debug, Clone, PartialEq)]
pub struct PublishConfig {
    /// Messages handed over and not confirmed; 1 to 32 768; default 4 096. At the bound, publishing waits and
    /// `try_publish` says `WindowFull`.
    pub max_in_flight: usize,
    /// Bytes (subject, headers, payload) of those; default 32 MiB. A message larger than that goes alone.
    pub max_in_flight_bytes: usize,
    /// How long to wait for a confirm before sending again; default 5 s.
    pub ack_wait: Duration,
    /// How often one message is sent, the first time included; default 10.
    pub attempts: u32,
    /// How long one message is tried in all, connected or not; default 60 s. Keep it below the duplicate window of the
    /// streams (120 s unless set otherwise), else resends stop at the window.
    pub deadline: Duration,
    /// How long a subject on which nobody answers is taken for a leader election and tried again; default 5 s. Where the server says
    /// that no stream takes the subject, nothing is tried again.
    pub no_stream_wait: Duration,
    /// Fails at once with `BreakerOpen` while NATS confirms nothing; default none: publishing waits, up to `deadline`.
    pub breaker: Option<BreakerConfig>,
    /// Encrypts every payload under these keys; default none. See [`encryption`](crate::encryption). What is put back or moved
    /// by the tools for dead letters goes as it is.
    pub encrypt: Option<Keys>,
    /// Checks every payload against the schema that its message names, before it is encrypted, by the registry in this bucket;
    /// default none. See [`schema`](crate::schema). What is put back or moved by the tools for dead letters goes as it is.
    pub schemas: Option<String>,
}

impl Default for PublishConfig {
    fn default() -> Self {
        PublishConfig {
            max_in_flight: 4_096,
            max_in_flight_bytes: 32 * 1024 * 1024,
            ack_wait: Duration::from_secs(5),
            attempts: 10,
            deadline: Duration::from_secs(60),
            no_stream_wait: Duration::from_secs(5),
            breaker: None,
            encrypt: None,
            schemas: None,
        }
    }
}

impl PublishConfig {
    // Between sends: after a rejection that may pass, and after silence. Short, because a leader election takes a second or
    // two.
    fn pauses(&self) -> RetryPolicy {
        RetryPolicy {
            attempts: self.attempts,
            first_pause: Duration::from_millis(200),
            factor: 2.0,
            max_pause: Duration::from_secs(2),
            max_elapsed: Some(self.deadline),
            jitter: true,
        }
    }
}
