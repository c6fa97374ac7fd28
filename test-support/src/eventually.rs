//! Waiting for something to become true: polled, capped, never a fixed sleep.

use std::future::Future;
use std::time::{Duration, Instant};

/// The longest that [`eventually`] waits.
pub const CAP: Duration = Duration::from_secs(15);

const PAUSE: Duration = Duration::from_millis(10);

/// Polls `check` every 10 ms until it is true.
///
/// # Panics
/// With `what` when it is not true within 15 s.
#[track_caller]
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + CAP;
    while !check() {
        assert!(Instant::now() < end, "not within {CAP:?}: {what}");
        std::thread::sleep(PAUSE);
    }
}

/// Polls the future that `check` makes, every 10 ms, until it gives `Some`, and returns that value.
///
/// # Panics
/// With `what` when there is none within 15 s, also if one future hangs for that long.
pub async fn eventually_some<T, F>(what: &str, mut check: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let poll = async {
        loop {
            if let Some(value) = check().await {
                return value;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    match tokio::time::timeout(CAP, poll).await {
        Ok(value) => value,
        Err(_) => panic!("not within {CAP:?}: {what}"),
    }
}

/// Polls the future that `check` makes, every 10 ms, until it is true.
///
/// # Panics
/// With `what` when it is not true within 15 s, also if one future hangs for that long.
pub async fn eventually_true<F>(what: &str, mut check: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    eventually_some(what, || {
        let answer = check();
        async move { answer.await.then_some(()) }
    })
    .await
}
