//! Who is connected and how, and who consumes.

use std::collections::BTreeMap;

use amqp_compat::model::consumer::ConsumerArguments;
use amqp_compat::model::features::{Area, FEATURES, Support};
use amqp_compat::model::queue::display;

use super::code;
use super::finding::{Entity, Findings};
use super::inventory::Inventory;
use super::live::Live;
use super::{Way, differences};

pub(super) fn assess(inventory: &Inventory, live: &Live, findings: &mut Findings) {
    connections(live, findings);
    consumers(inventory, live, findings);
    for queue in live.queues.iter().filter(|queue| queue.messages > 0 && queue.consumers == 0) {
        if inventory.vhosts.contains_key(&queue.vhost) {
            let what = format!("has {} messages and no consumer: it will not run empty by itself", queue.messages);
            let fix = "consume or purge it, or start its consumer; `detach` asks for empty queues";
            findings.add(code::K_NONE, &Entity::of(&queue.vhost, "queue", &queue.name), what, fix);
        }
    }
}

/// What neither definitions nor the management API tell: how clients use the protocol.
pub(super) fn unseen(findings: &mut Findings) {
    let by_clients = |area| matches!(area, Area::Method | Area::Message);
    let refused = FEATURES.iter().filter(|feature| feature.support == Support::Refused && by_clients(feature.area));
    let names: Vec<&str> = refused.map(|feature| feature.name).collect();
    let what = format!("whether a client uses what is refused cannot be seen from here: {}", names.join(", "));
    let fix = "docs/mapping.md says of each what RabbitMQ does; try the applications against `serve` once";
    findings.add(code::C_UNSEEN, &Entity::broker("client", "any"), what, fix);
}

fn connections(live: &Live, findings: &mut Findings) {
    let mut clients: BTreeMap<&str, usize> = BTreeMap::new();
    for each in &live.connections {
        let entity = Entity::of(&each.vhost, "connection", &each.name);
        if !each.protocol.is_empty() && each.protocol != "AMQP 0-9-1" {
            let what = format!("speaks {}, and the bridge AMQP 0-9-1", each.protocol);
            let fix = "nats-server speaks MQTT itself; other protocols need a client of AMQP 0-9-1 or NATS";
            findings.add(code::C_PROTOCOL, &entity, what, fix);
            continue;
        }
        *clients.entry(each.client.as_str()).or_default() += 1;
        if each.mechanism == "EXTERNAL" {
            let what = differences::of(Area::Method, "login EXTERNAL", findings.way).unwrap_or_default();
            let fix = match findings.way {
                Way::Sidecar => "give the client a user and a password",
                Way::Serve => "start `serve` with --tls-client-ca, and with a user of the certificate's common name",
            };
            findings.add(code::C_LOGIN, &entity, format!("logs in by EXTERNAL: {what}"), fix);
        }
        if each.is_tls {
            let fix =
                "start the listener with --listen-tls, --tls-cert and --tls-key, under a name that the client trusts";
            findings.add(code::C_TLS, &entity, "is encrypted with TLS", fix);
        }
    }
    for (client, count) in clients {
        let name = if client.is_empty() { "a client that does not say what it is" } else { client };
        let plural = if count == 1 { "" } else { "s" };
        let what = format!("{count} connection{plural} of it");
        findings.add(code::C_CLIENT, &Entity::broker("client", name), what, "try its application against `serve` once");
    }
}

fn consumers(inventory: &Inventory, live: &Live, findings: &mut Findings) {
    for each in &live.consumers {
        let entity = Entity::of(&each.vhost, "consumer", format!("{} of queue {}", each.tag, each.queue));
        match &each.arguments {
            Err(why) => findings.add(code::V_UNREAD, &entity, why, "look at it by hand: it was not assessed"),
            Ok(arguments) => {
                let kind = inventory.queue_kind(&each.vhost, &each.queue);
                let read = ConsumerArguments::read(arguments, kind, &display(&each.vhost, &each.queue));
                if let Err(error) = &read {
                    let fix = "have its application consume without that argument";
                    findings.add(code::K_ARG, &entity, error.to_string(), fix);
                }
                let honoured = arguments.inner().keys().filter(|_| read.is_ok());
                for name in honoured.map(|argument| argument.as_str()) {
                    if let Some(text) = differences::of(Area::ConsumerArgument, name, findings.way) {
                        let what = format!("argument '{name}': {text}");
                        findings.add(code::Q_DIFFERS, &entity, what, "nothing, if that suits you");
                    }
                }
            }
        }
        if each.acknowledges && each.prefetch == 0 {
            let limit = differences::of(Area::Method, "basic.qos", findings.way).unwrap_or_default();
            let what = format!("has no prefetch: {limit}");
            findings.add(code::K_PREFETCH, &entity, what, "have its application set one; 100 to 300 suits most");
        }
    }
}
