//! Health checks, and the aliveness test.

use std::time::{SystemTime, UNIX_EPOCH};

use amqp_compat::backend::{Message, Outcome, QueueDeclare, Topology};
use bytes::Bytes;
use serde_json::{Value, json};

use super::super::broker::Broker;
use super::super::client::Client;
use super::super::documents::refusal::Refusal;
use super::{Answer, Request};

/// The queue of the aliveness test; it stays, as with RabbitMQ.
const ALIVENESS: &str = "aliveness-test";

/// Publishes a message and takes it out again.
pub(super) async fn aliveness(broker: &Broker, request: Request<'_>, vhost: &str) -> Result<Answer, Refusal> {
    broker.vhosts(Some(vhost))?;
    let declare = QueueDeclare {
        queue: ALIVENESS.into(),
        passive: false,
        durable: false,
        exclusive: false,
        auto_delete: false,
        arguments: Default::default(),
    };
    let message = Message {
        exchange: "".into(),
        routing_key: ALIVENESS.into(),
        properties: Default::default(),
        body: Bytes::from_static(b"test_message"),
    };
    let mut client = Client::open(&broker.backend, request.caller, vhost).await.map_err(Refusal::of_change)?;
    client.change(Topology::QueueDeclare(declare)).await.map_err(Refusal::of_change)?;
    client.publish(message).await.map_err(Refusal::of_message)?;
    let got = client.get(&ALIVENESS.into()).await.map_err(Refusal::of_message)?;
    let taken: Vec<_> = got.iter().map(|got| got.delivery.id).collect();
    client.close(&taken, Some(Outcome::Ack)).await.map_err(Refusal::of_message)?;
    match got {
        Some(_) => Ok(Answer::Document(json!({ "status": "ok" }))),
        // Another test at the same time has taken it.
        None => Err(Refusal::unavailable("the message that was published was not there")),
    }
}

pub(super) fn check(broker: &Broker, check: &[String]) -> Result<Answer, Refusal> {
    let ok = |document: Value| Ok(Answer::Document(document));
    let failed = |mut document: Value, reason: &str| {
        document["status"] = json!("failed");
        document["reason"] = json!(reason);
        Ok(Answer::Status(503, document))
    };
    let words: Vec<&str> = check.iter().map(String::as_str).collect();
    let ports: Vec<u16> = broker.identity.listeners().map(|(_, place)| place.port).collect();
    let protocols: Vec<&str> = broker.identity.listeners().map(|(protocol, _)| protocol).collect();
    match words[..] {
        ["alarms" | "local-alarms"] => {
            let Some(resource) = short_of(broker) else { return ok(json!({ "status": "ok" })) };
            let alarm = json!({ "node": broker.identity.node, "resource": resource });
            failed(json!({ "alarms": [alarm] }), "There are alarms in effect in the cluster")
        }
        // All are loaded before the first request.
        ["virtual-hosts"] => ok(json!({ "status": "ok" })),
        ["node-is-quorum-critical" | "node-is-mirror-sync-critical"] => {
            ok(json!({ "status": "ok", "reason": "single node cluster" }))
        }
        ["port-listener", port] => match port.parse::<u16>() {
            Ok(port) if ports.contains(&port) => ok(json!({ "status": "ok", "port": port })),
            Ok(port) => failed(json!({ "missing": port, "ports": ports }), "No active listener"),
            Err(_) => Err(Refusal::bad_request("Invalid port")),
        },
        ["protocol-listener", protocol] => {
            let name = protocol_name(protocol);
            match protocols.contains(&name) {
                true => ok(json!({ "status": "ok", "protocol": name })),
                false => failed(json!({ "missing": name, "protocols": protocols }), "No active listener"),
            }
        }
        ["certificate-expiration", within, unit] => {
            let within = seconds(within, unit)?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let limit = i64::try_from(now).unwrap_or(i64::MAX).saturating_add(within);
            let expires = broker.certificates.as_ref().and_then(|certificates| certificates.expires());
            match (expires, &broker.identity.amqps) {
                (Some(at), Some(place)) if at < limit => {
                    let expired = json!({
                        "node": broker.identity.node,
                        "protocol": "amqp/ssl",
                        "interface": place.ip,
                        "port": place.port,
                        "expires": at,
                    });
                    failed(json!({ "expired": [expired] }), "Certificates expiring")
                }
                _ => ok(json!({ "status": "ok" })),
            }
        }
        _ => Err(Refusal::object_not_found()),
    }
}

/// What RabbitMQ before 3.8 had instead of `health/checks`, and still has.
pub(super) fn node(broker: &Broker, name: Option<&str>) -> Result<Answer, Refusal> {
    let own = &broker.identity.node;
    if name.is_some_and(|name| name != own.as_str()) {
        return Err(Refusal::object_not_found());
    }
    let Some(resource) = short_of(broker) else { return Ok(Answer::Document(json!({ "status": "ok" }))) };
    let reason = format!("resource alarm(s) in effect:[{{resource_limit,{resource},{own}}}]");
    Ok(Answer::Status(503, json!({ "status": "failed", "reason": reason })))
}

/// What there is an alarm about: AMQP clients hear it as `connection.blocked`.
fn short_of(broker: &Broker) -> Option<&'static str> {
    match broker.backend.is_connected() {
        true => broker.backend.alarm().map(|resource| resource.name()),
        false => Some("the connection to NATS"),
    }
}

/// A protocol by the name that RabbitMQ lists it under.
fn protocol_name(given: &str) -> &str {
    match given {
        "amqp091" | "amqp0-9-1" | "amqp0.9.1" => "amqp",
        "amqps" => "amqp/ssl",
        other => other,
    }
}

/// A time in seconds; months have 30 days and years 365.
fn seconds(within: &str, unit: &str) -> Result<i64, Refusal> {
    let within: i64 = within.parse().map_err(|_| Refusal::bad_request("Invalid expiration value."))?;
    let days = match unit {
        "days" => 1,
        "weeks" => 7,
        "months" => 30,
        "years" => 365,
        _ => {
            let reason = "Time unit not recognised. Supported units: days, weeks, months, years.";
            return Err(Refusal::bad_request(reason));
        }
    };
    Ok(within.saturating_mul(days * 24 * 60 * 60))
}
