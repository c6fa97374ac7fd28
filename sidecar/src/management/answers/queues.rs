//! Queues, and what is in them.

use amqp_compat::ReplyCode;
use amqp_compat::backend::{Outcome, Topology};
use serde_json::{Value, json};

use super::super::broker::Broker;
use super::super::client::Client;
use super::super::documents::fields::short;
use super::super::documents::listing::Listing;
use super::super::documents::message::{AckMode, Get};
use super::super::documents::queue;
use super::super::documents::refusal::Refusal;
use super::{Answer, Request, Verb};

/// How many bytes of messages one get takes; it ends with the message that reaches it.
const MOST_BYTES: usize = 32 << 20;

pub(super) async fn list(broker: &Broker, request: Request<'_>, vhost: Option<&str>) -> Result<Answer, Refusal> {
    let listing = Listing::read(request.query)?;
    Ok(Answer::Document(broker.queues(&broker.vhosts(vhost)?, &listing).await?))
}

pub(super) async fn one(
    broker: &Broker,
    request: Request<'_>,
    verb: Verb,
    vhost: &str,
    name: &str,
) -> Result<Answer, Refusal> {
    let there = broker.backend.queue(vhost, name);
    match (verb, there) {
        (Verb::Get, Some(there)) => {
            let mut document = broker.queue(vhost, &there);
            if let Ok(Some(counts)) = broker.counts(vhost, name).await {
                queue::count(&mut document, &counts);
            }
            document["consumer_details"] = Value::Array(broker.consumers(Some(vhost), Some(name)).await);
            request.one(document)
        }
        (Verb::Put, there) => {
            broker.need_vhost(vhost)?;
            let declare = queue::declare(name, &request.fields()?)?;
            if declare.queue.as_str().is_empty() {
                return Err(Refusal::bad_request("field 'name' is empty: only an AMQP client can have a name made up"));
            }
            request.change(broker, vhost, Topology::QueueDeclare(declare)).await?;
            Ok(if there.is_some() { Answer::Done } else { Answer::Created(None) })
        }
        (Verb::Delete, Some(_)) => {
            let queue = short("name", name)?;
            let (if_unused, if_empty) = (request.has("if-unused"), request.has("if-empty"));
            request.change(broker, vhost, Topology::QueueDelete { queue, if_unused, if_empty }).await?;
            Ok(Answer::Done)
        }
        (Verb::Get | Verb::Delete, None) => Err(Refusal::object_not_found()),
        (Verb::Post, _) => Err(Refusal::method_not_allowed()),
    }
}

pub(super) async fn purge(broker: &Broker, request: Request<'_>, vhost: &str, name: &str) -> Result<Answer, Refusal> {
    if broker.backend.queue(vhost, name).is_none() {
        return Err(Refusal::object_not_found());
    }
    request.change(broker, vhost, Topology::QueuePurge { queue: short("name", name)? }).await?;
    Ok(Answer::Done)
}

pub(super) async fn get(broker: &Broker, request: Request<'_>, vhost: &str, name: &str) -> Result<Answer, Refusal> {
    broker.need_vhost(vhost)?;
    let asked = Get::read(&request.fields()?)?;
    let queue = short("name", name)?;
    if broker.backend.queue(vhost, name).is_none() {
        let reason = format!("NOT_FOUND - no queue '{name}' in vhost '{vhost}'");
        return Err(Refusal { status: 404, error: "not_found", reason });
    }
    let mut client = Client::open(&broker.backend, request.caller, vhost).await.map_err(Refusal::of_message)?;
    let (mut documents, mut taken, mut bytes) = (Vec::new(), Vec::new(), 0);
    while documents.len() < asked.count && bytes < MOST_BYTES {
        match client.get(&queue).await {
            Ok(Some(got)) => {
                bytes += got.delivery.message.body.len();
                taken.push(got.delivery.id);
                documents.push(asked.document(&got));
            }
            Ok(None) => break,
            // Dropping the client gives back what it has taken.
            Err(error) if matches!(error.code, ReplyCode::NotFound | ReplyCode::AccessRefused) => {
                return Err(Refusal::of_change(error));
            }
            Err(error) => return Err(Refusal::of_message(error)),
        }
    }
    let outcome = match asked.mode {
        AckMode::Requeue => None,
        AckMode::Ack => Some(Outcome::Ack),
        AckMode::Reject => Some(Outcome::Reject),
    };
    client.close(&taken, outcome).await.map_err(Refusal::of_message)?;
    Ok(Answer::Document(json!(documents)))
}
