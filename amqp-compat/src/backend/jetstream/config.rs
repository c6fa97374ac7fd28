//! Settings of the JetStream backend.

use std::sync::Arc;
use std::time::Duration;

use super::alarm::Alarm;
use super::gateways::Gateways;
use super::lease::Lease;
use super::memory::MemoryLimit;
use crate::backend::Message;
use crate::error::AmqpError;

/// How AMQP is kept on JetStream.
#[derive(Debug, Clone)]
pub struct JetStreamConfig {
    /// Users that may log in. Default: `guest` with password `guest`.
    pub users: Vec<User>,
    /// Virtual hosts that exist. Default: `/`.
    pub vhosts: Vec<String>,
    /// The lease on the NATS account that the backend serves under; `None` takes one of its own. Default `None`.
    pub lease: Option<Lease>,
    /// Its place among several gateways that share the NATS account; then `lease` is not looked at. Default `None`: this
    /// gateway serves the account alone.
    pub gateways: Option<Gateways>,
    /// Whether a RabbitMQ before it answers every login and makes up the names of queues, as in a sidecar: any login is
    /// then let in, and a queue may be declared under a name that begins with `amq.gen-`. A queue with a single active
    /// consumer is refused, since each of two brokers would have one. Default false.
    pub behind_rabbitmq: bool,
    /// Replicas of a durable classic queue's stream. Default 1.
    pub replicas: usize,
    /// Replicas of a quorum queue's stream. Default 3.
    pub quorum_replicas: usize,
    /// What becomes of a quorum queue where the servers cannot hold that many replicas: made with `replicas`, with a
    /// warning (as RabbitMQ does on one node), or refused with 540. Default: made.
    pub quorum_fallback: bool,
    /// How much memory the messages of exclusive queues may take, which live in the gateway. Default 256 MiB.
    pub memory: MemoryLimit,
    /// Whether JetStream has room, as its publishers find. Backends on one account are given clones of one.
    pub alarm: Alarm,
    /// For how long a queue's stream knows the ids of publishes. A publish whose confirm got lost is sent again within
    /// it and stored once. Default 30 s; at least 100 ms.
    pub dedup_window: Duration,
    /// Whether publishes carry an id. Without one a publish that is sent again after a lost connection may be stored
    /// twice; with one the server keeps about 150 bytes for each, for the window. Default true.
    pub publish_ids: bool,
    /// After how long JetStream takes a delivery back from a gateway that does not answer. What a client holds is kept
    /// alive for as long as the gateway lives. Default 30 s.
    pub ack_wait: Duration,
    /// How long a client may take to settle a delivery of a queue that does not say (`x-consumer-timeout`); then its channel
    /// is closed with 406. `None`: as long as it likes. Default 30 min, as in RabbitMQ.
    pub consumer_timeout: Option<Duration>,
    /// How many copies of messages one connection may have sent without a confirm; beyond it the connection's commands
    /// wait. Default 8192: servers before 2.12 take at most 10 000 for a stream.
    pub publish_window: usize,
    /// The same in bytes of bodies. Default 64 MiB.
    pub publish_window_bytes: usize,
    /// How many messages the delayed exchanges of a vhost may keep; one more is refused (`basic.nack`). The gateway's memory
    /// holds about 32 bytes for each. Default 1 000 000.
    pub max_delayed: u64,
    /// How long a publish is tried before it fails (`basic.nack`). Default 30 s; not longer than `dedup_window`, or a late
    /// resend could be stored twice.
    pub publish_timeout: Duration,
    /// Who is told of every message that a queue's stream has taken. Default `None`.
    pub observer: Option<Arc<dyn StoreObserver>>,
}

/// Is told where messages are stored, before their publishers are.
pub trait StoreObserver: std::fmt::Debug + Send + Sync {
    /// A queue's stream has confirmed a message at this sequence. It is called for each copy, and must not wait.
    fn stored(&self, vhost: &str, queue: &str, message: &Message, sequence: u64);
}

impl Default for JetStreamConfig {
    fn default() -> Self {
        Self {
            users: vec![User { name: "guest".into(), password: "guest".into() }],
            vhosts: vec!["/".into()],
            lease: None,
            gateways: None,
            behind_rabbitmq: false,
            replicas: 1,
            quorum_replicas: 3,
            quorum_fallback: true,
            memory: MemoryLimit::default(),
            alarm: Alarm::default(),
            dedup_window: Duration::from_secs(30),
            publish_ids: true,
            ack_wait: Duration::from_secs(30),
            consumer_timeout: Some(Duration::from_secs(30 * 60)),
            publish_window: 8192,
            publish_window_bytes: 64 << 20,
            max_delayed: 1_000_000,
            publish_timeout: Duration::from_secs(30),
            observer: None,
        }
    }
}

impl JetStreamConfig {
    /// Waits until the lease is lost, for ever where there is none or it is kept.
    pub(crate) async fn lease_lost(&self) -> AmqpError {
        match (&self.gateways, &self.lease) {
            (Some(gateways), _) => gateways.lost().await,
            (None, Some(lease)) => lease.lost().await,
            (None, None) => std::future::pending().await,
        }
    }

    /// Whether another gateway serves the account now, so that nothing may be touched any more.
    pub(crate) fn is_overtaken(&self) -> bool {
        match &self.gateways {
            Some(gateways) => gateways.is_lost(),
            None => self.lease.as_ref().is_some_and(Lease::is_lost),
        }
    }
}

/// A user that may log in.
#[derive(Clone)]
pub struct User {
    /// The name.
    pub name: String,
    /// The password. Never logged.
    pub password: String,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("name", &self.name).field("password", &"***").finish()
    }
}
