//! Direct replies to clients of another gateway: the name that a client waits under says which one, and the reply is sent
//! there, at most once, as within a gateway.

use std::time::Duration;

use async_nats::Subject;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::wire::{self, Headers};
use super::{Gateways, PREFIX, failed};
use crate::backend::Message;
use crate::backend::reply_to::{Replies, gateway_of};
use crate::error::AmqpError;
use crate::mapping::name;

/// Replies that wait for the way to another gateway; more are dropped.
const WAITING: usize = 4096;
/// How long another gateway may take to say whether a client is there.
const ANSWER: Duration = Duration::from_secs(2);

impl Gateways {
    /// The direct replies of a vhost.
    pub(crate) fn replies(&self) -> Replies {
        let (elsewhere, mut leaving) = mpsc::channel::<(String, Message)>(WAITING);
        let gateways = self.clone();
        tokio::spawn(async move {
            while let Some((name, message)) = leaving.recv().await {
                let Some(number) = gateway_of(&name) else { continue };
                let payload = wire::write(&wire::headers(&message), &message.body);
                if let Err(error) = gateways.0.bridge.client().publish(subject(number, &name), payload).await {
                    tracing::warn!(%error, "a direct reply to a client of another gateway is dropped");
                }
            }
        });
        Replies::among(self.0.number, elsewhere)
    }

    /// Whether a client of another gateway waits under this name; nothing for a name that is none of another gateway's.
    pub(super) async fn is_waiting_elsewhere(&self, name: &str) -> Option<bool> {
        let number = gateway_of(name).filter(|number| *number != self.0.number)?;
        let request = async_nats::Request::new().payload(Bytes::new()).timeout(Some(ANSWER));
        let answered = self.0.bridge.client().send_request(subject(number, name), request).await;
        Some(answered.is_ok_and(|answer| &answer.payload[..] == b"+"))
    }
}

fn subject(number: u32, client: &str) -> Subject {
    Subject::from(format!("{PREFIX}.reply.{number}.{}", name::token(client)))
}

/// Starts to take in replies for clients of this gateway.
pub(super) async fn start(gateways: &Gateways) -> Result<(), AmqpError> {
    let client = gateways.0.bridge.client().clone();
    let mut subscriber = client.subscribe(format!("{PREFIX}.reply.{}.*", gateways.0.number)).await.map_err(failed)?;
    let gateways = gateways.clone();
    tokio::spawn(async move {
        while let Some(message) = gateways.next_of(&mut subscriber).await {
            let Some(name) = message.subject.rsplit('.').next().and_then(name::untoken) else { continue };
            let mut vhosts = gateways.vhosts();
            if let Some(reply) = message.reply {
                let is_there = vhosts.any(|vhost| vhost.replies.is_waiting(&name));
                let _ = client.publish(reply, Bytes::from_static(if is_there { b"+" } else { b"-" })).await;
                continue;
            }
            let Some((headers, body)) = wire::read::<Headers>(message.payload) else { continue };
            if let Some(vhost) = vhosts.find(|vhost| vhost.replies.is_waiting(&name)) {
                vhost.replies.hand(&name, &wire::message_of(&headers, body, ""));
            }
        }
    });
    Ok(())
}
