//! An exclusive queue's messages: they come from the gateway's memory, and nobody else has to be told what becomes of them.

use async_nats::Subject;

use super::super::memory::Arrived;
use super::super::queue::Queue;
use super::{BATCH, Held, Pump};

/// Waits until something has arrived; for ever for a queue that has a stream.
pub(super) async fn remembered(queue: &Queue) {
    match &queue.memory {
        Some(memory) => memory.wait().await,
        None => std::future::pending().await,
    }
}

impl Pump {
    /// Whether the queue has no stream: all that it holds is here.
    pub(super) fn is_remembered(&self) -> bool {
        self.queue.memory.is_some()
    }

    /// Takes in what has arrived.
    pub(super) async fn take_remembered(&mut self) {
        if !self.is_remembered() {
            return;
        }
        let queue = self.queue.clone();
        let Some(memory) = &queue.memory else { return };
        let mut arrived = Vec::new();
        loop {
            memory.take(BATCH, &mut arrived);
            if arrived.is_empty() {
                return;
            }
            for Arrived { sequence, priority, stored_ns, headers, body, charge } in arrived.drain(..) {
                let held = Held {
                    reply: Subject::from_static(""),
                    by: None,
                    redelivered: false,
                    priority,
                    is_stale: false,
                    expires_ns: self.expiry(headers.as_ref(), stored_ns),
                    headers,
                    payload: body,
                    stored_ns,
                    _charge: Some(charge),
                };
                self.held.insert(sequence, held);
                self.level(priority).seen = sequence;
                self.backlog.insert(priority, sequence);
                self.count_in(sequence, true);
                self.hand_out().await;
            }
        }
    }
}
