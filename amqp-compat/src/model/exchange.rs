//! Exchanges: their definition and when a second declaration is the same.

use std::sync::Arc;

use amq_protocol::types::{AMQPValue, FieldTable};

use super::arguments::{invalid_type, same_arguments, same_flag, text};
use super::consistent_hash;
use super::delay;
use crate::backend::ExchangeDeclare;
use crate::error::{AmqpError, ReplyCode};

/// The types of exchange that are honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeKind {
    /// Routes by the whole key.
    Direct,
    /// Routes to every binding.
    Fanout,
    /// Routes by words of the key.
    Topic,
    /// Routes by the message's headers.
    Headers,
    /// Routes to one binding, by a hash.
    ConsistentHash,
    /// Routes as another type, after a delay.
    Delayed,
}

impl ExchangeKind {
    /// The type with this name.
    ///
    /// # Errors
    /// `CommandInvalid` with RabbitMQ's text for a type that is not there, as for a plug-in that is not installed.
    pub fn from_name(name: &str) -> Result<Self, AmqpError> {
        match name {
            "direct" => Ok(ExchangeKind::Direct),
            "fanout" => Ok(ExchangeKind::Fanout),
            "topic" => Ok(ExchangeKind::Topic),
            "headers" => Ok(ExchangeKind::Headers),
            "x-consistent-hash" => Ok(ExchangeKind::ConsistentHash),
            "x-delayed-message" => Ok(ExchangeKind::Delayed),
            other => Err(AmqpError::new(ReplyCode::CommandInvalid, format!("unknown exchange type '{other}'"))),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            ExchangeKind::Direct => "direct",
            ExchangeKind::Fanout => "fanout",
            ExchangeKind::Topic => "topic",
            ExchangeKind::Headers => "headers",
            ExchangeKind::ConsistentHash => "x-consistent-hash",
            ExchangeKind::Delayed => "x-delayed-message",
        }
    }

    /// Its name as RabbitMQ's texts show it: an Erlang atom, which is quoted when it has a hyphen.
    fn as_atom(self) -> String {
        let name = self.name();
        if name.contains('-') { format!("'{name}'") } else { name.to_owned() }
    }
}

/// What an exchange was declared with.
#[derive(Debug, Clone, PartialEq)]
pub struct ExchangeDefinition {
    /// Its name.
    pub name: Arc<str>,
    /// Its type.
    pub kind: ExchangeKind,
    /// Survives a restart.
    pub durable: bool,
    /// Deleted when the last binding from it goes.
    pub auto_delete: bool,
    /// Cannot be published to by clients.
    pub internal: bool,
    /// Its arguments, as declared.
    pub arguments: FieldTable,
}

impl ExchangeDefinition {
    /// The definition that a declaration asks for.
    ///
    /// # Errors
    /// `PreconditionFailed` for an invalid argument.
    pub fn from_declare(vhost: &str, declare: &ExchangeDeclare, kind: ExchangeKind) -> Result<Self, AmqpError> {
        let name = declare.exchange.as_str();
        if let Some(value) = declare.arguments.inner().get("alternate-exchange")
            && !matches!(value, AMQPValue::LongString(_) | AMQPValue::ShortString(_))
        {
            return Err(invalid_type("alternate-exchange", &display(vhost, name), value));
        }
        let routing = match kind {
            ExchangeKind::Delayed => delay::routing_of(&declare.arguments)?,
            kind => kind,
        };
        if routing == ExchangeKind::ConsistentHash {
            consistent_hash::check_arguments(&declare.arguments)?;
        }
        Ok(Self {
            name: name.into(),
            kind,
            durable: declare.durable,
            auto_delete: declare.auto_delete,
            internal: declare.internal,
            arguments: declare.arguments.clone(),
        })
    }

    /// The rules that its bindings follow.
    pub fn routing(&self) -> ExchangeKind {
        match self.kind {
            // It was checked when it was declared.
            ExchangeKind::Delayed => delay::routing_of(&self.arguments).unwrap_or(ExchangeKind::Direct),
            kind => kind,
        }
    }

    /// Where messages go that nothing took, if that was declared.
    pub fn alternate(&self) -> Option<&str> {
        self.arguments.inner().get("alternate-exchange").and_then(text)
    }

    /// Refuses a second declaration that is not the same.
    ///
    /// # Errors
    /// `PreconditionFailed` with RabbitMQ's text for the first difference.
    pub fn same_as(&self, vhost: &str, declare: &ExchangeDeclare, kind: ExchangeKind) -> Result<(), AmqpError> {
        let what = display(vhost, &self.name);
        same_flag("type", &what, kind.as_atom(), self.kind.as_atom())?;
        same_flag("durable", &what, declare.durable, self.durable)?;
        same_flag("auto_delete", &what, declare.auto_delete, self.auto_delete)?;
        same_flag("internal", &what, declare.internal, self.internal)?;
        same_arguments(&["alternate-exchange"], &what, &declare.arguments, &self.arguments, |_| None)
    }

    /// The exchanges that every vhost has. They are durable and cannot be deleted.
    pub fn predeclared() -> Vec<Self> {
        let row = |name: &str, kind, internal| Self {
            name: name.into(),
            kind,
            durable: true,
            auto_delete: false,
            internal,
            arguments: FieldTable::default(),
        };
        vec![
            row("", ExchangeKind::Direct, false),
            row("amq.direct", ExchangeKind::Direct, false),
            row("amq.fanout", ExchangeKind::Fanout, false),
            row("amq.topic", ExchangeKind::Topic, false),
            row("amq.headers", ExchangeKind::Headers, false),
            row("amq.match", ExchangeKind::Headers, false),
            row("amq.rabbitmq.trace", ExchangeKind::Topic, true),
        ]
    }
}

/// An exchange as RabbitMQ's texts name it.
pub fn display(vhost: &str, name: &str) -> String {
    format!("exchange '{name}' in vhost '{vhost}'")
}
