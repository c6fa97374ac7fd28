//! Node addon of nats-bridge: converts types and errors, nothing else.
//!
//! The public API is in `lib/*.ts`; `lib/native.ts` describes this module. Errors cross as one JSON text, because a promise
//! of the addon rejects with a message and nothing else; `lib/errors.ts` rebuilds them. One file for each noun of the core.

pub mod bridge;
pub mod consumer;
pub mod delivery;
pub mod errors;
pub mod health;
pub mod held;
pub mod jobs;
pub mod ledger;
pub mod listener;
pub mod logs;
pub mod options;
pub mod outbox;
pub mod publish;
pub mod sidecar;
pub mod stop;
pub mod upcast;
