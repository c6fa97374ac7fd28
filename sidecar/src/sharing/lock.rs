//! The lock on RabbitMQ: a queue that belongs to one connection. RabbitMQ deletes it when that connection ends, and refuses it to
//! every other one until then.

use std::fmt;
use std::time::Duration;

use amqp_compat::backend::Login;
use amqp_compat::backend::jetstream::lease::SecondLock;
use amqp_compat::backend::jetstream::lease::terms::Lock;
use amqp_compat::backend::rabbitmq::{RabbitMqBackend, RabbitMqConfig};
use amqp_compat::error::{AmqpError, ReplyCode};
use async_trait::async_trait;
use tokio::sync::Mutex;

use crate::control::Store;
use crate::control_api::Phase;
use crate::dual::operator::{Operator, Talk};
use crate::ownership::Side;

/// The queue, in the vhost of the sidecar's own login.
pub const QUEUE: &str = "nats-bridge.leader";

/// RabbitMQ takes a connection for lost after two to three of these without a sign of life, and gives the lock to the next.
const HEARTBEAT: Duration = Duration::from_secs(3);

/// This process' hand on the lock.
pub struct RabbitLock {
    operator: Operator,
    held: Mutex<Option<Talk>>,
    store: Store,
}

impl RabbitLock {
    /// A hand that has not taken it. `store` tells whether RabbitMQ is needed at all.
    pub fn new(rabbit: RabbitMqConfig, login: Login, store: Store) -> Self {
        let rabbit = RabbitMqConfig { heartbeat: rabbit.heartbeat.min(HEARTBEAT), ..rabbit };
        let backend = std::sync::Arc::new(RabbitMqBackend::new(rabbit));
        Self { operator: Operator::new(Side::Rabbit, backend, login), held: Mutex::default(), store }
    }

    /// Tries RabbitMQ, as a sidecar does before it is ready.
    ///
    /// # Errors
    /// RabbitMQ's own, when it refuses the sidecar's login or vhost. That it does not answer is none.
    pub async fn is_let_in(&self) -> Result<(), AmqpError> {
        match self.operator.ping().await {
            Err(error) if matches!(error.code, ReplyCode::AccessRefused | ReplyCode::NotAllowed) => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Whether nothing is RabbitMQ's any more.
    async fn is_over(&self) -> bool {
        let state = self.store.peek().await.ok().flatten();
        state.is_some_and(|state| state.phase == Phase::Native || state.rabbit_given_up)
    }
}

impl fmt::Debug for RabbitLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitLock").finish_non_exhaustive()
    }
}

#[async_trait]
impl SecondLock for RabbitLock {
    async fn hold(&self) -> Lock {
        let mut held = self.held.lock().await;
        match self.operator.lock(&mut held, QUEUE).await {
            Ok(()) => Lock::Mine,
            Err(error) if error.code == ReplyCode::ResourceLocked => Lock::NotMine,
            Err(error) => {
                tracing::debug!(%error, "the lock on RabbitMQ is not to be had");
                if self.is_over().await { Lock::NotNeeded } else { Lock::NotMine }
            }
        }
    }

    async fn let_go(&self) {
        *self.held.lock().await = None;
    }
}
