//! Consuming: pull with bounded credit, settle each delivery once, retry by policy, then dead-letter.
//!
//! - [`Consumer`]: gives [`Delivery`]s, or runs a handler over them.
//! - [`ConsumerHandle`]: watches and drains a consumer from elsewhere.
//! - [`Intake`]: the same handler over a durable consumer or plain subscriptions, by a flag such as `USE_JETSTREAM=1`.
//! - [`Jobs`]: a handler's work, for one that runs elsewhere.
//! - `active`: which of several instances consumes, where only one may.
//! - `supervisor`: the task behind it, which pulls, keeps long deliveries alive and rebuilds what is stuck.
//!
//! ```no_run
//! # async fn example(bridge: nats_bridge::Bridge) -> nats_bridge::Result<()> {
//! use std::time::Duration;
//! use nats_bridge::{ConsumeConfig, Failure, RetryPolicy};
//!
//! let retry = RetryPolicy { attempts: 4, first_pause: Duration::from_millis(200), ..RetryPolicy::default() };
//! let config = ConsumeConfig { retry, max_messages: 500, ..ConsumeConfig::new("ORDERS", "billing") };
//! let mut consumer = bridge.consume(config.clone()).await?;
//! while let Some(delivery) = consumer.next().await? {
//!     match std::str::from_utf8(delivery.payload()) {
//!         Ok(order) if delivery.redelivered() => println!("perhaps again: {order}"),
//!         Ok(order) => println!("{order}"),
//!         Err(error) => {
//!             delivery.reject(Failure::of("NotText", error.to_string())).await?; // a dead letter at once
//!             continue;
//!         }
//!     }
//!     delivery.ack().await?;
//! }
//! // Or a handler, at most 16 at a time: `Ok` acks, `Err` is tried again by the policy, then a dead letter.
//! bridge.consume(config).await?.run(16, |received| async move { charge(received.payload()).await }).await?;
//! # Ok(())
//! # }
//! # async fn charge(_: &[u8]) -> Result<(), nats_bridge::Failure> { Ok(()) }
//! ```

mod active;
mod attempts;
mod begun;
mod confirm;
mod consumer;
mod count;
mod credit;
mod delivery;
mod done;
mod held;
mod intake;
mod jobs;
mod keyed;
mod metrics;
mod net;
mod open;
mod outcomes;
mod place;
mod shared;
mod status;
mod supervisor;

use std::time::Duration;

pub(crate) use consumer::WeakHandle;
pub use consumer::{Consumer, ConsumerHandle};
pub use delivery::{Delivery, Received, Settled};
pub use intake::{Intake, USE_JETSTREAM, use_jetstream};
pub use jobs::{Answer, Job, Jobs};

use crate::encryption::Keys;
use crate::error::{Error, Result};
use crate::provision::check_name;
use crate::retry::RetryPolicy;
use crate::schema::Upcasters;

/// What to consume, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct ConsumeConfig {
    /// The stream.
    pub stream: String,
    /// The durable consumer's name, which all instances of a service share; it is made if it does not exist.
    pub name: String,
    /// Which subjects; default all of the stream.
    pub filter_subjects: Vec<String>,
    /// When to try again and when to give up; default 5 attempts, 1 s doubling up to 60 s, jittered.
    pub retry: RetryPolicy,
    /// How long the server waits for a sign of life before it delivers again; default 30 s. Signs are sent three times as
    /// often while a handler runs. A delivery that was lost with its connection comes again after this time, and counts as an
    /// attempt unless it would be the last one.
    pub ack_wait: Duration,
    /// How long one handler may run; default 10 min. Then the signs stop, the server delivers again after `ack_wait`, and
    /// that counts as a failure with reason `timeout`.
    pub max_run: Duration,
    /// The most messages that are here and not settled, waiting ones included; default 256.
    pub max_messages: usize,
    /// The most bytes of those; default 16 MiB. A message larger than that is taken alone.
    pub max_bytes: usize,
    /// Where messages go that are given up; default `{stream}_DLQ`, which is made if it does not exist. Another one must
    /// exist and take `dlq.{stream}.{consumer}`.
    pub dead_letter_stream: Option<String>,
    /// The most bytes that `{stream}_DLQ` may hold when this makes it, which the server sets aside at once; default 1 GiB. One that exists
    /// stays as it is. Not together with [`dead_letter_stream`](ConsumeConfig::dead_letter_stream).
    pub dead_letter_max_bytes: Option<u64>,
    /// Keeps the server's advisories about the stream in `{stream}_ADVISORIES`, which is made if it does not exist, and makes
    /// dead letters (reason `max_deliver`) of messages that the server itself gave up; default true.
    pub advisories: bool,
    /// When messages are pending on the server and none came for this long, the pull is made anew; default 30 s.
    pub stalled_after: Duration,
    /// How often the server gives a sign of life on a waiting pull; default 5 s. Two missed ones make the pull anew.
    pub heartbeat: Duration,
    /// Decrypts payloads with these keys; default none: what is encrypted is handed out as it is. What cannot be decrypted
    /// becomes a dead letter with reason `decrypt`. See [`encryption`](crate::encryption).
    pub decrypt: Option<Keys>,
    /// With [`decrypt`](ConsumeConfig::decrypt): hands out messages that are not encrypted, too, such as older ones; default
    /// false: they become dead letters. As long as it is true, whoever may write to the stream can have anything handed out.
    pub accept_unencrypted: bool,
    /// Checks payloads against the schemas that their messages name, by the registry in this bucket; default none. What does not
    /// fit becomes a dead letter with reason `schema`. See [`schema`](crate::schema).
    pub schemas: Option<String>,
    /// With [`schemas`](ConsumeConfig::schemas): hands out messages that name no schema, too, such as older ones; default false: they
    /// become dead letters.
    pub accept_without_schema: bool,
    /// Of all instances that consume under this name with this set, one at a time gets messages, in the stream's order, and
    /// the others are [`ConsumerState::Waiting`]; default false. The lease is a key of the bucket `{stream}_ACTIVE`, which is
    /// made if it does not exist. One that was drained is followed at once; one that died, or cannot reach the server, after
    /// twice `ack_wait`, when what it held comes again first. All instances need the same `ack_wait`. See
    /// [`Received::fencing_number`].
    pub single_active: bool,
    /// With [`schemas`](ConsumeConfig::schemas): hands out older versions of a schema as the one that these steps lead to; default none. What
    /// they cannot bring there becomes a dead letter with reason `schema`, as it was stored.
    pub upcast: Option<Upcasters>,
}

/// How a consumer is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConsumerState {
    /// It pulls and delivers.
    Running,
    /// Another instance is the single active consumer. It takes over when that one stops, so it counts as ready.
    Waiting,
    /// A message that was given up cannot be stored as a dead letter, or the key or schema of the next one cannot be asked for: nothing
    /// new is pulled or handed out until they can. Not ready.
    Paused {
        /// What is in the way.
        why: String,
    },
    /// It hands out nothing more and waits for what is being handled.
    Draining,
    /// It ended, drained.
    Stopped,
    /// It ended because of an error, which [`Consumer::next`] gives.
    Failed {
        /// The error's text.
        why: String,
    },
}

impl ConsumeConfig {
    /// Consumes a stream under a durable name with default settings.
    pub fn new(stream: impl Into<String>, name: impl Into<String>) -> ConsumeConfig {
        ConsumeConfig {
            stream: stream.into(),
            name: name.into(),
            filter_subjects: Vec::new(),
            retry: RetryPolicy::default(),
            ack_wait: Duration::from_secs(30),
            max_run: Duration::from_secs(600),
            max_messages: 256,
            max_bytes: 16 * 1024 * 1024,
            dead_letter_stream: None,
            dead_letter_max_bytes: None,
            advisories: true,
            stalled_after: Duration::from_secs(30),
            heartbeat: Duration::from_secs(5),
            decrypt: None,
            accept_unencrypted: false,
            schemas: None,
            accept_without_schema: false,
            single_active: false,
            upcast: None,
        }
    }

    fn check(&self) -> Result<()> {
        check_name("stream", &self.stream)?;
        check_name("consumer", &self.name)?;
        if let Some(name) = &self.dead_letter_stream {
            check_name("dead_letter_stream", name)?;
        }
        let wrong =
            |field: &'static str, why: &'static str| Err(Error::setting(field, why).within("consumer", &self.name));
        if let Some(subject) = self.filter_subjects.iter().find(|subject| !is_filter(subject)) {
            return wrong("filter_subjects", "a subject is words without spaces, joined by dots; `>` is the last one")
                .map_err(|error| error.with("value", subject.escape_debug()));
        }
        match self {
            // The client drops what its subscription buffer of 65 536 cannot take.
            c if c.max_messages == 0 || c.max_messages > 32_768 => wrong("max_messages", "it is 1 to 32768"),
            c if c.max_bytes == 0 || c.max_bytes > i32::MAX as usize => wrong("max_bytes", "it is 1 to 2 GiB"),
            c if c.retry.attempts == 0 => wrong("retry.attempts", "it is at least 1"),
            c if !(c.retry.factor >= 1.0 && c.retry.factor.is_finite()) => wrong("retry.factor", "it is at least 1"),
            c if c.ack_wait < Duration::from_millis(100) => wrong("ack_wait", "it is at least 100 ms"),
            c if c.heartbeat < Duration::from_millis(100) || c.heartbeat > Duration::from_secs(15) => {
                wrong("heartbeat", "it is 100 ms to 15 s")
            }
            c if c.dead_letter_max_bytes == Some(0) => wrong("dead_letter_max_bytes", "it is at least 1"),
            c if c.dead_letter_max_bytes.is_some() && c.dead_letter_stream.is_some() => {
                wrong("dead_letter_max_bytes", "a `dead_letter_stream` that is named exists, with a limit of its own")
            }
            c if c.max_run.is_zero() => wrong("max_run", "it is above 0"),
            c if c.stalled_after.is_zero() => wrong("stalled_after", "it is above 0"),
            c if c.single_active && c.ack_wait < Duration::from_secs(1) => {
                wrong("ack_wait", "it is at least 1 s for a single active consumer")
            }
            c if c.accept_unencrypted && c.decrypt.is_none() => {
                wrong("accept_unencrypted", "it means something with `decrypt` only")
            }
            c if c.accept_without_schema && c.schemas.is_none() => {
                wrong("accept_without_schema", "it means something with `schemas` only")
            }
            c if c.upcast.is_some() && c.schemas.is_none() => wrong("upcast", "it means something with `schemas` only"),
            c => c.upcast.as_ref().map_or(Ok(()), Upcasters::check),
        }
    }
}

fn is_filter(subject: &str) -> bool {
    let words = subject.strip_suffix(".>").unwrap_or(subject);
    let is_word = |word: &str| !word.is_empty() && word != ">";
    (subject == ">" || words.split('.').all(is_word)) && !subject.bytes().any(|b| b.is_ascii_whitespace() || b == 0)
}

/// What the server may deliver beyond the policy's attempts before it gives up by itself: room for processes that were drained or died
/// with a message that they had not begun, and for hand-overs that had to wait.
pub(crate) const HEADROOM: u32 = 1_000;
