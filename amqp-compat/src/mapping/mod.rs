//! AMQP names and properties as NATS subjects and headers, and back. Pure.
//!
//! - [`name`]: exchange, queue and vhost names and routing keys as subject tokens; stream names.
//! - [`properties`]: AMQP properties as readable `Amqp-*` headers, exact in both directions.
//! - [`table`]: AMQP field tables as bytes and as base64 text.

pub mod name;
pub mod properties;
pub mod table;
