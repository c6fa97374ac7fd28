//! Spans of what passes through the sidecar, for OpenTelemetry: a publish until its confirm, a delivery until it is settled, each with
//! the broker that had it.
//!
//! The application decides what is recorded: only a message with a `traceparent` header that says "sampled" has spans, and they are
//! children of the application's. Its headers are passed on as they came.
//!
//! Sources: W3C Recommendation "Trace Context"; OpenTelemetry's semantic conventions for messaging spans; OTLP/HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use amq_protocol::types::AMQPValue;
use amqp_compat::backend::Message;
use async_trait::async_trait;
use bytes::Bytes;
use nats_bridge::{TRACEPARENT, TRACESTATE, TraceContext};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, TraceFlags, TraceState, Tracer,
    TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanExporter,
    SpanProcessor,
};
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use url::Url;

use crate::fence::QueueName;
use crate::ownership::Side;

/// Ended spans that may wait to be sent; beyond it they are dropped and counted.
const WAITING_MOST: usize = 8_192;
/// How many are sent at once.
const BATCH: usize = 512;
/// How long they wait to be sent, when there are few.
const DELAY: Duration = Duration::from_secs(1);
/// How long the collector may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes spans, and sends them to a collector.
#[derive(Debug)]
pub struct Traces {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
    closed: OnceCell<()>,
}

/// A span that has begun. Dropped, it ends. Without another outcome a publish was not confirmed, and a delivery, whose channel, connection
/// or broker is gone, is back in its queue.
#[derive(Debug)]
pub struct Span {
    inner: opentelemetry_sdk::trace::Span,
    outcome: &'static str,
}

impl Traces {
    /// Spans go to `endpoint` + `/v1/traces`, in OTLP over HTTP; on the runtime that this is called on. Headers for the
    /// collector are read from `OTEL_EXPORTER_OTLP_HEADERS`, the name of the service from `OTEL_SERVICE_NAME`.
    ///
    /// # Errors
    /// A text for people: `endpoint` is no URL of HTTP.
    pub fn to(endpoint: &str) -> Result<Traces, String> {
        let url = Url::parse(endpoint).map_err(|error| format!("'{endpoint}' is not a URL: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            let why = "http://HOST:PORT of a collector that takes OTLP over HTTP is expected";
            return Err(format!("'{endpoint}': {why}"));
        }
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(OnRuntime { client: client()?, runtime: Handle::current() })
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(PATIENCE)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Traces::with(exporter))
    }

    /// Spans go to this exporter, in batches.
    pub fn with(exporter: impl SpanExporter + 'static) -> Traces {
        let waiting = Arc::new(AtomicUsize::new(0));
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(WAITING_MOST)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY)
            .build();
        let batches = BatchSpanProcessor::new(Counted { exporter, waiting: Arc::clone(&waiting) }, config);
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource())
            .with_span_processor(Bounded { batches, waiting })
            .build();
        Traces { tracer: provider.tracer("nats-bridge"), provider, closed: OnceCell::new() }
    }

    /// The span of a publish that a side owns, which begins now; `None` when its trace is not recorded.
    pub fn publish(&self, vhost: &str, message: &Message, owner: Side) -> Option<Box<Span>> {
        let parent = parent(message)?;
        let (exchange, key) = (message.exchange.as_str(), message.routing_key.as_str());
        let place = destination([exchange, key, ""]);
        let mut attributes = attributes(vhost, message, owner, place.clone());
        attributes.push(KeyValue::new("messaging.operation.name", "publish"));
        attributes.push(KeyValue::new("messaging.operation.type", "send"));
        let builder = SpanBuilder::from_name(format!("publish {place}"))
            .with_kind(SpanKind::Producer)
            .with_attributes(attributes);
        Some(self.begin(builder, &parent, "not confirmed"))
    }

    /// The span of a delivery of a side, which begins now; `None` when its trace is not recorded.
    pub fn delivery(&self, queue: &QueueName, message: &Message, side: Side, redelivered: bool) -> Option<Box<Span>> {
        let parent = parent(message)?;
        let place = destination([message.exchange.as_str(), message.routing_key.as_str(), &queue.queue]);
        let mut attributes = attributes(&queue.vhost, message, side, place);
        attributes.push(KeyValue::new("messaging.operation.name", "deliver"));
        attributes.push(KeyValue::new("messaging.operation.type", "receive"));
        attributes.push(KeyValue::new("nats_bridge.redelivered", redelivered));
        let builder = SpanBuilder::from_name(format!("deliver {}", queue.queue))
            .with_kind(SpanKind::Consumer)
            .with_attributes(attributes);
        Some(self.begin(builder, &parent, "returned to the queue"))
    }

    /// Sends what has ended, for as long as the collector may take to answer; nothing is sent afterwards. Who comes second waits for the
    /// first.
    pub async fn close(&self) {
        let close = async || {
            let provider = self.provider.clone();
            // It waits for the thread that sends, and that one for this runtime.
            let closed = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(PATIENCE)).await;
            if let Ok(Err(error)) = closed {
                tracing::debug!(%error, "not all spans were sent");
            }
        };
        self.closed.get_or_init(close).await;
    }

    fn begin(&self, builder: SpanBuilder, parent: &Context, outcome: &'static str) -> Box<Span> {
        Box::new(Span { inner: self.tracer.build_with_context(builder, parent), outcome })
    }
}

impl Span {
    /// Something that happened on the way.
    pub fn event(&mut self, name: &'static str) {
        self.inner.add_event(name, Vec::new());
    }

    /// How it ended; the span is over when it is dropped.
    pub fn outcome(&mut self, outcome: &'static str) {
        self.outcome = outcome;
    }

    /// It ended as it should not; the span is over when it is dropped.
    pub fn failed(&mut self, outcome: &'static str) {
        self.outcome = outcome;
        self.inner.set_status(Status::error(outcome));
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.inner.set_attribute(KeyValue::new("nats_bridge.outcome", self.outcome));
        self.inner.end();
    }
}

/// The application's span, when it is recorded.
fn parent(message: &Message) -> Option<Context> {
    let headers = message.properties.headers().as_ref()?.inner();
    let text = |name: &str| match headers.get(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        AMQPValue::ByteArray(bytes) => std::str::from_utf8(bytes.as_slice()).ok(),
        _ => None,
    };
    let context: TraceContext = text(TRACEPARENT)?.parse().ok()?;
    if !context.sampled {
        return None;
    }
    let state = text(TRACESTATE).and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
    let (trace, span) = (context.trace_id.into(), context.span_id.into());
    Some(Context::new().with_remote_span_context(SpanContext::new(trace, span, TraceFlags::SAMPLED, true, state)))
}

fn attributes(vhost: &str, message: &Message, side: Side, place: String) -> Vec<KeyValue> {
    let system = match side {
        Side::Rabbit => "rabbitmq",
        Side::Nats => "nats",
    };
    let mut attributes = vec![
        KeyValue::new("messaging.system", system),
        KeyValue::new("messaging.destination.name", place),
        KeyValue::new("messaging.rabbitmq.destination.routing_key", message.routing_key.as_str().to_owned()),
        KeyValue::new("messaging.message.body.size", i64::try_from(message.body.len()).unwrap_or(i64::MAX)),
        KeyValue::new("nats_bridge.vhost", vhost.to_owned()),
    ];
    if let Some(id) = message.properties.message_id() {
        attributes.push(KeyValue::new("messaging.message.id", id.as_str().to_owned()));
    }
    attributes
}

/// `exchange:routing_key:queue`, without what is empty, as the conventions have it for RabbitMQ.
fn destination(parts: [&str; 3]) -> String {
    let mut place = String::new();
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        if !place.is_empty() {
            place.push(':');
        }
        place.push_str(part);
    }
    place
}

fn resource() -> Resource {
    let named = Resource::builder().build();
    let name = opentelemetry::Key::from_static_str("service.name");
    match named.get(&name).is_some_and(|name| !name.as_str().starts_with("unknown_service")) {
        true => named,
        false => Resource::builder().with_service_name("nats-bridge-sidecar").build(),
    }
}

fn client() -> Result<reqwest::Client, String> {
    let tls = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into());
    let tls = tls.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let tls = tls.with_root_certificates(roots).with_no_client_auth();
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls).timeout(PATIENCE).build();
    client.map_err(|error| error.to_string())
}

/// Sends on the runtime what the thread of the batches gives it.
#[derive(Debug)]
struct OnRuntime {
    client: reqwest::Client,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
}

/// Drops and counts what there is no room for.
#[derive(Debug)]
struct Bounded {
    batches: BatchSpanProcessor,
    waiting: Arc<AtomicUsize>,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut opentelemetry_sdk::trace::Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MOST {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            metrics::counter!("natsbridge_spans_dropped_total", "reason" => "no_room").increment(1);
            return;
        }
        self.batches.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Counts what is sent, and what the collector did not take.
#[derive(Debug)]
struct Counted<E> {
    exporter: E,
    waiting: Arc<AtomicUsize>,
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let sent = self.exporter.export(batch).await;
        let waiting = self.waiting.fetch_sub(count, Ordering::Relaxed) - count;
        metrics::gauge!("natsbridge_spans_waiting").set(waiting as f64);
        match &sent {
            Ok(()) => metrics::counter!("natsbridge_spans_exported_total").increment(count as u64),
            Err(error) => {
                tracing::warn!(%error, spans = count, "the collector did not take spans; messages are not affected");
                metrics::counter!("natsbridge_spans_dropped_total", "reason" => "not_taken").increment(count as u64);
            }
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
