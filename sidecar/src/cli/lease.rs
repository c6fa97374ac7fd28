//! The right to serve a NATS account, as `serve` and `sidecar` take it: alone, or with others.

use amqp_compat::backend::jetstream::lease::LeaseError;
use amqp_compat::backend::jetstream::{Gateways, JetStreamConfig, Lease};
use amqp_compat::error::AmqpError;
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
    until_shutdown(Lease::acquire(bridge), nats, shutdown).await
}

/// The right to serve an account.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// As the only gateway.
    Alone(Lease),
    /// As one of several.
    Shared(Gateways),
}

impl Place {
    /// Takes it; `None` when the process is to stop before it is there.
    ///
    /// # Errors
    /// As [`take_lease`].
    pub(super) async fn take(
        shared: bool,
        bridge: &Bridge,
        nats: &str,
        shutdown: &CancellationToken,
    ) -> Result<Option<Self>, Failure> {
        Ok(match shared {
            true => until_shutdown(Gateways::join(bridge), nats, shutdown).await?.map(Self::Shared),
            false => take_lease(bridge, nats, shutdown).await?.map(Self::Alone),
        })
    }

    /// Settings that serve under it.
    pub(super) fn settle(&self, config: JetStreamConfig) -> JetStreamConfig {
        match self.clone() {
            Self::Alone(lease) => JetStreamConfig { lease: Some(lease), ..config },
            Self::Shared(gateways) => JetStreamConfig { gateways: Some(gateways), ..config },
        }
    }

    /// Waits until it is lost.
    pub(super) async fn lost(&self) -> AmqpError {
        match self {
            Self::Alone(lease) => lease.lost().await,
            Self::Shared(gateways) => gateways.lost().await,
        }
    }

    /// Gives it back.
    pub(super) async fn release(&self) {
        match self {
            Self::Alone(lease) => lease.release().await,
            Self::Shared(gateways) => gateways.leave().await,
        }
    }
}

async fn until_shutdown<T>(
    take: impl Future<Output = Result<T, LeaseError>>,
    nats: &str,
    shutdown: &CancellationToken,
) -> Result<Option<T>, Failure> {
    tokio::select! {
        taken = take => match taken {
            Ok(taken) => Ok(Some(taken)),
            Err(error) => Err(Failure::cannot_run(format!("--nats {}: {error}", remedy::without_password(nats)))),
        },
        () = shutdown.cancelled() => Ok(None),
    }
}
