//! Policies: settings for all queues and exchanges whose names match a pattern.
//!
//! Of the policies that match, the one with the highest priority counts, alone. An operator policy is found in the same
//! way, and limits it: of what both set the lower value counts. What a queue was declared with wins over both, but for
//! limits, where again the lower value counts. As in RabbitMQ 3.10, seen on a running one.

use std::collections::BTreeMap;
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};

use super::queue::{Overflow, QueueArguments, QueueDefinition, QueueKind};

mod definition;

pub use definition::{PolicyValue, Settings};

/// How many bytes a compiled pattern may take.
const PATTERN_BYTES: usize = 1 << 20;

/// Whose policy it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// An administrator's of the vhost.
    User,
    /// An operator's: it limits what the other sets.
    Operator,
}

/// What a policy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ApplyTo {
    /// Queues and exchanges.
    #[default]
    All,
    /// Queues.
    Queues,
    /// Exchanges.
    Exchanges,
}

impl ApplyTo {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            ApplyTo::All => "all",
            ApplyTo::Queues => "queues",
            ApplyTo::Exchanges => "exchanges",
        }
    }

    /// The one of this name.
    ///
    /// # Errors
    /// RabbitMQ's text.
    pub fn from_name(name: &str) -> Result<Self, String> {
        [ApplyTo::All, ApplyTo::Queues, ApplyTo::Exchanges]
            .into_iter()
            .find(|each| each.name() == name)
            .ok_or_else(|| format!("apply-to '{name}' unrecognised; should be 'queues', 'exchanges' or 'all'"))
    }
}

/// A policy.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Whose it is.
    pub scope: Scope,
    /// Its name; a vhost has one of a name and a scope.
    pub name: Arc<str>,
    /// The regular expression that names are to contain.
    pub pattern: Arc<str>,
    /// What it is for.
    pub apply_to: ApplyTo,
    /// The highest counts.
    pub priority: i64,
    /// What it sets.
    pub settings: Settings,
    matcher: Regex,
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        let of = |policy: &Self| (policy.scope, policy.apply_to, policy.priority);
        of(self) == of(other)
            && self.name == other.name
            && self.pattern == other.pattern
            && self.settings == other.settings
    }
}

impl Policy {
    /// A policy, checked.
    ///
    /// # Errors
    /// What is wrong, with the name of the key or field, and RabbitMQ's words where it refuses that as well.
    pub fn new(
        scope: Scope,
        name: &str,
        pattern: &str,
        apply_to: ApplyTo,
        priority: i64,
        settings: Settings,
    ) -> Result<Self, String> {
        // Bytes, as RabbitMQ matches them.
        let matcher = RegexBuilder::new(pattern).unicode(false).size_limit(PATTERN_BYTES).build().map_err(|error| {
            let reason = error.to_string().replace('\n', " ");
            format!("pattern should be regular expression but is invalid, or uses what is not honoured: {reason}")
        })?;
        definition::check(scope, &settings)?;
        Ok(Self { scope, name: name.into(), pattern: pattern.into(), apply_to, priority, settings, matcher })
    }

    fn matches_queue(&self, queue: &QueueDefinition) -> bool {
        self.apply_to != ApplyTo::Exchanges
            && definition::suits(&self.settings, queue.settings.kind)
            && self.matcher.is_match(queue.name.as_bytes())
    }

    fn matches_exchange(&self, exchange: &str) -> bool {
        self.apply_to != ApplyTo::Queues && self.matcher.is_match(exchange.as_bytes())
    }
}

/// The policies in force for one queue or exchange.
#[derive(Debug, Clone, Copy, Default)]
pub struct InForce<'a> {
    /// The policy.
    pub policy: Option<&'a Policy>,
    /// The operator policy.
    pub operator: Option<&'a Policy>,
}

impl InForce<'_> {
    /// What they set together.
    pub fn settings(&self) -> Settings {
        match (self.policy, self.operator) {
            (Some(policy), Some(operator)) => definition::merge(&policy.settings, &operator.settings),
            (Some(only), None) | (None, Some(only)) => only.settings.clone(),
            (None, None) => Settings::new(),
        }
    }
}

/// The policies of a vhost.
#[derive(Debug, Default)]
pub struct Policies {
    by_name: BTreeMap<(Scope, Arc<str>), Policy>,
}

impl Policies {
    /// Puts a policy, in the place of one of its name.
    pub fn put(&mut self, policy: Policy) {
        self.by_name.insert((policy.scope, policy.name.clone()), policy);
    }

    /// Takes a policy away.
    pub fn drop(&mut self, scope: Scope, name: &str) {
        self.by_name.remove(&(scope, Arc::from(name)));
    }

    /// A policy by its name.
    pub fn get(&self, scope: Scope, name: &str) -> Option<&Policy> {
        self.by_name.get(&(scope, Arc::from(name)))
    }

    /// All of a scope, by name.
    pub fn all(&self, scope: Scope) -> impl Iterator<Item = &Policy> {
        self.by_name.values().filter(move |policy| policy.scope == scope)
    }

    /// Those in force for a queue.
    pub fn for_queue(&self, queue: &QueueDefinition) -> InForce<'_> {
        self.highest(|policy| policy.matches_queue(queue))
    }

    /// Those in force for an exchange.
    pub fn for_exchange(&self, exchange: &str) -> InForce<'_> {
        self.highest(|policy| policy.matches_exchange(exchange))
    }

    /// Of equal priorities the first by name: RabbitMQ promises no order.
    fn highest(&self, matches: impl Fn(&Policy) -> bool) -> InForce<'_> {
        let of = |scope| {
            let matching = self.all(scope).filter(|policy| matches(policy));
            matching.min_by_key(|policy| std::cmp::Reverse(policy.priority))
        };
        InForce { policy: of(Scope::User), operator: of(Scope::Operator) }
    }

    /// What a queue does: what it was declared with, and what policies set.
    pub fn settings_of(&self, queue: &QueueDefinition) -> QueueArguments {
        if self.by_name.is_empty() {
            return queue.settings.clone();
        }
        effective(queue, &self.for_queue(queue).settings())
    }

    /// Where an exchange's messages go that nothing took, by policy.
    pub fn alternate_of(&self, exchange: &str) -> Option<String> {
        definition::text(&self.for_exchange(exchange).settings(), "alternate-exchange").map(str::to_owned)
    }
}

fn effective(queue: &QueueDefinition, policy: &Settings) -> QueueArguments {
    let declared = &queue.settings;
    let lower = |own: Option<u64>, name| own.into_iter().chain(definition::number(policy, name)).min();
    if declared.kind == QueueKind::Stream {
        // Of what a policy can set, a stream queue knows only this.
        let max_length_bytes = lower(declared.max_length_bytes, "max-length-bytes");
        return QueueArguments { max_length_bytes, ..declared.clone() };
    }
    let own_or = |own: &Option<String>, name| own.clone().or_else(|| definition::text(policy, name).map(str::to_owned));
    let overflow = match definition::text(policy, "overflow") {
        Some(_) if queue.arguments.inner().contains_key("x-overflow") => declared.overflow,
        Some("reject-publish") => Overflow::RejectPublish,
        // A quorum queue of RabbitMQ 3.10 does not know it, and drops its head.
        Some("reject-publish-dlx") if declared.kind == QueueKind::Classic => Overflow::RejectPublishDlx,
        Some(_) => Overflow::DropHead,
        None => declared.overflow,
    };
    QueueArguments {
        kind: declared.kind,
        expires_ms: lower(declared.expires_ms, "expires"),
        message_ttl_ms: lower(declared.message_ttl_ms, "message-ttl"),
        dead_letter_exchange: own_or(&declared.dead_letter_exchange, "dead-letter-exchange"),
        dead_letter_routing_key: own_or(&declared.dead_letter_routing_key, "dead-letter-routing-key"),
        max_length: lower(declared.max_length, "max-length"),
        max_length_bytes: lower(declared.max_length_bytes, "max-length-bytes"),
        overflow,
        max_priority: declared.max_priority,
        max_age_seconds: declared.max_age_seconds,
        single_active_consumer: declared.single_active_consumer,
        delivery_limit: match declared.kind {
            QueueKind::Quorum => lower(declared.delivery_limit, "delivery-limit"),
            QueueKind::Classic | QueueKind::Stream => declared.delivery_limit,
        },
        consumer_timeout_ms: lower(declared.consumer_timeout_ms, "consumer-timeout"),
    }
}

#[cfg(test)]
mod tests;
