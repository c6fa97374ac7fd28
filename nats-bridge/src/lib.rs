//! Messaging over NATS JetStream that does not lose a message.
//!
//! - [`Bridge`]: a connection; [`Config`] says how to make it.
//! - [`Message`], [`MessageId`]: what to publish, and how a stream recognises it.
//! - [`publish`]: publishing with confirms.
//! - [`consume`]: deliveries, settled once, retried by policy, then dead-lettered.
//! - [`dead_letter`]: what a dead letter says.
//! - [`provision`]: streams and consumers as data.
//! - [`health`]: whether what a service needs is there, and whether it keeps up.
//! - [`encryption`]: payloads that only those read who have a key.
//! - [`ledger`]: which messages were handled, for effects that must not happen twice.
//! - [`order`]: messages of several regions in order; the last writer wins.
//! - `outbox` (feature `outbox`): messages that wait on disk until NATS has them.
//! - [`schema`]: payloads that fit what was agreed on.
//! - [`TraceContext`]: traces that go on through a message.
//! - [`Monitor`]: what a server says about itself.
//! - [`RetryPolicy`]: when to try again, and when to give up.
//! - [`Error`]: why a call failed, and whether the message may have landed.

mod api;
mod bridge;
mod config;
mod connection;
pub mod consume;
pub mod dead_letter;
pub mod encryption;
mod error;
pub mod health;
pub mod ledger;
mod login;
mod message;
mod message_id;
mod monitor;
pub mod order;
#[cfg(feature = "outbox")]
pub mod outbox;
pub mod provision;
pub mod publish;
mod pulse;
mod retry;
pub mod schema;
mod stored;
mod trace;

pub use bridge::Bridge;
pub use config::Config;
pub use connection::{Connection, ConnectionEvent};
pub use consume::{ConsumeConfig, Consumer, ConsumerHandle, ConsumerState, Delivery, Received, Settled};
pub use dead_letter::{Failure, Reason};
pub use error::{Error, ErrorKind, Landed, Result};
pub use login::Login;
pub use message::Message;
pub use message_id::MessageId;
pub use monitor::{Fsync, Monitor};
pub use provision::{BucketSpec, ConsumerSpec, Discard, Manifest, Retention, Storage, StreamSpec};
pub use publish::{BreakerConfig, BreakerState, PublishConfig, Published};
pub use retry::{Next, RetryPolicy};
pub use trace::{TRACEPARENT, TRACESTATE, TraceContext};
