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

/// What is wanted on these servers.
pub(super) fn fitted(mut wanted: Things, settings: Settings, bridge: &Bridge) -> Things {
    if bridge.client().server_info().cluster.is_none() {
        found::on_one_server(&mut wanted, settings.replicas);
    }
    wanted
}
