//! Policies and operator policies, which RabbitMQ also shows as runtime parameters. There are no others.

use amqp_compat::model::policy::{Policy, Scope};

use super::super::broker::Broker;
use super::super::documents::policy;
use super::super::documents::refusal::Refusal;
use super::{Answer, Request, Verb};

pub(super) fn list(
    broker: &Broker,
    request: Request<'_>,
    scope: Scope,
    vhost: Option<&str>,
) -> Result<Answer, Refusal> {
    let mut all = Vec::new();
    for vhost in broker.vhosts(vhost)? {
        all.extend(broker.backend.policies(&vhost, scope).iter().map(|policy| policy::document(&vhost, policy)));
    }
    request.list(all)
}

pub(super) async fn one(
    broker: &Broker,
    request: Request<'_>,
    verb: Verb,
    (scope, vhost, name): (Scope, &str, &str),
) -> Result<Answer, Refusal> {
    match verb {
        Verb::Get => {
            broker.vhosts(Some(vhost))?;
            let found = find(broker, scope, vhost, name).ok_or_else(Refusal::object_not_found)?;
            request.one(policy::document(vhost, &found))
        }
        Verb::Put => {
            broker.need_vhost(vhost)?;
            let put = policy::read(scope, name, &request.fields()?)?;
            let is_new = broker.backend.put_policy(vhost, put).await.map_err(Refusal::of_change)?;
            Ok(if is_new { Answer::Created(None) } else { Answer::Done })
        }
        Verb::Delete => {
            broker.vhosts(Some(vhost))?;
            match broker.backend.drop_policy(vhost, scope, name).await.map_err(Refusal::of_change)? {
                true => Ok(Answer::Done),
                false => Err(Refusal::object_not_found()),
            }
        }
        Verb::Post => Err(Refusal::method_not_allowed()),
    }
}

pub(super) fn parameters(
    broker: &Broker,
    request: Request<'_>,
    component: Option<&str>,
    vhost: Option<&str>,
) -> Result<Answer, Refusal> {
    let mut all = Vec::new();
    for vhost in broker.vhosts(vhost)? {
        if component.is_none_or(|component| component == policy::OPERATOR) {
            let policies = broker.backend.policies(&vhost, Scope::Operator);
            all.extend(policies.iter().map(|policy| policy::parameter(&vhost, policy)));
        }
    }
    request.list(all)
}

pub(super) fn parameter(
    broker: &Broker,
    request: Request<'_>,
    verb: Verb,
    (component, vhost, name): (&str, &str, &str),
) -> Result<Answer, Refusal> {
    let found = match component == policy::OPERATOR {
        true => find(broker, Scope::Operator, vhost, name),
        false => None,
    };
    match (verb, found) {
        (Verb::Get, Some(found)) => request.one(policy::parameter(vhost, &found)),
        (Verb::Put | Verb::Delete, _) if component == policy::OPERATOR => Err(Refusal::bad_request(format!(
            "operator policy '{name}' is changed at /api/operator-policies, not as a parameter"
        ))),
        (Verb::Get | Verb::Delete, _) => Err(Refusal::object_not_found()),
        (Verb::Put, _) => Err(Refusal::bad_request(format!("Validation failed\n\ncomponent {component} not found\n"))),
        (Verb::Post, _) => Err(Refusal::method_not_allowed()),
    }
}

fn find(broker: &Broker, scope: Scope, vhost: &str, name: &str) -> Option<Policy> {
    broker.backend.policies(vhost, scope).into_iter().find(|policy| *policy.name == *name)
}
