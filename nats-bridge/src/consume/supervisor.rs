//! The task behind a consumer: pulls within the credit, keeps held deliveries alive, and makes anew what is stuck.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures::FutureExt;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::ConsumerState;
use super::active::pull_expires;
use super::delivery::Received;
use super::held::Token;
use super::shared::{Back, IN_PROGRESS, Shared, age_ms};
use super::status::{self, Status};
use crate::api::ask;
use crate::connection::Connection;
use crate::dead_letter::{Failure, Reason};
use crate::error::{Error, ErrorKind, Result};

/// How long one pull stays open on the server.
const PULL_EXPIRES: Duration = Duration::from_secs(30);

pub(super) struct Supervisor {
    shared: Arc<Shared>,
    inbox: String,
    connection: watch::Receiver<Connection>,
    connects: u64,
    dropped: mpsc::UnboundedReceiver<(Received, Token)>,
    statuses: mpsc::UnboundedReceiver<(u16, Message)>,
    // The subscription while it is drained.
    leaving: Option<Subscriber>,
    // The last pull ended because one message is larger than its bytes.
    alone: bool,
    looked: Instant,
    ask_not_before: Instant,
    draining: bool,
    // Draining, and nothing more is pulled for it.
    left: bool,
}

impl Supervisor {
    pub async fn start(
        shared: Arc<Shared>,
        mut connection: watch::Receiver<Connection>,
        dropped: mpsc::UnboundedReceiver<(Received, Token)>,
        statuses: mpsc::UnboundedReceiver<(u16, Message)>,
    ) -> Result<()> {
        let (inbox, subscriber) = subscribe(&shared).await?;
        put(&shared, Some(subscriber));
        let now = Instant::now();
        let connects = connection.borrow_and_update().connects;
        let supervisor = Supervisor {
            shared,
            inbox,
            connection,
            connects,
            dropped,
            statuses,
            leaving: None,
            alone: false,
            looked: now,
            ask_not_before: now,
            draining: false,
            left: false,
        };
        tokio::spawn(supervisor.run());
        Ok(())
    }

    async fn run(mut self) {
        let contest = {
            let shared = self.shared.clone();
            tokio::spawn(async move {
                if let Some(active) = &shared.active {
                    active.contend(&shared).await;
                }
            })
        };
        let ended = self.work().await;
        let shared = &self.shared;
        shared.end.cancel();
        // Whoever waits for the end may end the process, and the next instance should not have to wait.
        let _ = contest.await;
        let state = match &ended {
            Ok(()) => ConsumerState::Stopped,
            Err(error) => {
                match error.kind() {
                    // Whoever closes the connection means it.
                    ErrorKind::Closed => tracing::debug!(%error, "a consumer ended with its connection"),
                    _ => tracing::error!(%error, "a consumer ended"),
                }
                ConsumerState::Failed { why: error.to_string() }
            }
        };
        shared.lock().ended = Some(ended);
        shared.given_back.send_if_modified(|back| {
            let unknown = *back == Back::NotYet;
            if unknown {
                *back = Back::Untold;
            }
            unknown
        });
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
        let shared = self.shared.clone();
        loop {
            self.settle_up().await?;
            self.ask().await;
            self.leave_when_the_pull_is_over().await;
            self.tell_what_is_given_back().await;
            if self.drained() {
                return match self.shared.closing.load(Ordering::Acquire) {
                    true => Err(self.closed()),
                    false => Ok(()),
                };
            }
            let leaving = &mut self.leaving;
            // The rest of a subscription that is drained.
            let rest = std::future::poll_fn(|cx| match leaving.as_mut().filter(|_| !shared.lock().closed) {
                Some(subscriber) => shared.poll_subscriber(subscriber, cx),
                None => Poll::Pending,
            });
            tokio::select! {
                () = shared.credit.notified() => {}
                () = rest => {}
                Some((code, message)) = self.statuses.recv() => self.heed(code, &message).await?,
                Some((received, token)) = self.dropped.recv() => self.give_back(received, token),
                Ok(()) = self.connection.changed() => self.reconnected().await?,
                () = lost(&shared) => self.give_way().await?,
                _ = tick.tick() => self.tick().await?,
                () = shared.drain.cancelled(), if !self.draining => {
                    self.draining = true;
                    shared.lock().draining = true;
                    self.shared.state.send_replace(ConsumerState::Draining);
                }
            }
        }
    }

    // Everything is settled, and nothing can come any more.
    fn drained(&self) -> bool {
        self.nothing_comes() && self.shared.lock().held.credit.held() == 0
    }

    fn nothing_comes(&self) -> bool {
        self.left && (self.shared.lock().closed || !self.connection.borrow().connected)
    }

    // Once nothing waits here any more that no handler has seen, the server is made to have read so: whoever waits for it may end the
    // process, and the kernel of one that ends does not always send what was written last.
    async fn tell_what_is_given_back(&self) {
        let shared = &self.shared;
        let all_back = || shared.lock().held.unbegun() == 0;
        if *shared.given_back.borrow() != Back::NotYet || !self.nothing_comes() || !all_back() {
            return;
        }
        let connected = self.connection.borrow().connected;
        let back = if connected && shared.pulse.answers().await { Back::Told } else { Back::Untold };
        // Under the lock, so that nothing is put back in between.
        let inner = shared.lock();
        if inner.held.unbegun() == 0 {
            shared.given_back.send_replace(back);
        }
    }

    fn closed(&self) -> Error {
        Error::new(ErrorKind::Closed).with("consumer", &self.shared.config.name)
    }

    // What came up while messages were read.
    async fn settle_up(&mut self) -> Result<()> {
        let (unreported, told_again, asks, closed) = {
            let mut inner = self.shared.lock();
            let told_again = std::mem::take(&mut inner.told_again);
            (std::mem::take(&mut inner.unreported), told_again, std::mem::take(&mut inner.asks), inner.closed)
        };
        if asks {
            // Handlers may be busy for long, and what had its last attempt is to be a dead letter soon.
            let shared = self.shared.clone();
            tokio::spawn(async move {
                if shared.count_ready().await.is_err() {
                    shared.lock().asks = true;
                }
            });
        }
        for (reply, what) in told_again {
            self.shared.metrics.told_again.increment(1);
            let _ = self.shared.client.publish(reply, what).await;
        }
        for (received, token) in unreported {
            self.shared.give_up_unreported(received, token);
        }
        if self.left {
            self.return_ready().await;
        }
        // Of one that is drained the subscription ends by itself; what is held after the connection is settled by nobody.
        let gone = self.connection.borrow().closed;
        let lost = if self.left { gone && !self.drained() } else { closed || gone };
        if lost {
            return Err(self.closed());
        }
        Ok(())
    }

    async fn ask(&mut self) {
        let (now, shared) = (Instant::now(), &self.shared);
        let waits = shared.paused.load(Ordering::Acquire) || !shared.may_work(now) || now < self.ask_not_before;
        if self.draining || waits {
            return;
        }
        let Some(ask) = self.shared.lock().held.credit.ask(self.alone) else { return };
        self.alone = false;
        let config = &self.shared.config;
        let (expires, heartbeat) = match config.single_active {
            true => {
                let expires = pull_expires(config.ack_wait);
                (expires, config.heartbeat.min(expires / 2))
            }
            false => (PULL_EXPIRES, config.heartbeat),
        };
        let mut body = format!(
            r#"{{"batch":{},"expires":{},"idle_heartbeat":{}"#,
            ask.messages,
            expires.as_nanos(),
            heartbeat.as_nanos()
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
        self.shared.lock().heard = Instant::now();
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
        self.shared.lock().held.credit.ended(status::left(message.headers.as_ref()));
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

    fn give_back(&self, received: Received, token: Token) {
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let failure = Failure::of("dropped", "the delivery was dropped without having been settled");
            if let Err(error) = shared.failed(received, token, Reason::HandlerError, failure, None).await {
                tracing::warn!(%error, "a dropped delivery could not be given back");
            }
        });
    }

    async fn reconnected(&mut self) -> Result<()> {
        let now = *self.connection.borrow_and_update();
        if now.connects > self.connects {
            self.connects = now.connects;
            // What came before counts first, so that the new pull asks for no more than is free.
            self.read_waiting();
            self.shared.lock().held.credit.pull_over();
        }
        Ok(())
    }

    // Reads for an application that is not waiting for messages at present. It takes the place of one that is, so that one
    // is told to look again.
    fn read_waiting(&mut self) {
        let shared = &self.shared;
        let mut subscriber = self.leaving.as_mut();
        let read = |cx: &mut Context<'_>| match &mut subscriber {
            Some(leaving) => shared.poll_subscriber(leaving, cx),
            None => shared.poll_intake(cx),
        };
        // Outside of Tokio's budget, which would leave all but 127 messages where nobody keeps them alive.
        let mut read = tokio::task::unconstrained(std::future::poll_fn(read));
        while !shared.lock().closed && (&mut read).now_or_never().is_some() {}
        shared.arrived.notify_one();
    }

    async fn tick(&mut self) -> Result<()> {
        self.read_waiting();
        let now = Instant::now();
        let config = &self.shared.config;
        let (signs, overtime, pull_open, heard, delivered) = {
            let mut inner = self.shared.lock();
            self.shared.metrics.held.set(inner.held.credit.held() as f64);
            let (signs, overtime) = inner.held.due(now, config.ack_wait / 3, config.max_run);
            for (sequence, attempt, delivery) in &overtime {
                let failure = Failure::of("timeout", format!("the handler ran longer than {:?}", config.max_run));
                inner.outcomes.failed(*sequence, (*attempt, *delivery), Reason::Timeout, failure, SystemTime::now());
            }
            (signs, overtime, inner.held.credit.pull_open(), inner.heard, inner.delivered)
        };
        for (sequence, attempt, _) in overtime {
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
            let mut inner = self.shared.lock();
            (inner.heard, inner.delivered) = (now, now);
            return Ok(());
        }
        // Without the lease they are the next one's.
        let signs = if self.shared.may_work(now) { signs } else { Vec::new() };
        for reply in signs {
            let _ = self.shared.client.publish(reply, IN_PROGRESS).await;
        }
        if !pull_open || self.draining || !self.shared.may_work(now) {
            self.shared.lock().delivered = now;
            return Ok(());
        }
        if now.duration_since(heard) > self.shared.config.heartbeat * 2 {
            self.shared.metrics.rebuilt_heartbeat.increment(1);
            tracing::warn!(consumer = self.shared.config.name, silent_ms = age_ms(heard), "no heartbeat; pulling anew");
            // Not every server tells a waiting pull that its stream is gone.
            match tokio::time::timeout(Duration::from_secs(1), self.info()).await {
                Ok(Err(error)) if error.kind() == ErrorKind::NotFound => return Err(error),
                Ok(_) => {}
                Err(_) => {
                    let pulse = self.shared.pulse.clone();
                    tokio::spawn(async move { pulse.feel().await });
                }
            }
            return self.rebuild().await;
        }
        let stalled_after = self.shared.config.stalled_after;
        if now.duration_since(delivered) > stalled_after && now.duration_since(self.looked) > stalled_after {
            self.looked = now;
            return self.look(delivered).await;
        }
        Ok(())
    }

    // Nothing came for long: is there something?
    async fn look(&mut self, delivered: Instant) -> Result<()> {
        match self.info().await {
            Ok(info) => {
                let pending = info.get("num_pending").and_then(Value::as_u64).unwrap_or(0);
                self.shared.metrics.pending.set(pending as f64);
                if pending > 0 {
                    self.shared.metrics.rebuilt_stalled.increment(1);
                    tracing::warn!(
                        consumer = self.shared.config.name,
                        pending,
                        idle_ms = age_ms(delivered),
                        "messages are pending and none came; pulling anew"
                    );
                    return self.rebuild().await;
                }
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Err(error),
            Err(_) => Ok(()),
        }
    }

    async fn rebuild(&mut self) -> Result<()> {
        let (inbox, subscriber) = subscribe(&self.shared).await?;
        self.inbox = inbox;
        if let Some(mut old) = put(&self.shared, Some(subscriber)) {
            let _ = old.unsubscribe().await;
            let read = |cx: &mut Context<'_>| self.shared.poll_subscriber(&mut old, cx);
            let mut read = tokio::task::unconstrained(std::future::poll_fn(read));
            while !self.shared.lock().closed && (&mut read).now_or_never().is_some() {}
            // The end of the old one is not the end.
            self.shared.lock().closed = false;
        }
        {
            let mut inner = self.shared.lock();
            inner.held.credit.pull_over();
            (inner.heard, inner.delivered) = (Instant::now(), Instant::now());
        }
        self.shared.arrived.notify_one();
        Ok(())
    }

    // Another instance is the active consumer: what came for this one and was not handed out comes to that one.
    async fn give_way(&mut self) -> Result<()> {
        self.rebuild().await?;
        {
            let mut inner = self.shared.lock();
            let waiting: Vec<_> = std::mem::take(&mut inner.ready).into();
            let shared = self.shared.clone();
            for (_, token) in &waiting {
                inner.held.remove(*token);
            }
            // They come to the other one only after `ack_wait`.
            tokio::spawn(async move { shared.keep_unbegun(&waiting).await });
        }
        if let Some(active) = &self.shared.active {
            active.cleared.notify_one();
        }
        Ok(())
    }

    async fn info(&self) -> Result<Value> {
        let config = &self.shared.config;
        ask(&self.shared.jetstream, format!("CONSUMER.INFO.{}.{}", config.stream, config.name)).await
    }

    // A pull that nobody listens to makes the server put the first message that is given back behind the others. Where order is promised
    // its end is awaited, elsewhere the server is made to look for it.
    async fn leave_when_the_pull_is_over(&mut self) {
        let waits = || {
            let inner = self.shared.lock();
            let (config, open) = (&self.shared.config, inner.held.credit.pull_open() && !inner.closed);
            // Its end may have been lost.
            let longest = pull_expires(config.ack_wait) + Duration::from_secs(1);
            config.single_active && open && inner.heard.elapsed() < longest
        };
        if !self.draining || self.left || (self.connection.borrow().connected && waits()) {
            return;
        }
        self.left = true;
        // What is on its way still comes, and is given back.
        if let Some(mut subscriber) = put(&self.shared, None) {
            let _ = subscriber.drain().await;
            self.leaving = Some(subscriber);
        }
        // Looking at the consumer has the server forget the pull, now that nobody listens to it.
        if self.connection.borrow().connected && self.shared.lock().held.credit.pull_open() {
            let _ = self.info().await;
        }
        self.read_waiting();
        self.return_ready().await;
        self.shared.arrived.notify_one();
    }

    // Gives back what no handler has seen.
    async fn return_ready(&self) {
        let mut waiting = std::mem::take(&mut self.shared.lock().ready);
        // Some were given back by those who had them.
        waiting.make_contiguous().sort_by_key(|(received, _)| received.sequence());
        if self.connection.borrow().connected {
            self.shared.keep_unbegun(waiting.make_contiguous()).await;
        }
        for (received, token) in waiting {
            let _ = self.shared.send(&received, Bytes::from_static(b"-NAK")).await;
            self.shared.settled(token, &received, None);
        }
    }
}

// The lease of a single active consumer was lost.
async fn lost(shared: &Shared) {
    match &shared.active {
        Some(active) => active.lost.notified().await,
        None => std::future::pending().await,
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

// Puts a subscription where messages are read from, and gives the one that was there.
fn put(shared: &Shared, subscriber: Option<Subscriber>) -> Option<Subscriber> {
    let mut intake = shared.intake.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    std::mem::replace(&mut *intake, subscriber)
}
