//! Queues.

use amqp_compat::backend::QueueDeclare;
use amqp_compat::backend::jetstream::{Applied, QueueCounts};
use amqp_compat::model::queue::{QueueDefinition, QueueKind};
use serde_json::{Value, json};

use super::fields::{Fields, short};
use super::refusal::Refusal;
use super::{policy, table};

/// The columns of a queue's document that cost a question to JetStream.
pub(in crate::management) const COUNTED: [&str; 4] =
    ["messages", "messages_ready", "messages_unacknowledged", "consumers"];

/// A queue's document, without its counts.
pub(in crate::management) fn document(vhost: &str, node: &str, queue: &QueueDefinition, applied: &Applied) -> Value {
    let mut document = definition(queue);
    document["vhost"] = json!(vhost);
    document["node"] = json!(node);
    document["exclusive"] = json!(queue.owner.is_some());
    document["type"] = json!(match queue.settings.kind {
        QueueKind::Classic => "classic",
        QueueKind::Quorum => "quorum",
        QueueKind::Stream => "stream",
    });
    document["state"] = json!("running");
    policy::apply(&mut document, applied);
    document
}

/// A queue as definitions have it, without its vhost.
pub(crate) fn definition(queue: &QueueDefinition) -> Value {
    json!({
        "name": &*queue.name,
        "durable": queue.durable,
        "auto_delete": queue.auto_delete,
        "arguments": table::to_json(&queue.arguments),
    })
}

/// Adds what is in the queue.
pub(in crate::management) fn count(document: &mut Value, counts: &QueueCounts) {
    document["messages"] = json!(counts.ready.saturating_add(counts.unacknowledged));
    document["messages_ready"] = json!(counts.ready);
    document["messages_unacknowledged"] = json!(counts.unacknowledged);
    document["consumers"] = json!(counts.consumers);
}

/// The declaration that a body asks for.
pub(crate) fn declare(name: &str, body: &Fields) -> Result<QueueDeclare, Refusal> {
    if body.flag("exclusive", false)? {
        return Err(Refusal::bad_request(
            "field 'exclusive' is true: an exclusive queue belongs to an AMQP connection, and a request over HTTP has none",
        ));
    }
    Ok(QueueDeclare {
        queue: short("name", name)?,
        passive: false,
        durable: body.flag("durable", false)?,
        exclusive: false,
        auto_delete: body.flag("auto_delete", false)?,
        arguments: body.table("arguments")?,
    })
}

#[cfg(test)]
mod tests {
    use amqp_compat::model::queue::Owner;

    use super::*;

    #[test]
    fn a_declared_queue_is_shown_with_its_counts() {
        let body = br#"{"durable":"true","arguments":{"x-queue-type":"quorum","x-expires":5}}"#;
        let asked = declare("q", &Fields::read(body).expect("an object")).expect("valid");
        let queue = QueueDefinition::from_declare("/", "q", &asked, Owner(1)).expect("a queue");
        let mut document = document("/", "n", &queue, &Applied::default());
        count(&mut document, &QueueCounts { ready: 2, unacknowledged: 3, consumers: 1 });
        assert_eq!(
            document,
            json!({
                "name": "q", "vhost": "/", "node": "n", "type": "quorum", "state": "running", "durable": true,
                "auto_delete": false, "exclusive": false, "policy": null, "operator_policy": null,
                "effective_policy_definition": {}, "arguments": { "x-queue-type": "quorum", "x-expires": 5 },
                "messages": 5, "messages_ready": 2, "messages_unacknowledged": 3, "consumers": 1
            })
        );
    }

    #[test]
    fn what_http_cannot_declare_is_refused() {
        let refused =
            |body: &str| declare("q", &Fields::read(body.as_bytes()).expect("an object")).expect_err("refused");
        assert!(refused(r#"{"exclusive":true}"#).reason.contains("'exclusive'"));
        assert!(refused(r#"{"durable":"banana"}"#).reason.contains("'durable'"));
        assert!(refused(r#"{"arguments":[1]}"#).reason.contains("'arguments'"));
    }
}
