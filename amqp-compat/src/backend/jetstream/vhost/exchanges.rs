//! Exchanges and bindings that come and go.

use std::sync::Arc;

use super::VhostRuntime;
use crate::backend::jetstream::delays;
use crate::backend::jetstream::queue::Queue;
use crate::backend::{Binding, ExchangeDeclare};
use crate::error::AmqpError;
use crate::model::beside_rabbitmq;
use crate::model::exchange::ExchangeKind;
use crate::model::queue::Owner;
use crate::model::vhost::Change;

impl VhostRuntime {
    pub(crate) async fn declare_exchange(&self, declare: &ExchangeDeclare) -> Result<(), AmqpError> {
        if self.state().model.plan_exchange_declare(declare)?.is_none() {
            return Ok(());
        }
        let _changing = self.change_alone().await?;
        let change = self.state().model.plan_exchange_declare(declare)?;
        if let Some(Change::PutExchange(definition)) = &change {
            if self.config.behind_rabbitmq {
                beside_rabbitmq::check_exchange(&self.name, definition)?;
            }
            if definition.kind == ExchangeKind::Delayed {
                self.ensure_delays().await?;
            }
        }
        self.make(change.as_slice()).await
    }

    pub(in crate::backend::jetstream) fn delays(&self) -> Queue {
        delays::queue(&self.name, &self.bridge, &self.config, &self.state)
    }

    /// Makes the stream of delayed messages and starts its actor, once.
    pub(super) async fn ensure_delays(&self) -> Result<(), AmqpError> {
        if self.state().delays.is_some() {
            return Ok(());
        }
        let queue = Arc::new(self.delays());
        queue.ensure().await?;
        delays::start(queue.clone(), &self.state);
        self.state_mut().delays = Some(queue);
        Ok(())
    }

    pub(crate) async fn delete_exchange(&self, name: &str, if_unused: bool) -> Result<(), AmqpError> {
        let _changing = self.change_alone().await?;
        let changes = self.state().model.plan_exchange_delete(name, if_unused)?;
        self.make(&changes).await
    }

    pub(crate) async fn bind(&self, binding: &Binding, to_queue: bool, by: Owner) -> Result<(), AmqpError> {
        let _changing = self.change_alone().await?;
        let change = self.state().model.plan_bind(binding, to_queue, by)?;
        self.make(change.as_slice()).await
    }

    pub(crate) async fn unbind(&self, binding: &Binding, to_queue: bool, by: Owner) -> Result<(), AmqpError> {
        let _changing = self.change_alone().await?;
        let changes = self.state().model.plan_unbind(binding, to_queue, by)?;
        self.make(&changes).await
    }
}
