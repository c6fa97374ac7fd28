//! `nats-bridge dlq`: what can be done with dead letters.

mod file;
mod look;
mod redrive;

use clap::{Args, Subcommand};
use nats_bridge::Bridge;
use nats_bridge::dead_letter::{DeadLetters, Filter};
use tokio_util::sync::CancellationToken;

use super::native::{self, Native};
use super::{Failure, signals};

/// Arguments of `dlq`.
#[derive(Debug, Args)]
pub struct DlqArgs {
    /// What to do with them.
    #[command(subcommand)]
    pub verb: Verb,
    /// Which NATS.
    #[command(flatten)]
    pub native: Native,
}

/// The verbs of `dlq`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Count dead letters, put together by what they have in common.
    List(look::ListArgs),
    /// Show the oldest ones, one a line.
    Peek(look::PeekArgs),
    /// Show one with its headers and payload.
    Show(look::ShowArgs),
    /// Publish them again with fresh ids, and remove each once it is stored.
    Redrive(redrive::RedriveArgs),
    /// Move them to STREAM_PARKED, out of the way of a redrive.
    Park(redrive::ParkArgs),
    /// Write them to a file and remove them.
    Purge(file::PurgeArgs),
    /// Write them as lines of JSON and leave them.
    Export(file::ExportArgs),
    /// Bring back what was exported.
    Import(file::ImportArgs),
}

/// Which dead letters are meant; all, unless told.
#[derive(Debug, Clone, Args)]
pub struct Which {
    /// The dead-letter stream, such as ORDERS_DLQ.
    pub stream: String,
    /// Only those of this reason, such as handler_error.
    #[arg(long)]
    pub reason: Option<String>,
    /// Only those with this fingerprint.
    #[arg(long)]
    pub fingerprint: Option<String>,
    /// Only those that this consumer gave up.
    #[arg(long)]
    pub consumer: Option<String>,
    /// Only those of this stream.
    #[arg(long, value_name = "STREAM")]
    pub of: Option<String>,
    /// Only those with these sequences, as FROM-TO or one number.
    #[arg(long, value_name = "FROM-TO", value_parser = sequences)]
    pub sequences: Option<(u64, u64)>,
}

impl Which {
    fn filter(&self) -> Filter {
        Filter {
            reason: self.reason.clone(),
            fingerprint: self.fingerprint.clone(),
            consumer: self.consumer.clone(),
            stream: self.of.clone(),
            sequences: self.sequences.map(|(from, to)| from..=to),
        }
    }
}

fn sequences(text: &str) -> Result<(u64, u64), String> {
    let number = |text: &str| text.trim().parse::<u64>().map_err(|e| e.to_string());
    let (from, to) = match text.split_once('-') {
        Some((from, to)) => (number(from)?, number(to)?),
        None => number(text).map(|one| (one, one))?,
    };
    let wanted = Filter { sequences: Some(from..=to), ..Filter::default() };
    wanted.check().map(|()| (from, to)).map_err(|error| error.to_string())
}

/// Does what was asked for.
///
/// # Errors
/// `refused` when there is no such stream or letter, or a redrive stopped; `cannot_run` when NATS cannot be reached.
pub async fn run(args: DlqArgs) -> Result<(), Failure> {
    let native = args.native;
    let bridge = native.connect().await?;
    let outcome = act(args.verb, &native, &bridge).await;
    native::close(&bridge).await;
    outcome
}

async fn act(verb: Verb, native: &Native, bridge: &Bridge) -> Result<(), Failure> {
    match verb {
        Verb::List(args) => look::list(args, native, bridge).await,
        Verb::Peek(args) => look::peek(args, native, bridge).await,
        Verb::Show(args) => look::show(args, native, bridge).await,
        Verb::Redrive(args) => redrive::redrive(args, native, bridge).await,
        Verb::Park(args) => redrive::park(args, native, bridge).await,
        Verb::Purge(args) => file::purge(args, native, bridge).await,
        Verb::Export(args) => file::export(args, native, bridge).await,
        Verb::Import(args) => file::import(args, native, bridge).await,
    }
}

async fn open(bridge: &Bridge, stream: &str) -> Result<DeadLetters, Failure> {
    bridge.dead_letters(stream).await.map_err(native::failure)
}

/// Cancelled by SIGINT and SIGTERM: what was begun is finished, the rest is left.
fn until_told() -> Result<CancellationToken, Failure> {
    let told = CancellationToken::new();
    signals::cancel(&told)?;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::sequences;

    #[test]
    fn sequences_that_no_letter_has_are_refused() {
        assert_eq!(sequences("3"), Ok((3, 3)));
        assert_eq!(sequences("2-4"), Ok((2, 4)));
        for wrong in ["4-2", "0", "0-3", "x", "-2"] {
            assert!(sequences(wrong).is_err(), "{wrong}");
        }
    }
}
