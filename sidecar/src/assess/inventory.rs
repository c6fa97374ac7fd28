//! What RabbitMQ has: an export of its definitions, read.

use std::collections::BTreeMap;

use amqp_compat::backend::{Binding, ExchangeDeclare, QueueDeclare};
use amqp_compat::model;
use amqp_compat::model::arguments;
use amqp_compat::model::policy::Scope;
use amqp_compat::model::queue::QueueKind;
use serde_json::{Map, Value};

use super::code::{Severity, V_UNREAD};
use super::digest::OF_THE_SIDECAR;
use super::finding::{Entity, Finding};
use super::live::Live;
use crate::management::documents::definitions::read_binding;
use crate::management::documents::fields::Fields;
use crate::management::documents::refusal::Refusal;
use crate::management::documents::{exchange, policy, queue};

/// A broker's definitions.
#[derive(Debug, Default)]
pub struct Inventory {
    /// RabbitMQ's version, such as `3.10.8`.
    pub version: String,
    /// The vhosts that are looked at, and what was declared in each.
    pub vhosts: BTreeMap<String, Declared>,
    /// Who may log in.
    pub users: Vec<User>,
    /// What they may do.
    pub permissions: Vec<Permission>,
    /// What they may do with topics: user, vhost, exchange.
    pub topic_permissions: Vec<(String, String, String)>,
    /// Shovels, federation, limits.
    pub parameters: Vec<Parameter>,
    /// Names of global parameters.
    pub global_parameters: Vec<String>,
    /// Policies, those of operators included.
    pub policies: Vec<Policy>,
    /// What was not understood.
    pub unread: Vec<Finding>,
    /// What the management API told besides.
    pub live: Option<Live>,
}

/// What one vhost has.
#[derive(Debug, Default)]
pub struct Declared {
    /// The type that a queue has which names none, where that is not the classic one.
    pub default_queue_type: Option<String>,
    /// Exchanges, but for those that every vhost has.
    pub exchanges: Vec<ExchangeDeclare>,
    /// Queues.
    pub queues: Vec<QueueDeclare>,
    /// Bindings, but for those of the default exchange, and whether each leads to a queue.
    pub bindings: Vec<(Binding, bool)>,
}

/// A user.
#[derive(Debug)]
pub struct User {
    /// The name.
    pub name: String,
    /// `administrator` and the like.
    pub tags: Vec<String>,
    /// Limits of connections and channels, as JSON.
    pub limits: Map<String, Value>,
}

/// What a user may do in a vhost: three regular expressions.
#[derive(Debug)]
pub struct Permission {
    /// Who.
    pub user: String,
    /// Where.
    pub vhost: String,
    /// Names that may be configured, written and read.
    pub patterns: [String; 3],
}

/// A runtime parameter.
#[derive(Debug)]
pub struct Parameter {
    /// Its vhost.
    pub vhost: String,
    /// What it is for: `shovel`, `federation-upstream`, ...
    pub component: String,
    /// Its name.
    pub name: String,
    /// Its value, as JSON.
    pub value: Value,
}

/// A policy.
#[derive(Debug)]
pub struct Policy {
    /// Its vhost.
    pub vhost: String,
    /// Its name.
    pub name: String,
    /// Whether it is an operator's.
    pub is_operator: bool,
    /// The regular expression that names are to contain.
    pub pattern: String,
    /// `queues`, `exchanges` or `all`.
    pub apply_to: String,
    /// What it sets.
    pub definition: Map<String, Value>,
    /// What the gateway says to it.
    pub taken: Result<model::policy::Policy, String>,
}

/// The lists that are read; what else a document has is reported.
const KNOWN: [&str; 10] = [
    "vhosts",
    "users",
    "permissions",
    "topic_permissions",
    "parameters",
    "global_parameters",
    "policies",
    "exchanges",
    "queues",
    "bindings",
];

impl Inventory {
    /// Reads an export of definitions. `only` are the vhosts to look at, or none for all; an export of one vhost names none,
    /// and takes the first of them, else `/`.
    ///
    /// # Errors
    /// What is wrong, with the entry and field, and the flag where it is one's.
    pub fn read(document: Value, only: &[String]) -> Result<Self, String> {
        let Value::Object(document) = document else {
            return Err("not an export of definitions: no JSON object".to_owned());
        };
        let version = version(&document)?;
        let scope = match document.contains_key("vhosts") {
            true => None,
            false => Some(only.first().cloned().unwrap_or_else(|| "/".to_owned())),
        };
        let mut reader = Reader { document, scope, inventory: Self { version, ..Self::default() } };
        reader.vhosts(only)?;
        reader.broker()?;
        reader.policies()?;
        reader.topology()?;
        reader.rest();
        Ok(reader.inventory)
    }

    /// The type of a queue, as its argument says it; classic where there is none.
    pub fn queue_kind(&self, vhost: &str, queue: &str) -> QueueKind {
        let declared = self.vhosts.get(vhost);
        let found = declared.and_then(|declared| declared.queues.iter().find(|each| each.queue.as_str() == queue));
        found.map_or(QueueKind::Classic, kind_of)
    }
}

/// The type that a declaration asks for; classic where it names none that is known.
pub fn kind_of(asked: &QueueDeclare) -> QueueKind {
    match asked.arguments.inner().get("x-queue-type").and_then(arguments::text) {
        Some("quorum") => QueueKind::Quorum,
        Some("stream") => QueueKind::Stream,
        _ => QueueKind::Classic,
    }
}

/// The version that the export is of: 3.x and 4.x have this form.
fn version(document: &Map<String, Value>) -> Result<String, String> {
    let named = ["rabbit_version", "rabbitmq_version"].into_iter().find_map(|name| document.get(name)?.as_str());
    let Some(version) = named else {
        return Err(
            "not an export of definitions: it has no `rabbit_version`; `rabbitmqctl export_definitions FILE` and \
                    `GET /api/definitions` make one"
                .to_owned(),
        );
    };
    match version.split('.').next() {
        Some("3" | "4") => Ok(version.to_owned()),
        _ => Err(format!("`rabbit_version` is '{version}': only RabbitMQ 3 and 4 are understood")),
    }
}

struct Reader {
    document: Map<String, Value>,
    scope: Option<String>,
    inventory: Inventory,
}

impl Reader {
    fn take(&mut self, name: &str) -> Result<Vec<(String, Fields)>, String> {
        let value = self.document.remove(name).unwrap_or(Value::Null);
        let mut fields = Fields::of(Value::Object([(name.to_owned(), value)].into_iter().collect()), name)
            .map_err(|refusal| refusal.reason)?;
        let entries = fields.take_list(name).map_err(|refusal| refusal.reason)?;
        Ok(entries.into_iter().enumerate().map(|(index, entry)| (format!("{name}[{index}]"), entry)).collect())
    }

    fn vhosts(&mut self, only: &[String]) -> Result<(), String> {
        let mut vhosts = BTreeMap::new();
        for (place, entry) in self.take("vhosts")? {
            let name = text(&entry, "name", &place)?;
            let own = text(&entry, "default_queue_type", &place).unwrap_or_default();
            let own = Some(own).filter(|kind| !["", "undefined", "classic"].contains(&kind.as_str()));
            vhosts.insert(name, Declared { default_queue_type: own, ..Declared::default() });
        }
        if let Some(scope) = &self.scope {
            vhosts.insert(scope.clone(), Declared::default());
        }
        for name in only {
            if !vhosts.contains_key(name) {
                let there: Vec<&str> = vhosts.keys().map(String::as_str).collect();
                return Err(format!("--vhost '{name}': there is no such vhost; there are: {}", there.join(", ")));
            }
        }
        vhosts.retain(|name, _| only.is_empty() || only.contains(name));
        self.inventory.vhosts = vhosts;
        Ok(())
    }

    /// The vhost of an entry, if it is one that is looked at.
    fn vhost(&self, entry: &Fields, place: &str) -> Result<Option<String>, String> {
        let name = match &self.scope {
            Some(scope) => scope.clone(),
            None => text(entry, "vhost", place)?,
        };
        Ok(Some(name).filter(|name| self.inventory.vhosts.contains_key(name)))
    }

    fn broker(&mut self) -> Result<(), String> {
        for (place, entry) in self.take("users")? {
            let tags = match entry.get("tags") {
                Some(Value::Array(tags)) => tags.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
                // Before 3.9 a text.
                Some(Value::String(tags)) => {
                    tags.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(str::to_owned).collect()
                }
                _ => Vec::new(),
            };
            let limits = entry.get("limits").and_then(Value::as_object).cloned().unwrap_or_default();
            self.inventory.users.push(User { name: text(&entry, "name", &place)?, tags, limits });
        }
        for (place, entry) in self.take("permissions")? {
            let Some(vhost) = self.vhost(&entry, &place)? else { continue };
            let of = |name| text(&entry, name, &place);
            let patterns = [of("configure")?, of("write")?, of("read")?];
            self.inventory.permissions.push(Permission { user: of("user")?, vhost, patterns });
        }
        for (place, entry) in self.take("topic_permissions")? {
            let Some(vhost) = self.vhost(&entry, &place)? else { continue };
            let (user, exchange) = (text(&entry, "user", &place)?, text(&entry, "exchange", &place)?);
            self.inventory.topic_permissions.push((user, vhost, exchange));
        }
        for (place, entry) in self.take("global_parameters")? {
            self.inventory.global_parameters.push(text(&entry, "name", &place)?);
        }
        Ok(())
    }

    fn policies(&mut self) -> Result<(), String> {
        let read = |vhost: String, name: String, is_operator: bool, body: &Fields, place: &str| {
            let scope = if is_operator { Scope::Operator } else { Scope::User };
            let taken = policy::read(scope, &name, body)
                .map_err(|refusal| refusal.reason.replace("\n\n", ": ").trim_end().to_owned());
            let definition = body.get("definition").and_then(Value::as_object).cloned().unwrap_or_default();
            let apply_to = Some(text(body, "apply-to", place)?).filter(|name| !name.is_empty());
            let apply_to = apply_to.unwrap_or_else(|| "all".to_owned());
            Ok::<_, String>(Policy {
                vhost,
                name,
                is_operator,
                pattern: text(body, "pattern", place)?,
                apply_to,
                definition,
                taken,
            })
        };
        for (place, entry) in self.take("policies")? {
            let Some(vhost) = self.vhost(&entry, &place)? else { continue };
            let policy = read(vhost, text(&entry, "name", &place)?, false, &entry, &place)?;
            self.inventory.policies.push(policy);
        }
        for (place, entry) in self.take("parameters")? {
            let Some(vhost) = self.vhost(&entry, &place)? else { continue };
            let (component, name) = (text(&entry, "component", &place)?, text(&entry, "name", &place)?);
            let value = entry.get("value").cloned().unwrap_or(Value::Null);
            if component == policy::OPERATOR {
                let body = Fields::of(value, &place).map_err(|refusal| refusal.reason)?;
                self.inventory.policies.push(read(vhost, name, true, &body, &place)?);
            } else {
                self.inventory.parameters.push(Parameter { vhost, component, name, value });
            }
        }
        Ok(())
    }

    fn topology(&mut self) -> Result<(), String> {
        for (place, entry) in self.take("exchanges")? {
            let Some(vhost) = self.vhost(&entry, &place)? else { continue };
            let name = text(&entry, "name", &place)?;
            if name.is_empty() || name.starts_with("amq.") {
                continue;
            }
            let read = exchange::declare(&name, &entry);
            self.put(&vhost, "exchange", &name, read, |declared, asked| declared.exchanges.push(asked));
        }
        for (place, mut entry) in self.take("queues")? {
            let Some(vhost) = self.vhost(&entry, &place)? else { continue };
            let name = text(&entry, "name", &place)?;
            if name.starts_with(OF_THE_SIDECAR) {
                continue;
            }
            // A request over HTTP may not ask for it; RabbitMQ's list of queues tells it.
            let exclusive = matches!(entry.take("exclusive"), Some(Value::Bool(true)));
            let read = queue::declare(&name, &entry).map(|asked| QueueDeclare { exclusive, ..asked });
            self.put(&vhost, "queue", &name, read, |declared, asked| declared.queues.push(asked));
        }
        for (place, entry) in self.take("bindings")? {
            let Some(vhost) = self.vhost(&entry, &place)? else { continue };
            if text(&entry, "source", &place)?.is_empty() {
                continue;
            }
            let of = |name| text(&entry, name, &place);
            let arguments = entry.get("arguments").unwrap_or(&Value::Null);
            let (source, destination) = (of("source")?, of("destination")?);
            let name = binding_name(&source, &of("destination_type")?, &destination, &of("routing_key")?, arguments);
            let read = read_binding(&entry);
            self.put(&vhost, "binding", &name, read, |declared, asked| declared.bindings.push(asked));
        }
        Ok(())
    }

    /// Keeps what was read, or says that it was not.
    fn put<T>(
        &mut self,
        vhost: &str,
        kind: &'static str,
        name: &str,
        read: Result<T, Refusal>,
        keep: impl FnOnce(&mut Declared, T),
    ) {
        match (read, self.inventory.vhosts.get_mut(vhost)) {
            (Ok(asked), Some(declared)) => keep(declared, asked),
            (Ok(_), None) => {}
            (Err(refusal), _) => self.unread(Entity::of(vhost, kind, name), refusal.reason),
        }
    }

    fn unread(&mut self, entity: Entity, what: String) {
        self.inventory.unread.push(Finding {
            code: V_UNREAD,
            severity: Severity::Caveat,
            entity,
            what,
            fix: "look at it by hand: it was not assessed".to_owned(),
        });
    }

    fn rest(&mut self) {
        let left: Vec<String> = self
            .document
            .iter()
            .filter(|(name, value)| !KNOWN.contains(&name.as_str()) && (value.is_array() || value.is_object()))
            .filter(|(_, value)| !matches!(value, Value::Array(items) if items.is_empty()))
            .map(|(name, _)| name.clone())
            .collect();
        for name in left {
            self.unread(Entity::broker("definitions", name), "a part of the definitions that is not known".to_owned());
        }
    }
}

fn text(entry: &Fields, name: &str, place: &str) -> Result<String, String> {
    entry.text(name).map(str::to_owned).map_err(|refusal| format!("{place}: {}", refusal.reason))
}

/// A binding for people, and apart from any other one.
pub(crate) fn binding_name(source: &str, kind: &str, destination: &str, key: &str, arguments: &Value) -> String {
    let arguments = match arguments {
        Value::Object(entries) if !entries.is_empty() => format!(", arguments {arguments}"),
        _ => String::new(),
    };
    format!("{source} -> {kind} {destination}, key '{key}'{arguments}")
}
