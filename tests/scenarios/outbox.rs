//! The steps of an outbox.

use std::path::Path;
use std::time::Duration;

use nats_bridge::outbox::{Outbox, OutboxConfig};
use nats_bridge::{Bridge, Message, Result};
use serde_json::{Value, json};

use super::scenario::PATIENCE;

/// The outbox of a scenario: open or not.
#[derive(Default)]
pub struct TheOutbox(Option<Outbox>);

impl TheOutbox {
    /// Does one step; none when it is not of an outbox.
    pub async fn act(
        &mut self,
        folder: &Path,
        bridge: &Bridge,
        verb: &str,
        step: &Value,
        message: impl FnOnce() -> Message,
    ) -> Option<Result<Value>> {
        let open = || self.0.as_ref().expect("the outbox is open");
        Some(match verb {
            "open_outbox" => match Outbox::open(OutboxConfig::new(folder.join("orders.outbox"))).await {
                Ok(outbox) => {
                    self.0 = Some(outbox);
                    Ok(Value::Null)
                }
                Err(error) => Err(error),
            },
            "put" => open().put(message()).await.map(|queued| json!({ "number": queued.number, "id": queued.id })),
            "start_outbox" => open().start(bridge).await.map(|()| Value::Null),
            "drain_outbox" => open().drain(PATIENCE).await.map(|()| Value::Null),
            "close_outbox" => {
                let outbox = self.0.take().expect("the outbox is open");
                let budget = step["budget_ms"].as_u64().map_or(PATIENCE, Duration::from_millis);
                outbox.close(budget).await.map(|()| Value::Null)
            }
            _ => return None,
        })
    }
}
