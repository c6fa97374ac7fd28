//! Which messages were handled.

use std::sync::{Mutex, PoisonError};

use napi::bindgen_prelude::Env;
use napi_derive::napi;
use nats_bridge::ledger::{Begun, Entry};

use crate::errors;
use crate::held::{Eventually, Held};

/// A ledger.
#[napi]
pub struct Ledger {
    core: Held<nats_bridge::ledger::Ledger>,
}

/// An id that was begun, here or elsewhere.
#[napi]
pub struct LedgerEntry {
    state: &'static str,
    // None unless it is `first`, and once it was ended.
    core: Held<Mutex<Option<Entry>>>,
}

impl Ledger {
    /// Wraps a ledger of the core.
    pub fn new(ledger: nats_bridge::ledger::Ledger) -> Self {
        Ledger { core: Held::new(ledger) }
    }
}

impl From<Begun> for LedgerEntry {
    fn from(begun: Begun) -> Self {
        let (state, entry) = match begun {
            Begun::First(entry) => ("first", Some(entry)),
            Begun::Done => ("done", None),
            Begun::Elsewhere => ("elsewhere", None),
        };
        LedgerEntry { state, core: Held::new(Mutex::new(entry)) }
    }
}

#[napi]
impl Ledger {
    /// Begins an id.
    #[napi]
    pub fn begin<'env>(&self, env: &'env Env, id: String) -> napi::Result<Eventually<'env, LedgerEntry>> {
        let core = self.core.get().clone();
        self.core.promise(env, async move { core.begin(&id).await }, LedgerEntry::from)
    }
}

impl LedgerEntry {
    fn take(&self) -> napi::Result<Entry> {
        let taken = self.core.get().lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.ok_or_else(|| errors::invalid("entry", "it is not this worker's, or was ended before"))
    }
}

#[napi]
impl LedgerEntry {
    /// `first`, `done` or `elsewhere`.
    #[napi(getter)]
    pub fn state(&self) -> String {
        self.state.to_owned()
    }

    /// Says that it is done.
    #[napi]
    pub fn done<'env>(&self, env: &'env Env) -> napi::Result<Eventually<'env, ()>> {
        self.core.promise(env, self.take()?.done(), |()| ())
    }

    /// Says that it was not done.
    #[napi]
    pub fn undo<'env>(&self, env: &'env Env) -> napi::Result<Eventually<'env, ()>> {
        self.core.promise(env, self.take()?.undo(), |()| ())
    }
}
