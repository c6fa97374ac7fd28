//! What must hold in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::RawMessageErrorKind;
use nats_bridge::{Bridge, Retention, dead_letter};
use test_support::eventually::eventually_some;

use crate::leaders::{self, Gaps};
use crate::record::{Did, Handled, Outcome, Record};
use crate::run::{ATTEMPTS, Fate, MESSAGES, fate};

/// Counts over all seeds.
#[derive(Debug, Default)]
pub struct Figures {
    seeds: u64,
    published: usize,
    confirmed: usize,
    unknown: usize,
    handled: usize,
    again: usize,
    letters: usize,
    kills: u64,
    workers: u64,
    stored_twice: usize,
    hand_over_ms: Vec<u64>,
    /// Of the same letters: without the time in which nobody led the dead-letter stream or the consumer.
    led_ms: Vec<u64>,
    /// For how long nobody led the dead-letter stream, each time, and the consumer.
    letters_unled_ms: Vec<u64>,
    consumer_unled_ms: Vec<u64>,
}

impl Figures {
    pub fn add(&mut self, other: Figures) {
        self.seeds += 1;
        self.published += other.published;
        self.confirmed += other.confirmed;
        self.unknown += other.unknown;
        self.handled += other.handled;
        self.again += other.again;
        self.letters += other.letters;
        self.kills += other.kills;
        self.workers += other.workers;
        self.stored_twice += other.stored_twice;
        self.hand_over_ms.extend(other.hand_over_ms);
        self.led_ms.extend(other.led_ms);
        self.letters_unled_ms.extend(other.letters_unled_ms);
        self.consumer_unled_ms.extend(other.consumer_unled_ms);
    }

    pub fn hand_over_p99_ms(&self) -> u64 {
        p99(&self.hand_over_ms)
    }

    pub fn led_p99_ms(&self) -> u64 {
        p99(&self.led_ms)
    }

    pub fn print(&self, what: &str) {
        println!(
            "{what}: {} seeds, {} published, {} confirmed, {} unknown, {} stored twice by a forgetful work queue, {} handled, {} of \
             them flagged redelivered, {} dead letters, {} kills of a server, {} of a worker; from the last failure to the dead \
             letter: p99 {} ms, longest {} ms",
            self.seeds,
            self.published,
            self.confirmed,
            self.unknown,
            self.stored_twice,
            self.handled,
            self.again,
            self.letters,
            self.kills,
            self.workers,
            self.hand_over_p99_ms(),
            longest(&self.hand_over_ms)
        );
        if !self.letters_unled_ms.is_empty() || !self.consumer_unled_ms.is_empty() {
            println!(
                "{what}: less the time without a leader: p99 {} ms, longest {} ms; the dead-letter stream had none {} times, for {} ms \
                 at most, the consumer {} times, for {} ms at most",
                self.led_p99_ms(),
                longest(&self.led_ms),
                self.letters_unled_ms.len(),
                longest(&self.letters_unled_ms),
                self.consumer_unled_ms.len(),
                longest(&self.consumer_unled_ms),
            );
        }
    }
}

fn p99(all: &[u64]) -> u64 {
    let mut sorted = all.to_vec();
    sorted.sort_unstable();
    sorted.get((sorted.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0)
}

fn longest(all: &[u64]) -> u64 {
    all.iter().max().copied().unwrap_or(0)
}

fn millis(times: &[Duration]) -> Vec<u64> {
    times.iter().map(|time| time.as_millis() as u64).collect()
}

/// Waits until the consumer has nothing to deliver and nothing un-acked.
pub async fn wait_until_nothing_is_left(bridge: &Bridge, retention: Retention) -> Result<(), Vec<String>> {
    let end = Instant::now() + Duration::from_secs(60);
    let mut last = String::new();
    let mut calm = 0;
    while Instant::now() < end {
        match left(bridge, retention).await {
            Ok((0, 0)) => calm += 1,
            Ok((pending, unacked)) => (calm, last) = (0, format!("{pending} pending, {unacked} un-acked")),
            Err(text) => (calm, last) = (0, text),
        }
        // Counts of a moment: a hand-over acks nothing before its letter is stored.
        if calm == 5 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(vec![format!("not everything was handled within a minute of calm weather: {last}")])
}

async fn left(bridge: &Bridge, retention: Retention) -> Result<(u64, usize), String> {
    let stream = bridge.jetstream().get_stream("ORDERS").await.map_err(|e| e.to_string())?;
    let info = stream.consumer_info("billing").await.map_err(|e| e.to_string())?;
    // A consumer that has just got another leader may not have counted yet; of a work queue the stream knows.
    let stored = if retention == Retention::WorkQueue { stream.cached_info().state.messages } else { 0 };
    Ok((info.num_pending.max(stored.saturating_sub(info.num_ack_pending as u64)), info.num_ack_pending))
}

pub async fn judge(
    seed: u64,
    bridge: &Bridge,
    retention: Retention,
    record: &Record,
    gaps: &Gaps,
) -> Result<Figures, Vec<String>> {
    let mut faults = Vec::new();
    // The server may know of a settlement before its future does.
    let end = Instant::now() + Duration::from_secs(20);
    while !record.all_settled() && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stored = all(bridge, "ORDERS").await;
    let letters = all(bridge, "ORDERS_DLQ").await;
    let published: BTreeMap<usize, Outcome> = record.published.lock().unwrap().iter().cloned().collect();
    let mut handled: BTreeMap<u64, Vec<Handled>> = BTreeMap::new();
    for one in record.handled.lock().unwrap().iter() {
        handled.entry(one.sequence).or_default().push(one.clone());
    }
    if published.len() != MESSAGES {
        faults.push(format!("{} of {MESSAGES} publishes have an outcome", published.len()));
    }

    // Confirmed is stored, once; what landed not is nowhere.
    let mut sequences: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    let mut still_stored: BTreeSet<(usize, u64)> = BTreeSet::new();
    for message in &stored {
        still_stored.insert((number(message), message.sequence));
        sequences.entry(number(message)).or_default().push(message.sequence);
    }
    for (sequence, calls) in &handled {
        let known = sequences.entry(calls[0].number).or_default();
        if !known.contains(sequence) {
            known.push(*sequence);
        }
    }
    for letter in &letters {
        let known = sequences.entry(number(letter)).or_default();
        let sequence = header(letter, dead_letter::SEQUENCE).parse().unwrap();
        if !known.contains(&sequence) {
            known.push(sequence);
        }
    }
    let (mut confirmed, mut unknown, mut stored_twice) = (0, 0, 0);
    for (number, outcome) in &published {
        let places = sequences.get(number).cloned().unwrap_or_default();
        match outcome {
            Outcome::Stored { sequence } => {
                confirmed += 1;
                // A work queue has let go of what is settled: then its handling, or its dead letter, tells where it lay.
                let kept = retention == Retention::WorkQueue || still_stored.contains(&(*number, *sequence));
                if !places.contains(sequence) || !kept {
                    faults.push(format!("{number} was confirmed at {sequence} and is at {places:?}"));
                }
            }
            Outcome::No(error) if !places.is_empty() => {
                faults.push(format!("{number} is at {places:?} although nothing landed: {error}"));
            }
            Outcome::No(_) => {}
            // Calm weather came long before the deadline: a resend had to find out.
            Outcome::Unknown(error) => {
                unknown += 1;
                faults.push(format!("it was never found out what became of {number}: {error}"));
            }
        }
        // A work queue forgets the ids of settled messages when its server restarts.
        let forgetful = retention == Retention::WorkQueue && record.kills() > 0;
        match places.len() {
            0 | 1 => {}
            _ if forgetful => stored_twice += places.len() - 1,
            _ => faults.push(format!("{number} is stored at {places:?}")),
        }
    }

    // Each call of the handler is the first, or flagged. Only when the server that counted and the worker that knew are
    // both gone does nobody know.
    let mut again = 0;
    for (sequence, calls) in &handled {
        for (i, call) in calls.iter().enumerate() {
            again += usize::from(call.attempt > 1);
            let known = |before: &&Handled| {
                let none_killed = before.era == call.era && call.era.is_multiple_of(2);
                before.worker == call.worker || none_killed
            };
            if call.attempt == 1
                && let Some(before) = calls[..i].iter().find(known)
            {
                faults.push(format!("{sequence} was handled twice unflagged: {before:?}, then {call:?}"));
            }
        }
        let most = calls.iter().map(|call| call.attempt).max().unwrap_or(0);
        if most > u64::from(ATTEMPTS) || (record.kills() == 0 && calls.len() > ATTEMPTS as usize) {
            faults.push(format!("{sequence} had {} calls, the last with attempt {most}", calls.len()));
        }
        // An ack of a worker that lives on is never followed by another call in that worker.
        for (i, call) in calls.iter().enumerate() {
            if call.acked()
                && let Some(later) = calls[i + 1..].iter().find(|later| later.worker == call.worker)
            {
                faults.push(format!("{sequence} was acked and handled again by the same worker: {call:?}, {later:?}"));
            }
            // Nor is one that the server has confirmed, by any worker, while no server was killed.
            let confirmed = call.acked() && fate(seed, call.number) == Fate::AckConfirmed;
            let unkilled = |later: &&Handled| later.era == call.era && call.era.is_multiple_of(2);
            if confirmed && let Some(later) = calls[i + 1..].iter().find(unkilled) {
                faults.push(format!("{sequence} was acked for good and handled again: {call:?}, {later:?}"));
            }
            if call.worker == record.worker() && call.did != Did::Dropped && call.settled.is_none() {
                faults.push(format!("{sequence}: a settlement never ended: {call:?}"));
            }
        }
    }

    // Done, or one dead letter: never both, never neither.
    let mut by_origin: BTreeMap<u64, Vec<&StreamMessage>> = BTreeMap::new();
    for letter in &letters {
        by_origin.entry(header(letter, dead_letter::SEQUENCE).parse().unwrap()).or_default().push(letter);
    }
    let (mut hand_over_ms, mut led_ms) = (Vec::new(), Vec::new());
    for (number, places) in &sequences {
        for sequence in places {
            let calls = handled.get(sequence).map(Vec::as_slice).unwrap_or_default();
            let letters = by_origin.get(sequence).map(Vec::as_slice).unwrap_or_default();
            let reason = letters.first().map(|letter| header(letter, dead_letter::REASON)).unwrap_or_default();
            match letters.len() {
                // An ack whose answer was lost may have been heard: nothing is un-acked any more.
                0 if !calls.iter().any(|call| call.did == Did::Acked) => {
                    faults.push(format!("{number} at {sequence} is neither done nor a dead letter: {calls:?}"));
                }
                0 => {}
                1 => {
                    let fate = fate(seed, *number);
                    let by_policy = matches!(fate, Fate::FailAlways | Fate::Reject);
                    // Deliveries that vanished with their worker or connection use attempts up.
                    if !by_policy && reason != "crash_loop" && !calls.iter().any(|call| call.did != Did::Acked) {
                        faults.push(format!("{number} at {sequence} is a dead letter ({reason}) without a failure"));
                    }
                    // The worker that lives on knows what it has acked. A dead letter from before that ack may be of a worker
                    // that vanished before it had ended the original, if a killed server has forgotten the count too.
                    let stored_at = SystemTime::from(letters[0].time);
                    let nobody_knew = |call: &Handled| record.worker() > 0 && record.kills() > 0 && stored_at < call.at;
                    let mut acked = calls.iter().filter(|call| call.worker == record.worker() && call.acked());
                    if let Some(acked) = acked.find(|call| !nobody_knew(call)) {
                        faults.push(format!("{number} at {sequence} is done and a dead letter ({reason}): {acked:?}"));
                    }
                    if header(letters[0], dead_letter::SUBJECT) != format!("orders.{}", number % 5) {
                        faults.push(format!("the dead letter of {number} names another subject"));
                    }
                    let failed = calls.iter().rfind(|call| matches!(call.did, Did::Failed | Did::Rejected));
                    if let Some(failed) = failed.filter(|_| reason != "crash_loop") {
                        let took = stored_at.duration_since(failed.at).unwrap_or_default();
                        let unled = gaps.between(failed.at, stored_at, &[leaders::DEAD_LETTERS, leaders::CONSUMER]);
                        let led = took.saturating_sub(unled);
                        if took >= Duration::from_secs(5) {
                            println!(
                                "seed {seed}: {number} took {} ms to its dead letter ({reason}), {} ms of them led",
                                took.as_millis(),
                                led.as_millis()
                            );
                        }
                        hand_over_ms.push(took.as_millis() as u64);
                        led_ms.push(led.as_millis() as u64);
                    }
                }
                _ => faults.push(format!("{number} at {sequence} is {} dead letters", letters.len())),
            }
        }
    }
    if !faults.is_empty() {
        faults.truncate(20);
        return Err(faults);
    }
    Ok(Figures {
        seeds: 1,
        published: published.len(),
        confirmed,
        unknown,
        handled: handled.values().map(Vec::len).sum(),
        again,
        letters: letters.len(),
        kills: record.kills(),
        workers: record.worker(),
        stored_twice,
        hand_over_ms,
        led_ms,
        letters_unled_ms: millis(&gaps.of(leaders::DEAD_LETTERS)),
        consumer_unled_ms: millis(&gaps.of(leaders::CONSUMER)),
    })
}

async fn all(bridge: &Bridge, stream: &str) -> Vec<StreamMessage> {
    // A server that was killed may not have caught up, and then does not answer.
    let stream = eventually_some("the stream", || async { bridge.jetstream().get_stream(stream).await.ok() }).await;
    let state = &stream.cached_info().state;
    let mut all = Vec::new();
    if state.messages == 0 {
        return all;
    }
    for sequence in state.first_sequence..=state.last_sequence {
        let read = || async {
            match stream.get_raw_message(sequence).await {
                Ok(message) => Some(Some(message)),
                // Settled messages of a work queue are gone.
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Some(None),
                Err(_) => None,
            }
        };
        all.extend(eventually_some("a stored message", read).await);
    }
    all
}

fn number(message: &StreamMessage) -> usize {
    std::str::from_utf8(&message.payload).unwrap().parse().unwrap()
}

fn header(message: &StreamMessage, name: &str) -> String {
    message.headers.get(name).map(|value| value.as_str().to_owned()).unwrap_or_default()
}
