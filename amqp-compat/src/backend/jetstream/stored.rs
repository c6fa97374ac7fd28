//! A vhost as it is stored in JetStream, for those who look at it and do not serve it: nothing is made or changed, and no
//! lease is needed.

use foldhash::HashMap;
use nats_bridge::Bridge;
use serde_json::Value;

use super::{JetStreamBackend, api, store};
use crate::error::AmqpError;
use crate::mapping::name;
use crate::model::exchange::ExchangeDefinition;
use crate::model::policy::Policy;
use crate::model::queue::QueueDefinition;
use crate::model::vhost::{BindingDefinition, Change};

/// What outlives a gateway of one vhost.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// Durable exchanges, but for those that every vhost has.
    pub exchanges: Vec<ExchangeDefinition>,
    /// Durable queues, with the names of their streams.
    pub queues: Vec<(QueueDefinition, String)>,
    /// Bindings between those, but for those of the default exchange.
    pub bindings: Vec<BindingDefinition>,
    /// Policies, those of operators included.
    pub policies: Vec<Policy>,
    /// The streams of queues that there are, by name.
    pub streams: HashMap<String, StoredStream>,
}

/// A stream as the server describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredStream {
    /// Its configuration.
    pub config: Value,
    /// How many consumers it has.
    pub consumers: u64,
}

impl JetStreamBackend {
    /// What is stored of a vhost, as it is now; nothing where it was never served.
    ///
    /// # Errors
    /// `InternalError` when JetStream does not answer.
    pub async fn stored(bridge: &Bridge, vhost: &str) -> Result<Stored, AmqpError> {
        let mut stored = Stored::default();
        if !store::Store::is_there(bridge, vhost).await? {
            return Ok(stored);
        }
        for (change, stream) in store::Store::open(bridge, vhost).await?.load().await? {
            match change {
                Change::PutPolicy(policy) => stored.policies.push(policy),
                Change::PutExchange(exchange) => stored.exchanges.push(exchange),
                Change::PutQueue(queue) => stored.queues.push((queue, stream.unwrap_or_default())),
                Change::Bind(binding) => stored.bindings.push(binding),
                Change::DropExchange(_) | Change::DropQueue(_) | Change::Unbind(_) | Change::DropPolicy(..) => {}
            }
        }
        let subject = format!("{}.{}.*", name::SUBJECT_PREFIX, name::vhost_token(vhost));
        for mut stream in api::streams(bridge, &subject).await? {
            let consumers = stream["state"]["consumer_count"].as_u64().unwrap_or_default();
            let config = stream["config"].take();
            if let Some(name) = config["name"].as_str().map(str::to_owned) {
                stored.streams.insert(name, StoredStream { config, consumers });
            }
        }
        Ok(stored)
    }
}
