//! What a queue becomes on JetStream, without asking it: its stream, as the API is asked for it, and its consumer.

use std::time::Duration;

use serde_json::{Value, json};

use super::config::JetStreamConfig;
use super::queue::{CONSUMER, nanoseconds};
use crate::mapping::name;
use crate::model::queue::{Overflow, QueueArguments, QueueDefinition, QueueKind};

/// Metadata of a queue's stream: the vhost's name.
pub(super) const META_VHOST: &str = "amqp-vhost";
/// Metadata of a queue's stream: the queue's name.
pub(super) const META_QUEUE: &str = "amqp-queue";
/// Metadata of a queue's stream: `durable`, or `gateway` when it goes with the gateway that made it.
pub(super) const META_LIFETIME: &str = "amqp-lifetime";

/// How many consumers may read a stream queue at a time.
const MAX_READERS: u32 = 10_000;

/// The stream and the consumer that a queue becomes.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueShape {
    /// The stream, as `STREAM.CREATE` is asked for it. Its name is another one for a queue that was deleted a moment ago.
    pub stream: Value,
    /// The durable consumer; a stream queue has none until somebody reads it.
    pub consumer: Option<&'static str>,
}

impl JetStreamConfig {
    /// What a queue becomes under this configuration, where no policy is in force for it; `None` for an exclusive one, which
    /// is in the gateway's memory. Servers that cannot hold as many replicas as it asks for get fewer: see
    /// [`JetStreamConfig::quorum_fallback`].
    pub fn shape(&self, vhost: &str, queue: &QueueDefinition) -> Option<QueueShape> {
        if queue.owner.is_some() {
            return None;
        }
        let stream = name::stream(vhost, &queue.name);
        let consumer = (queue.settings.kind != QueueKind::Stream).then_some(CONSUMER);
        let of = (queue, &queue.settings);
        Some(QueueShape { stream: stream_config(vhost, &stream, of, replicas(queue, self), self), consumer })
    }
}

/// How many servers are asked to hold a queue.
pub(super) fn replicas(queue: &QueueDefinition, config: &JetStreamConfig) -> usize {
    match (queue.is_persistent(), queue.settings.kind) {
        (false, _) => 1,
        (true, QueueKind::Quorum | QueueKind::Stream) => config.quorum_replicas,
        (true, QueueKind::Classic) => config.replicas,
    }
}

/// The stream of a queue with these settings in force.
pub(super) fn stream_config(
    vhost: &str,
    stream: &str,
    (queue, settings): (&QueueDefinition, &QueueArguments),
    replicas: usize,
    config: &JetStreamConfig,
) -> Value {
    let subject = name::subject(vhost, &queue.name);
    let highest = queue.settings.max_priority.unwrap_or(0);
    let mut subjects = vec![subject.clone()];
    if highest > 0 {
        subjects.push(format!("{subject}.*"));
    }
    let window = config.dedup_window.max(Duration::from_millis(100));
    let mut stream = json!({
        "name": stream,
        "subjects": subjects,
        "retention": "workqueue",
        "storage": if queue.is_persistent() { "file" } else { "memory" },
        "num_replicas": replicas,
        "discard": "old",
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_consumers": 64 + u32::from(highest),
        "max_msg_size": -1,
        "max_msgs_per_subject": -1,
        "duplicate_window": nanoseconds(window),
        "allow_direct": true,
        "metadata": {
            META_VHOST: vhost,
            META_QUEUE: &*queue.name,
            META_LIFETIME: if queue.is_persistent() { "durable" } else { "gateway" },
        },
    });
    if queue.settings.kind == QueueKind::Stream {
        stream["retention"] = json!("limits");
        stream["max_msgs"] = settings.max_length.map_or(json!(-1), |max| json!(max));
        stream["max_bytes"] = settings.max_length_bytes.map_or(json!(-1), |max| json!(max));
        stream["max_consumers"] = json!(MAX_READERS);
        if let Some(seconds) = settings.max_age_seconds {
            let age = Duration::from_secs(seconds);
            stream["max_age"] = json!(nanoseconds(age));
            // It may not be longer than the messages live.
            stream["duplicate_window"] = json!(nanoseconds(window.min(age)));
        }
        stream["discard"] = json!(if settings.overflow == Overflow::DropHead { "old" } else { "new" });
    }
    stream
}
