//! Streams and consumers as data. The specs cross as JSON, whose names and checks are the core's own.

use nats_bridge::provision::{ConsumerSpec, StreamSpec};
use pyo3::PyResult;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::errors;

/// A spec that is made on the server.
pub enum Spec {
    /// A stream.
    Stream(StreamSpec),
    /// A durable consumer.
    Consumer(ConsumerSpec),
}

impl Spec {
    /// Reads a spec of this `kind`, `stream` or `consumer`.
    pub fn read(kind: &str, json: &str) -> PyResult<Spec> {
        match kind {
            "stream" => read(json).map(Spec::Stream),
            _ => read(json).map(Spec::Consumer),
        }
    }

    /// Makes it so.
    pub async fn ensure(self, core: nats_bridge::Bridge) -> nats_bridge::Result<()> {
        match self {
            Spec::Stream(spec) => core.ensure_stream(&spec).await,
            Spec::Consumer(spec) => core.ensure_consumer(&spec).await,
        }
    }
}

fn read<T: DeserializeOwned>(json: &str) -> PyResult<T> {
    let options: Map<String, Value> =
        serde_json::from_str(json).map_err(|error| errors::invalid("options", &error.to_string()))?;
    // One by one first: the error of a whole spec does not say which value it was.
    for (name, value) in &options {
        let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
        serde_json::from_value::<T>(alone).map_err(|error| errors::invalid(name, &error.to_string()))?;
    }
    serde_json::from_value(Value::Object(options)).map_err(|error| errors::invalid("options", &error.to_string()))
}
