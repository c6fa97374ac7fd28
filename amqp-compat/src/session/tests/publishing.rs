//! Messages that come, and their confirms.

use super::*;

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
