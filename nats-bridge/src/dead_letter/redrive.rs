//! Putting dead letters back to work, carefully; and setting them aside.

use std::time::Duration;

use foldhash::{HashSet, HashSetExt};
use tokio::time::{Instant, sleep_until};

use super::kept::{Filter, Letter};
use super::store::DeadLetters;
use super::{ORIGINAL_PREFIX, REDRIVES};
use crate::bridge::Bridge;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::provision::{StreamSpec, make_stream_if_absent};

/// What to redrive, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Redrive {
    /// Which letters; default all that are there when it begins.
    pub filter: Filter,
    /// Where to; default the subject that each was published to, so that every consumer of it gets it again.
    pub to: Option<String>,
    /// How many in a second at most; default 50.
    pub rate_per_second: f64,
    /// How many at most; default all.
    pub limit: Option<u64>,
    /// Publishes and removes nothing, only counts; default false.
    pub dry_run: bool,
    /// Stops when more than this share of what was redriven is a dead letter again; default 0.2. Looked at four times a
    /// second, from the tenth letter on.
    pub max_failed_again: f64,
}

/// How far a redrive is, and how it ended.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Redriven {
    /// Stored where they were to go, and removed here; in a dry run, how many would be.
    pub redriven: u64,
    /// Of those, how many are dead letters again already.
    pub failed_again: u64,
    /// Why it ended before all was redriven; none when it did not.
    pub stopped: Option<String>,
    /// The last letter that was looked at.
    pub last_sequence: u64,
}

impl Default for Redrive {
    fn default() -> Self {
        Redrive {
            filter: Filter::default(),
            to: None,
            rate_per_second: 50.0,
            limit: None,
            dry_run: false,
            max_failed_again: 0.2,
        }
    }
}

/// Fewer than these say nothing about a share.
const ENOUGH: u64 = 10;

impl DeadLetters {
    /// Publishes letters again with their original payload and headers, and removes each once it is stored.
    ///
    /// Each goes with a fresh id (`{original id}#r1`) and the header [`REDRIVES`]. `progress` is told after each letter and
    /// says whether to go on. Stopped, or cut off, it is resumed by calling it again: what was redriven is gone from here,
    /// and a letter that was published and not removed yet goes with the same id, which the stream recognises inside its
    /// duplicate window.
    ///
    /// # Errors
    /// `Config`: the rate is not above 0, or the share not from 0 to 1. `Conflict`: a letter is encrypted, and is to go to another subject than that to which
    /// it is bound. Else as publishing or JetStream answers; the letters from that one on are
    /// untouched.
    pub async fn redrive(&self, redrive: &Redrive, mut progress: impl FnMut(&Redriven) -> bool) -> Result<Redriven> {
        if !(redrive.rate_per_second > 0.0 && redrive.rate_per_second.is_finite()) {
            return Err(Error::setting("rate_per_second", "it is above 0").with("value", redrive.rate_per_second));
        }
        if !(0.0..=1.0).contains(&redrive.max_failed_again) {
            let wrong = Error::setting("max_failed_again", "it is a share, from 0 to 1");
            return Err(wrong.with("value", redrive.max_failed_again));
        }
        let between = Duration::from_secs_f64(1.0 / redrive.rate_per_second);
        let mut letters = self.scan(&redrive.filter).await?;
        let mut again = Again { after: letters.last(), ids: HashSet::new(), looked: Instant::now() };
        let mut done = Redriven::default();
        let mut turn = Instant::now();
        while redrive.limit.is_none_or(|limit| done.redriven < limit)
            && let Some(letter) = letters.next().await?
        {
            let id = letter.redrive_id();
            let message = message(&letter, redrive.to.as_deref(), &id)?;
            if !redrive.dry_run {
                sleep_until(turn).await;
                turn = turn.max(Instant::now() - between) + between;
                self.bridge.publish(message).await?;
                self.remove(letter.sequence).await?;
                metrics::counter!("natsbridge_dead_letters_redriven_total", "stream" => self.name.clone()).increment(1);
                again.ids.insert(xxhash_rust::xxh3::xxh3_64(id.as_bytes()));
            }
            done.redriven += 1;
            done.last_sequence = letter.sequence;
            if !redrive.dry_run && again.looked.elapsed() >= Duration::from_millis(250) {
                done.failed_again += again.look(self).await?;
                let share = done.failed_again as f64 / done.redriven as f64;
                if done.redriven >= ENOUGH && share > redrive.max_failed_again {
                    done.stopped = Some(format!("{:.0} % of what was redriven failed again", share * 100.0));
                    return Ok(done);
                }
            }
            if !progress(&done) {
                done.stopped = Some("cancelled".into());
                return Ok(done);
            }
        }
        if !redrive.dry_run {
            done.failed_again += again.look(self).await?;
        }
        Ok(done)
    }

    /// Moves letters to the stream `{name}_PARKED`, which is made if it does not exist, where the same tools find them and
    /// no redrive of this stream meets them. Gives how many.
    ///
    /// # Errors
    /// As publishing or JetStream answers; the letters from that one on are untouched.
    pub async fn park(&self, filter: &Filter, mut progress: impl FnMut(u64) -> bool) -> Result<u64> {
        let name = format!("{}_PARKED", self.name);
        make_parked_stream(&self.bridge, &name, &self.name).await?;
        let mut letters = self.scan(filter).await?;
        let mut parked = 0;
        while let Some(letter) = letters.next().await? {
            let consumer = if letter.consumer().is_empty() { "unknown" } else { letter.consumer() };
            let mut message =
                Message::new(format!("parked.{}.{consumer}", self.name), letter.payload.clone()).id(own_id(&letter));
            message.stored_before = true;
            message.headers = plain_headers(&letter);
            self.bridge.publish(message).await?;
            self.remove(letter.sequence).await?;
            parked += 1;
            if !progress(parked) {
                break;
            }
        }
        Ok(parked)
    }
}

async fn make_parked_stream(bridge: &Bridge, name: &str, of: &str) -> Result<()> {
    let spec = StreamSpec {
        max_bytes: Some(1 << 30),
        max_age: Some(Duration::from_secs(90 * 24 * 3600)),
        ..StreamSpec::new(name, [format!("parked.{of}.>")])
    };
    make_stream_if_absent(bridge.jetstream(), &spec).await
}

/// The letter's own id, by which its stream recognises it.
pub(super) fn own_id(letter: &Letter) -> String {
    match letter.header("Nats-Msg-Id") {
        "" => format!("dlq:{}:{}", letter.subject, letter.sequence),
        id => id.to_owned(),
    }
}

/// Its headers without those that the server made or acts on.
pub(super) fn plain_headers(letter: &Letter) -> Vec<(String, String)> {
    letter.headers.iter().filter(|(name, _)| !name.to_ascii_lowercase().starts_with("nats-")).cloned().collect()
}

// The original, as it is published again.
fn message(letter: &Letter, to: Option<&str>, id: &str) -> Result<Message> {
    let subject = to.unwrap_or_else(|| letter.original_subject());
    if subject.is_empty() {
        return Err(Error::new(ErrorKind::InvalidMessage).with("sequence", letter.sequence).with(
            "why",
            "no consumer of this library has put it here: it does not say which subject it was published to",
        ));
    }
    if subject != letter.original_subject() && letter.encrypted_with().is_some() {
        return Err(Error::new(ErrorKind::Conflict)
            .with("sequence", letter.sequence)
            .with("why", "it is encrypted and opens only under the subject that it was published to")
            .with("subject", letter.original_subject()));
    }
    let mut message = Message::new(subject.to_owned(), letter.payload.clone()).id(id).stored_before();
    for (name, value) in letter.original_headers() {
        // The server's own are made anew; the id is ours.
        if !name.to_ascii_lowercase().starts_with("nats-") && name != REDRIVES {
            message.headers.push((name, value));
        }
    }
    message.headers.push((REDRIVES.to_owned(), (letter.redrives() + 1).to_string()));
    Ok(message)
}

// Which of the redriven ones became dead letters again.
struct Again {
    after: u64,
    ids: HashSet<u64>,
    looked: Instant,
}

impl Again {
    async fn look(&mut self, letters: &DeadLetters) -> Result<u64> {
        self.looked = Instant::now();
        let mut failed = 0;
        let mut fresh = letters.scan_after(self.after).await?;
        while let Some(letter) = fresh.next().await? {
            self.after = letter.sequence;
            let id = letter.header(&format!("{ORIGINAL_PREFIX}Nats_-Msg-Id"));
            failed += u64::from(self.ids.contains(&xxhash_rust::xxh3::xxh3_64(id.as_bytes())));
        }
        Ok(failed)
    }
}
