//! What JetStream has.

use amqp_compat::backend::jetstream::Stored;
use amqp_compat::model::queue::QueueKind;
use serde_json::{Value, json};

use super::things::{self, Kind, Things};
use crate::assess::digest::OF_THE_SIDECAR;

/// The name of the consumer that every queue has but a stream queue.
const CONSUMER: &str = "amqp";

/// What a vhost has, as it is stored.
pub fn of(vhost: &str, stored: &Stored) -> Things {
    let mut found = Things::new();
    stored.policies.iter().for_each(|policy| things::put_policy(&mut found, vhost, policy));
    stored.exchanges.iter().for_each(|exchange| things::put_exchange(&mut found, vhost, exchange));
    for (queue, stream) in stored.queues.iter().filter(|(queue, _)| !queue.name.starts_with(OF_THE_SIDECAR)) {
        let seen = stored.streams.get(stream);
        let has_consumer = queue.settings.kind != QueueKind::Stream && seen.is_some_and(|stream| stream.consumers > 0);
        let config = seen.map_or(&Value::Null, |stream| &stream.config);
        things::put_queue(&mut found, vhost, queue, config, has_consumer.then_some(CONSUMER));
    }
    stored.bindings.iter().for_each(|binding| things::put_binding(&mut found, vhost, binding));
    found
}

/// What is wanted where there is one server: a replicated queue is then made with the replicas of a classic one. Says how many
/// these are.
pub fn on_one_server(wanted: &mut Things, replicas: u8) -> usize {
    let mut count = 0;
    for (_, queue) in wanted.iter_mut().filter(|(key, _)| key.kind == Kind::Queue) {
        let is_replicated = matches!(queue["arguments"]["x-queue-type"].as_str(), Some("quorum" | "stream"));
        if is_replicated && queue["stream"].is_object() {
            queue["stream"]["num_replicas"] = json!(replicas);
            count += 1;
        }
    }
    count
}
