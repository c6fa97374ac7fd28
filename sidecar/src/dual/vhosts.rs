//! JetStream behind RabbitMQ: a vhost is taken up when RabbitMQ has first let somebody into it.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use amq_protocol::types::ShortString;
use amqp_compat::backend::jetstream::{JetStreamBackend, JetStreamConfig, Lease, Present, StoreObserver};
use amqp_compat::backend::{Backend, Link, Login, Message};
use amqp_compat::error::{AmqpError, ReplyCode};
use amqp_compat::model::queue::QueueKind;
use amqp_compat::model::vhost::BindingDefinition;
use async_trait::async_trait;
use foldhash::HashMap;
use nats_bridge::Bridge;
use tokio::sync::Mutex;

use super::shared::{Declared, Routes};
use super::stamp;
use crate::integrity::{Integrity, Lookup};

/// JetStream for whatever vhost RabbitMQ has.
pub struct JetStreamVhosts {
    bridge: Bridge,
    config: JetStreamConfig,
    max_body: usize,
    open: RwLock<HashMap<String, Arc<JetStreamBackend>>>,
    /// Held while a vhost is taken up, so that it is done once.
    opening: Mutex<()>,
    stored: Arc<Stored>,
}

/// Passes on what JetStream has stored, once somebody wants to know.
#[derive(Debug, Default)]
struct Stored(OnceLock<Arc<std::sync::Mutex<Integrity>>>);

impl StoreObserver for Stored {
    fn stored(&self, vhost: &str, queue: &str, message: &Message, sequence: u64) {
        if let (Some(integrity), Some(id)) = (self.0.get(), stamp::id(message)) {
            integrity.lock().unwrap_or_else(PoisonError::into_inner).stored(vhost, queue, id, sequence);
        }
    }
}

/// Room for headers in NATS's largest payload, in bytes.
const HEADERS: usize = 256 * 1024;

impl JetStreamVhosts {
    /// JetStream over this connection, under one lease for all vhosts. Users and vhosts of `config` are not used: RabbitMQ
    /// has checked both.
    pub fn new(bridge: Bridge, lease: Lease, config: JetStreamConfig) -> Self {
        let stored = Arc::new(Stored::default());
        let config = JetStreamConfig { lease: Some(lease), observer: Some(stored.clone()), ..config };
        let max_body = bridge.client().server_info().max_payload.saturating_sub(HEADERS);
        Self { bridge, config, max_body, open: RwLock::default(), opening: Mutex::default(), stored }
    }

    fn known(&self, vhost: &str) -> Option<Arc<JetStreamBackend>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(vhost).cloned()
    }

    async fn vhost(&self, vhost: &str) -> Result<Arc<JetStreamBackend>, AmqpError> {
        if let Some(backend) = self.known(vhost) {
            return Ok(backend);
        }
        let _opening = self.opening.lock().await;
        if let Some(backend) = self.known(vhost) {
            return Ok(backend);
        }
        let config = JetStreamConfig { vhosts: vec![vhost.to_owned()], behind_rabbitmq: true, ..self.config.clone() };
        let backend = JetStreamBackend::connect(self.bridge.clone(), config).await?;
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(vhost.to_owned(), backend.clone());
        Ok(backend)
    }
}

#[async_trait]
impl Backend for JetStreamVhosts {
    /// Opens a link. The caller has checked the login.
    ///
    /// # Errors
    /// `InternalError` when JetStream does not answer.
    async fn open(&self, login: Login) -> Result<Link, AmqpError> {
        self.vhost(&login.vhost).await?.open(login).await
    }
}

#[async_trait]
impl Routes for JetStreamVhosts {
    fn route(&self, vhost: &str, message: &Message) -> Result<Vec<ShortString>, AmqpError> {
        if message.body.len() > self.max_body {
            let text =
                format!("a body of {} bytes; NATS takes {} here (max_payload)", message.body.len(), self.max_body);
            return Err(AmqpError::new(ReplyCode::ContentTooLarge, text));
        }
        match self.known(vhost) {
            Some(backend) => backend.route(vhost, message),
            None => Ok(Vec::new()),
        }
    }

    fn outlives(&self, vhost: &str, queue: &str) -> Option<bool> {
        let settings = self.known(vhost)?.lasting(vhost, queue)?;
        Some(settings.dead_letter_exchange.is_some())
    }

    fn declared(&self, vhost: &str, queue: &str) -> Option<Declared> {
        let definition = self.known(vhost)?.definition(vhost, queue)?;
        Some(Declared {
            auto_delete: definition.auto_delete,
            quorum: definition.settings.kind == QueueKind::Quorum,
            delivery_limit: definition.settings.delivery_limit,
        })
    }

    fn tell_stored(&self, integrity: &Arc<std::sync::Mutex<Integrity>>) {
        // There is one.
        let _ = self.stored.0.set(Arc::clone(integrity));
    }

    async fn present(&self, asked: &Lookup) -> Result<Option<Present>, AmqpError> {
        match self.known(&asked.queue.vhost) {
            Some(backend) => backend.present(&asked.queue.vhost, &asked.queue.queue, &asked.single).await,
            None => Ok(None),
        }
    }

    async fn durable_queues(&self, vhost: &str) -> Result<Vec<ShortString>, AmqpError> {
        Ok(self.vhost(vhost).await?.durable_queues(vhost))
    }

    async fn bindings(&self, vhost: &str) -> Result<Vec<BindingDefinition>, AmqpError> {
        Ok(self.vhost(vhost).await?.bindings(vhost))
    }
}
