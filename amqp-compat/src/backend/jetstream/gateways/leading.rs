//! The leading side: who follows, what they are told of the topology, and the barrier behind a change.

use std::sync::Arc;
use std::time::{Duration, Instant};

use amq_protocol::types::ShortString;
use bytes::Bytes;
use foldhash::HashMap;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::following::license;
use super::wire::{Answer, Down, Say};
use super::{Gateways, Role, lock};
use crate::backend::jetstream::pump::Cancelled;
use crate::backend::jetstream::queue::Counts;
use crate::backend::jetstream::store::Wire;
use crate::backend::jetstream::vhost::VhostRuntime;
use crate::backend::{Reply, Topology};
use crate::error::{AmqpError, ReplyCode};
use crate::model::policy::{Policy, Scope};
use crate::model::queue::Owner;
use crate::model::vhost::Change;

/// How long gateways that follow may take to hear that this one leaves.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What a leading gateway knows.
#[derive(Default)]
pub(super) struct Leading {
    /// Counts the changes of the topology.
    version: u64,
    followers: HashMap<String, Follower>,
    /// Until when gateways that followed the one before may route by what they knew then.
    settled_at: Option<Instant>,
    /// It is about to lead no more: what clients of others hold is the next one's to deliver again.
    leaves: bool,
    /// By when the consumers of those gateways have come here.
    complete_at: Option<Instant>,
}

/// A gateway that follows.
pub(super) struct Follower {
    pub(super) number: u32,
    pub(super) tell: mpsc::UnboundedSender<(Down, Bytes)>,
    /// Up to which change its topology is as ours.
    pub(super) applied: watch::Receiver<u64>,
    pub(super) ended: CancellationToken,
    /// What its clients held has gone back, after the end.
    pub(super) released: CancellationToken,
    /// The vhosts of which it hears every change.
    pub(super) vhosts: Vec<String>,
}

impl Leading {
    /// `overtaken`: the lease of a gateway that has not given it back.
    pub(super) fn begin(&mut self, overtaken: Option<Duration>) {
        // A license that the one before gave ends by then, with room for clocks that do not run alike.
        self.settled_at = overtaken.map(|lease| Instant::now() + license(lease) + lease / 10);
    }

    /// It followed another gateway before.
    pub(super) fn succeed(&mut self, lease: Duration) {
        self.complete_at = Some(Instant::now() + license(lease));
    }

    pub(super) fn complete_at(&self) -> Option<Instant> {
        self.complete_at.filter(|at| *at > Instant::now())
    }

    pub(super) fn leaves(&self) -> bool {
        self.leaves
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn add(&mut self, session: &str, follower: Follower) {
        self.followers.insert(session.to_owned(), follower);
    }

    pub(super) fn remove(&mut self, session: &str) {
        self.followers.remove(session);
    }

    /// A follower hears of this vhost from now on.
    pub(super) fn include(&mut self, session: &str, vhost: &str) {
        if let Some(follower) = self.followers.get_mut(session) {
            follower.vhosts.push(vhost.to_owned());
        }
    }

    /// Whether a gateway follows.
    pub(super) fn is_followed_by(&self, number: u32) -> bool {
        self.followers.values().any(|follower| follower.number == number)
    }

    /// Ends the conversation that a gateway has begun before another one; gives what tells when nothing is left of it.
    pub(super) fn end_of(&mut self, number: u32) -> Option<CancellationToken> {
        let session = self.followers.iter().find(|(_, follower)| follower.number == number)?.0.clone();
        let follower = self.followers.remove(&session)?;
        follower.ended.cancel();
        Some(follower.released)
    }
}

impl Gateways {
    /// Tells all who follow that a vhost's topology has changed; its changes are made one at a time.
    pub(crate) fn announce(&self, vhost: &str, changes: Vec<Wire>) {
        if changes.is_empty() || !self.runs_queues() {
            return;
        }
        let mut leading = lock(&self.0.leading);
        leading.version += 1;
        let version = leading.version;
        for follower in leading.followers.values() {
            // One that does not serve the vhost, or has not been told all of it yet, counts along.
            let is_told = follower.vhosts.iter().any(|name| name == vhost);
            let changes = if is_told { changes.clone() } else { Vec::new() };
            // One whose conversation has ended is told everything in its next one.
            let _ = follower.tell.send((Down::Changed { version, vhost: vhost.to_owned(), changes }, Bytes::new()));
        }
    }

    /// Waits until every change up to now is in force on all gateways that may route messages.
    pub(super) async fn barrier(&self) {
        let (version, waits, settled_at) = {
            let leading = lock(&self.0.leading);
            let behind = |follower: &&Follower| *follower.applied.borrow() < leading.version;
            let waits: Vec<_> = leading.followers.values().filter(behind).map(|one| one.applied.clone()).collect();
            (leading.version, waits, leading.settled_at)
        };
        for mut applied in waits {
            // It ends with the conversation: by then that gateway does not route any more.
            let _ = applied.wait_for(|applied| *applied >= version).await;
        }
        if let Some(at) = settled_at
            && at > Instant::now()
        {
            tokio::time::sleep_until(at.into()).await;
        }
    }

    /// Does a client's request for the topology, wherever it is to be done; gives who is to be told that their queue is gone.
    ///
    /// When it is answered, what was changed is in force on every gateway that routes messages.
    pub(crate) async fn change(
        &self,
        vhost: &Arc<VhostRuntime>,
        request: Topology,
        owner: Owner,
    ) -> Result<(Reply, Vec<Cancelled>), AmqpError> {
        loop {
            if self.settle_role().await? == Role::Leading {
                let done = vhost.change(request, owner).await?;
                self.barrier().await;
                return Ok(done);
            }
            // An exclusive queue's messages are here, whoever leads.
            let (mut request, mut count) = (request.clone(), None);
            match &mut request {
                Topology::QueuePurge { queue } => {
                    let queue = vhost.queue_for(queue.as_str(), owner)?;
                    if queue.is_here() {
                        let purged = queue.purge().await?;
                        return Ok((Reply::MessageCount(u32::try_from(purged).unwrap_or(u32::MAX)), Vec::new()));
                    }
                }
                Topology::QueueDelete { queue, if_unused, if_empty } => {
                    if let Ok(queue) = vhost.queue_for(queue.as_str(), owner)
                        && queue.is_here()
                    {
                        let counts = vhost.check_delete(&queue, *if_unused, *if_empty).await?;
                        count = Some(u32::try_from(counts.ready).unwrap_or(u32::MAX));
                        (*if_unused, *if_empty) = (false, false);
                    }
                }
                _ => {}
            }
            // What the client has settled before comes before.
            if let Some(queue) = queue_of(&request).and_then(|name| vhost.queue_named(name)) {
                queue.sync().await;
            }
            let (name, of) = (vhost.name.to_string(), owner.0);
            let say = Say::Topology { vhost: name, owner: of, request };
            let Some((answer, _)) = self.ask(&say).await? else { continue };
            let mut reply = answer.into_reply()?;
            if let (Reply::MessageCount(told), Some(count)) = (&mut reply, count) {
                *told = count;
            }
            if let Reply::Queue { queue, message_count, consumer_count } = &mut reply
                && let Some(queue) = vhost.queue_named(queue.as_str()).filter(|queue| queue.is_here())
            {
                let Counts { ready, consumers, .. } = queue.counts().await?;
                *message_count = u32::try_from(ready).unwrap_or(u32::MAX);
                *consumer_count = consumers;
            }
            return Ok((reply, Vec::new()));
        }
    }

    /// Deletes a queue for the broker itself.
    pub(crate) async fn discard(
        &self,
        vhost: &VhostRuntime,
        queue: &Arc<super::super::queue::Queue>,
    ) -> Result<(), AmqpError> {
        loop {
            if self.settle_role().await? == Role::Leading {
                return vhost.discard_here(queue).await;
            }
            let at = super::wire::At { vhost: vhost.name.to_string(), queue: queue.name().to_owned() };
            let owner = queue.definition.owner.map(|owner| owner.0);
            let Some((answer, _)) = self.ask(&Say::Discard { at, owner }).await? else { continue };
            return match answer {
                Answer::Done => Ok(()),
                other => Err(other.into_error()),
            };
        }
    }

    /// Puts a policy or drops it; says whether one of its name was there.
    pub(crate) async fn change_policy(
        &self,
        vhost: &VhostRuntime,
        scope: Scope,
        name: &str,
        policy: Option<Policy>,
    ) -> Result<bool, AmqpError> {
        loop {
            if self.settle_role().await? == Role::Leading {
                let was_there = vhost.change_policy_here(scope, name, policy).await?;
                self.barrier().await;
                return Ok(was_there);
            }
            let say = Say::Policy {
                vhost: vhost.name.to_string(),
                is_operator: scope == Scope::Operator,
                name: name.to_owned(),
                policy: policy.clone().map(|policy| Wire::of(&Change::PutPolicy(policy), "")),
            };
            let Some((answer, _)) = self.ask(&say).await? else { continue };
            return match answer {
                Answer::WasThere(was_there) => Ok(was_there),
                other => Err(other.into_error()),
            };
        }
    }

    /// Waits until it leads or follows.
    async fn settle_role(&self) -> Result<Role, AmqpError> {
        let mut role = self.0.role.subscribe();
        let settled = role.wait_for(|role| *role != Role::TakingOver).await;
        match settled.as_deref() {
            Ok(Role::Ended(why)) => Err(AmqpError::new(ReplyCode::ConnectionForced, why.as_str())),
            Ok(role) => Ok(role.clone()),
            Err(_) => Err(AmqpError::new(ReplyCode::ConnectionForced, "the gateway has ended")),
        }
    }

    /// What a declaration of the name is answered that a client of another gateway waits under for direct replies; nothing for
    /// another name.
    pub(crate) async fn declare_reply_name(
        &self,
        vhost: &VhostRuntime,
        name: &str,
    ) -> Option<Result<Reply, AmqpError>> {
        let is_waiting = self.is_waiting_elsewhere(name).await?;
        let queue = ShortString::try_new(name).unwrap_or_default();
        Some(match is_waiting {
            true => Ok(Reply::Queue { queue, message_count: 0, consumer_count: 1 }),
            false => Err(crate::model::vhost::no_queue(&vhost.name, name)),
        })
    }
}

/// The queue whose messages a request is about.
fn queue_of(request: &Topology) -> Option<&str> {
    match request {
        Topology::QueueDeclare(declare) => Some(declare.queue.as_str()),
        Topology::QueuePurge { queue } | Topology::QueueDelete { queue, .. } => Some(queue.as_str()),
        _ => None,
    }
}

/// Tells all who follow that this gateway leaves, and waits until they have heard it; false when one has not.
pub(super) async fn leave(gateways: &Gateways) -> bool {
    let followers: Vec<_> = {
        let mut leading = lock(&gateways.0.leading);
        leading.leaves = true;
        leading.followers.values().map(|one| (one.tell.clone(), one.ended.clone())).collect()
    };
    for (tell, _) in &followers {
        let _ = tell.send((Down::Bye, Bytes::new()));
    }
    let heard = async {
        for (tell, ended) in followers {
            drop(tell);
            ended.cancelled().await;
        }
    };
    tokio::time::timeout(LAST_WORDS, heard).await.is_ok()
}
