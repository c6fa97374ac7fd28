//! Channels, requests and their answers, and what closes what.

use super::*;

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
