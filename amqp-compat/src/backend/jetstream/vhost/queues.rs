//! Queues that come and go.

use std::sync::{Arc, Weak};
use std::time::Instant;

use amq_protocol::types::ShortString;
use foldhash::{HashMap, HashMapExt};
use nats_bridge::Bridge;

use super::{DELETED_SWEEP, EXPIRY_TICK, REUSE_AFTER, VhostRuntime, not_shared, put};
use crate::backend::QueueDeclare;
use crate::backend::jetstream::api;
use crate::backend::jetstream::memory::now_ns;
use crate::backend::jetstream::pump::Cancelled;
use crate::backend::jetstream::queue::{Counts, Queue};
use crate::backend::jetstream::shape::{META_LIFETIME, META_QUEUE, META_VHOST};
use crate::error::{AmqpError, ReplyCode};
use crate::mapping::name;
use crate::model::beside_rabbitmq;
use crate::model::queue::{Owner, QueueKind, display};
use crate::model::vhost::{Change, QueuePlan, no_queue, without_line_ends};

impl VhostRuntime {
    /// Declares a queue, and counts what is in it.
    pub(crate) async fn declare_queue(
        &self,
        declare: &QueueDeclare,
        by: Owner,
    ) -> Result<(Arc<Queue>, Counts), AmqpError> {
        let given = match declare.queue.as_str() {
            "" if !declare.passive => made_up_name(),
            given => without_line_ends(given),
        };
        // A name that the RabbitMQ before it has made up is taken as if it had been made up here.
        let nameless = QueueDeclare { queue: ShortString::default(), ..declare.clone() };
        let repeats = self.config.behind_rabbitmq && !declare.passive && given.starts_with("amq.gen-");
        let declare = if repeats { &nameless } else { declare };
        let find = || {
            let state = self.state();
            Ok(match state.model.plan_queue_declare(declare, &given, by)? {
                QueuePlan::Exists(slot) => match state.queue(slot) {
                    Some(queue) => Ok(queue.clone()),
                    None => return Err(no_queue(&self.name, &given)),
                },
                QueuePlan::Create(definition) => Err(*definition),
            })
        };
        if let Ok(queue) = find()? {
            queue.touch();
            // Without an answer it may be on its way out: then it is looked for again once it is gone.
            if let Ok(counts) = queue.counts().await {
                return Ok((queue, counts));
            }
        }
        let _changing = self.change_alone().await?;
        match find()? {
            Ok(queue) => {
                let counts = queue.counts().await?;
                Ok((queue, counts))
            }
            Err(definition) => {
                if self.config.gateways.is_some() && definition.settings.kind == QueueKind::Stream {
                    return Err(not_shared(&self.name, &definition.name));
                }
                if self.config.behind_rabbitmq {
                    beside_rabbitmq::check_queue(&self.name, &definition)?;
                }
                let stream = self.stream_for(&definition.name);
                let settings = self.state().model.policies().settings_of(&definition);
                let of = (definition.clone(), settings);
                let queue = Queue::new(&self.name, of, stream, &self.bridge, &self.config, &self.state);
                let queue = Arc::new(queue);
                queue.ensure().await?;
                let is_persistent = definition.is_persistent();
                let change = Change::PutQueue(definition);
                if is_persistent {
                    self.store.write(&change, &queue.stream).await?;
                }
                self.add_queue(&change, &queue);
                queue.watch().await?;
                Ok((queue, Counts::default()))
            }
        }
    }

    fn add_queue(&self, change: &Change, queue: &Arc<Queue>) {
        let mut state = self.state_mut();
        if let Some(slot) = state.model.apply(change) {
            put(&mut state.queues, slot, queue.clone());
        }
        drop(state);
        self.announce(std::slice::from_ref(change), &queue.stream);
    }

    /// Deletes a queue for a client; says how many messages were ready in it, and which consumers are to be told.
    pub(crate) async fn delete_queue(
        &self,
        name: &str,
        if_unused: bool,
        if_empty: bool,
        by: Owner,
    ) -> Result<(u64, Vec<Cancelled>), AmqpError> {
        let name = without_line_ends(name);
        let _changing = self.change_alone().await?;
        let queue = match self.queue_for(&name, by) {
            Ok(queue) => queue,
            Err(error) if error.code == ReplyCode::NotFound => return Ok((0, Vec::new())),
            Err(error) => return Err(error),
        };
        let counts = self.check_delete(&queue, if_unused, if_empty).await?;
        Ok((counts.ready, self.remove_queue(&queue).await?))
    }

    /// Whether a client may delete a queue; gives what is in it.
    pub(crate) async fn check_delete(
        &self,
        queue: &Arc<Queue>,
        if_unused: bool,
        if_empty: bool,
    ) -> Result<Counts, AmqpError> {
        let counts = queue.counts().await?;
        let refuse = |why| {
            let what = display(&self.name, queue.name());
            Err(AmqpError::new(ReplyCode::PreconditionFailed, format!("{what} {why}")))
        };
        if if_unused && counts.consumers > 0 {
            return refuse("in use");
        }
        if if_empty && counts.ready > 0 {
            return refuse("not empty");
        }
        Ok(counts)
    }

    /// Deletes this queue, not a later one of its name: its connection closed, or its last consumer went.
    pub(crate) async fn discard_queue(&self, queue: &Arc<Queue>) -> Result<(), AmqpError> {
        match &self.config.gateways {
            Some(gateways) => gateways.discard(self, queue).await,
            None => self.discard_here(queue).await,
        }
    }

    /// [`Self::discard_queue`] by the gateway that changes the topology.
    pub(crate) async fn discard_here(&self, queue: &Arc<Queue>) -> Result<(), AmqpError> {
        // With its vhost it is gone already.
        let Ok(_changing) = self.change_alone().await else { return Ok(()) };
        match self.queue_named(queue.name()) {
            Some(current) if Arc::ptr_eq(&current, queue) => {
                self.remove_queue(queue).await?.into_iter().for_each(Cancelled::tell);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The queues that belong to a connection.
    pub(crate) fn queues_of(&self, owner: Owner) -> Vec<Arc<Queue>> {
        let state = self.state();
        state.queues.iter().flatten().filter(|queue| queue.definition.owner == Some(owner)).cloned().collect()
    }

    /// The name of the stream for a new queue: another one when a queue of this name was deleted a moment ago.
    fn stream_for(&self, queue: &str) -> String {
        let deleted = self.deleted.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match deleted.get(queue) {
            Some(at) if at.elapsed() < REUSE_AFTER => name::next_stream(&self.name, queue, now_ns()),
            _ => name::stream(&self.name, queue),
        }
    }

    pub(in crate::backend::jetstream) fn note_deleted(&self, queue: &str) {
        let mut deleted = self.deleted.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if deleted.len() >= DELETED_SWEEP && deleted.len().is_power_of_two() {
            deleted.retain(|_, at| at.elapsed() < REUSE_AFTER);
        }
        // A name that the broker made up is never declared again.
        if !queue.starts_with("amq.gen-") {
            deleted.insert(queue.to_owned(), Instant::now());
        }
    }

    /// The stream goes first: a crash in between leaves an empty queue, never a stream that nobody knows.
    async fn remove_queue(&self, queue: &Arc<Queue>) -> Result<Vec<Cancelled>, AmqpError> {
        let cancelled = queue.delete().await?;
        self.note_deleted(queue.name());
        let changes = self.state().model.plan_queue_removal(queue.name());
        self.make(&changes).await?;
        Ok(cancelled)
    }
}

/// Deletes queues that nobody has used for their `x-expires`, for as long as the vhost lives.
pub(super) async fn expire_queues(vhost: Weak<VhostRuntime>) {
    let mut tick = tokio::time::interval(EXPIRY_TICK);
    loop {
        tick.tick().await;
        let Some(vhost) = vhost.upgrade().filter(|vhost| !vhost.config.is_overtaken() && !vhost.gone.is_cancelled())
        else {
            return;
        };
        let expired: Vec<Arc<Queue>> = vhost
            .state()
            .queues
            .iter()
            .flatten()
            .filter(|queue| queue.is_here() && queue.has_expired())
            .cloned()
            .collect();
        for queue in expired {
            match vhost.discard_queue(&queue).await {
                Ok(()) => tracing::debug!(vhost = &*vhost.name, queue = queue.name(), "a queue expired"),
                Err(error) => tracing::warn!(queue = queue.name(), %error, "an expired queue cannot be deleted yet"),
            }
        }
    }
}

/// Deletes the streams of transient and exclusive queues of gateways before this one.
pub(super) async fn remove_leftovers(bridge: &Bridge, vhost: &str) -> Result<HashMap<String, Instant>, AmqpError> {
    let mut deleted = HashMap::new();
    let subject = format!("{}.{}.*", name::SUBJECT_PREFIX, name::vhost_token(vhost));
    for stream in api::streams(bridge, &subject).await? {
        let metadata = &stream["config"]["metadata"];
        let is_leftover = metadata[META_LIFETIME] == "gateway" && metadata[META_VHOST] == vhost;
        if let (true, Some(name)) = (is_leftover, stream["config"]["name"].as_str()) {
            tracing::info!(vhost, queue = metadata[META_QUEUE].as_str(), "removing a queue that its gateway has left");
            match api::call(bridge, &format!("STREAM.DELETE.{name}"), &serde_json::Value::Null).await {
                Err(error) if !error.not_found() => return Err(error.into()),
                _ => {}
            }
            deleted.extend(metadata[META_QUEUE].as_str().map(|name| (name.to_owned(), Instant::now())));
        }
    }
    Ok(deleted)
}

/// A name as RabbitMQ makes them up.
pub(in crate::backend::jetstream) fn made_up_name() -> String {
    use base64::Engine as _;
    let random = ulid::Ulid::new().to_bytes();
    format!("amq.gen-{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random))
}
