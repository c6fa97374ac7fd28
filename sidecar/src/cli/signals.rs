//! SIGTERM and SIGINT.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Failure;

/// Within this time of the first one, a signal is the same wish told twice: `timeout` tells a program, and then its group.
/// Who ends at once leaves an embedded nats-server behind.
const TWICE: Duration = Duration::from_millis(500);

/// Cancels `shutdown` at the first SIGTERM or SIGINT; a later one ends the process at once, with code 130.
///
/// # Errors
/// `cannot_run` when the signals cannot be listened for.
pub(super) fn cancel(shutdown: &CancellationToken) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen =
        |kind| signal(kind).map_err(|error| Failure::cannot_run(format!("cannot listen for signals: {error}")));
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        };
        info!(signal = name, "stopping");
        shutdown.cancel();
        let first = Instant::now();
        while first.elapsed() < TWICE {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        }
        std::process::exit(130);
    });
    Ok(())
}
