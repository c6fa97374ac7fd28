//! `nats-bridge provision`: streams, consumers, dead-letter streams and buckets from a file.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use nats_bridge::provision::{Action, ApplyConfig, Plan};
use nats_bridge::{ErrorKind, Fsync, Manifest, Monitor};
use serde_json::{Value, json};

use super::native::{Native, close, failure};
use super::{Failure, request};

/// Arguments of `provision`.
#[derive(Debug, Args)]
pub struct ProvisionArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// Which NATS.
    #[command(flatten)]
    pub native: Native,
}

/// The verbs of `provision`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Say what would be changed, and what that costs; change nothing.
    #[command(after_help = "Example:\n  nats-bridge provision plan streams.toml --monitor http://127.0.0.1:8222")]
    Plan(With),
    /// Make it so. Nothing that the file does not name is touched, and no stored message is removed unless that is allowed.
    #[command(after_help = "Example:\n  nats-bridge provision apply streams.toml")]
    Apply(ApplyWith),
    /// Compare, and end with 1 when something differs.
    #[command(after_help = "Example:\n  nats-bridge provision verify streams.toml --json")]
    Verify(With),
}

/// What the verbs need.
#[derive(Debug, Args)]
pub struct With {
    /// The manifest (TOML).
    pub file: PathBuf,
    /// The server's monitoring endpoint, to learn how soon it syncs.
    #[arg(long, env = "NATS_MONITOR", value_name = "URL")]
    pub monitor: Option<String>,
}

/// What `apply` needs.
#[derive(Debug, Args)]
pub struct ApplyWith {
    /// As the others.
    #[command(flatten)]
    pub with: With,
    /// Lower limits although stored messages are beyond them, and so removed for good.
    #[arg(long)]
    pub allow_removal: bool,
}

/// Does what was asked for.
///
/// # Errors
/// `refused` when something conflicts or, for `verify`, differs; `cannot_run` when the file is wrong or NATS cannot be
/// reached.
pub async fn run(args: ProvisionArgs) -> Result<(), Failure> {
    let native = args.native;
    let (with, verb, allow_removal) = match args.verb {
        Verb::Plan(with) => (with, "plan", false),
        Verb::Apply(ApplyWith { with, allow_removal }) => (with, "apply", allow_removal),
        Verb::Verify(with) => (with, "verify", false),
    };
    let named = |error: &dyn std::fmt::Display| Failure::cannot_run(format!("{}: {error}", with.file.display()));
    let text = std::fs::read_to_string(&with.file).map_err(|e| named(&e))?;
    let manifest = Manifest::from_toml(&text).map_err(|e| named(&e))?;
    manifest.check().map_err(|e| named(&e))?;
    let fsync = match &with.monitor {
        Some(url) => Monitor::new(url).map_err(Failure::cannot_run)?.fsync().await.map_err(Failure::cannot_run)?,
        None => Fsync::Unknown,
    };
    let bridge = native.connect().await?;
    let plan = match verb {
        "apply" => bridge.apply_with(&manifest, ApplyConfig { fsync, allow_removal }).await,
        _ => bridge.plan_on(&manifest, fsync).await,
    };
    close(&bridge).await;
    let plan = plan.map_err(|error| match error.kind() {
        // The manifest asks for what may not be.
        ErrorKind::Config => named(&error),
        ErrorKind::WouldRemove => Failure::refused(format!("{}: {error} (--allow-removal)", with.file.display())),
        ErrorKind::NotFound | ErrorKind::Conflict | ErrorKind::Rejected => {
            Failure::refused(format!("{}: {error}", with.file.display()))
        }
        _ => failure(error),
    })?;
    match native.json {
        true => request::print_json(&json!({
            "verb": verb, "fsync": fsync.to_string(), "changes": plan.changes, "warnings": plan.warnings
        }))?,
        false => request::print(&shown(&plan, verb, fsync)),
    }
    match verb {
        "verify" if !plan.is_empty() => Err(Failure::refused(format!("{} differ from the file", plan.changes.len()))),
        "plan" if plan.conflicts().next().is_some() => {
            Err(Failure::refused("something cannot be changed in place; apply would refuse"))
        }
        _ => Ok(()),
    }
}

fn shown(plan: &Plan, verb: &str, fsync: Fsync) -> String {
    let mut out = String::new();
    for change in &plan.changes {
        let (what, differences) = match (&change.action, verb) {
            (Action::Create, "apply") => ("created", &[][..]),
            (Action::Create, "verify") => ("missing", &[][..]),
            (Action::Create, _) => ("create", &[][..]),
            (Action::Update(differences), "apply") => ("changed", &differences[..]),
            (Action::Update(differences), "verify") => ("differs", &differences[..]),
            (Action::Update(differences), _) => ("change", &differences[..]),
            (Action::Conflict(differences), _) => ("CONFLICT", &differences[..]),
        };
        let _ = writeln!(out, "{what:<9} {}", change.object);
        for difference in differences {
            let told = |value: &Value| if value.is_null() { "none".to_owned() } else { value.to_string() };
            let (is, should) = (told(&difference.is), told(&difference.should));
            let _ = writeln!(out, "          {}: {is} -> {should}", difference.field);
        }
        if verb == "plan" {
            let _ = writeln!(out, "          cost: {}", change.cost);
        }
    }
    if plan.changes.is_empty() {
        out.push_str("everything is as the file says\n");
    }
    for warning in &plan.warnings {
        let _ = writeln!(out, "warning: {warning}");
    }
    let _ =
        writeln!(out, "fsync: {fsync}{}", if fsync == Fsync::Unknown { " (--monitor asks the server)" } else { "" });
    out
}
