//! The Tokio runtime of this process, and waiting on it without holding the GIL.

use std::future::Future;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nats_bridge_verbs::eager::{self, Begun};
use pyo3::prelude::*;
use tokio::runtime::{Builder, Runtime};

use crate::errors;

/// The runtime and the process that it was started in. Tokio's threads do not survive a fork.
pub struct Home {
    pid: u32,
    runtime: Runtime,
}

// Locked only by threads that are attached to the interpreter, and never while one waits: a fork is made by an attached
// thread too, so it cannot copy this lock in its locked state.
static HOME: Mutex<Option<&'static Home>> = Mutex::new(None);

/// The runtime of this process; started at first use, and again in a child after a fork.
pub fn here(py: Python<'_>) -> PyResult<&'static Home> {
    let (home, is_new) = at_hand()?;
    if is_new {
        // Runs Python code, and other threads meanwhile: the lock is free again.
        py.import("nats_bridge._logs")?.call_method0("start")?;
    }
    Ok(home)
}

fn at_hand() -> PyResult<(&'static Home, bool)> {
    let mut home = lock(&HOME);
    let pid = std::process::id();
    match *home {
        Some(home) if home.pid == pid => Ok((home, false)),
        _ => {
            let runtime = Builder::new_multi_thread().enable_all().thread_name("nats-bridge").build()?;
            nats_bridge_verbs::metrics::start(runtime.handle());
            // Never dropped: at exit the threads end with the process, and a parent's runtime cannot be ended in a child.
            let fresh: &'static Home = Box::leak(Box::new(Home { pid, runtime }));
            *home = Some(fresh);
            Ok((fresh, true))
        }
    }
}

impl Home {
    /// Refuses a call in any process other than the one that this runtime was started in.
    pub fn check(&self) -> PyResult<()> {
        if self.is_here() { Ok(()) } else { Err(errors::forked(self.pid)) }
    }

    fn is_here(&self) -> bool {
        std::process::id() == self.pid
    }

    /// Waits for `work` without the GIL. Between waits of [`SLICE`] it lets Python's signal handlers run, so that Ctrl-C
    /// raises `KeyboardInterrupt` here; `work` is then dropped where it stands.
    pub fn wait<T: Send>(&self, py: Python<'_>, work: impl Future<Output = T> + Send) -> PyResult<T> {
        self.check()?;
        let mut work = pin!(work);
        loop {
            let slice = py.detach(|| self.runtime.block_on(async { tokio::time::timeout(SLICE, work.as_mut()).await }));
            match slice {
                Ok(done) => return Ok(done),
                Err(_elapsed) => py.check_signals()?,
            }
        }
    }

    /// Runs `work` on the runtime's own threads.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> tokio::task::AbortHandle {
        self.runtime.spawn(work).abort_handle()
    }

    /// Does something that starts tasks on the runtime.
    pub fn within<T>(&self, act: impl FnOnce() -> T) -> T {
        let _entered = self.runtime.enter();
        act()
    }

    /// Begins `work` on this thread.
    pub fn begin<T>(&self, work: impl Future<Output = T> + Send + 'static) -> Begun<T> {
        let _entered = self.runtime.enter();
        eager::begin(work)
    }
}

/// The longest time for which a wait does not look at signals.
const SLICE: Duration = Duration::from_millis(50);

/// A value of the core that works in one process only.
///
/// Dropped in a forked child it is leaked on purpose: its own drop would wait for threads that are not there.
pub struct Owned<T> {
    home: &'static Home,
    value: Option<T>,
}

impl<T> Owned<T> {
    /// Ties `value` to the process of `home`.
    pub fn new(home: &'static Home, value: T) -> Self {
        Owned { home, value: Some(value) }
    }

    /// The runtime that it lives on.
    pub fn home(&self) -> &'static Home {
        self.home
    }

    /// The value, unless this is another process.
    pub fn get(&self) -> PyResult<&T> {
        self.home.check()?;
        Ok(self.value.as_ref().expect("only drop takes the value"))
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        let value = self.value.take();
        if self.home.is_here() {
            // What the core starts when it is dropped needs a runtime.
            let _entered = self.home.runtime.enter();
            drop(value);
        } else {
            std::mem::forget(value);
        }
    }
}

/// Locks `mutex`; a panic of another holder does not matter, as what is behind these locks is whole at every step.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
