//! What stands in a queue's place in a gateway that follows: it takes the same commands as the queue's actor, has the leading
//! gateway do them, and hands its deliveries to the links here.
//!
//! When another gateway leads, its consumers come to that one with the credit that they have left; what clients have and
//! have not settled comes again there, flagged. When this gateway leads, it hands everything to the queue's actor.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use foldhash::{HashMap, HashMapExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::following::{FromLeader, Session};
use super::wire::{self, Answer, At, Headers, Say};
use super::{Gateways, Role};
use crate::backend::jetstream::memory::now_ns;
use crate::backend::jetstream::pump::{self, LastGone, NewConsumer, PumpCommand, SEQUENCE_MASK};
use crate::backend::jetstream::queue::{Counts, Queue, gone};
use crate::backend::{ChannelId, Delivery, DeliveryId, Event, Got, Outcome};
use crate::error::AmqpError;

const COMMANDS: usize = 1024;
const BATCH: usize = 256;

struct Relay {
    queue: Arc<Queue>,
    gateways: Gateways,
    at: At,
    /// The first to have come comes first.
    consumers: BTreeMap<u64, Consumer>,
    /// The ways to links, by link.
    outlets: HashMap<u64, Outlet>,
    inlet: mpsc::UnboundedSender<FromLeader>,
    session: Option<Arc<Session>>,
    watches_expiry: bool,
    /// The queue's actor, once this gateway leads.
    pump: Option<mpsc::Sender<PumpCommand>>,
}

/// A consumer of a link here.
struct Consumer {
    new: NewConsumer,
    credit: u64,
    /// It is about to go: the next leading gateway does not hear of it.
    goes: bool,
    /// Deliveries that its link has not taken yet.
    waiting: Arc<AtomicU64>,
}

/// The way to a link, which may have no room: at most what there was credit for waits.
struct Outlet {
    events: mpsc::UnboundedSender<Passing>,
    task: JoinHandle<()>,
}

enum Passing {
    Delivery(Event, Arc<AtomicU64>),
    Event(Event),
    /// Everything before it has reached the link.
    End(oneshot::Sender<()>),
}

impl Outlet {
    fn new(to: mpsc::Sender<Event>) -> Self {
        let (events, mut passing) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Some(next) = passing.recv().await {
                match next {
                    // The link may have ended; its release is on its way.
                    Passing::Delivery(event, waiting) => {
                        let _ = to.send(event).await;
                        waiting.fetch_sub(1, Ordering::AcqRel);
                    }
                    Passing::Event(event) => drop(to.send(event).await),
                    Passing::End(done) => drop(done.send(())),
                }
            }
        });
        Self { events, task }
    }

    fn pass(&self, what: Passing) {
        let _ = self.events.send(what);
    }

    /// Drops what the link has not taken.
    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Starts the relay of a queue. It ends with the queue, or with the gateway's place.
pub(crate) fn start(queue: Arc<Queue>, gateways: Gateways) -> mpsc::Sender<PumpCommand> {
    let (sender, commands) = mpsc::channel(COMMANDS);
    let (inlet, heard) = mpsc::unbounded_channel();
    let at = At { vhost: queue.vhost.to_string(), queue: queue.name().to_owned() };
    let relay = Relay {
        queue,
        gateways,
        at,
        consumers: BTreeMap::new(),
        outlets: HashMap::new(),
        inlet,
        session: None,
        watches_expiry: false,
        pump: None,
    };
    tokio::spawn(relay.run(commands, heard));
    sender
}

impl Relay {
    async fn run(mut self, mut commands: mpsc::Receiver<PumpCommand>, mut heard: mpsc::UnboundedReceiver<FromLeader>) {
        let (mut sessions, mut roles) = (self.gateways.sessions(), self.gateways.roles());
        let mut batch = Vec::with_capacity(BATCH);
        self.session = sessions.borrow_and_update().clone();
        loop {
            let role = roles.borrow_and_update().clone();
            match role {
                Role::Ended(_) => return,
                Role::Leading | Role::TakingOver if self.pump.is_none() => self.hand_over().await,
                _ => {}
            }
            tokio::select! {
                biased;
                changed = roles.changed() => if changed.is_err() { return },
                changed = sessions.changed(), if self.pump.is_none() => {
                    if changed.is_err() {
                        return;
                    }
                    let session = sessions.borrow_and_update().clone();
                    self.attach(session).await;
                }
                Some(heard) = heard.recv() => self.hear(heard).await,
                received = commands.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        return;
                    }
                    for command in batch.drain(..) {
                        if !self.handle(command).await {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// False when the queue is gone.
    async fn handle(&mut self, command: PumpCommand) -> bool {
        if self.pump.is_none() && self.gateways.runs_queues() {
            self.hand_over().await;
        }
        if let Some(pump) = &self.pump {
            // An actor that has ended belongs to a queue that was deleted.
            return pump.send(command).await.is_ok();
        }
        match command {
            PumpCommand::Consume { consumer, answer } => self.consume(consumer, answer),
            PumpCommand::Work { settled, credit, .. } => self.work(settled, credit).await,
            PumpCommand::Cancel { consumer, answer } => {
                self.leave(move |one| one.id == consumer, Leaving::Consumer(consumer), answer);
            }
            PumpCommand::Release { link, channel, answer } => {
                let is_meant =
                    move |one: &NewConsumer| one.link == link && channel.is_none_or(|channel| one.channel == channel);
                self.leave(is_meant, Leaving::Channel(link, channel), answer);
            }
            PumpCommand::Get { link, channel, base, answer } => self.get(link, channel, base, answer),
            PumpCommand::Counts { answer } => self.count(answer),
            PumpCommand::Purge { answer } => {
                // A purge is a request for the topology, and done where that is.
                let _ = answer.send(Err(gone()));
            }
            PumpCommand::Stop { answer } => {
                self.cancel_all();
                let _ = answer.send(Vec::new());
                return false;
            }
            PumpCommand::WatchExpiry => {
                self.watches_expiry = true;
                self.say(Say::WatchExpiry { at: self.at.clone() }).await;
            }
            PumpCommand::Sync { answer } => drop(answer.send(())),
            // The leading gateway does it by itself.
            PumpCommand::Trim => {}
            PumpCommand::Apply { answer } | PumpCommand::Learn { answer } => drop(answer.send(Ok(()))),
        }
        true
    }

    /// Every consumer hears that its queue is gone, after its last delivery.
    fn cancel_all(&mut self) {
        let consumers = std::mem::take(&mut self.consumers);
        for (id, consumer) in consumers {
            self.gateways.shut_out(id);
            if !consumer.goes {
                self.cancelled(consumer.new);
            }
        }
    }

    /// A consumer hears that its queue is gone.
    fn cancelled(&mut self, gone: NewConsumer) {
        let NewConsumer { channel, tag, events, link, .. } = gone;
        let outlet = self.outlets.entry(link).or_insert_with(|| Outlet::new(events));
        outlet.pass(Passing::Event(Event::ConsumerCancelled { channel, consumer_tag: tag }));
    }

    async fn say(&self, say: Say) {
        if let Some(session) = &self.session {
            session.say(say).await;
        }
    }

    fn consume(&mut self, new: NewConsumer, answer: oneshot::Sender<Result<(), AmqpError>>) {
        let id = new.id;
        let say = self.comes(&new, new.ready_ns);
        self.gateways.let_in(id, self.inlet.clone());
        self.consumers.insert(id, Consumer { new, credit: 0, goes: false, waiting: Arc::default() });
        let (gateways, queue, inlet) = (self.gateways.clone(), self.queue.clone(), self.inlet.clone());
        tokio::spawn(async move {
            let result = match gateways.ask(&say).await {
                Ok(Some((Answer::Done, _))) => Ok(()),
                // The relay has brought it to the queue's actor.
                Ok(None) => Ok(()),
                Ok(Some((refusal, _))) => Err(refusal.into_error()),
                Err(error) => Err(error),
            };
            if result.is_err() {
                let _ = inlet.send(FromLeader::Refused { consumer: id });
            }
            queue.touch();
            let _ = answer.send(result);
        });
    }

    fn comes(&self, new: &NewConsumer, ready_ns: Option<u64>) -> Say {
        let NewConsumer { id, link, channel, exclusive, priority, .. } = *new;
        let tag = new.client_tag.to_string();
        Say::Consume { at: self.at.clone(), consumer: id, link, channel, tag, exclusive, priority, ready_ns }
    }

    async fn work(&mut self, settled: Vec<(u64, Outcome)>, credit: Vec<(u64, u32)>) {
        for (id, amount) in &credit {
            if let Some(consumer) = self.consumers.get_mut(id) {
                consumer.credit += u64::from(*amount);
            }
        }
        // What is settled while nobody leads comes again there, and is settled then.
        let settled = settled.into_iter().map(|(sequence, outcome)| (sequence, outcome.into())).collect();
        self.say(Say::Work { at: self.at.clone(), settled, credit }).await;
    }

    /// Consumers go, and what a channel has goes back; answered when their last deliveries have reached their links.
    fn leave(&mut self, is_meant: impl Fn(&NewConsumer) -> bool, leaving: Leaving, answer: oneshot::Sender<LastGone>) {
        let mut gone = Vec::new();
        for (id, consumer) in self.consumers.iter_mut().filter(|(_, consumer)| is_meant(&consumer.new)) {
            consumer.goes = true;
            gone.push(*id);
        }
        let at = self.at.clone();
        let say = match leaving {
            Leaving::Consumer(consumer) => Say::Cancel { at, consumer },
            Leaving::Channel(link, channel) => Say::Release { at, link, channel },
        };
        let (gateways, inlet) = (self.gateways.clone(), self.inlet.clone());
        tokio::spawn(async move {
            // Without an answer this gateway leads, and its queue's actor has not heard of these consumers.
            let _ = gateways.ask(&say).await;
            for consumer in gone {
                let (done, reached) = oneshot::channel();
                if inlet.send(FromLeader::Gone { consumer, done }).is_ok() {
                    let _ = reached.await;
                }
            }
            // The leading gateway deletes what goes with its last consumer.
            let _ = answer.send(LastGone(false));
        });
    }

    fn get(
        &mut self,
        link: u64,
        channel: ChannelId,
        base: u64,
        answer: oneshot::Sender<Result<Option<Got>, AmqpError>>,
    ) {
        let say = Say::Get { at: self.at.clone(), link, channel };
        let (gateways, queue) = (self.gateways.clone(), self.queue.clone());
        tokio::spawn(async move {
            match gateways.ask(&say).await {
                Ok(Some((Answer::Got(got), body))) => {
                    let got = got.map(|fields| {
                        let delivery =
                            delivery(base, fields.sequence, fields.redelivered, &fields.headers, body, &queue);
                        Got { delivery, message_count: fields.message_count }
                    });
                    let _ = answer.send(Ok(got));
                }
                Ok(Some((other, _))) => drop(answer.send(Err(other.into_error()))),
                Ok(None) => drop(queue.pump().await.send(PumpCommand::Get { link, channel, base, answer }).await),
                Err(error) => drop(answer.send(Err(error))),
            }
        });
    }

    fn count(&self, answer: oneshot::Sender<Result<Counts, AmqpError>>) {
        let say = Say::Counts { at: self.at.clone() };
        let (gateways, queue) = (self.gateways.clone(), self.queue.clone());
        tokio::spawn(async move {
            let counts = match gateways.ask(&say).await {
                Ok(Some((Answer::Counts { ready, unacknowledged, consumers }, _))) => {
                    Ok(Counts { ready, unacknowledged, consumers })
                }
                Ok(Some((other, _))) => Err(other.into_error()),
                Ok(None) => return drop(queue.pump().await.send(PumpCommand::Counts { answer }).await),
                Err(error) => Err(error),
            };
            let _ = answer.send(counts);
        });
    }

    /// Another conversation: with another gateway that leads, or anew with the same one. None of the consumers is known in it.
    async fn attach(&mut self, session: Option<Arc<Session>>) {
        self.session = session;
        self.take_back().await;
        let Some(session) = self.session.clone() else { return };
        if self.watches_expiry {
            session.say(Say::WatchExpiry { at: self.at.clone() }).await;
        }
        for consumer in self.consumers.values().filter(|consumer| !consumer.goes) {
            session.say(self.comes(&consumer.new, None)).await;
            let credit = vec![(consumer.new.id, u32::try_from(consumer.credit).unwrap_or(u32::MAX))];
            session.say(Say::Work { at: self.at.clone(), settled: Vec::new(), credit }).await;
        }
    }

    /// Drops deliveries that no link has taken: they come again, and would say then that they had come before.
    async fn take_back(&mut self) {
        for (_, outlet) in self.outlets.drain() {
            outlet.stop().await;
        }
        for consumer in self.consumers.values_mut() {
            consumer.credit += consumer.waiting.swap(0, Ordering::AcqRel);
        }
    }

    /// This gateway leads: the queue's actor is here from now on.
    async fn hand_over(&mut self) {
        self.session = None;
        self.take_back().await;
        let pump = pump::start(self.queue.clone());
        if self.watches_expiry {
            let _ = pump.send(PumpCommand::WatchExpiry).await;
        }
        let consumers = std::mem::take(&mut self.consumers);
        for (id, consumer) in consumers {
            self.gateways.shut_out(id);
            if consumer.goes {
                continue;
            }
            let (answer, taken) = oneshot::channel();
            let new = NewConsumer { ready_ns: None, ..consumer.new.clone() };
            let _ = pump.send(PumpCommand::Consume { consumer: new, answer }).await;
            match taken.await {
                Ok(Ok(())) => {
                    let credit = vec![(id, u32::try_from(consumer.credit).unwrap_or(u32::MAX))];
                    let _ = pump.send(PumpCommand::Work { settled: Vec::new(), credit, at_ns: now_ns() }).await;
                }
                _ => self.cancelled(consumer.new),
            }
        }
        self.pump = Some(pump);
    }

    async fn hear(&mut self, heard: FromLeader) {
        match heard {
            FromLeader::Delivery { session, consumer, sequence, redelivered, headers, body } => {
                if self.session.as_ref().is_none_or(|now| now.number != session) {
                    return;
                }
                let Some(consumer) = self.consumers.get_mut(&consumer) else { return };
                consumer.credit = consumer.credit.saturating_sub(1);
                let delivery = delivery(consumer.new.base, sequence, redelivered, &headers, body, &self.queue);
                let (channel, consumer_tag) = (consumer.new.channel, consumer.new.tag.clone());
                let event = Event::Delivery { channel, consumer_tag, delivery: Box::new(delivery) };
                consumer.waiting.fetch_add(1, Ordering::AcqRel);
                let events = || Outlet::new(consumer.new.events.clone());
                let outlet = self.outlets.entry(consumer.new.link).or_insert_with(events);
                outlet.pass(Passing::Delivery(event, consumer.waiting.clone()));
            }
            FromLeader::Cancelled { session, consumer } => {
                if self.session.as_ref().is_none_or(|now| now.number != session) {
                    return;
                }
                let Some(gone) = self.consumers.remove(&consumer) else { return };
                self.gateways.shut_out(consumer);
                self.cancelled(gone.new);
            }
            FromLeader::Gone { consumer, done } => {
                self.gateways.shut_out(consumer);
                let Some(gone) = self.consumers.remove(&consumer) else { return };
                let link = gone.new.link;
                if let Some(outlet) = self.outlets.get(&link) {
                    outlet.pass(Passing::End(done));
                }
                // What is in it still gets out.
                if self.consumers.values().all(|other| other.new.link != link) {
                    self.outlets.remove(&link);
                }
            }
            FromLeader::Refused { consumer } => {
                self.gateways.shut_out(consumer);
                self.consumers.remove(&consumer);
                // A conversation that began meanwhile may have taken it along.
                self.say(Say::Cancel { at: self.at.clone(), consumer }).await;
            }
        }
    }
}

/// Who goes.
enum Leaving {
    Consumer(u64),
    Channel(u64, Option<ChannelId>),
}

fn delivery(base: u64, sequence: u64, redelivered: bool, headers: &Headers, body: Bytes, queue: &Queue) -> Delivery {
    let message = wire::message_of(headers, body, queue.name());
    let id = DeliveryId(base | (sequence & SEQUENCE_MASK));
    Delivery { id, redelivered, ack_timeout: queue.ack_timeout(), message }
}
