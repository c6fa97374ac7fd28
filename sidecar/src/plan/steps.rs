//! A thing of a plan as what is asked of the gateway.

use amqp_compat::backend::Topology;
use amqp_compat::model::policy::Scope;
use serde_json::Value;

use super::things::{Key, Kind};
use crate::management::documents::definitions::{Action, read_binding};
use crate::management::documents::fields::Fields;
use crate::management::documents::refusal::Refusal;
use crate::management::documents::{exchange, policy, queue};

/// What to ask so that a thing is there.
///
/// # Errors
/// What is wrong with its document, with the field.
pub(crate) fn action(key: &Key, thing: &Value) -> Result<Action, String> {
    let read = || {
        let fields = Fields::of(thing.clone(), "it")?;
        Ok(match key.kind {
            Kind::Policy => Action::Policy(policy::read(Scope::User, &key.name, &fields)?),
            Kind::OperatorPolicy => Action::Policy(policy::read(Scope::Operator, &key.name, &fields)?),
            Kind::Exchange => Action::Topology(Topology::ExchangeDeclare(exchange::declare(&key.name, &fields)?)),
            Kind::Queue => Action::Topology(Topology::QueueDeclare(queue::declare(&key.name, &fields)?)),
            Kind::Binding => Action::Topology(match read_binding(&fields)? {
                (binding, true) => Topology::QueueBind(binding),
                (binding, false) => Topology::ExchangeBind(binding),
            }),
        })
    };
    read().map_err(|refusal: Refusal| format!("{key}: {}", refusal.reason))
}
