//! Looks for messages that JetStream owns in the streams that have to have them, so that a loss is known before anybody misses them.
//!
//! What it costs does not grow with what lies there: one or two questions a queue and second, at most [`QUEUES`] queues a second, and where
//! one is full of holes 16 single messages.

use std::sync::Weak;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::timeout;

use super::Cutover;
use crate::control_api::Phase;
use crate::integrity::Lookup;

/// How often the streams are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How many queues are looked at each time; where more hold something, they take turns.
const QUEUES: usize = 200;
/// How many are asked for at once.
const AT_ONCE: usize = 4;
/// How long one of them may take; what is not answered says nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// Looks for as long as the sidecar runs, while JetStream owns anything.
pub(super) async fn look(this: Weak<Cutover>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(cutover) = this.upgrade() else { return };
        cutover.look_up().await;
    }
}

impl Cutover {
    async fn look_up(&self) {
        let remembered = self.shared.integrity().remembered();
        metrics::gauge!("natsbridge_integrity_messages").set(remembered as f64);
        let phase = self.shared.order().phase;
        if !matches!(phase, Phase::Canary | Phase::Cutover) || self.shared.nats_is_lost() {
            return;
        }
        let lookups = self.shared.integrity().lookups(QUEUES);
        futures::stream::iter(&lookups).for_each_concurrent(AT_ONCE, |asked| self.look_up_one(asked)).await;
    }

    async fn look_up_one(&self, asked: &Lookup) {
        let Some(routes) = &self.shared.routes else { return };
        if let Ok(Ok(Some(present))) = timeout(PATIENCE, routes.present(asked)).await {
            metrics::counter!("natsbridge_integrity_lookups_total").increment(present.asked);
            let now = self.shared.now();
            self.shared.integrity().looked_up(asked, present.first, present.last, &present.gone, now);
        }
    }
}
