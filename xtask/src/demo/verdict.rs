//! What the applications' own records prove. Pure: records in, counts out; nothing here has ever heard of the sidecar.

use std::collections::HashMap;

use serde::Serialize;

use super::ledger::{Event, Ledger, Outcome};
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
    /// Those of producers that were killed: they may be there or not.
    pub left_open: u64,
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
    /// The same, of messages that their producer had sent again, which put them behind.
    pub reordered_resent: u64,
    /// Dead letters that came to their reader, each once.
    pub dead_lettered: u64,
    /// Those of them that had expired.
    pub expired: u64,
    /// Dead letters that came once more because their consumer was given the message again, flagged, and rejected it again.
    pub dead_again: u64,
    /// Deliveries that were given back.
    pub requeued: u64,
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
    /// Each delivery that is lost.
    #[serde(skip)]
    pub missing: Vec<Missing>,
    /// Each delivery that came again without a reason.
    #[serde(skip)]
    pub repeats: Vec<Repeat>,
}

/// A delivery that came again without a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeat {
    /// When the message was published, of a dead letter: it may have died twice.
    pub published: Option<u64>,
    /// When it came before.
    pub before: u64,
    /// When it came again.
    pub again: u64,
}

/// A message that ended nowhere: neither acknowledged, nor read as a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The message.
    pub id: String,
    /// The queue that it belonged in.
    pub queue: String,
    /// When it was published first.
    pub published: u64,
    /// When a consumer rejected it, if that is the last that was seen of it.
    pub rejected: Option<u64>,
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
        must_be_zero(self.reordered, "reordered");
        if promise == Promise::Unnoticed {
            must_be_zero(self.again_flagged, "redelivered");
            must_be_zero(self.again_resent, "delivered again after a resend");
            must_be_zero(self.resent, "sent again by their producer");
            must_be_zero(self.nacked, "refused by the broker");
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
    let mut dead: HashMap<(&str, &str), Dead> = HashMap::new();
    let mut drops = Vec::new();
    for (producer, ledger) in ledgers.iter().enumerate() {
        for record in &ledger.records {
            match &record.event {
                Event::Published { id, exchange, key, attempt, .. } => {
                    let message = messages.entry(id).or_insert_with(|| Message {
                        producer,
                        published: record.t,
                        attempts: 0,
                        confirmed: false,
                        killed: ledger.killed,
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
                    drops.push(format!("dropped: {}: {why}", ledger.app));
                }
                Event::Cancelled => {
                    verdict.connections_dropped += 1;
                    drops.push(format!("dropped: {}: its consumer was cancelled", ledger.app));
                }
                Event::Delivered { queue, id, key, seq, redelivered, intact, outcome, died } => {
                    verdict.delivered += 1;
                    if !intact {
                        verdict.altered += 1;
                        verdict.sample(format!("altered: {id} on {queue}"));
                    }
                    match queues.iter().position(|known| known.name == *queue) {
                        Some(index) if queues[index].of_dead_letters => {
                            let from = died.as_ref().map_or("", |died| died.queue.as_str());
                            let letter = dead.entry((id, from)).or_default();
                            let again = *redelivered && letter.times > 0;
                            letter.times += u32::from(!again);
                            letter.came = (letter.came.1, record.t);
                            letter.expired = died.as_ref().is_some_and(|died| died.reason == "expired");
                            verdict.again_flagged += u64::from(again);
                        }
                        Some(index) => deliveries[index].push(Delivery {
                            t: record.t,
                            id,
                            key,
                            seq: *seq,
                            redelivered: *redelivered,
                            outcome: *outcome,
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
        if !ledger.killed && !ledger.records.last().is_some_and(|last| last.event == Event::Stopped) {
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
        judge_queue(&mut verdict, queue, index, &messages, &deliveries[index], &mut dead);
    }
    for ((id, from), letter) in &dead {
        if !letter.known {
            verdict.misrouted += 1;
            verdict.sample(format!("misrouted: {id}, a dead letter of '{from}'"));
        }
    }
    for message in messages.values() {
        verdict.published += 1;
        verdict.resent += u64::from(message.attempts > 1);
        verdict.confirmed += u64::from(message.confirmed);
        verdict.unconfirmed += u64::from(!message.confirmed && !message.killed);
        verdict.left_open += u64::from(!message.confirmed && message.killed);
        if message.confirmed {
            verdict.expected += message.homes.len() as u64;
        }
    }
    // Behind the others: where programs are killed there are many, and nothing is wrong with them.
    drops.into_iter().for_each(|drop| verdict.sample(drop));
    verdict
}

fn judge_queue<'a>(
    verdict: &mut Verdict,
    queue: &'a Queue,
    index: usize,
    messages: &HashMap<&'a str, Message>,
    deliveries: &[Delivery<'a>],
    dead: &mut HashMap<(&'a str, &'a str), Dead>,
) {
    let mut seen: HashMap<&str, Seen> = HashMap::with_capacity(deliveries.len());
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
        let seen = seen.entry(delivery.id).or_default();
        seen.times += 1;
        let came = std::mem::replace(&mut seen.came, delivery.t);
        match delivery.outcome {
            Outcome::Ack => seen.acked = true,
            Outcome::Requeue => verdict.requeued += 1,
            Outcome::Reject => {
                seen.rejects += 1;
                seen.rejected = Some(delivery.t);
            }
        }
        if seen.times > 1 {
            if delivery.redelivered {
                verdict.again_flagged += 1;
            } else if message.attempts > 1 {
                verdict.again_resent += 1;
            } else {
                verdict.duplicated += 1;
                verdict.repeats.push(Repeat { published: None, before: came, again: delivery.t });
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
            if delivery.seq < *latest && message.attempts > 1 {
                verdict.reordered_resent += 1;
            } else if delivery.seq < *latest {
                verdict.reordered += 1;
                verdict.sample(format!(
                    "reordered: {} on {}: {} number {} after number {}",
                    delivery.id, queue.name, delivery.key, delivery.seq, latest
                ));
            }
            *latest = delivery.seq.max(*latest);
        }
    }
    let mut lost: Vec<Missing> = Vec::new();
    for (id, message) in messages.iter().filter(|(_, message)| message.homes.contains(&index)) {
        let seen = seen.get(id).copied().unwrap_or_default();
        let letter = dead.get_mut(&(*id, queue.name.as_str()));
        if let Some(letter) = &letter {
            verdict.dead_lettered += 1;
            verdict.expired += u64::from(letter.expired);
            // One for each time that it was rejected, and for each time that it was sent.
            let excused = seen.rejects.max(1).max(message.attempts);
            verdict.dead_again += u64::from(letter.times.min(excused) - 1);
            if letter.times > excused {
                verdict.duplicated += u64::from(letter.times - excused);
                let (before, again) = letter.came;
                let repeat = Repeat { published: Some(message.published), before, again };
                verdict.repeats.extend((excused..letter.times).map(|_| repeat));
                verdict.sample(format!("duplicated: {id}, a dead letter of {}", queue.name));
            }
        }
        let ended = seen.acked || letter.is_some();
        if let Some(letter) = letter {
            letter.known = true;
        }
        if message.confirmed && !ended {
            let (id, queue) = ((*id).to_owned(), queue.name.clone());
            lost.push(Missing { id, queue, published: message.published, rejected: seen.rejected });
        }
    }
    lost.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    verdict.lost += lost.len() as u64;
    for Missing { id, rejected, .. } in &lost {
        let how = if rejected.is_some() { ", where it was rejected" } else { "" };
        verdict.sample(format!("lost: {id} on {}{how}", queue.name));
    }
    verdict.missing.append(&mut lost);
}

struct Message {
    producer: usize,
    published: u64,
    attempts: u32,
    confirmed: bool,
    // Its producer was killed.
    killed: bool,
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
    outcome: Outcome,
}

/// What consumers of one queue did with one message.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    times: u32,
    came: u64,
    acked: bool,
    rejects: u32,
    rejected: Option<u64>,
}

/// What came of one message to the reader of dead letters, from one queue.
#[derive(Debug, Clone, Copy, Default)]
struct Dead {
    // Deliveries that were not flagged, at least 1.
    times: u32,
    // The last two times.
    came: (u64, u64),
    expired: bool,
    // The message belonged in that queue.
    known: bool,
}

/// How many things that were wrong are kept by name.
const SAMPLES: usize = 20;

#[cfg(test)]
mod tests;
