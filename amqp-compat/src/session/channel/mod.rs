//! The life of a channel, and the order of what happens on it.
//!
//! While a request of a channel is with the broker, the channel's later frames are parked, so that everything takes
//! effect in the order in which the client sent it.

mod delivery;
mod publishing;
mod settlement;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use amq_protocol::protocol::{AMQPClass, access, basic, channel, confirm, tx as tx_class};
use amq_protocol::types::ShortString;
use smallvec::SmallVec;

use crate::backend::{
    ChannelId, Command, Consume, Delivery, DeliveryId, Message, Outcome, Publish, PublishOutcome, Reply,
};
use crate::codec::Output;
use crate::error::{AmqpError, ReplyCode};
use crate::session::confirms::{Confirms, Verdict};
use crate::session::consumers::Consumers;
use crate::session::description::ChannelDescription;
use crate::session::frame::{Fault, Frame};
use crate::session::handshake::Capabilities;
use crate::session::overdue::{Due, Watch};
use crate::session::publish::{Assembly, Complete, PUBLISH};
use crate::session::topology::{self, Answer, Asked};
use crate::session::tx::{self, Transaction};
use crate::session::unacked::{Entry, Unacked};
use crate::session::{Counts, Limits};

/// What the channels of a connection share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The time.
    pub(super) now: Instant,
    /// When to look for deliveries that are not settled in time.
    pub(super) overdue: Watch,
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
    pub(super) frame_max: usize,
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
        matches!(self.kind, Kind::Commit { .. } | Kind::Behind { .. } | Kind::Fault { .. })
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
    /// The same for a fault.
    Fault {
        fault: Fault,
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

    /// Of its deliveries the one that is to be settled first; none while it is closed.
    pub(super) fn earliest_due(&self) -> Option<Due> {
        if self.phase == Phase::Open { self.unacked.earliest() } else { None }
    }

    /// What can be told of it.
    pub(super) fn describe(&self) -> ChannelDescription {
        let confirm = self.confirms.is_selected();
        let (publishes, settlements) = self.transaction.as_ref().map(Transaction::sizes).unwrap_or_default();
        ChannelDescription {
            number: self.id,
            confirm,
            transactional: self.transaction.is_some(),
            prefetch: self.consumers.next_prefetch,
            global_prefetch: self.consumers.limit(),
            unacknowledged: self.unacked.len(),
            unconfirmed: if confirm { self.confirms.open() } else { 0 },
            uncommitted_publishes: publishes,
            uncommitted_settlements: settlements,
            consumers: self.consumers.describe(),
        }
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
        match self.work(frame, shared) {
            // What was published before may be at fault as well, and the client hears of the first fault.
            Err(fault) if !self.confirms.all_ended() && !fault.is_of_framing() => {
                let method = fault.method;
                self.request = Some(Request { kind: Kind::Fault { fault }, method, nowait: false });
                Ok(Next::Stay)
            }
            next => next,
        }
    }

    fn work(&mut self, frame: Frame, shared: &mut Shared) -> Result<Next, Fault> {
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
            return Err(of(AmqpError::new(ReplyCode::CommandInvalid, "unimplemented method")));
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
                // A limit for each consumer ends that of the channel, as in RabbitMQ.
                let limit = if qos.global { qos.prefetch_count } else { 0 };
                if !qos.global {
                    self.consumers.next_prefetch = qos.prefetch_count;
                }
                self.consumers.set_limit(limit, self.unacked.len());
                self.release(shared);
                self.touch(shared);
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
                self.send_settled(shared);
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
                return Err(of(AmqpError::new(ReplyCode::CommandInvalid, "unimplemented method")));
            }
        }
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
            Kind::Commit { .. } | Kind::Behind { .. } | Kind::Fault { .. } => {}
        }
        self.tell_ended(shared);
        self.touch(shared);
        Ok(Next::Stay)
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

    /// Gives up the channel's share of the connection's bounds. What is parked stays: it may belong to the next channel of
    /// this number.
    pub(super) fn abandon(&mut self, shared: &mut Shared) {
        let transaction = self.transaction.take().unwrap_or_default();
        shared.assembling -= self.assembly.held() + transaction.weight();
        self.assembly = Assembly::Idle;
        shared.publish_bytes -= self.confirms.bytes();
        shared.publishes -= self.confirms.open();
        self.confirms = Confirms::default();
        shared.counts.consumers -= self.consumers.len() as u64;
        self.consumers = Consumers::default();
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
        self.send_credit(shared);
    }

    fn tell(&mut self, method: basic::AMQPMethod, shared: &mut Shared) {
        shared.output.method(self.id, AMQPClass::Basic(method));
    }

    fn touch(&mut self, shared: &mut Shared) {
        if !self.is_touched {
            self.is_touched = true;
            shared.touched.push(self.id);
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

/// An error's text, cut as RabbitMQ cuts it to what a short string takes, but never within a character.
pub(super) fn reply_text(error: &AmqpError) -> ShortString {
    let mut text = error.to_string();
    if text.len() > 255 {
        let mut end = 252;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str("...");
    }
    ShortString::from(text)
}
