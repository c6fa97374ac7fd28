//! Publishes the fences of one side, and publishes them once more when its broker was away.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use amqp_compat::backend::{Event, Link};
use amqp_compat::error::{AmqpError, ReplyCode};
use tokio::time::Instant;

use super::operator::{Depth, Operator, Sent};
use super::shared::Shared;
use super::stamp;
use crate::fence::{FenceId, QueueName};
use crate::ownership::Side;

/// The waits after an attempt that failed: doubled from the first to the last, until one succeeds.
const WAIT: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Publishes fences on one side, for as long as the sidecar runs. One that fails is sent again, behind the others, until nobody waits
/// for it; a fence that is in its queue twice changes nothing.
pub async fn publish_fences(shared: Arc<Shared>, operator: Arc<Operator>) {
    let side = operator.side();
    let mut watch = Watch::Idle;
    // At most one for each queue and change that is open.
    let mut due: VecDeque<(QueueName, FenceId)> = VecDeque::new();
    let (mut next, mut wait) = (Instant::now(), WAIT.0);
    loop {
        tokio::select! {
            fence = shared.next_fence(side) => due.push_back(fence),
            () = tokio::time::sleep_until(next), if !due.is_empty() => {
                let Some((queue, fence)) = due.pop_front() else { continue };
                match publish(&shared, &operator, &mut watch, &queue, fence).await {
                    Ok(()) => wait = WAIT.0,
                    Err(error) => {
                        tracing::debug!(%queue, %side, %error, "a fence could not be published yet");
                        if wait >= WAIT.1 {
                            shared.warn("fence_not_published", format!("queue {queue} on {side}: {error}"));
                        }
                        due.push_back((queue, fence));
                        next = Instant::now() + wait;
                        wait = (wait * 2).min(WAIT.1);
                    }
                }
            }
            () = watch.returns(&shared, &operator) => returned(&shared, side),
        }
    }
}

/// Publishes a fence, if anybody waits for it.
async fn publish(
    shared: &Shared,
    operator: &Operator,
    watch: &mut Watch,
    queue: &QueueName,
    fence: FenceId,
) -> Result<(), AmqpError> {
    if !shared.order().fences.awaits(queue, fence) {
        return Ok(());
    }
    match store(shared, operator, watch, queue, fence).await? {
        Sent::Stored => shared.order().fences.fence_stored(queue, fence),
        Sent::NoQueue => {
            let actions = shared.order().fences.passed(queue, fence, shared.now());
            shared.act(actions);
        }
    }
    Ok(())
}

/// Puts a fence into its queue. One that nobody consumes here and that holds nothing needs no fence, and is not to keep one.
async fn store(
    shared: &Shared,
    operator: &Operator,
    watch: &mut Watch,
    queue: &QueueName,
    fence: FenceId,
) -> Result<Sent, AmqpError> {
    if watch.open(operator, queue).await? {
        returned(shared, operator.side());
    }
    if !shared.order().consumers.contains_key(queue) {
        match operator.depth(queue).await {
            Ok(None | Some(Depth { ready: 0, consumers: 0 })) => return Ok(Sent::NoQueue),
            // A queue that belongs to a connection may not be asked for, but can be published to.
            Err(error) if error.code != ReplyCode::ResourceLocked => return Err(error),
            Ok(Some(_)) | Err(_) => {}
        }
    }
    operator.send(queue, &stamp::fence(&queue.queue, fence)).await
}

/// Sees that the broker of a side was away, by a link on which nothing is done. It is there before a fence is stored, so that none is lost
/// unseen, whether or not a client is connected.
enum Watch {
    /// No fence was published yet, or none is waited for.
    Idle,
    /// A link to this vhost.
    Open(Arc<str>, Link),
    /// The link to this vhost has ended by itself.
    Lost(Arc<str>),
}

impl Watch {
    /// Makes sure that there is a link; if there is none, to the vhost of this queue. Whether there was one before that has ended.
    async fn open(&mut self, operator: &Operator, queue: &QueueName) -> Result<bool, AmqpError> {
        if let Self::Open(_, link) = self
            && !link.commands.is_closed()
        {
            return Ok(false);
        }
        let link = operator.link(&queue.vhost).await?;
        let before = std::mem::replace(self, Self::Open(Arc::clone(&queue.vhost), link));
        Ok(!matches!(before, Self::Idle))
    }

    /// Waits until the broker was away and is back. While no fence of this side is waited for, it may stay away.
    ///
    /// # Cancel safety
    /// Cancel safe: what was seen is kept.
    async fn returns(&mut self, shared: &Shared, operator: &Operator) {
        let side = operator.side();
        let mut wait = WAIT.0;
        loop {
            match self {
                Self::Idle => pending().await,
                Self::Open(vhost, link) => match link.events.recv().await {
                    // A link to NATS outlives the connection to NATS, and tells.
                    Some(Event::Unblocked) if side == Side::Nats => return,
                    Some(Event::Closed { .. }) | None => *self = Self::Lost(Arc::clone(vhost)),
                    Some(_) => {}
                },
                Self::Lost(_) if !shared.order().fences.awaits_any(side) => *self = Self::Idle,
                Self::Lost(vhost) => match operator.link(vhost).await {
                    Ok(link) => {
                        *self = Self::Open(Arc::clone(vhost), link);
                        return;
                    }
                    Err(error) => {
                        tracing::debug!(%side, %error, "a side is not back yet");
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(WAIT.1);
                    }
                },
            }
        }
    }
}

/// The broker of a side was away and is back.
fn returned(shared: &Shared, side: Side) {
    let actions = shared.order().fences.returned(side);
    if !actions.is_empty() {
        tracing::info!(%side, fences = actions.len(), "a side was away: the fences in it are published once more");
    }
    shared.act(actions);
}
