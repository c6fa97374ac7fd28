//! What is settled and the server has not been told yet: several at a time cost it and us one read and one write.

use std::time::{Duration, Instant};

use async_nats::Subject;

use super::Pump;
use super::server::tell;

/// How long a settlement waits for others. A gateway that dies in this time leaves a message to be delivered again, as
/// it would with the settlement on its way.
const WAIT: Duration = Duration::from_millis(1);

/// How many are told together at most.
const MOST: usize = 64;

/// Settlements that wait.
#[derive(Debug, Default)]
pub(super) struct Settling {
    waiting: Vec<(Subject, bool)>,
    due: Option<Instant>,
}

impl Settling {
    /// Adds one: `is_ack` says whether the message is done with, or refused.
    pub(super) fn add(&mut self, reply: Subject, is_ack: bool, now: Instant) {
        self.due.get_or_insert(now + WAIT);
        self.waiting.push((reply, is_ack));
    }

    /// When the server is told at the latest.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether no more are to wait.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MOST
    }
}

impl Pump {
    /// Tells the server what is settled.
    pub(super) async fn tell_settled(&mut self) {
        self.settling.due = None;
        for (reply, is_ack) in self.settling.waiting.drain(..) {
            let payload = if is_ack { &b"+ACK"[..] } else { &b"+TERM"[..] };
            tell(self.queue.bridge.client(), reply, payload).await;
        }
    }
}
