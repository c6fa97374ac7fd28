//! One subscription that receives the confirms of many publishes.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_nats::client::traits::Publisher as _;
use async_nats::message::OutboundMessage;
use async_nats::{Client, HeaderMap, PublishErrorKind, Subject, Subscriber};
use bytes::Bytes;
use futures::Stream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

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
    prefix: Prefix,
}

/// The receiving end of a [`ConfirmInbox`] or an [`OrderedInbox`](super::OrderedInbox).
#[derive(Debug)]
pub struct Confirms {
    subscriber: Option<Subscriber>,
    /// Where the next one comes from when this one ends, and when none will come any more.
    further: Option<(mpsc::UnboundedReceiver<Subscriber>, CancellationToken)>,
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
        let prefix = Prefix::new(client);
        let confirms = Confirms::new(&prefix, Some(prefix.subscribe(client).await?), None);
        Ok((ConfirmInbox { client: client.clone(), prefix }, confirms))
    }

    /// Hands one message to the client; its confirm will carry `token`.
    ///
    /// Waits while the client's command channel (2 048 by default) is full, so also while it is disconnected for long.
    /// Handed over is not stored, and not even written: only the confirm says that it is stored. What is handed over while
    /// the connection is away is written before anything that was lost with it can be sent again: where order matters, see
    /// [`OrderedInbox`](super::OrderedInbox).
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
        self.prefix.publish(&self.client, token, subject, headers, payload).await
    }
}

/// What the reply addresses of an inbox start with.
#[derive(Debug, Clone)]
pub(super) struct Prefix(Arc<str>);

impl Prefix {
    pub(super) fn new(client: &Client) -> Self {
        Prefix(format!("{}.", client.new_inbox()).into())
    }

    pub(super) async fn subscribe(&self, client: &Client) -> Result<Subscriber> {
        let subscribed = client.subscribe(format!("{}*", self.0)).await;
        subscribed.map_err(|e| Error::new(ErrorKind::Closed).with("inbox", &self.0).because(e))
    }

    pub(super) async fn publish(
        &self,
        client: &Client,
        token: u64,
        subject: Subject,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<()> {
        let reply = Some(self.reply(token));
        let size = payload.len();
        let message = OutboundMessage { subject, reply, payload, headers };
        client.publish_message(message).await.map_err(|e| {
            let kind = match e.kind() {
                PublishErrorKind::MaxPayloadExceeded => ErrorKind::TooLarge,
                PublishErrorKind::InvalidSubject => ErrorKind::InvalidMessage,
                PublishErrorKind::Send => ErrorKind::Closed,
            };
            let error = Error::new(kind).because(e);
            match kind {
                ErrorKind::TooLarge => {
                    error.with("payload_bytes", size).with("max_payload", client.server_info().max_payload)
                }
                _ => error,
            }
        })
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
        let mut reply = String::with_capacity(self.0.len() + digits.len() - at);
        reply.push_str(&self.0);
        reply.extend(digits[at..].iter().map(|d| char::from(*d)));
        Subject::from(reply)
    }
}

impl Confirms {
    pub(super) fn new(
        prefix: &Prefix,
        subscriber: Option<Subscriber>,
        further: Option<(mpsc::UnboundedReceiver<Subscriber>, CancellationToken)>,
    ) -> Self {
        Confirms { subscriber, further, prefix: prefix.0.len(), names: StreamNames::default() }
    }

    /// Waits for at least one confirm and appends those that are there, at most `limit`, to `out`.
    ///
    /// Gives the number appended; 0 means that the client was closed and no more will come. Answers whose token is not
    /// a number are not ours and are skipped.
    ///
    /// # Cancel safety
    /// Cancel safe: what was received is in `out` or still waiting.
    pub async fn next_many(&mut self, out: &mut Vec<Confirm>, limit: usize) -> usize {
        loop {
            let added = poll_fn(|cx| self.poll_next_many(cx, out, limit.max(1))).await;
            if added > 0 {
                return added;
            }
            let Some((further, closed)) = &mut self.further else { return 0 };
            let next = tokio::select! {
                next = further.recv() => next,
                () = closed.cancelled() => None,
            };
            let Some(next) = next else { return 0 };
            self.subscriber = Some(next);
        }
    }

    /// 0 when the subscription has ended, or there is none.
    fn poll_next_many(&mut self, cx: &mut Context<'_>, out: &mut Vec<Confirm>, limit: usize) -> Poll<usize> {
        let Some(subscriber) = &mut self.subscriber else { return Poll::Ready(0) };
        let mut added = 0;
        while added < limit {
            match Pin::new(&mut *subscriber).poll_next(cx) {
                Poll::Ready(Some(message)) => {
                    let token = message.subject.get(self.prefix..).and_then(|t| t.parse().ok());
                    if let Some(token) = token {
                        out.push(Confirm { token, result: confirm::read(&message, &mut self.names) });
                        added += 1;
                    }
                }
                Poll::Ready(None) => break,
                Poll::Pending if added == 0 => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(added)
    }
}
