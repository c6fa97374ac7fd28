//! One trace over both brokers: what the application says is recorded has spans at a collector, wherever it went.

mod bed;

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use bed::{Ends, Likeness, declare};
use futures::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicRejectOptions, ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Consumer};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use sidecar::control_api::Target;
use sidecar::traces::Traces;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A collector: what was exported to it, as OTLP over HTTP has it.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

impl Collector {
    async fn start() -> (Collector, String) {
        let collector = Collector::default();
        let take = async |State(Collector(spans)): State<Collector>, body: Bytes| {
            let request = ExportTraceServiceRequest::decode(body).expect("OTLP");
            let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
            spans.lock().expect("not poisoned").extend(scopes.flat_map(|scope| scope.spans));
        };
        let app = Router::new().route("/v1/traces", post(take)).with_state(collector.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move { axum::serve(listener, app).await });
        (collector, url)
    }

    /// Name, broker, outcome and events of each span, in the order of their names; all are children of the application's.
    fn seen(&self) -> Vec<(String, String, String, Vec<String>)> {
        let spans = self.0.lock().expect("not poisoned");
        let mut seen: Vec<_> = spans
            .iter()
            .map(|span| {
                assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.into(), PARENT.into()));
                assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
                let kind = if span.name.starts_with("publish") { SpanKind::Producer } else { SpanKind::Consumer };
                assert_eq!(span.kind, kind as i32, "{}", span.name);
                let events = span.events.iter().map(|event| event.name.clone()).collect();
                (span.name.clone(), text(span, "messaging.system"), text(span, "nats_bridge.outcome"), events)
            })
            .collect();
        seen.sort();
        seen
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key).and_then(|a| a.value.clone());
    match found.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{}: {key} is {other:?}", span.name),
    }
}

fn traced(flags: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    let parent = format!("00-{TRACE}-{PARENT}-{flags}");
    headers.insert("traceparent".into(), AMQPValue::LongString(LongString::from(parent)));
    BasicProperties::default().with_headers(headers).with_delivery_mode(2)
}

async fn publish(channel: &Channel, properties: BasicProperties) {
    let options = BasicPublishOptions::default();
    let confirm =
        channel.basic_publish("orders".into(), "new".into(), options, b"tea", properties).await.expect("sent");
    assert!(confirm.await.expect("answered").is_ack());
}

async fn next(consumer: &mut Consumer) -> Delivery {
    tokio::time::timeout(bed::CAP, consumer.next()).await.expect("in time").expect("open").expect("open")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_message_has_spans_of_the_broker_that_had_it_and_is_delivered_as_it_was_published() {
    let nats = NatsServer::start();
    let ends = Ends::new(RabbitMq::shared(), &nats);
    let (collector, url) = Collector::start().await;
    let traces = Arc::new(Traces::to(&format!("{url}/")).expect("a URL"));
    let sidecar = ends.sidecar_like(Likeness { traces: Some(traces.clone()), ..Likeness::default() }).await;
    let connection = sidecar.connect().await;
    let channel = connection.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    declare(&channel, "orders", "orders.all").await;
    let consumes =
        channel.basic_consume("orders.all".into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer = consumes.await.expect("consuming");

    // RabbitMQ's.
    publish(&channel, traced("01")).await;
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.properties, traced("01"), "its headers are as they were");
    delivery.ack(BasicAckOptions::default()).await.expect("sent");
    // Neither of these is recorded.
    for properties in [traced("00"), BasicProperties::default()] {
        publish(&channel, properties).await;
        next(&mut consumer).await.ack(BasicAckOptions::default()).await.expect("sent");
    }
    // JetStream's, with a copy on RabbitMQ: given back once, then refused.
    sidecar.change(Target::Shadow).await.expect("shadow");
    sidecar.weight(100.0).await;
    publish(&channel, traced("01")).await;
    next(&mut consumer).await.reject(BasicRejectOptions { requeue: true }).await.expect("sent");
    let again = next(&mut consumer).await;
    assert!(again.redelivered);
    again.reject(BasicRejectOptions { requeue: false }).await.expect("sent");
    // One that goes with its connection.
    publish(&channel, traced("01")).await;
    next(&mut consumer).await;
    connection.close(200, "done".into()).await.expect("open");
    sidecar.stop().await;
    traces.close().await;

    let span = |name: &str, broker: &str, outcome: &str, events: &[&str]| {
        (name.to_owned(), broker.to_owned(), outcome.to_owned(), events.iter().map(|e| (*e).to_owned()).collect())
    };
    let (deliver, given) = ("deliver orders.all", ["given to the application"]);
    let mut seen = collector.seen();
    // In which of two orders owner and copy have it is chance.
    for (.., events) in &mut seen {
        events.sort();
        events.retain(|event| event != "stored by its owner");
    }
    let expected = vec![
        span(deliver, "nats", "rejected", &given),
        span(deliver, "nats", "requeued", &given),
        span(deliver, "nats", "returned to the queue", &given),
        span(deliver, "rabbitmq", "acknowledged", &given),
        span("publish orders:new", "nats", "confirmed", &["standby copy stored"]),
        span("publish orders:new", "nats", "confirmed", &["standby copy stored"]),
        span("publish orders:new", "rabbitmq", "confirmed", &[]),
    ];
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_messages_flow() {
    let nats = NatsServer::start();
    let ends = Ends::new(RabbitMq::shared(), &nats);
    // Nobody listens there: it was somebody's a moment ago.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("bound");
    let traces = Arc::new(Traces::to(&format!("http://{gone}")).expect("a URL"));
    let sidecar = ends.sidecar_like(Likeness { traces: Some(traces.clone()), ..Likeness::default() }).await;
    let channel = sidecar.connect().await.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    declare(&channel, "orders", "orders.all").await;
    let consumes =
        channel.basic_consume("orders.all".into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer = consumes.await.expect("consuming");
    for _ in 0..100 {
        publish(&channel, traced("01")).await;
        next(&mut consumer).await.ack(BasicAckOptions::default()).await.expect("sent");
    }
    sidecar.stop().await;
    tokio::time::timeout(bed::CAP, traces.close()).await.expect("it does not wait for the collector for ever");
}

#[tokio::test]
async fn an_address_that_is_none_is_refused_by_name() {
    for (wrong, why) in
        [("collector:4318", "http://HOST:PORT"), ("grpc://a:4317", "http://HOST:PORT"), ("", "not a URL")]
    {
        let refused = Traces::to(wrong).expect_err(wrong);
        assert!(refused.contains(why) && refused.contains(wrong), "{refused}");
    }
}
