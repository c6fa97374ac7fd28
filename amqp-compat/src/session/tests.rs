//! The session's rules, as frames in and frames and commands out.

use std::time::{Duration, Instant};

use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, WriteContext, gen_frame, parse_frame};
use amq_protocol::protocol::{AMQPClass, basic, channel, confirm, connection, exchange, queue, tx};
use amq_protocol::types::{AMQPValue, FieldTable};
use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::backend::{Command, Delivery, DeliveryId, Event, Got, Message, Outcome, PublishOutcome, Reply, Topology};
use crate::error::{AmqpError, ReplyCode};

mod channels;
mod consuming;
mod ending;
mod handshake;
mod overdue;
mod publishing;
mod returns;
mod transactions;

/// A client and a broker around a session.
struct Peer {
    session: Session,
    now: Instant,
    input: BytesMut,
}

impl Peer {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let now = Instant::now();
        Self { session: Session::new("peer".into(), "token", limits, now), now, input: BytesMut::new() }
    }

    /// Past `connection.open-ok`, with a client that knows all capabilities.
    fn opened() -> Self {
        let mut peer = Self::new();
        peer.open();
        peer
    }

    fn open(&mut self) {
        self.bytes(b"AMQP\x00\x00\x09\x01");
        self.send(start_ok("guest", true));
        assert!(matches!(self.session.take_ask(), Some(Ask::Authenticate(login)) if login.user == "guest"));
        self.session.answered(Ok(()), self.now);
        self.send(tune_ok(2047, 131_072, 0));
        self.send(open("/"));
        assert!(matches!(self.session.take_ask(), Some(Ask::Open(login)) if login.vhost == "/"));
        self.session.answered(Ok(()), self.now);
        let last = self.output().pop();
        assert_eq!(last, Some(con(connection::AMQPMethod::OpenOk(connection::OpenOk {}))));
    }

    /// With channel 1 open.
    fn with_channel() -> Self {
        let mut peer = Self::opened();
        peer.open_channel(1);
        peer
    }

    fn open_channel(&mut self, id: u16) {
        self.send(chan(id, channel::AMQPMethod::Open(channel::Open {})));
        assert!(matches!(self.commands()[..], [Command::OpenChannel { channel }] if channel == id));
        assert_eq!(self.done(id), [chan(id, channel::AMQPMethod::OpenOk(channel::OpenOk {}))]);
    }

    fn bytes(&mut self, bytes: &[u8]) -> Vec<AMQPFrame> {
        self.input.extend_from_slice(bytes);
        self.session.read(&mut self.input, self.now);
        self.session.flush();
        self.output()
    }

    fn send(&mut self, frame: AMQPFrame) -> Vec<AMQPFrame> {
        self.bytes(&encoded(&frame))
    }

    fn event(&mut self, event: Event) -> Vec<AMQPFrame> {
        self.session.event(event, self.now);
        self.session.flush();
        self.output()
    }

    fn reply(&mut self, channel: u16, reply: Reply) -> Vec<AMQPFrame> {
        self.event(Event::Reply { channel, reply: Ok(reply) })
    }

    fn done(&mut self, channel: u16) -> Vec<AMQPFrame> {
        self.reply(channel, Reply::Done)
    }

    /// Takes the output without saying that it is written.
    fn output(&mut self) -> Vec<AMQPFrame> {
        let mut bytes = Vec::new();
        self.session.take_output(&mut bytes, self.now);
        let mut frames = Vec::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (left, frame) = parse_frame(rest).expect("what is written can be read");
            rest = left;
            frames.push(frame);
        }
        frames
    }

    fn written(&mut self) {
        self.session.written();
        self.session.flush();
    }

    fn commands(&mut self) -> Vec<Command> {
        self.session.commands().drain(..).collect()
    }

    fn consume(&mut self, tag: &str, no_ack: bool) -> u32 {
        let consume = basic::Consume {
            queue: "q".into(),
            consumer_tag: tag.into(),
            no_local: false,
            no_ack,
            exclusive: false,
            nowait: false,
            arguments: FieldTable::default(),
        };
        self.send(bas(1, basic::AMQPMethod::Consume(consume)));
        let commands = self.commands();
        let [Command::Consume { consume, .. }] = &commands[..] else { panic!("{commands:?}") };
        let credit = consume.credit;
        let ok = basic::AMQPMethod::ConsumeOk(basic::ConsumeOk { consumer_tag: tag.into() });
        assert_eq!(self.done(1), [bas(1, ok)]);
        credit
    }

    fn delivery(&mut self, tag: &str, id: u64) -> Vec<AMQPFrame> {
        self.delivery_within(tag, id, None)
    }

    fn delivery_within(&mut self, tag: &str, id: u64, ack_timeout: Option<Duration>) -> Vec<AMQPFrame> {
        let delivery = Delivery { id: DeliveryId(id), redelivered: false, ack_timeout, message: message("hello") };
        self.event(Event::Delivery { channel: 1, consumer_tag: tag.into(), delivery: Box::new(delivery) })
    }

    fn publish(&mut self, body: &str) -> Vec<AMQPFrame> {
        let mut bytes = encoded(&publish_method(false));
        bytes.extend(encoded(&header(body.len())));
        if !body.is_empty() {
            bytes.extend(encoded(&AMQPFrame::Body(1, body.into())));
        }
        self.bytes(&bytes)
    }
}

fn encoded(frame: &AMQPFrame) -> Vec<u8> {
    gen_frame(frame)(WriteContext { write: Vec::new(), position: 0 }).expect("encodes").write
}

fn con(method: connection::AMQPMethod) -> AMQPFrame {
    AMQPFrame::Method(0, AMQPClass::Connection(method))
}

fn chan(id: u16, method: channel::AMQPMethod) -> AMQPFrame {
    AMQPFrame::Method(id, AMQPClass::Channel(method))
}

fn bas(id: u16, method: basic::AMQPMethod) -> AMQPFrame {
    AMQPFrame::Method(id, AMQPClass::Basic(method))
}

fn start_ok(user: &str, capable: bool) -> AMQPFrame {
    let mut client_properties = FieldTable::default();
    if capable {
        let mut capabilities = FieldTable::default();
        for name in ["consumer_cancel_notify", "connection.blocked", "authentication_failure_close"] {
            capabilities.insert(name.into(), AMQPValue::Boolean(true));
        }
        client_properties.insert("capabilities".into(), AMQPValue::FieldTable(capabilities));
    }
    con(connection::AMQPMethod::StartOk(connection::StartOk {
        client_properties,
        mechanism: "PLAIN".into(),
        response: format!("\0{user}\0guest").into(),
        locale: "en_US".into(),
    }))
}

fn tune_ok(channel_max: u16, frame_max: u32, heartbeat: u16) -> AMQPFrame {
    con(connection::AMQPMethod::TuneOk(connection::TuneOk { channel_max, frame_max, heartbeat }))
}

fn open(vhost: &str) -> AMQPFrame {
    con(connection::AMQPMethod::Open(connection::Open { virtual_host: vhost.into() }))
}

fn connection_close(code: u16, text: &str, method: (u16, u16)) -> AMQPFrame {
    con(connection::AMQPMethod::Close(connection::Close {
        reply_code: code,
        reply_text: text.into(),
        class_id: method.0,
        method_id: method.1,
    }))
}

fn channel_close(code: u16, text: &str, method: (u16, u16)) -> AMQPFrame {
    chan(
        1,
        channel::AMQPMethod::Close(channel::Close {
            reply_code: code,
            reply_text: text.into(),
            class_id: method.0,
            method_id: method.1,
        }),
    )
}

fn publish_method(mandatory: bool) -> AMQPFrame {
    let publish = basic::Publish { exchange: "x".into(), routing_key: "k".into(), mandatory, immediate: false };
    bas(1, basic::AMQPMethod::Publish(publish))
}

fn header(size: usize) -> AMQPFrame {
    let properties = basic::AMQPProperties::default();
    AMQPFrame::Header(1, AMQPContentHeader { class_id: 60, body_size: size as u64, properties })
}

fn message(body: &str) -> Message {
    Message {
        exchange: "x".into(),
        routing_key: "k".into(),
        properties: basic::AMQPProperties::default(),
        body: body.as_bytes().to_vec().into(),
    }
}

fn ack(delivery_tag: u64, multiple: bool) -> AMQPFrame {
    bas(1, basic::AMQPMethod::Ack(basic::Ack { delivery_tag, multiple }))
}

fn nack(delivery_tag: u64, multiple: bool, requeue: bool) -> AMQPFrame {
    bas(1, basic::AMQPMethod::Nack(basic::Nack { delivery_tag, multiple, requeue }))
}

fn qos(prefetch_count: u16, global: bool) -> AMQPFrame {
    bas(1, basic::AMQPMethod::Qos(basic::Qos { prefetch_count, global }))
}

fn confirm_select(nowait: bool) -> AMQPFrame {
    AMQPFrame::Method(1, AMQPClass::Confirm(confirm::AMQPMethod::Select(confirm::Select { nowait })))
}

fn declare(name: &str, nowait: bool) -> AMQPFrame {
    let declare = queue::Declare {
        queue: name.into(),
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        nowait,
        arguments: FieldTable::default(),
    };
    AMQPFrame::Method(1, AMQPClass::Queue(queue::AMQPMethod::Declare(declare)))
}

/// The delivery tags of `basic.deliver`s.
fn tags(frames: &[AMQPFrame]) -> Vec<u64> {
    let tag = |frame: &AMQPFrame| match frame {
        AMQPFrame::Method(_, AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver))) => Some(deliver.delivery_tag),
        _ => None,
    };
    frames.iter().filter_map(tag).collect()
}

fn settles(commands: &[Command]) -> Vec<(Vec<u64>, Outcome)> {
    let settle = |command: &Command| match command {
        Command::Settle { deliveries, outcome, .. } => Some((deliveries.iter().map(|id| id.0).collect(), *outcome)),
        _ => None,
    };
    commands.iter().filter_map(settle).collect()
}

fn credits(commands: &[Command]) -> u32 {
    let credit = |command: &Command| match command {
        Command::Credit { amount, .. } => *amount,
        _ => 0,
    };
    commands.iter().map(credit).sum()
}

proptest! {
    #[test]
    fn no_bytes_make_a_session_panic(
        opened in any::<bool>(),
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..8),
    ) {
        let mut peer = if opened { Peer::with_channel() } else { Peer::new() };
        for chunk in chunks {
            peer.bytes(&chunk);
        }
    }

    #[test]
    fn no_frames_make_a_session_panic(
        frames in proptest::collection::vec(
            (1u8..4, 0u16..3, 0usize..8, 0u16..13, proptest::collection::vec(any::<u8>(), 0..40)), 0..30),
        replies in any::<u64>(),
    ) {
        let mut peer = Peer::with_channel();
        for (step, (kind, channel, class, method, rest)) in frames.into_iter().enumerate() {
            let class: u16 = [10, 20, 40, 50, 60, 60, 85, 90][class];
            let mut payload = match kind {
                1 => [class.to_be_bytes(), (method * 10).to_be_bytes()].concat(),
                2 => vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9],
                _ => Vec::new(),
            };
            payload.extend(rest);
            let mut bytes = vec![kind];
            bytes.extend(channel.to_be_bytes());
            bytes.extend((payload.len() as u32).to_be_bytes());
            bytes.extend(payload);
            bytes.push(0xCE);
            peer.bytes(&bytes);
            if replies >> (step % 64) & 1 == 1 {
                peer.done(1);
                peer.delivery("c", step as u64);
                peer.written();
            }
            peer.commands();
        }
    }
}
