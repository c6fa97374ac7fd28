//! Health checks, and the aliveness test.

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
    let ports = [broker.identity.amqp.port, broker.identity.http.port];
    match words[..] {
        ["alarms" | "local-alarms"] if broker.backend.is_connected() => ok(json!({ "status": "ok" })),
        ["alarms" | "local-alarms"] => {
            // What AMQP clients hear as `connection.blocked`.
            let alarm = json!({ "node": broker.identity.node, "resource": "the connection to NATS" });
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
        ["protocol-listener", "amqp" | "amqp091" | "amqp0-9-1" | "amqp0.9.1"] => {
            ok(json!({ "status": "ok", "protocol": "amqp" }))
        }
        ["protocol-listener", "http"] => ok(json!({ "status": "ok", "protocol": "http" })),
        ["protocol-listener", other] => {
            failed(json!({ "missing": other, "protocols": ["amqp", "http"] }), "No active listener")
        }
        _ => Err(Refusal::object_not_found()),
    }
}
