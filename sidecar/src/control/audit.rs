//! What RabbitMQ routes that JetStream would not: asked from RabbitMQ's management API before NATS may own anything.
//!
//! The sidecar knows what is declared through it. A queue that somebody bound past it would silently get no copy of what
//! NATS owns, and a policy that expires, limits or dead-letters would silently not be in force there. So the weight is
//! raised only after RabbitMQ's own list was compared with ours, or after an operator has vouched for it.

use std::collections::BTreeMap;
use std::time::Duration;

use amqp_compat::model::features::{self, Area, Support};
use amqp_compat::model::vhost::BindingDefinition;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use url::Url;

use crate::control_api::Unmapped;
use crate::dual::shared::Routes;
use crate::http::ask::{exchange, split};

/// How it is known that JetStream routes like RabbitMQ.
#[derive(Debug)]
pub enum Audit {
    /// RabbitMQ's management API is asked.
    Management(Management),
    /// An operator says that everything was declared through this sidecar, and that no policy matters.
    Trusted,
    /// Nobody said: the weight is not raised.
    Unknown,
}

/// RabbitMQ's management API.
#[derive(Debug)]
pub struct Management {
    address: String,
    authorization: String,
}

/// How long the management API may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A binding as `GET /api/bindings` lists it.
#[derive(Debug, Clone, Deserialize)]
struct RabbitBinding {
    source: String,
    vhost: String,
    destination: String,
    destination_type: String,
    routing_key: String,
}

/// A policy as `GET /api/policies` lists it.
#[derive(Debug, Clone, Deserialize)]
struct Policy {
    vhost: String,
    name: String,
    definition: Map<String, Value>,
}

impl std::fmt::Display for Management {
    /// Its address, without user and password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}", self.address)
    }
}

impl Management {
    /// The management API at `http://USER:PASSWORD@HOST:PORT`; the user needs the `monitoring` tag.
    ///
    /// # Errors
    /// A text for people: not such a URL.
    pub fn from_url(url: &str) -> Result<Self, String> {
        let url = Url::parse(url).map_err(|error| format!("not a URL: {error}"))?;
        if url.scheme() != "http" {
            return Err(format!("{}: only http:// is there; reach https over a local proxy", url.scheme()));
        }
        let host = url.host_str().ok_or("names no host")?;
        let plain = |text: &str| match percent_decode_str(text).decode_utf8() {
            Ok(text) => Ok(text.into_owned()),
            Err(_) => Err("the user or password is not percent-encoded UTF-8".to_owned()),
        };
        let user = if url.username().is_empty() { "guest".to_owned() } else { plain(url.username())? };
        let password = plain(url.password().unwrap_or("guest"))?;
        Ok(Self {
            address: format!("{host}:{}", url.port().unwrap_or(15672)),
            authorization: STANDARD.encode(format!("{user}:{password}")),
        })
    }

    /// Bindings and policies of these vhosts that JetStream does not have.
    ///
    /// # Errors
    /// A text for people: the management API or JetStream did not answer.
    pub async fn findings(&self, vhosts: &[String], routes: &dyn Routes) -> Result<Vec<Unmapped>, String> {
        let theirs: Vec<RabbitBinding> = self.list("/api/bindings").await?;
        let mut policies: Vec<Policy> = self.list("/api/policies").await?;
        policies.extend(self.list::<Policy>("/api/operator-policies").await?);
        let mut findings = Vec::new();
        for vhost in vhosts {
            let ours = routes.bindings(vhost).await.map_err(|error| format!("vhost {vhost}: {error}"))?;
            findings.extend(unknown_bindings(vhost, &theirs, &ours));
            findings.extend(policies.iter().filter(|p| p.vhost == *vhost).filter_map(in_force));
        }
        Ok(findings)
    }

    async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, String> {
        self.ask(path).await
    }

    /// What the management API answers to a GET.
    ///
    /// # Errors
    /// A text for people.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        let Self { address, authorization } = self;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nAuthorization: Basic {authorization}\r\n\r\n");
        let at = format!("RabbitMQ's management API at {address}");
        let answer = match tokio::time::timeout(PATIENCE, exchange(address, &request)).await {
            Ok(answer) => answer.map_err(|error| format!("{at} does not answer: {error}"))?,
            Err(_) => return Err(format!("{at} did not answer within {PATIENCE:?}")),
        };
        match split(&answer) {
            Some((200, body)) => {
                serde_json::from_slice(body).map_err(|e| format!("{at}{path} was not understood: {e}"))
            }
            Some((401, _)) => Err(format!("{at} refused the user or password, or the user has no `monitoring` tag")),
            Some((status, _)) => Err(format!("{at}{path} answered with HTTP status {status}")),
            None => Err(format!("what answers at {address} does not speak HTTP")),
        }
    }
}

/// Bindings of RabbitMQ, other than the default exchange's, that are not among ours. Arguments are compared by count: as
/// many bindings of the same names and key.
fn unknown_bindings(vhost: &str, theirs: &[RabbitBinding], ours: &[BindingDefinition]) -> Vec<Unmapped> {
    let mut counts: BTreeMap<(&str, bool, &str, &str), i64> = BTreeMap::new();
    for binding in theirs.iter().filter(|b| b.vhost == vhost && !b.source.is_empty()) {
        let to_queue = binding.destination_type == "queue";
        *counts.entry((&binding.source, to_queue, &binding.destination, &binding.routing_key)).or_default() += 1;
    }
    for binding in ours {
        let (to_queue, destination) = (binding.destination.is_queue(), &**binding.destination.name());
        if let Some(count) = counts.get_mut(&(&*binding.source, to_queue, destination, &*binding.routing_key)) {
            *count -= 1;
        }
    }
    let left = counts.into_iter().filter(|(_, count)| *count > 0);
    left.map(|((source, to_queue, destination, key), _)| Unmapped {
        vhost: vhost.to_owned(),
        kind: "binding".to_owned(),
        name: format!("{source} -> {} {destination}, key '{key}'", if to_queue { "queue" } else { "exchange" }),
        reason: "RabbitMQ has it, and it was not declared through this sidecar: its queue would get no copy".to_owned(),
    })
    .collect()
}

/// What keys of a policy begin with that mirror a queue inside RabbitMQ.
pub(crate) const MIRRORS: &str = "ha-";

/// The keys of a policy that applications would miss: not those that only say where or how RabbitMQ keeps a queue.
pub(crate) fn missed(definition: &Map<String, Value>) -> Vec<&str> {
    let is_hint = |key: &str| features::find(Area::Policy, key).is_some_and(|row| row.support == Support::Hint);
    definition.keys().map(String::as_str).filter(|key| !key.starts_with(MIRRORS) && !is_hint(key)).collect()
}

/// The finding about a policy, when applications would notice that it is not in force.
fn in_force(policy: &Policy) -> Option<Unmapped> {
    let keys = missed(&policy.definition);
    (!keys.is_empty()).then(|| Unmapped {
        vhost: policy.vhost.clone(),
        kind: "policy".to_owned(),
        name: policy.name.clone(),
        reason: format!("policies are not carried over, and this one sets {}", keys.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use amq_protocol::types::FieldTable;
    use amqp_compat::model::vhost::Destination;

    use super::*;

    fn theirs(source: &str, destination: &str, key: &str) -> RabbitBinding {
        RabbitBinding {
            source: source.into(),
            vhost: "/".into(),
            destination: destination.into(),
            destination_type: "queue".into(),
            routing_key: key.into(),
        }
    }

    fn ours(source: &str, destination: &str, key: &str) -> BindingDefinition {
        BindingDefinition {
            source: source.into(),
            destination: Destination::Queue(destination.into()),
            routing_key: key.into(),
            arguments: FieldTable::default(),
        }
    }

    #[test]
    fn a_binding_made_past_the_sidecar_is_found_and_the_default_exchange_needs_none() {
        let rabbit = [theirs("", "q", "q"), theirs("x", "q", "a"), theirs("x", "other", "a"), theirs("x", "q", "b")];
        let known = [ours("x", "q", "a"), ours("x", "q", "only-here")];
        let names: Vec<String> = unknown_bindings("/", &rabbit, &known).into_iter().map(|f| f.name).collect();
        assert_eq!(names, ["x -> queue other, key 'a'", "x -> queue q, key 'b'"]);
        assert!(unknown_bindings("another vhost", &rabbit, &[]).is_empty());
    }

    #[test]
    fn bindings_that_differ_in_arguments_alone_are_counted() {
        let rabbit = [theirs("h", "q", ""), theirs("h", "q", "")];
        assert_eq!(unknown_bindings("/", &rabbit, &[ours("h", "q", "")]).len(), 1);
        assert!(unknown_bindings("/", &rabbit, &[ours("h", "q", ""), ours("h", "q", "")]).is_empty());
    }

    #[test]
    fn a_policy_counts_when_applications_would_miss_it() {
        let policy = |definition: Value| Policy {
            vhost: "/".into(),
            name: "p".into(),
            definition: definition.as_object().cloned().unwrap_or_default(),
        };
        assert_eq!(in_force(&policy(serde_json::json!({ "ha-mode": "all", "queue-mode": "lazy" }))), None);
        let found = in_force(&policy(serde_json::json!({ "ha-mode": "all", "message-ttl": 1000 }))).expect("a finding");
        assert!(found.reason.ends_with("sets message-ttl"), "{found:?}");
    }

    #[test]
    fn a_management_url_is_read_with_its_user_and_bad_ones_are_told() {
        let management = Management::from_url("http://me:p%40ss@rabbit").expect("valid");
        assert_eq!(management.address, "rabbit:15672");
        assert_eq!(STANDARD.decode(&management.authorization).expect("base64"), b"me:p@ss");
        for bad in ["rabbit:15672", "https://rabbit", "http://a:%ff@rabbit"] {
            assert!(Management::from_url(bad).is_err(), "{bad}");
        }
    }
}
