//! Ctrl-C and SIGTERM, so that what we started is stopped in order and nothing is left running.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use crate::failure::{Doing, Failure};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Begins to listen. From here on the two signals end nothing by themselves: [`asked`] tells.
///
/// # Errors
/// When the listening thread or its handlers cannot be set up.
pub fn listen() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().doing("signal handling")?;
    let entered = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).doing("SIGINT handler")?;
    let mut terminate = signal(SignalKind::terminate()).doing("SIGTERM handler")?;
    drop(entered);
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    if ASKED.swap(true, Ordering::SeqCst) {
                        eprintln!("\nstill stopping what was started");
                    }
                }
            });
        })
        .doing("signal thread")?;
    Ok(())
}

/// Whether somebody asked us to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
