//! A vhost's topology as another gateway tells it, and told to another one.

use std::sync::Arc;

use foldhash::HashMap;
use futures::StreamExt as _;

use super::delays;
use super::queue::Queue;
use super::store::Wire;
use super::vhost::{VhostRuntime, is_durable, put};
use crate::error::AmqpError;
use crate::model::exchange::ExchangeKind;
use crate::model::policy::Scope;
use crate::model::queue::{Owner, QueueDefinition};
use crate::model::vhost::{Change, Destination};

/// How many streams are looked at together when a vhost is taken over.
const AT_ONCE: usize = 64;

impl VhostRuntime {
    /// All that there is: policies, exchanges, queues, then bindings.
    pub(crate) fn snapshot(&self) -> Vec<Wire> {
        let state = self.state();
        let mut all = Vec::new();
        for scope in [Scope::User, Scope::Operator] {
            let policies = state.model.policies().all(scope).cloned();
            all.extend(policies.map(|policy| Wire::of(&Change::PutPolicy(policy), "")));
        }
        let exchanges = state.model.exchanges().filter(|exchange| !is_predeclared(&exchange.name)).cloned();
        all.extend(exchanges.map(|exchange| Wire::of(&Change::PutExchange(exchange), "")));
        for queue in state.queues() {
            all.push(Wire::of(&Change::PutQueue(queue.definition.clone()), &queue.stream));
        }
        all.extend(state.model.bindings().map(|binding| Wire::of(&Change::Bind(binding.clone()), "")));
        all
    }

    /// The exclusive queues of this gateway's clients, and their bindings.
    pub(crate) fn own_exclusive(&self) -> Vec<Wire> {
        let Some(gateways) = &self.config.gateways else { return Vec::new() };
        self.exclusive(|owner| gateways.is_mine(owner))
    }

    fn exclusive(&self, of: impl Fn(Owner) -> bool) -> Vec<Wire> {
        let state = self.state();
        let is_of = |queue: &QueueDefinition| queue.owner.is_some_and(&of);
        let mut all: Vec<Wire> = Vec::new();
        for queue in state.queues().filter(|queue| is_of(&queue.definition)) {
            all.push(Wire::of(&Change::PutQueue(queue.definition.clone()), &queue.stream));
        }
        for binding in state.model.bindings() {
            let Destination::Queue(name) = &binding.destination else { continue };
            let queue = state.model.queue_slot(name).and_then(|slot| state.model.queue(slot));
            if queue.is_some_and(is_of) {
                all.push(Wire::of(&Change::Bind(binding.clone()), ""));
            }
        }
        all
    }

    /// The leading gateway has changed the topology.
    pub(crate) async fn follow(&self, changes: &[Wire]) {
        let _changing = self.changing.lock().await;
        self.apply_all(changes).await;
    }

    /// The leading gateway says all that there is.
    pub(crate) async fn become_as(&self, all: &[Wire]) {
        let _changing = self.changing.lock().await;
        let changes = difference(&self.name, &self.snapshot(), all);
        self.apply_all(&changes).await;
    }

    /// A gateway that follows says which exclusive queues its clients have.
    pub(crate) async fn take_in(&self, number: u32, own: &[Wire]) {
        let _changing = self.changing.lock().await;
        let now = self.exclusive(|owner| owner.0 >> 32 == u64::from(number));
        let changes = difference(&self.name, &now, own);
        if changes.is_empty() {
            return;
        }
        self.apply_all(&changes).await;
        if let Some(gateways) = &self.config.gateways {
            gateways.announce(&self.name, changes);
        }
    }

    /// Deletes the exclusive queues of connections that are gone with their gateway.
    pub(crate) async fn discard_exclusive(&self, of: impl Fn(Owner) -> bool) {
        let gone: Vec<Arc<Queue>> = {
            let state = self.state();
            state.queues().filter(|queue| queue.definition.owner.is_some_and(&of)).cloned().collect()
        };
        for queue in gone {
            if let Err(error) = self.discard_here(&queue).await {
                tracing::error!(queue = queue.name(), %error, "an exclusive queue could not be deleted");
            }
        }
    }

    /// This gateway changes the topology from now on: what is stored is true, and what is not stored is as it was told last.
    /// `gone` are connections of the gateway that did so before.
    pub(crate) async fn take_over(&self, gone: impl Fn(Owner) -> bool) -> Result<(), AmqpError> {
        let queues: Vec<Arc<Queue>> = {
            let _changing = self.changing.lock().await;
            let stored = self.store.load().await?;
            let of =
                |(change, stream): &(Change, Option<String>)| Wire::of(change, stream.as_deref().unwrap_or_default());
            let mut wanted: Vec<Wire> = stored.iter().map(of).collect();
            let now = self.snapshot();
            wanted.extend(now.iter().filter(|wire| self.is_kept(wire, &gone)).cloned());
            let changes = difference(&self.name, &now, &wanted);
            self.apply_all(&changes).await;
            let state = self.state();
            state.queues().filter(|queue| queue.has_stream()).cloned().collect()
        };
        // A stream that is missing would refuse publishes.
        let ensure = |queue: Arc<Queue>| async move { queue.ensure().await };
        let ensuring: Vec<_> = queues.iter().cloned().map(ensure).collect();
        let mut ensured = futures::stream::iter(ensuring).buffer_unordered(AT_ONCE);
        while let Some(ensured) = ensured.next().await {
            ensured?;
        }
        for queue in &queues {
            queue.begin().await?;
        }
        let delays = self.state().delays.clone();
        if let Some(delays) = delays {
            delays.ensure().await?;
            delays::start(delays, &self.state);
        }
        Ok(())
    }

    /// Whether something is there although it is not stored.
    fn is_kept(&self, wire: &Wire, gone: &impl Fn(Owner) -> bool) -> bool {
        let Some((change, _)) = wire.change(&self.name) else { return false };
        if matches!(&change, Change::PutQueue(queue) if queue.owner.is_some_and(gone)) {
            return false;
        }
        !is_durable(&self.state().model, &change)
    }

    async fn apply_all(&self, changes: &[Wire]) {
        let mut has_policies = false;
        for wire in changes {
            let Some((change, stream)) = wire.change(&self.name) else {
                tracing::error!(vhost = &*self.name, ?wire, "a change of the topology cannot be read");
                continue;
            };
            has_policies |= matches!(change, Change::PutPolicy(_) | Change::DropPolicy(..));
            self.apply(&change, stream.unwrap_or_default()).await;
        }
        if has_policies && let Err(error) = self.apply_policies().await {
            tracing::warn!(vhost = &*self.name, %error, "a policy is not in force for all queues yet");
        }
    }

    async fn apply(&self, change: &Change, stream: String) {
        match change {
            Change::PutQueue(definition) => {
                if self.queue_named(&definition.name).is_some() {
                    return;
                }
                let settings = self.state().model.policies().settings_of(definition);
                let of = (definition.clone(), settings);
                let queue = Arc::new(Queue::new(&self.name, of, stream, &self.bridge, &self.config, &self.state));
                {
                    let mut state = self.state_mut();
                    if let Some(slot) = state.model.apply(change) {
                        put(&mut state.queues, slot, queue.clone());
                    }
                }
                // Only an exclusive queue of this gateway has an actor that can fail, and that has nothing to ask.
                if queue.memory.is_some()
                    && let Err(error) = queue.watch().await
                {
                    tracing::warn!(queue = queue.name(), %error, "an exclusive queue is not watched");
                }
            }
            Change::DropQueue(name) => {
                let gone = self.queue_named(name);
                {
                    let mut state = self.state_mut();
                    if let Some(slot) = state.model.apply(change) {
                        state.queues[slot as usize] = None;
                    }
                }
                self.note_deleted(name);
                if let Some(queue) = gone {
                    queue.forget().await;
                }
            }
            other => {
                let mut state = self.state_mut();
                state.model.apply(other);
                if let Change::PutExchange(exchange) = other
                    && exchange.kind == ExchangeKind::Delayed
                    && state.delays.is_none()
                {
                    state.delays = Some(Arc::new(self.delays()));
                }
            }
        }
    }
}

fn is_predeclared(exchange: &str) -> bool {
    exchange.is_empty() || exchange.starts_with("amq.")
}

/// The changes that make `wanted` of `now`; both say what there is.
fn difference(vhost: &str, now: &[Wire], wanted: &[Wire]) -> Vec<Wire> {
    let now = by_key(now);
    let wanted = by_key(wanted);
    let mut changes: Vec<(u8, Wire)> = Vec::new();
    // What goes and comes back as another one takes its bindings along.
    let is_replaced =
        |(key, wire): (&&str, &&Wire)| !key.starts_with("b.") && wanted.get(key).is_some_and(|other| other != wire);
    let binds_all = now.iter().any(is_replaced);
    for (key, wire) in &now {
        if wanted.get(key) == Some(wire) {
            continue;
        }
        let gone = match wire.change(vhost).map(|(change, _)| change) {
            Some(Change::Bind(binding)) => (0, Change::Unbind(binding)),
            Some(Change::PutQueue(queue)) => (1, Change::DropQueue(queue.name)),
            Some(Change::PutExchange(exchange)) => (2, Change::DropExchange(exchange.name)),
            Some(Change::PutPolicy(policy)) => (3, Change::DropPolicy(policy.scope, policy.name)),
            _ => continue,
        };
        changes.push((gone.0, Wire::of(&gone.1, "")));
    }
    for (key, wire) in &wanted {
        if now.get(key) == Some(wire) && !(binds_all && key.starts_with("b.")) {
            continue;
        }
        let rank = match key.split('.').next() {
            Some("p" | "o") => 4,
            Some("x") => 5,
            Some("q") => 6,
            _ => 7,
        };
        changes.push((rank, (*wire).clone()));
    }
    changes.sort_by_key(|(rank, _)| *rank);
    changes.into_iter().map(|(_, wire)| wire).collect()
}

fn by_key(all: &[Wire]) -> HashMap<&str, &Wire> {
    all.iter().filter(|wire| matches!(wire, Wire::Put { .. })).map(|wire| (wire.key(), wire)).collect()
}

#[cfg(test)]
mod tests {
    use amq_protocol::types::FieldTable;

    use super::*;
    use crate::model::exchange::ExchangeDefinition;
    use crate::model::queue::QueueArguments;
    use crate::model::vhost::BindingDefinition;

    fn queue(name: &str, auto_delete: bool) -> Wire {
        let definition = QueueDefinition {
            name: name.into(),
            durable: true,
            owner: None,
            auto_delete,
            arguments: FieldTable::default(),
            settings: QueueArguments::default(),
        };
        Wire::of(&Change::PutQueue(definition), "S")
    }

    fn exchange(name: &str) -> Wire {
        let definition = ExchangeDefinition {
            name: name.into(),
            kind: ExchangeKind::Fanout,
            durable: true,
            auto_delete: false,
            internal: false,
            arguments: FieldTable::default(),
        };
        Wire::of(&Change::PutExchange(definition), "")
    }

    fn binding(from: &str, to: &str) -> Wire {
        let binding = BindingDefinition {
            source: from.into(),
            destination: Destination::Queue(to.into()),
            routing_key: "".into(),
            arguments: FieldTable::default(),
        };
        Wire::of(&Change::Bind(binding), "")
    }

    #[test]
    fn what_is_as_it_should_be_is_left_alone() {
        let all = [exchange("x"), queue("q", false), binding("x", "q")];
        assert_eq!(difference("/", &all, &all), []);
    }

    #[test]
    fn what_depends_on_something_goes_before_it_and_comes_behind_it() {
        let now = [exchange("old"), queue("q", false), binding("old", "q")];
        let wanted = [binding("new", "q"), queue("q", true), exchange("new")];
        let changes = difference("/", &now, &wanted);
        assert_eq!(changes.len(), 6);
        assert!(matches!(changes[0], Wire::Unbind { .. }), "{changes:?}");
        let rest = [
            Wire::DropQueue("q".into()),
            Wire::DropExchange("old".into()),
            exchange("new"),
            queue("q", true),
            binding("new", "q"),
        ];
        assert_eq!(changes[1..], rest);
        let now = [exchange("x"), queue("q", false), binding("x", "q")];
        let wanted = [exchange("x"), queue("q", true), binding("x", "q")];
        let rest = [Wire::DropQueue("q".into()), queue("q", true), binding("x", "q")];
        assert_eq!(difference("/", &now, &wanted), rest, "a queue that is replaced is bound again");
    }
}
