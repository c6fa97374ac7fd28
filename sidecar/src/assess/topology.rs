//! Exchanges, queues and bindings, each declared into the gateway's model of the vhost.

use std::collections::{BTreeMap, BTreeSet};

use amqp_compat::backend::{Binding, ExchangeDeclare, QueueDeclare};
use amqp_compat::mapping::name;
use amqp_compat::model::beside_rabbitmq;
use amqp_compat::model::exchange::ExchangeKind;
use amqp_compat::model::features::{self, Area, Support};
use amqp_compat::model::queue::{Owner, QueueDefinition, QueueKind, display};
use amqp_compat::model::vhost::{BindingDefinition, Change, Destination, QueuePlan, Vhost};

use super::code::{self, Code};
use super::finding::{Entity, Findings};
use super::inventory::{Declared, binding_name};
use super::{Way, differences};
use crate::management::documents::table;

/// Who declares, as the owner of exclusive queues.
const SOMEBODY: Owner = Owner(1);

/// From how many copies of a message on an exchange is named: each queue stores its own.
const MANY_COPIES: usize = 100;

/// What a queue that RabbitMQ named begins with.
const SERVER_NAMED: &str = "amq.gen-";

const SEE: &str = "docs/mapping.md says what to do instead";

/// Tries everything of a vhost, in the order in which it can be declared.
pub(super) fn assess(vhost: &str, declared: &Declared, findings: &mut Findings, entities: &mut Vec<Entity>) {
    let mut trial = Trial { vhost, model: Vhost::new(vhost), refused: BTreeSet::new(), findings };
    for asked in &declared.exchanges {
        entities.push(trial.exchange(asked));
    }
    for asked in &declared.queues {
        entities.push(trial.queue(asked));
    }
    for (asked, to_queue) in &declared.bindings {
        entities.push(trial.binding(asked, *to_queue));
    }
    trial.targets();
    trial.copies();
    if let Some(kind) = &declared.default_queue_type {
        trial.findings.add(
            code::V_TYPE,
            &Entity::of(vhost, "vhost", vhost),
            format!("queues that name no type are of type '{kind}' here, and classic ones on JetStream"),
            "have the applications declare `x-queue-type`",
        );
    }
}

struct Trial<'a> {
    vhost: &'a str,
    model: Vhost,
    /// Exchanges (`true`) and queues (`false`) that were refused.
    refused: BTreeSet<(bool, String)>,
    findings: &'a mut Findings,
}

impl Trial<'_> {
    fn way(&self) -> Way {
        self.findings.way
    }

    fn exchange(&mut self, asked: &ExchangeDeclare) -> Entity {
        let name = asked.exchange.as_str();
        let entity = Entity::of(self.vhost, "exchange", name);
        let change = match self.model.plan_exchange_declare(asked) {
            Ok(change) => change,
            Err(error) => {
                let kind = asked.kind.as_str();
                let (code, fix) = match ExchangeKind::from_name(kind) {
                    Err(_) => (code::X_TYPE, unknown_type(kind)),
                    Ok(_) => (code::X_REFUSED, SEE.to_owned()),
                };
                self.refuse(code, &entity, error.to_string(), fix);
                return entity;
            }
        };
        if let Some(Change::PutExchange(definition)) = &change
            && self.way() == Way::Sidecar
            && let Err(error) = beside_rabbitmq::check_exchange(self.vhost, definition)
        {
            let fix = "move its applications with `serve`, after a stop (--way serve), or bind them to another type";
            self.refuse(code::X_BESIDE, &entity, error.to_string(), fix);
            return entity;
        }
        if let Some(change) = change {
            self.model.apply(&change);
        }
        self.differs(code::X_DIFFERS, &entity, Area::ExchangeType, asked.kind.as_str(), "type");
        for argument in asked.arguments.inner().keys() {
            self.differs(code::X_DIFFERS, &entity, Area::ExchangeArgument, argument.as_str(), "argument");
        }
        if !asked.durable {
            let what = "not durable: it goes when the gateway restarts, as it does when RabbitMQ restarts";
            self.findings.add(code::X_TRANSIENT, &entity, what, "nothing, where its applications declare it");
        }
        entity
    }

    fn queue(&mut self, asked: &QueueDeclare) -> Entity {
        let name = asked.queue.as_str();
        let entity = Entity::of(self.vhost, "queue", name);
        // Its application asked for a queue without a name, and will do so again.
        let is_named_by_server = name.starts_with(SERVER_NAMED);
        let asked_for = match is_named_by_server {
            true => &QueueDeclare { queue: Default::default(), ..asked.clone() },
            false => asked,
        };
        match self.model.plan_queue_declare(asked_for, name, SOMEBODY) {
            Ok(QueuePlan::Create(definition)) => {
                if self.way() == Way::Sidecar
                    && let Err(error) = beside_rabbitmq::check_queue(self.vhost, &definition)
                {
                    let fix = "move its applications with `serve`, after a stop (--way serve), or have them declare it without";
                    self.refuse(code::Q_BESIDE, &entity, error.to_string(), fix);
                    return entity;
                }
                self.queue_differs(&entity, &definition);
                self.model.apply(&Change::PutQueue(*definition));
            }
            Ok(QueuePlan::Exists(_)) => {}
            Err(error) => {
                self.explain(&entity, asked, &error.to_string());
                self.refused.insert((false, name.to_owned()));
                return entity;
            }
        }
        if is_named_by_server {
            let (what, fix) = match self.way() {
                Way::Sidecar => (
                    "RabbitMQ made up its name; JetStream takes the same one when its application comes through the sidecar",
                    "nothing, where its application asks for it again when it connects",
                ),
                Way::Serve => (
                    "RabbitMQ made up its name: its application gets another one from JetStream",
                    "nothing, unless a name of it is configured somewhere",
                ),
            };
            self.findings.add(code::Q_NAMED, &entity, what, fix);
        } else if is_hashed(self.vhost, name) {
            let what = "its stream's name would be too long, and ends in a hash";
            let fix = "nothing for AMQP; native clients find the stream by its subject";
            self.findings.add(code::Q_HASHED, &entity, what, fix);
        }
        entity
    }

    /// Names each reason for which the model refuses a queue.
    fn explain(&mut self, entity: &Entity, asked: &QueueDeclare, refusal: &str) {
        let what = display(self.vhost, asked.queue.as_str());
        let mut is_explained = false;
        for argument in asked.arguments.inner().keys().map(|name| name.as_str()) {
            let Err(error) = features::check(Area::QueueArgument, argument, &what) else { continue };
            is_explained |= error.to_string() == refusal;
            let fix = format!("have its applications declare it without '{argument}'; {SEE}");
            self.findings.add(code::Q_ARG, entity, error.to_string(), fix);
        }
        if !is_explained {
            self.findings.add(code::Q_REFUSED, entity, refusal, "have its applications declare it differently");
        }
    }

    fn queue_differs(&mut self, entity: &Entity, definition: &QueueDefinition) {
        let kinds = [
            (definition.settings.kind == QueueKind::Quorum, "quorum"),
            (definition.settings.kind == QueueKind::Stream, "stream"),
            (definition.owner.is_some(), "exclusive"),
            (definition.owner.is_none() && !definition.durable, "transient"),
            (definition.auto_delete, "auto-delete"),
        ];
        for (_, kind) in kinds.into_iter().filter(|(is_so, _)| *is_so) {
            self.differs(code::Q_KIND, entity, Area::Queue, kind, "kind");
        }
        for argument in definition.arguments.inner().keys().map(|name| name.as_str()) {
            match features::find(Area::QueueArgument, argument).map(|feature| feature.support) {
                Some(Support::Hint) => {
                    let what = format!(
                        "argument '{argument}' is about RabbitMQ's own storage or placement, and has no effect"
                    );
                    self.findings.add(code::Q_HINT, entity, what, "nothing");
                }
                Some(Support::Honoured) => {
                    self.differs(code::Q_DIFFERS, entity, Area::QueueArgument, argument, "argument");
                }
                // A refused one would have been refused.
                Some(Support::Refused) => {}
                None => {
                    let what =
                        format!("argument '{argument}' is not known; it is kept and has no effect, as in RabbitMQ");
                    let fix = "nothing, unless a plug-in of yours reads it";
                    self.findings.add(code::Q_UNKNOWN, entity, what, fix);
                }
            }
        }
    }

    fn binding(&mut self, asked: &Binding, to_queue: bool) -> Entity {
        let kind = if to_queue { "queue" } else { "exchange" };
        let (source, destination) = (asked.source.as_str(), asked.destination.as_str());
        let arguments = table::to_json(&asked.arguments);
        let name = binding_name(source, kind, destination, asked.routing_key.as_str(), &arguments);
        let entity = Entity::of(self.vhost, "binding", name);
        match self.model.plan_bind(asked, to_queue, SOMEBODY) {
            Ok(Some(change)) => {
                self.model.apply(&change);
            }
            Ok(None) => {}
            Err(error) => {
                let is_refused = |is_exchange, name: &str| self.refused.contains(&(is_exchange, name.to_owned()));
                if is_refused(true, source) || is_refused(!to_queue, destination) {
                    let what = "its exchange or its destination is refused";
                    self.findings.add(code::B_END, &entity, what, "see the finding about that one");
                } else {
                    self.findings.add(code::B_REFUSED, &entity, error.to_string(), "bind it differently");
                }
            }
        }
        entity
    }

    /// Dead-letter and alternate exchanges that nobody declared: RabbitMQ drops what goes there, and so does the gateway.
    fn targets(&mut self) {
        let is_missing =
            |name: &str| self.model.exchange(name).is_none() && !self.refused.contains(&(true, name.to_owned()));
        let mut missing = Vec::new();
        for queue in self.model.queues() {
            if let Some(target) = queue.settings.dead_letter_exchange.as_deref().filter(|name| is_missing(name)) {
                missing.push((code::Q_DLX, Entity::of(self.vhost, "queue", &*queue.name), target.to_owned()));
            }
        }
        for exchange in self.model.exchanges() {
            if let Some(target) = exchange.alternate().filter(|name| is_missing(name)) {
                missing.push((
                    code::X_ALTERNATE,
                    Entity::of(self.vhost, "exchange", &*exchange.name),
                    target.to_owned(),
                ));
            }
        }
        for (code, entity, target) in missing {
            let what =
                format!("exchange '{target}', where it sends messages, is not there: they are dropped, as in RabbitMQ");
            self.findings.add(code, &entity, what, "declare that exchange, if it is not a leftover");
        }
    }

    /// Exchanges whose messages are stored many times: what one key reaches directly.
    fn copies(&mut self) {
        let mut copies = BTreeMap::<(&str, &str), usize>::new();
        for BindingDefinition { source, destination, routing_key, .. } in self.model.bindings() {
            let kind = self.model.exchange(source).map(|exchange| exchange.routing());
            let key = match (kind, destination) {
                (None | Some(ExchangeKind::ConsistentHash), _) | (_, Destination::Exchange(_)) => continue,
                (Some(ExchangeKind::Fanout), _) => "",
                (Some(_), _) => routing_key,
            };
            *copies.entry((source, key)).or_default() += 1;
        }
        let mut most = BTreeMap::<String, usize>::new();
        for ((source, _), copies) in copies.into_iter().filter(|(_, copies)| *copies >= MANY_COPIES) {
            let most = most.entry(source.to_owned()).or_default();
            *most = copies.max(*most);
        }
        for (source, copies) in most {
            let what = format!("one message goes to {copies} queues, and is stored that many times");
            let fix = "measure it (docs/benchmarks.md); readers of one stream with a native client each need no copy";
            self.findings.add(code::B_FANOUT, &Entity::of(self.vhost, "exchange", source), what, fix);
        }
    }

    fn refuse(&mut self, code: &'static Code, entity: &Entity, what: String, fix: impl Into<String>) {
        self.refused.insert((entity.kind == "exchange", entity.name.clone()));
        self.findings.add(code, entity, what, fix);
    }

    /// Adds what `docs/mapping.md` says is still different of a feature.
    fn differs(&mut self, code: &'static Code, entity: &Entity, area: Area, feature: &str, what: &str) {
        if let Some(text) = differences::of(area, feature, self.way()) {
            self.findings.add(code, entity, format!("{what} '{feature}': {text}"), "nothing, if that suits you");
        }
    }
}

fn is_hashed(vhost: &str, queue: &str) -> bool {
    let plain = format!("{}{}_{}", name::STREAM_PREFIX, name::vhost_token(vhost), name::token(queue));
    name::stream(vhost, queue) != plain
}

/// What can be done about a type of exchange that is not there, with the plug-in that it comes from.
fn unknown_type(kind: &str) -> String {
    let plugin = match kind {
        "x-modulus-hash" => Some("rabbitmq_sharding"),
        "x-random" => Some("rabbitmq_random_exchange"),
        "x-recent-history" => Some("rabbitmq_recent_history_exchange"),
        "x-jms-topic" => Some("rabbitmq_jms_topic_exchange"),
        _ => None,
    };
    let from = plugin.map(|plugin| format!(", of RabbitMQ's plug-in {plugin},")).unwrap_or_default();
    format!("the type '{kind}'{from} is not there: route with another type, or keep it on RabbitMQ")
}
