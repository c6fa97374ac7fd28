//! One upstream connection: commands to frames and frames to events, over all its channels.

use std::collections::VecDeque;

use amq_protocol::protocol::{AMQPClass, connection};
use foldhash::{HashMap, HashMapExt};

use super::channel::{Channel, Io, refuse};
use super::errors::{from_close, unexpected};
use super::wire::Frame;
use crate::backend::{ChannelId, Command, Event};
use crate::codec::Output;
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
    pub(super) out: Output,
    /// Events for the session.
    pub(super) events: VecDeque<Event>,
    channels: HashMap<ChannelId, Channel>,
    // Channels with acknowledgements that RabbitMQ has not been told of.
    acked: Vec<ChannelId>,
    tuned: Tuned,
    incarnations: u64,
    unconfirmed: usize,
    backlog: usize,
}

impl Connection {
    /// A connection on which `connection.open-ok` was just received.
    pub(super) fn new(tuned: Tuned) -> Self {
        let (out, events, channels) = (Output::default(), VecDeque::new(), HashMap::new());
        Self { out, events, channels, acked: Vec::new(), tuned, incarnations: 0, unconfirmed: 0, backlog: 0 }
    }

    /// How many publishes RabbitMQ has not confirmed, over all channels.
    pub(super) fn unconfirmed(&self) -> usize {
        self.unconfirmed
    }

    /// Bytes of deliveries that wait for credit, over all channels.
    pub(super) fn backlog(&self) -> usize {
        self.backlog
    }

    /// Carries out commands of the session that came together.
    pub(super) fn commands(&mut self, commands: impl Iterator<Item = Command>) {
        commands.for_each(|command| self.command(command));
        let mut io = Io { out: &mut self.out, events: &mut self.events, frame_max: self.tuned.frame_max };
        for id in self.acked.drain(..) {
            if let Some(channel) = self.channels.get_mut(&id) {
                channel.tell_acks(&mut io);
            }
        }
    }

    fn command(&mut self, command: Command) {
        let id = command.channel();
        let opens = matches!(command, Command::OpenChannel { .. });
        let mut io = Io { out: &mut self.out, events: &mut self.events, frame_max: self.tuned.frame_max };
        match self.channels.get_mut(&id) {
            Some(channel) if !(opens && channel.has_failed()) => {
                let (unconfirmed, backlog, has_acks) = (channel.unconfirmed(), channel.backlog(), channel.has_acks());
                channel.command(command, &mut io);
                if channel.has_acks() && !has_acks {
                    self.acked.push(id);
                }
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

#[cfg(test)]
mod tests {
    use amq_protocol::protocol::basic;
    use amq_protocol::protocol::channel;
    use bytes::BytesMut;
    use smallvec::SmallVec;

    use super::super::wire;
    use super::*;
    use crate::backend::{Consume, DeliveryId, Outcome};

    const TUNED: Tuned = Tuned { channel_max: 10, frame_max: 4096, heartbeat: 0 };

    /// A connection with a channel 1 that was delivered this many messages, and their ids.
    fn delivered(count: u64) -> (Connection, Vec<DeliveryId>) {
        let mut connection = Connection::new(TUNED);
        connection.commands([Command::OpenChannel { channel: 1 }].into_iter());
        let open = AMQPClass::Channel(channel::AMQPMethod::OpenOk(channel::OpenOk {}));
        let select = AMQPClass::Confirm(amq_protocol::protocol::confirm::AMQPMethod::SelectOk(Default::default()));
        let consume = Consume {
            queue: "q".into(),
            consumer_tag: "t".into(),
            exclusive: false,
            no_ack: false,
            credit: 100,
            prefetch: 100,
            no_limit: false,
            arguments: Default::default(),
        };
        for class in [open, select] {
            connection.frame(Frame::Method(1, class)).expect("taken");
        }
        connection.commands([Command::Consume { channel: 1, consume }].into_iter());
        let consuming = basic::AMQPMethod::ConsumeOk(basic::ConsumeOk { consumer_tag: "t".into() });
        connection.frame(Frame::Method(1, AMQPClass::Basic(consuming))).expect("taken");
        for delivery_tag in 1..=count {
            let deliver = basic::Deliver {
                consumer_tag: "t".into(),
                delivery_tag,
                redelivered: false,
                exchange: "".into(),
                routing_key: "q".into(),
            };
            let class = AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver));
            connection.frame(Frame::Method(1, class)).expect("taken");
            connection.frame(Frame::Header(1, 0, Box::default())).expect("taken");
        }
        let ids = connection.events.drain(..).filter_map(|event| match event {
            Event::Delivery { delivery, .. } => Some(delivery.id),
            _ => None,
        });
        let ids: Vec<_> = ids.collect();
        assert_eq!(ids.len() as u64, count);
        said(&mut connection);
        (connection, ids)
    }

    /// What RabbitMQ is told, settlements shortened.
    fn said(connection: &mut Connection) -> Vec<String> {
        let mut bytes = Vec::new();
        connection.out.swap(&mut bytes);
        let mut input = BytesMut::from(&bytes[..]);
        std::iter::from_fn(|| wire::decode(&mut input, TUNED.frame_max).expect("frames"))
            .map(|frame| match frame {
                Frame::Method(_, AMQPClass::Basic(basic::AMQPMethod::Ack(basic::Ack { delivery_tag, multiple }))) => {
                    format!("ack {}{delivery_tag}", if multiple { "all to " } else { "" })
                }
                Frame::Method(_, AMQPClass::Basic(basic::AMQPMethod::Reject(reject))) => {
                    format!("reject {}", reject.delivery_tag)
                }
                Frame::Method(_, class) => format!("{}.{}", class.get_amqp_class_id(), class.get_amqp_method_id()),
                other => format!("{other:?}"),
            })
            .collect()
    }

    fn settle(id: DeliveryId, outcome: Outcome) -> Command {
        Command::Settle { channel: 1, deliveries: SmallVec::from_elem(id, 1), outcome }
    }

    #[test]
    fn acks_that_come_together_are_one_frame_as_far_as_nothing_is_open_before_them() {
        let (mut connection, ids) = delivered(9);
        let ack = |tags: &[usize]| tags.iter().map(|tag| settle(ids[tag - 1], Outcome::Ack)).collect::<Vec<_>>();
        connection.commands(ack(&[1]).into_iter());
        assert_eq!(said(&mut connection), ["ack 1"]);
        connection.commands(ack(&[3, 2, 7, 6]).into_iter());
        assert_eq!(said(&mut connection), ["ack all to 3", "ack 6", "ack 7"], "4 and 5 are open");
        connection.commands(ack(&[6, 4, 5]).into_iter());
        assert_eq!(said(&mut connection), ["ack all to 5"], "6 was told before");
        let credit = Command::Credit { channel: 1, consumer_tag: "t".into(), amount: 1 };
        connection.commands(ack(&[8]).into_iter().chain([credit]).chain(ack(&[9])));
        assert_eq!(said(&mut connection), ["ack all to 9"]);
    }

    #[test]
    fn what_follows_an_ack_on_its_channel_is_told_after_it() {
        let (mut connection, ids) = delivered(4);
        let commands = [
            settle(ids[0], Outcome::Ack),
            settle(ids[1], Outcome::Requeue),
            settle(ids[2], Outcome::Ack),
            Command::CloseChannel { channel: 1 },
        ];
        connection.commands(commands.into_iter());
        assert_eq!(said(&mut connection), ["ack 1", "reject 2", "ack 3", "20.40"]);
    }
}
