//! The key-value buckets that the bridge keeps for itself: topology, lease, state of a cutover.

use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::{ErrorCode, kv};
use nats_bridge::Bridge;

use crate::error::{AmqpError, ReplyCode};

/// How many servers hold such a bucket where there are as many.
const REPLICAS: usize = 3;

/// Opens a bucket of the bridge's own, and makes it where there is none: on three servers, or on one where there are not
/// three. They are small, and nothing works without them.
///
/// # Errors
/// What JetStream said. The bucket may have been made.
pub async fn open_bucket(bridge: &Bridge, config: kv::Config) -> Result<kv::Store, String> {
    let jetstream = bridge.jetstream();
    if let Ok(bucket) = jetstream.get_key_value(&config.bucket).await {
        return Ok(bucket);
    }
    let name = config.bucket.clone();
    let on_three = jetstream.create_key_value(kv::Config { num_replicas: REPLICAS, ..config.clone() }).await;
    if let Ok(bucket) = on_three {
        return Ok(bucket);
    }
    let made = jetstream.create_key_value(kv::Config { num_replicas: 1, ..config }).await;
    made.map_err(|error| match std::error::Error::source(&error) {
        Some(why) => format!("the KV bucket {name} cannot be made: {error}: {why}"),
        None => format!("the KV bucket {name} cannot be made: {error}"),
    })
}

/// Whether a bucket is there.
pub(super) async fn is_there(bridge: &Bridge, bucket: &str) -> Result<bool, AmqpError> {
    match bridge.jetstream().get_stream(format!("KV_{bucket}")).await {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(answer) if answer.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(false),
            _ => Err(AmqpError::new(ReplyCode::InternalError, format!("cannot look for the bucket {bucket}: {error}"))),
        },
    }
}
