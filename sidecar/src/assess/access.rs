//! Users, what they may do, and their tags.

use amqp_compat::model::access::Permission;

use super::Way;
use super::code;
use super::finding::{Entity, Findings};
use super::inventory::Inventory;

/// A pattern that allows everything.
const EVERYTHING: &str = ".*";

pub(super) fn assess(inventory: &Inventory, findings: &mut Findings) {
    let after = match findings.way {
        Way::Sidecar => "RabbitMQ enforces it until `detach`; after it every user may do everything",
        Way::Serve => "`serve` does not enforce them",
    };
    let fix = "give what must be kept apart a vhost or a NATS account of its own";
    for permission in &inventory.permissions {
        let [configure, write, read] = &permission.patterns;
        let may = format!("may configure '{configure}', write '{write}', read '{read}'");
        let what = match (findings.way, Permission::new(configure, write, read)) {
            (Way::Sidecar, _) if permission.patterns.iter().any(|pattern| pattern != EVERYTHING) => {
                format!("{may}: {after}")
            }
            (Way::Serve, Err(why)) => format!("{may}: {why}"),
            (Way::Sidecar, _) | (Way::Serve, Ok(_)) => continue,
        };
        findings.add(code::U_PERMISSION, &Entity::of(&permission.vhost, "user", &permission.user), what, fix);
    }
    for (user, vhost, exchange) in &inventory.topic_permissions {
        let what = format!("has topic permissions on exchange '{exchange}': {after}");
        findings.add(code::U_TOPIC, &Entity::of(vhost, "user", user), what, fix);
    }
    for user in &inventory.users {
        let entity = Entity::broker("user", &user.name);
        if !user.tags.is_empty() && findings.way == Way::Sidecar {
            let what = format!("tags {} are not carried over", user.tags.join(", "));
            findings.add(code::U_TAG, &entity, what, "nothing: a sidecar has no HTTP API of RabbitMQ's");
        }
        if !user.limits.is_empty() {
            let what = format!("limits are not enforced by JetStream: {}", serde_json::json!(user.limits));
            findings.add(code::R_LIMIT, &entity, what, "limit connections in the NATS account");
        }
        let (what, fix) = match findings.way {
            Way::Sidecar => (
                "logs in with its password of RabbitMQ, also after `detach` if it has logged in through the sidecar before",
                "nothing; `--user NAME:PASSWORD` names one for after `detach`",
            ),
            Way::Serve => (
                "its password, tags and permissions come with the definitions",
                "import them over the HTTP API of `serve --management`, or start `serve` with `--user NAME:PASSWORD`",
            ),
        };
        findings.add(code::U_PASSWORD, &entity, what, fix);
    }
}
