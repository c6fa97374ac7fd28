//! Where dead letters go: the model's rules applied to the topology as it is now.

use std::time::{SystemTime, UNIX_EPOCH};

use amq_protocol::types::{AMQPValue, FieldTable, ShortString};
use async_nats::HeaderMap;
use smallvec::SmallVec;
use std::sync::Arc;

use super::delays::through;
use super::queue::Queue;
use super::vhost::State;
use crate::backend::Message;
use crate::mapping::{properties, table};
use crate::model::dead_letter::{DeadLetter, Death, Reason};
use crate::model::vhost::Route;

/// How many full queues may pass one message on to each other's dead-letter exchanges. RabbitMQ has no bound here and
/// goes round for ever when one of the deaths before was a rejection.
const MAX_PASSED_ON: usize = 32;

/// A dead letter and the queues that take it; their room is taken.
#[derive(Debug)]
pub(crate) struct Routed {
    pub(crate) letter: DeadLetter,
    pub(crate) queues: SmallVec<[Arc<Queue>; 4]>,
    /// Delayed exchanges that keep it first, as [`through`] writes them.
    pub(crate) delayed_by: Option<String>,
}

/// Takes room for a message in its queues; those without room are left out. Gives what they pass on to their dead-letter
/// exchanges.
pub(crate) fn admit(queues: &mut SmallVec<[Arc<Queue>; 4]>, message: &Message, bcc: &[ShortString]) -> Vec<Routed> {
    let mut passed_on = Vec::new();
    queues.retain(|queue| {
        let takes = queue.admit(message.body.len());
        if !takes && queue.passes_on() {
            passed_on.extend(route(queue, message.clone(), bcc.to_vec(), Reason::MaxLength));
        }
        takes
    });
    passed_on
}

/// Finds the queues for a message that died in `from`: none when the queue has no dead-letter exchange, when that is not
/// there or has no route, or when the message would go round by itself. What a full queue refuses is dropped, or goes on
/// to its own dead-letter exchange, as that queue says.
pub(crate) fn route(from: &Queue, message: Message, bcc: Vec<ShortString>, reason: Reason) -> Vec<Routed> {
    let mut found = Vec::new();
    if let Some(state) = from.topology.upgrade() {
        let state = state.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        add(&state, from, message, bcc, reason, &mut found, 0);
    }
    found
}

fn add(
    state: &State,
    from: &Queue,
    message: Message,
    bcc: Vec<ShortString>,
    reason: Reason,
    found: &mut Vec<Routed>,
    passed_on: usize,
) {
    if passed_on > MAX_PASSED_ON {
        tracing::warn!(queue = from.name(), "a message that only full queues pass on to each other is dropped");
        return;
    }
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let death = Death { queue: from.name(), reason, at };
    let Some(letter) = DeadLetter::new(message, bcc, &from.settings(), death) else { return };
    let mut route = Route::default();
    let properties = Some(&letter.message.properties);
    state.model.route_within(letter.message.exchange.as_str(), &letter.keys(), properties, &mut route);
    let mut queues: SmallVec<[Arc<Queue>; 4]> = SmallVec::new();
    let size = letter.message.body.len();
    for queue in route.queues.iter().filter_map(|slot| state.queue(*slot)) {
        if letter.is_cycle(queue.name(), reason) {
            tracing::debug!(queue = queue.name(), from = from.name(), "a dead letter that goes round is dropped");
        } else if queue.admit(size) {
            queues.push(queue.clone());
        } else if queue.passes_on() {
            let DeadLetter { message, bcc } = letter.clone();
            add(state, queue, message, bcc, Reason::MaxLength, found, passed_on + 1);
        }
    }
    if !route.delayed_by.is_empty() {
        queues.extend(state.delays.clone());
    }
    if !queues.is_empty() {
        let delayed_by = through(&route.delayed_by, letter.message.exchange.as_str());
        found.push(Routed { letter, queues, delayed_by });
    }
}

/// The hidden routing keys as a header's value; `None` when there are none.
pub(crate) fn hide(bcc: &[ShortString]) -> Option<String> {
    if bcc.is_empty() {
        return None;
    }
    let keys: Vec<AMQPValue> = bcc.iter().map(|key| AMQPValue::LongString(key.as_str().into())).collect();
    let mut hidden = FieldTable::default();
    hidden.insert("BCC".into(), AMQPValue::FieldArray(keys.into()));
    Some(table::to_base64(&hidden))
}

/// The hidden routing keys of a stored message.
pub(crate) fn hidden(headers: Option<&HeaderMap>) -> Vec<ShortString> {
    let Some(value) = headers.and_then(|headers| headers.get(properties::BCC)) else { return Vec::new() };
    let Some(hidden) = table::from_base64(value.as_str()) else { return Vec::new() };
    match hidden.inner().get("BCC") {
        Some(AMQPValue::FieldArray(keys)) => {
            let keys = keys.as_slice().iter().filter_map(crate::model::arguments::text);
            keys.filter_map(|key| ShortString::try_new(key).ok()).collect()
        }
        _ => Vec::new(),
    }
}
