//! Transactions.

use super::*;

pub(super) fn tx(method: tx::AMQPMethod) -> AMQPFrame {
    AMQPFrame::Method(1, AMQPClass::Tx(method))
}

/// With a transaction on channel 1 that has published one message and acknowledged delivery 11 of two.
pub(super) fn in_transaction() -> Peer {
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
fn what_ends_alike_one_behind_the_other_is_one_settlement_at_the_commit() {
    let mut peer = in_transaction();
    peer.delivery("c", 13);
    peer.delivery("c", 14);
    peer.send(nack(4, false, true));
    peer.send(nack(3, true, true));
    peer.send(tx(tx::AMQPMethod::Commit(tx::Commit {})));
    peer.commands();
    peer.event(Event::Confirm { channel: 1, seq: 1, outcome: PublishOutcome::Stored });
    let expected = [(vec![11], Outcome::Ack), (vec![12, 13, 14], Outcome::Requeue)];
    assert_eq!(settles(&peer.commands()), expected);
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
