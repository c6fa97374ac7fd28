//! The backend over both sides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use amqp_compat::backend::reply_to::{Replies, ReplyConsumers};
use amqp_compat::backend::{Backend, LINK_CAPACITY, Link, Login};
use amqp_compat::error::{AmqpError, ReplyCode};
use async_trait::async_trait;
use tokio::sync::mpsc;

use super::engine::Engine;
use super::half::Presence;
use super::link::{Sides, run};
use super::logins::{Accepted, Logins};
use super::shared::Shared;
use crate::control_api::{Phase, Weight};
use crate::ownership::Side;

/// RabbitMQ and JetStream as one broker for AMQP sessions.
///
/// RabbitMQ decides who may log in until `native`. What it accepted is remembered, so that new connections are possible
/// when it is detached, or away while NATS owns everything.
pub struct DualBackend {
    shared: Arc<Shared>,
    rabbit: Arc<dyn Backend>,
    nats: Arc<dyn Backend>,
    logins: Arc<Logins>,
    accepted: mpsc::Sender<Accepted>,
    links: AtomicU64,
    replies: Arc<Replies>,
}

/// How long a new connection waits for NATS before it begins without it.
const NATS_WAIT: Duration = Duration::from_secs(2);

impl DualBackend {
    /// A backend over these two. `nats` has to let in whom RabbitMQ has let in. What RabbitMQ accepts is remembered in `logins`, and new ones go to `accepted`.
    pub fn new(
        shared: Arc<Shared>,
        rabbit: Arc<dyn Backend>,
        nats: Arc<dyn Backend>,
        logins: Arc<Logins>,
        accepted: mpsc::Sender<Accepted>,
    ) -> Self {
        Self { shared, rabbit, nats, logins, accepted, links: AtomicU64::new(0), replies: Arc::default() }
    }

    async fn open_nats(&self, login: &Login) -> Option<Link> {
        let why = match tokio::time::timeout(NATS_WAIT, self.nats.open(login.clone())).await {
            Ok(Ok(link)) => return Some(link),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "NATS did not answer".to_owned(),
        };
        self.shared.warn("nats_not_opened", format!("vhost {}: {why}", login.vhost));
        None
    }

    /// Refuses who comes after RabbitMQ was given up and before NATS owns everything.
    fn is_open(&self) -> Result<(), AmqpError> {
        if !self.shared.is_lost(Side::Rabbit) || self.shared.order().phase == Phase::Native {
            return Ok(());
        }
        let text = "RabbitMQ was given up, and NATS does not own everything yet; connect again in a moment";
        Err(AmqpError::new(ReplyCode::ConnectionForced, text))
    }

    /// Hashing takes some milliseconds: the connection does not wait for it.
    fn remember(&self, login: &Login) {
        let (logins, accepted, login) = (Arc::clone(&self.logins), self.accepted.clone(), login.clone());
        tokio::task::spawn_blocking(move || {
            if let Some(new) = logins.accept(&login) {
                // A full channel only means that a restart of the sidecar will not know this login.
                let _ = accepted.try_send(new);
            }
        });
    }

    async fn knows(&self, login: &Login) -> Result<(), AmqpError> {
        let (logins, asked) = (Arc::clone(&self.logins), login.clone());
        let known = tokio::task::spawn_blocking(move || logins.check(&asked)).await.unwrap_or(false);
        if known {
            return Ok(());
        }
        let text = "Login was refused using authentication mechanism PLAIN: RabbitMQ is not there to ask, and has not \
                    accepted this login before";
        Err(AmqpError::new(ReplyCode::AccessRefused, text))
    }
}

#[async_trait]
impl Backend for DualBackend {
    /// Asks RabbitMQ, until `native`. Without RabbitMQ everybody gets on to [`Backend::open`], which says who may.
    ///
    /// # Errors
    /// RabbitMQ's own answer for a refused login.
    async fn authenticate(&self, login: &Login) -> Result<(), AmqpError> {
        self.is_open()?;
        if self.shared.order().phase == Phase::Native {
            return Ok(());
        }
        match self.rabbit.authenticate(login).await {
            Err(error) if error.code == ReplyCode::InternalError => Ok(()),
            answer => answer,
        }
    }

    /// Opens RabbitMQ's link with the client's login, and JetStream's.
    ///
    /// # Errors
    /// RabbitMQ's own, until `native`. When it is detached, or cannot be reached while NATS owns everything:
    /// `AccessRefused` for a login that it has not accepted before. A NATS that cannot be reached is an error in `native`
    /// only; before, the link begins without it and gets it later.
    ///
    /// # Cancel safety
    /// Cancel safe: a dropped future leaves no link behind.
    async fn open(&self, login: Login) -> Result<Link, AmqpError> {
        self.is_open()?;
        let (phase, weight, nats_matters) = {
            let order = self.shared.order();
            (order.phase, order.fences.weight(), order.phase >= Phase::Canary || order.nats_may_hold)
        };
        let (rabbit, nats) = if phase == Phase::Native {
            self.knows(&login).await?;
            (None, Some(self.nats.open(login.clone()).await?))
        } else {
            // RabbitMQ first: whom it does not let in has nothing made in NATS.
            let rabbit = match self.rabbit.open(login.clone()).await {
                Ok(link) => {
                    self.remember(&login);
                    Some(link)
                }
                Err(error) if error.code == ReplyCode::InternalError && weight == Weight::ALL => {
                    self.knows(&login).await?;
                    None
                }
                Err(error) => return Err(error),
            };
            // As long as NATS holds nothing, nobody waits for it: its link comes when it comes.
            let nats_matters = nats_matters && !self.shared.nats_is_lost();
            let nats = if nats_matters { self.open_nats(&login).await } else { None };
            if rabbit.is_none() && nats.is_none() {
                return Err(AmqpError::new(ReplyCode::InternalError, "neither RabbitMQ nor NATS answers"));
            }
            (rabbit, nats)
        };
        let number = self.links.fetch_add(1, Ordering::Relaxed);
        let presence = |link: &Option<Link>| if link.is_some() { Presence::Attached } else { Presence::Lost };
        let rabbit_is = if phase == Phase::Native { Presence::Gone } else { presence(&rabbit) };
        self.shared.connections.fetch_add(1, Ordering::Relaxed);
        let vhost = login.vhost.clone();
        let sides = Sides { backends: [Arc::clone(&self.rabbit), Arc::clone(&self.nats)], login };
        let (commands, from_session) = mpsc::channel(LINK_CAPACITY);
        let (to_session, events) = mpsc::channel(LINK_CAPACITY);
        let replies = ReplyConsumers::new(Arc::clone(&self.replies), to_session.clone());
        let nats_is = if self.shared.nats_is_lost() { Presence::Gone } else { presence(&nats) };
        let engine = Engine::new(Arc::clone(&self.shared), number, &vhost, rabbit_is, nats_is, replies);
        tokio::spawn(run(engine, sides, [rabbit, nats], from_session, to_session));
        Ok(Link { commands, events })
    }
}
