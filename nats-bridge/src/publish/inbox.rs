//! One subscription that receives the confirms of many publishes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use async_nats::client::traits::Publisher as _;
use async_nats::message::OutboundMessage;
use async_nats::{Client, HeaderMap, HeaderName, HeaderValue, PublishErrorKind, Subject, Subscriber};
use bytes::Bytes;
use futures::Stream;

use super::confirm::{self, Rejection, Stored, StreamNames};
use crate::error::{Error, ErrorKind, Result};

/// Publishes with a reply address of its own, so that JetStream's confirms come to one [`Confirms`].
///
/// The caller owns the table of what is outstanding, times it out and sends it again; tokens are the caller's own
/// numbers and are neither checked nor remembered here. Why not `jetstream::Context::publish`: that makes a map entry,
/// a channel and a parsed JSON value for each message, and never removes the entry of one that was not answered.
///
/// Keep fewer messages outstanding than the client's `subscription_capacity` (65 536 by default): the client drops
/// what its channel cannot take, and the confirm then never comes.
#[derive(Debug, Clone)]
pub struct ConfirmInbox {
    client: Client,
    prefix: Arc<str>,
}

/// The receiving end of a [`ConfirmInbox`].
#[derive(Debug)]
pub struct Confirms {
    subscriber: Subscriber,
    prefix: usize,
    names: StreamNames,
}

/// JetStream's answer to the publish that was named by `token`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirm {
    /// The number that the publish was given.
    pub token: u64,
    /// Where it is stored, or why not.
    pub result: Result<Stored, Rejection>,
}

impl ConfirmInbox {
    /// Subscribes to a fresh inbox. The subscription is made again by the client after a reconnect.
    ///
    /// # Errors
    /// `Closed`: the client was closed.
    pub async fn open(client: &Client) -> Result<(ConfirmInbox, Confirms)> {
        let prefix = format!("{}.", client.new_inbox());
        let subscriber = client
            .subscribe(format!("{prefix}*"))
            .await
            .map_err(|e| Error::new(ErrorKind::Closed).with("inbox", &prefix).because(e))?;
        let confirms = Confirms { subscriber, prefix: prefix.len(), names: StreamNames::default() };
        Ok((ConfirmInbox { client: client.clone(), prefix: prefix.into() }, confirms))
    }

    /// Hands one message to the client; its confirm will carry `token`.
    ///
    /// Waits while the client's command channel (2 048 by default) is full, so also while it is disconnected for long.
    /// Handed over is not stored, and not even written: only the confirm says that it is stored.
    ///
    /// # Errors
    /// Nothing was sent in any of these cases, so nothing landed.
    /// - `TooLarge`: headers and payload exceed the server's `max_payload`.
    /// - `InvalidMessage`: the subject is empty or has white space in it.
    /// - `Closed`: the client was closed.
    ///
    /// # Cancel safety
    /// Cancel safe: dropped before it is ready, nothing is sent.
    pub async fn publish(
        &self,
        token: u64,
        subject: Subject,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<()> {
        let reply = Some(self.reply(token));
        let size = payload.len();
        let message = OutboundMessage { subject, reply, payload, headers };
        self.client.publish_message(message).await.map_err(|e| {
            let kind = match e.kind() {
                PublishErrorKind::MaxPayloadExceeded => ErrorKind::TooLarge,
                PublishErrorKind::InvalidSubject => ErrorKind::InvalidMessage,
                PublishErrorKind::Send => ErrorKind::Closed,
            };
            let error = Error::new(kind).because(e);
            match kind {
                ErrorKind::TooLarge => {
                    error.with("payload_bytes", size).with("max_payload", self.client.server_info().max_payload)
                }
                _ => error,
            }
        })
    }

    /// Which of the client's connections is open now, counted from 1; `None` while there is none.
    ///
    /// What is handed over while there is none waits in the client, and is written first when there is one again: before anything
    /// older that was lost with the connection before and is sent again. Whoever promises an order waits, sends the older ones first,
    /// and then goes on.
    pub fn connection(&self) -> Option<u64> {
        let connected = self.client.connection_state() == async_nats::connection::State::Connected;
        connected.then(|| self.client.statistics().connects.load(Ordering::Relaxed))
    }

    /// Whether the server takes no message of this size: what [`ConfirmInbox::publish`] would answer with `TooLarge`.
    pub fn is_too_large(&self, headers: Option<&HeaderMap>, payload: &[u8]) -> bool {
        let line = |(name, values): (&HeaderName, &Vec<HeaderValue>)| {
            // `name: value` and the end of the line.
            values.iter().map(|value| AsRef::<str>::as_ref(name).len() + value.as_str().len() + 4).sum::<usize>()
        };
        let headers = headers.map_or(0, |headers| VERSION_AND_END + headers.iter().map(line).sum::<usize>());
        headers + payload.len() > self.client.max_payload()
    }

    fn reply(&self, token: u64) -> Subject {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        let mut rest = token;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        let mut reply = String::with_capacity(self.prefix.len() + digits.len() - at);
        reply.push_str(&self.prefix);
        reply.extend(digits[at..].iter().map(|d| char::from(*d)));
        Subject::from(reply)
    }
}

/// `NATS/1.0` before the headers and the empty line behind them.
const VERSION_AND_END: usize = 12;

impl Confirms {
    /// Waits for at least one confirm and appends those that are there, at most `limit`, to `out`.
    ///
    /// Gives the number appended; 0 means that the client was closed and no more will come. Answers whose token is not
    /// a number are not ours and are skipped.
    ///
    /// # Cancel safety
    /// Cancel safe: what was received is in `out` or still waiting.
    pub async fn next_many(&mut self, out: &mut Vec<Confirm>, limit: usize) -> usize {
        let limit = limit.max(1);
        std::future::poll_fn(|cx| {
            let mut added = 0;
            while added < limit {
                match Pin::new(&mut self.subscriber).poll_next(cx) {
                    Poll::Ready(Some(message)) => {
                        let token = message.subject.get(self.prefix..).and_then(|t| t.parse().ok());
                        if let Some(token) = token {
                            out.push(Confirm { token, result: confirm::read(&message, &mut self.names) });
                            added += 1;
                        }
                    }
                    Poll::Ready(None) => return Poll::Ready(added),
                    Poll::Pending if added == 0 => return Poll::Pending,
                    Poll::Pending => break,
                }
            }
            Poll::Ready(added)
        })
        .await
    }
}
