//! Policies: what they set, on how many queues and exchanges, and whether it would be in force.

use amqp_compat::model::features::{self, Area, Support};
use regex::bytes::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use super::code;
use super::finding::{Entity, Findings};
use super::inventory::{Declared, Inventory, Policy};
use super::{Way, differences};
use crate::control::audit::{self, MIRRORS};

pub(super) fn assess(inventory: &Inventory, findings: &mut Findings, entities: &mut Vec<Entity>) {
    for policy in &inventory.policies {
        let kind = if policy.is_operator { "operator policy" } else { "policy" };
        let entity = Entity::of(&policy.vhost, kind, &policy.name);
        let reach = inventory.vhosts.get(&policy.vhost).map(|declared| reach(policy, declared)).unwrap_or_default();
        let keys = || policy.definition.keys().map(String::as_str);
        if keys().any(|key| key.starts_with(MIRRORS)) {
            let what = format!("mirrors {reach}, which is not carried over");
            let fix = "on three NATS servers: --replicas 3 for classic queues, or `x-queue-type: quorum` for those that need it";
            findings.add(code::P_MIRROR, &entity, what, fix);
        }
        match findings.way {
            Way::Sidecar => beside(policy, &entity, &reach, findings),
            Way::Serve => alone(policy, &entity, &reach, findings),
        }
        let is_hint =
            |key: &str| features::find(Area::Policy, key).is_some_and(|feature| feature.support == Support::Hint);
        if keys().all(is_hint) {
            let keys: Vec<&str> = keys().collect();
            let what = format!("sets {}: about RabbitMQ's own storage or placement", shown(&policy.definition, &keys));
            findings.add(code::P_HINT, &entity, what, "nothing");
        }
        if reach == Reach::default() {
            findings.add(code::P_IDLE, &entity, "matches nothing that is there now", "delete it, if it is a leftover");
        }
        entities.push(entity);
    }
}

/// A sidecar has no policies: by the same list it refuses to raise the weight.
fn beside(policy: &Policy, entity: &Entity, reach: &Reach, findings: &mut Findings) {
    let missed = audit::missed(&policy.definition);
    if missed.is_empty() {
        return;
    }
    let what =
        format!("sets {} for {reach}; in a sidecar it would not be in force", shown(&policy.definition, &missed));
    let arguments: Vec<String> = missed.iter().map(|key| argument(key)).collect();
    let fix = format!(
        "have the applications declare {} instead (a queue that is there has to be deleted first), then delete the policy; or \
         move with `serve` (--way serve), which has policies",
        arguments.join(", ")
    );
    findings.add(code::P_KEY, entity, what, fix);
}

/// `serve` has policies, and says itself whether it takes this one.
fn alone(policy: &Policy, entity: &Entity, reach: &Reach, findings: &mut Findings) {
    let only_mirrors = policy.definition.keys().all(|key| key.starts_with(MIRRORS));
    if let Err(why) = &policy.taken
        && !only_mirrors
    {
        let fix = "put it without what is named, and see in docs/mapping.md what takes its place";
        findings.add(code::P_KEY, entity, format!("for {reach}: {why}"), fix);
    }
    for key in policy.definition.keys() {
        if let Some(text) = differences::of(Area::Policy, key, findings.way).filter(|_| policy.taken.is_ok()) {
            findings.add(code::P_DIFFERS, entity, format!("key '{key}': {text}"), "nothing, if that suits you");
        }
    }
}

/// What a policy matches.
#[derive(Debug, Default, PartialEq)]
struct Reach {
    queues: usize,
    exchanges: usize,
    /// The pattern is none that can be tried here.
    is_unknown: bool,
}

impl std::fmt::Display for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_unknown {
            return f.write_str("what its pattern matches (it cannot be tried here)");
        }
        let plural = |count| if count == 1 { "" } else { "s" };
        match (self.queues, self.exchanges) {
            (queues, 0) => write!(f, "{queues} queue{}", plural(queues)),
            (0, exchanges) => write!(f, "{exchanges} exchange{}", plural(exchanges)),
            (queues, exchanges) => {
                write!(f, "{queues} queue{} and {exchanges} exchange{}", plural(queues), plural(exchanges))
            }
        }
    }
}

fn reach(policy: &Policy, declared: &Declared) -> Reach {
    // As the gateway matches them.
    let pattern: Result<Regex, _> = RegexBuilder::new(&policy.pattern).unicode(false).size_limit(1 << 20).build();
    let Ok(pattern) = pattern else { return Reach { is_unknown: true, ..Reach::default() } };
    let queues = declared.queues.iter().filter(|queue| pattern.is_match(queue.queue.as_str().as_bytes())).count();
    let exchanges =
        declared.exchanges.iter().filter(|exchange| pattern.is_match(exchange.exchange.as_str().as_bytes())).count();
    Reach {
        queues: if policy.apply_to == "exchanges" { 0 } else { queues },
        exchanges: if policy.apply_to == "queues" { 0 } else { exchanges },
        is_unknown: false,
    }
}

fn shown(definition: &Map<String, Value>, keys: &[&str]) -> String {
    let each = keys.iter().filter_map(|key| Some(format!("{key}={}", definition.get(*key)?)));
    each.collect::<Vec<_>>().join(", ")
}

/// The argument that sets what a key of a policy sets.
fn argument(key: &str) -> String {
    match key {
        "alternate-exchange" => "`alternate-exchange`".to_owned(),
        key => format!("`x-{key}`"),
    }
}
