//! The client's requests over two sides: who is asked first, and what the client is told.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use amq_protocol::types::{FieldTable, ShortString};
use amqp_compat::backend::{
    ChannelId, Command, Consume, Delivery, DeliveryId, Event, Got, Outcome, PublishOutcome, QueueDeclare, Reply,
    Topology,
};
use amqp_compat::error::{AmqpError, ReplyCode};

use super::channel::{Asked, Channel, Consumer, Open, Request};
use super::engine::{Engine, report_held};
use super::half::Presence;
use super::lane::Purpose;
use super::merge::Merge;
use super::stamp;
use crate::control_api::Phase;
use crate::fence::{MessageKey, QueueName};
use crate::ownership::Side;

impl Engine {
    /// How long a client waits for NATS in `observe` and `shadow`, when NATS may hold something; then NATS is given up
    /// for this link and opened again.
    pub const SHADOW_WAIT: Duration = Duration::from_secs(1);
    /// How long a client's request waits for the side that follows, in `canary` and `cutover`.
    pub const FOLLOW_WAIT: Duration = Duration::from_secs(10);

    /// Takes a request of the client.
    pub(super) fn ask(&mut self, command: Command, now: Duration) {
        let channel = command.channel();
        let asked = match command {
            Command::OpenChannel { .. } => {
                self.channels.insert(channel, Channel::default());
                Asked::Open
            }
            Command::CloseChannel { .. } => Asked::Close,
            Command::Topology { request, .. } => Asked::Topology(request),
            Command::Consume { consume, .. } => {
                let tag = consume.consumer_tag.clone();
                let queue = self.queue_name(&consume.queue);
                // Before anything of it can come: after a restart it may have a hold.
                self.register(&queue, now);
                let consumer = Consumer {
                    queue,
                    merge: Merge::new(consume.credit, !consume.no_limit),
                    consume,
                    on: [false, false],
                    live: false,
                    lifted: 0,
                    held: 0,
                };
                if let Some(open) = self.channels.get_mut(&channel) {
                    open.consumers.insert(tag.clone(), consumer);
                }
                Asked::Consume(tag)
            }
            Command::Cancel { consumer_tag, .. } => Asked::Cancel(consumer_tag),
            Command::Get { queue, .. } => {
                let queue = self.queue_name(&queue);
                self.register(&queue, now);
                let first = self.shared.order().fences.losing_side(&queue).unwrap_or(Side::Rabbit);
                let mut next: VecDeque<Side> = [first, first.other()].into();
                next.retain(|side| self.half(*side).attached() && self.waits_for(*side));
                Asked::Get { queue, next, got: None }
            }
            // Not requests; the engine takes them elsewhere.
            Command::Publish(_) | Command::Credit { .. } | Command::Settle { .. } => return,
        };
        self.next_request += 1;
        let request = Request { number: self.next_request, since: now, waiting: [false, false], first: None, asked };
        self.start(channel, request);
    }

    fn register(&self, queue: &QueueName, now: Duration) {
        let actions = self.shared.order().fences.register(queue, now);
        self.shared.act(actions);
    }

    /// Asks the side that leads. With none attached, the request waits for one.
    pub(super) fn start(&mut self, channel: ChannelId, mut request: Request) {
        let lead = self.lead();
        if !self.half(lead).attached() {
            self.park(channel, request);
            return;
        }
        let mine = Purpose::Client(request.number);
        match &mut request.asked {
            Asked::Open => {
                request.waiting[lead.index()] = true;
                self.half_mut(lead).request(Command::OpenChannel { channel }, mine);
                if self.half(lead.other()).attached() {
                    self.half_mut(lead.other()).request(Command::OpenChannel { channel }, Purpose::Nothing);
                }
            }
            Asked::Close => self.ask_both(&mut request, || Command::CloseChannel { channel }),
            Asked::Cancel(tag) => {
                let tag = tag.clone();
                self.ask_both(&mut request, || Command::Cancel { channel, consumer_tag: tag.clone() });
            }
            Asked::Topology(topology) => {
                request.waiting[lead.index()] = true;
                let command = Command::Topology { channel, request: topology.clone() };
                self.half_mut(lead).request(command, mine);
            }
            Asked::Consume(tag) => {
                let tag = tag.clone();
                if let Some(command) = self.consume_command(channel, &tag, lead) {
                    request.waiting[lead.index()] = true;
                    self.half_mut(lead).request(command, mine);
                }
            }
            Asked::Get { .. } => return self.get_next(channel, request),
        }
        self.park(channel, request);
    }

    fn ask_both(&mut self, request: &mut Request, command: impl Fn() -> Command) {
        for side in Side::BOTH {
            if !self.half(side).attached() {
                continue;
            }
            let waits = self.waits_for(side);
            request.waiting[side.index()] = waits;
            let purpose = if waits { Purpose::Client(request.number) } else { Purpose::Nothing };
            self.half_mut(side).request(command(), purpose);
        }
    }

    fn park(&mut self, channel: ChannelId, request: Request) {
        if let Some(open) = self.channels.get_mut(&channel) {
            open.request = Some(request);
        }
    }

    /// The consume that attaches a consumer to a side, with the credit that the side may have.
    pub(super) fn consume_command(&mut self, channel: ChannelId, tag: &ShortString, side: Side) -> Option<Command> {
        let consumer = self.consumer(channel, tag)?;
        let credit = consumer.merge.attach(side);
        Some(Command::Consume { channel, consume: Consume { credit, ..consumer.consume.clone() } })
    }

    /// Takes a reply of a side.
    pub(super) fn replied(&mut self, side: Side, channel: ChannelId, reply: Result<Reply, AmqpError>) {
        match self.half_mut(side).replied(channel) {
            Some(Purpose::Client(number)) => {
                let request = self.channels.get_mut(&channel).and_then(|c| c.request.take_if(|r| r.number == number));
                match request {
                    Some(request) => self.step(side, channel, request, reply),
                    // Nobody waits for it any more.
                    None => {
                        if let Ok(Reply::Got(Some(got))) = reply {
                            self.settle_inner(side, channel, got.delivery.id, Outcome::Requeue);
                        }
                    }
                }
            }
            Some(Purpose::Topology(topology)) => match reply {
                Ok(_) => self.is_mapped(&topology),
                Err(error) => self.not_mapped(&topology, &error),
            },
            Some(Purpose::Consume(tag)) => match reply {
                Ok(_) => self.consumer_began(side, channel, &tag),
                Err(error) => self.consumer_refused(side, channel, &tag, &error),
            },
            Some(Purpose::Cancel(_) | Purpose::Nothing) | None => {}
        }
    }

    fn step(&mut self, side: Side, channel: ChannelId, mut request: Request, reply: Result<Reply, AmqpError>) {
        request.waiting[side.index()] = false;
        match &mut request.asked {
            Asked::Open => {
                if reply.is_err() {
                    self.channels.remove(&channel);
                }
                self.answer(channel, reply);
            }
            Asked::Close | Asked::Cancel(_) => {
                if request.waiting == [false, false] {
                    self.finish(channel, request);
                } else {
                    self.park(channel, request);
                }
            }
            Asked::Topology(_) => self.topology_step(side, channel, request, reply),
            Asked::Consume(tag) => {
                let tag = tag.clone();
                self.consume_step(side, channel, tag, request, reply);
            }
            Asked::Get { .. } => self.get_step(side, channel, request, reply),
        }
    }

    fn topology_step(&mut self, side: Side, channel: ChannelId, mut request: Request, reply: Result<Reply, AmqpError>) {
        let Asked::Topology(topology) = &mut request.asked else { return };
        let Some(first) = request.first.take() else {
            let reply = match reply {
                Ok(reply) => reply,
                Err(error) => return self.answer(channel, Err(error)),
            };
            if let (Topology::QueueDeclare(declare), Reply::Queue { queue, .. }) = (&mut *topology, &reply) {
                declare.queue = queue.clone();
            }
            let topology = topology.clone();
            self.note(channel, &topology);
            let follower = side.other();
            match self.half(follower).presence {
                Presence::Attached if self.waits_for(follower) => {
                    request.waiting[follower.index()] = true;
                    request.first = Some(reply);
                    let command = Command::Topology { channel, request: topology };
                    self.half_mut(follower).request(command, Purpose::Client(request.number));
                    self.park(channel, request);
                }
                Presence::Attached => {
                    let purpose = Purpose::Topology(Box::new(topology.clone()));
                    self.half_mut(follower).request(Command::Topology { channel, request: topology }, purpose);
                    self.answer(channel, Ok(reply));
                }
                Presence::Lost => {
                    self.replay(follower, channel, topology);
                    self.answer(channel, Ok(reply));
                }
                Presence::Gone => self.answer(channel, Ok(reply)),
            }
            return;
        };
        let topology = topology.clone();
        match reply {
            Ok(second) => {
                self.is_mapped(&topology);
                let both = self.sum(&topology, first, second);
                self.answer(channel, Ok(both));
            }
            Err(error) if self.client_goes_on(&topology, &error) => {
                self.not_mapped(&topology, &error);
                self.answer(channel, Ok(first));
            }
            Err(error) => self.answer(channel, Err(error)),
        }
    }

    /// Both sides' counts, without the fences in them.
    fn sum(&mut self, topology: &Topology, first: Reply, second: Reply) -> Reply {
        let fences = match topology {
            Topology::QueueDeclare(QueueDeclare { queue, .. })
            | Topology::QueuePurge { queue }
            | Topology::QueueDelete { queue, .. } => {
                let name = self.queue_name(queue);
                let view = self.shared.order().fences.view(&name);
                view.map_or(0, |v| v.fences[0] + v.fences[1])
            }
            _ => 0,
        };
        let fences = u32::try_from(fences).unwrap_or(u32::MAX);
        match (first, second) {
            (
                Reply::Queue { queue, message_count: a, consumer_count },
                Reply::Queue { message_count: b, consumer_count: c, .. },
            ) => Reply::Queue {
                queue,
                message_count: a.saturating_add(b).saturating_sub(fences),
                // A consumer through the sidecar is on both sides.
                consumer_count: consumer_count.max(c),
            },
            (Reply::MessageCount(a), Reply::MessageCount(b)) => {
                Reply::MessageCount(a.saturating_add(b).saturating_sub(fences))
            }
            (first, _) => first,
        }
    }

    /// Whether a refusal of the side that follows leaves the client untouched.
    fn client_goes_on(&self, topology: &Topology, error: &AmqpError) -> bool {
        let only_asks = match topology {
            Topology::QueueDeclare(declare) => declare.passive,
            Topology::ExchangeDeclare(declare) => declare.passive,
            _ => takes_away(topology) && error.code == ReplyCode::NotFound,
        };
        only_asks || self.phase() < Phase::Canary
    }

    /// Keeps in mind what the leading side has made.
    fn note(&mut self, channel: ChannelId, topology: &Topology) {
        let now = self.shared.now();
        match topology {
            Topology::QueueDeclare(declare) => {
                let name = self.queue_name(&declare.queue);
                self.register(&name, now);
                if (declare.exclusive || declare.auto_delete) && !declare.passive {
                    if declare.exclusive {
                        self.own_queues.insert(declare.queue.clone());
                    }
                    if !self.own.iter().any(|(_, t)| t == topology) && self.own.len() < 8192 {
                        self.own.push((channel, topology.clone()));
                    }
                }
            }
            Topology::QueueBind(binding)
                if self
                    .own
                    .iter()
                    .any(|(_, t)| matches!(t, Topology::QueueDeclare(d) if d.queue == binding.destination))
                    && self.own.len() < 8192 =>
            {
                self.own.push((channel, topology.clone()));
            }
            Topology::QueueUnbind(binding) => {
                self.own.retain(|(_, t)| !matches!(t, Topology::QueueBind(b) if b == binding));
            }
            Topology::QueueDelete { queue, .. } => {
                let name = self.queue_name(queue);
                let actions = self.shared.order().fences.forget(&name);
                self.shared.act(actions);
                self.shared.queue_gone(&self.vhost, queue.as_str());
                if let Some(shadow) = &self.shared.shadow {
                    shadow.discarded(&name);
                }
                self.own_queues.remove(queue);
                self.own.retain(|(_, t)| match t {
                    Topology::QueueDeclare(d) => d.queue != *queue,
                    Topology::QueueBind(b) => b.destination != *queue,
                    _ => true,
                });
            }
            Topology::QueuePurge { queue } => {
                let name = self.queue_name(queue);
                let actions = {
                    let mut order = self.shared.order();
                    let consumed = order.consumers.contains_key(&name);
                    order.fences.purged(&name, consumed)
                };
                self.shared.act(actions);
                if let Some(shadow) = &self.shared.shadow {
                    shadow.discarded(&name);
                }
            }
            Topology::ExchangeDelete { exchange, .. } => {
                self.shared.mapped(&self.vhost, "exchange", exchange.as_str());
            }
            Topology::ExchangeDeclare(_)
            | Topology::ExchangeBind(_)
            | Topology::ExchangeUnbind(_)
            | Topology::QueueBind(_) => {}
        }
    }

    /// Keeps topology for a side that is lost.
    pub(super) fn replay(&mut self, side: Side, channel: ChannelId, topology: Topology) {
        let half = self.half_mut(side);
        if half.replay.len() < super::half::Half::REPLAY_MOST {
            half.replay.push_back((channel, topology));
        } else {
            let (kind, name) = named(&topology);
            let reason = "NATS was away for too long; connect the application again so that it declares it once more";
            self.shared.unmapped(&self.vhost, kind, &name, reason);
        }
    }

    fn is_mapped(&self, topology: &Topology) {
        let (kind, name) = named(topology);
        self.shared.mapped(&self.vhost, kind, &name);
    }

    pub(super) fn not_mapped(&self, topology: &Topology, error: &AmqpError) {
        if takes_away(topology) {
            return;
        }
        let (kind, name) = named(topology);
        let reason = if error.code == ReplyCode::NotFound {
            format!(
                "{error}; JetStream knows only what was declared through the sidecar: let the application that owns it declare it"
            )
        } else {
            error.to_string()
        };
        tracing::warn!(vhost = %self.vhost, kind, name, reason, "JetStream does not have it");
        self.shared.unmapped(&self.vhost, kind, &name, reason);
    }

    fn consume_step(
        &mut self,
        side: Side,
        channel: ChannelId,
        tag: ShortString,
        mut request: Request,
        reply: Result<Reply, AmqpError>,
    ) {
        let is_lead = request.first.is_none();
        match reply {
            Ok(reply) => {
                self.consumer_began(side, channel, &tag);
                if is_lead {
                    let follower = side.other();
                    if self.half(follower).attached()
                        && let Some(command) = self.consume_command(channel, &tag, follower)
                    {
                        if self.waits_for(follower) {
                            request.waiting[follower.index()] = true;
                            request.first = Some(reply);
                            self.half_mut(follower).request(command, Purpose::Client(request.number));
                            return self.park(channel, request);
                        }
                        self.half_mut(follower).request(command, Purpose::Consume(tag.clone()));
                    }
                }
            }
            Err(error) if is_lead => {
                if let Some(open) = self.channels.get_mut(&channel) {
                    open.consumers.remove(&tag);
                }
                return self.answer(channel, Err(error));
            }
            Err(error) => {
                self.consumer_refused(side, channel, &tag, &error);
                if error.code != ReplyCode::NotFound && self.phase() >= Phase::Canary {
                    return self.answer(channel, Err(error));
                }
            }
        }
        self.consumer_live(channel, &tag);
    }

    /// Tells the client that its consumer began, and gives it what has come meanwhile.
    pub(super) fn consumer_live(&mut self, channel: ChannelId, tag: &ShortString) {
        self.answer(channel, Ok(Reply::Done));
        let Some(consumer) = self.consumer(channel, tag) else { return };
        consumer.live = true;
        let queue = consumer.queue.clone();
        *self.shared.order().consumers.entry(queue).or_default() += 1;
        self.pump(channel, tag);
    }

    fn consumer_began(&mut self, side: Side, channel: ChannelId, tag: &ShortString) {
        if let Some(consumer) = self.consumer(channel, tag) {
            consumer.on[side.index()] = true;
        }
        self.pump(channel, tag);
    }

    fn consumer_refused(&mut self, side: Side, channel: ChannelId, tag: &ShortString, error: &AmqpError) {
        let Some(consumer) = self.consumer(channel, tag) else { return };
        consumer.merge.detach(side);
        consumer.on[side.index()] = false;
        let queue = consumer.consume.queue.clone();
        if side == Side::Nats {
            let reason = format!("its consumers cannot be attached: {error}");
            self.shared.unmapped(&self.vhost, "queue", queue.as_str(), reason);
        }
    }

    /// A side ended a consumer.
    pub(super) fn consumer_ended(&mut self, side: Side, channel: ChannelId, tag: ShortString) {
        let ends_both = side == self.lead() || self.phase() >= Phase::Canary;
        let Some(open) = self.channels.get_mut(&channel) else { return };
        if !ends_both {
            if let Some(consumer) = open.consumers.get_mut(&tag) {
                consumer.on[side.index()] = false;
                self.drop_buffered(side, channel, &tag);
                self.shared.warn("nats_consumer_ended", format!("consumer {tag}: JetStream ended it"));
            }
            return;
        }
        let Some(consumer) = open.consumers.remove(&tag) else { return };
        let other = side.other();
        if self.half(other).attached() && consumer.on[other.index()] {
            let cancel = Command::Cancel { channel, consumer_tag: tag.clone() };
            self.half_mut(other).request(cancel, Purpose::Cancel(tag.clone()));
        }
        self.put_back(Some(channel), consumer);
        self.events.push_back(Event::ConsumerCancelled { channel, consumer_tag: tag });
    }

    /// Forgets what a lost or ended side had buffered for a consumer.
    pub(super) fn drop_buffered(&mut self, side: Side, channel: ChannelId, tag: &ShortString) {
        let (shared, now) = (self.shared.clone(), self.shared.now());
        let Some(consumer) = self.consumer(channel, tag) else { return };
        let mut actions = Vec::new();
        for item in consumer.merge.detach(side) {
            actions.extend(shared.order().fences.requeued(&consumer.queue, side, item.key, now));
        }
        report_held(&shared, consumer);
        shared.act(actions);
    }

    /// Ends a consumer. What it had buffered goes back into its queues; `channel` is `None` when the channel is closed,
    /// and its brokers have done that themselves.
    pub(super) fn put_back(&mut self, channel: Option<ChannelId>, mut consumer: Consumer) {
        let (shared, now) = (self.shared.clone(), self.shared.now());
        let mut actions = Vec::new();
        for (side, item) in consumer.merge.drain() {
            actions.extend(shared.order().fences.requeued(&consumer.queue, side, item.key, now));
            if let Some(channel) = channel {
                self.settle_inner(side, channel, item.inner, Outcome::Requeue);
            }
        }
        report_held(&shared, &mut consumer);
        if consumer.live {
            let mut order = shared.order();
            if let Some(count) = order.consumers.get_mut(&consumer.queue) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    order.consumers.remove(&consumer.queue);
                }
            }
        }
        shared.act(actions);
    }

    /// Every reply that was waited for is there: ends a close or a cancel.
    pub(super) fn finish(&mut self, channel: ChannelId, request: Request) {
        match request.asked {
            Asked::Close => self.close_channel(channel),
            Asked::Cancel(tag) => {
                if let Some(consumer) = self.channels.get_mut(&channel).and_then(|c| c.consumers.remove(&tag)) {
                    self.put_back(Some(channel), consumer);
                }
            }
            Asked::Open | Asked::Topology(_) | Asked::Consume(_) | Asked::Get { .. } => {}
        }
        self.answer(channel, Ok(Reply::Done));
    }

    /// Ends a channel: both sides have everything of it back.
    pub(super) fn close_channel(&mut self, channel: ChannelId) {
        let Some(mut open) = self.channels.remove(&channel) else { return };
        let now = self.shared.now();
        let closed: Vec<u64> = self.unsettled.iter().filter(|(_, o)| o.channel == channel).map(|(id, _)| *id).collect();
        let mut actions = Vec::new();
        for id in closed {
            if let Some(open) = self.unsettled.remove(&id) {
                actions.extend(self.shared.order().fences.requeued(&open.queue, open.side, open.key, now));
            }
        }
        self.shared.act(actions);
        for (_, consumer) in open.consumers.drain() {
            self.put_back(None, consumer);
        }
        for half in &mut self.halves {
            let before = half.parked.len();
            half.parked.retain(|p| p.channel != channel);
            if half.parked.len() < before {
                let text = format!(
                    "{} publishes waited for {} when their channel was closed",
                    before - half.parked.len(),
                    half.side
                );
                self.shared.warn("publishes_dropped", text);
            }
        }
        for (_, in_flight) in open.publishes.drain() {
            self.publish_ended(in_flight, PublishOutcome::Failed);
        }
    }

    fn get_next(&mut self, channel: ChannelId, mut request: Request) {
        let Asked::Get { queue, next, .. } = &mut request.asked else { return };
        let Some(side) = next.pop_front() else {
            return self.answer(channel, Ok(Reply::Got(None)));
        };
        let queue = ShortString::from(&*queue.queue);
        request.waiting[side.index()] = true;
        self.half_mut(side).request(Command::Get { channel, queue }, Purpose::Client(request.number));
        self.park(channel, request);
    }

    fn get_step(&mut self, side: Side, channel: ChannelId, mut request: Request, reply: Result<Reply, AmqpError>) {
        let lead = self.lead();
        let Asked::Get { queue, next, got } = &mut request.asked else { return };
        if let Some(mut got) = got.take() {
            // The other side's count; without one, what is known.
            if let Ok(Reply::Queue { message_count, .. }) = reply {
                got.message_count = got.message_count.saturating_add(message_count);
            }
            return self.answer(channel, Ok(Reply::Got(Some(got))));
        }
        let got = match reply {
            Ok(Reply::Got(Some(got))) => got,
            Err(error) if side == lead => return self.answer(channel, Err(error)),
            Ok(_) | Err(_) => return self.get_next(channel, request),
        };
        if let Some(fence) = stamp::is_fence(&got.delivery.message) {
            next.push_front(side);
            let actions = self.shared.order().fences.fence_out(queue, fence);
            self.settle_inner(side, channel, got.delivery.id, Outcome::Ack);
            self.shared.act(actions);
            return self.get_next(channel, request);
        }
        let (queue, other) = (queue.clone(), next.pop_front());
        match self.take(side, channel, &queue, got.delivery) {
            None => self.answer(channel, Ok(Reply::Got(None))),
            Some(delivery) => {
                let got = Box::new(Got { delivery, message_count: got.message_count });
                let Some(other) = other else { return self.answer(channel, Ok(Reply::Got(Some(got)))) };
                let declare = QueueDeclare {
                    queue: ShortString::from(&*queue.queue),
                    passive: true,
                    durable: false,
                    exclusive: false,
                    auto_delete: false,
                    arguments: FieldTable::default(),
                };
                let command = Command::Topology { channel, request: Topology::QueueDeclare(declare) };
                request.asked = Asked::Get { queue, next: VecDeque::new(), got: Some(got) };
                request.waiting[other.index()] = true;
                self.half_mut(other).request(command, Purpose::Client(request.number));
                self.park(channel, request);
            }
        }
    }

    /// Takes a delivery for a get; one that has to wait for a fence goes back.
    fn take(&mut self, side: Side, channel: ChannelId, queue: &QueueName, delivery: Delivery) -> Option<Delivery> {
        let now = self.shared.now();
        let item = self.item(side, delivery.id, delivery.redelivered, delivery.message);
        let (received, phase) = {
            let mut order = self.shared.order();
            (order.fences.received(queue, side, item.key, item.bucket, item.epoch, now), order.phase)
        };
        if phase == Phase::Shadow
            && side == Side::Rabbit
            && let (Some(shadow), MessageKey::Stamped(id)) = (&self.shared.shadow, item.key)
        {
            shadow.delivered(queue, id, item.epoch, &item.message, item.redelivered);
        }
        if received.waits {
            let actions = self.shared.order().fences.requeued(queue, side, item.key, now);
            self.shared.act(actions);
            self.settle_inner(side, channel, item.inner, Outcome::Requeue);
            return None;
        }
        self.shared.delivered[side.index()].fetch_add(1, Ordering::Relaxed);
        self.next_delivery += 1;
        let id = DeliveryId(self.next_delivery);
        let (inner, generation, key) = (item.inner, item.generation, item.key);
        let open = Open { channel, tag: None, queue: queue.clone(), side, generation, inner, key };
        self.unsettled.insert(id.0, open);
        Some(Delivery { id, redelivered: item.redelivered, message: item.message })
    }
}

/// Whether it only takes something away: when it is not there, that is done.
fn takes_away(topology: &Topology) -> bool {
    match topology {
        Topology::ExchangeDelete { .. }
        | Topology::ExchangeUnbind(_)
        | Topology::QueueUnbind(_)
        | Topology::QueuePurge { .. }
        | Topology::QueueDelete { .. } => true,
        Topology::ExchangeDeclare(_)
        | Topology::ExchangeBind(_)
        | Topology::QueueDeclare(_)
        | Topology::QueueBind(_) => false,
    }
}

/// What it is called in the list of unmapped things.
fn named(topology: &Topology) -> (&'static str, String) {
    match topology {
        Topology::ExchangeDeclare(declare) => ("exchange", declare.exchange.to_string()),
        Topology::ExchangeDelete { exchange, .. } => ("exchange", exchange.to_string()),
        Topology::QueueDeclare(QueueDeclare { queue, .. })
        | Topology::QueuePurge { queue }
        | Topology::QueueDelete { queue, .. } => ("queue", queue.to_string()),
        Topology::ExchangeBind(b) | Topology::ExchangeUnbind(b) | Topology::QueueBind(b) | Topology::QueueUnbind(b) => {
            ("binding", format!("{} -> {} ({})", b.source, b.destination, b.routing_key))
        }
    }
}
