//! Consuming.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use napi::bindgen_prelude::Env;
use napi_derive::napi;
use nats_bridge::{ConsumeConfig, ConsumerHandle, ConsumerState, RetryPolicy};
use tokio::sync::Mutex;

use crate::delivery::Page;
use crate::errors;
use crate::held::{Eventually, Held};
use crate::jobs::Jobs;
use crate::options::{count, keys, millis};
use crate::stop::Stop;

/// A consumer.
#[napi]
pub struct Consumer {
    // None once a handler runs over it.
    core: Held<Arc<Mutex<Option<nats_bridge::Consumer>>>>,
    handle: Held<ConsumerHandle>,
    // Its deliveries may need the event loop, which then does not look for them itself.
    runs_steps: bool,
}

/// How a consumer is, and why.
#[napi(object)]
pub struct State {
    /// `running`, `paused`, `draining`, `stopped`, `failed`.
    pub state: String,
    /// Why it is paused or failed.
    pub why: Option<String>,
}

/// When to try again and when to give up; what is left out has the core's default.
#[napi(object)]
pub struct RetryOptions {
    /// Attempts in all.
    pub attempts: Option<f64>,
    /// The pause after the first failure.
    pub first_pause_ms: Option<f64>,
    /// What each pause is multiplied by.
    pub factor: Option<f64>,
    /// The longest pause.
    pub max_pause_ms: Option<f64>,
    /// No further attempt starts later than this.
    pub max_elapsed_ms: Option<f64>,
    /// Whether pauses are drawn from zero to their full length.
    pub jitter: Option<bool>,
}

/// How to consume; what is left out has the core's default.
#[napi(object)]
pub struct ConsumeOptions {
    /// Which subjects.
    pub filter_subjects: Option<Vec<String>>,
    /// When to try again and when to give up.
    pub retry: Option<RetryOptions>,
    /// How long the server waits for a sign of life.
    pub ack_wait_ms: Option<f64>,
    /// How long one delivery may be handled.
    pub max_run_ms: Option<f64>,
    /// The most messages that are here and not settled.
    pub max_messages: Option<f64>,
    /// The most bytes of those.
    pub max_bytes: Option<f64>,
    /// Where messages go that are given up.
    pub dead_letter_stream: Option<String>,
    /// The most bytes that the dead-letter stream may hold when it is made.
    pub dead_letter_max_bytes: Option<f64>,
    /// Keeps the server's advisories.
    pub advisories: Option<bool>,
    /// After how long without a message, though some are pending, the pull is made anew.
    pub stalled_after_ms: Option<f64>,
    /// How often the server gives a sign of life on a waiting pull.
    pub heartbeat_ms: Option<f64>,
    /// Where the keys are with which payloads are decrypted.
    pub decrypt: Option<String>,
    /// Hands out messages that are not encrypted, too.
    pub accept_unencrypted: Option<bool>,
    /// The registry by which payloads are checked.
    pub schemas: Option<String>,
    /// Hands out messages that name no schema, too.
    pub accept_without_schema: Option<bool>,
    /// One instance at a time gets messages.
    pub single_active: Option<bool>,
}

impl RetryOptions {
    fn policy(self) -> napi::Result<RetryPolicy> {
        let mut policy = RetryPolicy::default();
        if let Some(number) = self.attempts {
            policy.attempts = count("retry.attempts", number)?;
        }
        if let Some(ms) = self.first_pause_ms {
            policy.first_pause = millis("retry.firstPauseMs", ms)?;
        }
        if let Some(factor) = self.factor {
            policy.factor = factor;
        }
        if let Some(ms) = self.max_pause_ms {
            policy.max_pause = millis("retry.maxPauseMs", ms)?;
        }
        if let Some(ms) = self.max_elapsed_ms {
            policy.max_elapsed = Some(millis("retry.maxElapsedMs", ms)?);
        }
        if let Some(jitter) = self.jitter {
            policy.jitter = jitter;
        }
        Ok(policy)
    }
}

impl ConsumeOptions {
    /// The core's settings for consuming `stream` under `name`.
    pub fn config(self, stream: String, name: String) -> napi::Result<ConsumeConfig> {
        let mut config = ConsumeConfig::new(stream, name);
        if let Some(subjects) = self.filter_subjects {
            config.filter_subjects = subjects;
        }
        if let Some(retry) = self.retry {
            config.retry = retry.policy()?;
        }
        if let Some(ms) = self.ack_wait_ms {
            config.ack_wait = millis("ackWaitMs", ms)?;
        }
        if let Some(ms) = self.max_run_ms {
            config.max_run = millis("maxRunMs", ms)?;
        }
        if let Some(number) = self.max_messages {
            config.max_messages = count("maxMessages", number)?;
        }
        if let Some(number) = self.max_bytes {
            config.max_bytes = count("maxBytes", number)?;
        }
        config.dead_letter_stream = self.dead_letter_stream;
        config.dead_letter_max_bytes =
            self.dead_letter_max_bytes.map(|number| count("deadLetterMaxBytes", number)).transpose()?;
        if let Some(wanted) = self.advisories {
            config.advisories = wanted;
        }
        if let Some(ms) = self.stalled_after_ms {
            config.stalled_after = millis("stalledAfterMs", ms)?;
        }
        if let Some(ms) = self.heartbeat_ms {
            config.heartbeat = millis("heartbeatMs", ms)?;
        }
        config.decrypt = self.decrypt.as_deref().map(keys).transpose()?;
        config.schemas = self.schemas;
        config.accept_without_schema = self.accept_without_schema.unwrap_or(false);
        config.single_active = self.single_active.unwrap_or(false);
        config.accept_unencrypted = self.accept_unencrypted.unwrap_or(false);
        Ok(config)
    }
}

impl Consumer {
    /// Wraps a consumer of the core.
    pub fn new(consumer: nats_bridge::Consumer, runs_steps: bool) -> Self {
        let handle = Held::new(consumer.handle());
        Consumer { core: Held::new(Arc::new(Mutex::new(Some(consumer)))), handle, runs_steps }
    }
}

/// How many messages a handler may have at once.
const MOST_AT_ONCE: usize = 1024;

async fn next(
    consumer: Arc<Mutex<Option<nats_bridge::Consumer>>>,
    limit: Option<Duration>,
    stop: Option<Stop>,
) -> nats_bridge::Result<Option<nats_bridge::Delivery>> {
    let wait = async {
        match consumer.lock().await.as_mut() {
            Some(consumer) => consumer.next().await,
            None => Ok(None),
        }
    };
    let told = async {
        match stop {
            Some(stop) => stop.told().await,
            None => std::future::pending().await,
        }
    };
    let wait = async {
        tokio::select! {
            biased;
            delivery = wait => delivery,
            () = told => Ok(None),
        }
    };
    match limit {
        Some(limit) => tokio::time::timeout(limit, wait).await.unwrap_or(Ok(None)),
        None => wait.await,
    }
}

#[napi]
impl Consumer {
    /// Puts the next delivery into `page` if it is there already and fits, and says at which place; below 0: it does not.
    #[napi]
    pub fn take(&self, page: &Page) -> napi::Result<i32> {
        let nothing = Ok(-1);
        if self.runs_steps || page.is_full() {
            return nothing;
        }
        // Somebody else waits: first come, first served.
        let Ok(mut consumer) = self.core.get().try_lock() else { return nothing };
        let Some(consumer) = consumer.as_mut() else { return nothing };
        match self.core.within(|| consumer.next().now_or_never()) {
            Some(Ok(Some(delivery))) => Ok(i32::try_from(page.add(delivery)).unwrap_or(i32::MAX)),
            // That it was drained is for the one who waits to find out: it stays so.
            Some(Ok(None)) | None => nothing,
            Some(Err(error)) => Err(errors::from_core(&error)),
        }
    }

    /// Waits for the next delivery, and begins a page with it; none when there is none within the time, or when the consumer was
    /// drained.
    #[napi]
    pub fn next<'env>(
        &self,
        env: &'env Env,
        timeout_ms: Option<f64>,
        stop: Option<&Stop>,
    ) -> napi::Result<Eventually<'env, Option<Page>>> {
        let limit = timeout_ms.map(|ms| millis("timeoutMs", ms)).transpose()?;
        let next = next(self.core.get().clone(), limit, stop.cloned());
        let arrived = |delivery: Option<nats_bridge::Delivery>| delivery.map(Page::new);
        match self.runs_steps {
            true => self.core.later(env, next, arrived).map(Eventually::B),
            false => self.core.promise(env, next, arrived),
        }
    }

    /// Begins to give its deliveries as the work of a handler.
    #[napi]
    pub fn jobs(&self, concurrency: f64, keyed: bool) -> napi::Result<Jobs> {
        let concurrency: usize = count("concurrency", concurrency)?;
        if !(1..=MOST_AT_ONCE).contains(&concurrency) {
            return Err(errors::invalid("concurrency", "1 to 1024"));
        }
        let busy = || errors::invalid("run", "something else takes the deliveries of this consumer");
        let consumer = self.core.get().try_lock().map_err(|_| busy())?.take().ok_or_else(busy)?;
        Ok(self.core.within(|| Jobs::new(consumer.jobs(concurrency, keyed))))
    }

    /// Stops pulling, and gives back what was not handed out.
    #[napi]
    pub fn begin_to_drain(&self) {
        self.handle.get().begin_to_drain();
    }

    /// Stops pulling, and waits at most `budget_ms` until the server has back what was not handed out.
    #[napi]
    pub fn leave<'env>(&self, env: &'env Env, budget_ms: f64) -> napi::Result<Eventually<'env, ()>> {
        let budget = millis("budgetMs", budget_ms)?;
        let handle = self.handle.get().clone();
        self.handle.promise(env, async move { handle.give_back(budget).await }, |()| ())
    }

    /// Stops pulling, gives back what was not handed out, and waits at most `budget_ms` until the rest is settled.
    #[napi]
    pub fn drain<'env>(&self, env: &'env Env, budget_ms: f64) -> napi::Result<Eventually<'env, ()>> {
        let budget = millis("budgetMs", budget_ms)?;
        let handle = self.handle.get().clone();
        self.handle.promise(env, async move { handle.drain(budget).await }, |()| ())
    }

    /// How it is, and why.
    #[napi(getter)]
    pub fn state(&self) -> State {
        let (state, why) = match self.handle.get().state() {
            ConsumerState::Running => ("running", None),
            ConsumerState::Waiting => ("waiting", None),
            ConsumerState::Paused { why } => ("paused", Some(why)),
            ConsumerState::Draining => ("draining", None),
            ConsumerState::Stopped => ("stopped", None),
            ConsumerState::Failed { why } => ("failed", Some(why)),
            other => ("unknown", Some(format!("{other:?}"))),
        };
        State { state: state.to_owned(), why }
    }

    /// How many deliveries are here and not settled, waiting ones included.
    #[napi(getter)]
    pub fn held(&self) -> f64 {
        self.handle.get().held() as f64
    }
}
