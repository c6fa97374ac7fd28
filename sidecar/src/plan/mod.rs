//! What is to be declared on JetStream so that it has what RabbitMQ has: as a document to review, to compare and to do. Pure.
//!
//! - [`things`]: exchanges, queues, bindings and policies as JSON, by name. Everything here is about such a collection.
//! - [`wanted`]: what a RabbitMQ asks for; [`found`]: what JetStream has.
//! - [`mod@compare`]: what is missing, there for nothing, or different.
//! - [`document`]: the plan as a file, with a digest; [`steps`]: what to ask of the gateway.

pub mod compare;
pub mod document;
pub mod found;
pub mod steps;
pub mod things;
pub mod wanted;

#[cfg(test)]
mod tests;

pub use compare::{Difference, How, compare};
pub use document::Plan;
pub use things::{Key, Kind, Things};
pub use wanted::{LeftOut, Settings, Wanted};
