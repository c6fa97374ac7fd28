//! Keeps how often messages were begun, in the stream `{stream}_ATTEMPTS`, which is made when something is to be kept first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::ConsumeConfig;
use super::attempts::Begun;
use crate::bridge::Bridge;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::provision::{Discard, StreamSpec, make_stream_if_absent, replicas_of};
use crate::publish::Publisher;
use crate::stored;

/// What is kept about the messages of one consumer.
pub(super) struct Kept {
    bridge: Bridge,
    publisher: Publisher,
    source: String,
    consumer: String,
    made: AtomicBool,
    refused: AtomicBool,
}

/// The stream that keeps how often messages of a stream were begun.
pub(crate) fn attempts_stream(stream: &str) -> String {
    format!("{stream}_ATTEMPTS")
}

fn subject(stream: &str, consumer: &str, sequence: impl std::fmt::Display) -> String {
    format!("attempts.{stream}.{consumer}.{sequence}")
}

impl Kept {
    pub fn new(bridge: Bridge, publisher: Publisher, config: &ConsumeConfig) -> Kept {
        let (source, consumer) = (config.stream.clone(), config.name.clone());
        Kept { bridge, publisher, source, consumer, made: AtomicBool::new(false), refused: AtomicBool::new(false) }
    }

    /// Whether nothing can be kept here, as the server has said once: then deliveries count as attempts.
    pub fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// What is kept about a message; none also when nothing can be kept.
    ///
    /// # Errors
    /// Such as may pass.
    pub async fn get(&self, sequence: u64) -> Result<Option<Begun>> {
        if self.is_refused() {
            return Ok(None);
        }
        let (stream, subject) = (attempts_stream(&self.source), subject(&self.source, &self.consumer, sequence));
        let read = stored::last_of(self.bridge.jetstream(), &stream, &subject);
        match self.bridge.unless_denied(read).await {
            Ok(message) => Ok(message.and_then(|message| serde_json::from_slice(&message.payload).ok())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => self.unless_it_may_pass(error).map(|()| None),
        }
    }

    /// Keeps how often a message was begun, unless nothing can be kept.
    ///
    /// # Errors
    /// Such as may pass.
    pub async fn put(&self, sequence: u64, begun: Begun) -> Result<()> {
        if self.is_refused() {
            return Ok(());
        }
        let did = async {
            if !self.made.load(Ordering::Relaxed) {
                self.bridge.unless_denied(self.make()).await?;
                self.made.store(true, Ordering::Relaxed);
            }
            let body = serde_json::to_vec(&begun).map_err(|e| Error::new(ErrorKind::Rejected).because(e))?;
            let message = Message::new(subject(&self.source, &self.consumer, sequence), body).stored_before();
            self.publisher.publish(message).await
        };
        match did.await {
            Ok(_) => Ok(()),
            Err(error) => {
                // It may have been deleted.
                let was_made = self.made.swap(false, Ordering::Relaxed);
                match error.kind() {
                    ErrorKind::NotFound if was_made => Err(error),
                    _ => self.unless_it_may_pass(error),
                }
            }
        }
    }

    async fn make(&self) -> Result<()> {
        let js = self.bridge.jetstream();
        let replicas = replicas_of(js, &self.source).await?;
        let spec = StreamSpec {
            max_bytes: Some(64 << 20),
            max_age: Some(Duration::from_secs(7 * 24 * 3600)),
            // What is forgotten counts by its deliveries again.
            discard: Discard::Old,
            replicas,
            ..StreamSpec::new(attempts_stream(&self.source), [subject(&self.source, "*", "*")])
        };
        make_stream_if_absent(js, &spec).await
    }

    fn unless_it_may_pass(&self, error: Error) -> Result<()> {
        if error.is_temporary() || error.kind() == ErrorKind::Closed {
            return Err(error);
        }
        if !self.refused.swap(true, Ordering::Relaxed) {
            let (stream, consumer) = (&self.source, &self.consumer);
            tracing::warn!(
                stream,
                consumer,
                %error,
                "how often messages were begun cannot be kept: each delivery counts as an attempt"
            );
        }
        Ok(())
    }
}
