//! Whether what a service needs is there.

use std::sync::Arc;

use napi::bindgen_prelude::Env;
use napi_derive::napi;
use nats_bridge_verbs::{health, metrics};

use crate::held::{Eventually, Held};

/// A health check.
#[napi]
pub struct HealthCheck {
    core: Held<Arc<nats_bridge::health::HealthCheck>>,
}

impl HealthCheck {
    /// Wraps a check of the core, of this connection.
    pub fn new(beside: &Held<nats_bridge::Bridge>, check: nats_bridge::health::HealthCheck) -> Self {
        HealthCheck { core: Held::beside(beside, Arc::new(check)) }
    }
}

#[napi]
impl HealthCheck {
    /// Looks; the promise resolves to what was found, as JSON.
    #[napi]
    pub fn look<'env>(&self, env: &'env Env) -> napi::Result<Eventually<'env, String>> {
        let core = self.core.get().clone();
        self.core.promise(env, async move { Ok(health::look(&core).await) }, |found| found)
    }
}

/// All that this process counts, in Prometheus' text format.
#[napi]
pub fn render_metrics() -> String {
    metrics::render()
}
