//! What the core counts in this process, as Prometheus reads it.

use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::runtime::Handle;

static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Begins to count, before anything is counted; a second time is fine. `runtime` trims what histograms keep.
pub fn start(runtime: &Handle) {
    RECORDER.get_or_init(|| {
        // None: this process has another recorder, whose business they are.
        let handle = PrometheusBuilder::new().install_recorder().ok()?;
        let trimmed = handle.clone();
        runtime.spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(5)).await;
                trimmed.run_upkeep();
            }
        });
        Some(handle)
    });
}

/// What renders them; none before [`start`], and in a process that has another recorder.
pub(crate) fn handle() -> Option<PrometheusHandle> {
    RECORDER.get().and_then(Option::clone)
}

/// All figures, in Prometheus' text format; empty before [`start`].
pub fn render() -> String {
    RECORDER.get().and_then(Option::as_ref).map(PrometheusHandle::render).unwrap_or_default()
}
