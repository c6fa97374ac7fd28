//! What JetStream has of a topology, for the verbs that look at it without serving it.

use amqp_compat::backend::jetstream::JetStreamBackend;
use nats_bridge::Bridge;

use super::Failure;
use crate::plan::{Settings, Things, found};

/// What these vhosts have.
///
/// # Errors
/// `cannot_run` when JetStream does not answer.
pub(super) async fn look(bridge: &Bridge, vhosts: &[String]) -> Result<Things, Failure> {
    let mut things = Things::new();
    for vhost in vhosts {
        let stored = JetStreamBackend::stored(bridge, vhost).await;
        let stored = stored.map_err(|error| Failure::cannot_run(format!("--nats: vhost '{vhost}': {error}")))?;
        things.extend(found::of(vhost, &stored));
    }
    Ok(things)
}

/// What is wanted on these servers, and how many queues have to do with fewer replicas than they ask for.
pub(super) fn fitted(mut wanted: Things, settings: Settings, bridge: &Bridge) -> (Things, usize) {
    let reduced = match is_one_server(bridge) {
        true => found::on_one_server(&mut wanted, settings.replicas),
        false => 0,
    };
    (wanted, reduced)
}

/// Whether NATS is one server, which cannot hold replicas.
pub(super) fn is_one_server(bridge: &Bridge) -> bool {
    bridge.client().server_info().cluster.is_none()
}

/// What is said of such queues.
pub(super) fn on_one(reduced: usize, settings: Settings) -> String {
    let queues = if reduced == 1 { "1 queue asks".to_owned() } else { format!("{reduced} queues ask") };
    format!(
        "{queues} for three servers, and this NATS is one: made with {}",
        match settings.replicas {
            1 => "1 replica".to_owned(),
            replicas => format!("{replicas} replicas"),
        }
    )
}
