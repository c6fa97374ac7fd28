//! What the applications' own records prove. Pure: records in, counts out; nothing here has ever heard of the sidecar.

use std::collections::HashMap;

use serde::Serialize;

use super::ledger::{Event, Ledger};
use super::topology::Queue;

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// Nothing is killed: nobody may notice anything.
    Unnoticed,
    /// Programs are killed: nothing may be lost, and what comes twice must say so.
    SurvivesKills,
}

/// The counts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Verdict {
    /// Messages that producers published; one that was sent again counts once.
    pub published: u64,
    /// Messages that a producer sent more than once, because it did not learn what became of the first.
    pub resent: u64,
    /// Messages that the broker took.
    pub confirmed: u64,
    /// Messages whose producer never learned that the broker took them.
    pub unconfirmed: u64,
    /// Times that the broker refused a message.
    pub nacked: u64,
    /// Times that the broker found no queue for a message.
    pub returned: u64,
    /// Deliveries that the confirmed messages ask for: one for each queue that a message belongs in.
    pub expected: u64,
    /// Deliveries that consumers got.
    pub delivered: u64,
    /// Deliveries of confirmed messages that never came.
    pub lost: u64,
    /// Deliveries that came again, without a reason that the consumer could see.
    pub duplicated: u64,
    /// Deliveries that came again and were flagged `redelivered`.
    pub again_flagged: u64,
    /// Deliveries that came again, unflagged, of messages that the producer itself had sent again.
    pub again_resent: u64,
    /// First deliveries that came after a later message of the same producer and key, on queues with one consumer.
    pub reordered: u64,
    /// Deliveries to a queue that the message does not belong in, or of a message that nobody published.
    pub misrouted: u64,
    /// Deliveries whose body or properties were not those that were published.
    pub altered: u64,
    /// Connections, channels and consumers that ended although the application had not asked for it.
    pub connections_dropped: u64,
    /// Applications that did not end in order.
    pub not_stopped: u64,
    /// The longest time without a delivery on a queue while messages for it were published.
    pub longest_pause: Option<Pause>,
    /// The longest time from publish to first delivery.
    pub slowest: Option<Slowest>,
    /// The first few things that were wrong, to begin a search with.
    pub samples: Vec<String>,
}

/// A time without deliveries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pause {
    /// How long, in nanoseconds.
    pub ns: u64,
    /// On which queue.
    pub queue: String,
    /// When it ended, on the applications' clock.
    pub ended: u64,
}

/// The message that took longest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Slowest {
    /// How long, in nanoseconds.
    pub ns: u64,
    /// On which queue.
    pub queue: String,
    /// The message.
    pub id: String,
}

impl Verdict {
    /// What breaks the promise, in words; empty when it holds.
    pub fn wrong(&self, promise: Promise) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut must_be_zero = |count: u64, what: &str| {
            if count > 0 {
                wrong.push(format!("{count} {what}"));
            }
        };
        must_be_zero(self.lost, "lost");
        must_be_zero(self.duplicated, "duplicated");
        must_be_zero(self.misrouted, "misrouted");
        must_be_zero(self.altered, "altered");
        must_be_zero(self.returned, "returned as unroutable");
        must_be_zero(self.unconfirmed, "never confirmed");
        must_be_zero(self.not_stopped, "applications did not end in order");
        if promise == Promise::Unnoticed {
            must_be_zero(self.again_flagged, "redelivered");
            must_be_zero(self.again_resent, "delivered again after a resend");
            must_be_zero(self.resent, "sent again by their producer");
            must_be_zero(self.nacked, "refused by the broker");
            must_be_zero(self.reordered, "reordered");
            must_be_zero(self.connections_dropped, "connections dropped");
        }
        if self.published == 0 {
            wrong.push("nothing was published".to_owned());
        }
        wrong
    }

    fn sample(&mut self, text: String) {
        if self.samples.len() < SAMPLES {
            self.samples.push(text);
        }
    }
}

/// Counts what `ledgers` prove about messages that were to come out of `queues`.
pub fn judge(ledgers: &[Ledger], queues: &[Queue]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut messages: HashMap<&str, Message> = HashMap::new();
    let mut deliveries: Vec<Vec<Delivery>> = vec![Vec::new(); queues.len()];
    for (producer, ledger) in ledgers.iter().enumerate() {
        for record in &ledger.records {
            match &record.event {
                Event::Published { id, exchange, key, attempt, .. } => {
                    let message = messages.entry(id).or_insert_with(|| Message {
                        producer,
                        published: record.t,
                        attempts: 0,
                        confirmed: false,
                        homes: (0..queues.len()).filter(|queue| queues[*queue].takes(exchange, key)).collect(),
                    });
                    message.attempts = message.attempts.max(*attempt);
                }
                Event::Nacked { .. } => verdict.nacked += 1,
                Event::Returned { id, why } => {
                    verdict.returned += 1;
                    verdict.sample(format!("returned: {id}: {why}"));
                }
                Event::Disconnected { why } | Event::ChannelClosed { why } => {
                    verdict.connections_dropped += 1;
                    verdict.sample(format!("dropped: {}: {why}", ledger.app));
                }
                Event::Cancelled => {
                    verdict.connections_dropped += 1;
                    verdict.sample(format!("dropped: {}: its consumer was cancelled", ledger.app));
                }
                Event::Delivered { queue, id, key, seq, redelivered, intact } => {
                    verdict.delivered += 1;
                    if !intact {
                        verdict.altered += 1;
                        verdict.sample(format!("altered: {id} on {queue}"));
                    }
                    match queues.iter().position(|known| known.name == *queue) {
                        Some(index) => deliveries[index].push(Delivery {
                            t: record.t,
                            id,
                            key,
                            seq: *seq,
                            redelivered: *redelivered,
                        }),
                        None => {
                            verdict.misrouted += 1;
                            verdict.sample(format!("misrouted: {id} on {queue}, which is not a queue of the demo"));
                        }
                    }
                }
                Event::Started { .. }
                | Event::Connected
                | Event::ConnectFailed { .. }
                | Event::Confirmed { .. }
                | Event::Stopped => {}
            }
        }
        if !ledger.records.last().is_some_and(|last| last.event == Event::Stopped) {
            verdict.not_stopped += 1;
            verdict.sample(format!("not ended in order: {}", ledger.app));
        }
    }
    // Only now: two producers' files are read one after the other, and each confirms its own.
    for record in ledgers.iter().flat_map(|ledger| &ledger.records) {
        if let Event::Confirmed { id } = &record.event
            && let Some(message) = messages.get_mut(id.as_str())
        {
            message.confirmed = true;
        }
    }
    for (index, queue) in queues.iter().enumerate() {
        // Competing consumers have a file each; each file is in order, so this puts them in one line.
        deliveries[index].sort_by_key(|delivery| delivery.t);
        judge_queue(&mut verdict, queue, index, &messages, &deliveries[index]);
    }
    for message in messages.values() {
        verdict.published += 1;
        verdict.resent += u64::from(message.attempts > 1);
        verdict.confirmed += u64::from(message.confirmed);
        verdict.unconfirmed += u64::from(!message.confirmed);
        if message.confirmed {
            verdict.expected += message.homes.len() as u64;
        }
    }
    verdict
}

fn judge_queue(
    verdict: &mut Verdict,
    queue: &Queue,
    index: usize,
    messages: &HashMap<&str, Message>,
    deliveries: &[Delivery],
) {
    let mut seen: HashMap<&str, u32> = HashMap::with_capacity(deliveries.len());
    let mut latest: HashMap<(usize, &str), u64> = HashMap::new();
    let last_published = messages
        .values()
        .filter(|message| message.homes.contains(&index))
        .map(|message| message.published)
        .max()
        .unwrap_or(0);
    let mut previous: Option<u64> = None;
    for delivery in deliveries {
        if let Some(before) = previous
            && before <= last_published
        {
            let ns = delivery.t - before;
            if verdict.longest_pause.as_ref().is_none_or(|longest| longest.ns < ns) {
                verdict.longest_pause = Some(Pause { ns, queue: queue.name.clone(), ended: delivery.t });
            }
        }
        previous = Some(delivery.t);
        let Some(message) = messages.get(delivery.id).filter(|message| message.homes.contains(&index)) else {
            verdict.misrouted += 1;
            verdict.sample(format!("misrouted: {} on {}", delivery.id, queue.name));
            continue;
        };
        let times = seen.entry(delivery.id).or_insert(0);
        *times += 1;
        if *times > 1 {
            if delivery.redelivered {
                verdict.again_flagged += 1;
            } else if message.attempts > 1 {
                verdict.again_resent += 1;
            } else {
                verdict.duplicated += 1;
                verdict.sample(format!("duplicated: {} on {}", delivery.id, queue.name));
            }
            continue;
        }
        let ns = delivery.t.saturating_sub(message.published);
        if verdict.slowest.as_ref().is_none_or(|slowest| slowest.ns < ns) {
            verdict.slowest = Some(Slowest { ns, queue: queue.name.clone(), id: delivery.id.to_owned() });
        }
        if queue.consumers == 1 {
            let latest = latest.entry((message.producer, delivery.key)).or_insert(0);
            if delivery.seq < *latest {
                verdict.reordered += 1;
                verdict.sample(format!(
                    "reordered: {} on {}: {} number {} after number {}",
                    delivery.id, queue.name, delivery.key, delivery.seq, latest
                ));
            }
            *latest = delivery.seq.max(*latest);
        }
    }
    let mut lost: Vec<&str> = messages
        .iter()
        .filter(|(id, message)| message.confirmed && message.homes.contains(&index) && !seen.contains_key(*id))
        .map(|(id, _)| *id)
        .collect();
    lost.sort_unstable();
    verdict.lost += lost.len() as u64;
    for id in lost {
        verdict.sample(format!("lost: {id} on {}", queue.name));
    }
}

struct Message {
    producer: usize,
    published: u64,
    attempts: u32,
    confirmed: bool,
    // Indexes of the queues that it belongs in.
    homes: Vec<usize>,
}

#[derive(Debug, Clone)]
struct Delivery<'a> {
    t: u64,
    id: &'a str,
    key: &'a str,
    seq: u64,
    redelivered: bool,
}

/// How many things that were wrong are kept by name.
const SAMPLES: usize = 20;

#[cfg(test)]
mod tests;
