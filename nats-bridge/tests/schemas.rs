//! Schemas, from the registry to a publisher, a consumer and dead letters, on a real server.

#![allow(clippy::unwrap_used)]

mod orders;

use std::time::Duration;

use nats_bridge::encryption::{Keyring, Keys};
use nats_bridge::schema::{Compatibility, Draft, Format, SCHEMA, Upcasters};
use nats_bridge::{Bridge, ConsumeConfig, Consumer, Delivery, ErrorKind, Landed, Message, PublishConfig, RetryPolicy};
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;

use orders::bridge;

const V1: &str = r#"{"type":"object","required":["id"],"properties":{"id":{"type":"integer","maximum":100}},"additionalProperties":false}"#;
const V2: &str = r#"{"type":"object","required":["id"],"properties":{"id":{"type":"integer","maximum":200},"note":{"type":"string"}},"additionalProperties":false}"#;
const NARROW: &str = r#"{"type":"object","required":["id"],"properties":{"id":{"type":"integer","maximum":50}},"additionalProperties":false}"#;

async fn publisher(bridge: &Bridge) -> nats_bridge::publish::Publisher {
    bridge.publisher(PublishConfig { schemas: Some("SCHEMAS".into()), ..PublishConfig::default() }).await.unwrap()
}

fn config() -> ConsumeConfig {
    let retry =
        RetryPolicy { attempts: 3, first_pause: Duration::from_millis(10), jitter: false, ..RetryPolicy::default() };
    ConsumeConfig {
        retry,
        heartbeat: Duration::from_millis(500),
        schemas: Some("SCHEMAS".into()),
        ..ConsumeConfig::new("ORDERS", "billing")
    }
}

async fn next(consumer: &mut Consumer) -> Delivery {
    tokio::time::timeout(Duration::from_secs(15), consumer.next()).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn a_version_is_registered_once_and_an_incompatible_one_not_at_all() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let schemas = bridge.schemas("SCHEMAS").await.unwrap();
    let register = async |text: &str| schemas.register("order", &Draft::json(text)).await;
    let one = register(V1).await.unwrap();
    assert_eq!((one.version, one.known), (1, false));
    let again = register(&V1.replace(':', " : ")).await.unwrap();
    assert_eq!((again.version, again.known), (1, true));
    assert_eq!(register(V2).await.unwrap().version, 2);
    let error = register(NARROW).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    for part in ["compatibility=BACKWARD", "reader=new", "writer=2", "path=/id", "rule=MAXIMUM_DECREASED"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    let found = schemas.differences("order", &Draft::json(NARROW)).await.unwrap();
    assert!(found.iter().any(|difference| difference.path == "/note"), "{found:?}");
    assert!(schemas.differences("order", &Draft::json(V2)).await.unwrap().is_empty());
    schemas.set_compatibility("order", Compatibility::None).await.unwrap();
    assert_eq!(register(NARROW).await.unwrap().version, 3);

    let newest = schemas.get("order", None).await.unwrap();
    assert_eq!((newest.version, newest.schema.as_str(), newest.compatibility), (3, NARROW, Compatibility::None));
    assert_eq!(schemas.get("order", Some(1)).await.unwrap().schema, V1);
    for (name, version) in [("order", Some(4)), ("nothing", None)] {
        assert_eq!(schemas.get(name, version).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
    schemas.register("customer", &Draft::json("{}")).await.unwrap();
    assert_eq!(schemas.names().await.unwrap(), ["customer", "order"]);
    for (draft, kind) in [
        (Draft::json("{\"type\":\"colour\"}"), ErrorKind::Config),
        (Draft { format: Format::Avro, ..Draft::json("{}") }, ErrorKind::Config),
        (Draft { format: Format::Protobuf, ..Draft::json("{}") }, ErrorKind::Config),
    ] {
        assert_eq!(schemas.register("other", &draft).await.unwrap_err().kind(), kind, "{draft:?}");
    }
    assert_eq!(schemas.register("no name", &Draft::json("{}")).await.unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test]
async fn avro_is_registered_compared_and_enforced_both_ways() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let schemas = bridge.schemas("SCHEMAS").await.unwrap();
    let record = |fields: &str| Draft {
        format: Format::Avro,
        ..Draft::json(format!(r#"{{"type":"record","name":"Order","fields":[{{"name":"id","type":"long"}}{fields}]}}"#))
    };
    assert_eq!(schemas.register("order", &record("")).await.unwrap().version, 1);
    let error = schemas.register("order", &record(r#",{"name":"note","type":"string"}"#)).await.unwrap_err();
    for part in ["reader=new", "writer=1", "path=/note", "rule=READER_FIELD_MISSING_DEFAULT_VALUE"] {
        assert!(error.kind() == ErrorKind::Conflict && error.to_string().contains(part), "{error}");
    }
    let with_default = record(r#",{"name":"note","type":"string","default":""}"#);
    assert_eq!(schemas.register("order", &with_default).await.unwrap().version, 2);
    let json = schemas.register("order", &Draft::json("{}")).await.unwrap_err();
    assert!(json.kind() == ErrorKind::Conflict && json.to_string().contains("avro"), "{json}");

    let publisher = publisher(&bridge).await;
    let publish = |payload: &'static [u8]| publisher.publish(Message::new("orders.new", payload).schema("order"));
    // 17 and "ok"; then without the text, and as JSON.
    publish(&[34, 4, b'o', b'k']).await.unwrap();
    for (payload, path) in [(&[34][..], "path=/note"), (br#"{"id": 17, "note": "ok"}"#, "path=")] {
        let error = publish(payload).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Schema && error.to_string().contains(path), "{error}");
    }
    let mut consumer = bridge.consume(config()).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.payload(), &[34, 4, b'o', b'k'][..]);
    delivery.ack_confirmed().await.unwrap();
    // Past the publisher that checks.
    bridge.publish(Message::new("orders.new", &[34][..]).header(SCHEMA, "order/2")).await.unwrap();
    let letters = async || {
        let stream = bridge.jetstream().get_stream("ORDERS_DLQ").await;
        stream.is_ok_and(|stream| stream.cached_info().state.messages == 1)
    };
    tokio::select! {
        delivery = consumer.next() => panic!("it was handed out: {delivery:?}"),
        () = eventually_true("it is a dead letter", letters) => {}
    }
}

#[tokio::test]
async fn protobuf_is_registered_compared_and_enforced_both_ways() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let schemas = bridge.schemas("SCHEMAS").await.unwrap();
    let order = |fields: &str| Draft {
        format: Format::Protobuf,
        ..Draft::json(format!("syntax = \"proto3\"; message Order {{ int64 id = 1; {fields} }}"))
    };
    assert_eq!(schemas.register("order", &order("int32 cents = 2;")).await.unwrap().version, 1);
    for (fields, path, rule) in [
        ("string cents = 2;", "path=/Order/cents", "rule=FIELD_SAME_TYPE"),
        ("", "path=/Order/cents", "rule=FIELD_NO_DELETE_UNLESS_NUMBER_RESERVED"),
    ] {
        let error = schemas.register("order", &order(fields)).await.unwrap_err();
        for part in ["compatibility=BACKWARD", "reader=new", "writer=1", path, rule] {
            assert!(error.kind() == ErrorKind::Conflict && error.to_string().contains(part), "{error}");
        }
    }
    let both = Draft { compatibility: Some(Compatibility::Full), ..order("string cents = 2;") };
    assert_eq!(schemas.differences("order", &both).await.unwrap().len(), 1);
    let note = order("int32 cents = 2; string note = 3;");
    assert_eq!(schemas.register("order", &note).await.unwrap().version, 2);

    let publisher = publisher(&bridge).await;
    let publish = |payload: &'static [u8]| publisher.publish(Message::new("orders.new", payload).schema("order"));
    // 17, 5 and "ok"; then a text that is not one, a field that is not there, and JSON.
    let fits: &[u8] = &[8, 17, 16, 5, 26, 2, b'o', b'k'];
    publish(fits).await.unwrap();
    for (payload, part) in [
        (&[8, 17, 26, 1, 0xff][..], "path=/note"),
        (&[8, 17, 32, 1], "Order has no field 4"),
        (br#"{"id": 17}"#, "path=/"),
    ] {
        let error = publish(payload).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Schema && error.landed() == Landed::No, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    let mut consumer = bridge.consume(config()).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.payload(), fits);
    delivery.ack_confirmed().await.unwrap();
    // Past the publisher that checks: this version has no notes.
    bridge.publish(Message::new("orders.new", fits).header(SCHEMA, "order/1")).await.unwrap();
    let letters = bridge.dead_letters("ORDERS_DLQ").await.unwrap();
    let letter = async || letters.count().await.is_ok_and(|count| count == 1);
    tokio::select! {
        delivery = consumer.next() => panic!("it was handed out: {delivery:?}"),
        () = eventually_true("it is a dead letter", letter) => {}
    }
    let all = letters.peek(&Default::default(), 10).await.unwrap();
    assert_eq!((all[0].reason().to_string().as_str(), &all[0].payload[..]), ("schema", fits));
    assert!(all[0].detail().contains("Order has no field 3"), "{}", all[0].detail());
}

#[tokio::test]
async fn of_many_that_register_at_once_none_overwrites_another() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let schemas = bridge.schemas("SCHEMAS").await.unwrap();
    let tasks: Vec<_> = (0..5)
        .map(|n| {
            let schemas = schemas.clone();
            let draft = Draft {
                compatibility: Some(Compatibility::None),
                ..Draft::json(format!(r#"{{"type":"integer","maximum":{n}}}"#))
            };
            tokio::spawn(async move { schemas.register("order", &draft).await.unwrap().version })
        })
        .collect();
    let mut versions = Vec::new();
    for task in tasks {
        versions.push(task.await.unwrap());
    }
    versions.sort_unstable();
    assert_eq!(versions, [1, 2, 3, 4, 5]);
    assert_eq!(schemas.get("order", None).await.unwrap().version, 5);
}

#[tokio::test]
async fn what_does_not_fit_is_not_sent_and_the_error_shows_path_and_value() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let missing = PublishConfig { schemas: Some("SCHEMAS".into()), ..PublishConfig::default() };
    assert_eq!(bridge.publisher(missing).await.unwrap_err().kind(), ErrorKind::NotFound);
    let schemas = bridge.schemas("SCHEMAS").await.unwrap();
    let draft = Draft { subjects: Some(vec!["orders.*".into()]), ..Draft::json(V1) };
    schemas.register("order", &draft).await.unwrap();
    let publisher = publisher(&bridge).await;
    let publish = |subject: &str, payload: &str, schema: &str| {
        publisher.publish(Message::new(subject.to_owned(), payload.to_owned()).id("o-1").schema(schema))
    };
    for (subject, payload, schema, kind, parts) in [
        (
            "orders.new",
            r#"{"id":101}"#,
            "order",
            ErrorKind::Schema,
            &["path=/id", "value=101", "schema=order/1", "msg_id=o-1"][..],
        ),
        ("orders.new", r#"{"id":"1"}"#, "order", ErrorKind::Schema, &["path=/id", "value=\"1\""]),
        ("orders.new", "no json", "order", ErrorKind::Schema, &["not JSON"]),
        ("orders.a.b", r#"{"id":1}"#, "order", ErrorKind::Schema, &["orders.*"]),
        ("orders.new", r#"{"id":1}"#, "nothing", ErrorKind::NotFound, &["schema=nothing"]),
        ("orders.new", r#"{"id":1}"#, "order/9", ErrorKind::NotFound, &["version=9"]),
        ("orders.new", r#"{"id":1}"#, "order/x", ErrorKind::Config, &["order/x"]),
    ] {
        let error = publish(subject, payload, schema).await.unwrap_err();
        assert_eq!((error.kind(), error.landed()), (kind, Landed::No), "{error}");
        parts.iter().for_each(|part| assert!(error.to_string().contains(part), "{part}: {error}"));
    }
    let none = publisher.publish(Message::new("orders.new", r#"{"id":1}"#)).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::Schema);
    let own = publisher.publish(Message::new("orders.new", r#"{"id":1}"#).header(SCHEMA, "order/1")).await.unwrap_err();
    assert_eq!(own.kind(), ErrorKind::InvalidMessage);
    let unchecked = bridge.publish(Message::new("orders.new", r#"{"id":1}"#).schema("order")).await.unwrap_err();
    assert_eq!(unchecked.kind(), ErrorKind::InvalidMessage);
    let mut stream = bridge.jetstream().get_stream("ORDERS").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 0);
    assert_eq!(publish("orders.new", r#"{"id":100}"#, "order/1").await.unwrap().sequence, 1);
}

#[tokio::test]
async fn what_does_not_fit_is_not_handed_out_and_becomes_a_dead_letter_with_its_reason() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let schemas = bridge.schemas("SCHEMAS").await.unwrap();
    schemas.register("order", &Draft::json(V1)).await.unwrap();
    let publisher = publisher(&bridge).await;
    publisher.publish(Message::new("orders.new", r#"{"id":1}"#).schema("order")).await.unwrap();
    // Somebody who does not check.
    for (payload, schema) in [
        (r#"{"id":1000}"#, Some("order/1")),
        (r#"{"id":2}"#, None),
        (r#"{"id":2}"#, Some("order/7")),
        (r#"{"id":2}"#, Some("order")),
    ] {
        let mut message = Message::new("orders.new", payload);
        if let Some(schema) = schema {
            message = message.header(SCHEMA, schema);
        }
        bridge.publish(message).await.unwrap();
    }
    publisher.publish(Message::new("orders.new", r#"{"id":9}"#).schema("order")).await.unwrap();

    let mut consumer = bridge.consume(config()).await.unwrap();
    for expected in [r#"{"id":1}"#, r#"{"id":9}"#] {
        let delivery = next(&mut consumer).await;
        assert_eq!((&delivery.payload()[..], delivery.header(SCHEMA)), (expected.as_bytes(), Some("order/1")));
        delivery.ack().await.unwrap();
    }
    let letters = bridge.dead_letters("ORDERS_DLQ").await.unwrap();
    eventually_true("each is a dead letter", || async { letters.count().await.unwrap() == 4 }).await;
    let all = letters.peek(&Default::default(), 10).await.unwrap();
    let detail = |payload: &str| {
        let letter = all.iter().filter(|letter| letter.payload == payload.as_bytes());
        letter.map(|letter| format!("{} {}", letter.reason(), letter.detail())).collect::<Vec<_>>()
    };
    let too_large = detail(r#"{"id":1000}"#);
    assert!(too_large[0].starts_with("schema ") && too_large[0].contains("path=/id value=1000"), "{too_large:?}");
    let others = detail(r#"{"id":2}"#).join("\n");
    for part in ["it names no schema", "not found: schema=order version=7", "it names no version"] {
        assert!(others.contains(part), "{others}");
    }
    // Once the registry knows the version, the letter opens.
    schemas.set_compatibility("order", Compatibility::None).await.unwrap();
    let seventh = r#"{"type":"object","$comment":"7"}"#;
    for n in 2..=7 {
        schemas.register("order", &Draft::json(seventh.replace('7', &n.to_string()))).await.unwrap();
    }
    letters.redrive(&Default::default(), |_| true).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!((&delivery.payload()[..], delivery.header(SCHEMA)), (&br#"{"id":2}"#[..], Some("order/7")));
    delivery.ack().await.unwrap();
    while letters.count().await.unwrap() < 3 {
        // A message is looked at when somebody wants it.
        assert!(tokio::time::timeout(Duration::from_millis(300), consumer.next()).await.is_err());
    }
}

#[tokio::test]
async fn older_versions_are_handed_out_as_the_newest_or_become_dead_letters_as_they_were() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let schemas = bridge.schemas("SCHEMAS").await.unwrap();
    for field in ["euros", "cents", "amount", "value"] {
        let text = format!(
            r#"{{"type":"object","required":["{field}"],"properties":{{"{field}":{{"type":"integer","maximum":900}}}},"additionalProperties":false}}"#
        );
        let draft = Draft { compatibility: Some(Compatibility::None), ..Draft::json(text) };
        schemas.register("order", &draft).await.unwrap();
    }
    let publisher = publisher(&bridge).await;
    for (payload, schema) in [
        (r#"{"euros":1}"#, "order/1"),
        (r#"{"cents":2}"#, "order/2"),
        (r#"{"cents":13}"#, "order/2"),
        (r#"{"cents":900}"#, "order/2"),
        (r#"{"amount":3}"#, "order/3"),
        (r#"{"value":4}"#, "order/4"),
    ] {
        publisher.publish(Message::new("orders.new", payload).schema(schema)).await.unwrap();
    }
    let renamed = |from: &'static str, to: &'static str, plus: i64| {
        move |payload: &[u8]| {
            let order: serde_json::Value = serde_json::from_slice(payload).map_err(|e| e.to_string())?;
            match order[from].as_i64() {
                Some(13) => Err("13 is not liked".to_owned()),
                Some(amount) => Ok(format!(r#"{{"{to}":{}}}"#, amount + plus).into()),
                None => Err(format!("there is no {from}")),
            }
        }
    };
    let gap = Upcasters::new().step("order", 1, renamed("a", "b", 0)).step("order", 3, renamed("a", "b", 0));
    for wrong in [
        ConsumeConfig { upcast: Some(gap), ..config() },
        ConsumeConfig { upcast: Some(Upcasters::new()), schemas: None, ..config() },
    ] {
        assert_eq!(bridge.consume(wrong).await.unwrap_err().kind(), ErrorKind::Config);
    }
    let steps = Upcasters::new().step("order", 2, renamed("cents", "amount", 1)).step(
        "order",
        3,
        renamed("amount", "value", 0),
    );
    let mut consumer = bridge.consume(ConsumeConfig { upcast: Some(steps), ..config() }).await.unwrap();
    for (payload, stated) in
        [(r#"{"value":3}"#, "order/2"), (r#"{"value":3}"#, "order/3"), (r#"{"value":4}"#, "order/4")]
    {
        let delivery = next(&mut consumer).await;
        assert_eq!((&delivery.payload()[..], delivery.schema()), (payload.as_bytes(), Some("order/4")));
        assert_eq!(delivery.header(SCHEMA), Some(stated));
        delivery.ack().await.unwrap();
    }
    let letters = bridge.dead_letters("ORDERS_DLQ").await.unwrap();
    eventually_true("the others are dead letters", || async { letters.count().await.unwrap() == 3 }).await;
    let all = letters.peek(&Default::default(), 10).await.unwrap();
    for (payload, parts) in [
        (r#"{"euros":1}"#, &["schema=order/1", "upcast_to=2", "no step"][..]),
        (r#"{"cents":13}"#, &["schema=order/2", "upcast_to=3", "13 is not liked"]),
        (r#"{"cents":900}"#, &["schema=order/4", "path=/value", "value=901", "upcast_from=2"]),
    ] {
        let letter = all.iter().find(|letter| letter.payload == payload.as_bytes()).unwrap();
        assert_eq!(letter.reason().to_string(), "schema");
        parts.iter().for_each(|part| assert!(letter.detail().contains(part), "{part}: {}", letter.detail()));
    }
}

#[tokio::test]
async fn older_messages_without_a_schema_are_handed_out_where_that_is_allowed() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    bridge.schemas("SCHEMAS").await.unwrap().register("order", &Draft::json(V1)).await.unwrap();
    bridge.publish(Message::new("orders.new", "older")).await.unwrap();
    let mut consumer = bridge.consume(ConsumeConfig { accept_without_schema: true, ..config() }).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(&delivery.payload()[..], b"older");
    delivery.ack().await.unwrap();
    let alone = ConsumeConfig { schemas: None, accept_without_schema: true, ..config() };
    assert_eq!(bridge.consume(alone).await.unwrap_err().kind(), ErrorKind::Config);
    let missing = ConsumeConfig { schemas: Some("NONE".into()), ..config() };
    assert_eq!(bridge.consume(missing).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn an_encrypted_payload_is_checked_and_no_value_of_it_leaks_into_a_dead_letter() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let schemas = bridge.schemas("SCHEMAS").await.unwrap();
    schemas.register("order", &Draft::json(V2)).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("k"), "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=").unwrap();
    let keys = Keys::from(Keyring::from_directory(directory.path()).unwrap());
    let encrypt = PublishConfig { encrypt: Some(keys.clone()), ..PublishConfig::default() };
    let both = PublishConfig { schemas: Some("SCHEMAS".into()), ..encrypt.clone() };
    let checked = bridge.publisher(both).await.unwrap();
    checked.publish(Message::new("orders.new", r#"{"id":1}"#).schema("order")).await.unwrap();
    let error = checked.publish(Message::new("orders.new", r#"{"id":"DE02"}"#).schema("order")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    let unchecked = bridge.publisher(encrypt).await.unwrap();
    unchecked.publish(Message::new("orders.new", r#"{"id":"DE02"}"#).header(SCHEMA, "order/1")).await.unwrap();

    let mut consumer = bridge.consume(ConsumeConfig { decrypt: Some(keys.clone()), ..config() }).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!((&delivery.payload()[..], delivery.key_id()), (&br#"{"id":1}"#[..], Some("k")));
    delivery.ack().await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(300), consumer.next()).await;
    assert!(waiting.is_err());
    let letters = bridge.dead_letters("ORDERS_DLQ").await.unwrap();
    eventually_true("it is a dead letter", || async { letters.count().await.unwrap() == 1 }).await;
    let letter = letters.show(1).await.unwrap();
    assert_eq!(letter.reason(), "schema");
    assert!(letter.detail().contains("path=/id") && !letter.detail().contains("DE02"), "{}", letter.detail());
    assert!(!letter.to_json().contains("DE02"));
    assert_eq!(&letter.decrypt(&keys).await.unwrap()[..], br#"{"id":"DE02"}"#);
}
