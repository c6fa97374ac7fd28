//! The work of a handler, which JavaScript runs.

use std::sync::{Arc, Mutex, PoisonError};

use napi::bindgen_prelude::Env;
use napi_derive::napi;
use nats_bridge::consume::{self, Answer};
use nats_bridge::{Failure, Received};

use crate::delivery::{self, Page};
use crate::held::{Eventually, Held};

/// What a handler has to do, piece by piece. Collected, it drains the consumer.
#[napi]
pub struct Jobs {
    core: Held<Arc<tokio::sync::Mutex<consume::Jobs>>>,
}

/// A piece of work, to be answered once: `key`, `done` or `failed`. Collected, it counts as failed.
#[napi]
pub struct Job {
    received: Received,
    // None once it is answered.
    answer: Held<Mutex<Option<Open>>>,
    wants_key: bool,
}

enum Open {
    Key(Answer<String>),
    Handle(Answer<()>),
}

impl Jobs {
    /// Wraps jobs of the core.
    pub fn new(jobs: consume::Jobs) -> Self {
        Jobs { core: Held::new(Arc::new(tokio::sync::Mutex::new(jobs))) }
    }
}

impl From<consume::Job> for Job {
    fn from(job: consume::Job) -> Self {
        let (received, wants_key, answer) = match job {
            consume::Job::Key(received, answer) => (received, true, Open::Key(answer)),
            consume::Job::Handle(received, answer) => (received, false, Open::Handle(answer)),
        };
        Job { received, answer: Held::new(Mutex::new(Some(answer))), wants_key }
    }
}

#[napi]
impl Jobs {
    /// Waits for the next piece of work; none when the consumer was drained and everything is answered.
    #[napi]
    pub fn next<'env>(&self, env: &'env Env) -> napi::Result<Eventually<'env, Option<Job>>> {
        let core = self.core.get().clone();
        self.core.promise(env, async move { core.lock().await.next().await }, |job| job.map(Job::from))
    }
}

impl Job {
    fn answer(&self) -> Option<Open> {
        self.answer.get().lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[napi]
impl Job {
    /// A page with the message, which the answer settles.
    #[napi]
    pub fn message(&self) -> Page {
        Page::of(self.received.clone(), &self.answer)
    }

    /// Whether its key is wanted, and not that it is handled.
    #[napi(getter)]
    pub fn wants_key(&self) -> bool {
        self.wants_key
    }

    /// Says which key it has.
    #[napi]
    pub fn key(&self, key: String) {
        if let Some(Open::Key(answer)) = self.answer() {
            answer.give(Ok(key));
        }
    }

    /// Says that it is handled.
    #[napi]
    pub fn done(&self) {
        if let Some(Open::Handle(answer)) = self.answer() {
            answer.give(Ok(()));
        }
    }

    /// Says that it failed; with `give_up`, that it becomes a dead letter for this reason at once.
    #[napi]
    pub fn failed(&self, kind: String, detail: String, give_up: Option<String>) -> napi::Result<()> {
        let give_up = give_up.as_deref().map(delivery::reason).transpose()?;
        let failure = Failure { class: kind, detail, give_up };
        match self.answer() {
            Some(Open::Key(answer)) => answer.give(Err(failure)),
            Some(Open::Handle(answer)) => answer.give(Err(failure)),
            None => {}
        }
        Ok(())
    }
}
