//! Schemas: payloads are checked against them before they are sent, and before they are handed out.
//!
//! - [`Schemas`]: a registry in a key-value bucket; versions of named schemas, each compatible with those before it.
//! - [`Compatibility`]: which versions have to read what which others wrote.
//! - [`PublishConfig::schemas`](crate::PublishConfig::schemas), [`Message::schema`](crate::Message::schema): nothing is sent that does not fit.
//! - [`ConsumeConfig::schemas`](crate::ConsumeConfig::schemas): nothing is handed out that does not fit; it becomes a dead letter with reason
//!   `schema`.
//! - [`Upcasters`]: what was written in an older version is handed out in a newer one.
//!
//! A message says in the header [`SCHEMA`] which version it was checked against. Nothing is coerced: a text is not a number, and
//! a default is not filled in. Schemas are JSON Schemas, or, by feature:
//!
//! - `avro`: Avro schemas. A payload is one datum in Avro's binary encoding, and what reads what is said by Avro's schema resolution.
//! - `protobuf`: a `.proto` file, whose first message is what a payload is, in Protobuf's binary encoding. What breaks the other side is said by buf's
//!   rules of its category `WIRE_JSON`, with same types and cardinalities instead of those that can be decoded somehow. They look at both
//!   directions, so kinds of compatibility differ only in how far back they look. Nothing may be in a payload that its version does not have.
//!
//! ```no_run
//! # async fn example() -> nats_bridge::Result<()> {
//! use nats_bridge::schema::{Compatibility, Draft};
//! use nats_bridge::{Bridge, Config, ConsumeConfig, Message, PublishConfig};
//!
//! let publish = PublishConfig { schemas: Some("SCHEMAS".into()), ..PublishConfig::default() };
//! let bridge = Bridge::connect_with(Config { publish, ..Config::default() }).await?;
//! let schemas = bridge.schemas("SCHEMAS").await?;
//! let order = r#"{"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}}"#;
//! let draft = Draft { compatibility: Some(Compatibility::BackwardTransitive), ..Draft::json(order) };
//! schemas.register("order", &draft).await?;
//!
//! bridge.publish(Message::new("orders.new", r#"{"id": 17}"#).schema("order")).await?;
//! // schema: schema=order/1 path=/id value="17" why=value is not of type "integer"
//! let refused = bridge.publish(Message::new("orders.new", r#"{"id": "17"}"#).schema("order")).await;
//! assert!(refused.is_err());
//!
//! let config = ConsumeConfig { schemas: Some("SCHEMAS".into()), ..ConsumeConfig::new("ORDERS", "billing") };
//! let mut consumer = bridge.consume(config).await?;
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "avro")]
mod avro;
mod check;
mod compatibility;
mod contains;
mod document;
mod json;
mod language;
#[cfg(feature = "protobuf")]
mod protobuf;
mod registry;
mod upcast;
#[cfg(any(feature = "avro", feature = "protobuf"))]
mod varint;
mod violation;

pub(crate) use check::{Checker, Named};
pub use compatibility::Compatibility;
pub use contains::Difference;
pub use document::{Draft, Format, Schema};
pub use registry::{Registered, Schemas};
pub use upcast::Upcasters;

/// The header that names the schema and the version of a payload: `order/3`.
pub const SCHEMA: &str = "Schema";
