//! What is settled right behind each other: credit goes to the broker between.

use super::*;

/// Settlements and credit in their order, each as how many.
fn told(commands: &[Command]) -> Vec<(Option<Outcome>, usize)> {
    let each = |command: &Command| match command {
        Command::Settle { deliveries, outcome, .. } => Some((Some(*outcome), deliveries.len())),
        Command::Credit { amount, .. } => Some((None, *amount as usize)),
        _ => None,
    };
    commands.iter().filter_map(each).collect()
}

fn with_deliveries(prefetch: u16, global: bool) -> Peer {
    let mut peer = Peer::with_channel();
    peer.send(qos(prefetch, global));
    peer.consume("c", false);
    for id in 11..11 + u64::from(prefetch) {
        peer.delivery("c", id);
    }
    peer.written();
    peer.commands();
    peer
}

fn at_once(peer: &mut Peer, frames: &[AMQPFrame]) -> Vec<(Option<Outcome>, usize)> {
    peer.bytes(&frames.iter().flat_map(encoded).collect::<Vec<u8>>());
    told(&peer.commands())
}

#[test]
fn credit_that_is_due_goes_before_what_comes_back_and_right_behind_it() {
    let mut peer = with_deliveries(5, false);
    let frames = [ack(1, false), ack(2, false), nack(3, false, true), ack(4, false), nack(5, false, true)];
    let expected = [
        (Some(Outcome::Ack), 2),
        (None, 2),
        (Some(Outcome::Requeue), 1),
        (None, 1),
        (Some(Outcome::Ack), 1),
        (None, 1),
        (Some(Outcome::Requeue), 1),
        (None, 1),
    ];
    assert_eq!(at_once(&mut peer, &frames), expected);
    let mut peer = with_deliveries(2, false);
    let get = bas(1, basic::AMQPMethod::Get(basic::Get { queue: "q".into(), no_ack: false }));
    assert_eq!(at_once(&mut peer, &[ack(1, false), get]), [(Some(Outcome::Ack), 1), (None, 1)]);
}

#[test]
fn the_credit_of_a_channel_with_a_limit_goes_behind_all_that_was_settled() {
    let mut peer = with_deliveries(3, true);
    let frames = [ack(1, false), nack(2, false, true), ack(3, false)];
    let expected = [(Some(Outcome::Ack), 1), (Some(Outcome::Requeue), 1), (Some(Outcome::Ack), 1), (None, 3)];
    assert_eq!(at_once(&mut peer, &frames), expected);
}
