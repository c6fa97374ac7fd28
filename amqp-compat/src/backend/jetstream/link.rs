//! The actor of one AMQP connection: its commands in, its events out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use amq_protocol::types::ShortString;
use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};
use nats_bridge::publish::{Confirm, Confirms, OrderedInbox};
use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot, watch};

use super::alarm::Resource;
use super::dead_letters::{self, Routed, hide};
use super::delays::through;
use super::gateways::Gateways;
use super::log;
use super::memory::now_ns;
use super::publisher::{Also, Publisher, Settled};
use super::pump::{Cancelled, LastGone, NewConsumer, PumpCommand, SEQUENCE_BITS};
use super::queue::{Queue, gone};
use super::users::Access;
use super::vhost::{VhostRuntime, not_shared};
use crate::backend::reply_to::{self, ReplyConsumers};
use crate::backend::{
    ChannelId, Command, Consume, DeliveryId, Event, LINK_CAPACITY, Link, Message, Outcome, Publish, PublishOutcome,
    Reply, Topology,
};
use crate::error::{AmqpError, ReplyCode};
use crate::model::access::{Right, Thing};
use crate::model::consumer::ConsumerArguments;
use crate::model::dead_letter::split_bcc;
use crate::model::queue::{Owner, QueueKind, display};
use crate::model::vhost::Route;

static NEXT_LINK: AtomicU64 = AtomicU64::new(1);
static NEXT_CONSUMER: AtomicU64 = AtomicU64::new(1);

/// A consumer's number: unique in the process and growing.
pub(crate) fn next_consumer() -> u64 {
    NEXT_CONSUMER.fetch_add(1, Ordering::Relaxed)
}

const BATCH: usize = 256;
const CONFIRMS: usize = 1024;
const TICK: Duration = Duration::from_millis(100);
/// How long a closing link waits for confirms: a client that publishes without confirms and leaves has published.
const LAST_CONFIRMS: Duration = Duration::from_secs(5);
/// The number of a message that no client waits for: clients' publishes count from 1.
const NOBODYS: u64 = 0;
const MAX_ATTACHMENTS: usize = 1 << (64 - SEQUENCE_BITS);

struct LinkActor {
    owner: Owner,
    /// Whether messages may be routed, where several gateways share the topology.
    routes: Option<watch::Receiver<bool>>,
    access: Access,
    vhost: Arc<VhostRuntime>,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    /// Commands that were taken in and wait for confirms.
    queued: VecDeque<Command>,
    publisher: Publisher,
    /// Whether JetStream has room.
    alarm: watch::Receiver<Option<Resource>>,
    /// Whether this client's publishes wait for room.
    waits_for_room: bool,
    /// Whether the connection to NATS is lost.
    is_cut_off: bool,
    /// Whether the client has been told that it is blocked.
    is_blocked: bool,
    replies: ReplyConsumers,
    /// Queues that this link has consumed or got from; an index is never used again, since delivery ids hold it.
    attached: Vec<Option<Attached>>,
    consumers: HashMap<(ChannelId, ShortString), Consumer>,
    /// Channels that have failed: what the client sent before it knew is not done.
    failed: HashSet<ChannelId>,
    /// Consumers of a queue that this link has deleted: they hear of it after the reply, as from RabbitMQ.
    cancelled: Vec<Cancelled>,
    route: Route,
}

struct Attached {
    queue: Arc<Queue>,
    pump: mpsc::Sender<PumpCommand>,
    settled: Vec<(u64, Outcome)>,
    credit: Vec<(u64, u32)>,
    /// When the first of that credit was given, in nanoseconds since 1970.
    credit_ns: u64,
}

impl Attached {
    fn give_credit(&mut self, consumer: u64, amount: u32) {
        if self.credit.is_empty() {
            self.credit_ns = now_ns();
        }
        self.credit.push((consumer, amount));
    }
}

struct Consumer {
    id: u64,
    attachment: usize,
}

/// Starts the actor of a link.
pub(crate) fn start(vhost: Arc<VhostRuntime>, access: Access, inbox: OrderedInbox, confirms: Confirms) -> Link {
    let (commands, command_receiver) = mpsc::channel(LINK_CAPACITY);
    let (event_sender, events) = mpsc::channel(LINK_CAPACITY);
    let publisher = Publisher::new(inbox, vhost.config.clone());
    let alarm = vhost.config.alarm.watch();
    let replies = ReplyConsumers::new(vhost.replies.clone(), event_sender.clone());
    let number = NEXT_LINK.fetch_add(1, Ordering::Relaxed);
    let owner = vhost.config.gateways.as_ref().map_or(Owner(number), |gateways| gateways.owner(number));
    let routes = vhost.config.gateways.as_ref().map(Gateways::routes);
    let actor = LinkActor {
        owner,
        routes,
        access,
        vhost,
        commands: command_receiver,
        events: event_sender,
        queued: VecDeque::new(),
        publisher,
        alarm,
        waits_for_room: false,
        is_cut_off: false,
        is_blocked: false,
        replies,
        attached: Vec::new(),
        consumers: HashMap::new(),
        failed: HashSet::new(),
        cancelled: Vec::new(),
        route: Route::default(),
    };
    tokio::spawn(actor.run(confirms));
    Link { commands, events }
}

impl LinkActor {
    async fn run(mut self, mut confirms: Confirms) {
        let mut connection = self.vhost.bridge.connection();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        let mut confirmed = Vec::with_capacity(CONFIRMS);
        let config = self.vhost.config.clone();
        let lease_lost = config.lease_lost();
        tokio::pin!(lease_lost);
        let vhost = self.vhost.clone();
        let gone = vhost.gone.cancelled();
        tokio::pin!(gone);
        let why = loop {
            tokio::select! {
                error = &mut lease_lost => break Some(error),
                () = &mut gone => break Some(vhost.is_deleted()),
                received = self.commands.recv_many(&mut batch, BATCH), if self.queued.is_empty() => {
                    if received == 0 {
                        break None;
                    }
                    self.queued.extend(batch.drain(..));
                }
                count = confirms.next_many(&mut confirmed, CONFIRMS) => {
                    if count == 0 {
                        break Some(closed());
                    }
                    self.confirmed(&mut confirmed).await;
                }
                changed = connection.changed() => {
                    let now = *connection.borrow_and_update();
                    if changed.is_err() || now.closed {
                        break Some(closed());
                    }
                    self.is_cut_off = !now.connected;
                    self.tell_blocked().await;
                }
                () = self.publisher.available() => {
                    let settled = self.publisher.resend(Instant::now()).await;
                    self.report(settled).await;
                }
                () = may_route_again(&mut self.routes) => {}
                () = self.access.changed() => {
                    if let Err(error) = self.access.renew() {
                        break Some(error);
                    }
                }
                // The config has its other end.
                Ok(()) = self.alarm.changed() => {}
                _ = tick.tick(), if self.publisher.is_outstanding(None) || self.waits_for_room => {
                    if self.waits_for_room && self.commands.is_closed() {
                        self.give_up_publishing().await;
                        break None;
                    }
                    let settled = self.publisher.resend(Instant::now()).await;
                    self.report(settled).await;
                }
            }
            self.work().await;
        };
        if let Some(error) = why {
            let _ = self.events.send(Event::Closed { error }).await;
        } else {
            self.await_confirms(&mut confirms).await;
        }
        // The queues are another gateway's then: its deliveries are not to be taken back.
        if !config.is_overtaken() {
            self.close().await;
        }
    }

    /// Does the queued commands, up to one that has to wait for confirms.
    async fn work(&mut self) {
        let is_full = self.alarm.borrow_and_update().is_some();
        while let Some(command) = self.queued.pop_front() {
            // What was published on a channel is in its queues before a request on it looks at them.
            let must_wait = match &command {
                Command::Publish(_) if is_full => {
                    self.waits_for_room = true;
                    true
                }
                Command::Publish(_) => !self.publisher.has_room() || !self.may_route(),
                command if command.is_request() => self.publisher.is_outstanding(Some(command.channel())),
                _ => false,
            };
            if must_wait {
                self.queued.push_front(command);
                break;
            }
            self.handle(command).await;
        }
        self.flush().await;
        self.waits_for_room |= self.publisher.waits_for_room();
        self.tell_blocked().await;
    }

    /// Tells the client when its publishes have to wait, and when no more.
    async fn tell_blocked(&mut self) {
        if !(self.is_blocked || self.is_cut_off || self.waits_for_room) {
            return;
        }
        // Not marked as seen: what waits is looked at again when it has changed since.
        let alarm = *self.alarm.borrow();
        self.waits_for_room &= alarm.is_some();
        let reason = match alarm {
            _ if self.is_cut_off => Some("the connection to NATS is lost"),
            Some(resource) if self.waits_for_room => Some(resource.reason()),
            _ => None,
        };
        let event = match (self.is_blocked, reason) {
            (false, Some(reason)) => Event::Blocked { reason: reason.into() },
            (true, None) => Event::Unblocked,
            (false, None) | (true, Some(_)) => return,
        };
        self.is_blocked = reason.is_some();
        let _ = self.events.send(event).await;
    }

    /// The client has gone while its publishes wait for room: nobody was told that they are stored. What it did on other
    /// channels is done.
    async fn give_up_publishing(&mut self) {
        let mut lost = 0;
        while let Some(command) = self.queued.pop_front().or_else(|| self.commands.try_recv().ok()) {
            match command {
                Command::Publish(publish) => {
                    lost += 1;
                    self.failed.insert(publish.channel);
                }
                command => self.handle(command).await,
            }
        }
        tracing::warn!(vhost = &*self.vhost.name, lost, "a connection was closed while its publishes waited for room");
    }

    async fn handle(&mut self, command: Command) {
        match command {
            Command::OpenChannel { channel } => {
                self.failed.remove(&channel);
                self.reply(channel, Ok(Reply::Done)).await;
            }
            Command::CloseChannel { channel } => {
                self.flush().await;
                self.release(Some(channel)).await;
                self.replies.close(channel);
                self.consumers.retain(|(other, _), _| *other != channel);
                self.forget_readers();
                self.failed.remove(&channel);
                self.reply(channel, Ok(Reply::Done)).await;
            }
            // The session waits for its end and then closes the channel; the client never hears of it.
            command if command.is_request() && self.failed.contains(&command.channel()) => {
                let error = AmqpError::new(ReplyCode::InternalError, "the channel has failed before");
                self.reply(command.channel(), Err(error)).await;
            }
            Command::Publish(publish) => self.publish(*publish).await,
            Command::Settle { channel, deliveries, outcome } => {
                if self.failed.contains(&channel) {
                    return;
                }
                if let Some(error) = self.refuse_outcome(&deliveries, outcome) {
                    self.failed.insert(channel);
                    let _ = self.events.send(Event::ChannelFailed { channel, error }).await;
                    return;
                }
                if outcome == Outcome::Requeue {
                    // What was given before is used before it comes back.
                    self.flush().await;
                }
                self.settle(&deliveries, outcome);
            }
            Command::Credit { channel, consumer_tag, amount } => {
                if let Some(Consumer { id, attachment }) = self.consumers.get(&(channel, consumer_tag))
                    && let Some(Some(attached)) = self.attached.get_mut(*attachment)
                {
                    attached.give_credit(*id, amount);
                }
            }
            Command::Topology { channel, request } => {
                self.flush().await;
                let reply = self.topology(request).await;
                self.reply(channel, reply).await;
                self.cancelled.drain(..).for_each(Cancelled::tell);
            }
            Command::Consume { channel, consume } => {
                self.flush().await;
                if reply_to::is_pseudo_queue(consume.queue.as_str()) {
                    let reply = self.replies.consume(channel, &consume).map(|()| Reply::Done);
                    return self.reply(channel, reply).await;
                }
                match self.consume(channel, consume).await {
                    Ok((consumer, credit)) => {
                        self.reply(channel, Ok(Reply::Done)).await;
                        if let Some(Some(attached)) = self.attached.get_mut(consumer.attachment) {
                            attached.give_credit(consumer.id, credit);
                        }
                    }
                    Err(error) => self.reply(channel, Err(error)).await,
                }
            }
            Command::Cancel { channel, consumer_tag } => {
                self.flush().await;
                self.cancel(channel, consumer_tag).await;
                self.reply(channel, Ok(Reply::Done)).await;
            }
            Command::Get { channel, queue } => {
                self.flush().await;
                let reply = self.get(channel, queue.as_str()).await;
                self.reply(channel, reply).await;
            }
        }
    }

    /// Whether the topology that is here is in force.
    fn may_route(&self) -> bool {
        self.routes.as_ref().is_none_or(|routes| *routes.borrow())
    }

    async fn topology(&mut self, request: Topology) -> Result<Reply, AmqpError> {
        if let Topology::QueueDeclare(declare) = &request {
            if let Some(gateways) = &self.vhost.config.gateways
                && let Some(reply) = gateways.declare_reply_name(&self.vhost, declare.queue.as_str()).await
            {
                return reply;
            }
            if let Some(reply) = self.replies.declare(&self.vhost.name, declare.queue.as_str()) {
                return reply;
            }
        }
        self.access.check_topology(&self.vhost, &request)?;
        let (reply, cancelled) = match &self.vhost.config.gateways {
            Some(gateways) => gateways.change(&self.vhost, request, self.owner).await?,
            None => self.vhost.change(request, self.owner).await?,
        };
        self.cancelled.extend(cancelled);
        Ok(reply)
    }

    async fn publish(&mut self, publish: Publish) {
        let Publish { channel, seq, mandatory, mut message } = publish;
        if self.failed.contains(&channel) {
            return self.confirm(Settled { channel, seq, outcome: PublishOutcome::Failed }).await;
        }
        let result = match self.destinations(channel, &mut message) {
            Ok(queues) if queues.is_empty() => {
                if mandatory {
                    self.give_back(channel, message).await;
                }
                return self.confirm(Settled { channel, seq, outcome: PublishOutcome::Stored }).await;
            }
            Ok(queues) => {
                // What is delayed alone has no route yet, as in RabbitMQ: it comes back, and is delivered in its time.
                if mandatory && self.route.queues.is_empty() {
                    self.give_back(channel, message.clone()).await;
                }
                self.store(channel, seq, message, queues).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            self.failed.insert(channel);
            let _ = self.events.send(Event::ChannelFailed { channel, error }).await;
            self.confirm(Settled { channel, seq, outcome: PublishOutcome::Failed }).await;
        }
    }

    /// Returns a mandatory message that has no route.
    async fn give_back(&self, channel: ChannelId, mut message: Message) {
        if let Some((properties, _)) = split_bcc(&message.properties) {
            message.properties = properties;
        }
        let error = AmqpError::new(ReplyCode::NoRoute, "NO_ROUTE");
        let _ = self.events.send(Event::Returned { channel, error, message: Box::new(message) }).await;
    }

    /// The queues that a message goes to; those who wait for it directly have it then.
    fn destinations(
        &mut self,
        channel: ChannelId,
        message: &mut Message,
    ) -> Result<SmallVec<[Arc<Queue>; 4]>, AmqpError> {
        self.access.check(Right::Write, Thing::Exchange, message.exchange.as_str())?;
        if message.properties.reply_to().is_some() {
            // In RabbitMQ's order: a client sees the first fault.
            self.vhost.state().model.publishable(message.exchange.as_str())?;
            self.replies.name(channel, &mut message.properties)?;
        }
        let queues = self.vhost.destinations(
            &message.properties,
            message.exchange.as_str(),
            message.routing_key.as_str(),
            self.access.must_be(),
            &mut self.route,
        )?;
        self.replies.deliver(message);
        Ok(queues)
    }

    /// Sends a message to the queues that take it.
    async fn store(
        &mut self,
        channel: ChannelId,
        seq: u64,
        mut message: Message,
        mut queues: SmallVec<[Arc<Queue>; 4]>,
    ) -> Result<(), AmqpError> {
        let mut bcc = Vec::new();
        if let Some((properties, keys)) = split_bcc(&message.properties) {
            (message.properties, bcc) = (properties, keys);
        }
        if message.properties.expiration().is_some() {
            for queue in &queues {
                queue.watch_expiry().await;
            }
        }
        if queues.iter().any(|queue| queue.is_expiring()) {
            // Who is ready for a message that lives for no time is known before it comes.
            self.flush().await;
        }
        let all = queues.len();
        let delayed_by = through(&self.route.delayed_by, message.exchange.as_str());
        let passed_on = dead_letters::admit(&mut queues, &message, &bcc);
        let now = Instant::now();
        for Routed { letter, queues, delayed_by } in passed_on {
            let also = Also { bcc: hide(&letter.bcc), delayed_by, ..Also::default() };
            // Nobody waits for these.
            if let Err(error) = self.publisher.publish(channel, NOBODYS, letter.message, also, queues, now).await {
                tracing::error!(%error, "a message that a full queue passes on is too large with its x-death header");
            }
        }
        let failed = queues.len() < all;
        if queues.is_empty() {
            self.confirm(Settled { channel, seq, outcome: PublishOutcome::Failed }).await;
            return Ok(());
        }
        let also = Also { bcc: hide(&bcc), delayed_by, failed, ..Also::default() };
        if let Some(settled) = self.publisher.publish(channel, seq, message, also, queues, now).await? {
            self.confirm(settled).await;
        }
        Ok(())
    }

    /// 540 for what cannot be done with a message of a stream queue. One of a consumer that is gone goes by itself: the
    /// session gives back what came too late for a cancelled one.
    fn refuse_outcome(&self, deliveries: &[DeliveryId], outcome: Outcome) -> Option<AmqpError> {
        if outcome == Outcome::Ack {
            return None;
        }
        let attached = |id: &DeliveryId| self.attached.get(usize::try_from(id.0 >> SEQUENCE_BITS).ok()?)?.as_ref();
        let attached = deliveries.iter().filter_map(attached).find(|attached| attached.queue.is_log())?;
        Some(log::not_supported("basic.nack and basic.reject", &attached.queue))
    }

    /// Forgets the attachments of consumers of stream queues that are gone.
    fn forget_readers(&mut self) {
        let (attached, consumers) = (&mut self.attached, &self.consumers);
        for (index, attached) in attached.iter_mut().enumerate() {
            let is_log = attached.as_ref().is_some_and(|attached| attached.queue.is_log());
            if is_log && !consumers.values().any(|consumer| consumer.attachment == index) {
                *attached = None;
            }
        }
    }

    fn settle(&mut self, deliveries: &[DeliveryId], outcome: Outcome) {
        for DeliveryId(id) in deliveries {
            let attachment = usize::try_from(id >> SEQUENCE_BITS).unwrap_or(usize::MAX);
            if let Some(Some(attached)) = self.attached.get_mut(attachment) {
                attached.settled.push((id & ((1 << SEQUENCE_BITS) - 1), outcome));
            }
        }
    }

    async fn consume(&mut self, channel: ChannelId, consume: Consume) -> Result<(Consumer, u32), AmqpError> {
        self.access.check(Right::Read, Thing::Queue, consume.queue.as_str())?;
        let queue = self.vhost.queue_for(consume.queue.as_str(), self.owner)?;
        let what = display(&queue.vhost, queue.name());
        if queue.is_log() && self.vhost.config.gateways.is_some() {
            return Err(not_shared(&queue.vhost, queue.name()));
        }
        if queue.is_log() && consume.prefetch == 0 {
            let text = format!("consumer prefetch count is not set for '{what}'");
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
        }
        if queue.is_log() && consume.no_ack {
            return Err(log::not_supported("automatic acknowledgement", &queue));
        }
        let kind = queue.definition.settings.kind;
        let ConsumerArguments { priority, offset } = ConsumerArguments::read(&consume.arguments, kind, &what)?;
        let attachment = self.attach(queue).await?;
        let id = next_consumer();
        let consumer = NewConsumer {
            id,
            link: self.owner.0,
            channel,
            tag: consume.consumer_tag.clone(),
            client_tag: consume.consumer_tag.clone(),
            exclusive: consume.exclusive,
            priority,
            offset,
            ready_ns: (consume.credit > 0).then(now_ns),
            base: (attachment as u64) << SEQUENCE_BITS,
            events: self.events.clone(),
        };
        let started = self.ask(attachment, |answer| PumpCommand::Consume { consumer, answer }).await;
        if !matches!(started, Some(Ok(()))) {
            self.forget_readers();
        }
        started.ok_or_else(gone)??;
        self.consumers.insert((channel, consume.consumer_tag), Consumer { id, attachment });
        Ok((Consumer { id, attachment }, consume.credit))
    }

    async fn cancel(&mut self, channel: ChannelId, consumer_tag: ShortString) {
        if self.replies.cancel(channel, &consumer_tag) {
            return;
        }
        let Some(Consumer { id, attachment }) = self.consumers.remove(&(channel, consumer_tag)) else { return };
        let last = self.ask(attachment, |answer| PumpCommand::Cancel { consumer: id, answer }).await;
        if last == Some(LastGone(true)) {
            self.last_consumer_gone(attachment).await;
        }
        self.forget_readers();
    }

    async fn get(&mut self, channel: ChannelId, queue: &str) -> Result<Reply, AmqpError> {
        self.access.check(Right::Read, Thing::Queue, queue)?;
        let queue = self.vhost.queue_for(queue, self.owner)?;
        if queue.is_log() {
            return Err(log::not_supported("basic.get", &queue));
        }
        let settings = &queue.definition.settings;
        if settings.single_active_consumer && settings.kind == QueueKind::Quorum {
            return Err(AmqpError::new(
                ReplyCode::ResourceLocked,
                format!(
                    "cannot obtain access to locked {}. basic.get operations are not supported by quorum queues with \
                     single active consumer",
                    display(&queue.vhost, queue.name())
                ),
            ));
        }
        queue.touch();
        let attachment = self.attach(queue).await?;
        let (link, base) = (self.owner.0, (attachment as u64) << SEQUENCE_BITS);
        let got = self.ask(attachment, |answer| PumpCommand::Get { link, channel, base, answer }).await;
        Ok(Reply::Got(got.ok_or_else(gone)??.map(Box::new)))
    }

    async fn last_consumer_gone(&mut self, attachment: usize) {
        let Some(Some(attached)) = self.attached.get(attachment) else { return };
        if attached.queue.definition.auto_delete {
            match &self.vhost.config.gateways {
                Some(gateways) => gateways.last_consumer_gone(&attached.queue).await,
                None => self.discard(attached.queue.clone()).await,
            }
        }
    }

    async fn discard(&self, queue: Arc<Queue>) {
        if let Err(error) = self.vhost.discard_queue(&queue).await {
            tracing::error!(queue = queue.name(), %error, "a queue that should go could not be deleted");
        }
    }

    /// The link's attachment to a queue, made when there is none.
    async fn attach(&mut self, queue: Arc<Queue>) -> Result<usize, AmqpError> {
        let known = self.attached.iter().position(|a| a.as_ref().is_some_and(|a| Arc::ptr_eq(&a.queue, &queue)));
        // Every consumer of a stream queue has its own, so that it is known whose delivery a name is.
        if let Some(known) = known.filter(|_| !queue.is_log()) {
            return Ok(known);
        }
        if self.attached.len() >= MAX_ATTACHMENTS {
            return Err(AmqpError::new(ReplyCode::ResourceError, "this connection has consumed from too many queues"));
        }
        for attached in &mut self.attached {
            if attached.as_ref().is_some_and(|attached| attached.queue.is_deleted()) {
                *attached = None;
            }
        }
        let pump = queue.pump().await.clone();
        self.attached.push(Some(Attached { queue, pump, settled: Vec::new(), credit: Vec::new(), credit_ns: 0 }));
        Ok(self.attached.len() - 1)
    }

    /// Asks a queue's actor; `None` when the queue is gone.
    async fn ask<T>(&self, attachment: usize, command: impl FnOnce(oneshot::Sender<T>) -> PumpCommand) -> Option<T> {
        let attached = self.attached.get(attachment)?.as_ref()?;
        let (answer, answered) = oneshot::channel();
        attached.pump.send(command(answer)).await.ok()?;
        answered.await.ok()
    }

    /// Hands settlements and credit to the queues.
    async fn flush(&mut self) {
        for attached in self.attached.iter_mut().flatten() {
            if attached.settled.is_empty() && attached.credit.is_empty() {
                continue;
            }
            let settled = std::mem::take(&mut attached.settled);
            let credit = std::mem::take(&mut attached.credit);
            // The actor of a deleted queue is gone, and with it what there was to settle.
            let _ = attached.pump.send(PumpCommand::Work { settled, credit, at_ns: attached.credit_ns }).await;
        }
    }

    async fn release(&mut self, channel: Option<ChannelId>) {
        let link = self.owner.0;
        for attachment in 0..self.attached.len() {
            let last = self.ask(attachment, |answer| PumpCommand::Release { link, channel, answer }).await;
            if last == Some(LastGone(true)) {
                self.last_consumer_gone(attachment).await;
            }
        }
    }

    async fn confirmed(&mut self, confirmed: &mut Vec<Confirm>) {
        let now = Instant::now();
        for confirm in confirmed.drain(..) {
            if let Some(settled) = self.publisher.confirmed(confirm, now) {
                self.confirm(settled).await;
            }
        }
    }

    async fn report(&self, settled: Vec<Settled>) {
        for settled in settled {
            self.confirm(settled).await;
        }
    }

    // A send to events fails only when the session has gone; the commands end with it.

    async fn confirm(&self, Settled { channel, seq, outcome }: Settled) {
        if seq == NOBODYS {
            return;
        }
        let _ = self.events.send(Event::Confirm { channel, seq, outcome }).await;
    }

    async fn reply(&self, channel: ChannelId, reply: Result<Reply, AmqpError>) {
        let _ = self.events.send(Event::Reply { channel, reply }).await;
    }

    async fn await_confirms(&mut self, confirms: &mut Confirms) {
        let wait = async {
            let mut confirmed = Vec::with_capacity(CONFIRMS);
            while self.publisher.is_outstanding(None) {
                let count = tokio::select! {
                    count = confirms.next_many(&mut confirmed, CONFIRMS) => count,
                    () = self.publisher.available() => {
                        self.publisher.resend(Instant::now()).await;
                        continue;
                    }
                };
                let now = Instant::now();
                for confirm in confirmed.drain(..) {
                    self.publisher.confirmed(confirm, now);
                }
                if count == 0 {
                    break;
                }
            }
        };
        if tokio::time::timeout(LAST_CONFIRMS, wait).await.is_err() {
            tracing::warn!("a connection was closed before all that it published was confirmed");
        }
    }

    async fn close(mut self) {
        self.flush().await;
        self.release(None).await;
        for queue in self.vhost.queues_of(self.owner) {
            self.discard(queue).await;
        }
    }
}

/// Waits until what may be routed changes; for ever where nobody else changes the topology.
async fn may_route_again(routes: &mut Option<watch::Receiver<bool>>) {
    let changed = match routes {
        Some(routes) => routes.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}

fn closed() -> AmqpError {
    AmqpError::new(ReplyCode::ConnectionForced, "the connection to NATS was closed")
}
