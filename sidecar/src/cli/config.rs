//! `nats-bridge config`: what the settings are, and where they come from.

use std::ffi::OsString;
use std::fs::File;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};
use serde_json::json;

use super::native::table;
use super::settings::{self, Merged, Origin, Setting, Source};
use super::{Cli, Command, Failure, remedy, request};

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
    /// Whether each verb takes what the file and the environment say, and the files that the file names can be read.
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
    let verbs: Vec<&str> = source.verbs().collect();
    for words in settings::every_verb() {
        let has_table = words.get(1).and_then(|verb| verb.to_str()).is_some_and(|verb| verbs.contains(&verb));
        // What the file says by itself, and then what the environment makes of it.
        let of_file = settings::merged(&words, Some(source), |_| None)?;
        parsed(&of_file, source, has_table)?;
        from_environment(&settings::merged(&words, Some(source), |name| std::env::var_os(name))?, source)?;
        if has_table {
            readable(&of_file, source)?;
        }
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

// The files that the file names.
fn readable(merged: &Merged, source: &Source) -> Result<(), Failure> {
    for Setting { flag, value, .. } in merged.settings.iter().filter(|setting| setting.origin == Origin::File) {
        let is_file = flag.ends_with("-file") && flag != "ready-file";
        let is_read =
            is_file || ["nats-creds", "nats-nkey", "nats-ca", "nats-cert", "nats-key"].contains(&flag.as_str());
        if let Some(value) = value.as_ref().filter(|_| is_read) {
            let (file, verb) = (source.path.display(), merged.verbs.join(" "));
            let wrong = |e| Failure::cannot_run(format!("--config {file}: {verb}: --{flag} {value}: {e}"));
            File::open(value).map_err(wrong)?;
        }
    }
    Ok(())
}

// Each value by its flag's own parser. What is missing may come from elsewhere; what excludes what is the business of verbs that
// have a table.
fn parsed(merged: &Merged, source: &Source, has_table: bool) -> Result<(), Failure> {
    let mut words = merged.words.clone();
    let is_set = |flag: &str| merged.settings.iter().any(|one| one.flag == flag && one.value.is_some());
    let serves = merged.verbs == ["serve"];
    if serves && !is_set("nats") && !is_set("embedded") {
        words.push("--nats=nats://127.0.0.1:4222".into());
    }
    let told = |why: String| Failure::cannot_run(format!("--config {}: {why}", source.path.display()));
    match Cli::try_parse_from(&words) {
        Ok(Cli { command: Command::Serve(args), .. }) if has_table => {
            super::serve::check(&args).map_err(|failure| told(format!("serve: {}", failure.text)))
        }
        Err(error) if is_value(&error) => {
            let failure = with_origin(&error, merged, Some(source)).map(|(_, failure)| failure);
            Err(failure.unwrap_or_else(|| told(first_lines(&error))))
        }
        Err(error)
            if has_table
                && ![
                    ErrorKind::MissingRequiredArgument,
                    ErrorKind::MissingSubcommand,
                    ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
                ]
                .contains(&error.kind()) =>
        {
            Err(told(format!("{}: {}", merged.verbs.join(" "), first_lines(&error))))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

// What a variable says, by its flag's own parser.
fn from_environment(merged: &Merged, source: &Source) -> Result<(), Failure> {
    let Err(error) = settings::command().try_get_matches_from(&merged.words) else { return Ok(()) };
    match with_origin(&error, merged, Some(source)) {
        Some((Origin::Environment, failure)) => Err(failure),
        _ => Ok(()),
    }
}

/// A value that a flag's parser refuses, with where it came from; none: it stands on the command line, or something else is wrong.
pub(super) fn with_origin(error: &clap::Error, merged: &Merged, source: Option<&Source>) -> Option<(Origin, Failure)> {
    let flag = flag_of(error).filter(|_| is_value(error))?;
    let origin = merged.settings.iter().find(|setting| setting.flag == flag)?.origin;
    let why = first_lines(error);
    let text = match (origin, source) {
        (Origin::Environment, _) => {
            let variable = settings::variable_of(&merged.verbs, &flag)?;
            format!("${variable}, for {}: {why}", merged.verbs.join(" "))
        }
        (Origin::File, Some(source)) => {
            format!("--config {}: {}: {why}", source.path.display(), source.key(&merged.verbs, &flag))
        }
        _ => return None,
    };
    Some((origin, Failure::cannot_run(text)))
}

fn is_value(error: &clap::Error) -> bool {
    [ErrorKind::InvalidValue, ErrorKind::ValueValidation].contains(&error.kind())
}

// `listen` of `--listen <HOST:PORT>`.
fn flag_of(error: &clap::Error) -> Option<String> {
    let ContextValue::String(shown) = error.get(ContextKind::InvalidArg)? else { return None };
    Some(shown.strip_prefix("--")?.split([' ', '=']).next()?.to_owned())
}

// What is wrong, and which values there are, where they are few.
fn first_lines(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim);
    let first = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    match lines.next().filter(|line| line.starts_with("[possible values")) {
        Some(values) => format!("{first} {values}"),
        None => first,
    }
}

fn show(with: ShowArgs, source: Option<&Source>, as_json: bool) -> Result<(), Failure> {
    let words: Vec<OsString> = std::iter::once("nats-bridge".into()).chain(with.command).collect();
    let merged = settings::merged(&words, source, |name| std::env::var_os(name))?;
    if merged.verbs.is_empty() {
        return Err(Failure::cannot_run("which verb? Such as: nats-bridge config show serve"));
    }
    // Behind the verb stand its flags; those of `show` are taken there as well.
    let (mut origin, mut redact, mut as_json) = (with.origin, with.redact, as_json);
    for (flag, value, known) in settings::flags(&words) {
        match (flag.as_str(), known) {
            ("json", _) => as_json = true,
            (_, true) => {}
            ("origin", false) => origin = true,
            ("redact", false) => redact = value != "false",
            (_, false) => {
                return Err(Failure::cannot_run(format!("{} has no flag --{flag}", merged.verbs.join(" "))));
            }
        }
    }
    let shown = |setting: &Setting| {
        setting.value.as_ref().map(|value| if redact { redacted(&setting.flag, value) } else { value.clone() })
    };
    if as_json {
        let all = merged.settings.iter().map(|setting| {
            let mut one = json!({"flag": setting.flag, "value": shown(setting)});
            if origin {
                one["origin"] = setting.origin.name().into();
            }
            one
        });
        return request::print_json(&json!(all.collect::<Vec<_>>()));
    }
    let rows = merged.settings.iter().map(|setting| {
        let value = shown(setting).unwrap_or_else(|| "-".to_owned());
        let mut row = vec![setting.flag.replace('-', "_"), value];
        if origin {
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
