//! The servers of both sides, for one way of making messages durable.

use clap::ValueEnum;
use test_support::cluster::NatsCluster;
use test_support::nats::NatsServer;
use test_support::rabbit::{RabbitCluster, RabbitMq};

use super::{AmqpArgs, AnyError};
use crate::processes;
use crate::program::Program;

/// When nats-server flushes to disk, and how many servers there are on both sides. RabbitMQ always flushes before it confirms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// One server on each side; nats-server flushes by its default, every two minutes.
    Default,
    /// One server on each side; nats-server flushes before each confirm, as RabbitMQ does.
    Always,
    /// Three servers on each side, queues on all three, flushed before each confirm.
    Three,
}

impl Profile {
    /// How names of its figures begin.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Always => "always",
            Self::Three => "three, always",
        }
    }

    /// Where each publish waits for disks, a round has fewer of them.
    pub fn publishes(self, messages: usize) -> usize {
        if self == Self::Default { messages } else { messages / 10 }
    }
}

/// What runs on both sides; it is stopped when this is dropped.
pub struct Servers {
    /// The listener's AMQP URL.
    pub listener: String,
    /// RabbitMQ's.
    pub rabbit: String,
    /// The listener's nats-server, where it was started here.
    pub nats: Option<String>,
    /// Replicas of a quorum queue.
    pub replicas: usize,
    /// The processes of the listener and of its nats-servers, as far as they were started here.
    pub ours: Vec<u32>,
    /// The processes of RabbitMQ.
    pub theirs: Vec<u32>,
    // In the order in which they are stopped: the gateway before its NATS.
    _gateway: Option<Program>,
    _nats: Option<NatsCluster>,
    _rabbit: Option<Rabbit>,
}

enum Rabbit {
    One(RabbitMq),
    Three(RabbitCluster),
}

impl Servers {
    /// Starts what is not given by URL.
    ///
    /// # Errors
    /// When a program is missing or does not come up.
    pub async fn start(args: &AmqpArgs, profile: Profile) -> Result<Self, AnyError> {
        let args = args.clone();
        tokio::task::spawn_blocking(move || Self::start_now(&args, profile)).await?
    }

    fn start_now(args: &AmqpArgs, profile: Profile) -> Result<Self, AnyError> {
        let is_three = profile == Profile::Three;
        let rabbit = match (&args.rabbit, is_three) {
            (Some(_), _) => None,
            (None, false) => Some(Rabbit::One(RabbitMq::try_start()?)),
            (None, true) => Some(Rabbit::Three(RabbitCluster::try_start()?)),
        };
        let (gateway, nats) = match (&args.listener, profile) {
            (Some(_), _) => (None, None),
            (None, Profile::Default) => (Some(Program::serve(None)?), None),
            (None, Profile::Always) => (Some(Program::serve(Some("always"))?), None),
            (None, Profile::Three) => {
                let nats = NatsCluster::start_with(&NatsServer::builder().jetstream("sync_interval: always"));
                (Some(Program::serve_on(&nats.urls())?), Some(nats))
            }
        };
        let theirs = match &rabbit {
            None => Vec::new(),
            Some(Rabbit::One(node)) => vec![node.pid()],
            Some(Rabbit::Three(cluster)) => cluster.nodes().map(RabbitMq::pid).collect(),
        };
        let mut ours: Vec<u32> = gateway.iter().map(Program::pid).collect();
        ours.extend(nats.iter().flat_map(|nats| (0..3).map(|number| nats.node(number).pid())));
        let listener = gateway.as_ref().map(|gateway| gateway.url_for("/"));
        let rabbit_url = rabbit.as_ref().map(|rabbit| match rabbit {
            Rabbit::One(node) => node.url(),
            Rabbit::Three(cluster) => cluster.first().url(),
        });
        Ok(Self {
            listener: listener.or_else(|| args.listener.clone()).unwrap_or_default(),
            rabbit: rabbit_url.or_else(|| args.rabbit.clone()).unwrap_or_default(),
            nats: gateway
                .as_ref()
                .and_then(|gateway| nats.as_ref().map(NatsCluster::urls).or_else(|| gateway.nats_url())),
            replicas: if is_three { 3 } else { 1 },
            ours,
            theirs,
            _gateway: gateway,
            _nats: nats,
            _rabbit: rabbit,
        })
    }

    /// Whether all of both sides was started here, so that its memory can be read.
    pub fn are_ours_to_read(&self) -> bool {
        !self.ours.is_empty() && !self.theirs.is_empty()
    }

    /// Resident memory of each side by the name of the program, in bytes.
    pub fn resident(&self) -> [Vec<(String, u64)>; 2] {
        [processes::resident(&self.ours), processes::resident(&self.theirs)]
    }
}
