//! What can be done with dead letters.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nats_bridge::Bridge;
use nats_bridge::dead_letter::{Filter, GroupBy, Letter, Redrive};
use nats_bridge::encryption::Keys;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::{Fault, read};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    stream: String,
    #[serde(default)]
    filter: Map<String, Value>,
    by: Option<By>,
    limit: Option<u64>,
    sequence: Option<u64>,
    decrypt: Option<String>,
    to: Option<String>,
    rate_per_second: Option<f64>,
    dry_run: Option<bool>,
    max_failed_again: Option<f64>,
    file: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Which {
    reason: Option<String>,
    fingerprint: Option<String>,
    consumer: Option<String>,
    stream: Option<String>,
    sequences: Option<(u64, u64)>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum By {
    Reason,
    Fingerprint,
    Consumer,
}

/// Does what `verb` says.
pub(crate) async fn ask(
    core: &Bridge,
    verb: &str,
    arguments: &str,
    wanted: impl Fn() -> bool + Send + Sync,
) -> Result<Value, Fault> {
    let given: Arguments = read(arguments)?;
    let letters = core.dead_letters(&given.stream).await?;
    let filter = read::<Which>(&Value::Object(given.filter).to_string())?.filter();
    // Before a file is made.
    filter.check()?;
    Ok(match verb {
        "open" => Value::Null,
        "count" => json!(letters.count().await?),
        "list" => {
            let by = match given.by.unwrap_or(By::Reason) {
                By::Reason => GroupBy::Reason,
                By::Fingerprint => GroupBy::Fingerprint,
                By::Consumer => GroupBy::Consumer,
            };
            json!(letters.list(by, &filter).await?)
        }
        "peek" => {
            let limit = usize::try_from(given.limit.unwrap_or(10)).unwrap_or(usize::MAX);
            json!(letters.peek(&filter, limit).await?.iter().map(letter).collect::<Vec<_>>())
        }
        "show" => {
            let sequence = given.sequence.ok_or_else(|| Fault::argument("sequence", "it is needed"))?;
            let mut found = letters.show(sequence).await?;
            if let Some(source) = given.decrypt {
                found.payload = found.decrypt(&Keys::from_source(&source)?).await?;
            }
            letter(&found)
        }
        "redrive" => {
            let default = Redrive::default();
            let redrive = Redrive {
                filter,
                to: given.to,
                rate_per_second: given.rate_per_second.unwrap_or(default.rate_per_second),
                limit: given.limit,
                dry_run: given.dry_run.unwrap_or(default.dry_run),
                max_failed_again: given.max_failed_again.unwrap_or(default.max_failed_again),
            };
            json!(letters.redrive(&redrive, |_| wanted()).await?)
        }
        "park" => json!(letters.park(&filter, |_| wanted()).await?),
        "export" | "purge" => {
            let path = given.file.ok_or_else(|| Fault::argument("file", "it is needed"))?;
            let file = File::create_new(&path).map_err(|error| cannot("make", &path, &error))?;
            let mut file = OnDisk(BufWriter::new(file));
            match verb {
                "export" => json!(letters.export(&filter, &mut file, |_| wanted()).await?),
                _ => json!(letters.purge(&filter, &mut file, |_| wanted()).await?),
            }
        }
        "import" => {
            let path = given.file.ok_or_else(|| Fault::argument("file", "it is needed"))?;
            let file = File::open(&path).map_err(|error| cannot("open", &path, &error))?;
            json!(letters.import(&mut BufReader::new(file), |_| wanted()).await?)
        }
        _ => return Err(Fault::argument("verb", format!("there is no verb '{verb}' of dead letters"))),
    })
}

impl Which {
    fn filter(self) -> Filter {
        let Which { reason, fingerprint, consumer, stream, sequences } = self;
        Filter { reason, fingerprint, consumer, stream, sequences: sequences.map(|(first, last)| first..=last) }
    }
}

fn letter(letter: &Letter) -> Value {
    json!({
        "sequence": letter.sequence,
        // Formatting fails only for years beyond 9999.
        "stored_at": OffsetDateTime::from(letter.stored_at).format(&Rfc3339).unwrap_or_default(),
        "reason": letter.reason(),
        "detail": letter.detail(),
        "fingerprint": letter.fingerprint(),
        "stream": letter.stream(),
        "subject": letter.original_subject(),
        "stream_sequence": letter.original_sequence(),
        "consumer": letter.consumer(),
        "attempts": letter.attempts(),
        "first_failed_at": letter.first_failed_at(),
        "last_failed_at": letter.last_failed_at(),
        "host": letter.host(),
        "redrives": letter.redrives(),
        "encrypted_with": letter.encrypted_with(),
        "headers": letter.original_headers(),
        "payload_base64": STANDARD.encode(&letter.payload),
    })
}

/// A file whose flush reaches the disk.
struct OnDisk(BufWriter<File>);

impl Write for OnDisk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()?;
        self.0.get_ref().sync_data()
    }
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> Fault {
    Fault::argument("file", format!("cannot {what} {}: {error}", path.display()))
}
