//! What an application declares when it connects, as applications do: all of it, each time.

use std::path::Path;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use serde::Deserialize;

use crate::Ended;

/// Exchanges, queues and bindings; all durable.
#[derive(Debug, Deserialize)]
pub struct Topology {
    exchanges: Vec<Exchange>,
    queues: Vec<Queue>,
}

#[derive(Debug, Deserialize)]
struct Exchange {
    name: String,
    kind: String,
}

#[derive(Debug, Deserialize)]
struct Queue {
    name: String,
    arguments: serde_json::Map<String, serde_json::Value>,
    bindings: Vec<Binding>,
}

#[derive(Debug, Deserialize)]
struct Binding {
    exchange: String,
    key: String,
}

impl Topology {
    /// Reads it.
    pub fn read(path: &Path) -> Result<Self, Ended> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    /// Declares all of it.
    pub async fn declare(&self, channel: &Channel) -> Result<(), lapin::Error> {
        for Exchange { name, kind } in &self.exchanges {
            let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
            let kind = ExchangeKind::Custom(kind.clone());
            channel.exchange_declare(name.as_str().into(), kind, durable, FieldTable::default()).await?;
        }
        for Queue { name, arguments, bindings } in &self.queues {
            let durable = QueueDeclareOptions { durable: true, ..Default::default() };
            channel.queue_declare(name.as_str().into(), durable, table(arguments)).await?;
            for Binding { exchange, key } in bindings {
                let (exchange, key) = (exchange.as_str().into(), key.as_str().into());
                let options = QueueBindOptions::default();
                channel.queue_bind(name.as_str().into(), exchange, key, options, FieldTable::default()).await?;
            }
        }
        Ok(())
    }
}

fn table(arguments: &serde_json::Map<String, serde_json::Value>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match (value.as_i64(), value.as_str()) {
            (Some(number), _) => AMQPValue::LongLongInt(number),
            (None, text) => AMQPValue::LongString(text.unwrap_or_default().into()),
        };
        table.insert(name.as_str().into(), value);
    }
    table
}
