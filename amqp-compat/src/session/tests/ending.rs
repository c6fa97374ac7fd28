//! Clients that leave, and brokers that do.

use super::*;

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
