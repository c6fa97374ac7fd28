//! `dlq purge`, `dlq export`, `dlq import`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use nats_bridge::Bridge;
use serde_json::json;

use super::{Which, open, until_told};
use crate::cli::native::{self, Native, bar};
use crate::cli::{Failure, request};

/// Arguments of `dlq purge`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nats-bridge dlq purge ORDERS_DLQ --reason rejected --export rejected.jsonl")]
pub struct PurgeArgs {
    /// Which.
    #[command(flatten)]
    pub which: Which,
    /// Write them here first; the file must not exist. A letter is removed only when its line is on disk.
    #[arg(long, value_name = "FILE")]
    pub export: PathBuf,
}

/// Arguments of `dlq export`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nats-bridge dlq export ORDERS_DLQ --file letters.jsonl")]
pub struct ExportArgs {
    /// Which.
    #[command(flatten)]
    pub which: Which,
    /// Write them here instead of to stdout; the file must not exist.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// Arguments of `dlq import`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nats-bridge dlq import ORDERS_DLQ letters.jsonl")]
pub struct ImportArgs {
    /// The dead-letter stream.
    pub stream: String,
    /// What was exported; `-` is stdin.
    pub file: PathBuf,
}

pub(super) async fn purge(args: PurgeArgs, native: &Native, bridge: &Bridge) -> Result<(), Failure> {
    let told = until_told()?;
    let letters = open(bridge, &args.which.stream).await?;
    let mut file = OnDisk(BufWriter::new(fresh(&args.export)?));
    let bar = bar(letters.count().await.map_err(native::failure)?, "purging");
    let purged = letters
        .purge(&args.which.filter(), &mut file, |purged| {
            bar.set_position(purged);
            !told.is_cancelled()
        })
        .await;
    bar.finish_and_clear();
    let purged = purged.map_err(native::failure)?;
    said(native, json!({ "purged": purged, "file": args.export }), || {
        format!("{purged} purged, and kept in {}", args.export.display())
    })
}

pub(super) async fn export(args: ExportArgs, native: &Native, bridge: &Bridge) -> Result<(), Failure> {
    let told = until_told()?;
    let letters = open(bridge, &args.which.stream).await?;
    let bar = bar(letters.count().await.map_err(native::failure)?, "exporting");
    let go_on = |written: u64| {
        bar.set_position(written);
        !told.is_cancelled()
    };
    let filter = args.which.filter();
    let written = match &args.file {
        Some(path) => letters.export(&filter, &mut OnDisk(BufWriter::new(fresh(path)?)), go_on).await,
        None => letters.export(&filter, &mut BufWriter::new(io::stdout()), go_on).await,
    };
    bar.finish_and_clear();
    let written = written.map_err(native::failure)?;
    match &args.file {
        Some(path) => said(native, json!({ "exported": written, "file": path }), || {
            format!("{written} exported to {}", path.display())
        }),
        // Stdout has the letters.
        None => Ok(()),
    }
}

pub(super) async fn import(args: ImportArgs, native: &Native, bridge: &Bridge) -> Result<(), Failure> {
    let told = until_told()?;
    let letters = open(bridge, &args.stream).await?;
    let mut from: Box<dyn BufRead> = match args.file == Path::new("-") {
        true => Box::new(BufReader::new(io::stdin())),
        false => Box::new(BufReader::new(File::open(&args.file).map_err(|e| cannot("open", &args.file, &e))?)),
    };
    let done = letters.import(&mut from, |_| !told.is_cancelled()).await.map_err(native::failure)?;
    said(native, json!(done), || format!("{} imported, {} were there already", done.stored, done.duplicates))
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

fn fresh(path: &Path) -> Result<File, Failure> {
    File::create_new(path).map_err(|e| cannot("create", path, &e))
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::cannot_run(format!("cannot {what} {}: {error}", path.display()))
}

fn said(native: &Native, json: serde_json::Value, text: impl FnOnce() -> String) -> Result<(), Failure> {
    match native.json {
        true => request::print_json(&json),
        false => {
            request::print(&format!("{}\n", text()));
            Ok(())
        }
    }
}
