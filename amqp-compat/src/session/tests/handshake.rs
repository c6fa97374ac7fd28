//! What is agreed on before anything is done: the protocol, the login, the vhost, sizes and heartbeats.

use super::*;

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
