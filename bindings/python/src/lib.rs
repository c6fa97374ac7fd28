//! Python binding of nats-bridge: converts types and errors, nothing else.
//!
//! The public classes are in `python/nats_bridge/`; this module, `nats_bridge._native`, is what they are made of. Each verb
//! comes twice: `verb` waits without the GIL, `verb_start` gives its result if it is there at once, else a future of asyncio. One file for each noun
//! of the core.

pub mod bridge;
pub mod completions;
pub mod consumer;
pub mod delivery;
pub mod errors;
pub mod health;
pub mod home;
pub mod jobs;
pub mod ledger;
pub mod listener;
pub mod logs;
pub mod options;
pub mod outbox;
pub mod publish;
pub mod sidecar;
pub mod upcast;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::bridge::Bridge;
    #[pymodule_export]
    use super::completions::{Completions, Waiting};
    #[pymodule_export]
    use super::consumer::Consumer;
    #[pymodule_export]
    use super::delivery::{Delivery, Settled, original_name};
    #[pymodule_export]
    use super::health::{HealthCheck, render_metrics};
    #[pymodule_export]
    use super::jobs::{Job, Jobs};
    #[pymodule_export]
    use super::ledger::{Ledger, LedgerEntry};
    #[pymodule_export]
    use super::listener::AmqpListener;
    #[pymodule_export]
    use super::logs::{close_logs, collect_logs, next_logs};
    #[pymodule_export]
    use super::outbox::Outbox;
    #[pymodule_export]
    use super::publish::Published;
    #[pymodule_export]
    use super::sidecar::Sidecar;
}
