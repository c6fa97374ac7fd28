//! Pull requests with exact credit: how many messages the server has been asked for and not sent yet.

use std::time::{Duration, Instant};

use async_nats::{Message, StatusCode};
use bytes::Bytes;
use foldhash::HashMap;

/// How long a pull request waits at the server.
pub(crate) const EXPIRES: Duration = Duration::from_secs(30);

/// How often the server says that a waiting pull request is alive.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(5);

/// The pull requests of one inbox. Messages do not say which request they answer, so that their sum is what is exact:
/// one less for each message, and less what a request that ends says it has left.
#[derive(Debug, Default)]
pub(crate) struct Pulls {
    outstanding: u64,
    next: u64,
    batches: HashMap<u64, u64>,
    heard: Option<Instant>,
}

/// What a message on the inbox is, when it is no delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Status {
    /// A sign of life.
    Alive,
    /// A request ended: it expired, or there is nothing.
    Ended,
    /// The consumer or its stream is gone, or nobody serves it at present.
    Lost,
}

impl Pulls {
    /// How many messages may still come.
    pub(crate) fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// Notes a new request for `batch` messages; gives its number and body.
    pub(crate) fn ask(&mut self, batch: u64, now: Instant) -> (u64, Bytes) {
        self.next += 1;
        self.outstanding += batch;
        self.batches.insert(self.next, batch);
        self.heard = Some(now);
        let body = format!(
            "{{\"batch\":{batch},\"expires\":{},\"idle_heartbeat\":{}}}",
            EXPIRES.as_nanos(),
            HEARTBEAT.as_nanos()
        );
        (self.next, Bytes::from(body))
    }

    /// Notes a delivery.
    pub(crate) fn delivered(&mut self, now: Instant) {
        self.heard = Some(now);
        self.outstanding = self.outstanding.saturating_sub(1);
        if self.outstanding == 0 {
            self.batches.clear();
        }
    }

    /// Reads a message that is no delivery.
    pub(crate) fn status(&mut self, message: &Message, now: Instant) -> Status {
        self.heard = Some(now);
        let Some(status) = message.status else { return Status::Alive };
        if status == StatusCode::IDLE_HEARTBEAT {
            return Status::Alive;
        }
        let number = message.subject.rsplit('.').next().and_then(|token| token.parse().ok());
        let batch = number.and_then(|number: u64| self.batches.remove(&number));
        let left = message
            .headers
            .as_ref()
            .and_then(|headers| headers.get("Nats-Pending-Messages"))
            .and_then(|value| value.as_str().parse::<u64>().ok());
        let text = message.description.as_deref().unwrap_or_default();
        let lost = status == StatusCode::NO_RESPONDERS || text.contains("Deleted") || text.contains("Not Found");
        // A request that does not say what it has left may have anything left; asking for too much is caught by the
        // pump's backlog, asking for too little would stall.
        self.outstanding = match (left, batch) {
            _ if lost => 0,
            (Some(left), Some(_)) => self.outstanding.saturating_sub(left),
            _ => 0,
        };
        if self.outstanding == 0 {
            self.batches.clear();
        }
        if lost { Status::Lost } else { Status::Ended }
    }

    /// Whether requests wait and nothing was heard for more than two heartbeats.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        self.outstanding > 0 && self.heard.is_some_and(|heard| now.duration_since(heard) > HEARTBEAT * 2)
    }

    /// Forgets every request: they went with their inbox.
    pub(crate) fn clear(&mut self) {
        self.outstanding = 0;
        self.batches.clear();
        self.heard = None;
    }
}
