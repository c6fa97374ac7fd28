//! What a NATS server and account take.

use async_nats::jetstream::account::Limits;
use nats_bridge::Bridge;

use super::super::Failure;
use crate::assess::NatsLimits;

/// What NATS takes.
pub(super) async fn of(bridge: &Bridge) -> Result<NatsLimits, Failure> {
    let account = bridge.jetstream().query_account().await;
    let account = account.map_err(|error| Failure::cannot_run(format!("--nats: the account was not told: {error}")))?;
    let tier = account.tiers.get("R1").or_else(|| account.tiers.values().next());
    let (limits, storage, streams, consumers): (&Limits, u64, usize, usize) = match tier {
        Some(tier) => (&tier.limits, tier.storage, tier.streams, tier.consumers),
        None => (&account.limits, account.storage, account.streams, account.consumers),
    };
    let left = |limit: Option<i64>, used: u64| Some(u64::try_from(limit?).unwrap_or(0).saturating_sub(used));
    let server = bridge.client().server_info();
    Ok(NatsLimits {
        version: server.version,
        max_payload: server.max_payload as u64,
        free_storage: left(limits.max_storage, storage),
        free_streams: left(limits.max_streams, streams as u64),
        free_consumers: left(limits.max_consumers, consumers as u64),
        max_bytes_required: limits.max_bytes_required,
        is_clustered: server.cluster.is_some(),
    })
}
