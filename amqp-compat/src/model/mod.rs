//! What RabbitMQ's exchanges, queues and bindings mean. Pure: no sockets, no clock, no `await`.
//!
//! - [`vhost`]: one virtual host: what exists, what may be declared, deleted and bound, and where a message goes.
//! - [`exchange`], [`queue`]: their definitions, and when a second declaration is the same.
//! - [`consumer`]: the arguments of a consumer.
//! - [`policy`]: settings for all queues and exchanges whose names match.
//! - [`topic`], [`headers`], [`consistent_hash`]: the exchange types with rules of their own.
//! - [`delay`]: exchanges that keep messages for a while.
//! - [`dead_letter`]: what becomes of a message that a queue dead-letters.
//! - [`ready`]: what counts against a queue's length limit.
//! - [`stream`]: stream queues' ages and offsets.
//! - [`access`]: users, and what each may do.
//! - [`arguments`]: argument values as RabbitMQ compares and prints them.
//! - [`erlang`]: values as Erlang prints them, for RabbitMQ's texts.
//! - [`beside_rabbitmq`]: what is honoured only where there is no RabbitMQ beside.
//! - [`features`]: the one list of what is honoured and what is refused.

pub mod access;
pub mod arguments;
pub mod beside_rabbitmq;
pub mod consistent_hash;
pub mod consumer;
pub mod dead_letter;
pub mod delay;
pub mod erlang;
pub mod exchange;
pub mod features;
pub mod headers;
pub mod policy;
pub mod queue;
pub mod ready;
pub mod stream;
pub mod topic;
pub mod vhost;
