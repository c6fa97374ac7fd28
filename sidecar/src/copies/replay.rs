//! Puts the copies of a queue into the queue itself, when their owner is given up.
//!
//! They go through an exchange of their own, so that they have their routing keys. What their keeper has confirmed is removed from the standby
//! queue only then: a crash in between delivers it twice, as redelivered.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use amq_protocol::types::{FieldTable, ShortString};
use amqp_compat::backend::{
    Binding, Command, Consume, DeliveryId, Event, ExchangeDeclare, Message, Outcome, Publish, PublishOutcome,
    QueueDeclare, Reply, Topology,
};
use amqp_compat::error::{AmqpError, ReplyCode};
use tokio::time::timeout;

use super::ledger::Ledger;
use super::store;
use crate::dual::operator::{Operator, Talk};
use crate::dual::stamp;
use crate::fence::QueueName;
use crate::ownership::Side;

/// How far a replay is.
#[derive(Debug, Default)]
pub struct Progress {
    /// Copies that were found.
    pub found: AtomicU64,
    /// Of them, those that were put into their queues.
    pub replayed: AtomicU64,
    /// Of them, those that were not needed: settled, or another copy of the same message.
    pub not_needed: AtomicU64,
    /// Of them, those whose queue the keeper does not have; they stay where they are.
    pub left: AtomicU64,
}

const CHANNEL: u16 = 1;
/// Publishes that are not confirmed.
const CHUNK: usize = 512;
/// The longest that the keeper may take for one thing.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn replay(
    operator: &Operator,
    queue: &QueueName,
    ledger: &mut Ledger,
    open: &(dyn Fn(u128) -> bool + Sync),
    progress: &Progress,
) -> Result<(), AmqpError> {
    let mut talk = operator.talk(&queue.vhost).await?;
    let store: ShortString = store::name(&queue.queue).as_str().into();
    let passive = QueueDeclare::passive(store.clone());
    let count = match topology(&mut talk, Topology::QueueDeclare(passive)).await {
        Ok(Reply::Queue { message_count, .. }) => message_count as usize,
        Ok(_) => 0,
        Err(error) if error.code == ReplyCode::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if count == 0 {
        return tidy(operator, &mut talk, store).await;
    }
    progress.found.fetch_add(count as u64, Ordering::Relaxed);
    let copies = read(&mut talk, store.clone(), count).await?;
    let exchange: ShortString = format!("nats-bridge.replay.{}", queue.queue).as_str().into();
    if !lead_to(&mut talk, &exchange, queue).await? {
        progress.left.fetch_add(count as u64, Ordering::Relaxed);
        return Ok(());
    }
    let every: Vec<DeliveryId> = copies.iter().map(|(_, (place, _))| *place).collect();
    let needed = ledger.replay(copies, open, |id, (_, copy)| stamp::place_of(copy, id));
    progress.not_needed.fetch_add((every.len() - needed.len()) as u64, Ordering::Relaxed);
    let (mut seq, mut removed) = (0, std::collections::HashSet::new());
    let mut needed = needed.into_iter().peekable();
    while needed.peek().is_some() {
        let mut chunk = Vec::with_capacity(CHUNK);
        for (id, (place, message)) in needed.by_ref().take(CHUNK) {
            seq += 1;
            let message = stamp::replayed(message, exchange.as_str());
            talk.say(Command::Publish(Box::new(Publish { channel: CHANNEL, seq, mandatory: true, message }))).await?;
            chunk.push((id, place));
        }
        confirmed(&mut talk, chunk.len()).await?;
        for (id, _) in &chunk {
            ledger.replayed(*id);
        }
        progress.replayed.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        removed.extend(chunk.iter().map(|(_, place)| *place));
        remove(&mut talk, chunk.into_iter().map(|(_, place)| place).collect()).await?;
    }
    remove(&mut talk, every.into_iter().filter(|place| !removed.contains(place)).collect()).await?;
    topology(&mut talk, Topology::ExchangeDelete { exchange, if_unused: false }).await?;
    tidy(operator, &mut talk, store).await
}

/// Deletes a store that is empty, where it would otherwise be a stream for ever. What it holds after all stays.
async fn tidy(operator: &Operator, talk: &mut Talk, store: ShortString) -> Result<(), AmqpError> {
    if operator.side() == Side::Nats {
        let delete = Topology::QueueDelete { queue: store, if_unused: false, if_empty: true };
        match topology(talk, delete).await {
            Err(error) if error.code != ReplyCode::PreconditionFailed => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

async fn topology(talk: &mut Talk, request: Topology) -> Result<Reply, AmqpError> {
    in_time(talk.ask(Command::Topology { channel: CHANNEL, request })).await
}

async fn in_time<T>(asked: impl Future<Output = Result<T, AmqpError>>) -> Result<T, AmqpError> {
    timeout(PATIENCE, asked).await.unwrap_or_else(|_| {
        let text = format!("no answer within {} s", PATIENCE.as_secs());
        Err(AmqpError::new(ReplyCode::InternalError, text))
    })
}

/// Everything that the store holds: it is bounded by [`store`]'s bytes.
async fn read(
    talk: &mut Talk,
    store: ShortString,
    count: usize,
) -> Result<Vec<(u128, (DeliveryId, Message))>, AmqpError> {
    let consume = Consume {
        queue: store,
        consumer_tag: "nats-bridge.replay".into(),
        exclusive: true,
        no_ack: false,
        credit: u32::MAX,
        prefetch: 0,
        no_limit: true,
        arguments: FieldTable::default(),
    };
    in_time(talk.ask(Command::Consume { channel: CHANNEL, consume })).await?;
    let mut copies = Vec::with_capacity(count);
    while copies.len() < count {
        if let Event::Delivery { delivery, .. } = in_time(talk.hear()).await? {
            // Somebody else's message is no copy; it goes to the end, and is not removed.
            let id = stamp::id_of(&delivery.message).unwrap_or(u128::MAX);
            copies.push((id, (delivery.id, delivery.message)));
        }
    }
    Ok(copies)
}

/// Makes the exchange that leads to the queue; false when the keeper does not have the queue.
async fn lead_to(talk: &mut Talk, exchange: &ShortString, queue: &QueueName) -> Result<bool, AmqpError> {
    let declare = ExchangeDeclare {
        exchange: exchange.clone(),
        kind: "fanout".into(),
        passive: false,
        durable: false,
        auto_delete: false,
        internal: false,
        arguments: FieldTable::default(),
    };
    topology(talk, Topology::ExchangeDeclare(declare)).await?;
    let binding = Binding {
        source: exchange.clone(),
        destination: (&*queue.queue).into(),
        routing_key: ShortString::default(),
        arguments: FieldTable::default(),
    };
    match topology(talk, Topology::QueueBind(binding)).await {
        Ok(_) => Ok(true),
        Err(error) if error.code == ReplyCode::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

async fn confirmed(talk: &mut Talk, mut count: usize) -> Result<(), AmqpError> {
    while count > 0 {
        match in_time(talk.hear()).await? {
            Event::Confirm { outcome: PublishOutcome::Stored, .. } => count -= 1,
            Event::Confirm { outcome: PublishOutcome::Failed, .. } => {
                return Err(AmqpError::new(ReplyCode::InternalError, "a copy was not stored in its queue"));
            }
            Event::Returned { error, .. } => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

async fn remove(talk: &mut Talk, mut places: Vec<DeliveryId>) -> Result<(), AmqpError> {
    places.sort_unstable();
    let command = Command::Settle { channel: CHANNEL, deliveries: places.into(), outcome: Outcome::Ack };
    talk.say(command).await
}
