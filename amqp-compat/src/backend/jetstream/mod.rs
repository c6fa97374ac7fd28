//! AMQP on NATS JetStream: each queue is a work-queue stream, exchanges and bindings are routed here.
//!
//! - [`JetStreamBackend`]: the backend; [`JetStreamConfig`] its settings.
//! - `vhost`, `store`: the topology, in memory and in a key-value bucket.
//! - `queue`, `settings`, `levels`, `pump`, `pull`, `ack`: one queue, its priorities, and the actor that feeds its consumers.
//! - `alarm`: whether JetStream has room.
//! - `dead_letters`: where a message goes that its queue dead-letters.
//! - `link`, `publisher`: one AMQP connection, and what it has published.
//! - `policies`: settings that apply to queues and exchanges by their names.
//! - `vhosts`: those that there are, and how they are made and deleted.
//! - `users`: who may log in, and what each may do.
//! - `topology`: the topology as gateways tell it to each other.
//! - `survey`: what there is, for those who look at it; `stored`: the same for those who do not serve it.
//! - `shape`: what a queue becomes, without asking.
//! - `log`: stream queues.
//! - `delays`: what delayed exchanges keep.
//! - `api`, `message`: JetStream's API, and messages as headers and payload.
//! - `lease`: one gateway at a time serves a NATS account, since a second one would take the first one's deliveries for lost.
//! - `gateways`: several that share an account, one of which leads.

use std::collections::BTreeMap;
use std::sync::Arc;

use amq_protocol::types::ShortString;
use async_trait::async_trait;
use foldhash::{HashMap, HashMapExt};
use nats_bridge::Bridge;

use crate::backend::{Backend, Link, Login, Message};
use crate::error::{AmqpError, ReplyCode};
use crate::model::queue::{QueueArguments, QueueDefinition};
use crate::model::vhost::{BindingDefinition, Route};

mod ack;
mod alarm;
mod api;
mod bucket;
mod config;
mod dead_letters;
mod delays;
mod gateways;
pub mod lease;
mod levels;
mod link;
mod log;
mod memory;
mod message;
mod policies;
mod publisher;
mod pull;
mod pump;
mod queue;
mod settings;
mod shape;
mod store;
mod stored;
mod survey;
mod topology;
mod users;
mod vhost;
mod vhosts;

pub use alarm::{Alarm, Resource};
pub use bucket::open_bucket;
pub use config::{JetStreamConfig, StoreObserver, User};
pub use gateways::Gateways;
pub use lease::Lease;
pub use memory::MemoryLimit;
pub use policies::Applied;
pub use shape::QueueShape;
pub use stored::{Stored, StoredStream};
pub use survey::{Present, QueueCounts};
pub use users::hashed;

pub use vhosts::About;

use users::{Access, Users};
use vhost::VhostRuntime;
use vhosts::Vhosts;

/// AMQP on NATS JetStream.
#[derive(Debug)]
pub struct JetStreamBackend {
    bridge: Bridge,
    config: Arc<JetStreamConfig>,
    vhosts: Vhosts,
    users: Arc<Users>,
}

impl JetStreamBackend {
    /// Loads every vhost's topology from JetStream, makes what is missing, and removes queues that a gateway before this
    /// one has left and that do not outlive it (transient and exclusive ones). Takes the account's [`Lease`] first, unless
    /// `config` has one; when it is lost, all links end and no more are opened.
    ///
    /// # Errors
    /// `ResourceLocked` when another gateway serves this NATS account; `InternalError` when JetStream does not answer or
    /// refuses what is needed.
    pub async fn connect(bridge: Bridge, mut config: JetStreamConfig) -> Result<Arc<Self>, AmqpError> {
        if config.lease.is_none() && config.gateways.is_none() {
            config.lease = Some(Lease::acquire(&bridge).await?);
        }
        // The connection for publishes is made now: an account that allows no further one is known before a client comes.
        bridge.ordered_inbox().await.map_err(|error| {
            AmqpError::new(ReplyCode::InternalError, format!("no second connection to NATS, for publishes: {error}"))
        })?;
        let config = Arc::new(config);
        let follows = config.gateways.as_ref().is_some_and(|gateways| !gateways.runs_queues());
        let mut names = match config.behind_rabbitmq {
            true => BTreeMap::new(),
            false => vhosts::stored(&bridge).await?,
        };
        for name in &config.vhosts {
            names.entry(name.clone()).or_default();
        }
        let users = Users::load(&bridge, &config).await?;
        let vhosts = Vhosts::default();
        let mut all = HashMap::new();
        for (name, about) in names {
            let vhost = match follows {
                true => VhostRuntime::empty(&name, &bridge, &config).await?,
                false => VhostRuntime::load(&name, &bridge, &config).await?,
            };
            vhosts.insert(&name, vhost.clone(), about);
            all.insert(name, vhost);
        }
        if let Some(gateways) = &config.gateways {
            gateways.start(&all).await?;
        }
        Ok(Arc::new(Self { bridge, config, vhosts, users }))
    }
}

impl JetStreamBackend {
    /// Whether a vhost was ever served from this JetStream.
    ///
    /// # Errors
    /// `InternalError` when JetStream does not answer.
    pub async fn is_known(bridge: &Bridge, vhost: &str) -> Result<bool, AmqpError> {
        store::Store::is_there(bridge, vhost).await
    }

    /// The queues that a message would be stored in, by the topology as it is now. `user_id` is not checked.
    ///
    /// # Errors
    /// What its publisher would be told: `NotFound` for an exchange or vhost that is not there, `NotImplemented` or
    /// `PreconditionFailed` for a property that is not honoured.
    pub fn route(&self, vhost: &str, message: &Message) -> Result<Vec<ShortString>, AmqpError> {
        let Some(vhost) = self.vhosts.get(vhost) else {
            return Err(AmqpError::new(ReplyCode::NotFound, format!("vhost '{vhost}' not found")));
        };
        let queues = vhost.destinations(
            &message.properties,
            message.exchange.as_str(),
            message.routing_key.as_str(),
            None,
            &mut Route::default(),
        )?;
        Ok(queues.iter().map(|queue| ShortString::try_new(queue.name()).unwrap_or_default()).collect())
    }
}

impl JetStreamBackend {
    /// The names of a vhost's queues that outlive this process.
    pub fn durable_queues(&self, vhost: &str) -> Vec<ShortString> {
        let Some(vhost) = self.vhosts.get(vhost) else { return Vec::new() };
        let state = vhost.state();
        let durable = state.model.queues().filter(|queue| queue.is_persistent());
        durable.map(|queue| ShortString::try_new(&*queue.name).unwrap_or_default()).collect()
    }

    /// What is in force for a queue that outlives this process; `None` for another one, and one that is not there.
    pub fn lasting(&self, vhost: &str, queue: &str) -> Option<QueueArguments> {
        let vhost = self.vhosts.get(vhost)?;
        let state = vhost.state();
        let definition = state.model.queue(state.model.queue_slot(queue)?)?;
        definition.is_persistent().then(|| state.model.policies().settings_of(definition))
    }

    /// A queue, as it was declared.
    pub fn definition(&self, vhost: &str, queue: &str) -> Option<QueueDefinition> {
        let vhost = self.vhosts.get(vhost)?;
        let state = vhost.state();
        state.model.queue(state.model.queue_slot(queue)?).cloned()
    }

    /// The bindings of a vhost, but for those of the default exchange.
    pub fn bindings(&self, vhost: &str) -> Vec<BindingDefinition> {
        self.vhosts.get(vhost).map(|vhost| vhost.state().model.bindings().cloned().collect()).unwrap_or_default()
    }
}

#[async_trait]
impl Backend for JetStreamBackend {
    async fn authenticate(&self, login: &Login) -> Result<(), AmqpError> {
        let known = self.config.behind_rabbitmq
            || match &login.certificate {
                Some(name) => self.users.get(name).is_some(),
                None => self.users.get(&login.user).is_some_and(|account| account.is_password(&login.password)),
            };
        if known {
            return Ok(());
        }
        Err(AmqpError::new(
            ReplyCode::AccessRefused,
            "Login was refused using authentication mechanism PLAIN. For details see the broker logfile.",
        ))
    }

    fn takes_certificates(&self) -> bool {
        !self.config.behind_rabbitmq
    }

    async fn open(&self, login: Login) -> Result<Link, AmqpError> {
        self.authenticate(&login).await?;
        if self.config.is_overtaken() {
            return Err(self.config.lease_lost().await);
        }
        let Some(vhost) = self.vhosts.get(&login.vhost) else {
            return Err(AmqpError::new(ReplyCode::NotAllowed, format!("vhost '{}' not found", login.vhost)));
        };
        if vhost.gone.is_cancelled() {
            return Err(vhost.is_deleted());
        }
        let access = Access::open(&self.users, &self.config, &login.user, &vhost.name)?;
        let (inbox, confirms) = self
            .bridge
            .ordered_inbox()
            .await
            .map_err(|error| AmqpError::new(ReplyCode::InternalError, error.to_string()))?;
        Ok(link::start(vhost, access, inbox, confirms))
    }
}
