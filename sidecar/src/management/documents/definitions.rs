//! Definitions: everything that was declared, as one document, and such a document as a plan.
//!
//! An import is checked as a whole before anything is done, against a copy of what there is. What cannot be honoured is
//! named, and then nothing is imported.

use std::collections::BTreeMap;
use std::sync::Arc;

use amqp_compat::AmqpError;
use amqp_compat::backend::jetstream::{About, User};
use amqp_compat::backend::{Binding, ExchangeDeclare, QueueDeclare, Topology};
use amqp_compat::model::access::{Account, Permission};
use amqp_compat::model::exchange::ExchangeDefinition;
use amqp_compat::model::policy::{Policy, Scope};
use amqp_compat::model::queue::{Owner, QueueDefinition};
use amqp_compat::model::vhost::{BindingDefinition, Change, Destination, QueuePlan, Vhost};
use amqp_compat::session::RABBITMQ_VERSION;
use serde_json::{Map, Value, json};

use super::fields::{Fields, short};
use super::refusal::Refusal;
use super::user::{self, Asked};
use super::{binding, exchange, policy, queue, vhost};

/// What one vhost has.
#[derive(Debug, Clone, Default)]
pub(in crate::management) struct Declared {
    /// Exchanges, those of every vhost included.
    pub(in crate::management) exchanges: Vec<ExchangeDefinition>,
    /// Queues.
    pub(in crate::management) queues: Vec<QueueDefinition>,
    /// Bindings, but for those of the default exchange.
    pub(in crate::management) bindings: Vec<BindingDefinition>,
    /// Policies, those of operators included.
    pub(in crate::management) policies: Vec<Policy>,
}

/// What was declared in these vhosts; with `named`, each entity says its vhost.
pub(in crate::management) fn export(vhosts: &BTreeMap<String, Declared>, named: bool) -> Map<String, Value> {
    let (mut queues, mut exchanges, mut bindings) = (Vec::new(), Vec::new(), Vec::new());
    let (mut policies, mut parameters) = (Vec::new(), Vec::new());
    for (vhost, declared) in vhosts {
        let own = |mut definition: Value| {
            if named {
                definition["vhost"] = json!(vhost);
            }
            definition
        };
        for policy in &declared.policies {
            // These say their vhost in any case.
            match policy.scope {
                Scope::User => policies.push(policy::document(vhost, policy)),
                Scope::Operator => parameters.push(policy::parameter(vhost, policy)),
            }
        }
        // A connection's own queue goes with it, and so do its bindings.
        let is_own = |name: &str| declared.queues.iter().any(|queue| queue.owner.is_some() && *queue.name == *name);
        let lasting = declared.queues.iter().filter(|queue| queue.owner.is_none());
        queues.extend(lasting.map(|queue| own(queue::definition(queue))));
        let made = declared.exchanges.iter().filter(|exchange| !is_predeclared(&exchange.name));
        exchanges.extend(made.map(|exchange| own(exchange::definition(exchange))));
        let kept = declared.bindings.iter().filter(|binding| match &binding.destination {
            Destination::Queue(name) => !is_own(name),
            Destination::Exchange(_) => true,
        });
        bindings.extend(kept.map(|binding| own(binding::definition(binding))));
    }
    let mut document = Map::new();
    for (name, value) in [
        ("rabbit_version", json!(RABBITMQ_VERSION)),
        ("parameters", Value::Array(parameters)),
        ("policies", Value::Array(policies)),
        ("queues", Value::Array(queues)),
        ("exchanges", Value::Array(exchanges)),
        ("bindings", Value::Array(bindings)),
    ] {
        document.insert(name.to_owned(), value);
    }
    document
}

fn is_predeclared(exchange: &str) -> bool {
    exchange.is_empty() || exchange.starts_with("amq.")
}

/// What to ask of the broker.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// As an AMQP client asks.
    Topology(Topology),
    /// To put a policy.
    Policy(Policy),
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::management) struct Step {
    /// The vhost.
    pub(in crate::management) vhost: String,
    /// Which entity it is, for people.
    pub(in crate::management) what: String,
    /// What to ask of the broker.
    pub(in crate::management) action: Action,
}

/// What an import comes to.
#[derive(Debug, Default)]
pub(in crate::management) struct Plan {
    /// The vhosts to make first, or to say something else of.
    pub(in crate::management) vhosts: Vec<(String, About)>,
    /// The users to make then, or to change.
    pub(in crate::management) users: Vec<(String, Asked)>,
    /// What they may do: vhost, user, permission.
    pub(in crate::management) permissions: Vec<(String, String, Permission)>,
    /// What to do after that, in this order.
    pub(in crate::management) steps: Vec<Step>,
    /// What cannot be honoured, each with its name and why.
    pub(in crate::management) refused: Vec<String>,
}

/// What an import meets.
#[derive(Debug)]
pub(in crate::management) struct Present<'a> {
    /// The vhosts, and what they have.
    pub(in crate::management) vhosts: BTreeMap<String, Declared>,
    /// What is said of them.
    pub(in crate::management) about: BTreeMap<String, About>,
    /// Why no vhost can be made, where that is so.
    pub(in crate::management) fixed: Option<String>,
    /// Who may log in.
    pub(in crate::management) users: Vec<Arc<Account>>,
    /// Those of them that `serve` was started with.
    pub(in crate::management) given: &'a [User],
}

/// Global parameters that only say which cluster a document comes from.
const ORIGIN: [&str; 2] = ["cluster_name", "internal_cluster_id"];

/// Reads a document of definitions; `scope` is the vhost of all of them where the path names one.
///
/// # Errors
/// 400 naming the field of a document that is none.
pub(in crate::management) fn plan(
    mut document: Fields,
    scope: Option<&str>,
    mut present: Present<'_>,
) -> Result<Plan, Refusal> {
    let mut plan = Plan::default();
    let refused = &mut plan.refused;
    for fields in document.take_list("vhosts")? {
        let name = fields.text("name")?;
        let about = match (vhost::about(&fields), &present.fixed) {
            (Ok(about), _) if present.about.get(name) == Some(&about) => continue,
            (Ok(about), None) => about,
            (Ok(_), Some(why)) => {
                refused.push(format!("vhost '{name}': {why}"));
                continue;
            }
            (Err(refusal), _) => {
                refused.push(format!("vhost '{name}': {}", refusal.reason));
                continue;
            }
        };
        let new = || Declared { exchanges: ExchangeDefinition::predeclared(), ..Declared::default() };
        present.vhosts.entry(name.to_owned()).or_insert_with(new);
        plan.vhosts.push((name.to_owned(), about));
    }
    let present = &present;
    for fields in document.take_list("users")? {
        plan.user(fields.text("name")?, &fields, present)?;
    }
    for fields in document.take_list("permissions")? {
        plan.permission(fields.text("vhost")?, fields.text("user")?, &fields, present)?;
    }
    let refused = &mut plan.refused;
    for parameter in document.take_list("global_parameters")? {
        let name = parameter.text("name")?;
        if !ORIGIN.contains(&name) {
            refused.push(format!("global parameter '{name}': global parameters are not honoured"));
        }
    }
    for permission in document.take_list("topic_permissions")? {
        let user = permission.text("user")?;
        refused.push(format!(
            "topic permission of user '{user}': topic permissions are not honoured; remove it, and restrict the exchange instead"
        ));
    }
    let mut import = Import { scope, scratch: BTreeMap::new(), present, plan };
    for fields in document.take_list("policies")? {
        import.policy(Scope::User, fields.text("name")?, &fields, &fields)?;
    }
    for fields in document.take_list("parameters")? {
        let (component, name) = (fields.text("component")?, fields.text("name")?);
        if component == policy::OPERATOR {
            let value = fields.need("value")?.clone();
            import.policy(Scope::Operator, name, &fields, &Fields::of(value, &format!("parameter '{name}'"))?)?;
        } else {
            let why = "runtime parameters (shovels, federation) are not honoured";
            import.plan.refused.push(format!("parameter '{name}' of component '{component}': {why}"));
        }
    }
    for fields in document.take_list("exchanges")? {
        let asked = exchange::declare(fields.text("name")?, &fields)?;
        import.exchange(&fields, asked)?;
    }
    for fields in document.take_list("queues")? {
        let asked = queue::declare(fields.text("name")?, &fields)?;
        import.queue(&fields, asked)?;
    }
    for fields in document.take_list("bindings")? {
        import.binding(&fields)?;
    }
    for name in document.names() {
        if document.get(name).is_some_and(|value| value.is_array() || value.is_object()) {
            import.plan.refused.push(format!("'{name}': not known, so that it cannot be honoured"));
        }
    }
    Ok(import.plan)
}

struct Import<'a> {
    scope: Option<&'a str>,
    /// Copies of the vhosts, which the document's entities are tried on.
    scratch: BTreeMap<String, Vhost>,
    present: &'a Present<'a>,
    plan: Plan,
}

impl Import<'_> {
    /// The vhost of an entity, and the copy to try it on; `None` after a refusal was noted.
    fn vhost(&mut self, fields: &Fields, what: &str) -> Result<Option<(String, &mut Vhost)>, Refusal> {
        let name = match self.scope {
            Some(scope) => scope,
            None => fields.text("vhost")?,
        };
        let Some(declared) = self.present.vhosts.get(name) else {
            self.plan.refused.push(format!("{what}: no_such_vhost '{name}'"));
            return Ok(None);
        };
        let scratch = self.scratch.entry(name.to_owned()).or_insert_with(|| copy(name, declared));
        Ok(Some((name.to_owned(), scratch)))
    }

    fn exchange(&mut self, fields: &Fields, asked: ExchangeDeclare) -> Result<(), Refusal> {
        let what = format!("exchange '{}'", asked.exchange);
        let Some((vhost, scratch)) = self.vhost(fields, &what)? else { return Ok(()) };
        let tried = scratch.plan_exchange_declare(&asked).map(|change| {
            if let Some(change) = change {
                scratch.apply(&change);
            }
        });
        self.step(vhost, what, Topology::ExchangeDeclare(asked), tried);
        Ok(())
    }

    fn queue(&mut self, fields: &Fields, asked: QueueDeclare) -> Result<(), Refusal> {
        let what = format!("queue '{}'", asked.queue);
        let Some((vhost, scratch)) = self.vhost(fields, &what)? else { return Ok(()) };
        let tried = scratch.plan_queue_declare(&asked, asked.queue.as_str(), NOBODY).map(|planned| {
            if let QueuePlan::Create(definition) = planned {
                scratch.apply(&Change::PutQueue(*definition));
            }
        });
        self.step(vhost, what, Topology::QueueDeclare(asked), tried);
        Ok(())
    }

    fn binding(&mut self, fields: &Fields) -> Result<(), Refusal> {
        let (asked, to_queue) = read_binding(fields)?;
        let what = format!(
            "binding from exchange '{}' to {} '{}' with key '{}'",
            asked.source,
            if to_queue { "queue" } else { "exchange" },
            asked.destination,
            asked.routing_key
        );
        let Some((vhost, scratch)) = self.vhost(fields, &what)? else { return Ok(()) };
        let tried = scratch.plan_bind(&asked, to_queue, NOBODY).map(|change| {
            if let Some(change) = change {
                scratch.apply(&change);
            }
        });
        let request = if to_queue { Topology::QueueBind(asked) } else { Topology::ExchangeBind(asked) };
        self.step(vhost, what, request, tried);
        Ok(())
    }

    fn policy(&mut self, scope: Scope, name: &str, fields: &Fields, body: &Fields) -> Result<(), Refusal> {
        let kind = match scope {
            Scope::User => "policy",
            Scope::Operator => "operator policy",
        };
        let what = format!("{kind} '{name}'");
        let Some((vhost, _)) = self.vhost(fields, &what)? else { return Ok(()) };
        match policy::read(scope, name, body) {
            Ok(policy) => self.plan.steps.push(Step { vhost, what, action: Action::Policy(policy) }),
            Err(refusal) => {
                self.plan.refused.push(format!("{what}: {}", refusal.reason.replace("\n\n", ": ").trim_end()))
            }
        }
        Ok(())
    }

    fn step(&mut self, vhost: String, what: String, request: Topology, tried: Result<(), AmqpError>) {
        match tried {
            Ok(()) => self.plan.steps.push(Step { vhost, what, action: Action::Topology(request) }),
            Err(error) => self.plan.refused.push(format!("{what}: {}", error.text)),
        }
    }
}

/// No connection has this number.
const NOBODY: Owner = Owner(0);

fn copy(name: &str, declared: &Declared) -> Vhost {
    let mut copy = Vhost::new(name);
    for exchange in &declared.exchanges {
        copy.apply(&Change::PutExchange(exchange.clone()));
    }
    for queue in &declared.queues {
        copy.apply(&Change::PutQueue(queue.clone()));
    }
    for binding in &declared.bindings {
        copy.apply(&Change::Bind(binding.clone()));
    }
    copy
}

/// A binding of a document, and whether it leads to a queue.
pub(crate) fn read_binding(fields: &Fields) -> Result<(Binding, bool), Refusal> {
    let to_queue = match fields.text("destination_type")? {
        "queue" => true,
        "exchange" => false,
        other => {
            return Err(Refusal::bad_request(format!("field 'destination_type' is '{other}', not queue or exchange")));
        }
    };
    let binding = Binding {
        source: short("source", fields.text("source")?)?,
        destination: short("destination", fields.text("destination")?)?,
        routing_key: fields.short("routing_key")?,
        arguments: fields.table("arguments")?,
    };
    Ok((binding, to_queue))
}

impl Plan {
    /// Plans a user. One that `serve` was started with stays as it is.
    fn user(&mut self, name: &str, fields: &Fields, present: &Present<'_>) -> Result<(), Refusal> {
        let asked = match Asked::read(fields) {
            Ok(asked) => asked,
            Err(refusal) => {
                self.refused.push(format!("user '{name}': {}", refusal.reason));
                return Ok(());
            }
        };
        match present.given.iter().find(|given| given.name == name) {
            None => self.users.push((name.to_owned(), asked)),
            Some(given) if asked.is_password_of(given) => {}
            Some(_) => self.refused.push(format!(
                "user '{name}': serve is started with it and with another password; give --user and --user-file \
                 others, such as an administrator of your own (without any, serve has guest:guest), or leave it out of \
                 the document"
            )),
        }
        Ok(())
    }

    fn permission(&mut self, vhost: &str, name: &str, fields: &Fields, present: &Present<'_>) -> Result<(), Refusal> {
        let what = format!("permissions of user '{name}' in vhost '{vhost}'");
        let known = present.users.iter().find(|known| known.name == name);
        let is_there = known.is_some() || self.users.iter().any(|(new, _)| new == name);
        if !present.vhosts.contains_key(vhost) || !is_there {
            self.refused.push(format!("{what}: vhost_or_user_not_found"));
            return Ok(());
        }
        match user::read_permission(fields) {
            Err(refusal) => self.refused.push(format!("{what}: {}", refusal.reason)),
            Ok(permission) if known.is_some_and(|known| known.fixed) => {
                if permission != Permission::everything() {
                    self.refused.push(format!(
                        "{what}: serve is started with that user, which may do everything; leave it out of --user and \
                         --user-file"
                    ));
                }
            }
            Ok(permission) => self.permissions.push((vhost.to_owned(), name.to_owned(), permission)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Vec<User> {
        vec![User { name: "guest".into(), password: "guest".into() }]
    }

    fn present(given: &[User]) -> Present<'_> {
        let empty = Declared { exchanges: ExchangeDefinition::predeclared(), ..Declared::default() };
        let about = BTreeMap::from([("/".to_owned(), About::default())]);
        let account = |user: &User| Arc::new(Account::fixed(&user.name, None));
        let users = given.iter().map(account).collect();
        Present { vhosts: BTreeMap::from([("/".to_owned(), empty)]), about, fixed: None, users, given }
    }

    fn planned(document: Value, scope: Option<&str>) -> Result<Plan, Refusal> {
        let users = users();
        plan(Fields::of(document, "the body").expect("an object"), scope, present(&users))
    }

    fn refused(document: Value) -> Vec<String> {
        planned(document, None).expect("understood").refused
    }

    #[test]
    fn what_was_exported_is_planned_in_an_order_that_works() {
        let document = json!({
            "rabbit_version": "3.10.8",
            "users": [{ "name": "guest", "tags": "", "password_hash": "eBUYjg8UChvIIDLLB3wTlYm+gttRS0vI/OXL13Ijr/uuZqXZ" }],
            "vhosts": [{ "name": "/" }],
            "permissions": [{ "user": "guest", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*" }],
            "global_parameters": [{ "name": "cluster_name", "value": "x" }],
            "topic_permissions": [],
            "policies": [{ "name": "p", "vhost": "/", "pattern": "^q", "definition": { "max-length": 5 } }],
            "parameters": [{
                "name": "o", "vhost": "/", "component": "operator_policy",
                "value": { "pattern": "^q", "definition": { "max-length": 3 }, "priority": 1, "apply-to": "queues" },
            }],
            "bindings": [{ "source": "x", "vhost": "/", "destination": "q", "destination_type": "queue", "routing_key": "k" }],
            "queues": [{ "name": "q", "vhost": "/", "durable": true }],
            "exchanges": [{ "name": "x", "vhost": "/", "type": "topic", "durable": true }],
        });
        let plan = planned(document, None).expect("understood");
        assert_eq!(plan.refused, Vec::<String>::new());
        let steps: Vec<&str> = plan.steps.iter().map(|step| step.what.as_str()).collect();
        assert_eq!(
            steps,
            [
                "policy 'p'",
                "operator policy 'o'",
                "exchange 'x'",
                "queue 'q'",
                "binding from exchange 'x' to queue 'q' with key 'k'"
            ]
        );
    }

    #[test]
    fn everything_that_cannot_be_honoured_is_named() {
        assert_eq!(
            refused(json!({
                "vhosts": [{ "name": "v", "tracing": true }],
                "users": [{ "name": "bob", "password": "x" }, { "name": "guest", "password": "other", "tags": "" }],
                "permissions": [
                    { "user": "guest", "vhost": "/", "configure": "^$", "write": ".*", "read": ".*" },
                    { "user": "bob", "vhost": "/", "configure": "^$", "write": ".*", "read": ".*" },
                ],
                "policies": [
                    { "name": "p", "vhost": "/", "pattern": "", "definition": {} },
                    { "name": "mirrored", "vhost": "/", "pattern": "", "definition": { "ha-mode": "all" } },
                ],
                "parameters": [{ "name": "s", "component": "shovel", "vhost": "/", "value": {} }],
                "global_parameters": [{ "name": "g", "value": 1 }],
                "queues": [
                    { "name": "q", "vhost": "nov" },
                    { "name": "s", "vhost": "/", "durable": true, "arguments": { "x-message-deduplication": 5 } },
                    { "name": "amq.q", "vhost": "/" },
                ],
                "exchanges": [
                    { "name": "x", "vhost": "/", "type": "x-delayed-message" },
                    { "name": "amq.topic", "vhost": "/", "type": "topic", "durable": false },
                ],
                "bindings": [{ "source": "gone", "vhost": "/", "destination": "s", "destination_type": "queue" }],
                "novelties": [1],
            }))
            .iter()
            .map(|text| text.split(':').next().unwrap_or_default())
            .collect::<Vec<_>>(),
            [
                "vhost 'v'",
                "user 'bob'",
                "user 'guest'",
                "permissions of user 'guest' in vhost '/'",
                "permissions of user 'bob' in vhost '/'",
                "global parameter 'g'",
                "policy 'p'",
                "policy 'mirrored'",
                "parameter 's' of component 'shovel'",
                "exchange 'x'",
                "exchange 'amq.topic'",
                "queue 'q'",
                "queue 's'",
                "queue 'amq.q'",
                "binding from exchange 'gone' to queue 's' with key ''",
                "'novelties'",
            ]
        );
    }

    #[test]
    fn vhosts_that_are_not_there_are_made_first_where_they_can_be() {
        let document = json!({
            "vhosts": [{ "name": "/" }, { "name": "v", "description": "new" }],
            "permissions": [{ "user": "guest", "vhost": "v", "configure": ".*", "write": ".*", "read": ".*" }],
            "queues": [{ "name": "q", "vhost": "v", "durable": true }],
            "bindings": [
                { "source": "amq.fanout", "vhost": "v", "destination": "q", "destination_type": "queue" },
            ],
        });
        let plan = planned(document.clone(), None).expect("understood");
        assert_eq!(plan.refused, Vec::<String>::new());
        assert_eq!(plan.vhosts, [("v".to_owned(), About { description: "new".into(), tags: Vec::new() })]);
        assert_eq!(plan.steps.iter().filter(|step| step.vhost == "v").count(), 2);
        let users = users();
        let fixed = Present { fixed: Some("they are fixed".into()), ..present(&users) };
        let fields = Fields::of(document, "the body").expect("an object");
        let refused = super::plan(fields, None, fixed).expect("understood").refused;
        assert!(refused[0] == "vhost 'v': they are fixed" && refused.len() == 4, "{refused:?}");
    }

    #[test]
    fn users_and_what_they_may_do_are_planned() {
        let document = json!({
            "users": [{ "name": "bob", "tags": ["management"], "password_hash": "eBUYjg8UChvIIDLLB3wTlYm+gttRS0vI/OXL13Ijr/uuZqXZ" }],
            "vhosts": [{ "name": "v" }],
            "permissions": [{ "user": "bob", "vhost": "v", "configure": "", "write": "^w", "read": ".*" }],
        });
        let plan = planned(document, None).expect("understood");
        assert_eq!(plan.refused, Vec::<String>::new());
        let [(name, asked)] = &plan.users[..] else { panic!("one user: {:?}", plan.users) };
        assert!(name == "bob" && asked.password.as_ref().is_some_and(|password| password.is("guest")));
        let expected = Permission::new("", "^w", ".*").expect("valid");
        assert_eq!(plan.permissions, [("v".to_owned(), "bob".to_owned(), expected)]);
    }

    #[test]
    fn a_document_that_is_none_is_refused_with_the_field() {
        for (document, field) in [
            (json!({ "queues": 5 }), "'queues'"),
            (json!({ "queues": [5] }), "queues[0]"),
            (json!({ "queues": [{ "name": 5 }] }), "'name'"),
            (json!({ "bindings": [{ "destination_type": "x" }] }), "'destination_type'"),
            (json!({ "exchanges": [{ "name": "x", "durable": "banana" }] }), "'durable'"),
        ] {
            let refusal = planned(document, None).expect_err("refused");
            assert!(refusal.status == 400 && refusal.reason.contains(field), "{refusal:?}");
        }
    }

    #[test]
    fn what_goes_with_a_connection_and_what_every_vhost_has_is_not_exported() {
        let users = users();
        let mut vhosts = present(&users).vhosts;
        let asked = |name: &str, exclusive| QueueDeclare {
            queue: name.into(),
            passive: false,
            durable: true,
            exclusive,
            auto_delete: false,
            arguments: Default::default(),
        };
        let declared = vhosts.get_mut("/").expect("is there");
        for (name, exclusive) in [("own", true), ("q", false)] {
            let queue = QueueDefinition::from_declare("/", name, &asked(name, exclusive), Owner(1)).expect("valid");
            declared.queues.push(queue);
            declared.bindings.push(BindingDefinition {
                source: "amq.topic".into(),
                destination: Destination::Queue(name.into()),
                routing_key: "k".into(),
                arguments: Default::default(),
            });
        }
        let document = export(&vhosts, true);
        assert_eq!(document["exchanges"], json!([]));
        assert_eq!(
            document["queues"],
            json!([{ "name": "q", "vhost": "/", "durable": true, "auto_delete": false, "arguments": {} }])
        );
        assert_eq!(document["bindings"].as_array().map(Vec::len), Some(1));
        assert!(export(&vhosts, false)["queues"][0].get("vhost").is_none());
        let again = planned(Value::Object(export(&vhosts, false)), Some("/")).expect("understood");
        assert_eq!((again.steps.len(), again.refused.len()), (2, 0));
    }
}
