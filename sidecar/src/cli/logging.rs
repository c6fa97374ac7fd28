//! Log lines on stderr, so that stdout is the answer of a verb.

use tracing_subscriber::EnvFilter;

use super::LogFormat;

/// Starts logging for this process. A second call changes nothing.
pub(super) fn start(format: LogFormat) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,async_nats=warn,lapin=warn"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    if let Err(error) = started {
        eprintln!("logging was started before: {error}");
    }
}
