//! RabbitMQ's management documents: what there is as JSON, and requests as what they ask for.
//!
//! Pure: no sockets, no clock, no `await`. Names and types are those of RabbitMQ 3.10; what is not known here (Erlang's
//! memory, rates that nobody measures) is left out and never made up.

pub(crate) mod binding;
pub(super) mod broker;
pub(super) mod connection;
pub(crate) mod definitions;
pub(crate) mod exchange;
pub(crate) mod fields;
pub(super) mod listing;
pub(super) mod message;
pub(crate) mod policy;
pub(crate) mod queue;
pub(crate) mod refusal;
pub(super) mod rights;
pub(super) mod route;
pub(crate) mod table;
pub(super) mod user;
pub(super) mod vhost;
