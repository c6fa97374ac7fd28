//! Deliveries: credit, prefetch, settlements.

use super::*;

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
fn what_a_get_had_taken_when_a_channels_prefetch_begins_counts_until_its_end() {
    let mut peer = Peer::with_channel();
    let delivery =
        |id| Delivery { id: DeliveryId(id), redelivered: false, ack_timeout: None, message: message("hello") };
    let take = |peer: &mut Peer, id| {
        peer.send(bas(1, basic::AMQPMethod::Get(basic::Get { queue: "q".into(), no_ack: false })));
        peer.commands();
        peer.reply(1, Reply::Got(Some(Box::new(Got { delivery: delivery(id), message_count: 0 }))));
    };
    take(&mut peer, 11);
    peer.send(qos(3, true));
    assert_eq!(peer.consume("c", false), 2);
    // What is taken later takes no room.
    take(&mut peer, 12);
    assert_eq!(tags(&peer.delivery("c", 13)), [3]);
    assert_eq!(tags(&peer.delivery("c", 14)), [4]);
    peer.commands();
    peer.send(ack(1, false));
    assert_eq!(credits(&peer.commands()), 0, "nor does it give any back");
    peer.send(qos(0, true));
    assert!(credits(&peer.commands()) > 0);
    assert_eq!(tags(&peer.delivery("c", 15)), [5]);
    peer.send(qos(4, true));
    assert_eq!(tags(&peer.delivery("c", 16)), Vec::<u64>::new(), "12 counts as well now");
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
