//! Exchanges, and publishing to them.

use amqp_compat::backend::Topology;
use amqp_compat::model::exchange::ExchangeDefinition;
use serde_json::{Value, json};

use super::super::broker::Broker;
use super::super::client::{Client, Published};
use super::super::documents::fields::short;
use super::super::documents::refusal::Refusal;
use super::super::documents::{exchange, message};
use super::{Answer, Request, Verb};

pub(super) fn list(broker: &Broker, request: Request<'_>, vhost: Option<&str>) -> Result<Answer, Refusal> {
    let mut all: Vec<Value> = Vec::new();
    for vhost in broker.vhosts(vhost)? {
        let exchanges = broker.backend.exchanges(&vhost).unwrap_or_default();
        all.extend(exchanges.iter().map(|exchange| document(broker, &vhost, exchange)));
    }
    request.list(all)
}

fn document(broker: &Broker, vhost: &str, there: &ExchangeDefinition) -> Value {
    exchange::document(vhost, there, &broker.backend.applied_to_exchange(vhost, there))
}

pub(super) async fn one(
    broker: &Broker,
    request: Request<'_>,
    verb: Verb,
    vhost: &str,
    name: &str,
) -> Result<Answer, Refusal> {
    let there = broker.backend.exchange(vhost, name);
    match (verb, there) {
        (Verb::Get, Some(there)) => request.one(document(broker, vhost, &there)),
        (Verb::Put, there) => {
            broker.need_vhost(vhost)?;
            let declare = exchange::declare(name, &request.fields()?)?;
            request.change(broker, vhost, Topology::ExchangeDeclare(declare)).await?;
            Ok(if there.is_some() { Answer::Done } else { Answer::Created(None) })
        }
        (Verb::Delete, Some(_)) => {
            let (exchange, if_unused) = (short("name", name)?, request.has("if-unused"));
            request.change(broker, vhost, Topology::ExchangeDelete { exchange, if_unused }).await?;
            Ok(Answer::Done)
        }
        (Verb::Get | Verb::Delete, None) => Err(Refusal::object_not_found()),
        (Verb::Post, _) => Err(Refusal::method_not_allowed()),
    }
}

pub(super) async fn publish(broker: &Broker, request: Request<'_>, vhost: &str, name: &str) -> Result<Answer, Refusal> {
    broker.need_vhost(vhost)?;
    let message = message::publish(name, &request.fields()?)?;
    let mut client = Client::open(&broker.backend, request.caller, vhost).await.map_err(Refusal::of_message)?;
    let published = client.publish(message).await.map_err(Refusal::of_message)?;
    client.close(&[], None).await.map_err(Refusal::of_message)?;
    match published {
        Published::Refused => Err(Refusal::bad_request("rejected Unable to publish message. Check queue limits.")),
        published => Ok(Answer::Document(json!({ "routed": published == Published::Routed }))),
    }
}
