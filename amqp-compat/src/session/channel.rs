//! The life of a channel, and the order of what happens on it.
//!
//! While a request of a channel is with the broker, the channel's later frames are parked, so that everything takes
//! effect in the order in which the client sent it.

use std::collections::VecDeque;

use amq_protocol::protocol::{AMQPClass, access, basic, channel, confirm, tx as tx_class};
use amq_protocol::types::ShortString;
use smallvec::SmallVec;

use super::confirms::{Confirms, Verdict};
use super::connection::{Counts, Limits};
use super::consumers::Consumers;
use super::frame::{Fault, Frame};
use super::handshake::Capabilities;
use super::output::Output;
use super::publish::{Assembly, Complete, PUBLISH};
use super::topology::{self, Answer, Asked};
use super::tx::{self, Transaction};
use super::unacked::{Entry, Unacked};
use crate::backend::{
    ChannelId, Command, Consume, Delivery, DeliveryId, Message, Outcome, Publish, PublishOutcome, Reply,
};
use crate::error::{AmqpError, ReplyCode};

/// What the channels of a connection share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The bytes to write.
    pub(super) output: Output,
    /// The commands to send.
    pub(super) commands: VecDeque<Command>,
    /// How often [`super::Session::take_output`] was called; a delivery is written when a later one was, and its bytes
    /// have gone.
    pub(super) generation: u64,
    /// Channels with deliveries that are not written yet and matter when they are.
    pub(super) unwritten: Vec<ChannelId>,
    /// Channels with something to tell the client or the broker at the end of a batch.
    pub(super) touched: Vec<ChannelId>,
    /// Bytes of body in publishes that are not complete.
    pub(super) assembling: usize,
    /// Publishes that the broker has not ended, or that wait for an older one.
    pub(super) publishes: usize,
    /// Their size in bytes.
    pub(super) publish_bytes: usize,
    /// Frames that are parked, in bytes.
    pub(super) parked: usize,
    /// Made up consumer tags begin with it.
    pub(super) tag_prefix: String,
    /// Numbers consumers.
    pub(super) next_key: u32,
    /// Who is logged in.
    pub(super) user: String,
    /// What the client can do.
    pub(super) capabilities: Capabilities,
    /// The largest frame.
    pub(super) frame_max: u32,
    /// The bounds.
    pub(super) limits: Limits,
    /// What has happened.
    pub(super) counts: Counts,
}

/// One channel.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) id: ChannelId,
    pub(super) phase: Phase,
    request: Option<Request>,
    parked: VecDeque<Frame>,
    assembly: Assembly,
    confirms: Confirms,
    unacked: Unacked,
    consumers: Consumers,
    /// `Some`: the channel is transactional.
    transaction: Option<Transaction>,
    last_queue: Option<ShortString>,
    /// Deliveries that are encoded and not written, with the generation they were encoded in.
    sent: VecDeque<Sent>,
    /// The client's acknowledgements of this batch, and the tag of the last one.
    acks: SmallVec<[DeliveryId; 1]>,
    last_ack: u64,
    /// Written deliveries of clients that do not acknowledge.
    done: SmallVec<[DeliveryId; 1]>,
    /// Deliveries that nobody can take any more.
    strays: SmallVec<[DeliveryId; 1]>,
    /// Consumers that the broker ended while a request was in flight: the client hears of it after the answer, so that
    /// who deletes a queue learns first that it is gone, as with RabbitMQ.
    ended: Vec<ShortString>,
    is_touched: bool,
}

/// Where a channel is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The broker opens it.
    Opening,
    /// In use.
    Open,
    /// The client has closed it; the broker closes it.
    Leaving,
    /// The server has closed it for an error, and waits for `channel.close-ok`.
    Refused,
    /// The same, and `channel.close-ok` has come; the broker still closes it.
    Settling,
}

/// A delivery whose fate depends on its being written.
#[derive(Debug)]
struct Sent {
    generation: u64,
    /// To be settled for a client that does not.
    settle: Option<DeliveryId>,
    consumer: Option<u32>,
}

/// The request that is with the broker.
#[derive(Debug)]
struct Request {
    kind: Kind,
    method: (u16, u16),
    nowait: bool,
}

impl Request {
    /// Whether it ends with the end of all publishes, and not with a reply.
    fn waits_for_publishes(&self) -> bool {
        matches!(self.kind, Kind::Commit { .. } | Kind::Behind { .. })
    }
}

#[derive(Debug)]
enum Kind {
    Open,
    Close,
    Topology(Answer),
    Consume {
        tag: ShortString,
    },
    Cancel {
        tag: ShortString,
    },
    Get {
        no_ack: bool,
    },
    /// Not one request but many: all publishes of a transaction.
    Commit {
        failed: bool,
    },
    /// No request: a method that is answered here, behind publishes that may still fail.
    Behind {
        class: AMQPClass,
    },
}

/// What the connection has to do about a channel after something happened on it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing.
    Stay,
    /// Forget it; frames that are still parked belong to a new channel of this number.
    Remove,
}

impl Channel {
    /// A channel that the broker is asked to open.
    pub(super) fn open(id: ChannelId, shared: &mut Shared) -> Self {
        let mut channel = Self {
            id,
            phase: Phase::Opening,
            request: None,
            parked: VecDeque::new(),
            assembly: Assembly::Idle,
            confirms: Confirms::default(),
            unacked: Unacked::default(),
            consumers: Consumers::default(),
            transaction: None,
            last_queue: None,
            sent: VecDeque::new(),
            acks: SmallVec::new(),
            last_ack: 0,
            done: SmallVec::new(),
            strays: SmallVec::new(),
            ended: Vec::new(),
            is_touched: false,
        };
        channel.ask(Command::OpenChannel { channel: id }, Kind::Open, (20, 10), false, shared);
        channel
    }

    /// Whether nothing is under way: no request, no parked frame, no publish without its end.
    pub(super) fn is_idle(&self) -> bool {
        self.request.is_none() && self.parked.is_empty() && self.confirms.open() == 0
    }

    /// Takes what is parked.
    pub(super) fn take_parked(&mut self, shared: &mut Shared) -> VecDeque<Frame> {
        let parked = std::mem::take(&mut self.parked);
        shared.parked -= parked.iter().map(Frame::weight).sum::<usize>();
        parked
    }

    /// Takes the next parked frame when nothing is in its way.
    pub(super) fn next_parked(&mut self, shared: &mut Shared) -> Option<Frame> {
        if self.request.is_some() {
            return None;
        }
        let frame = self.parked.pop_front()?;
        shared.parked -= frame.weight();
        Some(frame)
    }

    /// Takes one frame of the client.
    ///
    /// # Errors
    /// A fault, which closes the channel or the connection.
    pub(super) fn frame(&mut self, frame: Frame, shared: &mut Shared) -> Result<Next, Fault> {
        use channel::AMQPMethod as M;
        match (self.phase, &frame) {
            (Phase::Refused, Frame::Method(_, AMQPClass::Channel(M::CloseOk(_)))) => {
                if self.request.is_none() {
                    return Ok(Next::Remove);
                }
                self.phase = Phase::Settling;
                return Ok(Next::Stay);
            }
            // Both sides have closed it at the same time.
            (Phase::Refused, Frame::Method(_, AMQPClass::Channel(M::Close(_)))) => {
                shared.output.method(self.id, AMQPClass::Channel(M::CloseOk(channel::CloseOk {})));
                return Ok(Next::Stay);
            }
            (Phase::Refused, _) => return Ok(Next::Stay),
            (Phase::Opening | Phase::Open | Phase::Leaving | Phase::Settling, _) => {}
        }
        if self.request.is_some() {
            shared.parked += frame.weight();
            self.parked.push_back(frame);
            return Ok(Next::Stay);
        }
        match frame {
            Frame::Method(_, class) if self.assembly.is_open() => {
                let due = match self.assembly {
                    Assembly::Body { .. } => "expected content body, got non content body frame instead",
                    Assembly::Idle | Assembly::Method(_) => {
                        "expected content header for class 60, got non content header frame instead"
                    }
                };
                Err(Fault::of(AmqpError::new(ReplyCode::UnexpectedFrame, due), ids(&class)))
            }
            Frame::Method(_, class) => self.method(class, shared).map(|()| Next::Stay),
            Frame::Refused(_, fault) => Err(fault),
            Frame::BadHeader(_, fault) => Err(self.assembly.bad_header(fault)),
            Frame::Header(_, header) => {
                if let Some(user) = header.properties.user_id()
                    && user.as_str() != shared.user
                {
                    let text = format!("user_id property set to '{user}' but authenticated user was '{}'", shared.user);
                    return Err(Fault::of(AmqpError::new(ReplyCode::PreconditionFailed, text), PUBLISH));
                }
                let complete = self.assembly.header(*header, shared.limits.max_message)?;
                self.complete(complete, shared)?;
                Ok(Next::Stay)
            }
            Frame::Body(_, part) => {
                let before = self.assembly.held();
                let complete = self.assembly.body(part);
                shared.assembling = shared.assembling - before + self.assembly.held();
                self.complete(complete?, shared)?;
                Ok(Next::Stay)
            }
            Frame::Heartbeat => Ok(Next::Stay),
        }
    }

    fn method(&mut self, class: AMQPClass, shared: &mut Shared) -> Result<(), Fault> {
        let method = ids(&class);
        if !self.confirms.all_ended() && is_answered_here(&class) {
            // A client that hears the answer knows that the broker has found no fault with what came before.
            self.request = Some(Request { kind: Kind::Behind { class }, method, nowait: false });
            return Ok(());
        }
        let of = |error| Fault::of(error, method);
        let asked = match class {
            AMQPClass::Basic(basic) => return self.basic(basic, method, shared),
            AMQPClass::Exchange(exchange) => topology::exchange(exchange),
            AMQPClass::Queue(queue) => topology::queue(queue, self.last_queue.as_ref()).map_err(of)?,
            AMQPClass::Channel(channel::AMQPMethod::Close(_)) => {
                self.phase = Phase::Leaving;
                self.close(shared);
                return Ok(());
            }
            AMQPClass::Channel(channel::AMQPMethod::Open(_)) => {
                return Err(of(AmqpError::new(ReplyCode::ChannelError, "second 'channel.open' seen")));
            }
            AMQPClass::Channel(channel::AMQPMethod::Flow(flow)) if flow.active => {
                let ok = channel::AMQPMethod::FlowOk(channel::FlowOk { active: true });
                shared.output.method(self.id, AMQPClass::Channel(ok));
                return Ok(());
            }
            AMQPClass::Channel(channel::AMQPMethod::Flow(_)) => {
                return Err(of(AmqpError::not_implemented("active=false")));
            }
            AMQPClass::Confirm(confirm::AMQPMethod::Select(_)) if self.transaction.is_some() => {
                return Err(of(tx::wrong_mode("cannot switch from tx to confirm mode")));
            }
            AMQPClass::Confirm(confirm::AMQPMethod::Select(select)) => {
                self.confirms.select();
                if !select.nowait {
                    let ok = confirm::AMQPMethod::SelectOk(confirm::SelectOk {});
                    shared.output.method(self.id, AMQPClass::Confirm(ok));
                }
                return Ok(());
            }
            AMQPClass::Tx(class) => return self.tx(class, method, shared),
            AMQPClass::Access(access::AMQPMethod::Request(_)) => {
                let ok = access::AMQPMethod::RequestOk(access::RequestOk {});
                shared.output.method(self.id, AMQPClass::Access(ok));
                return Ok(());
            }
            AMQPClass::Connection(_)
            | AMQPClass::Channel(_)
            | AMQPClass::Access(_)
            | AMQPClass::Confirm(confirm::AMQPMethod::SelectOk(_)) => None,
        };
        let Some(Asked { request, answer, nowait }) = asked else {
            return Err(of(AmqpError::new(ReplyCode::CommandInvalid, "a client does not send this method")));
        };
        let command = Command::Topology { channel: self.id, request };
        self.ask(command, Kind::Topology(answer), method, nowait, shared);
        Ok(())
    }

    fn basic(&mut self, class: basic::AMQPMethod, method: (u16, u16), shared: &mut Shared) -> Result<(), Fault> {
        use basic::AMQPMethod as M;
        let of = |error| Fault::of(error, method);
        match class {
            M::Publish(publish) => return self.assembly.begin(publish),
            M::Ack(ack) => self.settle(ack.delivery_tag, ack.multiple, Outcome::Ack, shared).map_err(of)?,
            M::Nack(nack) => {
                let outcome = if nack.requeue { Outcome::Requeue } else { Outcome::Reject };
                self.settle(nack.delivery_tag, nack.multiple, outcome, shared).map_err(of)?;
            }
            M::Reject(reject) => {
                let outcome = if reject.requeue { Outcome::Requeue } else { Outcome::Reject };
                self.settle(reject.delivery_tag, false, outcome, shared).map_err(of)?;
            }
            M::Qos(qos) => {
                if qos.global {
                    self.consumers.set_limit(qos.prefetch_count);
                    self.release(shared);
                    self.touch(shared);
                } else {
                    self.consumers.next_prefetch = qos.prefetch_count;
                }
                self.tell(M::QosOk(basic::QosOk {}), shared);
            }
            M::Consume(consume) => self.consume(consume, shared)?,
            M::Cancel(cancel) if !self.consumers.contains(&cancel.consumer_tag) => {
                if !cancel.nowait {
                    self.tell(M::CancelOk(basic::CancelOk { consumer_tag: cancel.consumer_tag }), shared);
                }
            }
            M::Cancel(cancel) => {
                let tag = cancel.consumer_tag;
                let command = Command::Cancel { channel: self.id, consumer_tag: tag.clone() };
                self.ask(command, Kind::Cancel { tag }, method, cancel.nowait, shared);
            }
            M::Get(get) => {
                let queue = topology::named(get.queue, self.last_queue.as_ref()).map_err(of)?;
                let command = Command::Get { channel: self.id, queue };
                self.ask(command, Kind::Get { no_ack: get.no_ack }, method, false, shared);
            }
            M::Recover(recover) => {
                self.recover(recover.requeue, shared).map_err(of)?;
                self.tell(M::RecoverOk(basic::RecoverOk {}), shared);
            }
            M::RecoverAsync(recover) => self.recover(recover.requeue, shared).map_err(of)?,
            M::QosOk(_)
            | M::ConsumeOk(_)
            | M::CancelOk(_)
            | M::Return(_)
            | M::Deliver(_)
            | M::GetOk(_)
            | M::GetEmpty(_)
            | M::RecoverOk(_) => {
                return Err(of(AmqpError::new(ReplyCode::CommandInvalid, "a client does not send this method")));
            }
        }
        Ok(())
    }

    /// A body frame or an empty body may have completed a publish.
    fn complete(&mut self, complete: Option<Complete>, shared: &mut Shared) -> Result<(), Fault> {
        if let Some(complete) = complete {
            match &mut self.transaction {
                Some(transaction) => shared.assembling += transaction.publish(complete),
                None => self.publish(complete, shared),
            }
        }
        if shared.assembling > shared.limits.max_assembling {
            let text = format!("more than {} bytes of unfinished messages", shared.limits.max_assembling);
            return Err(Fault::of(AmqpError::new(ReplyCode::ResourceError, text), PUBLISH));
        }
        Ok(())
    }

    fn publish(&mut self, Complete { mandatory, message }: Complete, shared: &mut Shared) {
        let size = message.body.len();
        let publish = Publish { channel: self.id, seq: self.confirms.publish(size), mandatory, message };
        shared.publishes += 1;
        shared.publish_bytes += size;
        shared.counts.published += 1;
        self.send(Command::Publish(Box::new(publish)), shared);
    }

    fn tx(&mut self, class: tx_class::AMQPMethod, method: (u16, u16), shared: &mut Shared) -> Result<(), Fault> {
        use tx_class::AMQPMethod as M;
        let of = |error| Fault::of(error, method);
        let ok = match (class, &mut self.transaction) {
            (M::Select(_), _) if self.confirms.is_selected() => {
                return Err(of(tx::wrong_mode("cannot switch from confirm to tx mode")));
            }
            (M::Select(_), transaction) => {
                transaction.get_or_insert_default();
                M::SelectOk(tx_class::SelectOk {})
            }
            (M::Commit(_) | M::Rollback(_), None) => return Err(of(tx::wrong_mode("channel is not transactional"))),
            (M::Commit(_), Some(transaction)) => {
                shared.assembling -= transaction.weight();
                let publishes = transaction.take_publishes();
                for complete in publishes {
                    self.publish(complete, shared);
                }
                self.request = Some(Request { kind: Kind::Commit { failed: false }, method, nowait: false });
                return self.end_of_publishes(shared);
            }
            (M::Rollback(_), Some(transaction)) => {
                shared.assembling -= transaction.weight();
                transaction.take_publishes();
                let settled = transaction.take_settlements();
                self.unacked.restore(settled.into_iter().flat_map(|(_, settled)| settled));
                M::RollbackOk(tx_class::RollbackOk {})
            }
            (M::SelectOk(_) | M::CommitOk(_) | M::RollbackOk(_), _) => {
                return Err(of(AmqpError::new(ReplyCode::CommandInvalid, "a client does not send this method")));
            }
        };
        shared.output.method(self.id, AMQPClass::Tx(ok));
        Ok(())
    }

    /// Goes on with what waited for the end of all publishes.
    fn end_of_publishes(&mut self, shared: &mut Shared) -> Result<(), Fault> {
        if !self.confirms.all_ended() {
            return Ok(());
        }
        let Some(request) = self.request.take_if(|request| request.waits_for_publishes()) else {
            return Ok(());
        };
        if matches!(self.phase, Phase::Refused | Phase::Settling) {
            self.close(shared);
            return Ok(());
        }
        match request.kind {
            Kind::Commit { failed } => self.end_commit(failed, request.method, shared)?,
            Kind::Behind { class } => self.method(class, shared)?,
            _ => {}
        }
        self.tell_ended(shared);
        Ok(())
    }

    fn end_commit(&mut self, failed: bool, method: (u16, u16), shared: &mut Shared) -> Result<(), Fault> {
        if failed {
            let error = AmqpError::new(ReplyCode::PreconditionFailed, "partial tx completion");
            return Err(Fault::of(error, method));
        }
        let settlements = self.transaction.as_mut().map(Transaction::take_settlements).unwrap_or_default();
        for (outcome, settled) in settlements {
            self.settled(outcome, &settled, shared);
        }
        let ok = tx_class::AMQPMethod::CommitOk(tx_class::CommitOk {});
        shared.output.method(self.id, AMQPClass::Tx(ok));
        Ok(())
    }

    fn consume(&mut self, consume: basic::Consume, shared: &mut Shared) -> Result<(), Fault> {
        const METHOD: (u16, u16) = (60, 20);
        let queue = topology::named(consume.queue, self.last_queue.as_ref()).map_err(|e| Fault::of(e, METHOD))?;
        shared.next_key += 1;
        let key = shared.next_key;
        let tag = if consume.consumer_tag.as_str().is_empty() {
            ShortString::from(format!("amq.ctag-{}{key:08x}", shared.tag_prefix))
        } else {
            consume.consumer_tag
        };
        if self.consumers.contains(&tag) {
            let text = format!("attempt to reuse consumer tag '{tag}'");
            return Err(Fault::of(AmqpError::new(ReplyCode::NotAllowed, text), METHOD));
        }
        let credit = self.consumers.add(key, tag.clone(), consume.no_ack);
        shared.counts.consumers += 1;
        let asked = Consume {
            queue,
            consumer_tag: tag.clone(),
            exclusive: consume.exclusive,
            no_ack: consume.no_ack,
            credit,
            no_limit: self.consumers.is_unlimited(key),
            arguments: consume.arguments,
        };
        let command = Command::Consume { channel: self.id, consume: asked };
        self.ask(command, Kind::Consume { tag }, METHOD, consume.nowait, shared);
        Ok(())
    }

    fn settle(&mut self, tag: u64, multiple: bool, outcome: Outcome, shared: &mut Shared) -> Result<(), AmqpError> {
        let mut settled: SmallVec<[(u64, Entry); 1]> = SmallVec::new();
        let answer = self.unacked.settle(tag, multiple, |tag, entry| settled.push((tag, entry)));
        if answer.is_err() {
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, format!("unknown delivery tag {tag}")));
        }
        match &mut self.transaction {
            Some(transaction) => transaction.settle(outcome, settled.into_vec()),
            None => self.settled(outcome, &settled, shared),
        }
        Ok(())
    }

    /// Tells the broker how deliveries, ascending by tag, have ended.
    fn settled(&mut self, outcome: Outcome, settled: &[(u64, Entry)], shared: &mut Shared) {
        let (Some((first, _)), Some((last, _))) = (settled.first(), settled.last()) else { return };
        for (_, entry) in settled {
            if let Some(key) = entry.consumer {
                self.consumers.settled(key);
            }
        }
        shared.counts.settled += settled.len() as u64;
        if outcome == Outcome::Ack {
            if *first < self.last_ack {
                self.send_acks(shared);
            }
            self.last_ack = *last;
            self.acks.extend(tx::names(settled));
        } else {
            let deliveries = tx::names(settled);
            self.send(Command::Settle { channel: self.id, deliveries, outcome }, shared);
        }
        self.release(shared);
        self.touch(shared);
    }

    fn recover(&mut self, requeue: bool, shared: &mut Shared) -> Result<(), AmqpError> {
        if !requeue {
            return Err(AmqpError::not_implemented("requeue=false"));
        }
        // Not part of a transaction, as in RabbitMQ.
        let mut settled = Vec::new();
        self.unacked.drain(|tag, entry| settled.push((tag, entry)));
        self.settled(Outcome::Requeue, &settled, shared);
        Ok(())
    }

    /// Takes the broker's answer to the request in flight.
    ///
    /// # Errors
    /// A fault, which closes the channel or the connection.
    pub(super) fn reply(&mut self, reply: Result<Reply, AmqpError>, shared: &mut Shared) -> Result<Next, Fault> {
        let Some(Request { kind, method, nowait }) = self.request.take_if(|request| !request.waits_for_publishes())
        else {
            return Err(Fault::new(ReplyCode::InternalError, "the broker answered what was not asked"));
        };
        if matches!(self.phase, Phase::Refused | Phase::Settling) {
            if !matches!(kind, Kind::Close) {
                self.close(shared);
                return Ok(Next::Stay);
            }
            return Ok(if self.phase == Phase::Settling { Next::Remove } else { Next::Stay });
        }
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => {
                return Err(Fault::of(error, method));
            }
        };
        let misfit = || Fault::of(AmqpError::new(ReplyCode::InternalError, "the broker's answer does not fit"), method);
        match kind {
            Kind::Open => {
                self.phase = Phase::Open;
                let ok = channel::AMQPMethod::OpenOk(channel::OpenOk {});
                shared.output.method(self.id, AMQPClass::Channel(ok));
            }
            Kind::Close => {
                let ok = channel::AMQPMethod::CloseOk(channel::CloseOk {});
                shared.output.method(self.id, AMQPClass::Channel(ok));
                return Ok(Next::Remove);
            }
            Kind::Topology(answer) => {
                if let Reply::Queue { queue, .. } = &reply {
                    self.last_queue = Some(queue.clone());
                }
                let ok = answer.method(reply).ok_or_else(misfit)?;
                if !nowait {
                    shared.output.method(self.id, ok);
                }
            }
            Kind::Consume { tag } => {
                if !nowait {
                    self.tell(basic::AMQPMethod::ConsumeOk(basic::ConsumeOk { consumer_tag: tag }), shared);
                }
            }
            Kind::Cancel { tag } => {
                self.forget(&tag, shared);
                if !nowait {
                    self.tell(basic::AMQPMethod::CancelOk(basic::CancelOk { consumer_tag: tag }), shared);
                }
            }
            Kind::Get { no_ack } => match reply {
                Reply::Got(None) => self.tell(basic::AMQPMethod::GetEmpty(basic::GetEmpty {}), shared),
                Reply::Got(Some(got)) => self.got(got.delivery, got.message_count, no_ack, shared),
                Reply::Done | Reply::Queue { .. } | Reply::MessageCount(_) => return Err(misfit()),
            },
            Kind::Commit { .. } | Kind::Behind { .. } => {}
        }
        self.tell_ended(shared);
        self.touch(shared);
        Ok(Next::Stay)
    }

    fn got(&mut self, delivery: Delivery, message_count: u32, no_ack: bool, shared: &mut Shared) {
        let Delivery { id, redelivered, message } = delivery;
        let Message { exchange, routing_key, properties, body } = message;
        let delivery_tag = if no_ack {
            self.note(Sent { generation: shared.generation, settle: Some(id), consumer: None }, shared);
            self.unacked.tag()
        } else {
            self.unacked.add(Entry { id, consumer: None })
        };
        let ok = basic::GetOk { delivery_tag, redelivered, exchange, routing_key, message_count };
        self.tell(basic::AMQPMethod::GetOk(ok), shared);
        shared.output.content(self.id, properties, &body, shared.frame_max);
        shared.counts.delivered += 1;
    }

    /// Takes a delivery to a consumer.
    pub(super) fn deliver(&mut self, tag: &ShortString, delivery: Box<Delivery>, shared: &mut Shared) {
        if self.phase != Phase::Open {
            // Closing the channel requeues it.
            return;
        }
        match self.consumers.arrived(tag) {
            Some((key, true)) => self.consumers.hold(key, delivery),
            Some((key, false)) => self.write(key, *delivery, shared),
            None => {
                self.strays.push(delivery.id);
                self.touch(shared);
            }
        }
    }

    fn write(&mut self, key: u32, delivery: Delivery, shared: &mut Shared) {
        let Some(consumer) = self.consumers.get(key) else { return };
        let (no_ack, tag) = (consumer.no_ack, consumer.tag.clone());
        let Delivery { id, redelivered, message } = delivery;
        let delivery_tag =
            if no_ack { self.unacked.tag() } else { self.unacked.add(Entry { id, consumer: Some(key) }) };
        if self.consumers.sent(key) || no_ack {
            let settle = no_ack.then_some(id);
            self.note(Sent { generation: shared.generation, settle, consumer: Some(key) }, shared);
        }
        shared.output.deliver(self.id, tag.as_str(), delivery_tag, redelivered, &message);
        shared.output.content(self.id, message.properties, &message.body, shared.frame_max);
        shared.counts.delivered += 1;
    }

    /// Sends what the channel's prefetch held back and now lets through.
    fn release(&mut self, shared: &mut Shared) {
        while let Some((key, delivery)) = self.consumers.release() {
            self.write(key, *delivery, shared);
        }
    }

    /// Removes a consumer; what was held for it goes back to its queue.
    fn forget(&mut self, tag: &ShortString, shared: &mut Shared) {
        self.strays.extend(self.consumers.remove(tag));
        shared.counts.consumers -= 1;
        // Others may have waited behind them.
        self.release(shared);
        self.touch(shared);
    }

    /// The broker ended a consumer.
    pub(super) fn cancelled(&mut self, tag: ShortString, shared: &mut Shared) {
        if self.phase != Phase::Open || !self.consumers.contains(&tag) {
            return;
        }
        if self.request.is_some() {
            self.ended.push(tag);
            return;
        }
        self.forget(&tag, shared);
        if shared.capabilities.consumer_cancel_notify {
            self.tell(basic::AMQPMethod::Cancel(basic::Cancel { consumer_tag: tag, nowait: true }), shared);
        }
    }

    /// Tells the client of consumers that ended during the last request.
    fn tell_ended(&mut self, shared: &mut Shared) {
        for tag in std::mem::take(&mut self.ended) {
            self.cancelled(tag, shared);
        }
    }

    /// The broker gives a message back.
    pub(super) fn returned(&mut self, error: &AmqpError, message: Message, shared: &mut Shared) {
        if self.phase != Phase::Open {
            return;
        }
        let Message { exchange, routing_key, properties, body } = message;
        let method = basic::Return {
            reply_code: error.code as u16,
            reply_text: error.code.name().into(),
            exchange,
            routing_key,
        };
        self.tell(basic::AMQPMethod::Return(method), shared);
        shared.output.content(self.id, properties, &body, shared.frame_max);
        shared.counts.returned += 1;
    }

    /// The broker ended a publish.
    ///
    /// # Errors
    /// A fault when it was part of a transaction that has failed.
    pub(super) fn confirm(&mut self, seq: u64, outcome: PublishOutcome, shared: &mut Shared) -> Result<Next, Fault> {
        if let Some(size) = self.confirms.end(seq, outcome) {
            shared.publish_bytes -= size;
            self.touch(shared);
        }
        if let Some(Request { kind: Kind::Commit { failed }, .. }) = &mut self.request {
            *failed |= outcome == PublishOutcome::Failed;
        }
        self.end_of_publishes(shared)?;
        Ok(Next::Stay)
    }

    /// What the asynchronous failure of a channel is blamed on.
    pub(super) fn culprit(&self) -> (u16, u16) {
        if self.confirms.open() > 0 { PUBLISH } else { (0, 0) }
    }

    /// Closes the channel for an error: tells the client and the broker.
    pub(super) fn refuse(&mut self, fault: &Fault, shared: &mut Shared) {
        if matches!(self.phase, Phase::Refused | Phase::Settling) {
            return;
        }
        self.tell_confirms(shared);
        let was_leaving = self.phase == Phase::Leaving;
        self.phase = Phase::Refused;
        self.take_parked(shared);
        let close = channel::Close {
            reply_code: fault.error.code as u16,
            reply_text: reply_text(&fault.error),
            class_id: fault.method.0,
            method_id: fault.method.1,
        };
        shared.output.method(self.id, AMQPClass::Channel(channel::AMQPMethod::Close(close)));
        if was_leaving {
            // The client waits for its own close-ok and will answer this one.
            shared.output.method(self.id, AMQPClass::Channel(channel::AMQPMethod::CloseOk(channel::CloseOk {})));
        }
        if self.request.is_none() && !was_leaving {
            self.close(shared);
        }
    }

    /// Asks the broker to close the channel.
    fn close(&mut self, shared: &mut Shared) {
        self.settle_all_sent(shared);
        self.abandon(shared);
        let method = (20, 40);
        self.ask(Command::CloseChannel { channel: self.id }, Kind::Close, method, false, shared);
    }

    /// Settles what a client that does not acknowledge was sent; its bytes go before whatever is said next.
    pub(super) fn settle_all_sent(&mut self, shared: &mut Shared) {
        self.done.extend(self.sent.drain(..).filter_map(|sent| sent.settle));
        self.send_acks(shared);
    }

    /// Gives up the channel's share of the connection's bounds.
    pub(super) fn abandon(&mut self, shared: &mut Shared) {
        let transaction = self.transaction.take().unwrap_or_default();
        shared.assembling -= self.assembly.held() + transaction.weight();
        self.assembly = Assembly::Idle;
        shared.publish_bytes -= self.confirms.bytes();
        shared.publishes -= self.confirms.open();
        self.confirms = Confirms::default();
        shared.counts.consumers -= self.consumers.len() as u64;
        self.consumers = Consumers::default();
        self.take_parked(shared);
    }

    /// All bytes of the generations before `shared.generation` are written.
    pub(super) fn written(&mut self, shared: &mut Shared) {
        while let Some(sent) = self.sent.pop_front_if(|sent| sent.generation < shared.generation) {
            self.done.extend(sent.settle);
            if let Some(key) = sent.consumer {
                self.consumers.written(key);
            }
        }
        self.touch(shared);
        if !self.sent.is_empty() {
            shared.unwritten.push(self.id);
        }
    }

    /// Ends a batch: tells the client of confirms, the broker of acknowledgements and credit.
    pub(super) fn flush(&mut self, shared: &mut Shared) {
        self.is_touched = false;
        if self.phase == Phase::Open {
            self.tell_confirms(shared);
        }
        if self.request.is_some() || self.phase != Phase::Open {
            // A reply touches the channel again.
            return;
        }
        self.send_acks(shared);
        if !self.strays.is_empty() {
            let deliveries = std::mem::take(&mut self.strays);
            shared.commands.push_back(Command::Settle { channel: self.id, deliveries, outcome: Outcome::Requeue });
        }
        if self.consumers.has_changed() {
            let (id, commands) = (self.id, &mut shared.commands);
            self.consumers.credit(self.unacked.len(), |tag, amount| {
                commands.push_back(Command::Credit { channel: id, consumer_tag: tag.clone(), amount });
            });
        }
    }

    fn tell_confirms(&mut self, shared: &mut Shared) {
        let before = self.confirms.open();
        let id = self.id;
        let Shared { output, counts, .. } = shared;
        self.confirms.tell(|verdict| match verdict {
            Verdict::Ack { tag, multiple } => {
                counts.acks += 1;
                output.ack(id, tag, multiple);
            }
            Verdict::Nack { tag } => {
                counts.nacks += 1;
                let nack = basic::Nack { delivery_tag: tag, multiple: false, requeue: false };
                output.method(id, AMQPClass::Basic(basic::AMQPMethod::Nack(nack)));
            }
        });
        shared.publishes -= before - self.confirms.open();
    }

    fn tell(&mut self, method: basic::AMQPMethod, shared: &mut Shared) {
        shared.output.method(self.id, AMQPClass::Basic(method));
    }

    fn note(&mut self, sent: Sent, shared: &mut Shared) {
        if self.sent.is_empty() {
            shared.unwritten.push(self.id);
        }
        self.sent.push_back(sent);
    }

    fn touch(&mut self, shared: &mut Shared) {
        if !self.is_touched {
            self.is_touched = true;
            shared.touched.push(self.id);
        }
    }

    fn send_acks(&mut self, shared: &mut Shared) {
        let channel = self.id;
        for list in [&mut self.acks, &mut self.done] {
            if !list.is_empty() {
                let deliveries = std::mem::take(list);
                shared.commands.push_back(Command::Settle { channel, deliveries, outcome: Outcome::Ack });
            }
        }
    }

    /// Sends a command behind the acknowledgements that came before it.
    fn send(&mut self, command: Command, shared: &mut Shared) {
        self.send_acks(shared);
        shared.commands.push_back(command);
    }

    fn ask(&mut self, command: Command, kind: Kind, method: (u16, u16), nowait: bool, shared: &mut Shared) {
        debug_assert!(self.request.is_none());
        self.request = Some(Request { kind, method, nowait });
        self.send(command, shared);
    }
}

/// Whether a method is answered without the broker.
fn is_answered_here(class: &AMQPClass) -> bool {
    use basic::AMQPMethod as B;
    match class {
        AMQPClass::Basic(B::Qos(_) | B::Recover(_))
        | AMQPClass::Channel(channel::AMQPMethod::Flow(_))
        | AMQPClass::Confirm(confirm::AMQPMethod::Select(confirm::Select { nowait: false }))
        | AMQPClass::Tx(tx_class::AMQPMethod::Select(_))
        | AMQPClass::Access(_) => true,
        AMQPClass::Basic(_)
        | AMQPClass::Channel(_)
        | AMQPClass::Confirm(_)
        | AMQPClass::Connection(_)
        | AMQPClass::Exchange(_)
        | AMQPClass::Queue(_)
        | AMQPClass::Tx(_) => false,
    }
}

/// Class and method id.
pub(super) fn ids(class: &AMQPClass) -> (u16, u16) {
    (class.get_amqp_class_id(), class.get_amqp_method_id())
}

/// An error's text, cut to what a short string takes.
pub(super) fn reply_text(error: &AmqpError) -> ShortString {
    let mut text = error.to_string();
    let mut end = text.len().min(255);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    ShortString::from(text)
}
