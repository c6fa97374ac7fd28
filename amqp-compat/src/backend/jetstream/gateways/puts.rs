//! Messages that other gateways put into queues here: exclusive queues of clients of this gateway, which are in its memory;
//! and while it leads, queues whose length is limited or that have priorities, since whoever knows what is in them has to
//! take a message in.
//!
//! A put looks to its sender like a publish to a stream: the same headers, the same id, and an answer of the same form. What
//! is not answered is sent again; what was taken in once is not taken in again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Message as NatsMessage, Subject};
use bytes::Bytes;
use foldhash::{HashMap, HashMapExt, HashSet};
use futures::StreamExt as _;
use nats_bridge::publish::Confirm;
use serde_json::json;
use smallvec::{SmallVec, smallvec};

use super::{Gateways, PREFIX, failed};
use crate::backend::PublishOutcome;
use crate::backend::jetstream::dead_letters::{Routed, admit, hidden, hide};
use crate::backend::jetstream::message::{self, MSG_ID};
use crate::backend::jetstream::publisher::{Also, Publisher, Settled};
use crate::backend::jetstream::queue::Queue;
use crate::error::AmqpError;
use crate::mapping::name;

const TICK: Duration = Duration::from_millis(100);
const CONFIRMS: usize = 1024;
/// How many ids of what was taken in are remembered.
const REMEMBERED: usize = 65_536;
/// The number of a message that nobody waits for.
const NOBODYS: u64 = 0;

/// JetStream's code for a stream that cannot take a message now; the sender tries again.
const NOT_NOW: (u16, u32, &str) = (503, 10008, "the queue is not in this gateway");
/// JetStream's code for a stream that is full.
const FULL: (u16, u32, &str) = (400, 10077, "the queue is full");
/// Stored, or not: nobody knows.
const UNKNOWN: (u16, u32, &str) = (500, 0, "the message could not be stored");

/// Where a gateway takes messages for a queue.
pub(super) fn subject(number: u32, vhost: &str, queue: &str) -> Subject {
    Subject::from(format!("{PREFIX}.put.{number}.{}.{}", name::vhost_token(vhost), name::token(queue)))
}

/// Starts to take in.
pub(super) async fn start(gateways: &Gateways) -> Result<(), AmqpError> {
    let bridge = gateways.0.bridge.clone();
    let subject = format!("{PREFIX}.put.{}.*.*", gateways.0.number);
    let mut subscriber = bridge.client().subscribe(subject).await.map_err(failed)?;
    let (inbox, mut confirms) = bridge.ordered_inbox().await.map_err(failed)?;
    let Some(config) = gateways.vhosts().next().map(|vhost| vhost.config.clone()) else { return Ok(()) };
    let mut puts = Puts {
        gateways: gateways.clone(),
        publisher: Publisher::new(inbox, config),
        waiting: HashMap::new(),
        under_way: HashMap::new(),
        done: Remembered::default(),
        next: NOBODYS + 1,
    };
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut confirmed: Vec<Confirm> = Vec::with_capacity(CONFIRMS);
        loop {
            let settled = tokio::select! {
                () = puts.gateways.0.stop.cancelled() => return,
                message = subscriber.next(), if puts.publisher.has_room() => {
                    let Some(message) = message else { return };
                    puts.take(message).await;
                    continue;
                }
                count = confirms.next_many(&mut confirmed, CONFIRMS) => {
                    // The connection was closed.
                    if count == 0 {
                        return;
                    }
                    let now = Instant::now();
                    confirmed.drain(..).filter_map(|confirm| puts.publisher.confirmed(confirm, now)).collect()
                }
                () = puts.publisher.available() => puts.publisher.resend(Instant::now()).await,
                _ = tick.tick(), if puts.publisher.is_outstanding(None) => {
                    puts.publisher.resend(Instant::now()).await
                }
            };
            for settled in settled {
                puts.settled(settled).await;
            }
        }
    });
    Ok(())
}

struct Puts {
    gateways: Gateways,
    publisher: Publisher,
    /// Who waits for what is not confirmed, and its id.
    waiting: HashMap<u64, (Subject, Option<String>)>,
    /// The ids of that.
    under_way: HashMap<String, u64>,
    done: Remembered,
    next: u64,
}

/// The last ids that were taken in.
#[derive(Default)]
struct Remembered {
    ids: HashSet<Arc<str>>,
    order: VecDeque<Arc<str>>,
}

impl Remembered {
    fn insert(&mut self, id: &str) {
        let id: Arc<str> = id.into();
        if self.ids.insert(id.clone()) {
            self.order.push_back(id);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

impl Puts {
    async fn take(&mut self, put: NatsMessage) {
        let Some(reply) = put.reply.clone() else { return };
        let Some(queue) = self.queue(&put.subject) else { return self.refuse(&reply, NOT_NOW).await };
        let id = put.headers.as_ref().and_then(|headers| headers.get(MSG_ID)).map(|id| id.as_str().to_owned());
        if let Some(id) = &id {
            if self.done.ids.contains(id.as_str()) {
                return self.accept(&reply).await;
            }
            if let Some(waiting) = self.under_way.get(id).and_then(|number| self.waiting.get_mut(number)) {
                waiting.0 = reply;
                return;
            }
        }
        let message = message::message(put.headers.as_ref(), put.payload, queue.name());
        let bcc = hidden(put.headers.as_ref());
        if message.properties.expiration().is_some() {
            queue.watch_expiry().await;
        }
        let mut queues: SmallVec<[Arc<Queue>; 4]> = smallvec![queue];
        let passed_on = admit(&mut queues, &message, &bcc);
        let now = Instant::now();
        for Routed { letter, queues, delayed_by } in passed_on {
            let also = Also { bcc: hide(&letter.bcc), delayed_by, ..Also::default() };
            if let Err(error) = self.publisher.publish(0, NOBODYS, letter.message, also, queues, now).await {
                tracing::error!(%error, "a message that a full queue passes on is too large with its x-death header");
            }
        }
        if queues.is_empty() {
            return self.refuse(&reply, FULL).await;
        }
        let number = self.next;
        self.next += 1;
        self.waiting.insert(number, (reply.clone(), id.clone()));
        if let Some(id) = &id {
            self.under_way.insert(id.clone(), number);
        }
        let also = Also { id, bcc: hide(&bcc), ..Also::default() };
        match self.publisher.publish(0, number, message, also, queues, now).await {
            Ok(None) => {}
            Ok(Some(settled)) => self.settled(settled).await,
            Err(error) => {
                tracing::warn!(%error, "a message that another gateway has put here is refused");
                self.settled(Settled { channel: 0, seq: number, outcome: PublishOutcome::Failed }).await;
            }
        }
    }

    /// The queue of a subject, if it is here.
    fn queue(&self, subject: &str) -> Option<Arc<Queue>> {
        let mut tokens = subject.split('.').skip(3);
        let (vhost, queue) = (name::untoken(tokens.next()?)?, name::untoken(tokens.next()?)?);
        let queue = self.gateways.vhost(&vhost)?.queue_named(&queue)?;
        (queue.is_here() && !self.gateways.is_taking_over()).then_some(queue)
    }

    async fn settled(&mut self, settled: Settled) {
        let Some((reply, id)) = self.waiting.remove(&settled.seq) else { return };
        if let Some(id) = &id {
            self.under_way.remove(id);
        }
        match settled.outcome {
            PublishOutcome::Stored => {
                id.iter().for_each(|id| self.done.insert(id));
                self.accept(&reply).await;
            }
            PublishOutcome::Failed => self.refuse(&reply, UNKNOWN).await,
        }
    }

    /// Its place in the queue is nobody's business but the queue's.
    async fn accept(&self, reply: &Subject) {
        self.answer(reply, Bytes::from_static(b"{\"stream\":\"here\",\"seq\":1}")).await;
    }

    async fn refuse(&self, reply: &Subject, (code, err_code, text): (u16, u32, &str)) {
        let error = json!({ "error": { "code": code, "err_code": err_code, "description": text } });
        self.answer(reply, Bytes::from(error.to_string())).await;
    }

    async fn answer(&self, reply: &Subject, payload: Bytes) {
        // It fails only when the client was closed.
        let _ = self.gateways.0.bridge.client().publish(reply.clone(), payload).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ids_are_remembered() {
        let mut remembered = Remembered::default();
        for number in 0..REMEMBERED + 10 {
            remembered.insert(&number.to_string());
            remembered.insert(&number.to_string());
        }
        assert_eq!((remembered.ids.len(), remembered.order.len()), (REMEMBERED, REMEMBERED));
        assert!(!remembered.ids.contains("9") && remembered.ids.contains("10"));
    }
}
