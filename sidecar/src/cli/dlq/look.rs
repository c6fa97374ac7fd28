//! `dlq list`, `dlq peek`, `dlq show`: they change nothing.

use std::fmt::Write as _;

use clap::Args;
use nats_bridge::Bridge;
use nats_bridge::dead_letter::{Group, GroupBy, Letter, REASON};
use nats_bridge::encryption::Keys;
use serde_json::json;

use super::{Which, open};
use crate::cli::native::{self, Native, table};
use crate::cli::{Failure, request};

/// Arguments of `dlq list`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nats-bridge dlq list ORDERS_DLQ --by fingerprint")]
pub struct ListArgs {
    /// Which.
    #[command(flatten)]
    pub which: Which,
    /// What those of one group have in common.
    #[arg(long, value_enum, default_value_t = By::Reason)]
    pub by: By,
}

/// What those of one group have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    /// The reason.
    Reason,
    /// Consumer, reason and class of failure.
    Fingerprint,
    /// The consumer.
    Consumer,
}

/// Arguments of `dlq peek`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nats-bridge dlq peek ORDERS_DLQ --reason timeout --limit 3")]
pub struct PeekArgs {
    /// Which.
    #[command(flatten)]
    pub which: Which,
    /// How many at most.
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub limit: usize,
}

/// Arguments of `dlq show`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nats-bridge dlq show ORDERS_DLQ 17")]
pub struct ShowArgs {
    /// The dead-letter stream.
    pub stream: String,
    /// The letter's sequence there, as `peek` shows it.
    pub sequence: u64,
    /// Show the payload decrypted: the directory of the keys, or env:NAME.
    #[arg(long, value_name = "KEYS")]
    pub decrypt: Option<String>,
}

pub(super) async fn list(args: ListArgs, native: &Native, bridge: &Bridge) -> Result<(), Failure> {
    let letters = open(bridge, &args.which.stream).await?;
    let by = match args.by {
        By::Reason => GroupBy::Reason,
        By::Fingerprint => GroupBy::Fingerprint,
        By::Consumer => GroupBy::Consumer,
    };
    let groups = letters.list(by, &args.which.filter()).await.map_err(native::failure)?;
    let (groups, others): (Vec<_>, Vec<_>) = groups.into_iter().partition(|group| !group.reason.is_empty());
    let count = |groups: &[Group]| groups.iter().map(|group| group.letters).sum::<u64>();
    let (all, others) = (count(&groups), count(&others));
    if native.json {
        let stream = &args.which.stream;
        return request::print_json(&json!({ "stream": stream, "letters": all, "others": others, "groups": groups }));
    }
    let mut rows = vec![
        ["letters", "key", "consumer", "reason", "sequences", "last failed at", "last detail"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(groups.iter().map(|group| {
        vec![
            group.letters.to_string(),
            group.key.clone(),
            group.consumer.clone(),
            group.reason.clone(),
            format!("{}-{}", group.first_sequence, group.last_sequence),
            group.last_failed_at.clone(),
            group.detail.clone(),
        ]
    }));
    match (groups.is_empty(), others) {
        (true, 0) => request::print("no dead letters\n"),
        (true, _) => request::print(&none(&args.which.stream, others)),
        (false, 0) => request::print(&format!("{}{all} dead letters\n", table(&rows))),
        (false, _) => request::print(&format!("{}{all} dead letters, {others} other messages\n", table(&rows))),
    }
    Ok(())
}

pub(super) async fn peek(args: PeekArgs, native: &Native, bridge: &Bridge) -> Result<(), Failure> {
    let letters = open(bridge, &args.which.stream).await?;
    let found = letters.peek(&args.which.filter(), args.limit).await.map_err(native::failure)?;
    if native.json {
        found.iter().for_each(|letter| request::print(&format!("{}\n", letter.to_json())));
        return Ok(());
    }
    let (found, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|letter| !letter.reason().is_empty());
    let mut rows = vec![
        ["sequence", "reason", "consumer", "attempts", "last failed at", "subject", "payload"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(found.iter().map(|letter| {
        vec![
            letter.sequence.to_string(),
            letter.reason().to_owned(),
            letter.consumer().to_owned(),
            letter.attempts().to_string(),
            letter.last_failed_at().to_owned(),
            letter.original_subject().to_owned(),
            excerpt(&letter.payload, 60),
        ]
    }));
    match (found.is_empty(), others.len()) {
        (true, 0) => request::print("no dead letters\n"),
        (true, others) => request::print(&none(&args.which.stream, others as u64)),
        (false, _) => request::print(&table(&rows)),
    }
    Ok(())
}

// What lies in a stream of something else.
fn none(stream: &str, others: u64) -> String {
    let messages = if others == 1 { "message" } else { "messages" };
    format!(
        "no dead letters: the {others} {messages} looked at in {stream} have no {REASON}, so nobody gave them up; what was given up of \
         {stream} is in {stream}_DLQ, unless its consumers say otherwise\n"
    )
}

pub(super) async fn show(args: ShowArgs, native: &Native, bridge: &Bridge) -> Result<(), Failure> {
    let letters = open(bridge, &args.stream).await?;
    let letter = letters.show(args.sequence).await.map_err(native::failure)?;
    let key = letter.encrypted_with();
    let letter = match &args.decrypt {
        Some(source) => {
            let keys = Keys::from_source(source).map_err(native::failure)?;
            Letter { payload: letter.decrypt(&keys).await.map_err(native::failure)?, ..letter }
        }
        None => letter,
    };
    match native.json {
        true => request::print(&format!("{}\n", letter.to_json())),
        false => request::print(&text(&letter, key.as_deref())),
    }
    Ok(())
}

fn text(letter: &Letter, key: Option<&str>) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{:<14}{value}", format!("{name}:"));
    };
    line("sequence", &letter.sequence.to_string());
    line("reason", letter.reason());
    line("detail", letter.detail());
    line("fingerprint", letter.fingerprint());
    line("attempts", &letter.attempts().to_string());
    line("first failed", letter.first_failed_at());
    line("last failed", letter.last_failed_at());
    line("consumer", letter.consumer());
    line("host", letter.host());
    line("origin", &format!("{} {} in {}", letter.original_subject(), letter.original_sequence(), letter.stream()));
    line("redriven", &format!("{} times", letter.redrives()));
    if let Some(key) = key {
        line("encrypted", &format!("under {key}"));
    }
    for (name, value) in letter.original_headers() {
        line("header", &format!("{name}: {value}"));
    }
    line("payload", &format!("{} bytes", letter.payload.len()));
    let _ = writeln!(out, "{}", excerpt(&letter.payload, usize::MAX));
    out
}

// Text as it is, without what would move the cursor; bytes as hexadecimal digits.
fn excerpt(payload: &[u8], most: usize) -> String {
    let full: String = match std::str::from_utf8(payload) {
        Ok(text) => {
            let one_line = most < usize::MAX;
            let moves = |c: char| c.is_control() && (one_line || c != '\n');
            text.chars().map(|c| if moves(c) { ' ' } else { c }).collect()
        }
        Err(_) => payload.iter().take(most.min(4096)).map(|byte| format!("{byte:02x}")).collect(),
    };
    match full.char_indices().nth(most) {
        Some((at, _)) => format!("{}...", &full[..at]),
        None => full,
    }
}
