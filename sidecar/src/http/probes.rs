//! `/livez` and `/readyz`.

use serde::{Deserialize, Serialize};

use crate::control_api::{Phase, Side, Status};

/// The answer of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Readiness {
    /// Whether new connections are served as they should be.
    pub(super) ready: bool,
    /// Why not.
    pub(super) reasons: Vec<String>,
}

/// Whether a sidecar in this state can serve new connections: each side that owns messages in this phase answers.
pub(super) fn readiness(status: &Status) -> Readiness {
    let mut reasons = Vec::new();
    if status.draining {
        reasons.push("the sidecar is shutting down".to_owned());
    }
    let (rabbit, nats) = match status.phase {
        // A broken NATS harms nothing here.
        Phase::Observe | Phase::Shadow => (true, false),
        Phase::Canary | Phase::Cutover => (true, true),
        Phase::Native => (false, true),
    };
    let mut need = |needed: bool, name: &str, side: &Side| {
        if needed && !side.connected {
            let why = side.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
            reasons.push(format!("{name} does not answer{why}"));
        }
    };
    need(rabbit, "rabbit", &status.sides.rabbit);
    need(nats, "nats", &status.sides.nats);
    Readiness { ready: reasons.is_empty(), reasons }
}
