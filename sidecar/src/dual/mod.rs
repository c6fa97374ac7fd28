//! One AMQP session over RabbitMQ and JetStream.
//!
//! [`engine::Engine`] is one link: it decides and does no I/O; `publishing`, `delivering`, `settling`, `request` and others are its parts. [`link`] moves its commands and events. [`shared`] is what
//! all links have in common: the order keeper above all. [`operator`] is the sidecar's own link to each side; [`fencing`] publishes the fences.

mod backend;
mod channel;
mod consumer;
mod delivering;
pub mod engine;
pub mod fencing;
mod get;
pub mod half;
pub mod lane;
mod link;
pub mod logins;
mod loss;
pub mod merge;
pub mod meters;
pub mod operator;
mod pause;
mod publishing;
mod reopen;
mod replies;
mod request;
pub mod returns;
mod settling;
pub mod shared;
mod signals;
pub mod stamp;
mod topology;
pub mod vhosts;

pub use backend::DualBackend;
