//! Deliveries that are not settled in time.

use super::transactions::{in_transaction, tx};
use super::*;

const TIMEOUT: Option<Duration> = Some(Duration::from_millis(2500));

impl Peer {
    /// Time passes, and what is due is done.
    fn after(&mut self, ms: u64) -> Vec<AMQPFrame> {
        self.now += Duration::from_millis(ms);
        self.session.tick(self.now);
        self.session.flush();
        self.output()
    }

    fn due_in(&self) -> Option<Duration> {
        self.session.deadline().map(|deadline| deadline.duration_since(self.now))
    }
}

fn overdue(channel: u16, ms: u64) -> AMQPFrame {
    let close = channel::Close {
        reply_code: 406,
        reply_text: format!(
            "PRECONDITION_FAILED - delivery acknowledgement on channel {channel} timed out. Timeout value used: {ms} ms. This \
             timeout value can be configured, see consumers doc guide to learn more"
        )
        .into(),
        class_id: 0,
        method_id: 0,
    };
    chan(channel, channel::AMQPMethod::Close(close))
}

#[test]
fn a_delivery_that_is_not_settled_in_time_closes_its_channel_and_no_other() {
    let mut peer = Peer::with_channel();
    peer.open_channel(2);
    peer.consume("c", false);
    assert_eq!(peer.due_in(), None);
    peer.delivery_within("c", 1, TIMEOUT);
    assert_eq!(peer.due_in(), TIMEOUT);
    peer.commands();
    assert_eq!(peer.after(2499), []);
    assert_eq!(peer.after(1), [overdue(1, 2500)]);
    assert!(matches!(peer.commands()[..], [Command::CloseChannel { channel: 1 }]), "which requeues what it holds");
    assert_eq!(peer.session.counts().channel_errors, 1);
    assert_eq!(peer.due_in(), None);
    assert_eq!(peer.after(10_000), [], "once");
    assert!(peer.session.is_running());
    assert_eq!(peer.session.counts().channels, 2, "until the client has answered");
}

#[test]
fn what_is_settled_is_in_time() {
    let mut peer = Peer::with_channel();
    peer.consume("c", false);
    for id in 1..=3 {
        peer.delivery_within("c", id, TIMEOUT);
        peer.after(700);
    }
    peer.send(ack(1, false));
    assert_eq!(peer.after(400), [], "when the first would have been over");
    peer.send(nack(2, false, true));
    assert_eq!(peer.after(1000), []);
    assert_eq!(peer.due_in(), Some(Duration::from_secs(1)), "they are not looked through more often");
    peer.send(ack(3, false));
    assert_eq!(peer.after(1000), []);
    assert_eq!(peer.due_in(), None);
}

#[test]
fn each_delivery_has_the_time_of_its_queue() {
    let mut peer = Peer::with_channel();
    peer.consume("slow", false);
    peer.delivery_within("slow", 1, Some(Duration::from_secs(60)));
    peer.delivery_within("slow", 2, None);
    peer.delivery_within("slow", 3, TIMEOUT);
    assert_eq!(peer.due_in(), TIMEOUT);
    assert_eq!(peer.after(2500), [overdue(1, 2500)]);
}

#[test]
fn who_does_not_acknowledge_is_not_waited_for_and_a_get_is() {
    let mut peer = Peer::with_channel();
    peer.consume("quick", true);
    peer.delivery_within("quick", 1, TIMEOUT);
    assert_eq!(peer.due_in(), None);
    for (no_ack, due) in [(true, None), (false, TIMEOUT)] {
        peer.send(bas(1, basic::AMQPMethod::Get(basic::Get { queue: "q".into(), no_ack })));
        let delivery =
            Delivery { id: DeliveryId(2), redelivered: false, ack_timeout: TIMEOUT, message: message("hello") };
        peer.reply(1, Reply::Got(Some(Box::new(Got { delivery, message_count: 0 }))));
        assert_eq!(peer.due_in(), due);
    }
}

#[test]
fn what_a_prefetch_holds_back_has_its_time_from_when_it_is_sent() {
    let mut peer = Peer::with_channel();
    peer.send(qos(1, true));
    peer.consume("c", false);
    peer.delivery_within("c", 1, TIMEOUT);
    peer.delivery_within("c", 2, TIMEOUT);
    peer.after(2000);
    peer.send(ack(1, false));
    for ms in [500, 1999] {
        assert_eq!(peer.after(ms), []);
    }
    assert_eq!(peer.after(1), [overdue(1, 2500)]);
}

#[test]
fn a_settlement_in_a_transaction_is_in_time_until_it_is_taken_back() {
    let mut peer = in_transaction();
    peer.delivery_within("c", 13, TIMEOUT);
    peer.send(ack(3, false));
    assert_eq!(peer.after(5000), []);
    peer.send(tx(tx::AMQPMethod::Rollback(tx::Rollback {})));
    assert_eq!(peer.after(1), [overdue(1, 2500)]);
}
