//! Health checks as data.

use nats_bridge::Bridge;
use nats_bridge::health::{HealthCheck, Required};
use serde::Deserialize;

use crate::{Fault, read};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Given {
    streams: Vec<String>,
    consumers: Vec<(String, String)>,
    dead_letters: Vec<String>,
    max_pending: Option<u64>,
    max_mirror_lag: Option<u64>,
}

/// A check of what `required`, an object of JSON, names.
///
/// # Errors
/// `Argument`: a field is wrong.
pub fn check(core: &Bridge, required: &str) -> Result<HealthCheck, Fault> {
    let Given { streams, consumers, dead_letters, max_pending, max_mirror_lag } = read(required)?;
    Ok(HealthCheck::new(core, Required { streams, consumers, dead_letters, max_pending, max_mirror_lag }))
}

/// Looks, and gives what was found as JSON.
pub async fn look(check: &HealthCheck) -> String {
    // Strings, numbers and lists always serialise.
    serde_json::to_string(&check.look().await).unwrap_or_default()
}
