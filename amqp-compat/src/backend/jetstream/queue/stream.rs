//! The stream and the consumers of a queue on the server: made, found there, made anew, and what the server says of them.

use std::time::Duration;

use serde_json::{Value, json};

use super::Queue;
use crate::backend::jetstream::api::{self, ApiError};
use crate::backend::jetstream::delays;
use crate::backend::jetstream::shape::{self, META_QUEUE, META_VHOST};
use crate::error::{AmqpError, ReplyCode};
use crate::model::queue::{QueueKind, display};

/// The name of the durable consumer of every queue's stream; those of priorities above 0 have it in front.
pub(crate) const CONSUMER: &str = "amqp";

/// In a consumer's metadata: up to which sequence messages may have been handed to clients before it was made anew.
const META_HANDED: &str = "amqp-handed";

/// Up to which sequence messages may have been handed to clients.
pub(crate) fn handed(consumer: &Value) -> u64 {
    let before = consumer["config"]["metadata"][META_HANDED].as_str().and_then(|text| text.parse().ok());
    consumer["delivered"]["stream_seq"].as_u64().unwrap_or_default().max(before.unwrap_or_default())
}

/// How long the server is given to remove a deleted stream's files before the name is used again.
const DELETION: Duration = Duration::from_secs(1);

/// What the server says of the queue's consumer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pending {
    /// Messages that it has not delivered yet.
    pub(crate) pending: u64,
    /// Messages that it waits for an acknowledgement of.
    pub(crate) unsettled: u64,
    /// How many deliveries it has made since it was made.
    pub(crate) deliveries: u64,
}

impl Queue {
    /// The name of the JetStream consumer of a priority.
    pub(crate) fn consumer(priority: u8) -> String {
        match priority {
            0 => CONSUMER.to_owned(),
            priority => format!("{CONSUMER}-{priority}"),
        }
    }

    /// Messages that the consumer has not delivered yet, and those that it waits for an acknowledgement of.
    ///
    /// The server counts a message some microseconds after it has confirmed it, so that the count is asked for again
    /// while it is lower than the confirms since `seen` say.
    pub(crate) async fn pending(&self, seen: u64) -> Result<Pending, ApiError> {
        let mut tries = 0;
        loop {
            let info = self.consumer_info(0).await?;
            let pending = info["num_pending"].as_u64().unwrap_or_default();
            let delivered = info["delivered"]["stream_seq"].as_u64().unwrap_or_default();
            let counted = delivered.max(seen).max(self.levels.drained(0));
            tries += 1;
            if tries > 5 || counted.saturating_add(pending) >= self.levels.last_stored(0) {
                return Ok(Pending {
                    pending,
                    unsettled: info["num_ack_pending"].as_u64().unwrap_or_default(),
                    deliveries: info["delivered"]["consumer_seq"].as_u64().unwrap_or_default(),
                });
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Makes the stream and its consumer, or finds them there; an exclusive queue has none.
    pub(crate) async fn ensure(&self) -> Result<(), AmqpError> {
        if !self.has_stream() {
            return Ok(());
        }
        match self.create_stream(self.replicas()).await {
            Ok(()) => {}
            Err(error) if error.too_few_servers() && self.definition.settings.kind != QueueKind::Classic => {
                if !self.config.quorum_fallback {
                    return Err(AmqpError::not_implemented(format!(
                        "replicated {}: the NATS servers cannot hold {} replicas",
                        display(&self.vhost, self.name()),
                        self.replicas()
                    )));
                }
                tracing::warn!(
                    queue = self.name(),
                    wanted = self.replicas(),
                    replicas = self.config.replicas,
                    "a replicated queue is made with fewer replicas: the NATS servers cannot hold more"
                );
                self.create_stream(self.config.replicas).await?;
            }
            Err(error) => {
                let queue = display(&self.vhost, self.name());
                return Err(AmqpError::new(ReplyCode::InternalError, format!("{queue} cannot be stored: {error}")));
            }
        }
        if !self.is_log() {
            self.ensure_consumer().await?;
        }
        Ok(())
    }

    async fn create_stream(&self, replicas: usize) -> Result<(), ApiError> {
        let config = self.stream_config(replicas);
        let call = format!("STREAM.CREATE.{}", self.stream);
        match api::call_again(&self.bridge, &call, &config).await {
            Ok(_) => return Ok(()),
            Err(error) if error.in_use() => {}
            Err(error) => return Err(error),
        }
        // It is there with other settings: left by another version or other options, or another queue's whose hashed
        // name is the same. An empty one of ours is made anew; nothing that holds messages is ever touched.
        let info = api::call_again(&self.bridge, &self.stream_call(), &Value::Null).await?;
        let metadata = &info["config"]["metadata"];
        let ours = metadata[META_QUEUE] == self.name() && metadata[META_VHOST] == *self.vhost;
        if !ours {
            return Err(ApiError::Refused {
                err_code: 10058,
                text: format!(
                    "stream {} exists and does not belong to {}",
                    self.stream,
                    display(&self.vhost, self.name())
                ),
            });
        }
        if keeps_message_ttl(&info) {
            let mut as_there = config.clone();
            as_there["allow_msg_ttl"] = json!(true);
            match api::call_again(&self.bridge, &call, &as_there).await {
                Err(error) if error.in_use() => {}
                done => return done.map(drop),
            }
        }
        if info["state"]["messages"].as_u64() == Some(0) {
            api::call(&self.bridge, &format!("STREAM.DELETE.{}", self.stream), &Value::Null).await?;
            tokio::time::sleep(DELETION).await;
            return api::call(&self.bridge, &call, &config).await.map(drop);
        }
        tracing::warn!(stream = self.stream, "the stream of a queue holds messages and is kept with its own settings");
        Ok(())
    }

    /// Gives the stream the bounds that are in force now.
    pub(crate) async fn update_stream(&self) -> Result<(), ApiError> {
        let info = self.stream_info().await?;
        let replicas = info["config"]["num_replicas"].as_u64().unwrap_or(1);
        let mut config = self.stream_config(usize::try_from(replicas).unwrap_or(1));
        if keeps_message_ttl(&info) {
            config["allow_msg_ttl"] = json!(true);
        }
        api::call(&self.bridge, &format!("STREAM.UPDATE.{}", self.stream), &config).await.map(drop)
    }

    /// Makes the consumer that every queue has, or finds it there. One that is missing where there are messages was lost.
    pub(crate) async fn ensure_consumer(&self) -> Result<(), ApiError> {
        let handed = match api::call_again(&self.bridge, &self.consumer_call(0), &Value::Null).await {
            Ok(info) => handed(&info),
            // A gateway was killed while it made the consumer anew: anything may have been delivered.
            Err(error) if error.not_found() => {
                let info = api::call_again(&self.bridge, &self.stream_call(), &Value::Null).await?;
                let state = &info["state"];
                if state["messages"] == 0 { 0 } else { state["last_seq"].as_u64().unwrap_or_default() }
            }
            Err(error) => return Err(error),
        };
        self.put_consumer(0, self.consumer_request(0, handed)).await.map(drop)
    }

    /// Makes the consumer of a priority, or finds it there, with what it says was handed out; gives what the server says of
    /// it.
    pub(crate) async fn create_consumer(&self, priority: u8) -> Result<Value, ApiError> {
        let mut body = self.consumer_request(priority, 0);
        body["action"] = json!("create");
        let refused = match self.put_consumer(priority, body).await {
            Err(error @ ApiError::Refused { .. }) => error,
            other => return other,
        };
        // It is there with other settings, or has been made anew by `recreate_consumer`.
        let Ok(info) = self.consumer_info(priority).await else { return Err(refused) };
        self.put_consumer(priority, self.consumer_request(priority, handed(&info))).await
    }

    async fn put_consumer(&self, priority: u8, request: Value) -> Result<Value, ApiError> {
        let call = format!("CONSUMER.DURABLE.CREATE.{}.{}", self.stream, Self::consumer(priority));
        api::call_again(&self.bridge, &call, &request).await
    }

    fn consumer_request(&self, priority: u8, handed: u64) -> Value {
        let name = Self::consumer(priority);
        let mut body = json!({
            "stream_name": self.stream,
            "config": {
                "durable_name": name,
                "deliver_policy": "all",
                "ack_policy": "explicit",
                "ack_wait": nanoseconds(self.config.ack_wait),
                "max_deliver": -1,
                "max_ack_pending": -1,
                "max_waiting": 4096,
                "replay_policy": "instant",
            }
        });
        if self.levels.highest() > 0 {
            body["config"]["filter_subject"] = json!(self.levels.subject(priority).as_str());
        }
        if handed > 0 {
            body["config"]["metadata"] = json!({ META_HANDED: handed.to_string() });
        }
        body
    }

    /// Deletes the consumer and makes it anew: all that was delivered and not acknowledged is ready again, at once and
    /// in order. The server's delivery counts start again, so that the consumer says up to which sequence messages may
    /// have been `handed` to clients: a gateway that starts later takes those for redelivered.
    pub(crate) async fn recreate_consumer(&self, priority: u8, handed: u64) -> Result<Value, ApiError> {
        let call = format!("CONSUMER.DELETE.{}.{}", self.stream, Self::consumer(priority));
        match api::call(&self.bridge, &call, &Value::Null).await {
            Err(error) if !error.not_found() => return Err(error),
            _ => {}
        }
        self.put_consumer(priority, self.consumer_request(priority, handed)).await
    }

    pub(crate) async fn stream_is_there(&self) -> Result<bool, ApiError> {
        match self.stream_info().await {
            Ok(_) => Ok(true),
            Err(error) if error.not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn stream_info(&self) -> Result<Value, ApiError> {
        api::call(&self.bridge, &self.stream_call(), &Value::Null).await
    }

    /// The same, with more that is asked for.
    pub(crate) async fn stream_info_with(&self, request: &Value) -> Result<Value, ApiError> {
        api::call(&self.bridge, &self.stream_call(), request).await
    }

    /// Whether a message is stored at a sequence, whoever holds it.
    pub(crate) async fn has_message(&self, sequence: u64) -> Result<bool, ApiError> {
        match api::call(&self.bridge, &format!("STREAM.MSG.GET.{}", self.stream), &json!({ "seq": sequence })).await {
            Ok(_) => Ok(true),
            Err(error) if error.no_message() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn stream_call(&self) -> String {
        format!("STREAM.INFO.{}", self.stream)
    }

    pub(crate) async fn consumer_info(&self, priority: u8) -> Result<Value, ApiError> {
        api::call(&self.bridge, &self.consumer_call(priority), &Value::Null).await
    }

    fn consumer_call(&self, priority: u8) -> String {
        format!("CONSUMER.INFO.{}.{}", self.stream, Self::consumer(priority))
    }

    /// How many messages are stored, whoever holds them.
    pub(crate) async fn stored_messages(&self) -> Result<u64, ApiError> {
        Ok(self.stream_info().await?["state"]["messages"].as_u64().unwrap_or_default())
    }

    /// The priorities above 0 that have messages.
    pub(crate) async fn stored_priorities(&self) -> Result<Vec<u8>, ApiError> {
        let above = format!("{}.*", self.levels.subject(0));
        let body = json!({ "subjects_filter": above });
        let info = api::call(&self.bridge, &format!("STREAM.INFO.{}", self.stream), &body).await?;
        let subjects = info["state"]["subjects"].as_object();
        let of = |subject: &String| (1..=self.levels.highest()).find(|p| self.levels.subject(*p).as_str() == subject);
        Ok(subjects.into_iter().flatten().filter_map(|(subject, _)| of(subject)).collect())
    }

    pub(crate) async fn delete_stream(&self) -> Result<(), ApiError> {
        if !self.has_stream() {
            return Ok(());
        }
        match api::call(&self.bridge, &format!("STREAM.DELETE.{}", self.stream), &Value::Null).await {
            Err(error) if !error.not_found() => Err(error),
            _ => Ok(()),
        }
    }

    fn replicas(&self) -> usize {
        match delays::is_store(self) {
            true => self.config.replicas,
            false => shape::replicas(&self.definition, &self.config),
        }
    }

    fn stream_config(&self, replicas: usize) -> Value {
        let of = (&self.definition, &*self.settings());
        shape::stream_config(&self.vhost, &self.stream, of, replicas, &self.config)
    }
}

/// Whether the stream lets the server remove messages by a time of their own. Earlier gateways asked for that and never used it;
/// the server does not let it be taken back, and needs 30 KiB of memory for it.
fn keeps_message_ttl(info: &Value) -> bool {
    info["config"]["allow_msg_ttl"] == true
}

pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
