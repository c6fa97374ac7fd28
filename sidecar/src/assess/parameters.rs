//! Runtime parameters: shovels, federation, limits.

use super::code;
use super::finding::{Entity, Findings};
use super::inventory::Inventory;

/// Global parameters that only say which cluster it is.
const ORIGIN: [&str; 2] = ["cluster_name", "internal_cluster_id"];

/// The versions that were compared with RabbitMQ itself.
const COMPARED: &str = "3.10.";

pub(super) fn assess(inventory: &Inventory, findings: &mut Findings) {
    for parameter in &inventory.parameters {
        let entity = Entity::of(&parameter.vhost, "parameter", format!("{} {}", parameter.component, parameter.name));
        let (code, what, fix) = match parameter.component.as_str() {
            "shovel" => (
                code::R_SHOVEL,
                "a shovel moves messages past the bridge: it would not see what JetStream owns".to_owned(),
                "stop it before the weight leaves 0; run the shovel from outside, over AMQP, against the bridge",
            ),
            "federation-upstream" | "federation-upstream-set" => (
                code::R_FEDERATION,
                "federation links go past the bridge: they would not see what JetStream owns".to_owned(),
                "end the federation first; on NATS leaf nodes, mirrors and sources take its place",
            ),
            "vhost-limits" => (
                code::R_LIMIT,
                format!("limits of the vhost are not enforced by JetStream: {}", parameter.value),
                "limit connections and streams in the NATS account",
            ),
            _ => (
                code::R_OTHER,
                "a runtime parameter that is not known: what it does is not carried over".to_owned(),
                "look at the plug-in that it belongs to",
            ),
        };
        findings.add(code, &entity, what, fix);
    }
    for name in inventory.global_parameters.iter().filter(|name| !ORIGIN.contains(&name.as_str())) {
        let entity = Entity::broker("global parameter", name);
        findings.add(code::R_GLOBAL, &entity, "is not carried over", "look at the plug-in that it belongs to");
    }
    if !inventory.version.starts_with(COMPARED) {
        let entity = Entity::broker("rabbitmq", &inventory.version);
        let what = "behaviour was compared with RabbitMQ 3.10; other versions have other defaults";
        let fix = "read the release notes between; a quorum queue of RabbitMQ 4 has a delivery limit of 20 unless told otherwise";
        findings.add(code::V_VERSION, &entity, what, fix);
    }
}
