//! One upstream channel: commands to methods, methods and contents to events.

use std::collections::{BTreeSet, VecDeque};

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::protocol::{AMQPClass, basic, channel, confirm, exchange, queue};
use amq_protocol::types::ShortString;
use bytes::Bytes;
use foldhash::{HashMap, HashMapExt};

use super::confirms::Confirms;
use super::errors::{from_close, unexpected};
use super::incoming::{Cause, Incoming};
use super::methods::{Asked, settlement, topology};
use crate::backend::reply_to::is_pseudo_queue;
use crate::backend::{
    ChannelId, Command, Consume, Delivery, DeliveryId, Event, Got, Message, Outcome, Publish, PublishOutcome, Reply,
};
use crate::codec::Output;
use crate::error::{AmqpError, ReplyCode};

/// Delivery tags take the low bits of a [`DeliveryId`], the channel's incarnation the rest.
const TAG_BITS: u32 = 40;

/// Where a channel's frames and events go.
pub(super) struct Io<'a> {
    /// To RabbitMQ.
    pub(super) out: &'a mut Output,
    /// To the session.
    pub(super) events: &'a mut VecDeque<Event>,
    /// The largest frame, in bytes.
    pub(super) frame_max: usize,
}

/// One upstream channel.
#[derive(Debug)]
pub(super) struct Channel {
    id: ChannelId,
    // Tells deliveries of this channel from those of an earlier one with the same number.
    incarnation: u64,
    phase: Phase,
    asked: Option<Asked>,
    consumers: HashMap<ShortString, Consumer>,
    // Tags that RabbitMQ has delivered and that are not settled: settling one twice would close the channel.
    unsettled: BTreeSet<u64>,
    // Acknowledged by the session and not told to RabbitMQ; see `Channel::tell_acks`.
    acks: Vec<u64>,
    confirms: Confirms,
    incoming: Option<Incoming>,
    // Bytes in the backlogs of all consumers.
    backlog: usize,
}

#[derive(Debug)]
enum Phase {
    Open,
    /// We have asked for the end.
    Closing,
    /// RabbitMQ has ended it.
    Failed(AmqpError),
    Gone,
}

#[derive(Debug)]
struct Consumer {
    credit: u32,
    // Beyond its credit: at most the upstream prefetch or, without one, what was read before reading stopped.
    backlog: VecDeque<Box<Delivery>>,
    // The session wants nothing more for it.
    cancelled: bool,
    // What it gets are direct replies, which need no credit and which RabbitMQ wants no acknowledgement of.
    is_direct: bool,
}

impl Channel {
    /// Opens it, in confirm mode.
    pub(super) fn open(id: ChannelId, incarnation: u64, io: &mut Io) -> Self {
        io.out.method(id, AMQPClass::Channel(channel::AMQPMethod::Open(channel::Open {})));
        io.out.method(id, AMQPClass::Confirm(confirm::AMQPMethod::Select(confirm::Select { nowait: false })));
        Self {
            id,
            incarnation: incarnation & (u64::MAX >> TAG_BITS),
            phase: Phase::Open,
            asked: Some(Asked::Open),
            consumers: HashMap::new(),
            unsettled: BTreeSet::new(),
            acks: Vec::new(),
            confirms: Confirms::default(),
            incoming: None,
            backlog: 0,
        }
    }

    /// Whether its number is free again.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone)
    }

    /// Whether RabbitMQ has ended it.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.phase, Phase::Failed(_))
    }

    /// How many publishes RabbitMQ has not confirmed.
    pub(super) fn unconfirmed(&self) -> usize {
        self.confirms.pending()
    }

    /// Bytes of deliveries that wait for credit.
    pub(super) fn backlog(&self) -> usize {
        self.backlog
    }

    /// Whether acknowledgements wait for [`Channel::tell_acks`].
    pub(super) fn has_acks(&self) -> bool {
        !self.acks.is_empty()
    }

    /// Carries out a command of the session. `OpenChannel` is [`Channel::open`]. Acknowledgements wait for the next command on the channel
    /// that RabbitMQ hears of, or [`Channel::tell_acks`].
    pub(super) fn command(&mut self, command: Command, io: &mut Io) {
        if !matches!(command, Command::Settle { outcome: Outcome::Ack, .. } | Command::Credit { .. }) {
            self.tell_acks(io);
        }
        if let Phase::Failed(error) = &self.phase {
            let error = error.clone();
            if matches!(command, Command::CloseChannel { .. }) {
                self.phase = Phase::Gone;
                self.reply(Ok(Reply::Done), io);
            } else {
                refuse(command, &error, io.events);
            }
            return;
        }
        match command {
            Command::OpenChannel { .. } => {
                self.reply(Err(AmqpError::new(ReplyCode::ChannelError, "second 'channel.open' seen")), io);
            }
            Command::CloseChannel { .. } => {
                let close = channel::Close { reply_code: 200, reply_text: "OK".into(), class_id: 0, method_id: 0 };
                self.send(AMQPClass::Channel(channel::AMQPMethod::Close(close)), io);
                self.phase = Phase::Closing;
                self.asked = Some(Asked::Close);
                self.forget();
            }
            Command::Topology { request, .. } => {
                let (method, asked) = topology(request);
                self.ask(method, asked, io);
            }
            Command::Publish(publish) => self.publish(*publish, io),
            Command::Consume { consume, .. } => self.consume(consume, io),
            Command::Credit { consumer_tag, amount, .. } => self.credit(&consumer_tag, amount, io),
            Command::Cancel { consumer_tag, .. } => {
                // Now and not with the answer: the backlog may be why RabbitMQ is not read.
                if let Some(consumer) = self.consumers.get_mut(&consumer_tag) {
                    consumer.cancelled = true;
                    let backlog = std::mem::take(&mut consumer.backlog);
                    self.give_back(backlog, io);
                }
                let cancel = basic::Cancel { consumer_tag: consumer_tag.clone(), nowait: false };
                self.ask(AMQPClass::Basic(basic::AMQPMethod::Cancel(cancel)), Asked::Cancel(consumer_tag), io);
            }
            Command::Get { queue, .. } => {
                let get = basic::Get { queue, no_ack: false };
                self.ask(AMQPClass::Basic(basic::AMQPMethod::Get(get)), Asked::Get, io);
            }
            Command::Settle { deliveries, outcome, .. } => self.settle(&deliveries, outcome, io),
        }
    }

    fn publish(&mut self, publish: Publish, io: &mut Io) {
        let Publish { seq, mandatory, message, .. } = publish;
        let Message { exchange, routing_key, properties, body } = message;
        let method = basic::Publish { exchange, routing_key, mandatory, immediate: false };
        self.send(AMQPClass::Basic(basic::AMQPMethod::Publish(method)), io);
        io.out.content(self.id, &properties, &body, io.frame_max);
        self.confirms.published(seq);
    }

    fn consume(&mut self, consume: Consume, io: &mut Io) {
        let Consume { queue, consumer_tag, exclusive, credit, no_limit, arguments, .. } = consume;
        // 0 is "no limit" to RabbitMQ: without one, and without credit yet, one delivery waits in the backlog.
        let prefetch_count = if no_limit { 0 } else { u16::try_from(credit.max(1)).unwrap_or(u16::MAX) };
        let qos = basic::Qos { prefetch_count, global: false };
        self.send(AMQPClass::Basic(basic::AMQPMethod::Qos(qos)), io);
        let is_direct = is_pseudo_queue(queue.as_str());
        let consumer = Consumer { credit, backlog: VecDeque::new(), cancelled: false, is_direct };
        self.consumers.insert(consumer_tag.clone(), consumer);
        let no_ack = is_direct;
        let method =
            basic::Consume { queue, consumer_tag, no_local: false, no_ack, exclusive, nowait: false, arguments };
        self.ask(AMQPClass::Basic(basic::AMQPMethod::Consume(method)), Asked::Consume, io);
    }

    fn credit(&mut self, consumer_tag: &ShortString, amount: u32, io: &mut Io) {
        let Some(consumer) = self.consumers.get_mut(consumer_tag) else { return };
        consumer.credit = consumer.credit.saturating_add(amount);
        while consumer.credit > 0
            && let Some(delivery) = consumer.backlog.pop_front()
        {
            consumer.credit -= 1;
            self.backlog -= weight(&delivery);
            let consumer_tag = consumer_tag.clone();
            io.events.push_back(Event::Delivery { channel: self.id, consumer_tag, delivery });
        }
    }

    fn settle(&mut self, deliveries: &[DeliveryId], outcome: Outcome, io: &mut Io) {
        let incarnation = self.incarnation;
        let tags = deliveries
            .iter()
            .filter(|delivery| delivery.0 >> TAG_BITS == incarnation)
            .map(|delivery| delivery.0 & ((1 << TAG_BITS) - 1));
        if outcome == Outcome::Ack {
            let unsettled = &mut self.unsettled;
            self.acks.extend(tags.filter(|tag| unsettled.remove(tag)));
            return;
        }
        let oldest = deliveries.len() > 1 && tags.clone().eq(self.unsettled.iter().copied().take(deliveries.len()));
        if oldest && let Some(last) = tags.clone().next_back() {
            // Exactly the oldest ones: one frame is enough.
            self.unsettled = self.unsettled.split_off(&(last + 1));
            self.send(settlement(last, true, outcome), io);
            return;
        }
        for tag in tags {
            if self.unsettled.remove(&tag) {
                self.send(settlement(tag, false, outcome), io);
            }
        }
    }

    /// Tells RabbitMQ of the acknowledgements that wait: those before which nothing is open in one frame, which costs both sides less.
    pub(super) fn tell_acks(&mut self, io: &mut Io) {
        if self.acks.is_empty() {
            return;
        }
        let mut acks = std::mem::take(&mut self.acks);
        acks.sort_unstable();
        let all_up_to = self.unsettled.first().map_or(acks.len(), |open| acks.partition_point(|tag| tag < open));
        if all_up_to > 0 {
            self.send(settlement(acks[all_up_to - 1], all_up_to > 1, Outcome::Ack), io);
        }
        for tag in &acks[all_up_to..] {
            self.send(settlement(*tag, false, Outcome::Ack), io);
        }
        acks.clear();
        self.acks = acks;
    }

    /// Takes a method of RabbitMQ.
    ///
    /// # Errors
    /// It has no place here; the connection cannot go on.
    pub(super) fn method(&mut self, class: AMQPClass, io: &mut Io) -> Result<(), AmqpError> {
        match class {
            AMQPClass::Channel(channel::AMQPMethod::Close(close)) => {
                self.send(AMQPClass::Channel(channel::AMQPMethod::CloseOk(channel::CloseOk {})), io);
                self.closed(from_close(close.reply_code, close.reply_text.as_str()), io);
                Ok(())
            }
            AMQPClass::Channel(channel::AMQPMethod::CloseOk(_)) => {
                self.abandon(io);
                self.phase = Phase::Gone;
                self.answer(Reply::Done, io)
            }
            AMQPClass::Basic(basic::AMQPMethod::Ack(ack)) => {
                self.confirmed(ack.delivery_tag, ack.multiple, PublishOutcome::Stored, io);
                Ok(())
            }
            AMQPClass::Basic(basic::AMQPMethod::Nack(nack)) => {
                self.confirmed(nack.delivery_tag, nack.multiple, PublishOutcome::Failed, io);
                Ok(())
            }
            // Sent before RabbitMQ saw our `channel.close`: it requeues what it delivered.
            _ if !matches!(self.phase, Phase::Open) => Ok(()),
            AMQPClass::Basic(method) => self.basic(method, io),
            AMQPClass::Channel(channel::AMQPMethod::OpenOk(_)) => Ok(()),
            AMQPClass::Channel(channel::AMQPMethod::Flow(flow)) => {
                let ok = channel::FlowOk { active: flow.active };
                self.send(AMQPClass::Channel(channel::AMQPMethod::FlowOk(ok)), io);
                Ok(())
            }
            AMQPClass::Confirm(confirm::AMQPMethod::SelectOk(_))
            | AMQPClass::Exchange(
                exchange::AMQPMethod::DeclareOk(_)
                | exchange::AMQPMethod::DeleteOk(_)
                | exchange::AMQPMethod::BindOk(_)
                | exchange::AMQPMethod::UnbindOk(_),
            )
            | AMQPClass::Queue(queue::AMQPMethod::BindOk(_) | queue::AMQPMethod::UnbindOk(_)) => {
                self.answer(Reply::Done, io)
            }
            AMQPClass::Queue(queue::AMQPMethod::DeclareOk(ok)) => {
                let queue::DeclareOk { queue, message_count, consumer_count } = ok;
                self.answer(Reply::Queue { queue, message_count, consumer_count }, io)
            }
            AMQPClass::Queue(queue::AMQPMethod::PurgeOk(ok)) => self.answer(Reply::MessageCount(ok.message_count), io),
            AMQPClass::Queue(queue::AMQPMethod::DeleteOk(ok)) => self.answer(Reply::MessageCount(ok.message_count), io),
            other => {
                Err(unexpected(format_args!("method {}.{}", other.get_amqp_class_id(), other.get_amqp_method_id())))
            }
        }
    }

    fn basic(&mut self, method: basic::AMQPMethod, io: &mut Io) -> Result<(), AmqpError> {
        use basic::AMQPMethod as Method;
        match method {
            Method::Deliver(deliver) => {
                let basic::Deliver { consumer_tag, delivery_tag, redelivered, exchange, routing_key } = deliver;
                self.expect(Cause::Deliver { consumer_tag, tag: delivery_tag, redelivered }, exchange, routing_key)
            }
            Method::GetOk(ok) => {
                let basic::GetOk { delivery_tag, redelivered, exchange, routing_key, message_count } = ok;
                self.expect(Cause::Get { tag: delivery_tag, redelivered, message_count }, exchange, routing_key)
            }
            Method::Return(returned) => {
                let basic::Return { reply_code, reply_text, exchange, routing_key } = returned;
                let error = from_close(reply_code, reply_text.as_str());
                self.expect(Cause::Return(error), exchange, routing_key)
            }
            Method::GetEmpty(_) => self.answer(Reply::Got(None), io),
            Method::QosOk(_) => Ok(()),
            Method::ConsumeOk(_) => self.answer(Reply::Done, io),
            Method::CancelOk(_) => {
                if let Some(Asked::Cancel(consumer_tag)) = &self.asked {
                    let consumer_tag = consumer_tag.clone();
                    self.drop_consumer(&consumer_tag, io);
                }
                self.answer(Reply::Done, io)
            }
            Method::Cancel(cancel) => {
                let basic::Cancel { consumer_tag, nowait } = cancel;
                if !nowait {
                    let ok = basic::CancelOk { consumer_tag: consumer_tag.clone() };
                    self.send(AMQPClass::Basic(basic::AMQPMethod::CancelOk(ok)), io);
                }
                if self.drop_consumer(&consumer_tag, io) {
                    io.events.push_back(Event::ConsumerCancelled { channel: self.id, consumer_tag });
                }
                Ok(())
            }
            other => {
                let class = AMQPClass::Basic(other);
                Err(unexpected(format_args!("method 60.{}", class.get_amqp_method_id())))
            }
        }
    }

    /// Takes the header of a message.
    ///
    /// # Errors
    /// There is no message to expect, or it is larger than RabbitMQ allows.
    pub(super) fn header(&mut self, size: u64, properties: Box<AMQPProperties>, io: &mut Io) -> Result<(), AmqpError> {
        let Some(incoming) = &mut self.incoming else { return self.stray("a content header") };
        match incoming.header(size, properties)? {
            true => self.complete(io),
            false => Ok(()),
        }
    }

    /// Takes a part of a message's body.
    ///
    /// # Errors
    /// There is no message to expect, or more of it than was announced.
    pub(super) fn body(&mut self, part: Bytes, io: &mut Io) -> Result<(), AmqpError> {
        let Some(incoming) = &mut self.incoming else { return self.stray("a content body") };
        match incoming.body(part)? {
            true => self.complete(io),
            false => Ok(()),
        }
    }

    fn stray(&self, what: &str) -> Result<(), AmqpError> {
        // Of a delivery that RabbitMQ sent before it saw our `channel.close`.
        if matches!(self.phase, Phase::Open) { Err(unexpected(what)) } else { Ok(()) }
    }

    fn expect(&mut self, cause: Cause, exchange: ShortString, routing_key: ShortString) -> Result<(), AmqpError> {
        match self.incoming.replace(Incoming::new(cause, exchange, routing_key)) {
            None => Ok(()),
            Some(_) => Err(unexpected("a message inside another")),
        }
    }

    fn complete(&mut self, io: &mut Io) -> Result<(), AmqpError> {
        let Some((cause, message)) = self.incoming.take().and_then(Incoming::finish) else { return Ok(()) };
        match cause {
            Cause::Deliver { consumer_tag, tag, redelivered } => {
                if self.consumers.get(&consumer_tag).is_some_and(|consumer| consumer.is_direct) {
                    let delivery =
                        Box::new(Delivery { id: DeliveryId::DIRECT, redelivered, ack_timeout: None, message });
                    io.events.push_back(Event::Delivery { channel: self.id, consumer_tag, delivery });
                    return Ok(());
                }
                let delivery = Box::new(self.delivery(tag, redelivered, message)?);
                self.deliver(consumer_tag, delivery, io);
                Ok(())
            }
            Cause::Get { tag, redelivered, message_count } => {
                let delivery = self.delivery(tag, redelivered, message)?;
                self.answer(Reply::Got(Some(Box::new(Got { delivery, message_count }))), io)
            }
            Cause::Return(error) => {
                io.events.push_back(Event::Returned { channel: self.id, error, message: Box::new(message) });
                Ok(())
            }
        }
    }

    fn delivery(&mut self, tag: u64, redelivered: bool, message: Message) -> Result<Delivery, AmqpError> {
        if tag >> TAG_BITS != 0 {
            return Err(unexpected(format_args!("delivery tag {tag}")));
        }
        self.unsettled.insert(tag);
        // RabbitMQ closes the channel itself, by its own clock and configuration.
        Ok(Delivery { id: DeliveryId(self.incarnation << TAG_BITS | tag), redelivered, ack_timeout: None, message })
    }

    fn deliver(&mut self, consumer_tag: ShortString, delivery: Box<Delivery>, io: &mut Io) {
        match self.consumers.get_mut(&consumer_tag) {
            Some(consumer) if consumer.credit > 0 && consumer.backlog.is_empty() && !consumer.cancelled => {
                consumer.credit -= 1;
                io.events.push_back(Event::Delivery { channel: self.id, consumer_tag, delivery });
            }
            Some(consumer) if !consumer.cancelled => {
                self.backlog += weight(&delivery);
                consumer.backlog.push_back(delivery);
            }
            _ => self.settle(&[delivery.id], Outcome::Requeue, io),
        }
    }

    /// Forgets a consumer; what the session was not given goes back into the queue. Whether there was one.
    fn drop_consumer(&mut self, consumer_tag: &ShortString, io: &mut Io) -> bool {
        let Some(consumer) = self.consumers.remove(consumer_tag) else { return false };
        self.give_back(consumer.backlog, io);
        true
    }

    fn give_back(&mut self, backlog: VecDeque<Box<Delivery>>, io: &mut Io) {
        for delivery in backlog {
            self.backlog -= weight(&delivery);
            self.settle(&[delivery.id], Outcome::Requeue, io);
        }
    }

    fn confirmed(&mut self, tag: u64, multiple: bool, outcome: PublishOutcome, io: &mut Io) {
        let channel = self.id;
        self.confirms.confirmed(tag, multiple, |seq| io.events.push_back(Event::Confirm { channel, seq, outcome }));
    }

    /// RabbitMQ has closed the channel.
    fn closed(&mut self, error: AmqpError, io: &mut Io) {
        if matches!(self.phase, Phase::Closing) {
            // Both sides at once: its answer to ours still follows.
            return;
        }
        match self.asked.take() {
            Some(_) => self.reply(Err(error.clone()), io),
            None => io.events.push_back(Event::ChannelFailed { channel: self.id, error: error.clone() }),
        }
        self.phase = Phase::Failed(error);
        self.forget();
        self.abandon(io);
    }

    /// The connection is gone: answers what is still open.
    pub(super) fn lost(&mut self, error: &AmqpError, io: &mut Io) {
        if self.asked.take().is_some() {
            self.reply(Err(error.clone()), io);
        }
        self.abandon(io);
    }

    fn forget(&mut self) {
        self.consumers.clear();
        self.backlog = 0;
        self.unsettled.clear();
        self.acks.clear();
        self.incoming = None;
    }

    /// What became of the open publishes will not be known.
    fn abandon(&mut self, io: &mut Io) {
        let channel = self.id;
        let outcome = PublishOutcome::Failed;
        self.confirms.abandon(|seq| io.events.push_back(Event::Confirm { channel, seq, outcome }));
    }

    fn ask(&mut self, method: AMQPClass, asked: Asked, io: &mut Io) {
        self.asked = Some(asked);
        self.send(method, io);
    }

    fn send(&mut self, method: AMQPClass, io: &mut Io) {
        io.out.method(self.id, method);
    }

    /// Answers the request in flight.
    fn answer(&mut self, reply: Reply, io: &mut Io) -> Result<(), AmqpError> {
        let fits = match &reply {
            Reply::Done => {
                matches!(self.asked, Some(Asked::Open | Asked::Close | Asked::Consume | Asked::Cancel(_) | Asked::Done))
            }
            Reply::Got(_) => matches!(self.asked, Some(Asked::Get)),
            Reply::Queue { .. } => matches!(self.asked, Some(Asked::Queue)),
            Reply::MessageCount(_) => matches!(self.asked, Some(Asked::Count)),
        };
        if !fits {
            return Err(unexpected(format_args!("an answer to {:?}: {reply:?}", self.asked)));
        }
        self.asked = None;
        self.reply(Ok(reply), io);
        Ok(())
    }

    fn reply(&mut self, reply: Result<Reply, AmqpError>, io: &mut Io) {
        io.events.push_back(Event::Reply { channel: self.id, reply });
    }
}

/// About how much memory a delivery takes, in bytes.
fn weight(delivery: &Delivery) -> usize {
    delivery.message.body.len() + 512
}

/// Answers a command that can no longer be carried out.
pub(super) fn refuse(command: Command, error: &AmqpError, events: &mut VecDeque<Event>) {
    let channel = command.channel();
    if command.is_request() {
        events.push_back(Event::Reply { channel, reply: Err(error.clone()) });
    } else if let Command::Publish(publish) = command {
        events.push_back(Event::Confirm { channel, seq: publish.seq, outcome: PublishOutcome::Failed });
    }
}
