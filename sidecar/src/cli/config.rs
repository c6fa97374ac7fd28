//! `nats-bridge config`: what the settings are, and where they come from.

use std::ffi::OsString;
use std::fs::File;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use serde_json::json;

use super::native::table;
use super::settings::{self, Merged, Origin, Setting, Source};
use super::{Cli, Failure, remedy, request};

/// Arguments of `config`.
#[derive(Debug, Args)]
#[command(after_help = "In the file flags stand by their names, on top for every verb and in a table for one:\n\n  \
                        nats = \"nats://a.example:4222\"\n  nats_creds = \"/run/secrets/app.creds\"\n\n  [serve]\n  \
                        listen = \"0.0.0.0:5672\"\n  user_file = \"/run/secrets/users\"\n\n\
                        A flag comes before its variable (NATS_BRIDGE_LISTEN for --listen, unless its help names another one), that before the file, and that before the default.")]
pub struct ConfigArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    pub json: bool,
}

/// The verbs of `config`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Whether the file is legal for each verb that it has a table for, and the files that it names can be read.
    #[command(after_help = "Example:\n  nats-bridge --config nats-bridge.toml config check")]
    Check,
    /// Show the settings of a verb.
    #[command(
        after_help = "Example:\n  nats-bridge --config nats-bridge.toml config show --origin serve --listen 0.0.0.0:5672"
    )]
    Show(ShowArgs),
}

/// What `show` needs.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Tell where each comes from: flag, environment, file or default.
    #[arg(long)]
    pub origin: bool,
    /// Show no passwords and tokens.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", value_name = "BOOL", action = clap::ArgAction::Set)]
    pub redact: bool,
    /// The verb, and flags of it as it would be started.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "VERB")]
    pub command: Vec<OsString>,
}

/// Does what was asked for.
///
/// # Errors
/// `cannot_run`, naming the file and the flag at fault.
pub fn run(args: ConfigArgs, source: Option<&Source>) -> Result<(), Failure> {
    match args.verb {
        Verb::Check => check(source, args.json),
        Verb::Show(with) => show(with, source, args.json),
    }
}

fn check(source: Option<&Source>, as_json: bool) -> Result<(), Failure> {
    let Some(source) = source else {
        return Err(Failure::cannot_run(format!(
            "--config is needed, or ${}: there is no file to check",
            settings::FILE
        )));
    };
    let mut verbs = Vec::new();
    for verb in source.verbs() {
        let words = ["nats-bridge", verb].map(OsString::from);
        // The environment is another matter.
        let merged = settings::merged(&words, Some(source), |_| None)?;
        parsed(&merged, source)?;
        for Setting { flag, value, .. } in merged.settings.iter().filter(|setting| setting.origin == Origin::File) {
            let is_file = flag.ends_with("-file") && flag != "ready-file";
            let is_read =
                is_file || ["nats-creds", "nats-nkey", "nats-ca", "nats-cert", "nats-key"].contains(&flag.as_str());
            if let Some(value) = value.as_ref().filter(|_| is_read) {
                let wrong = |e| {
                    Failure::cannot_run(format!("--config {}: {verb}: --{flag} {value}: {e}", source.path.display()))
                };
                File::open(value).map_err(wrong)?;
            }
        }
        verbs.push(verb);
    }
    match as_json {
        true => request::print_json(&json!({"file": source.path, "verbs": verbs})),
        false => {
            let verbs = if verbs.is_empty() { "no verb has a table".to_owned() } else { verbs.join(", ") };
            request::print(&format!("{} is legal ({verbs})\n", source.path.display()));
            Ok(())
        }
    }
}

// Each value by its flag's own parser. What is missing may come from elsewhere.
fn parsed(merged: &Merged, source: &Source) -> Result<(), Failure> {
    match Cli::try_parse_from(&merged.words) {
        Ok(_) => Ok(()),
        Err(error)
            if [
                ErrorKind::MissingRequiredArgument,
                ErrorKind::MissingSubcommand,
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
            ]
            .contains(&error.kind()) =>
        {
            Ok(())
        }
        Err(error) => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Err(Failure::cannot_run(format!("--config {}: {}: {first}", source.path.display(), merged.verbs.join(" "))))
        }
    }
}

fn show(with: ShowArgs, source: Option<&Source>, as_json: bool) -> Result<(), Failure> {
    let words: Vec<OsString> = std::iter::once("nats-bridge".into()).chain(with.command).collect();
    let merged = settings::merged(&words, source, |name| std::env::var_os(name))?;
    if merged.verbs.is_empty() {
        return Err(Failure::cannot_run("which verb? Such as: nats-bridge config show serve"));
    }
    let shown = |setting: &Setting| {
        setting.value.as_ref().map(|value| if with.redact { redacted(&setting.flag, value) } else { value.clone() })
    };
    if as_json {
        let all = merged.settings.iter().map(|setting| {
            let mut one = json!({"flag": setting.flag, "value": shown(setting)});
            if with.origin {
                one["origin"] = setting.origin.name().into();
            }
            one
        });
        return request::print_json(&json!(all.collect::<Vec<_>>()));
    }
    let rows = merged.settings.iter().map(|setting| {
        let value = shown(setting).unwrap_or_else(|| "-".to_owned());
        let mut row = vec![setting.flag.replace('-', "_"), value];
        if with.origin {
            row.push(setting.origin.name().to_owned());
        }
        row
    });
    request::print(&table(&rows.collect::<Vec<_>>()));
    Ok(())
}

// Passwords of URLs, what is a secret itself, and what is behind a colon in a NAME:PASSWORD.
fn redacted(flag: &str, value: &str) -> String {
    let hidden = |one: &str| match flag {
        "token" | "http-token" => "***".to_owned(),
        "user" => one.split_once(':').map_or_else(|| one.to_owned(), |(name, _)| format!("{name}:***")),
        _ if one.contains("://") => remedy::without_password(one),
        _ => one.to_owned(),
    };
    value.split(", ").map(hidden).collect::<Vec<_>>().join(", ")
}
