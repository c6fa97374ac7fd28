//! A consumer as the application sees it.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::active::Active;
use super::begun::Kept;
use super::credit::Credit;
use super::delivery::{Delivery, Received};
use super::held::Held;
use super::shared::{Back, Shared};
use super::supervisor::Supervisor;
use super::{ConsumeConfig, ConsumerState, HEADROOM, net};
use crate::bridge::Bridge;
use crate::dead_letter::Failure;
use crate::error::{Error, ErrorKind, Result};
use crate::provision::{ConsumerSpec, StreamSpec, ensure_consumer, make_stream_if_absent};
use crate::publish::PublishConfig;
use crate::schema::{Checker, Schemas};

/// Gives the deliveries of one durable consumer. Dropping it drains it without waiting.
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
}

/// Watches and drains a consumer from elsewhere.
#[derive(Debug, Clone)]
pub struct ConsumerHandle {
    shared: Arc<Shared>,
}

impl Bridge {
    /// Starts consuming: makes the durable consumer and, unless another is named, the dead-letter stream `{stream}_DLQ`
    /// if they do not exist, and pulls within the credit.
    ///
    /// # Errors
    /// `Config`: a setting is out of range. `NotFound`: there is no such stream, or the dead-letter stream or the registry that was
    /// named.
    /// `Conflict`: the consumer exists and differs in what cannot be changed, or the stream is a work queue and another consumer reads the
    /// same subjects. `Denied`: this user may not look at or make what
    /// is needed.
    pub async fn consume(&self, config: ConsumeConfig) -> Result<Consumer> {
        config.check()?;
        let js = self.jetstream();
        self.unless_denied(make_what_is_needed(self, &config)).await?;
        // A failed message is to be a dead letter, or the consumer paused, within seconds.
        let letters = PublishConfig {
            max_in_flight: 256,
            ack_wait: Duration::from_secs(2),
            deadline: Duration::from_secs(5),
            no_stream_wait: Duration::from_secs(1),
            ..PublishConfig::default()
        };
        let letters = self.publisher(letters).await?;
        let checker = match &config.schemas {
            Some(bucket) => Some(Checker::new(Schemas::open(js, bucket).await?)),
            None => None,
        };
        let active = match config.single_active {
            true => Some(self.unless_denied(Active::open(self, &config)).await?),
            false => None,
        };
        let kept = Kept::new(self.clone(), letters.clone(), &config);
        let held = Held::new(Credit::new(config.max_messages, config.max_bytes));
        let (dropped, dropped_rx) = mpsc::unbounded_channel();
        let (statuses, statuses_rx) = mpsc::unbounded_channel();
        let client = self.client().clone();
        let shared = Arc::new(Shared::new(
            client,
            js.clone(),
            self.pulse(),
            config,
            letters,
            kept,
            checker,
            active,
            held,
            dropped,
            statuses,
        ));
        Supervisor::start(shared.clone(), self.connection(), dropped_rx, statuses_rx).await?;
        if shared.config.advisories {
            tokio::spawn(net::watch(shared.clone()));
        }
        let consumer = Consumer { shared };
        self.will_leave(&consumer);
        Ok(consumer)
    }
}

/// A consumer that may still be there.
#[derive(Debug)]
pub(crate) struct WeakHandle(Weak<Shared>);

impl WeakHandle {
    /// The handle; none once the consumer ended.
    pub(crate) fn get(&self) -> Option<ConsumerHandle> {
        let shared = self.0.upgrade().filter(|shared| !shared.end.is_cancelled())?;
        Some(ConsumerHandle { shared })
    }
}

const LESS_FOR_LETTERS: &str = "the server sets all of it aside at once: ask for less with `dead_letter_max_bytes`, name a `dead_letter_stream` that \
     exists, or give JetStream or the account more";
const NO_ADVISORIES: &str = "the server sets all of it aside at once: turn `advisories` off, then what the server gives up by itself is no dead \
     letter; or give JetStream or the account more";

/// Whether the server has not as much storage as was asked for.
fn no_room(error: &Error) -> bool {
    error.context().iter().any(|(key, _)| *key == "max_bytes")
}

async fn make_what_is_needed(bridge: &Bridge, config: &ConsumeConfig) -> Result<()> {
    let js = bridge.jetstream();
    if let Some(name) = &config.dead_letter_stream {
        crate::api::ask(js, format!("STREAM.INFO.{name}")).await?;
    }
    let spec = ConsumerSpec {
        stream: config.stream.clone(),
        name: config.name.clone(),
        filter_subjects: config.filter_subjects.clone(),
        ack_wait: config.ack_wait,
        max_deliver: Some(config.retry.attempts.saturating_add(HEADROOM)),
    };
    // The first that is made, for where there is no such stream nothing else is to be.
    ensure_consumer(js, &spec).await?;
    if config.dead_letter_stream.is_none() {
        let of = StreamSpec::dead_letters_of(&config.stream);
        let spec = StreamSpec { max_bytes: config.dead_letter_max_bytes.or(of.max_bytes), ..of };
        make_stream_if_absent(js, &spec).await.map_err(|error| match no_room(&error) {
            true => error.with("field", "dead_letter_max_bytes").instead("fix", LESS_FOR_LETTERS),
            false => error,
        })?;
    }
    if config.advisories {
        net::prepare(bridge, config).await.map_err(|error| match no_room(&error) {
            true => error.with("field", "advisories").instead("fix", NO_ADVISORIES),
            false => error,
        })?;
    }
    Ok(())
}

impl Consumer {
    /// Waits for the next delivery; none when the consumer was drained.
    ///
    /// Gives nothing while the consumer is [`ConsumerState::Paused`] or [`ConsumerState::Waiting`].
    ///
    /// # Errors
    /// `NotFound`: the stream or consumer was deleted. `Closed`: the connection was closed. After an error, and after
    /// none, there is nothing more: whoever asks again is told the same.
    ///
    /// # Cancel safety
    /// Cancel safe: no delivery is lost.
    pub async fn next(&mut self) -> Result<Option<Delivery>> {
        loop {
            if let Some((received, token)) = self.shared.take_ready(Instant::now()) {
                return Ok(Some(Delivery::new(received, token, self.shared.clone())));
            }
            {
                let mut inner = self.shared.lock();
                if let Some(ended) = &mut inner.ended {
                    // Whoever asks again is told the same.
                    let again = ended.as_ref().copied().map_err(Error::repeated);
                    return std::mem::replace(ended, again).map(|()| None);
                }
            }
            let notified = self.shared.arrived.notified();
            // While it is paused, the supervisor alone reads.
            let read = std::future::poll_fn(|cx| match self.shared.paused.load(Ordering::Acquire) {
                true => Poll::Pending,
                false => self.shared.poll_intake(cx),
            });
            tokio::select! {
                biased;
                () = read => {}
                () = notified => {}
            }
        }
    }

    /// Waits for deliveries and gives those that are there, at most `max`; an empty list when none came within
    /// `max_wait`, or when the consumer was drained.
    ///
    /// # Errors
    /// As [`Consumer::next`].
    ///
    /// # Cancel safety
    /// Cancel safe: no delivery is lost.
    pub async fn next_batch(&mut self, max: usize, max_wait: Duration) -> Result<Vec<Delivery>> {
        let mut batch = Vec::new();
        match tokio::time::timeout(max_wait, self.next()).await {
            Ok(Ok(Some(first))) => batch.push(first),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(None)) | Err(_) => return Ok(batch),
        }
        let now = Instant::now();
        while batch.len() < max
            && let Some((received, token)) = self.shared.take_ready(now)
        {
            batch.push(Delivery::new(received, token, self.shared.clone()));
        }
        Ok(batch)
    }

    /// Runs `handler` over the deliveries, at most `concurrency` at a time, until the consumer was drained.
    ///
    /// `Ok` acks. `Err` follows the retry policy, and so does a panic (class `panic`).
    ///
    /// # Errors
    /// As [`Consumer::next`], after the running handlers ended.
    ///
    /// # Cancel safety
    /// Dropping the future ends running handlers where they are; their deliveries count as dropped.
    pub async fn run<H, F>(self, concurrency: usize, handler: H) -> Result<()>
    where
        H: Fn(Received) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.work(concurrency, handler).await
    }

    /// As [`Consumer::run`], for a handler that may also give back what it did not handle.
    pub(super) async fn work<H, F, E>(mut self, concurrency: usize, handler: H) -> Result<()>
    where
        H: Fn(Received) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<NotDone> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let mut running = JoinSet::new();
        let ended = loop {
            while running.len() >= concurrency.max(1) {
                running.join_next().await;
            }
            let delivery = tokio::select! {
                delivery = self.next() => delivery,
                // Reaps what ended, so that the set does not grow while nothing comes.
                Some(_) = running.join_next(), if !running.is_empty() => continue,
            };
            match delivery {
                Ok(Some(delivery)) => {
                    let handler = handler.clone();
                    running.spawn(async move { handle(&*handler, delivery).await });
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        while running.join_next().await.is_some() {}
        ended
    }

    pub(crate) fn weak_handle(&self) -> WeakHandle {
        WeakHandle(Arc::downgrade(&self.shared))
    }

    /// A handle to watch and drain this consumer from elsewhere.
    pub fn handle(&self) -> ConsumerHandle {
        ConsumerHandle { shared: self.shared.clone() }
    }
}

/// Why a handler did not do its work.
#[derive(Debug)]
pub(super) enum NotDone {
    Failed(Failure),
    /// It was not tried to the end.
    GivenBack,
}

impl From<Failure> for NotDone {
    fn from(failure: Failure) -> Self {
        NotDone::Failed(failure)
    }
}

async fn handle<H, F, E>(handler: &H, delivery: Delivery)
where
    H: Fn(Received) -> F,
    F: Future<Output = Result<(), E>>,
    E: Into<NotDone>,
{
    let settled = match outcome(handler, delivery.received()).await {
        Ok(()) => delivery.ack().await,
        Err(NotDone::Failed(failure)) => delivery.retry(failure).await,
        Err(NotDone::GivenBack) => return delivery.give_back(),
    };
    if let Err(error) = settled {
        tracing::warn!(%error, "a delivery could not be settled");
    }
}

/// Runs a handler over one message; a panic is a failure of class `panic`.
pub(super) async fn outcome<H, F, E>(handler: &H, received: Received) -> Result<(), NotDone>
where
    H: Fn(Received) -> F,
    F: Future<Output = Result<(), E>>,
    E: Into<NotDone>,
{
    let work = std::panic::AssertUnwindSafe(async move { handler(received).await.map_err(Into::into) });
    work.catch_unwind().await.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(NotDone::Failed(Failure::of("panic", text)))
    })
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.shared.drain.cancel();
    }
}

impl ConsumerHandle {
    /// How the consumer is now.
    pub fn state(&self) -> ConsumerState {
        self.shared.state.borrow().clone()
    }

    /// The consumer's state, to await changes of.
    pub fn watch(&self) -> watch::Receiver<ConsumerState> {
        self.shared.state.subscribe()
    }

    /// How many deliveries are here and not settled, waiting ones included.
    pub fn held(&self) -> usize {
        self.shared.lock().held.credit.held()
    }

    /// Stops pulling and gives back what no handler has, as [`ConsumerHandle::drain`] does, without waiting.
    pub fn begin_to_drain(&self) {
        self.shared.drain.cancel();
    }

    /// Stops pulling and gives back what no handler has, and waits until the server has it: another process may have it at once.
    /// What handlers have is theirs to settle, and is not waited for.
    ///
    /// # Errors
    /// `Timeout`: the server has not said within `budget` that it has all. `Unreachable`: it is away. What it has not back comes again
    /// after `ack_wait`.
    pub async fn give_back(&self, budget: Duration) -> Result<()> {
        self.shared.drain.cancel();
        let mut given_back = self.shared.given_back.subscribe();
        let back = tokio::time::timeout(budget, given_back.wait_for(|back| *back != Back::NotYet)).await;
        let kind = match back.map(|back| back.map(|back| *back)) {
            Ok(Ok(Back::Told)) => return Ok(()),
            Ok(_) => ErrorKind::Unreachable,
            Err(_) => ErrorKind::Timeout,
        };
        let why = "the server was not heard to have back what no handler has seen";
        Err(Error::new(kind).with("consumer", &self.shared.config.name).with("why", why))
    }

    /// As [`ConsumerHandle::give_back`], because the connection is closed next: whoever waits for deliveries is told so.
    pub(crate) async fn leave(&self, budget: Duration) {
        if !self.shared.drain.is_cancelled() {
            self.shared.closing.store(true, Ordering::Release);
        }
        if let Err(error) = self.give_back(budget).await {
            tracing::warn!(%error, "the connection is closed and the server may not have everything back: it comes again after `ack_wait`");
        }
    }

    /// Stops pulling, gives back what no handler has, and waits until the rest is settled.
    ///
    /// # Errors
    /// `Timeout`: after `budget` something is still not settled; it stays so, and [`Consumer::next`] gives none only when
    /// it is settled. Else the error that the consumer ended with.
    pub async fn drain(&self, budget: Duration) -> Result<()> {
        self.shared.drain.cancel();
        let mut state = self.shared.state.subscribe();
        let ended = state.wait_for(|s| matches!(s, ConsumerState::Stopped | ConsumerState::Failed { .. }));
        match tokio::time::timeout(budget, ended).await {
            Ok(Ok(state)) => match &*state {
                ConsumerState::Failed { why } => Err(Error::new(ErrorKind::Closed).with("why", why)),
                _ => Ok(()),
            },
            Ok(Err(_)) => Ok(()),
            Err(_) => {
                let running = self.shared.lock().held.handed_out();
                Err(Error::new(ErrorKind::Timeout)
                    .with("consumer", &self.shared.config.name)
                    .with("not_settled", running))
            }
        }
    }
}
