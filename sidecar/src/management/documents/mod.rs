//! RabbitMQ's management documents: what there is as JSON, and requests as what they ask for.
//!
//! Pure: no sockets, no clock, no `await`. Names and types are those of RabbitMQ 3.10; what is not known here (Erlang's
//! memory, rates that nobody measures) is left out and never made up.

pub(super) mod binding;
pub(super) mod broker;
pub(super) mod connection;
pub(super) mod definitions;
pub(super) mod exchange;
pub(super) mod fields;
pub(super) mod listing;
pub(super) mod message;
pub(super) mod policy;
pub(super) mod queue;
pub(super) mod refusal;
pub(super) mod route;
pub(super) mod table;
