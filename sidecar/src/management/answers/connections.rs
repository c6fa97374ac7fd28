//! Connections, channels and consumers.

use serde_json::Value;

use super::super::broker::Broker;
use super::super::documents::refusal::Refusal;
use super::{Answer, Request, Verb};

/// Why a connection is closed when the caller does not say: RabbitMQ's words.
const REASON: &str = "Closed via management plugin";

pub(super) async fn list(broker: &Broker, request: Request<'_>, vhost: Option<&str>) -> Result<Answer, Refusal> {
    broker.vhosts(vhost)?;
    let running = broker.running(vhost).await;
    request.list(running.iter().map(|(connection, described)| broker.seen(connection, described).document()).collect())
}

pub(super) async fn one(broker: &Broker, request: Request<'_>, verb: Verb, name: &str) -> Result<Answer, Refusal> {
    let (connection, described) = broker.connection(name).await?;
    match verb {
        Verb::Get => request.one(broker.seen(&connection, &described).document()),
        Verb::Delete => {
            let reason = request.headers.get("x-reason").map(|value| String::from_utf8_lossy(value.as_bytes()));
            connection.close(reason.as_deref().unwrap_or(REASON)).await;
            Ok(Answer::Done)
        }
        Verb::Put | Verb::Post => Err(Refusal::method_not_allowed()),
    }
}

pub(super) async fn channels_of(broker: &Broker, request: Request<'_>, name: &str) -> Result<Answer, Refusal> {
    let (connection, described) = broker.connection(name).await?;
    request.list(broker.seen(&connection, &described).channels().collect())
}

pub(super) async fn channels(broker: &Broker, request: Request<'_>, vhost: Option<&str>) -> Result<Answer, Refusal> {
    broker.vhosts(vhost)?;
    let running = broker.running(vhost).await;
    let channels = running
        .iter()
        .flat_map(|(connection, described)| broker.seen(connection, described).channels().collect::<Vec<Value>>());
    request.list(channels.collect())
}

pub(super) async fn channel(broker: &Broker, request: Request<'_>, name: &str) -> Result<Answer, Refusal> {
    // `CONNECTION (NUMBER)`
    let (of, _) = name.rsplit_once(" (").ok_or_else(Refusal::object_not_found)?;
    let (connection, described) = broker.connection(of).await?;
    let seen = broker.seen(&connection, &described);
    let found = described.channels.iter().find(|channel| seen.channel_name(channel) == name);
    let channel = found.ok_or_else(Refusal::object_not_found)?;
    let mut document = seen.channel(channel);
    let of_channel = |consumer: &Value| consumer["channel_details"]["name"] == name;
    let consumers = broker.consumers(Some(&described.vhost), None).await;
    document["consumer_details"] = consumers.into_iter().filter(of_channel).collect();
    request.one(document)
}

pub(super) async fn consumers(broker: &Broker, request: Request<'_>, vhost: Option<&str>) -> Result<Answer, Refusal> {
    broker.vhosts(vhost)?;
    request.list(broker.consumers(vhost, None).await)
}
