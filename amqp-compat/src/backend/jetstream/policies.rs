//! Policies: changed for a vhost that runs, with effect on its queues at once.

use std::sync::Arc;

use super::JetStreamBackend;
use super::queue::Queue;
use super::vhost::VhostRuntime;
use crate::error::{AmqpError, ReplyCode};
use crate::model::exchange::ExchangeDefinition;
use crate::model::policy::{InForce, Policy, Scope, Settings};
use crate::model::queue::QueueArguments;
use crate::model::queue::QueueDefinition;
use crate::model::vhost::Change;

/// The policies in force for a queue or exchange, by name, and what they set together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Applied {
    /// The policy.
    pub policy: Option<Arc<str>>,
    /// The operator policy.
    pub operator: Option<Arc<str>>,
    /// What they set.
    pub settings: Settings,
}

impl Applied {
    fn of(in_force: InForce<'_>) -> Self {
        let name = |policy: Option<&Policy>| policy.map(|policy| policy.name.clone());
        Self { policy: name(in_force.policy), operator: name(in_force.operator), settings: in_force.settings() }
    }
}

impl JetStreamBackend {
    /// The policies of a vhost, by name; none where there is no such vhost.
    pub fn policies(&self, vhost: &str, scope: Scope) -> Vec<Policy> {
        let Some(vhost) = self.vhosts.get(vhost) else { return Vec::new() };
        vhost.state().model.policies().all(scope).cloned().collect()
    }

    /// The policies in force for a queue.
    pub fn applied_to_queue(&self, vhost: &str, queue: &QueueDefinition) -> Applied {
        let Some(vhost) = self.vhosts.get(vhost) else { return Applied::default() };
        Applied::of(vhost.state().model.policies().for_queue(queue))
    }

    /// The policies in force for an exchange.
    pub fn applied_to_exchange(&self, vhost: &str, exchange: &ExchangeDefinition) -> Applied {
        let Some(vhost) = self.vhosts.get(vhost) else { return Applied::default() };
        Applied::of(vhost.state().model.policies().for_exchange(&exchange.name))
    }

    /// Puts a policy, in the place of one of its name; it is in force when this returns. Says whether it is new.
    ///
    /// # Errors
    /// `NotFound` for a vhost that is not there; `ResourceLocked` when another gateway serves this account now; `InternalError` when JetStream does not answer: then it may be stored, and in
    /// force for some queues only; putting it again is safe.
    pub async fn put_policy(&self, vhost: &str, policy: Policy) -> Result<bool, AmqpError> {
        let runtime = self.runtime(vhost).await?;
        runtime.change_policy(policy.scope, &policy.name.clone(), Some(policy)).await.map(|was_there| !was_there)
    }

    /// Takes a policy away; it is not in force any more when this returns. Says whether it was there.
    ///
    /// # Errors
    /// As [`Self::put_policy`].
    pub async fn drop_policy(&self, vhost: &str, scope: Scope, name: &str) -> Result<bool, AmqpError> {
        self.runtime(vhost).await?.change_policy(scope, name, None).await
    }

    async fn runtime(&self, vhost: &str) -> Result<Arc<VhostRuntime>, AmqpError> {
        if self.config.is_overtaken() {
            return Err(self.config.lease_lost().await);
        }
        let missing = || AmqpError::new(ReplyCode::NotFound, format!("vhost '{vhost}' not found"));
        self.vhosts.get(vhost).ok_or_else(missing)
    }
}

impl VhostRuntime {
    /// Says whether a policy of this name was there.
    async fn change_policy(&self, scope: Scope, name: &str, policy: Option<Policy>) -> Result<bool, AmqpError> {
        match &self.config.gateways {
            Some(gateways) => gateways.change_policy(self, scope, name, policy).await,
            None => self.change_policy_here(scope, name, policy).await,
        }
    }

    /// [`Self::change_policy`] by the gateway that changes the topology.
    pub(crate) async fn change_policy_here(
        &self,
        scope: Scope,
        name: &str,
        policy: Option<Policy>,
    ) -> Result<bool, AmqpError> {
        let _changing = self.change_alone().await?;
        let was_there = self.state().model.policies().get(scope, name).is_some();
        let change = match policy {
            Some(policy) => Change::PutPolicy(policy),
            None if was_there => Change::DropPolicy(scope, name.into()),
            None => return Ok(false),
        };
        self.make(&[change]).await?;
        self.apply_policies().await?;
        Ok(was_there)
    }

    /// Every queue does as the policies say that are in force now.
    pub(crate) async fn apply_policies(&self) -> Result<(), AmqpError> {
        // Also queues that a change before this one did not reach.
        let changed: Vec<(Arc<Queue>, QueueArguments)> = {
            let state = self.state();
            let of = |queue: &Arc<Queue>| (queue.clone(), state.model.policies().settings_of(&queue.definition));
            state.queues().map(of).filter(|(queue, settings)| *queue.settings() != *settings).collect()
        };
        for (queue, settings) in changed {
            queue.apply(settings).await?;
        }
        Ok(())
    }
}
