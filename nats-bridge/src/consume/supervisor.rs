//! The task behind a consumer: pulls within the credit, keeps held deliveries alive, and makes anew what is stuck.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures::{FutureExt, Stream};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::ConsumerState;
use super::delivery::Received;
use super::held::Token;
use super::outcomes::Remembered;
use super::place;
use super::shared::{Shared, age_ms};
use super::status::{self, Status};
use crate::api::ask;
use crate::connection::Connection;
use crate::dead_letter::{Failure, Reason};
use crate::error::{Error, ErrorKind, Result};

/// How long one pull stays open on the server.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// Messages taken from the client at once.
const BATCH: usize = 256;

pub(super) struct Supervisor {
    shared: Arc<Shared>,
    subscriber: Subscriber,
    inbox: String,
    connection: watch::Receiver<Connection>,
    connects: u64,
    dropped: mpsc::UnboundedReceiver<(Received, Token)>,
    // The last pull ended because one message is larger than its bytes.
    alone: bool,
    heard: Instant,
    delivered: Instant,
    looked: Instant,
    ask_not_before: Instant,
    draining: bool,
}

impl Supervisor {
    pub async fn start(
        shared: Arc<Shared>,
        mut connection: watch::Receiver<Connection>,
        dropped: mpsc::UnboundedReceiver<(Received, Token)>,
    ) -> Result<()> {
        let (inbox, subscriber) = subscribe(&shared).await?;
        let now = Instant::now();
        let connects = connection.borrow_and_update().connects;
        let supervisor = Supervisor {
            shared,
            subscriber,
            inbox,
            connection,
            connects,
            dropped,
            alone: false,
            heard: now,
            delivered: now,
            looked: now,
            ask_not_before: now,
            draining: false,
        };
        tokio::spawn(supervisor.run());
        Ok(())
    }

    async fn run(mut self) {
        let ended = self.work().await;
        let shared = &self.shared;
        let state = match &ended {
            Ok(()) => ConsumerState::Stopped,
            Err(error) => {
                tracing::error!(%error, "a consumer ended");
                ConsumerState::Failed { why: error.to_string() }
            }
        };
        shared.lock().ended = Some(ended);
        shared.end.cancel();
        shared.state.send_replace(state);
        shared.metrics.held.set(0.0);
        shared.arrived.notify_one();
    }

    async fn work(&mut self) -> Result<()> {
        let config = &self.shared.config;
        let period = (config.ack_wait / 6)
            .min(config.heartbeat / 2)
            .clamp(Duration::from_millis(20), Duration::from_millis(500));
        let mut tick = interval(period);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        let shared = self.shared.clone();
        loop {
            self.ask().await;
            tokio::select! {
                n = receive(&mut self.subscriber, &mut batch) => match n {
                    0 if !self.draining => return Err(Error::new(ErrorKind::Closed).with("consumer", &shared.config.name)),
                    0 => tokio::time::sleep(period).await,
                    _ => self.take(&mut batch).await?,
                },
                () = shared.credit.notified() => {}
                Some((received, token)) = self.dropped.recv() => self.give_back(received, token),
                Ok(()) = self.connection.changed() => self.reconnected(&mut batch).await?,
                _ = tick.tick() => self.tick(&mut batch).await?,
                () = shared.drain.cancelled(), if !self.draining => self.start_draining().await,
            }
            if self.draining && shared.lock().held.credit.held() == 0 {
                return Ok(());
            }
        }
    }

    async fn ask(&mut self) {
        if self.draining || self.shared.paused.load(Ordering::Acquire) || Instant::now() < self.ask_not_before {
            return;
        }
        let Some(ask) = self.shared.lock().held.credit.ask(self.alone) else { return };
        self.alone = false;
        let config = &self.shared.config;
        let mut body = format!(
            r#"{{"batch":{},"expires":{},"idle_heartbeat":{}"#,
            ask.messages,
            PULL_EXPIRES.as_nanos(),
            config.heartbeat.as_nanos()
        );
        if let Some(bytes) = ask.bytes {
            body.push_str(&format!(r#","max_bytes":{bytes}"#));
        }
        body.push('}');
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", config.stream, config.name);
        let reply = format!("{}.{}", self.inbox, ask.number);
        // It fails only when the client was closed, which the subscription's end will say.
        let _ = self.shared.client.publish_with_reply(subject, reply, body.into()).await;
        self.shared.metrics.pulls.increment(1);
        self.heard = Instant::now();
    }

    async fn take(&mut self, batch: &mut Vec<Message>) -> Result<()> {
        let now = Instant::now();
        self.heard = now;
        let attempts = u64::from(self.shared.config.retry.attempts);
        let (mut fresh, mut again, mut statuses, mut leaving) = (0, 0, Vec::new(), Vec::new());
        {
            let mut inner = self.shared.lock();
            for message in batch.drain(..) {
                if let Some(code) = message.status {
                    statuses.push((code.as_u16(), message));
                    continue;
                }
                let Some(place) = message.reply.as_deref().and_then(place::read) else {
                    tracing::warn!(subject = &*message.subject, "a message without an ack subject came to a consumer");
                    continue;
                };
                fresh += 1;
                again += u64::from(place.delivered > 1);
                let bytes = message.length;
                let reply = message.reply.clone().unwrap_or_else(|| message.subject.clone());
                let token = inner.held.insert(reply, place.stream_sequence, place.delivered, bytes, now);
                let received = Received::new(message, place);
                match place.delivered > attempts {
                    // The policy's last attempt was not settled: nobody reported how it ended.
                    true => leaving.push((received, token)),
                    false => inner.ready.push_back((received, token)),
                }
            }
        }
        if fresh > 0 {
            self.delivered = now;
            self.shared.metrics.delivered.increment(fresh);
            self.shared.metrics.redelivered.increment(again);
            self.shared.arrived.notify_one();
        }
        for (received, token) in leaving {
            self.give_up_unreported(received, token);
        }
        for (code, message) in statuses {
            self.heed(code, &message).await?;
        }
        if self.draining {
            self.return_ready().await;
        }
        Ok(())
    }

    async fn heed(&mut self, code: u16, message: &Message) -> Result<()> {
        let number = message.subject.rsplit('.').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let status = status::read(code, message.description.as_deref().unwrap_or_default());
        if status == Status::Heartbeat {
            return Ok(());
        }
        if !self.shared.lock().held.credit.is_current(number) {
            return Ok(());
        }
        self.shared.lock().held.credit.pull_over();
        match status {
            Status::Heartbeat | Status::PullOver => {}
            Status::TooLarge => self.alone = true,
            Status::Busy(why) => {
                tracing::warn!(why, consumer = self.shared.config.name, "a pull ended early");
                self.pause_asking();
            }
            Status::Gone(why) => {
                tracing::warn!(why, consumer = self.shared.config.name, "a pull ended early");
                match self.info().await {
                    Err(error) if error.kind() == ErrorKind::NotFound => return Err(error),
                    // No leader yet, or no answer: it will be back.
                    _ => self.pause_asking(),
                }
            }
        }
        Ok(())
    }

    fn pause_asking(&mut self) {
        self.ask_not_before = Instant::now() + Duration::from_millis(200).mul_f64(0.5 + rand::random::<f64>());
    }

    fn give_up_unreported(&self, received: Received, token: Token) {
        let (sequence, last) = (received.sequence(), received.attempt() - 1);
        let now = SystemTime::now();
        let why = {
            let inner = self.shared.lock();
            match inner.outcomes.get(sequence) {
                Some(known) if known.attempt == last => known.clone(),
                known => Remembered {
                    first: known.map_or(now, |known| known.first),
                    last: now,
                    attempt: last,
                    reason: Reason::CrashLoop,
                    failure: Failure::of("crash_loop", format!("delivery {last} ended without an outcome")),
                },
            }
        };
        let shared = self.shared.clone();
        // An error has paused the consumer and goes on being tried.
        tokio::spawn(async move { shared.give_up(received, token, why).await.map(drop) });
    }

    fn give_back(&self, received: Received, token: Token) {
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let failure = Failure::of("dropped", "the delivery was dropped without having been settled");
            if let Err(error) = shared.failed(received, token, Reason::HandlerError, failure, None).await {
                tracing::warn!(%error, "a dropped delivery could not be given back");
            }
        });
    }

    async fn reconnected(&mut self, batch: &mut Vec<Message>) -> Result<()> {
        let now = *self.connection.borrow_and_update();
        if now.connects > self.connects {
            self.connects = now.connects;
            // What came before counts first, so that the new pull asks for no more than is free.
            self.take_waiting(batch).await?;
            self.shared.lock().held.credit.pull_over();
        }
        Ok(())
    }

    async fn take_waiting(&mut self, batch: &mut Vec<Message>) -> Result<()> {
        while let Some(1..) = receive(&mut self.subscriber, batch).now_or_never() {
            self.take(batch).await?;
        }
        Ok(())
    }

    async fn tick(&mut self, batch: &mut Vec<Message>) -> Result<()> {
        let now = Instant::now();
        let config = &self.shared.config;
        let (signs, overtime, pull_open) = {
            let mut inner = self.shared.lock();
            self.shared.metrics.held.set(inner.held.credit.held() as f64);
            let (signs, overtime) = inner.held.due(now, config.ack_wait / 3, config.max_run);
            for (sequence, attempt) in &overtime {
                let failure = Failure::of("timeout", format!("the handler ran longer than {:?}", config.max_run));
                inner.outcomes.failed(*sequence, *attempt, Reason::Timeout, failure, SystemTime::now());
            }
            (signs, overtime, inner.held.credit.pull_open())
        };
        for (sequence, attempt) in overtime {
            self.shared.metrics.overtime.increment(1);
            tracing::warn!(
                consumer = config.name,
                sequence,
                attempt,
                "a handler runs too long; the server will deliver again"
            );
        }
        if !self.connection.borrow().connected {
            // Nothing can be heard; the clocks start again with the connection.
            (self.heard, self.delivered) = (now, now);
            return Ok(());
        }
        for reply in signs {
            let _ = self.shared.client.publish(reply, Bytes::from_static(b"+WPI")).await;
        }
        if !pull_open || self.draining {
            self.delivered = now;
            return Ok(());
        }
        if now.duration_since(self.heard) > self.shared.config.heartbeat * 2 {
            self.shared.metrics.rebuilt_heartbeat.increment(1);
            tracing::warn!(
                consumer = self.shared.config.name,
                silent_ms = age_ms(self.heard),
                "no heartbeat; pulling anew"
            );
            return self.rebuild(batch).await;
        }
        let stalled_after = self.shared.config.stalled_after;
        if now.duration_since(self.delivered) > stalled_after && now.duration_since(self.looked) > stalled_after {
            self.looked = now;
            return self.look(batch).await;
        }
        Ok(())
    }

    // Nothing came for long: is there something?
    async fn look(&mut self, batch: &mut Vec<Message>) -> Result<()> {
        match self.info().await {
            Ok(info) => {
                let pending = info.get("num_pending").and_then(Value::as_u64).unwrap_or(0);
                self.shared.metrics.pending.set(pending as f64);
                if pending > 0 {
                    self.shared.metrics.rebuilt_stalled.increment(1);
                    tracing::warn!(
                        consumer = self.shared.config.name,
                        pending,
                        idle_ms = age_ms(self.delivered),
                        "messages are pending and none came; pulling anew"
                    );
                    return self.rebuild(batch).await;
                }
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Err(error),
            Err(_) => Ok(()),
        }
    }

    async fn rebuild(&mut self, batch: &mut Vec<Message>) -> Result<()> {
        let (inbox, subscriber) = subscribe(&self.shared).await?;
        let mut old = std::mem::replace(&mut self.subscriber, subscriber);
        self.inbox = inbox;
        let _ = old.unsubscribe().await;
        while let Some(1..) = receive(&mut old, batch).now_or_never() {
            self.take(batch).await?;
        }
        self.shared.lock().held.credit.pull_over();
        (self.heard, self.delivered) = (Instant::now(), Instant::now());
        Ok(())
    }

    async fn info(&self) -> Result<Value> {
        let config = &self.shared.config;
        ask(&self.shared.jetstream, format!("CONSUMER.INFO.{}.{}", config.stream, config.name)).await
    }

    async fn start_draining(&mut self) {
        self.draining = true;
        self.shared.state.send_replace(ConsumerState::Draining);
        // What is on its way still comes, and is given back.
        let _ = self.subscriber.drain().await;
        self.return_ready().await;
        self.shared.arrived.notify_one();
    }

    // Gives back what no handler has seen.
    async fn return_ready(&self) {
        let waiting = std::mem::take(&mut self.shared.lock().ready);
        for (received, token) in waiting {
            let _ = self.shared.send(&received, Bytes::from_static(b"-NAK")).await;
            self.shared.settled(token, received.sequence(), false);
        }
    }
}

async fn subscribe(shared: &Shared) -> Result<(String, Subscriber)> {
    let inbox = shared.client.new_inbox();
    let subscriber = shared
        .client
        .subscribe(format!("{inbox}.*"))
        .await
        .map_err(|e| Error::new(ErrorKind::Closed).with("consumer", &shared.config.name).because(e))?;
    Ok((inbox, subscriber))
}

// Waits for a message and takes those that are there; 0 when the subscription ended.
async fn receive(subscriber: &mut Subscriber, batch: &mut Vec<Message>) -> usize {
    std::future::poll_fn(|cx| {
        let before = batch.len();
        while batch.len() - before < BATCH {
            match Pin::new(&mut *subscriber).poll_next(cx) {
                Poll::Ready(Some(message)) => batch.push(message),
                Poll::Ready(None) => return Poll::Ready(batch.len() - before),
                Poll::Pending if batch.len() == before => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(batch.len() - before)
    })
    .await
}
