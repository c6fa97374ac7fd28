//! Settings from a file and from the environment: a flag of the command line comes before the environment, that before the file, and
//! that before the default.
//!
//! The file (TOML; `--config` or `$NATS_BRIDGE_CONFIG`) has flags by their names: those on top hold for each verb that has such a flag, those in a table for
//! the verb that it names. In the environment a flag is `NATS_BRIDGE_` and its name in upper case, unless its help names another variable.
//! What a flag's own parser refuses is refused there as well, since what is not on the command line is put there.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command, CommandFactory};
use toml::{Table, Value};

use super::{Cli, Failure};

/// The variable that names the file.
pub(super) const FILE: &str = "NATS_BRIDGE_CONFIG";

/// Where a setting comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Flag,
    Environment,
    File,
    Default,
}

impl Origin {
    pub fn name(self) -> &'static str {
        match self {
            Origin::Flag => "flag",
            Origin::Environment => "environment",
            Origin::File => "file",
            Origin::Default => "default",
        }
    }
}

/// One flag of a verb, what it is set to, and from where.
#[derive(Debug)]
pub(super) struct Setting {
    pub flag: String,
    /// None: it is not set, and has no default.
    pub value: Option<String>,
    pub origin: Origin,
}

/// A command line with what the file adds to it.
pub(super) struct Merged {
    /// The verb, with those inside it: `dlq list`.
    pub verbs: Vec<String>,
    /// The whole command line.
    pub words: Vec<OsString>,
    pub settings: Vec<Setting>,
}

/// The commands, with a variable for each flag that has none.
pub(super) fn command() -> Command {
    let mut command = with_variables(Cli::command());
    command.build();
    command
}

/// The words that begin each verb, and each verb inside another one; without those about settings.
pub(super) fn every_verb() -> Vec<Vec<OsString>> {
    fn below(command: &Command, words: &[OsString], all: &mut Vec<Vec<OsString>>) {
        for inner in
            command.get_subcommands().filter(|inner| !["help", "config", "version"].contains(&inner.get_name()))
        {
            let words = [words, &[inner.get_name().into()]].concat();
            match inner.has_subcommands() {
                true => below(inner, &words, all),
                false => all.push(words),
            }
        }
    }
    let mut all = Vec::new();
    below(&command(), &["nats-bridge".into()], &mut all);
    all
}

/// The variable of a verb's flag.
pub(super) fn variable_of(verbs: &[String], flag: &str) -> Option<String> {
    let command = command();
    let verb = verbs.iter().try_fold(&command, |command, name| command.find_subcommand(name))?;
    let arg = verb.get_arguments().find(|arg| arg.get_long() == Some(flag))?;
    Some(arg.get_env()?.to_string_lossy().into_owned())
}

/// The flags of a command line with their values, and whether its verb has them.
pub(super) fn flags(words: &[OsString]) -> Vec<(String, String, bool)> {
    let command = command();
    let (verbs, flags) = looked_through(&command, words);
    let verb = verbs.iter().try_fold(&command, |command, name| command.find_subcommand(name)).unwrap_or(&command);
    let known = |flag: &str| verb.get_arguments().any(|arg| arg.get_long() == Some(flag));
    flags
        .into_iter()
        .map(|(flag, value)| {
            let known = known(&flag);
            (flag, value, known)
        })
        .collect()
}

fn with_variables(command: Command) -> Command {
    let variable = |arg: Arg| -> Arg {
        let taken = arg.get_env().is_some() || arg.get_long().is_none_or(|long| ["help", "version"].contains(&long));
        match (taken, arg.get_long()) {
            (false, Some(long)) => {
                let name = format!("NATS_BRIDGE_{}", long.replace('-', "_").to_uppercase());
                // A few dozen names, for as long as the process lives.
                arg.env(&*name.leak()).hide_env(true)
            }
            _ => arg,
        }
    };
    command.mut_args(variable).mut_subcommands(with_variables)
}

/// Reads the file that a command line or the environment names; none when neither does.
///
/// # Errors
/// `cannot_run`, naming the file.
pub(super) fn file_of(
    words: &[OsString],
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<Source>, Failure> {
    let mut given = words.iter().skip(1).take_while(|word| *word != "--");
    let mut named = None;
    while let Some(word) = given.next() {
        match word.to_str() {
            Some("--config") => named = given.next().cloned(),
            Some(text) => named = text.strip_prefix("--config=").map(OsString::from).or(named),
            None => {}
        }
    }
    let named = named.or_else(|| environment(FILE).filter(|name| !name.is_empty()));
    named.map(|name| Source::read(Path::new(&name))).transpose()
}

/// What a file says.
#[derive(Debug)]
pub(super) struct Source {
    pub path: PathBuf,
    table: Table,
}

impl Source {
    /// Reads a file, and refuses what is no flag in it.
    pub fn read(path: &Path) -> Result<Source, Failure> {
        let named = |why: &dyn std::fmt::Display| Failure::cannot_run(format!("--config {}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| named(&e))?;
        let table: Table = text.parse().map_err(|e: toml::de::Error| named(&e))?;
        let source = Source { path: path.to_owned(), table };
        source.check(&command())?;
        Ok(source)
    }

    fn wrong(&self, key: &str, why: impl std::fmt::Display) -> Failure {
        Failure::cannot_run(format!("--config {}: {key}: {why}", self.path.display()))
    }

    fn check(&self, command: &Command) -> Result<(), Failure> {
        for (key, value) in &self.table {
            let Some(table) = value.as_table() else {
                if !has_flag(command, key) {
                    return Err(self.wrong(key, "no verb has such a flag"));
                }
                self.words(key, value)?;
                continue;
            };
            let Some(verb) = command.find_subcommand(key) else {
                return Err(self.wrong(key, "there is no such verb"));
            };
            for (flag, value) in table {
                let key = format!("{key}.{flag}");
                if !has_flag(verb, flag) {
                    return Err(self.wrong(&key, "the verb has no such flag"));
                }
                self.words(&key, value)?;
            }
        }
        Ok(())
    }

    /// The verbs that have a table.
    pub fn verbs(&self) -> impl Iterator<Item = &str> {
        self.table.iter().filter(|(_, value)| value.is_table()).map(|(key, _)| key.as_str())
    }

    /// Where a flag of a verb stands in the file: `serve.listen`, or `log_format` on top.
    pub fn key(&self, verbs: &[String], long: &str) -> String {
        let key = long.replace('-', "_");
        match verbs.first().filter(|verb| self.table.get(*verb).and_then(|table| table.get(&key)).is_some()) {
            Some(verb) => format!("{verb}.{key}"),
            None => key,
        }
    }

    // The flag's values, as they would stand on a command line.
    fn words(&self, key: &str, value: &Value) -> Result<Vec<String>, Failure> {
        match value {
            Value::String(text) => Ok(vec![text.clone()]),
            Value::Integer(number) => Ok(vec![number.to_string()]),
            Value::Boolean(whether) => Ok(vec![whether.to_string()]),
            Value::Array(values) => {
                let words = values.iter().map(|value| match value {
                    Value::Array(_) => Err(self.wrong(key, "a list has texts and numbers")),
                    value => self.words(key, value),
                });
                Ok(words.collect::<Result<Vec<_>, _>>()?.concat())
            }
            _ => Err(self.wrong(
                key,
                "a text, a number, true, false or a list of them is expected; a time is a text, such as \"60s\"",
            )),
        }
    }

    fn value(&self, verb: Option<&String>, long: &str) -> Result<Option<Vec<String>>, Failure> {
        let key = long.replace('-', "_");
        let of_verb =
            verb.and_then(|verb| self.table.get(verb)).and_then(Value::as_table).and_then(|table| table.get(&key));
        let value = of_verb.or_else(|| self.table.get(&key).filter(|value| !value.is_table()));
        value.map(|value| self.words(&key, value)).transpose()
    }
}

// Whether the command or one inside it has this flag.
fn has_flag(command: &Command, key: &str) -> bool {
    let has = |arg: &Arg| arg.get_long().is_some_and(|long| long != "config" && long.replace('-', "_") == key);
    command.get_arguments().any(has) || command.get_subcommands().any(|inner| has_flag(inner, key))
}

/// Puts what a file says behind a command line, unless the command line or the environment says it, or something that excludes it.
///
/// # Errors
/// `cannot_run`: the file has what is no value of the flag.
pub(super) fn merged(
    words: &[OsString],
    source: Option<&Source>,
    environment: impl Fn(&OsStr) -> Option<OsString>,
) -> Result<Merged, Failure> {
    let command = command();
    let (verbs, flags) = looked_through(&command, words);
    let verb = verbs.iter().try_fold(&command, |command, name| command.find_subcommand(name)).unwrap_or(&command);
    let in_environment = |arg: &Arg| arg.get_env().and_then(&environment);
    let explicit = |arg: &Arg| arg.get_long().is_some_and(|long| flags.iter().any(|(flag, _)| flag == long));
    let given = |arg: &&Arg| explicit(arg) || in_environment(arg).is_some();
    let mut merged = Merged { words: words.to_vec(), verbs: verbs.clone(), settings: Vec::new() };
    let mut added = Vec::new();
    for arg in verb.get_arguments() {
        let Some(long) = arg.get_long().filter(|long| !["help", "version", "config"].contains(long)) else { continue };
        let mut push = |value: Option<String>, origin: Origin| {
            merged.settings.push(Setting { flag: long.to_owned(), value, origin });
        };
        if explicit(arg) {
            let values: Vec<String> =
                flags.iter().filter(|(flag, _)| flag == long).map(|(_, value)| value.clone()).collect();
            push(Some(values.join(", ")), Origin::Flag);
            continue;
        }
        if let Some(value) = in_environment(arg) {
            push(Some(value.to_string_lossy().into_owned()), Origin::Environment);
            continue;
        }
        // What is more explicit excludes it, in whichever direction that is said.
        let excluded = verb.get_arguments().filter(given).any(|other| exclude_each_other(verb, arg, other));
        let values = match source.filter(|_| !excluded) {
            Some(source) => source.value(verbs.first(), long)?,
            None => None,
        };
        match values {
            Some(values) => {
                push(Some(values.join(", ")), Origin::File);
                match (arg.get_action(), values.first().map(String::as_str)) {
                    (ArgAction::SetTrue, Some("true")) => added.push(format!("--{long}").into()),
                    (ArgAction::SetTrue, Some("false")) => {}
                    (ArgAction::SetTrue, _) => {
                        let source = source.map(|source| source.path.display().to_string()).unwrap_or_default();
                        return Err(Failure::cannot_run(format!(
                            "--config {source}: {long}: true or false is expected"
                        )));
                    }
                    _ => added.extend(values.iter().map(|value| OsString::from(format!("--{long}={value}")))),
                }
            }
            None => {
                let default: Vec<String> =
                    arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
                push((!default.is_empty()).then(|| default.join(", ")), Origin::Default);
            }
        }
    }
    // Before what is behind `--`.
    let end = merged.words.iter().position(|word| word == "--").unwrap_or(merged.words.len());
    merged.words.splice(end..end, added);
    Ok(merged)
}

fn exclude_each_other(command: &Command, one: &Arg, other: &Arg) -> bool {
    let conflicts = |one: &Arg, other: &Arg| {
        command.get_arg_conflicts_with(one).iter().any(|conflict| conflict.get_id() == other.get_id())
    };
    let in_one_group = |group: &clap::ArgGroup| {
        let has = |arg: &Arg| group.get_args().any(|id| id == arg.get_id());
        !group.clone().is_multiple() && has(one) && has(other)
    };
    conflicts(one, other) || conflicts(other, one) || command.get_groups().any(in_one_group)
}

// The verbs of a command line, and its long flags with their values.
fn looked_through(command: &Command, words: &[OsString]) -> (Vec<String>, Vec<(String, String)>) {
    let (mut verbs, mut flags) = (Vec::new(), Vec::new());
    let mut command = command;
    let mut words = words.iter().skip(1).take_while(|word| *word != "--").map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--") else {
            if let Some(inner) = command.find_subcommand(&*word) {
                verbs.push(inner.get_name().to_owned());
                command = inner;
            }
            continue;
        };
        let (long, value) = match flag.split_once('=') {
            Some((long, value)) => (long, Some(value.to_owned())),
            None => (flag, None),
        };
        let takes = command
            .get_arguments()
            .any(|arg| arg.get_long() == Some(long) && matches!(arg.get_action(), ArgAction::Set | ArgAction::Append));
        let value = match value {
            None if takes => words.next().map(|value| value.into_owned()),
            value => value,
        };
        flags.push((long.to_owned(), value.unwrap_or_else(|| "true".to_owned())));
    }
    (verbs, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Result<Source, Failure> {
        let source = Source { path: "f.toml".into(), table: text.parse().expect("TOML") };
        source.check(&command()).map(|()| source)
    }

    fn words(line: &str) -> Vec<OsString> {
        std::iter::once("nats-bridge").chain(line.split_whitespace()).map(OsString::from).collect()
    }

    fn setting(line: &str, text: &str, variables: &[(&str, &str)], flag: &str) -> (Option<String>, &'static str) {
        let source = source(text).expect("legal");
        let environment = |name: &OsStr| variables.iter().find(|(one, _)| name == *one).map(|(_, value)| value.into());
        let merged = merged(&words(line), Some(&source), environment).expect("merged");
        let found = merged.settings.into_iter().find(|setting| setting.flag == flag).expect("a flag");
        (found.value, found.origin.name())
    }

    #[test]
    fn a_flag_comes_before_the_environment_before_the_file_before_the_default() {
        let text = "nats = \"nats://top\"\n[serve]\nlisten = \"file:1\"\nvhost = [\"a\", \"b\"]\nshared = true\n[schema]\nnats = \"nats://own\"";
        let listen = |line: &str, text: &str, variables: &[(&str, &str)]| setting(line, text, variables, "listen");
        let variable = [("NATS_BRIDGE_LISTEN", "variable:1")];
        assert_eq!(listen("serve --listen flag:1", text, &variable), (Some("flag:1".into()), "flag"));
        assert_eq!(listen("serve", text, &variable), (Some("variable:1".into()), "environment"));
        assert_eq!(listen("serve", text, &[]), (Some("file:1".into()), "file"));
        assert_eq!(listen("serve", "", &[]), (Some("127.0.0.1:5672".into()), "default"));
        assert_eq!(setting("serve", text, &[], "nats"), (Some("nats://top".into()), "file"));
        assert_eq!(setting("schema list", text, &[], "nats"), (Some("nats://own".into()), "file"));
        assert_eq!(
            setting("schema list", text, &[("NATS_URL", "nats://v")], "nats"),
            (Some("nats://v".into()), "environment")
        );
        assert_eq!(setting("serve", text, &[], "management"), (None, "default"));
        let merged =
            merged(&words("serve --listen=x:1"), Some(&source(text).expect("legal")), |_| None).expect("merged");
        assert_eq!(
            merged.words[1..],
            words("serve --listen=x:1 --nats=nats://top --shared --vhost=a --vhost=b")[1..].to_vec()[..].to_vec()
        );
    }

    #[test]
    fn what_is_more_explicit_excludes_what_the_file_says() {
        let text = "nats_creds = \"c\"";
        assert_eq!(setting("schema list", text, &[], "nats-creds"), (Some("c".into()), "file"));
        assert_eq!(setting("schema list --nats-nkey n", text, &[], "nats-creds"), (None, "default"));
        // A value that is also a verb's name is none.
        assert_eq!(setting("schema --bucket list list", "", &[], "bucket"), (Some("list".into()), "flag"));
    }

    #[test]
    fn what_is_no_flag_is_refused_by_its_name() {
        for (text, why) in [
            ("lisen = \"a\"", "f.toml: lisen: no verb has such a flag"),
            ("[server]\nlisten = \"a\"", "f.toml: server: there is no such verb"),
            ("[serve]\nlisen = \"a\"", "f.toml: serve.lisen: the verb has no such flag"),
            ("[schema]\nlisten = \"a\"", "schema.listen: the verb has no such flag"),
            ("[serve]\nlisten = 1.5", "serve.listen: a text"),
            ("[serve.listen]\na = 1", "serve.listen: a text"),
            ("config = \"a\"", "config: no verb has such a flag"),
        ] {
            let error = source(text).expect_err("refused").text;
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
