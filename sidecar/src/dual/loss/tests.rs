//! A side that is lost with something of the client's in hand.

use std::sync::Arc;
use std::time::Duration;

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::FieldTable;
use amqp_compat::backend::reply_to::ReplyConsumers;
use amqp_compat::backend::{Consume, Delivery, DeliveryId, Got, Message, QueueDeclare, Topology};

use super::*;
use crate::dual::returns::Awaited;
use crate::dual::shared::Shared;
use crate::dual::stamp::Ids;
use crate::fence::Fences;
use crate::phase::Position;

fn engine(phase: Phase, weight: Weight) -> Engine {
    let ids = Ids::new();
    let fences = Fences::new(ids.run(), 1, weight, Duration::from_secs(30));
    let shared = Arc::new(Shared::new(ids, 1, Position { phase, weight }, fences, true));
    Engine::new(shared, 1, "/", Presence::Attached, Presence::Attached, nobody())
}

fn nobody() -> ReplyConsumers {
    ReplyConsumers::new(Arc::default(), tokio::sync::mpsc::channel(1).0)
}

/// An engine at full weight with channel 1 open on both sides.
fn open() -> Engine {
    let mut engine = engine(Phase::Cutover, Weight::ALL);
    engine.command(Command::OpenChannel { channel: 1 });
    for side in Side::BOTH {
        assert_eq!(sent(&mut engine, side).len(), 1);
        engine.event(side, reply(Ok(Reply::Done)));
    }
    assert!(matches!(said(&mut engine)[..], [Event::Reply { channel: 1, reply: Ok(Reply::Done) }]));
    engine
}

fn reply(reply: Result<Reply, AmqpError>) -> Event {
    Event::Reply { channel: 1, reply }
}

fn sent(engine: &mut Engine, side: Side) -> Vec<Command> {
    engine.half_mut(side).outbox.drain(..).collect()
}

fn said(engine: &mut Engine) -> Vec<Event> {
    engine.events.drain(..).collect()
}

fn gone() -> AmqpError {
    AmqpError::new(ReplyCode::ConnectionForced, "the connection to RabbitMQ was lost")
}

/// What RabbitMQ's link says when RabbitMQ dies with a request of channel 1 in hand.
fn dies(engine: &mut Engine) {
    engine.event(Side::Rabbit, reply(Err(gone())));
    engine.event(Side::Rabbit, Event::Closed { error: gone() });
}

fn declare() -> Topology {
    Topology::QueueDeclare(QueueDeclare {
        queue: "q".into(),
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        arguments: FieldTable::default(),
    })
}

fn consume() -> Command {
    let consume = Consume {
        queue: "q".into(),
        consumer_tag: "t".into(),
        exclusive: false,
        no_ack: false,
        credit: 10,
        prefetch: 0,
        no_limit: false,
        arguments: FieldTable::default(),
    };
    Command::Consume { channel: 1, consume }
}

fn got() -> Reply {
    let message = Message {
        exchange: "".into(),
        routing_key: "q".into(),
        properties: AMQPProperties::default(),
        body: "x".into(),
    };
    let delivery = Delivery { id: DeliveryId(1), redelivered: false, ack_timeout: None, message };
    Reply::Got(Some(Box::new(Got { delivery, message_count: 0 })))
}

fn queue() -> Reply {
    Reply::Queue { queue: "q".into(), message_count: 0, consumer_count: 0 }
}

#[test]
fn a_request_in_rabbitmqs_hand_when_it_dies_at_full_weight_is_answered_by_nats() {
    let requests: [(Command, Reply); 4] = [
        (Command::Topology { channel: 1, request: declare() }, queue()),
        (consume(), Reply::Done),
        (Command::Get { channel: 1, queue: "q".into() }, Reply::Got(None)),
        (Command::CloseChannel { channel: 1 }, Reply::Done),
    ];
    for (request, answer) in requests {
        let mut engine = open();
        let what = format!("{request:?}");
        engine.command(request);
        assert_eq!(sent(&mut engine, Side::Rabbit).len(), 1, "{what}");
        dies(&mut engine);
        assert!(said(&mut engine).is_empty(), "{what}: the client was told of the loss");
        assert_eq!(sent(&mut engine, Side::Nats).len(), 1, "{what}");
        engine.event(Side::Nats, reply(Ok(answer)));
        assert!(matches!(said(&mut engine)[..], [Event::Reply { reply: Ok(_), .. }]), "{what}");
        assert!(!engine.ended, "{what}");
        assert_eq!(engine.half(Side::Rabbit).presence, Presence::Lost, "{what}");
    }
}

#[test]
fn a_channel_that_rabbitmq_was_opening_when_it_died_is_open() {
    let mut engine = engine(Phase::Cutover, Weight::ALL);
    engine.command(Command::OpenChannel { channel: 1 });
    dies(&mut engine);
    engine.event(Side::Nats, reply(Ok(Reply::Done)));
    assert!(matches!(said(&mut engine)[..], [Event::Reply { reply: Ok(Reply::Done), .. }]));
    engine.command(consume());
    assert!(matches!(sent(&mut engine, Side::Nats)[..], [Command::OpenChannel { .. }, Command::Consume { .. }]));
}

#[test]
fn topology_that_was_being_repeated_on_a_rabbitmq_that_died_is_repeated_again_and_not_unmapped() {
    let mut engine = open();
    engine.event(Side::Rabbit, Event::Closed { error: gone() });
    engine.command(Command::Topology { channel: 1, request: declare() });
    engine.event(Side::Nats, reply(Ok(queue())));
    for _ in 0..2 {
        engine.attach(Side::Rabbit);
        engine.event(Side::Rabbit, reply(Ok(Reply::Done)));
        let repeated = sent(&mut engine, Side::Rabbit);
        assert!(matches!(repeated[..], [Command::OpenChannel { .. }, Command::Topology { .. }]), "{repeated:?}");
        dies(&mut engine);
    }
    assert!(engine.shared.all_unmapped().is_empty());
    assert!(!engine.ended);
}

#[test]
fn below_full_weight_a_lost_rabbitmq_closes_the_connection_once() {
    let mut engine = engine(Phase::Canary, Weight::from_buckets(9_999).expect("a weight"));
    engine.command(Command::OpenChannel { channel: 1 });
    dies(&mut engine);
    assert!(matches!(said(&mut engine)[..], [Event::Closed { .. }]));
    assert!(engine.ended);
}

#[test]
fn a_side_that_is_lost_while_it_takes_no_publishes_leaves_the_client_unblocked() {
    let mut engine = open();
    engine.event(Side::Rabbit, Event::Blocked { reason: "low on memory".into() });
    engine.event(Side::Rabbit, Event::Closed { error: gone() });
    assert!(matches!(said(&mut engine)[..], [Event::Blocked { .. }, Event::Unblocked]));
}

#[test]
fn a_get_has_its_message_though_the_side_that_was_asked_for_its_count_is_lost() {
    let mut engine = open();
    engine.command(Command::Get { channel: 1, queue: "q".into() });
    engine.event(Side::Rabbit, reply(Ok(Reply::Got(None))));
    engine.event(Side::Nats, reply(Ok(got())));
    assert!(matches!(said(&mut engine)[..], [Event::Reply { reply: Ok(Reply::Got(Some(_))), .. }]));
    // The other way round: NATS is asked for its count, and lost.
    engine.command(Command::Get { channel: 1, queue: "q".into() });
    engine.event(Side::Rabbit, reply(Ok(got())));
    assert!(said(&mut engine).is_empty());
    engine.event(Side::Nats, Event::Closed { error: gone() });
    assert!(matches!(said(&mut engine)[..], [Event::Reply { reply: Ok(Reply::Got(Some(_))), .. }]));
}

#[test]
fn a_get_asks_no_side_that_was_lost_after_it_began() {
    let mut engine = open();
    engine.command(Command::Get { channel: 1, queue: "q".into() });
    engine.event(Side::Nats, Event::Closed { error: gone() });
    engine.event(Side::Rabbit, reply(Ok(Reply::Got(None))));
    assert!(matches!(said(&mut engine)[..], [Event::Reply { reply: Ok(Reply::Got(None)), .. }]));
    sent(&mut engine, Side::Nats);
    engine.attach(Side::Nats);
    assert!(matches!(sent(&mut engine, Side::Nats)[..], [Command::OpenChannel { .. }]), "nothing comes before it");
}

#[test]
fn what_a_lost_nats_missed_is_repeated_by_another_connection_when_its_own_is_gone() {
    let mut first = open();
    let mut second = Engine::new(Arc::clone(&first.shared), 2, "/", Presence::Attached, Presence::Attached, nobody());
    second.command(Command::OpenChannel { channel: 1 });
    for side in Side::BOTH {
        second.event(side, reply(Ok(Reply::Done)));
        sent(&mut second, side);
    }
    first.half_mut(Side::Nats).presence = Presence::Lost;
    second.half_mut(Side::Nats).presence = Presence::Lost;
    let deleted = Topology::QueueDelete { queue: "old".into(), if_unused: false, if_empty: false };
    first.half_mut(Side::Nats).replay.extend([(1, deleted), (1, declare())]);
    first.client_gone();
    second.attach(Side::Nats);
    assert!(matches!(sent(&mut second, Side::Nats)[..], [Command::OpenChannel { channel: 1 }]));
    second.event(Side::Nats, reply(Ok(Reply::Done)));
    let commands = sent(&mut second, Side::Nats);
    let repeated: Vec<_> = commands.iter().filter(|c| matches!(c, Command::Topology { .. })).collect();
    assert!(matches!(&repeated[..], [Command::Topology { request, .. }] if *request == declare()), "{repeated:?}");
    assert!(first.shared.take_missed(Side::Nats, "/").is_empty(), "taken once");
}

#[test]
fn a_consumer_whose_queue_jetstream_gets_later_begins_there_then() {
    let mut engine = engine(Phase::Shadow, Weight::NONE);
    engine.command(Command::OpenChannel { channel: 1 });
    for side in Side::BOTH {
        engine.event(side, reply(Ok(Reply::Done)));
    }
    engine.command(consume());
    engine.event(Side::Rabbit, reply(Ok(Reply::Done)));
    said(&mut engine);
    sent(&mut engine, Side::Nats);
    engine.event(Side::Nats, reply(Err(AmqpError::new(ReplyCode::NotFound, "no queue 'q'"))));
    assert_eq!(engine.shared.all_unmapped().len(), 1);
    // Another connection has declared it since.
    engine.tick();
    engine.tick();
    assert!(matches!(sent(&mut engine, Side::Nats)[..], [Command::Consume { channel: 1, .. }]), "once");
    engine.event(Side::Nats, reply(Ok(Reply::Done)));
    assert!(engine.shared.all_unmapped().is_empty());
    engine.tick();
    assert!(sent(&mut engine, Side::Nats).is_empty());
}

#[test]
fn rabbitmq_is_asked_for_a_paused_queue_once_nothing_of_it_can_be_settled_on_the_channel() {
    let mut engine = open();
    engine.shared.adopt(2, Position { phase: Phase::Shadow, weight: Weight::NONE });
    engine.command(consume());
    for side in Side::BOTH {
        sent(&mut engine, side);
        engine.event(side, reply(Ok(Reply::Done)));
    }
    let Reply::Got(Some(got)) = got() else { panic!("a message") };
    let delivery = Box::new(got.delivery);
    engine.event(Side::Rabbit, Event::Delivery { channel: 1, consumer_tag: "t".into(), delivery });
    let shared = Arc::clone(&engine.shared);
    let name = crate::fence::QueueName { vhost: "/".into(), queue: "q".into() };
    shared.pause(&name, true);
    engine.follow_pauses();
    assert!(matches!(sent(&mut engine, Side::Rabbit)[..], [Command::Cancel { .. }]));
    let look = |engine: &mut Engine, event: Option<Event>| {
        event.into_iter().for_each(|event| engine.event(Side::Rabbit, event));
        engine.follow_pauses();
        let asked = sent(engine, Side::Rabbit);
        asked.iter().any(|c| matches!(c, Command::Topology { request: Topology::QueueDeclare(d), .. } if d.passive))
    };
    assert!(!look(&mut engine, Some(reply(Ok(Reply::Done)))), "the client has one");
    let deliveries = std::iter::once(DeliveryId(1)).collect();
    let outcome = amqp_compat::backend::Outcome::Requeue;
    engine.command(Command::Settle { channel: 1, deliveries, outcome });
    assert!(look(&mut engine, None), "behind the requeue");
    assert_eq!(shared.awaited(&name), Awaited::Links(1));
    assert!(!look(&mut engine, Some(reply(Ok(queue())))), "once");
    assert_eq!(shared.awaited(&name), Awaited::Nothing);
}

fn missing(what: &str) -> Event {
    reply(Err(AmqpError::new(ReplyCode::NotFound, format!("no {what} in vhost '/'"))))
}

/// An engine whose client consumes `q` and `other`, has one message of `other` in hand, and is asked about `q`, which is paused.
fn asked() -> (Engine, crate::fence::QueueName) {
    let mut engine = open();
    engine.shared.adopt(2, Position { phase: Phase::Shadow, weight: Weight::NONE });
    let other = match consume() {
        Command::Consume { channel, consume } => {
            let consume = Consume { queue: "other".into(), consumer_tag: "u".into(), ..consume };
            Command::Consume { channel, consume }
        }
        _ => unreachable!("it consumes"),
    };
    for command in [consume(), other] {
        engine.command(command);
        for side in Side::BOTH {
            sent(&mut engine, side);
            engine.event(side, reply(Ok(Reply::Done)));
        }
    }
    let Reply::Got(Some(got)) = got() else { panic!("a message") };
    let delivery = Box::new(got.delivery);
    engine.event(Side::Rabbit, Event::Delivery { channel: 1, consumer_tag: "u".into(), delivery });
    let name = crate::fence::QueueName { vhost: "/".into(), queue: "q".into() };
    engine.shared.pause(&name, true);
    engine.follow_pauses();
    assert!(matches!(sent(&mut engine, Side::Rabbit)[..], [Command::Cancel { .. }]));
    engine.event(Side::Rabbit, reply(Ok(Reply::Done)));
    engine.follow_pauses();
    assert!(matches!(sent(&mut engine, Side::Rabbit)[..], [Command::Topology { .. }]));
    said(&mut engine);
    (engine, name)
}

#[test]
fn a_channel_that_rabbitmq_closes_for_the_sidecars_own_question_is_opened_again() {
    let (mut engine, name) = asked();
    // Behind the question: what the client declares is for the new channel, what it settles is not.
    engine.command(Command::Topology { channel: 1, request: declare() });
    engine.event(Side::Rabbit, missing("queue 'q'"));
    assert!(
        matches!(&said(&mut engine)[..], [Event::ConsumerCancelled { channel: 1, consumer_tag }] if consumer_tag.as_str() == "t")
    );
    assert_eq!(engine.shared.awaited(&name), Awaited::Nothing);
    assert!(matches!(sent(&mut engine, Side::Rabbit)[..], [Command::CloseChannel { channel: 1 }]));
    engine.event(Side::Rabbit, reply(Ok(Reply::Done)));
    assert!(matches!(sent(&mut engine, Side::Rabbit)[..], [Command::OpenChannel { channel: 1 }]));
    engine.event(Side::Rabbit, reply(Ok(Reply::Done)));
    assert!(
        matches!(&sent(&mut engine, Side::Rabbit)[..], [Command::Consume { consume, .. }] if consume.queue.as_str() == "other")
    );
    engine.event(Side::Rabbit, reply(Ok(Reply::Done)));
    assert!(
        matches!(&sent(&mut engine, Side::Rabbit)[..], [Command::Topology { request, .. }] if *request == declare())
    );
    engine.event(Side::Rabbit, reply(Ok(queue())));
    let settle = |id| {
        let deliveries = std::iter::once(DeliveryId(id)).collect();
        Command::Settle { channel: 1, deliveries, outcome: amqp_compat::backend::Outcome::Ack }
    };
    engine.command(settle(1));
    let sent_now = sent(&mut engine, Side::Rabbit);
    assert!(!sent_now.iter().any(|command| matches!(command, Command::Settle { .. })), "{sent_now:?}");
    // It comes again, and can be settled then.
    let Reply::Got(Some(got)) = got() else { panic!("a message") };
    let delivery = Box::new(got.delivery);
    engine.event(Side::Rabbit, Event::Delivery { channel: 1, consumer_tag: "u".into(), delivery });
    engine.command(settle(2));
    assert!(matches!(sent(&mut engine, Side::Rabbit)[..], [Command::Settle { .. }]));
}

#[test]
fn a_channel_that_rabbitmq_closes_for_what_its_client_did_stays_closed() {
    let (mut engine, name) = asked();
    engine.event(Side::Rabbit, missing("exchange 'x'"));
    assert!(matches!(said(&mut engine)[..], [Event::ChannelFailed { channel: 1, .. }]));
    assert!(sent(&mut engine, Side::Rabbit).is_empty());
    assert_eq!(engine.shared.awaited(&name), Awaited::Nothing);
}

#[test]
fn what_a_link_had_of_a_rabbitmq_that_was_lost_without_a_word_is_awaited() {
    let mut engine = open();
    engine.command(consume());
    let (shared, name) = (Arc::clone(&engine.shared), crate::fence::QueueName { vhost: "/".into(), queue: "q".into() });
    engine.event(Side::Rabbit, Event::Closed { error: gone() });
    shared.pause(&name, true);
    engine.follow_pauses();
    assert!(matches!(shared.awaited(&name), Awaited::Lost(_)));
    let other = crate::fence::QueueName { vhost: "/".into(), queue: "other".into() };
    shared.pause(&other, true);
    engine.follow_pauses();
    assert_eq!(shared.awaited(&other), Awaited::Nothing);
}
