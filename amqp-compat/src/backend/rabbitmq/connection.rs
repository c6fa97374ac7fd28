//! One upstream connection: commands to frames and frames to events, over all its channels.

use std::collections::{HashMap, VecDeque};

use amq_protocol::protocol::{AMQPClass, connection};

use super::channel::{Channel, Io, refuse};
use super::errors::{from_close, unexpected};
use super::wire::{Frame, Outbox};
use crate::backend::{ChannelId, Command, Event};
use crate::error::{AmqpError, ReplyCode};

/// What was agreed on with RabbitMQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tuned {
    /// The highest channel number.
    pub(super) channel_max: u16,
    /// The largest frame, in bytes, with its 8 bytes of overhead.
    pub(super) frame_max: usize,
    /// Seconds between signs of life; 0: none are sent.
    pub(super) heartbeat: u16,
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// RabbitMQ agreed to our closing it.
    ByUs,
    /// RabbitMQ closed it, or cannot be understood.
    ByThem(AmqpError),
}

/// The state of one upstream connection. Pure: bytes to write collect in [`Connection::out`], events in
/// [`Connection::events`].
#[derive(Debug)]
pub(super) struct Connection {
    /// Frames for RabbitMQ.
    pub(super) out: Outbox,
    /// Events for the session.
    pub(super) events: VecDeque<Event>,
    channels: HashMap<ChannelId, Channel>,
    tuned: Tuned,
    incarnations: u64,
    unconfirmed: usize,
    backlog: usize,
}

impl Connection {
    /// A connection on which `connection.open-ok` was just received.
    pub(super) fn new(tuned: Tuned) -> Self {
        let (out, events, channels) = (Outbox::default(), VecDeque::new(), HashMap::new());
        Self { out, events, channels, tuned, incarnations: 0, unconfirmed: 0, backlog: 0 }
    }

    /// How many publishes RabbitMQ has not confirmed, over all channels.
    pub(super) fn unconfirmed(&self) -> usize {
        self.unconfirmed
    }

    /// Bytes of deliveries that wait for credit, over all channels.
    pub(super) fn backlog(&self) -> usize {
        self.backlog
    }

    /// Carries out a command of the session.
    pub(super) fn command(&mut self, command: Command) {
        let id = command.channel();
        let opens = matches!(command, Command::OpenChannel { .. });
        let mut io = Io { out: &mut self.out, events: &mut self.events, frame_max: self.tuned.frame_max };
        match self.channels.get_mut(&id) {
            Some(channel) if !(opens && channel.has_failed()) => {
                let (unconfirmed, backlog) = (channel.unconfirmed(), channel.backlog());
                channel.command(command, &mut io);
                self.unconfirmed = self.unconfirmed - unconfirmed + channel.unconfirmed();
                self.backlog = self.backlog - backlog + channel.backlog();
                if channel.is_gone() {
                    self.channels.remove(&id);
                }
            }
            _ if opens && (1..=self.tuned.channel_max).contains(&id) => {
                self.incarnations += 1;
                self.channels.insert(id, Channel::open(id, self.incarnations, &mut io));
            }
            _ if opens => {
                let text = format!("channel {id} is above the negotiated channel_max ({})", self.tuned.channel_max);
                refuse(command, &AmqpError::new(ReplyCode::NotAllowed, text), &mut self.events);
            }
            _ => refuse(command, &AmqpError::new(ReplyCode::ChannelError, "expected 'channel.open'"), &mut self.events),
        }
    }

    /// Takes a frame of RabbitMQ.
    ///
    /// # Errors
    /// The connection ended with it.
    pub(super) fn frame(&mut self, frame: Frame) -> Result<(), Ended> {
        match frame {
            Frame::Heartbeat => Ok(()),
            Frame::Method(0, class) => self.method(class),
            Frame::Method(id, class) => self.on_channel(id, |channel, io| channel.method(class, io)),
            Frame::Header(id, size, properties) => {
                self.on_channel(id, |channel, io| channel.header(size, properties, io))
            }
            Frame::Body(id, part) => self.on_channel(id, |channel, io| channel.body(part, io)),
        }
    }

    fn on_channel(
        &mut self,
        id: ChannelId,
        take: impl FnOnce(&mut Channel, &mut Io) -> Result<(), AmqpError>,
    ) -> Result<(), Ended> {
        let Some(channel) = self.channels.get_mut(&id) else {
            return Err(Ended::ByThem(unexpected(format_args!("a frame on channel {id}, which is not open"))));
        };
        let mut io = Io { out: &mut self.out, events: &mut self.events, frame_max: self.tuned.frame_max };
        let (unconfirmed, backlog) = (channel.unconfirmed(), channel.backlog());
        let taken = take(channel, &mut io);
        self.unconfirmed = self.unconfirmed - unconfirmed + channel.unconfirmed();
        self.backlog = self.backlog - backlog + channel.backlog();
        if channel.is_gone() {
            self.channels.remove(&id);
        }
        taken.map_err(Ended::ByThem)
    }

    fn method(&mut self, class: AMQPClass) -> Result<(), Ended> {
        use connection::AMQPMethod as Method;
        match class {
            AMQPClass::Connection(Method::Close(close)) => {
                self.out.method(0, AMQPClass::Connection(Method::CloseOk(connection::CloseOk {})));
                Err(Ended::ByThem(from_close(close.reply_code, close.reply_text.as_str())))
            }
            AMQPClass::Connection(Method::CloseOk(_)) => Err(Ended::ByUs),
            AMQPClass::Connection(Method::Blocked(blocked)) => {
                self.events.push_back(Event::Blocked { reason: blocked.reason.into() });
                Ok(())
            }
            AMQPClass::Connection(Method::Unblocked(_)) => {
                self.events.push_back(Event::Unblocked);
                Ok(())
            }
            other => {
                let ids = (other.get_amqp_class_id(), other.get_amqp_method_id());
                Err(Ended::ByThem(unexpected(format_args!("method {}.{} on channel 0", ids.0, ids.1))))
            }
        }
    }

    /// Asks RabbitMQ to close the connection. What was sent before is carried out first.
    pub(super) fn close(&mut self) {
        let close = connection::Close { reply_code: 200, reply_text: "OK".into(), class_id: 0, method_id: 0 };
        self.out.method(0, AMQPClass::Connection(connection::AMQPMethod::Close(close)));
    }

    /// Answers all that is open with this error, then a command that came too late.
    pub(super) fn lost(&mut self, error: &AmqpError, too_late: impl Iterator<Item = Command>) {
        let mut io = Io { out: &mut self.out, events: &mut self.events, frame_max: self.tuned.frame_max };
        for channel in self.channels.values_mut() {
            channel.lost(error, &mut io);
        }
        self.channels.clear();
        self.unconfirmed = 0;
        for command in too_late {
            refuse(command, error, &mut self.events);
        }
        self.events.push_back(Event::Closed { error: error.clone() });
    }
}
