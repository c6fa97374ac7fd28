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

mod overdue;
mod returns;

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

#[test]
fn another_protocol_is_answered_with_the_one_that_is_spoken() {
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"AMQP\x00\x01\x00\x00", b"AMQP\x01\x01\x00\x09", b"X"] {
        let mut peer = Peer::new();
        let version = amq_protocol::frame::ProtocolVersion::amqp_0_9_1();
        assert_eq!(peer.bytes(bytes), [AMQPFrame::ProtocolHeader(version)]);
        assert!(peer.session.is_over());
    }
}

#[test]
fn a_refused_login_is_told_to_a_client_that_can_hear_it() {
    let text =
        "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile.";
    for (capable, expected) in [(true, vec![connection_close(403, text, (0, 0))]), (false, vec![])] {
        let mut peer = Peer::new();
        peer.bytes(b"AMQP\x00\x00\x09\x01");
        peer.send(start_ok("who", capable));
        assert!(peer.session.take_ask().is_some());
        let error = AmqpError::new(ReplyCode::AccessRefused, "no such user");
        peer.session.answered(Err(error), peer.now);
        assert_eq!(peer.output(), expected);
        assert_eq!(peer.session.is_over(), !capable);
    }
}

#[test]
fn an_unknown_vhost_closes_the_connection() {
    let mut peer = Peer::new();
    peer.bytes(b"AMQP\x00\x00\x09\x01");
    peer.send(start_ok("guest", true));
    peer.session.answered(Ok(()), peer.now);
    peer.send(tune_ok(10, 4096, 0));
    peer.send(open("nowhere"));
    peer.session.answered(Err(AmqpError::new(ReplyCode::NotAllowed, "vhost nowhere not found")), peer.now);
    assert_eq!(peer.output(), [connection_close(530, "NOT_ALLOWED - vhost nowhere not found", (10, 40))]);
    peer.send(con(connection::AMQPMethod::CloseOk(connection::CloseOk {})));
    assert!(peer.session.is_over());
}

#[test]
fn before_it_is_negotiated_a_frame_is_small() {
    for (size, refused) in [(4096, false), (4097, true)] {
        let mut frame = start_ok("guest", true);
        let padding = size + 8 - encoded(&frame).len() - "\u{1}pS1234".len();
        let AMQPFrame::Method(_, AMQPClass::Connection(connection::AMQPMethod::StartOk(ok))) = &mut frame else {
            panic!("{frame:?}")
        };
        ok.client_properties.insert("p".into(), AMQPValue::LongString("a".repeat(padding).into()));
        let mut peer = Peer::new();
        peer.bytes(b"AMQP\x00\x00\x09\x01");
        let text = "FRAME_ERROR - type 1, all octets = <<>>: {frame_too_large,4097,4088}";
        let expected = if refused { vec![connection_close(501, text, (0, 0))] } else { vec![] };
        assert_eq!(peer.send(frame), expected);
        assert_eq!(peer.session.take_ask().is_none(), refused);
    }
}

#[test]
fn a_handshake_may_not_take_for_ever() {
    let mut peer = Peer::new();
    peer.bytes(b"AMQP\x00\x00\x09\x01");
    let deadline = peer.session.deadline().expect("there is one");
    peer.session.tick(deadline - Duration::from_millis(1));
    assert!(!peer.session.is_over());
    peer.session.tick(deadline);
    assert!(peer.session.is_over());
}

#[test]
fn heartbeats_go_both_ways() {
    let mut peer = Peer::new();
    peer.bytes(b"AMQP\x00\x00\x09\x01");
    peer.send(start_ok("guest", true));
    peer.session.answered(Ok(()), peer.now);
    peer.send(tune_ok(10, 4096, 4));
    peer.send(open("/"));
    peer.session.answered(Ok(()), peer.now);
    peer.output();
    peer.now += Duration::from_secs(2);
    peer.session.tick(peer.now);
    assert_eq!(peer.output(), [AMQPFrame::Heartbeat]);
    peer.now += Duration::from_secs(5);
    peer.send(AMQPFrame::Heartbeat);
    peer.session.tick(peer.now + Duration::from_secs(7));
    assert!(!peer.session.is_over());
    peer.session.tick(peer.now + Duration::from_secs(8));
    assert!(peer.session.is_over());
}

/// Frames that close the connection of a client with channel 1 open.
#[test]
fn what_breaks_the_protocol_closes_the_connection() {
    let consume_twice = {
        let consume = basic::Consume { consumer_tag: "c".into(), queue: "q".into(), ..Default::default() };
        encoded(&bas(1, basic::AMQPMethod::Consume(consume)))
    };
    let immediate = basic::Publish { immediate: true, ..Default::default() };
    let flow = channel::AMQPMethod::Flow(channel::Flow { active: false });
    let recover = basic::AMQPMethod::Recover(basic::Recover { requeue: false });
    let mut prefetch_size = encoded(&qos(1, false));
    prefetch_size[14] = 9;
    type Case = (Vec<u8>, u16, &'static str, (u16, u16));
    let cases: Vec<Case> = vec![
        (encoded(&bas(7, basic::AMQPMethod::Get(basic::Get::default()))), 504, "expected 'channel.open'", (60, 70)),
        (encoded(&chan(1, channel::AMQPMethod::Open(channel::Open {}))), 504, "second 'channel.open' seen", (20, 10)),
        (encoded(&bas(1, basic::AMQPMethod::Publish(immediate))), 540, "immediate=true", (60, 40)),
        (encoded(&chan(1, flow)), 540, "active=false", (20, 20)),
        (encoded(&bas(1, recover)), 540, "requeue=false", (60, 110)),
        (prefetch_size, 540, "prefetch_size!=0 (9)", (60, 10)),
        (consume_twice, 530, "attempt to reuse consumer tag 'c'", (60, 20)),
        (encoded(&header(1)), 505, "expected method frame, got non method frame instead", (0, 0)),
        (encoded(&AMQPFrame::Body(1, vec![1])), 505, "expected method frame, got non method frame instead", (0, 0)),
        (encoded(&AMQPFrame::InvalidHeartbeat(1)), 505, "heartbeat frame on channel 1", (0, 0)),
        (vec![9, 0, 0, 0, 0, 0, 0, 0xCE], 501, "unknown frame type 9 on channel 0", (0, 0)),
        (vec![1, 0, 1, 0, 0, 0, 0, 0], 501, "type 1 frame on channel 1 of 0 bytes has an invalid end marker", (0, 0)),
        (vec![3, 0, 1, 0, 2, 0, 1], 501, "type 3, all octets = <<>>: {frame_too_large,131073,131064}", (0, 0)),
        (vec![1, 0, 1, 0, 0, 0, 4, 0, 99, 0, 1, 0xCE], 540, "unknown method 99.1", (99, 1)),
        (
            vec![1, 0, 1, 0, 0, 0, 9, 0, 60, 0, 70, 0, 0, 1, 0xFF, 0, 0xCE],
            502,
            "malformed fields in method 60.70 (short strings must be UTF-8)",
            (60, 70),
        ),
        (
            encoded(&con(connection::AMQPMethod::Open(connection::Open { virtual_host: "/".into() }))),
            504,
            "unexpected method in connection state running",
            (10, 40),
        ),
    ];
    for (bytes, code, text, method) in cases {
        let mut peer = Peer::with_channel();
        if text.contains("reuse") {
            peer.consume("c", false);
        }
        let name = ReplyCode::from_u16(code).expect("a code").name();
        let expected = connection_close(code, &format!("{name} - {text}"), method);
        assert_eq!(peer.bytes(&bytes), [expected], "{text}");
        assert!(peer.session.is_link_done() && !peer.session.is_over());
        // Whatever else comes is not looked at.
        assert_eq!(peer.publish("late"), []);
        assert!(peer.commands().is_empty());
        peer.session.tick(peer.now + Duration::from_secs(11));
        assert!(peer.session.is_over());
    }
}

#[test]
fn a_channel_error_closes_the_channel_alone() {
    let text = "PRECONDITION_FAILED - unknown delivery tag 5";
    let mut peer = Peer::with_channel();
    peer.open_channel(2);
    assert_eq!(peer.send(ack(5, false)), [channel_close(406, text, (60, 80))]);
    assert!(matches!(peer.commands()[..], [Command::CloseChannel { channel: 1 }]));
    // Ignored until close-ok, as RabbitMQ does.
    assert_eq!(peer.publish("late"), []);
    assert!(peer.commands().is_empty());
    peer.send(chan(1, channel::AMQPMethod::CloseOk(channel::CloseOk {})));
    // The number is free once the broker is done as well.
    assert_eq!(peer.send(chan(1, channel::AMQPMethod::Open(channel::Open {}))), []);
    assert!(peer.commands().is_empty());
    assert_eq!(peer.done(1), []);
    assert!(matches!(peer.commands()[..], [Command::OpenChannel { channel: 1 }]));
    assert_eq!(peer.done(1), [chan(1, channel::AMQPMethod::OpenOk(channel::OpenOk {}))]);
    assert_eq!(peer.session.counts().channels, 2);
}

#[test]
fn a_request_that_fails_names_its_method() {
    let mut peer = Peer::with_channel();
    peer.send(declare("q", false));
    peer.commands();
    let error = AmqpError::new(ReplyCode::PreconditionFailed, "inequivalent arg");
    let close = peer.event(Event::Reply { channel: 1, reply: Err(error) });
    assert_eq!(close, [channel_close(406, "PRECONDITION_FAILED - inequivalent arg", (50, 10))]);
    assert!(matches!(peer.commands()[..], [Command::CloseChannel { channel: 1 }]));
}

#[test]
fn an_asynchronous_failure_waits_for_the_request_in_flight_before_the_broker_closes_the_channel() {
    let mut peer = Peer::with_channel();
    peer.publish("lost");
    peer.send(declare("q", false));
    assert_eq!(peer.commands().len(), 2);
    let error = AmqpError::new(ReplyCode::NotFound, "no exchange 'x' in vhost '/'");
    let close = peer.event(Event::ChannelFailed { channel: 1, error });
    assert_eq!(close, [channel_close(404, "NOT_FOUND - no exchange 'x' in vhost '/'", (60, 40))]);
    assert!(peer.commands().is_empty());
    assert_eq!(peer.done(1), []);
    assert!(matches!(peer.commands()[..], [Command::CloseChannel { channel: 1 }]));
    peer.done(1);
    peer.send(chan(1, channel::AMQPMethod::CloseOk(channel::CloseOk {})));
    assert_eq!(peer.session.counts().channels, 0);
}

#[test]
fn a_channel_that_is_opened_again_while_the_broker_still_works_on_the_failed_one_waits_for_it() {
    let mut peer = Peer::with_channel();
    peer.publish("lost");
    peer.send(declare("q", false));
    peer.event(Event::ChannelFailed { channel: 1, error: AmqpError::new(ReplyCode::NotFound, "no exchange") });
    peer.send(chan(1, channel::AMQPMethod::CloseOk(channel::CloseOk {})));
    assert_eq!(peer.send(chan(1, channel::AMQPMethod::Open(channel::Open {}))), []);
    peer.commands();
    assert_eq!(peer.done(1), []);
    assert!(matches!(peer.commands()[..], [Command::CloseChannel { channel: 1 }]));
    assert_eq!(peer.done(1), []);
    assert!(matches!(peer.commands()[..], [Command::OpenChannel { channel: 1 }]));
    assert_eq!(peer.done(1), [chan(1, channel::AMQPMethod::OpenOk(channel::OpenOk {}))]);
}

#[test]
fn frames_behind_a_request_wait_for_it() {
    let mut peer = Peer::with_channel();
    assert_eq!(peer.send(declare("q", true)), []);
    peer.publish("first");
    peer.send(declare("q2", false));
    assert!(matches!(peer.commands()[..], [Command::Topology { .. }]));
    let queue = |name: &str| Reply::Queue { queue: name.into(), message_count: 0, consumer_count: 0 };
    assert_eq!(peer.reply(1, queue("q")), []);
    assert!(matches!(peer.commands()[..], [Command::Publish(_), Command::Topology { .. }]));
    let ok = queue::DeclareOk { queue: "q2".into(), message_count: 0, consumer_count: 0 };
    let ok = AMQPFrame::Method(1, AMQPClass::Queue(queue::AMQPMethod::DeclareOk(ok)));
    assert_eq!(peer.reply(1, queue("q2")), [ok]);
}

#[test]
fn too_much_behind_a_request_stops_the_reading() {
    let mut peer = Peer::with_channel();
    peer.send(declare("q", false));
    let part = encoded(&AMQPFrame::Body(1, vec![0; 100_000]));
    peer.bytes(&encoded(&publish_method(false)));
    for _ in 0..40 {
        peer.bytes(&part);
    }
    assert!(!peer.session.takes_input());
    assert!(peer.input.len() > 2_000_000, "the rest is not taken");
}

#[test]
fn an_empty_queue_name_means_the_last_declared_queue() {
    let bind = |queue: &str, key: &str| {
        let bind = queue::Bind {
            queue: queue.into(),
            exchange: "x".into(),
            routing_key: key.into(),
            nowait: false,
            arguments: FieldTable::default(),
        };
        AMQPFrame::Method(1, AMQPClass::Queue(queue::AMQPMethod::Bind(bind)))
    };
    let mut peer = Peer::with_channel();
    peer.send(declare("", false));
    peer.commands();
    peer.reply(1, Reply::Queue { queue: "amq.gen-1".into(), message_count: 0, consumer_count: 0 });
    for (queue, key, expected) in
        [("", "", ("amq.gen-1", "amq.gen-1")), ("", "k", ("amq.gen-1", "k")), ("other", "", ("other", ""))]
    {
        peer.send(bind(queue, key));
        let commands = peer.commands();
        let [Command::Topology { request: Topology::QueueBind(binding), .. }] = &commands[..] else {
            panic!("{commands:?}")
        };
        assert_eq!((binding.destination.as_str(), binding.routing_key.as_str()), expected);
        peer.done(1);
    }
    let mut peer = Peer::with_channel();
    let close = channel_close(404, "NOT_FOUND - no previously declared queue", (50, 20));
    assert_eq!(peer.send(bind("", "k")), [close]);
}

#[test]
fn exchange_methods_are_passed_on_and_answered() {
    let mut peer = Peer::with_channel();
    let declare = exchange::Declare { exchange: "x".into(), kind: "topic".into(), ..Default::default() };
    peer.send(AMQPFrame::Method(1, AMQPClass::Exchange(exchange::AMQPMethod::Declare(declare))));
    let commands = peer.commands();
    assert!(
        matches!(&commands[..], [Command::Topology { request: Topology::ExchangeDeclare(x), .. }] if x.kind.as_str() == "topic")
    );
    let ok = exchange::AMQPMethod::DeclareOk(exchange::DeclareOk {});
    assert_eq!(peer.done(1), [AMQPFrame::Method(1, AMQPClass::Exchange(ok))]);
}

#[test]
fn a_message_is_put_together_from_any_number_of_frames() {
    let mut peer = Peer::with_channel();
    let mut bytes = encoded(&publish_method(true));
    bytes.extend(encoded(&header(11)));
    for part in ["hel", "", "lo wor", "ld"] {
        bytes.extend(encoded(&AMQPFrame::Body(1, part.into())));
    }
    for byte in bytes {
        peer.bytes(&[byte]);
    }
    peer.publish("");
    let commands = peer.commands();
    let [Command::Publish(first), Command::Publish(second)] = &commands[..] else { panic!("{commands:?}") };
    assert_eq!((first.seq, first.mandatory, &first.message.body[..]), (1, true, &b"hello world"[..]));
    assert_eq!((second.seq, second.mandatory, second.message.body.len()), (2, false, 0));
}

#[test]
fn a_message_larger_than_the_limit_is_refused_before_it_is_read() {
    let mut peer = Peer::with_channel();
    peer.send(publish_method(false));
    let text = "PRECONDITION_FAILED - message size 16777217 is larger than configured max size 16777216";
    assert_eq!(peer.send(header((16 << 20) + 1)), [channel_close(406, text, (60, 40))]);
    assert_eq!(peer.send(AMQPFrame::Body(1, vec![0; 100])), []);
}

#[test]
fn of_two_faults_the_client_hears_the_first() {
    let mut peer = Peer::with_channel();
    peer.publish("to an exchange that is not there");
    let recover = bas(1, basic::AMQPMethod::Recover(basic::Recover { requeue: false }));
    assert_eq!(peer.send(recover.clone()), []);
    let error = AmqpError::new(ReplyCode::NotFound, "no exchange");
    assert_eq!(
        peer.event(Event::ChannelFailed { channel: 1, error }),
        [channel_close(404, "NOT_FOUND - no exchange", (60, 40))]
    );
    let mut peer = Peer::with_channel();
    peer.publish("stored");
    assert_eq!(peer.send(recover), []);
    let stored = Event::Confirm { channel: 1, seq: 1, outcome: PublishOutcome::Stored };
    assert_eq!(peer.event(stored), [connection_close(540, "NOT_IMPLEMENTED - requeue=false", (60, 110))]);
}

#[test]
fn what_is_confirmed_is_told_before_a_fault_closes_the_connection() {
    let mut peer = Peer::with_channel();
    peer.send(confirm_select(true));
    peer.publish("1");
    peer.publish("2");
    let recover = bas(1, basic::AMQPMethod::Recover(basic::Recover { requeue: false }));
    assert_eq!(peer.send(recover), []);
    let stored = |seq| Event::Confirm { channel: 1, seq, outcome: PublishOutcome::Stored };
    // Both in one batch, as they may come.
    peer.session.event(stored(1), peer.now);
    let heard = peer.event(stored(2));
    assert_eq!(heard, [ack(2, true), connection_close(540, "NOT_IMPLEMENTED - requeue=false", (60, 110))]);
    // A fault that is not waited with: what the broker has not confirmed stays unconfirmed.
    let mut peer = Peer::with_channel();
    peer.send(confirm_select(true));
    peer.publish("stored");
    peer.publish("under way");
    peer.session.event(stored(1), peer.now);
    let error = AmqpError::new(ReplyCode::InternalError, "gone");
    let heard = peer.event(Event::Closed { error });
    assert_eq!(heard, [ack(1, false), connection_close(541, "INTERNAL_ERROR - gone", (0, 0))]);
}

#[test]
fn a_publish_is_confirmed_by_nothing_but_the_brokers_word() {
    let mut peer = Peer::with_channel();
    peer.publish("unconfirmed");
    assert_eq!(peer.send(confirm_select(true)), []);
    for body in ["1", "2", "3", "4"] {
        assert_eq!(peer.publish(body), []);
    }
    let stored = |seq| Event::Confirm { channel: 1, seq, outcome: PublishOutcome::Stored };
    assert_eq!(peer.event(stored(3)), []);
    assert_eq!(peer.event(stored(1)), []);
    assert_eq!(peer.event(stored(2)), [ack(2, true)]);
    assert_eq!(
        peer.event(Event::Confirm { channel: 1, seq: 4, outcome: PublishOutcome::Failed }),
        [nack(3, false, false)]
    );
    assert_eq!(peer.event(stored(5)), [ack(4, false)]);
}

#[test]
fn an_answer_that_needs_no_broker_waits_for_publishes_that_may_still_fail() {
    let mut peer = Peer::with_channel();
    peer.publish("1");
    assert_eq!(peer.send(qos(1, false)), []);
    assert_eq!(peer.publish("2"), []);
    assert_eq!(peer.commands().len(), 1);
    let ok = bas(1, basic::AMQPMethod::QosOk(basic::QosOk {}));
    let stored = |seq| Event::Confirm { channel: 1, seq, outcome: PublishOutcome::Stored };
    assert_eq!(peer.event(stored(1)), [ok]);
    assert_eq!(peer.commands().len(), 1);
    // One that fails is heard of instead of the answer.
    peer.send(qos(1, false));
    let error = AmqpError::new(ReplyCode::NotFound, "no exchange 'x' in vhost '/'");
    let close = channel_close(404, "NOT_FOUND - no exchange 'x' in vhost '/'", (60, 40));
    assert_eq!(peer.event(Event::ChannelFailed { channel: 1, error }), [close]);
    assert!(peer.commands().is_empty());
    assert_eq!(peer.event(stored(2)), []);
    assert!(matches!(peer.commands()[..], [Command::CloseChannel { channel: 1 }]));
}

#[test]
fn a_header_that_cannot_be_read_is_malformed_only_where_one_is_due() {
    let bad = [2, 0, 1, 0, 0, 0, 1, 7, 0xCE];
    let mut peer = Peer::with_channel();
    let text = "UNEXPECTED_FRAME - expected method frame, got non method frame instead";
    assert_eq!(peer.bytes(&bad), [connection_close(505, text, (0, 0))]);
    let mut peer = Peer::with_channel();
    peer.send(publish_method(false));
    let text = "SYNTAX_ERROR - malformed content header (short strings must be UTF-8)";
    assert_eq!(peer.bytes(&bad), [connection_close(502, text, (0, 0))]);
}

#[test]
fn a_consumer_without_acknowledgements_needs_room_and_takes_none() {
    let mut peer = Peer::with_channel();
    peer.send(qos(1, true));
    peer.consume("a", false);
    peer.consume("b", true);
    assert_eq!(tags(&peer.delivery("b", 11)), [1]);
    assert_eq!(tags(&peer.delivery("b", 12)), [2]);
    assert_eq!(tags(&peer.delivery("a", 13)), [3]);
    assert!(peer.delivery("b", 14).is_empty());
    assert_eq!(tags(&peer.send(ack(3, false))), [4]);
}

#[test]
fn an_unroutable_mandatory_message_comes_back_before_its_confirm() {
    let mut peer = Peer::with_channel();
    peer.send(confirm_select(false));
    let mut bytes = encoded(&publish_method(true));
    bytes.extend(encoded(&header(5)));
    bytes.extend(encoded(&AMQPFrame::Body(1, "hello".into())));
    peer.bytes(&bytes);
    let error = AmqpError::new(ReplyCode::NoRoute, "");
    peer.session.event(Event::Returned { channel: 1, error, message: Box::new(message("hello")) }, peer.now);
    let frames = peer.event(Event::Confirm { channel: 1, seq: 1, outcome: PublishOutcome::Stored });
    let returned =
        basic::Return { reply_code: 312, reply_text: "NO_ROUTE".into(), exchange: "x".into(), routing_key: "k".into() };
    let expected =
        [bas(1, basic::AMQPMethod::Return(returned)), header(5), AMQPFrame::Body(1, "hello".into()), ack(1, false)];
    assert_eq!(frames, expected);
}

#[test]
fn a_broker_that_does_not_answer_stops_the_reading() {
    let mut peer = Peer::with(Limits { max_publishes: 3, ..Limits::default() });
    peer.open();
    peer.open_channel(1);
    for _ in 0..5 {
        peer.publish("x");
    }
    assert_eq!(peer.commands().len(), 3);
    assert!(!peer.session.takes_input());
    peer.event(Event::Confirm { channel: 1, seq: 1, outcome: PublishOutcome::Stored });
    assert!(peer.session.takes_input());
    peer.bytes(b"");
    assert_eq!(peer.commands().len(), 1);
}

#[test]
fn settlements_reach_the_broker_in_order_and_give_credit_back() {
    let mut peer = Peer::with_channel();
    peer.send(qos(4, false));
    assert_eq!(peer.consume("c", false), 4);
    for id in 11..=14 {
        let frames = peer.delivery("c", id);
        assert_eq!(tags(&frames), [id - 10]);
        assert_eq!(frames[1..], [header(5), AMQPFrame::Body(1, "hello".into())]);
    }
    peer.written();
    assert!(peer.commands().is_empty(), "credit is not given before a settlement");
    let mut bytes = encoded(&ack(2, false));
    bytes.extend(encoded(&ack(3, false)));
    bytes.extend(encoded(&ack(1, false)));
    bytes.extend(encoded(&nack(0, true, true)));
    peer.bytes(&bytes);
    let commands = peer.commands();
    let expected = [(vec![12, 13], Outcome::Ack), (vec![11], Outcome::Ack), (vec![14], Outcome::Requeue)];
    assert_eq!(settles(&commands), expected);
    assert_eq!(credits(&commands), 4);
    let close = channel_close(406, "PRECONDITION_FAILED - unknown delivery tag 2", (60, 80));
    assert_eq!(peer.send(ack(2, false)), [close]);
}

#[test]
fn reject_without_requeue_is_not_a_requeue() {
    let mut peer = Peer::with_channel();
    peer.consume("c", false);
    peer.delivery("c", 11);
    peer.delivery("c", 12);
    let reject = |delivery_tag, requeue| bas(1, basic::AMQPMethod::Reject(basic::Reject { delivery_tag, requeue }));
    peer.send(reject(1, false));
    peer.send(reject(2, true));
    let expected = [(vec![11], Outcome::Reject), (vec![12], Outcome::Requeue)];
    assert_eq!(settles(&peer.commands()), expected);
}

#[test]
fn no_ack_deliveries_are_settled_once_they_are_written() {
    let mut peer = Peer::with_channel();
    assert_eq!(peer.consume("c", true), 1000);
    peer.delivery("c", 11);
    peer.delivery("c", 12);
    assert!(peer.commands().is_empty());
    peer.written();
    assert_eq!(settles(&peer.commands()), [(vec![11, 12], Outcome::Ack)]);
    let close = channel_close(406, "PRECONDITION_FAILED - unknown delivery tag 1", (60, 80));
    assert_eq!(peer.send(ack(1, false)), [close]);
}

#[test]
fn a_channels_prefetch_is_exact_over_its_consumers() {
    let mut peer = Peer::with_channel();
    peer.send(qos(2, true));
    assert_eq!(peer.consume("a", false), 2);
    assert_eq!(peer.consume("b", false), 2);
    assert_eq!(tags(&peer.delivery("a", 11)), [1]);
    assert_eq!(tags(&peer.delivery("b", 12)), [2]);
    assert!(peer.delivery("a", 13).is_empty());
    assert!(peer.delivery("b", 14).is_empty());
    assert_eq!(tags(&peer.send(ack(1, false))), [3]);
    // What is held belongs to nobody: cancelled, it goes back.
    peer.send(bas(1, basic::AMQPMethod::Cancel(basic::Cancel { consumer_tag: "b".into(), nowait: false })));
    peer.commands();
    peer.done(1);
    assert_eq!(settles(&peer.commands()), [(vec![14], Outcome::Requeue)]);
}

#[test]
fn a_direct_reply_needs_no_room_in_the_channels_prefetch_and_is_not_settled() {
    let mut peer = Peer::with_channel();
    peer.send(qos(1, true));
    peer.consume("work", false);
    peer.consume("replies", true);
    assert_eq!(tags(&peer.delivery("work", 11)), [1]);
    assert!(peer.delivery("work", 12).is_empty());
    // Nor does it use up a delivery tag, as in RabbitMQ.
    assert_eq!(tags(&peer.delivery("replies", DeliveryId::DIRECT.0)), [2]);
    peer.written();
    assert!(settles(&peer.commands()).is_empty());
    assert_eq!(tags(&peer.send(ack(1, false))), [2]);
}

#[test]
fn get_answers_with_a_message_or_says_empty() {
    let mut peer = Peer::with_channel();
    let get = |no_ack| bas(1, basic::AMQPMethod::Get(basic::Get { queue: "q".into(), no_ack }));
    peer.send(get(false));
    assert_eq!(peer.reply(1, Reply::Got(None)), [bas(1, basic::AMQPMethod::GetEmpty(basic::GetEmpty {}))]);
    peer.send(get(false));
    peer.commands();
    let delivery = Delivery { id: DeliveryId(9), redelivered: true, ack_timeout: None, message: message("hello") };
    let frames = peer.reply(1, Reply::Got(Some(Box::new(Got { delivery, message_count: 3 }))));
    let ok = basic::GetOk {
        delivery_tag: 1,
        redelivered: true,
        exchange: "x".into(),
        routing_key: "k".into(),
        message_count: 3,
    };
    assert_eq!(frames[0], bas(1, basic::AMQPMethod::GetOk(ok)));
    peer.send(ack(1, false));
    assert_eq!(settles(&peer.commands()), [(vec![9], Outcome::Ack)]);
}

fn tx(method: tx::AMQPMethod) -> AMQPFrame {
    AMQPFrame::Method(1, AMQPClass::Tx(method))
}

/// With a transaction on channel 1 that has published one message and acknowledged delivery 11 of two.
fn in_transaction() -> Peer {
    let mut peer = Peer::with_channel();
    let select = tx::AMQPMethod::Select(tx::Select {});
    assert_eq!(peer.send(tx(select)), [tx(tx::AMQPMethod::SelectOk(tx::SelectOk {}))]);
    peer.consume("c", false);
    peer.delivery("c", 11);
    peer.delivery("c", 12);
    peer.publish("one");
    peer.send(ack(1, false));
    assert!(peer.commands().is_empty(), "nothing before the commit");
    peer
}

#[test]
fn a_commit_settles_once_all_is_stored() {
    let mut peer = in_transaction();
    assert_eq!(peer.send(tx(tx::AMQPMethod::Commit(tx::Commit {}))), []);
    assert!(matches!(peer.commands()[..], [Command::Publish(_)]));
    // The next transaction waits.
    peer.publish("two");
    assert!(peer.commands().is_empty());
    let frames = peer.event(Event::Confirm { channel: 1, seq: 1, outcome: PublishOutcome::Stored });
    assert_eq!(frames, [tx(tx::AMQPMethod::CommitOk(tx::CommitOk {}))]);
    assert_eq!(settles(&peer.commands()), [(vec![11], Outcome::Ack)]);
    assert_eq!(peer.send(tx(tx::AMQPMethod::Commit(tx::Commit {}))), []);
    assert!(matches!(peer.commands()[..], [Command::Publish(_)]));
}

#[test]
fn a_rollback_forgets_publishes_and_takes_settlements_back() {
    let mut peer = in_transaction();
    let rollback = tx::AMQPMethod::Rollback(tx::Rollback {});
    assert_eq!(peer.send(tx(rollback)), [tx(tx::AMQPMethod::RollbackOk(tx::RollbackOk {}))]);
    peer.send(ack(2, true));
    let commit = tx::AMQPMethod::Commit(tx::Commit {});
    assert_eq!(peer.send(tx(commit)), [tx(tx::AMQPMethod::CommitOk(tx::CommitOk {}))]);
    assert_eq!(settles(&peer.commands()), [(vec![11, 12], Outcome::Ack)]);
}

#[test]
fn a_commit_that_fails_settles_nothing() {
    let mut peer = in_transaction();
    peer.send(tx(tx::AMQPMethod::Commit(tx::Commit {})));
    peer.commands();
    let frames = peer.event(Event::Confirm { channel: 1, seq: 1, outcome: PublishOutcome::Failed });
    assert_eq!(frames, [channel_close(406, "PRECONDITION_FAILED - partial tx completion", (90, 20))]);
    assert!(matches!(peer.commands()[..], [Command::CloseChannel { channel: 1 }]));
}

#[test]
fn confirms_and_transactions_exclude_each_other() {
    let select = || tx(tx::AMQPMethod::Select(tx::Select {}));
    let mut peer = Peer::with_channel();
    peer.send(confirm_select(true));
    let text = "PRECONDITION_FAILED - cannot switch from confirm to tx mode";
    assert_eq!(peer.send(select()), [channel_close(406, text, (90, 10))]);
    let mut peer = Peer::with_channel();
    peer.send(select());
    let text = "PRECONDITION_FAILED - cannot switch from tx to confirm mode";
    assert_eq!(peer.send(confirm_select(true)), [channel_close(406, text, (85, 10))]);
    let mut peer = Peer::with_channel();
    let text = "PRECONDITION_FAILED - channel is not transactional";
    assert_eq!(peer.send(tx(tx::AMQPMethod::Commit(tx::Commit {}))), [channel_close(406, text, (90, 20))]);
}

#[test]
fn recover_requeues_everything_and_says_so() {
    let mut peer = Peer::with_channel();
    peer.consume("c", false);
    peer.delivery("c", 11);
    peer.delivery("c", 12);
    let recover = basic::AMQPMethod::Recover(basic::Recover { requeue: true });
    let ok = basic::AMQPMethod::RecoverOk(basic::RecoverOk {});
    assert_eq!(peer.send(bas(1, recover)), [bas(1, ok)]);
    assert_eq!(settles(&peer.commands()), [(vec![11, 12], Outcome::Requeue)]);
}

#[test]
fn a_consumer_whose_queue_is_gone_is_told() {
    let mut peer = Peer::with_channel();
    peer.consume("c", false);
    let cancelled = || Event::ConsumerCancelled { channel: 1, consumer_tag: "c".into() };
    let cancel = basic::AMQPMethod::Cancel(basic::Cancel { consumer_tag: "c".into(), nowait: true });
    assert_eq!(peer.event(cancelled()), [bas(1, cancel)]);
    assert_eq!(peer.event(cancelled()), []);
    // Cancelling what is gone is fine.
    let cancel = basic::AMQPMethod::Cancel(basic::Cancel { consumer_tag: "c".into(), nowait: false });
    let ok = basic::AMQPMethod::CancelOk(basic::CancelOk { consumer_tag: "c".into() });
    assert_eq!(peer.send(bas(1, cancel)), [bas(1, ok)]);
    // A delivery that was under way goes back.
    peer.delivery("c", 11);
    assert_eq!(settles(&peer.commands()), [(vec![11], Outcome::Requeue)]);
}

#[test]
fn who_deletes_a_queue_hears_that_it_is_gone_before_its_consumer_is_cancelled() {
    let mut peer = Peer::with_channel();
    peer.consume("c", false);
    let delete = queue::Delete { queue: "q".into(), if_unused: false, if_empty: false, nowait: false };
    peer.send(AMQPFrame::Method(1, AMQPClass::Queue(queue::AMQPMethod::Delete(delete))));
    assert_eq!(peer.event(Event::ConsumerCancelled { channel: 1, consumer_tag: "c".into() }), []);
    let ok = queue::AMQPMethod::DeleteOk(queue::DeleteOk { message_count: 3 });
    let cancel = basic::AMQPMethod::Cancel(basic::Cancel { consumer_tag: "c".into(), nowait: true });
    let expected = [AMQPFrame::Method(1, AMQPClass::Queue(ok)), bas(1, cancel)];
    assert_eq!(peer.reply(1, Reply::MessageCount(3)), expected);
}

#[test]
fn a_consumer_without_a_tag_gets_a_new_one_each_time() {
    let mut peer = Peer::with_channel();
    let mut seen = Vec::new();
    for _ in 0..3 {
        peer.send(bas(1, basic::AMQPMethod::Consume(basic::Consume { queue: "q".into(), ..Default::default() })));
        let frames = peer.done(1);
        let [AMQPFrame::Method(1, AMQPClass::Basic(basic::AMQPMethod::ConsumeOk(ok)))] = &frames[..] else {
            panic!("{frames:?}")
        };
        assert!(ok.consumer_tag.as_str().starts_with("amq.ctag-token"));
        seen.push(ok.consumer_tag.to_string());
    }
    seen.dedup();
    assert_eq!(seen.len(), 3);
}

#[test]
fn closing_a_channel_settles_what_a_no_ack_consumer_was_sent_and_answers_when_the_broker_has() {
    let mut peer = Peer::with_channel();
    peer.consume("c", true);
    peer.delivery("c", 11);
    let close = channel::AMQPMethod::Close(channel::Close {
        reply_code: 200,
        reply_text: "bye".into(),
        class_id: 0,
        method_id: 0,
    });
    assert_eq!(peer.send(chan(1, close)), []);
    let commands = peer.commands();
    assert_eq!(settles(&commands), [(vec![11], Outcome::Ack)]);
    assert!(matches!(commands[..], [_, Command::CloseChannel { channel: 1 }]));
    assert_eq!(peer.done(1), [chan(1, channel::AMQPMethod::CloseOk(channel::CloseOk {}))]);
    assert_eq!(peer.session.counts().consumers, 0);
}

#[test]
fn a_client_that_leaves_is_answered_when_all_it_began_is_done() {
    let mut peer = Peer::with_channel();
    peer.send(declare("q", true));
    peer.publish("last");
    assert_eq!(peer.send(connection_close(200, "bye", (0, 0))), []);
    assert!(!peer.session.is_link_done());
    peer.reply(1, Reply::Queue { queue: "q".into(), message_count: 0, consumer_count: 0 });
    assert!(matches!(peer.commands()[..], [Command::Topology { .. }, Command::Publish(_)]));
    assert!(!peer.session.is_link_done());
    peer.event(Event::Confirm { channel: 1, seq: 1, outcome: PublishOutcome::Stored });
    assert!(peer.session.is_link_done());
    peer.session.link_ended(peer.now);
    assert_eq!(peer.output(), [con(connection::AMQPMethod::CloseOk(connection::CloseOk {}))]);
    assert!(peer.session.is_over());
}

#[test]
fn a_server_that_stops_answers_publishes_first() {
    let mut peer = Peer::with_channel();
    peer.publish("last");
    peer.session.shutdown(peer.now);
    peer.session.flush();
    assert_eq!(peer.output(), []);
    let frames = peer.event(Event::Confirm { channel: 1, seq: 1, outcome: PublishOutcome::Stored });
    let text = "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'";
    assert_eq!(frames, [connection_close(320, text, (0, 0))]);
}

#[test]
fn a_lost_broker_closes_the_connection() {
    let mut peer = Peer::with_channel();
    let error = AmqpError::new(ReplyCode::ConnectionForced, "the broker went away");
    let close = connection_close(320, "CONNECTION_FORCED - the broker went away", (0, 0));
    assert_eq!(peer.event(Event::Closed { error }), [close]);
}

#[test]
fn a_blocked_broker_is_told_to_clients_that_can_hear_it() {
    let mut peer = Peer::opened();
    let blocked = connection::AMQPMethod::Blocked(connection::Blocked { reason: "full".into() });
    assert_eq!(peer.event(Event::Blocked { reason: "full".into() }), [con(blocked)]);
    let unblocked = connection::AMQPMethod::Unblocked(connection::Unblocked {});
    assert_eq!(peer.event(Event::Unblocked), [con(unblocked)]);
}

#[test]
fn a_changed_secret_changes_nothing_for_a_user_who_is_in() {
    let secret = connection::UpdateSecret { new_secret: "new".into(), reason: "expiry".into() };
    let mut peer = Peer::opened();
    let frames = peer.send(con(connection::AMQPMethod::UpdateSecret(secret)));
    assert_eq!(frames, [con(connection::AMQPMethod::UpdateSecretOk(connection::UpdateSecretOk {}))]);
}

#[test]
fn large_bodies_are_cut_to_the_negotiated_frame_size() {
    let mut peer = Peer::new();
    peer.bytes(b"AMQP\x00\x00\x09\x01");
    peer.send(start_ok("guest", true));
    peer.session.answered(Ok(()), peer.now);
    peer.send(tune_ok(10, 4096, 0));
    peer.send(open("/"));
    peer.session.answered(Ok(()), peer.now);
    peer.output();
    peer.open_channel(1);
    peer.consume("c", false);
    let message = message(&"x".repeat(10_000));
    let delivery = Delivery { id: DeliveryId(1), redelivered: false, ack_timeout: None, message };
    let event = Event::Delivery { channel: 1, consumer_tag: "c".into(), delivery: Box::new(delivery) };
    let sizes: Vec<usize> = peer
        .event(event)
        .iter()
        .filter_map(|frame| match frame {
            AMQPFrame::Body(_, part) => Some(part.len()),
            _ => None,
        })
        .collect();
    assert_eq!(sizes, [4088, 4088, 1824]);
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
