//! A dead-letter stream to look into: grouped, in part, or one letter.

use foldhash::{HashMap, HashMapExt};
use serde_json::Value;

use super::kept::{Filter, Group, GroupBy, Letter};
use crate::bridge::Bridge;
use crate::error::{Error, ErrorKind, Result};
use crate::provision::check_name;
use crate::stored;

/// The dead letters of one stream: to look at, put back, set aside, write out and remove.
///
/// ```no_run
/// # async fn example() -> nats_bridge::Result<()> {
/// use nats_bridge::Bridge;
/// use nats_bridge::dead_letter::{Filter, GroupBy, Redrive};
///
/// let bridge = Bridge::connect("nats://127.0.0.1:4222").await?;
/// let letters = bridge.dead_letters("ORDERS_DLQ").await?;
/// for group in letters.list(GroupBy::Fingerprint, &Filter::default()).await? {
///     println!("{:>6} {} {}", group.letters, group.reason, group.detail);
/// }
/// let timeouts = Filter { reason: Some("timeout".into()), ..Filter::default() };
/// let done = letters.redrive(&Redrive { filter: timeouts, ..Redrive::default() }, |_| true).await?;
/// println!("{} redriven, {} failed again", done.redriven, done.failed_again);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct DeadLetters {
    pub(super) bridge: Bridge,
    pub(super) name: String,
}

impl Bridge {
    /// The dead letters in this stream, such as `ORDERS_DLQ`.
    ///
    /// # Errors
    /// `Config`: no stream can have that name, or it is a stream that stores no dead letters: none of its subjects begins with `dlq.`, or with
    /// `parked.` as those that were set aside. `NotFound`: there is no such stream.
    pub async fn dead_letters(&self, stream: impl Into<String>) -> Result<DeadLetters> {
        let name = stream.into();
        check_name("stream", &name)?;
        let info = crate::api::ask(self.jetstream(), format!("STREAM.INFO.{name}")).await?;
        if !keeps_letters(&info["config"]) {
            let why = "it stores no dead letters: none of its subjects begins with `dlq.`; those of stream NAME are in NAME_DLQ";
            return Err(Error::setting("stream", why).within("stream", &name));
        }
        Ok(DeadLetters { bridge: self.clone(), name })
    }
}

/// Whether dead letters may be in a stream of this configuration: by its subjects, or because it takes what other streams have.
fn keeps_letters(config: &Value) -> bool {
    let first_word =
        |subject: &Value| subject.as_str().and_then(|subject| subject.split('.').next().map(str::to_owned));
    let takes = |subject| first_word(subject).is_some_and(|word| matches!(&*word, "dlq" | "parked" | "*" | ">"));
    let copies = ["mirror", "sources"].iter().any(|from| !config[*from].is_null());
    copies || config["subjects"].as_array().is_some_and(|subjects| subjects.iter().any(takes))
}

impl DeadLetters {
    /// The stream's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Counts what is there, put together by what it has in common; the largest group first.
    ///
    /// # Errors
    /// As JetStream answers.
    pub async fn list(&self, by: GroupBy, filter: &Filter) -> Result<Vec<Group>> {
        let mut groups: HashMap<String, Group> = HashMap::new();
        let mut letters = self.scan(filter).await?;
        while let Some(letter) = letters.next().await? {
            let key = Group::key(by, &letter).to_owned();
            groups.entry(key).or_insert_with_key(|key| Group::of(key, &letter)).add(&letter);
        }
        let mut groups: Vec<Group> = groups.into_values().collect();
        groups.sort_by(|a, b| b.letters.cmp(&a.letters).then_with(|| a.key.cmp(&b.key)));
        Ok(groups)
    }

    /// Gives the oldest `limit` letters that are meant, and leaves them where they are.
    ///
    /// # Errors
    /// As JetStream answers.
    pub async fn peek(&self, filter: &Filter, limit: usize) -> Result<Vec<Letter>> {
        let mut found = Vec::new();
        let mut letters = self.scan(filter).await?;
        while found.len() < limit
            && let Some(letter) = letters.next().await?
        {
            found.push(letter);
        }
        Ok(found)
    }

    /// Gives one letter by its sequence in this stream.
    ///
    /// # Errors
    /// `NotFound`: there is no letter at that sequence. `Config`: it is 0.
    pub async fn show(&self, sequence: u64) -> Result<Letter> {
        if sequence == 0 {
            return Err(Error::setting("sequence", "it is at least 1"));
        }
        let only = Filter { sequences: Some(sequence..=sequence), ..Filter::default() };
        let mut letters = self.scan(&only).await?;
        let absent = || Error::new(ErrorKind::NotFound).with("stream", &self.name).with("sequence", sequence);
        letters.next().await?.ok_or_else(absent)
    }

    /// How many letters lie in the stream, those that no filter means included.
    ///
    /// # Errors
    /// As JetStream answers.
    pub async fn count(&self) -> Result<u64> {
        Ok(self.state().await?.messages)
    }

    /// Goes through what is there now; what is stored later is not met.
    pub(super) async fn scan(&self, filter: &Filter) -> Result<Scan<'_>> {
        filter.check()?;
        let state = self.state().await?;
        let (first, last) = match &filter.sequences {
            Some(wanted) => (state.first.max(*wanted.start()), state.last.min(*wanted.end())),
            None => (state.first, state.last),
        };
        Ok(Scan { letters: self, filter: filter.clone(), next: first, last })
    }

    /// Goes through what was stored behind this sequence and is there now.
    pub(super) async fn scan_after(&self, sequence: u64) -> Result<Scan<'_>> {
        let last = self.state().await?.last;
        Ok(Scan { letters: self, filter: Filter::default(), next: sequence + 1, last })
    }

    pub(super) async fn state(&self) -> Result<State> {
        let info = crate::api::ask(self.bridge.jetstream(), format!("STREAM.INFO.{}", self.name)).await?;
        let number = |field: &str| info.pointer(&format!("/state/{field}")).and_then(|n| n.as_u64()).unwrap_or(0);
        Ok(State { messages: number("messages"), first: number("first_seq"), last: number("last_seq") })
    }

    /// Removes one letter. One that is gone already is gone.
    pub(super) async fn remove(&self, sequence: u64) -> Result<()> {
        let body = serde_json::json!({ "seq": sequence, "no_erase": true });
        match crate::api::call(self.bridge.jetstream(), format!("STREAM.MSG.DELETE.{}", self.name), Some(&body)).await {
            Ok(_) => Ok(()),
            // 10043: no message found; 10057: a sequence that is not there.
            Err(error) if error.context().iter().any(|(k, v)| *k == "err_code" && (v == "10043" || v == "10057")) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

pub(super) struct State {
    messages: u64,
    first: u64,
    pub last: u64,
}

/// Letters in the order of their sequences, read one by one.
pub(super) struct Scan<'a> {
    letters: &'a DeadLetters,
    filter: Filter,
    next: u64,
    last: u64,
}

impl Scan<'_> {
    /// The next one that is meant.
    pub async fn next(&mut self) -> Result<Option<Letter>> {
        while self.next <= self.last {
            let DeadLetters { bridge, name } = self.letters;
            let Some(message) = stored::from(bridge.jetstream(), name, self.next).await? else { return Ok(None) };
            if message.sequence > self.last {
                return Ok(None);
            }
            self.next = message.sequence + 1;
            let letter = Letter::from(message);
            if self.filter.fits(&letter) {
                return Ok(Some(letter));
            }
        }
        Ok(None)
    }

    /// The last sequence that is met.
    pub fn last(&self) -> u64 {
        self.last
    }
}
