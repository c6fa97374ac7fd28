//! `dlq redrive`, `dlq park`.

use clap::Args;
use nats_bridge::dead_letter::Redrive;
use nats_bridge::{Bridge, ErrorKind};

use super::{Which, open, until_told};
use crate::cli::native::{self, Native, bar};
use crate::cli::{Failure, request};

/// Arguments of `dlq redrive`.
#[derive(Debug, Args)]
#[command(
    after_help = "Stopped or cut off, the same command carries on. Exit code 1: it stopped before the end.\n\nExample:\n  \
                        nats-bridge dlq redrive ORDERS_DLQ --reason timeout --rate 20 --dry-run"
)]
pub struct RedriveArgs {
    /// Which.
    #[command(flatten)]
    pub which: Which,
    /// Publish to this subject instead of the one that each was published to.
    #[arg(long, value_name = "SUBJECT")]
    pub to: Option<String>,
    /// How many in a second at most.
    #[arg(long, default_value_t = 50.0, value_name = "N")]
    pub rate: f64,
    /// How many at most.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Stop when more than this share, in percent, fails again.
    #[arg(long, default_value_t = 20.0, value_name = "PERCENT")]
    pub max_failed_again: f64,
    /// Only say how many it would be.
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `dlq park`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nats-bridge dlq park ORDERS_DLQ --fingerprint 3f0c1d2e4b5a6978")]
pub struct ParkArgs {
    /// Which.
    #[command(flatten)]
    pub which: Which,
}

pub(super) async fn redrive(args: RedriveArgs, native: &Native, bridge: &Bridge) -> Result<(), Failure> {
    let told = until_told()?;
    let letters = open(bridge, &args.which.stream).await?;
    let redrive = Redrive {
        filter: args.which.filter(),
        to: args.to,
        rate_per_second: args.rate,
        limit: args.limit,
        dry_run: args.dry_run,
        max_failed_again: args.max_failed_again / 100.0,
    };
    let bar = bar(letters.count().await.map_err(native::failure)?, "redriving");
    let done = letters
        .redrive(&redrive, |done| {
            bar.set_position(done.redriven);
            !told.is_cancelled()
        })
        .await;
    bar.finish_and_clear();
    let done = done.map_err(|error| match error.kind() {
        ErrorKind::InvalidMessage => Failure::refused(format!("{error}; --to SUBJECT says where it is to go")),
        _ => native::failure(error),
    })?;
    match native.json {
        true => request::print_json(&done)?,
        false if args.dry_run => request::print(&format!("{} would be redriven\n", done.redriven)),
        false => request::print(&format!("{} redriven, {} of them failed again\n", done.redriven, done.failed_again)),
    }
    match done.stopped {
        Some(why) => Err(Failure::refused(format!("stopped behind sequence {}: {why}", done.last_sequence))),
        None => Ok(()),
    }
}

pub(super) async fn park(args: ParkArgs, native: &Native, bridge: &Bridge) -> Result<(), Failure> {
    let told = until_told()?;
    let letters = open(bridge, &args.which.stream).await?;
    let bar = bar(letters.count().await.map_err(native::failure)?, "parking");
    let parked = letters
        .park(&args.which.filter(), |parked| {
            bar.set_position(parked);
            !told.is_cancelled()
        })
        .await;
    bar.finish_and_clear();
    let parked = parked.map_err(native::failure)?;
    let to = format!("{}_PARKED", args.which.stream);
    match native.json {
        true => request::print_json(&serde_json::json!({ "parked": parked, "to": to })),
        false => {
            request::print(&format!("{parked} parked in {to}\n"));
            Ok(())
        }
    }
}
