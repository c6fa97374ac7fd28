//! Publishing one entry of an outbox: once, also when it may have been sent before.

use std::time::Duration;

use tokio::sync::Mutex;

use super::lookup::{self, Place, Places, Sight};
use super::record::Record;
use super::shared::now_ms;
use crate::bridge::Bridge;
use crate::error::Result;
use crate::publish::Publisher;

pub(super) struct Sender {
    bridge: Bridge,
    publisher: Publisher,
    places: Mutex<Places>,
    // The label of the metrics.
    name: String,
}

impl Sender {
    pub fn new(bridge: Bridge, publisher: Publisher, name: String) -> Self {
        Sender { bridge, publisher, places: Mutex::default(), name }
    }

    /// Publishes it, unless it may have been sent at `sent_ms` (milliseconds since 1970) and is found in its stream; says which.
    pub async fn send(&self, record: &Record, sent_ms: Option<u64>) -> Result<&'static str> {
        if let Some(sent_ms) = sent_ms
            && self.is_stored(record, sent_ms).await?
        {
            return Ok("found");
        }
        let published = self.publisher.publish(record.message.clone()).await?;
        Ok(if published.duplicate { "duplicate" } else { "stored" })
    }

    // Whether a message that may have been sent since is in its stream, when the stream may no longer know its id.
    async fn is_stored(&self, record: &Record, sent_ms: u64) -> Result<bool> {
        let jetstream = self.bridge.jetstream();
        let subject = record.message.subject();
        // No stream: nothing can be there, and publishing says so.
        let Some(Place { stream, window }) = self.places.lock().await.of(jetstream, subject).await? else {
            return Ok(false);
        };
        let known_for = window.saturating_sub(self.bridge.config().publish.deadline);
        if Duration::from_millis(now_ms().saturating_sub(sent_ms)) < known_for {
            return Ok(false);
        }
        let sight = lookup::look(jetstream, &stream, subject, &record.id, record.put_ms).await?;
        if sight == Sight::Unclear {
            let name = self.name.clone();
            metrics::counter!("natsbridge_outbox_possible_duplicates_total", "outbox" => name).increment(1);
            tracing::warn!(
                outbox = self.name,
                msg_id = record.id,
                stream,
                subject,
                "the stream's duplicate window is over, and what was handled is gone from it: this message may be stored a second time"
            );
        }
        Ok(sight == Sight::Stored)
    }
}
