// The program of `main.rs`; `amqp` is lapin, or the client that has its interface.

use std::time::Duration;

use amqp::message::{Delivery, DeliveryResult};
use amqp::options::*;
use amqp::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use amqp::types::{AMQPValue, FieldTable, ShortString};
use amqp::{
    BasicProperties, Channel, ChannelState, Confirmation, Connection, ConnectionState, Consumer, ErrorKind,
    ExchangeKind,
};
use futures::StreamExt;
use futures::future::BoxFuture;
use test_support::eventually::eventually_true;

const PATIENCE: Duration = Duration::from_secs(20);

/// A broker to try the promises on.
pub struct Place {
    pub vhost: String,
    pub connect: Box<dyn Fn() -> BoxFuture<'static, amqp::Result<Connection>> + Send + Sync>,
}

impl Place {
    async fn connection(&self) -> Connection {
        in_time((self.connect)()).await.expect("connected")
    }

    async fn channel(&self) -> (Connection, Channel) {
        let connection = self.connection().await;
        let channel = connection.create_channel().await.expect("opened");
        (connection, channel)
    }
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

async fn declare(channel: &Channel, queue: &str) {
    let options = QueueDeclareOptions::durable();
    in_time(channel.queue_declare(queue.into(), options, FieldTable::default())).await.expect("declared");
}

/// Messages that are ready in a queue, and its consumers.
async fn counts(channel: &Channel, queue: &str) -> (u32, u32) {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let queue = in_time(channel.queue_declare(queue.into(), options, FieldTable::default())).await.expect("there");
    (queue.message_count(), queue.consumer_count())
}

async fn counts_become(channel: &Channel, queue: &str, expected: (u32, u32)) {
    eventually_true("the queue's counts", async || counts(channel, queue).await == expected).await;
}

async fn send(channel: &Channel, exchange: &str, key: &str, text: &str) -> Confirmation {
    send_with(channel, exchange, key, text, BasicPublishOptions::default()).await
}

async fn send_with(
    channel: &Channel,
    exchange: &str,
    key: &str,
    text: &str,
    options: BasicPublishOptions,
) -> Confirmation {
    let properties = BasicProperties::default().with_delivery_mode(2);
    let publish = channel.basic_publish(exchange.into(), key.into(), options, text.as_bytes(), properties);
    in_time(in_time(publish).await.expect("sent")).await.expect("confirmed")
}

/// A channel with confirms, and these texts in a queue.
async fn filled(place: &Place, queue: &str, texts: &[&str]) -> (Connection, Channel) {
    let (connection, channel) = place.channel().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("selected");
    declare(&channel, queue).await;
    for text in texts {
        assert_eq!(send(&channel, "", queue, text).await, Confirmation::Ack(None));
    }
    (connection, channel)
}

async fn consume(channel: &Channel, queue: &str, tag: &str) -> Consumer {
    let options = BasicConsumeOptions::default();
    in_time(channel.basic_consume(queue.into(), tag.into(), options, FieldTable::default())).await.expect("consuming")
}

async fn next(consumer: &mut Consumer) -> Delivery {
    in_time(consumer.next()).await.expect("a message").expect("no error")
}

fn text(delivery: &Delivery) -> (String, bool) {
    (String::from_utf8(delivery.data.clone()).expect("text"), delivery.redelivered)
}

fn said(text: &str, redelivered: bool) -> (String, bool) {
    (text.to_owned(), redelivered)
}

async fn get(channel: &Channel, queue: &str) -> Option<(String, bool)> {
    let message = in_time(channel.basic_get(queue.into(), BasicGetOptions { no_ack: true })).await.expect("got");
    message.map(|message| text(&message.delivery))
}

/// The kind and the text of a broker's error.
fn refusal(error: &amqp::Error) -> (AMQPErrorKind, String) {
    match error.kind() {
        ErrorKind::ProtocolError(error) => (error.kind().clone(), error.get_message().to_string()),
        other => panic!("{other:?} is no refusal"),
    }
}

/// That a channel is closed, and that nothing else is.
async fn is_closed_alone(connection: &Connection, channel: &Channel) {
    eventually_true("the channel is closed", async || {
        let refused = channel.basic_qos(1, BasicQosOptions::default()).await;
        let error = refused.as_ref().map_err(amqp::Error::kind);
        matches!(error, Err(ErrorKind::InvalidChannelState(ChannelState::Error | ChannelState::Closed, _)))
    })
    .await;
    assert!(connection.status().connected());
    connection.create_channel().await.expect("the connection is open");
}

pub async fn what_is_declared_is_there_until_it_is_deleted(place: &Place) {
    let (connection, channel) = place.channel().await;
    for kind in [ExchangeKind::Direct, ExchangeKind::Fanout, ExchangeKind::Topic, ExchangeKind::Headers] {
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let name = ShortString::from(format!("{kind:?}"));
        channel.exchange_declare(name.clone(), kind.clone(), options, FieldTable::default()).await.expect("declared");
        let passive = ExchangeDeclareOptions { passive: true, ..Default::default() };
        channel.exchange_declare(name.clone(), kind, passive, FieldTable::default()).await.expect("there");
        channel.exchange_delete(name, ExchangeDeleteOptions::default()).await.expect("deleted");
    }
    let options = QueueDeclareOptions::durable();
    let queue = channel.queue_declare("q".into(), options, FieldTable::default()).await.expect("declared");
    assert_eq!((queue.name().as_str(), queue.message_count(), queue.consumer_count()), ("q", 0, 0));
    let exclusive = QueueDeclareOptions::exclusive();
    let own = channel.queue_declare("".into(), exclusive, FieldTable::default()).await.expect("declared");
    assert!(own.name().as_str().starts_with("amq.gen-"), "{own:?}");
    assert_eq!(send(&channel, "", "q", "1").await, Confirmation::NotRequested);
    counts_become(&channel, "q", (1, 0)).await;
    assert_eq!(channel.queue_delete("q".into(), QueueDeleteOptions::default()).await.expect("deleted"), 1);
    let (kind, _) = refusal(
        &channel
            .queue_declare("q".into(), QueueDeclareOptions::durable().passive(), FieldTable::default())
            .await
            .expect_err("it is gone"),
    );
    assert_eq!(kind, AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND));
    drop(connection);
}

pub async fn bindings_route_until_they_are_taken_off(place: &Place) {
    let (_connection, channel) = filled(place, "q", &[]).await;
    let topic = ExchangeDeclareOptions { durable: true, ..Default::default() };
    for (name, kind) in [("t", ExchangeKind::Topic), ("f", ExchangeKind::Fanout)] {
        channel.exchange_declare(name.into(), kind, topic, FieldTable::default()).await.expect("declared");
    }
    let none = FieldTable::default;
    channel.queue_bind("q".into(), "t".into(), "a.#".into(), Default::default(), none()).await.expect("bound");
    channel.exchange_bind("t".into(), "f".into(), "".into(), Default::default(), none()).await.expect("bound");
    send(&channel, "t", "a.b.c", "by topic").await;
    send(&channel, "t", "b", "nowhere").await;
    send(&channel, "f", "a", "by both").await;
    channel.exchange_unbind("t".into(), "f".into(), "".into(), Default::default(), none()).await.expect("unbound");
    send(&channel, "f", "a", "nowhere").await;
    channel.queue_unbind("q".into(), "t".into(), "a.#".into(), none()).await.expect("unbound");
    send(&channel, "t", "a.b.c", "nowhere").await;
    for expected in [Some("by topic"), Some("by both"), None] {
        assert_eq!(get(&channel, "q").await, expected.map(|text| said(text, false)));
    }
}

pub async fn publishes_are_confirmed(place: &Place) {
    let (_connection, channel) = filled(place, "q", &[]).await;
    let mut confirms = Vec::new();
    for n in 0..500 {
        let (options, properties) = Default::default();
        let text = n.to_string();
        let publish = channel.basic_publish("".into(), "q".into(), options, text.as_bytes(), properties);
        confirms.push(publish.await.expect("sent"));
    }
    for confirm in confirms {
        assert_eq!(in_time(confirm).await.expect("confirmed"), Confirmation::Ack(None));
    }
    assert_eq!(counts(&channel, "q").await, (500, 0));
    // One that nobody waits for is waited for here.
    let (options, properties) = Default::default();
    drop(channel.basic_publish("".into(), "q".into(), options, b"500", properties).await.expect("sent"));
    assert!(in_time(channel.wait_for_confirms()).await.expect("confirmed").is_empty());
    assert_eq!(counts(&channel, "q").await, (501, 0));
}

pub async fn a_mandatory_message_without_a_route_comes_back_with_its_confirm(place: &Place) {
    let (_connection, channel) = filled(place, "q", &[]).await;
    let mandatory = BasicPublishOptions { mandatory: true, ..Default::default() };
    let Confirmation::Ack(Some(returned)) = send_with(&channel, "", "nobody", "lost", mandatory).await else {
        panic!("it was not returned");
    };
    assert_eq!((returned.reply_code, returned.reply_text.as_str()), (312, "NO_ROUTE"));
    assert_eq!((returned.routing_key.as_str(), returned.data.as_slice()), ("nobody", &b"lost"[..]));
    assert_eq!(send_with(&channel, "", "q", "found", mandatory).await, Confirmation::Ack(None));
    let (options, properties) = (mandatory, BasicProperties::default());
    drop(channel.basic_publish("".into(), "nobody".into(), options, b"later", properties).await.expect("sent"));
    let returned = in_time(channel.wait_for_confirms()).await.expect("confirmed");
    assert_eq!(returned.iter().map(|message| message.data.as_slice()).collect::<Vec<_>>(), [b"later"]);
}

pub async fn a_consumer_streams_messages_as_they_were_published(place: &Place) {
    let (_connection, channel) = filled(place, "q", &[]).await;
    let mut headers = FieldTable::default();
    headers.insert("n".into(), AMQPValue::LongInt(-7));
    headers.insert("of".into(), AMQPValue::LongString("ours".into()));
    let properties = BasicProperties::default()
        .with_content_type("text/plain".into())
        .with_headers(headers)
        .with_delivery_mode(2)
        .with_correlation_id("c-1".into())
        .with_reply_to("answers".into())
        .with_message_id("m-1".into())
        .with_timestamp(1_700_000_000)
        .with_type("greeting".into())
        .with_app_id("tests".into());
    let mut consumer = consume(&channel, "q", "reader").await;
    assert_eq!((consumer.tag().as_str(), consumer.queue().as_str()), ("reader", "q"));
    let options = BasicPublishOptions::default();
    channel.basic_publish("".into(), "q".into(), options, b"hello", properties.clone()).await.expect("sent");
    let delivery = next(&mut consumer).await;
    assert_eq!((delivery.delivery_tag, delivery.exchange.as_str(), delivery.routing_key.as_str()), (1, "", "q"));
    assert_eq!(text(&delivery), said("hello", false));
    assert_eq!(delivery.properties, properties);
    assert!(in_time(delivery.ack(BasicAckOptions::default())).await.expect("acknowledged"));
    assert!(!delivery.ack(BasicAckOptions::default()).await.expect("once only"));
    for n in 0..100 {
        channel
            .basic_publish("".into(), "q".into(), options, n.to_string().as_bytes(), Default::default())
            .await
            .expect("sent");
    }
    for n in 0..100 {
        let delivery = next(&mut consumer).await;
        assert_eq!(text(&delivery), said(&n.to_string(), false));
        delivery.ack(BasicAckOptions::default()).await.expect("acknowledged");
    }
}

pub async fn a_large_message_arrives_whole(place: &Place) {
    let (_connection, channel) = filled(place, "q", &[]).await;
    let mut consumer = consume(&channel, "q", "").await;
    let body: Vec<u8> = (0..700_000u32).map(|n| (n % 251) as u8).collect();
    for _ in 0..3 {
        let (options, properties) = Default::default();
        let confirm = channel.basic_publish("".into(), "q".into(), options, &body, properties).await.expect("sent");
        assert_eq!(in_time(confirm).await.expect("confirmed"), Confirmation::Ack(None));
    }
    for _ in 0..3 {
        let delivery = next(&mut consumer).await;
        assert!(delivery.data == body, "{} bytes came", delivery.data.len());
        delivery.ack(BasicAckOptions::default()).await.expect("acknowledged");
    }
}

pub async fn settled_messages_are_gone_and_requeued_ones_say_so(place: &Place) {
    let (connection, channel) = filled(place, "q", &["ack", "nack", "reject", "requeue"]).await;
    let mut consumer = consume(&channel, "q", "").await;
    let [ack, nack, reject, requeue] =
        [next(&mut consumer).await, next(&mut consumer).await, next(&mut consumer).await, next(&mut consumer).await];
    ack.ack(BasicAckOptions::default()).await.expect("settled");
    nack.nack(BasicNackOptions { requeue: false, ..Default::default() }).await.expect("settled");
    reject.reject(BasicRejectOptions { requeue: false }).await.expect("settled");
    requeue.nack(BasicNackOptions { requeue: true, ..Default::default() }).await.expect("settled");
    let again = next(&mut consumer).await;
    assert_eq!(text(&again), said("requeue", true));
    again.reject(BasicRejectOptions { requeue: true }).await.expect("settled");
    let again = next(&mut consumer).await;
    assert_eq!(text(&again), said("requeue", true));
    again.ack(BasicAckOptions::default()).await.expect("settled");
    channel.close(200, "done".into()).await.expect("closed");
    let channel = connection.create_channel().await.expect("opened");
    assert_eq!(counts(&channel, "q").await, (0, 0));
}

pub async fn one_ack_settles_all_before_it(place: &Place) {
    let (connection, channel) = filled(place, "q", &["1", "2", "3"]).await;
    let mut consumer = consume(&channel, "q", "").await;
    let (_first, second, _third) = (next(&mut consumer).await, next(&mut consumer).await, next(&mut consumer).await);
    second.ack(BasicAckOptions { multiple: true }).await.expect("settled");
    channel.close(200, "done".into()).await.expect("closed");
    let channel = connection.create_channel().await.expect("opened");
    counts_become(&channel, "q", (1, 0)).await;
    assert_eq!(get(&channel, "q").await, Some(said("3", true)));
}

pub async fn a_get_takes_one_message(place: &Place) {
    let (_connection, channel) = filled(place, "q", &["1", "2"]).await;
    let message = channel.basic_get("q".into(), BasicGetOptions::default()).await.expect("got").expect("a message");
    assert_eq!((text(&message.delivery), message.message_count), (said("1", false), 1));
    message.nack(BasicNackOptions { requeue: true, ..Default::default() }).await.expect("settled");
    counts_become(&channel, "q", (2, 0)).await;
    for expected in [Some(said("1", true)), Some(said("2", false)), None] {
        assert_eq!(get(&channel, "q").await, expected);
    }
}

pub async fn a_prefetch_bounds_what_is_unacknowledged(place: &Place) {
    let (_connection, channel) = filled(place, "q", &["1", "2", "3", "4"]).await;
    channel.basic_qos(2, BasicQosOptions::default()).await.expect("set");
    let mut consumer = consume(&channel, "q", "").await;
    let (first, second) = (next(&mut consumer).await, next(&mut consumer).await);
    counts_become(&channel, "q", (2, 1)).await;
    first.ack(BasicAckOptions::default()).await.expect("settled");
    assert_eq!(text(&next(&mut consumer).await), said("3", false));
    counts_become(&channel, "q", (1, 1)).await;
    second.ack(BasicAckOptions::default()).await.expect("settled");
    assert_eq!(text(&next(&mut consumer).await), said("4", false));
}

pub async fn what_needs_no_acknowledgement_is_gone_when_delivered(place: &Place) {
    let (connection, channel) = filled(place, "q", &["1", "2"]).await;
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let consumer = channel.basic_consume("q".into(), "".into(), options, FieldTable::default()).await;
    let mut consumer = consumer.expect("consuming");
    assert_eq!(text(&next(&mut consumer).await), said("1", false));
    assert_eq!(text(&next(&mut consumer).await), said("2", false));
    // Once it says so: a connection that breaks off may have been told of nothing.
    counts_become(&channel, "q", (0, 1)).await;
    channel.close(200, "done".into()).await.expect("closed");
    let channel = connection.create_channel().await.expect("opened");
    assert_eq!(counts(&channel, "q").await, (0, 0));
}

pub async fn a_purge_says_how_many_went(place: &Place) {
    let (_connection, channel) = filled(place, "q", &["1", "2", "3"]).await;
    assert_eq!(channel.queue_purge("q".into(), QueuePurgeOptions::default()).await.expect("purged"), 3);
    assert_eq!(counts(&channel, "q").await, (0, 0));
}

pub async fn a_cancelled_consumer_ends_its_stream(place: &Place) {
    let (_connection, channel) = filled(place, "q", &["1"]).await;
    let mut consumer = consume(&channel, "q", "reader").await;
    let delivery = next(&mut consumer).await;
    in_time(channel.basic_cancel("reader".into(), BasicCancelOptions::default())).await.expect("cancelled");
    assert!(in_time(consumer.next()).await.is_none());
    counts_become(&channel, "q", (0, 0)).await;
    // What it was delivered is still its channel's.
    delivery.nack(BasicNackOptions { requeue: true, ..Default::default() }).await.expect("settled");
    counts_become(&channel, "q", (1, 0)).await;
}

pub async fn a_dropped_consumer_is_cancelled_and_a_dropped_delivery_is_not_settled(place: &Place) {
    let (connection, channel) = filled(place, "q", &["1"]).await;
    let other = connection.create_channel().await.expect("opened");
    let mut consumer = consume(&channel, "q", "").await;
    drop(next(&mut consumer).await);
    counts_become(&other, "q", (0, 1)).await;
    drop(consumer);
    counts_become(&other, "q", (0, 0)).await;
    channel.close(200, "done".into()).await.expect("closed");
    counts_become(&other, "q", (1, 0)).await;
    assert_eq!(get(&other, "q").await, Some(said("1", true)));
}

pub async fn a_deleted_queue_ends_the_streams_of_its_consumers(place: &Place) {
    let (connection, channel) = filled(place, "q", &[]).await;
    let mut consumer = consume(&channel, "q", "").await;
    let other = connection.create_channel().await.expect("opened");
    other.queue_delete("q".into(), QueueDeleteOptions::default()).await.expect("deleted");
    assert!(in_time(consumer.next()).await.is_none());
    assert!(channel.status().connected());
}

pub async fn a_delegate_is_given_each_message(place: &Place) {
    let (_connection, channel) = filled(place, "q", &["1", "2"]).await;
    let consumer = consume(&channel, "q", "").await;
    let (given, mut taken) = tokio::sync::mpsc::unbounded_channel();
    consumer.set_delegate(move |delivery: DeliveryResult| {
        let given = given.clone();
        async move {
            if let Ok(Some(delivery)) = delivery {
                delivery.ack(BasicAckOptions::default()).await.expect("settled");
                given.send(text(&delivery)).expect("listened to");
            }
        }
    });
    let first = in_time(taken.recv()).await.expect("given");
    let second = in_time(taken.recv()).await.expect("given");
    let mut both = [first, second];
    // A delegate's calls run at the same time.
    both.sort();
    assert_eq!(both, [said("1", false), said("2", false)]);
}

pub async fn a_transaction_counts_when_it_is_committed(place: &Place) {
    let (connection, other) = place.channel().await;
    let channel = connection.create_channel().await.expect("opened");
    declare(&channel, "q").await;
    channel.tx_select().await.expect("selected");
    assert_eq!(send(&channel, "", "q", "taken back").await, Confirmation::NotRequested);
    channel.tx_rollback().await.expect("rolled back");
    send(&channel, "", "q", "1").await;
    send(&channel, "", "q", "2").await;
    assert_eq!(counts(&other, "q").await, (0, 0));
    in_time(channel.tx_commit()).await.expect("committed");
    counts_become(&other, "q", (2, 0)).await;
    assert_eq!(get(&other, "q").await, Some(said("1", false)));
}

pub async fn a_recover_delivers_again(place: &Place) {
    let (_connection, channel) = filled(place, "q", &["1"]).await;
    let mut consumer = consume(&channel, "q", "").await;
    assert_eq!(text(&next(&mut consumer).await), said("1", false));
    in_time(channel.basic_recover(BasicRecoverOptions { requeue: true })).await.expect("recovered");
    assert_eq!(text(&next(&mut consumer).await), said("1", true));
}

pub async fn a_missing_queue_closes_the_channel_with_404(place: &Place) {
    let (connection, channel) = place.channel().await;
    let options = BasicConsumeOptions::default();
    let consumed = in_time(channel.basic_consume("none".into(), "".into(), options, FieldTable::default())).await;
    let error = consumed.expect_err("there is no such queue");
    assert!(error.is_amqp_soft_error() && !error.is_amqp_hard_error() && !error.is_io_error());
    let expected = format!("NOT_FOUND - no queue 'none' in vhost '{}'", place.vhost);
    assert_eq!(refusal(&error), (AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND), expected));
    is_closed_alone(&connection, &channel).await;
}

pub async fn a_contradiction_closes_the_channel_with_406(place: &Place) {
    let (connection, channel) = place.channel().await;
    declare(&channel, "q").await;
    let options = QueueDeclareOptions::default();
    let declared = in_time(channel.queue_declare("q".into(), options, FieldTable::default())).await;
    let (kind, text) = refusal(&declared.expect_err("it is durable"));
    assert_eq!(kind, AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED));
    assert!(text.starts_with("PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q'"), "{text}");
    is_closed_alone(&connection, &channel).await;
}

pub async fn an_exclusive_queue_is_closed_to_others_with_405(place: &Place) {
    let (_owner, own) = place.channel().await;
    own.queue_declare("mine".into(), QueueDeclareOptions::exclusive(), FieldTable::default()).await.expect("declared");
    let (connection, channel) = place.channel().await;
    let got = in_time(channel.basic_get("mine".into(), BasicGetOptions::default())).await;
    let (kind, text) = refusal(&got.expect_err("it is somebody else's"));
    assert_eq!(kind, AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED));
    assert!(text.starts_with("RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'mine'"), "{text}");
    is_closed_alone(&connection, &channel).await;
}

pub async fn an_unknown_delivery_tag_closes_the_channel(place: &Place) {
    let (connection, channel) = filled(place, "q", &[]).await;
    let mut consumer = consume(&channel, "q", "").await;
    channel.basic_ack(77, BasicAckOptions::default()).await.expect("sent");
    let error = in_time(consumer.next()).await.expect("an error").expect_err("no message");
    let expected = (
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED),
        "PRECONDITION_FAILED - unknown delivery tag 77".into(),
    );
    assert_eq!(refusal(&error), expected);
    assert!(in_time(consumer.next()).await.is_none());
    is_closed_alone(&connection, &channel).await;
}

pub async fn a_publish_to_nowhere_closes_the_channel_and_fails_its_confirm(place: &Place) {
    let (connection, channel) = filled(place, "q", &[]).await;
    let (options, properties) = Default::default();
    let confirm = channel.basic_publish("none".into(), "k".into(), options, b"lost", properties).await.expect("sent");
    let error = in_time(confirm).await.expect_err("there is no such exchange");
    let expected = format!("NOT_FOUND - no exchange 'none' in vhost '{}'", place.vhost);
    assert_eq!(refusal(&error), (AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND), expected));
    is_closed_alone(&connection, &channel).await;
}

pub async fn an_unknown_exchange_type_closes_the_connection(place: &Place) {
    let (connection, channel) = place.channel().await;
    let kind = ExchangeKind::Custom("nonsense".to_owned());
    let declared = channel.exchange_declare("x".into(), kind, Default::default(), FieldTable::default());
    let error = in_time(declared).await.expect_err("there is no such type");
    assert!(error.is_amqp_hard_error());
    let expected = (
        AMQPErrorKind::Hard(AMQPHardError::COMMANDINVALID),
        "COMMAND_INVALID - unknown exchange type 'nonsense'".into(),
    );
    assert_eq!(refusal(&error), expected);
    eventually_true("the connection is closed", async || {
        let refused = connection.create_channel().await;
        let error = refused.as_ref().map_err(amqp::Error::kind);
        matches!(error, Err(ErrorKind::InvalidConnectionState(ConnectionState::Error | ConnectionState::Closed)))
    })
    .await;
}

pub async fn a_closed_connection_gives_back_what_it_held(place: &Place) {
    let (_other_connection, other) = place.channel().await;
    let (connection, channel) = filled(place, "q", &["1"]).await;
    let mut consumer = consume(&channel, "q", "").await;
    let _held = next(&mut consumer).await;
    in_time(connection.close(200, "done".into())).await.expect("closed");
    assert!(connection.close(200, "again".into()).await.is_err());
    counts_become(&other, "q", (1, 0)).await;
    assert_eq!(get(&other, "q").await, Some(said("1", true)));
}
