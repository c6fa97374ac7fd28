//! Node addon of nats-bridge: converts types and errors, nothing else.
//!
//! The public API is in `lib/*.ts`; `lib/native.ts` describes this module. Errors cross as one JSON text, because a promise
//! of the addon rejects with a message and nothing else; `lib/errors.ts` rebuilds them. One file for each noun of the core.

pub mod bridge;
pub mod errors;
pub mod held;
