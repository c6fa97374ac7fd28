//! What has rules of its own and is outside of the oracle's programs: the same calls of a client on RabbitMQ and on our
//! listener, one test a promise.

mod consistent_hash;
mod consumer_timeout;
mod servers;
mod streams;
