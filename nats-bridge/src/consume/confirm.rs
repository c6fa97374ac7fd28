//! A settlement that waits until the server has it.

use std::time::Duration;

use async_nats::client::RequestError;
use async_nats::{Client, Message, Request, RequestErrorKind, Subject};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, MissedTickBehavior};

use crate::error::{Error, ErrorKind};

/// How long to wait for the server, all in all.
pub(super) const LONGEST: Duration = Duration::from_secs(5);
/// How long for one sending. What was written into a connection that was already dead is lost, and nobody says so.
const AGAIN: Duration = Duration::from_secs(1);

/// Sends a settlement, again and again, until the server says that it has it. It answers what it has already taken as it did
/// the first time (seen on 2.10 and 2.15), so that a resend does no harm.
pub(super) async fn until_it_has_it(client: &Client, to: Subject, what: Bytes) -> Result<(), Error> {
    let end = Instant::now() + LONGEST;
    let mut turns = tokio::time::interval(AGAIN);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sent = FuturesUnordered::new();
    let mut last = None;
    loop {
        tokio::select! {
            biased;
            Some(answer) = sent.next() => {
                let answer: Result<Message, RequestError> = answer;
                match answer {
                    Ok(_) => return Ok(()),
                    // The client was closed.
                    Err(error) if error.kind() == RequestErrorKind::Other => {
                        return Err(Error::new(ErrorKind::Closed).because(error));
                    }
                    Err(error) => last = Some(error),
                }
            }
            () = tokio::time::sleep_until(end) => break,
            _ = turns.tick() => {
                let request = Request::new().payload(what.clone()).timeout(Some(end - Instant::now()));
                sent.push(client.send_request(to.clone(), request));
            }
        }
    }
    Err(match last {
        Some(error) if error.kind() == RequestErrorKind::NoResponders => {
            Error::new(ErrorKind::Unreachable).because(error)
        }
        Some(error) => Error::new(ErrorKind::Timeout).because(error),
        None => Error::new(ErrorKind::Timeout),
    })
}
