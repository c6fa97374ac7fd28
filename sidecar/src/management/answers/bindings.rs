//! Bindings.

use amqp_compat::backend::{Binding, Topology};
use amqp_compat::model::vhost::{BindingDefinition, Destination};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::super::broker::Broker;
use super::super::documents::binding;
use super::super::documents::fields::short;
use super::super::documents::refusal::Refusal;
use super::super::documents::route::Ends;
use super::{Answer, Request, Verb};

/// What a segment of a path keeps as it is.
const SEGMENT: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

pub(super) fn list(broker: &Broker, request: Request<'_>, vhost: Option<&str>) -> Result<Answer, Refusal> {
    let mut all = Vec::new();
    for vhost in broker.vhosts(vhost)? {
        let queues = broker.backend.queues(&vhost).unwrap_or_default();
        all.extend(queues.iter().map(|queue| binding::default_binding(&vhost, &queue.name)));
        all.extend(documents(broker, &vhost, |_| true));
    }
    request.list(all)
}

pub(super) fn of_queue(broker: &Broker, request: Request<'_>, vhost: &str, name: &str) -> Result<Answer, Refusal> {
    broker.backend.queue(vhost, name).ok_or_else(Refusal::object_not_found)?;
    let mut all = vec![binding::default_binding(vhost, name)];
    all.extend(documents(broker, vhost, |to| matches!(&to.destination, Destination::Queue(queue) if **queue == *name)));
    request.list(all)
}

/// The bindings from an exchange, or to it.
pub(super) fn of_exchange(
    broker: &Broker,
    request: Request<'_>,
    vhost: &str,
    name: &str,
    from: bool,
) -> Result<Answer, Refusal> {
    broker.backend.exchange(vhost, name).ok_or_else(Refusal::object_not_found)?;
    if from && name.is_empty() {
        let queues = broker.backend.queues(vhost).unwrap_or_default();
        return request.list(queues.iter().map(|queue| binding::default_binding(vhost, &queue.name)).collect());
    }
    request.list(documents(broker, vhost, |binding| match &binding.destination {
        _ if from => *binding.source == *name,
        Destination::Exchange(destination) => **destination == *name,
        Destination::Queue(_) => false,
    }))
}

pub(super) async fn between(broker: &Broker, request: Request<'_>, verb: Verb, ends: &Ends) -> Result<Answer, Refusal> {
    match verb {
        Verb::Get => {
            broker.vhosts(Some(&ends.vhost))?;
            let is_default = ends.source.is_empty() && ends.to_queue;
            if is_default && broker.backend.queue(&ends.vhost, &ends.destination).is_some() {
                return request.list(vec![binding::default_binding(&ends.vhost, &ends.destination)]);
            }
            request.list(documents(broker, &ends.vhost, |binding| has_ends(binding, ends)))
        }
        Verb::Post => {
            broker.need_vhost(&ends.vhost)?;
            let fields = request.fields()?;
            let (routing_key, arguments) = (fields.short("routing_key")?, fields.table("arguments")?);
            let key = binding::properties_key(routing_key.as_str(), &arguments);
            let asked = Binding {
                source: short("source", &ends.source)?,
                destination: short("destination", &ends.destination)?,
                routing_key,
                arguments,
            };
            let change = if ends.to_queue { Topology::QueueBind(asked) } else { Topology::ExchangeBind(asked) };
            request.change(broker, &ends.vhost, change).await?;
            let segment = |text| utf8_percent_encode(text, &SEGMENT);
            Ok(Answer::Created(Some(format!("{}/{}", segment(&ends.destination), segment(&key)))))
        }
        Verb::Put | Verb::Delete => Err(Refusal::method_not_allowed()),
    }
}

pub(super) async fn one(
    broker: &Broker,
    request: Request<'_>,
    verb: Verb,
    ends: &Ends,
    key: &str,
) -> Result<Answer, Refusal> {
    if matches!(verb, Verb::Put | Verb::Post) {
        return Err(Refusal::method_not_allowed());
    }
    if ends.source.is_empty() && ends.to_queue && broker.backend.queue(&ends.vhost, &ends.destination).is_some() {
        let document = binding::default_binding(&ends.vhost, &ends.destination);
        return match (document["properties_key"] == key, verb) {
            (true, Verb::Get) => request.one(document),
            (true, _) => Err(Refusal {
                status: 401,
                error: "not_authorised",
                reason: "operation not permitted on the default exchange".to_owned(),
            }),
            (false, _) => Err(Refusal::object_not_found()),
        };
    }
    let all = broker.backend.bindings(&ends.vhost);
    let has_key = |found: &&BindingDefinition| binding::properties_key(&found.routing_key, &found.arguments) == key;
    let found =
        all.iter().filter(|binding| has_ends(binding, ends)).find(has_key).ok_or_else(Refusal::object_not_found)?;
    if verb == Verb::Get {
        return request.one(binding::document(&ends.vhost, found));
    }
    let asked = Binding {
        source: short("source", &found.source)?,
        destination: short("destination", &ends.destination)?,
        routing_key: short("routing_key", &found.routing_key)?,
        arguments: found.arguments.clone(),
    };
    let change = if ends.to_queue { Topology::QueueUnbind(asked) } else { Topology::ExchangeUnbind(asked) };
    request.change(broker, &ends.vhost, change).await?;
    Ok(Answer::Done)
}

fn has_ends(binding: &BindingDefinition, ends: &Ends) -> bool {
    let destination = &binding.destination;
    let is_destination = destination.is_queue() == ends.to_queue && **destination.name() == *ends.destination;
    *binding.source == *ends.source && is_destination
}

/// The documents of some of a vhost's bindings, in an order that stays.
fn documents(broker: &Broker, vhost: &str, shown: impl Fn(&BindingDefinition) -> bool) -> Vec<Value> {
    let mut bindings: Vec<BindingDefinition> =
        broker.backend.bindings(vhost).into_iter().filter(|b| shown(b)).collect();
    bindings.sort_by(|a, b| {
        let order = |of: &BindingDefinition| (of.source.clone(), binding::end(&of.destination).1.to_owned());
        order(a).cmp(&order(b)).then_with(|| a.routing_key.cmp(&b.routing_key))
    });
    bindings.iter().map(|found| binding::document(vhost, found)).collect()
}
