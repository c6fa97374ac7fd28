//! Sizes: how many streams it will be, what lies in queues, and what NATS takes.

use amqp_compat::backend::QueueDeclare;
use amqp_compat::model::queue::QueueKind;
use foldhash::HashMap;
use serde_json::{Value, json};

use super::code;
use super::finding::{Entity, Findings};
use super::inventory::{Inventory, kind_of};
use super::report::bytes;

/// How many streams one account is recommended to hold; with 10 000, 1.1 GB of memory and 107 s to recover were measured.
const STREAMS: u64 = 10_000;

/// How many streams with three replicas three servers are recommended to hold: each is a Raft group, and so is its consumer.
const REPLICATED: u64 = 1_000;

/// On how many servers a quorum queue or a stream is, where there are as many.
const QUORUM: u64 = 3;

/// Bytes that a stored message takes beside its body: subject, headers and the server's record. 240 were measured for one with two
/// properties.
const OVERHEAD: u64 = 250;

/// What a NATS server and account take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsLimits {
    /// The server's version.
    pub version: String,
    /// The largest message, headers included, in bytes.
    pub max_payload: u64,
    /// Bytes of file storage that are still free, where the account is limited.
    pub free_storage: Option<u64>,
    /// Streams that may still be made, where the account is limited.
    pub free_streams: Option<u64>,
    /// Consumers that may still be made, where the account is limited.
    pub free_consumers: Option<u64>,
    /// Whether each stream must say how large it may become.
    pub max_bytes_required: bool,
    /// Whether the server is one of a cluster.
    pub is_clustered: bool,
}

impl NatsLimits {
    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "version": self.version, "max_payload": self.max_payload, "free_storage": self.free_storage,
            "free_streams": self.free_streams, "free_consumers": self.free_consumers,
            "max_bytes_required": self.max_bytes_required, "clustered": self.is_clustered,
        })
    }
}

/// What JetStream will have to hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Streams: each queue has one, but for an exclusive one, which is in the gateway's memory.
    pub streams: u64,
    /// Durable consumers: each queue has one, but for a stream queue. Each priority in use makes one more.
    pub consumers: u64,
    /// Streams that ask for three servers: those of quorum queues and stream queues.
    pub replicated: u64,
    /// Copies of streams on all servers together.
    pub copies: u64,
    /// Bytes of storage for what lies in queues now, all copies together; where that is known.
    pub disk: Option<u64>,
}

impl Sizes {
    /// The sizes of what there is, with so many replicas of a durable classic queue; `has_three` servers or fewer.
    pub fn of(inventory: &Inventory, replicas: u8, has_three: bool) -> Self {
        let mut sizes = Self { disk: inventory.live.as_ref().map(|_| 0), ..Self::default() };
        let lying: HashMap<(&str, &str), u64> = inventory
            .live
            .iter()
            .flat_map(|live| &live.queues)
            .map(|queue| {
                let size = queue.bytes.saturating_add(queue.messages.saturating_mul(OVERHEAD));
                ((queue.vhost.as_str(), queue.name.as_str()), size)
            })
            .collect();
        for (vhost, declared) in &inventory.vhosts {
            for queue in declared.queues.iter().filter(|queue| !queue.exclusive) {
                let copies = copies(queue, replicas.into(), has_three);
                let kind = kind_of(queue);
                sizes.streams += 1;
                sizes.consumers += u64::from(kind != QueueKind::Stream);
                sizes.replicated += u64::from(kind != QueueKind::Classic);
                sizes.copies += copies;
                let here = lying.get(&(vhost.as_str(), queue.queue.as_str())).copied().unwrap_or_default();
                sizes.disk = sizes.disk.map(|disk| disk.saturating_add(here.saturating_mul(copies)));
            }
        }
        sizes
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "streams": self.streams, "consumers": self.consumers, "replicated_streams": self.replicated,
            "stream_copies": self.copies, "disk_bytes_now": self.disk,
        })
    }
}

/// On how many servers a queue is.
fn copies(queue: &QueueDeclare, replicas: u64, has_three: bool) -> u64 {
    match kind_of(queue) {
        QueueKind::Quorum | QueueKind::Stream if has_three => QUORUM,
        _ if queue.durable => replicas,
        _ => 1,
    }
}

pub(super) fn assess(inventory: &Inventory, nats: Option<&NatsLimits>, sizes: &Sizes, findings: &mut Findings) {
    queues(sizes, findings);
    if sizes.streams > 0 {
        let what = "a confirm means that JetStream has stored the message; by default it is on disk within two minutes";
        let fix = "three replicas, or `sync_interval: always`, where a power cut must lose nothing (docs/migration.md)";
        findings.add(code::S_SYNC, &Entity::broker("nats", "durability"), what, fix);
    }
    let backlog = inventory.live.as_ref().map(|live| live.backlog());
    if let Some((messages, size)) = backlog.filter(|(messages, _)| *messages > 0) {
        let what = format!("{messages} messages ({}) lie in RabbitMQ's queues, and are not carried over", bytes(size));
        let fix =
            "nothing with the sidecar: they are delivered from RabbitMQ; with `serve`, let the queues run empty first";
        findings.add(code::S_BACKLOG, &Entity::broker("rabbitmq", "backlog"), what, fix);
    }
    if let Some(nats) = nats {
        account(nats, sizes, findings);
        messages(inventory, nats, findings);
    }
}

fn queues(sizes: &Sizes, findings: &mut Findings) {
    let entity = Entity::broker("rabbitmq", "queues");
    if sizes.streams > STREAMS {
        let what =
            format!("{} queues make as many streams; up to {STREAMS} are recommended for an account", sizes.streams);
        let fix = "delete those that nobody uses; spread vhosts over several NATS accounts, each with its gateway";
        findings.add(code::S_QUEUES, &entity, what, fix);
    }
    if sizes.replicated > REPLICATED {
        let what = format!(
            "{} quorum or stream queues; up to {REPLICATED} are recommended for three servers",
            sizes.replicated
        );
        let fix = "declare the less important ones classic, or spread them over more servers";
        findings.add(code::S_QUEUES, &entity, what, fix);
    }
}

fn account(nats: &NatsLimits, sizes: &Sizes, findings: &mut Findings) {
    let entity = Entity::broker("nats", "account");
    // Each queue has a consumer; each vhost's topology, leases and states are a few streams more.
    let needed = [("streams", nats.free_streams, sizes.streams), ("consumers", nats.free_consumers, sizes.consumers)];
    for (what, free, needed) in needed {
        if let Some(free) = free.filter(|free| *free < needed) {
            let what = format!("may hold {free} more {what}, and {needed} queues need one each");
            findings.add(code::S_ACCOUNT, &entity, what, "raise the account's limit");
        }
    }
    if nats.max_bytes_required {
        let what = "asks that each stream says how large it may become, which the streams of queues do not";
        findings.add(code::S_ACCOUNT, &entity, what, "take `max_bytes_required` off the account");
    }
    if let (Some(free), Some(disk)) = (nats.free_storage, sizes.disk)
        && disk > free
    {
        let what =
            format!("has {} of storage left, and what lies in queues now would take {}", bytes(free), bytes(disk));
        findings.add(code::S_ACCOUNT, &entity, what, "raise the account's limit to more than the largest backlog");
    }
    if sizes.replicated > 0 && !nats.is_clustered {
        let what =
            format!("{} quorum or stream queues ask for three replicas, and this is one server", sizes.replicated);
        let fix = "use three servers; on one they are made with one replica and a warning";
        findings.add(code::S_REPLICAS, &Entity::broker("nats", "cluster"), what, fix);
    }
}

/// Only the mean size of a queue's messages is known.
fn messages(inventory: &Inventory, nats: &NatsLimits, findings: &mut Findings) {
    let queues = inventory.live.iter().flat_map(|live| &live.queues);
    for queue in queues.filter(|queue| queue.messages > 0) {
        let mean = queue.bytes / queue.messages;
        let entity = Entity::of(&queue.vhost, "queue", &queue.name);
        let largest = bytes(nats.max_payload);
        if mean > nats.max_payload {
            let what = format!("its messages have {} in the mean, and NATS takes {largest}", bytes(mean));
            findings.add(
                code::S_PAYLOAD,
                &entity,
                what,
                "raise `max_payload` of nats-server above the largest message",
            );
        } else if mean > nats.max_payload / 4 {
            let what = format!(
                "its messages have {} in the mean; some may be larger than NATS takes ({largest})",
                bytes(mean)
            );
            findings.add(
                code::S_LARGE,
                &entity,
                what,
                "look for the largest, and raise `max_payload` of nats-server to it",
            );
        }
    }
}
