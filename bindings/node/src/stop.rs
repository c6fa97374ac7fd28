//! Ending a call of the core from JavaScript, for an `AbortSignal`.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use napi_derive::napi;
use tokio::sync::Notify;

/// Ends one call.
#[napi]
#[derive(Clone, Default)]
pub struct Stop {
    told: Arc<Told>,
}

#[derive(Default)]
struct Told {
    flag: AtomicBool,
    changed: Notify,
}

#[napi]
impl Stop {
    /// For a call that is about to be made.
    #[napi(constructor)]
    pub fn new() -> Self {
        Stop::default()
    }

    /// Ends it.
    #[napi]
    pub fn stop(&self) {
        self.told.flag.store(true, Ordering::Release);
        self.told.changed.notify_one();
    }
}

impl Stop {
    /// Whether it is to end.
    pub fn is_told(&self) -> bool {
        self.told.flag.load(Ordering::Acquire)
    }

    /// What `work` gives, or none when it was to end before that.
    pub async fn unless_told<T>(
        stop: Option<Stop>,
        work: impl Future<Output = nats_bridge::Result<T>>,
    ) -> nats_bridge::Result<Option<T>> {
        let Some(stop) = stop else { return work.await.map(Some) };
        tokio::select! {
            biased;
            done = work => done.map(Some),
            () = stop.told() => Ok(None),
        }
    }

    /// Waits until it is to end. One call waits at most.
    pub async fn told(&self) {
        while !self.is_told() {
            self.told.changed.notified().await;
        }
    }
}
