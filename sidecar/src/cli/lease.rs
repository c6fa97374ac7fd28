//! The lease on the NATS account, as `serve` and `sidecar` take it.

use amqp_compat::backend::jetstream::Lease;
use nats_bridge::Bridge;
use tokio_util::sync::CancellationToken;

use super::{Failure, remedy};

/// Takes the lease; `None` when the process is to stop before it is there.
///
/// # Errors
/// `cannot_run`, naming who has it.
pub(super) async fn take_lease(
    bridge: &Bridge,
    nats: &str,
    shutdown: &CancellationToken,
) -> Result<Option<Lease>, Failure> {
    tokio::select! {
        taken = Lease::acquire(bridge) => match taken {
            Ok(lease) => Ok(Some(lease)),
            Err(error) => Err(Failure::cannot_run(format!("--nats {}: {error}", remedy::without_password(nats)))),
        },
        () = shutdown.cancelled() => Ok(None),
    }
}
