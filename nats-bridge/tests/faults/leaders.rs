//! For how long a stream or a consumer had no leader, as the servers themselves tell it.
//!
//! After a `kill -9` of a leader the servers that are left wait 4 to 9 s before they elect another one; until then nobody can store a dead
//! letter or deliver a message again, whatever the SDK does. A server claims leadership at its monitoring endpoint; when none of the three
//! does, there is no leader. Nothing of the SDK takes part in this.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use test_support::nats::monitor;

use crate::places::Places;

/// Who has to be led, for a failed message to become a dead letter.
pub const DEAD_LETTERS: &str = "ORDERS_DLQ";
pub const CONSUMER: &str = "ORDERS/billing";

const EVERY: Duration = Duration::from_millis(50);

/// Asks the servers from now on, in a thread of its own.
pub struct Watch {
    ends: Arc<AtomicBool>,
    gaps: Arc<Mutex<Gaps>>,
    thread: Option<JoinHandle<()>>,
}

/// When there was no leader, by stream or consumer.
#[derive(Debug, Default, Clone)]
pub struct Gaps(HashMap<&'static str, Vec<(SystemTime, SystemTime)>>);

impl Watch {
    pub fn start(places: &Places) -> Watch {
        let servers = places.monitors();
        let (ends, gaps) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Gaps::default())));
        let thread = {
            let (ends, gaps) = (ends.clone(), gaps.clone());
            std::thread::spawn(move || {
                // Since when there is none: from the end of the first round that found none.
                let mut since: HashMap<&'static str, SystemTime> = HashMap::new();
                while !ends.load(Ordering::Relaxed) {
                    let began = SystemTime::now();
                    let answers: Vec<Answer> = servers.iter().map(|(port, name)| ask(*port, name)).collect();
                    for object in [DEAD_LETTERS, CONSUMER] {
                        let led = answers.iter().any(|answer| answer.may_lead(object));
                        match (led, since.get(object).copied()) {
                            (false, None) => {
                                since.insert(object, SystemTime::now());
                            }
                            // Until the beginning of the first one that found one: the time is never told too long.
                            (true, Some(from)) => {
                                since.remove(object);
                                gaps.lock().unwrap().0.entry(object).or_default().push((from, began));
                            }
                            _ => {}
                        }
                    }
                    std::thread::sleep(EVERY);
                }
            })
        };
        Watch { ends, gaps, thread: Some(thread) }
    }

    /// What was seen.
    pub fn gaps(&self) -> Gaps {
        self.gaps.lock().unwrap().clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Gaps {
    /// For how long of that time one of these had no leader.
    pub fn between(&self, from: SystemTime, to: SystemTime, objects: &[&str]) -> Duration {
        let mut parts: Vec<(SystemTime, SystemTime)> = objects
            .iter()
            .flat_map(|object| self.0.get(object).into_iter().flatten())
            .map(|(start, end)| (*start.max(&from), *end.min(&to)))
            .filter(|(start, end)| start < end)
            .collect();
        parts.sort();
        let (mut total, mut counted) = (Duration::ZERO, from);
        for (start, end) in parts {
            total += end.duration_since(start.max(counted)).unwrap_or_default();
            counted = counted.max(end);
        }
        total
    }

    /// How long each was, of these.
    pub fn of(&self, object: &str) -> Vec<Duration> {
        let gaps = self.0.get(object).into_iter().flatten();
        gaps.map(|(start, end)| end.duration_since(*start).unwrap_or_default()).collect()
    }
}

enum Answer {
    /// The process is not there.
    Gone,
    /// It did not answer in time, and may be a leader.
    Unknown,
    Leads(Vec<String>),
}

impl Answer {
    fn may_lead(&self, object: &str) -> bool {
        match self {
            Answer::Gone => false,
            Answer::Unknown => true,
            Answer::Leads(objects) => objects.iter().any(|one| one == object),
        }
    }
}

fn ask(port: u16, name: &str) -> Answer {
    let body = match monitor(port, "/jsz?accounts=true&streams=true&consumers=true") {
        Ok(body) => body,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => return Answer::Gone,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Answer::Gone,
        Err(_) => return Answer::Unknown,
    };
    let Ok(jsz) = serde_json::from_str::<Value>(&body) else { return Answer::Unknown };
    let me = |group: &Value| group.pointer("/cluster/leader").and_then(Value::as_str) == Some(name);
    let list = |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut leads = Vec::new();
    for stream in list(&jsz, "account_details").iter().flat_map(|account| list(account, "stream_detail")) {
        let stream_name = stream.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        for consumer in list(&stream, "consumer_detail") {
            let consumer_name = consumer.get("name").and_then(Value::as_str).unwrap_or_default();
            if me(&consumer) {
                leads.push(format!("{stream_name}/{consumer_name}"));
            }
        }
        if me(&stream) {
            leads.push(stream_name);
        }
    }
    Answer::Leads(leads)
}

#[test]
fn times_without_a_leader_are_counted_once_and_only_within_the_time_asked_for() {
    let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
    let gaps = Gaps(HashMap::from([
        (DEAD_LETTERS, vec![(at(10), at(20)), (at(50), at(60))]),
        (CONSUMER, vec![(at(15), at(30))]),
    ]));
    let unled = |from, to| gaps.between(at(from), at(to), &[DEAD_LETTERS, CONSUMER]).as_millis();
    assert_eq!([unled(0, 100), unled(12, 55), unled(30, 50), unled(16, 17)], [30, 23, 0, 1]);
}
