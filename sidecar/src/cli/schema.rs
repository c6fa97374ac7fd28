//! `nats-bridge schema`: schemas from files, checked and registered.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use nats_bridge::schema::{Compatibility, Difference, Draft, Format, Schemas};
use nats_bridge::{Bridge, ErrorKind};
use serde_json::json;

use super::native::{self, Native, failure, table};
use super::{Failure, request};

/// Arguments of `schema`.
#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// Which NATS.
    #[command(flatten)]
    pub native: Native,
    /// The key-value bucket that is the registry.
    #[arg(long, global = true, env = "NATS_BRIDGE_SCHEMAS", default_value = "SCHEMAS", value_name = "BUCKET")]
    pub bucket: String,
}

/// The verbs of `schema`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Whether files could become the next versions of what the registry has, or of other files; registers nothing. Exit code 1: no.
    #[command(after_help = "Examples:\n  nats-bridge schema check schemas/order.json schemas/item.proto\n  \
                            nats-bridge schema check order.avsc --against order.v1.avsc --compatibility FULL")]
    Check(CheckArgs),
    /// Register files as the next versions, if all of them can be; the registry is made if it does not exist.
    #[command(after_help = "Example:\n  nats-bridge schema register schemas/*.json --subject 'orders.>'")]
    Register(RegisterArgs),
    /// List what the registry has.
    #[command(after_help = "Example:\n  nats-bridge schema list --json")]
    List,
    /// Print a schema's text as it was registered.
    #[command(after_help = "Example:\n  nats-bridge schema show order/2")]
    Show(ShowArgs),
}

/// The files with new versions.
#[derive(Debug, Args)]
pub struct Files {
    /// Schemas; a file's name up to its first dot is the schema's name.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The schema's name, for one file.
    #[arg(long)]
    pub name: Option<String>,
    /// The language; default by the file's extension: json, avsc, proto.
    #[arg(long, value_parser = format)]
    pub format: Option<Format>,
    /// What a new version owes to older ones, such as BACKWARD or FULL_TRANSITIVE; default as it was, or BACKWARD.
    #[arg(long, value_parser = compatibility)]
    pub compatibility: Option<Compatibility>,
}

/// What `check` needs.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// What to check.
    #[command(flatten)]
    pub files: Files,
    /// Compare with this older version in a file, and not with the registry; several, the oldest first.
    #[arg(long, value_name = "FILE")]
    pub against: Vec<PathBuf>,
}

/// What `register` needs.
#[derive(Debug, Args)]
pub struct RegisterArgs {
    /// What to register.
    #[command(flatten)]
    pub files: Files,
    /// Messages may have it on this subject only, with wildcards; several; default as it was, or everywhere.
    #[arg(long = "subject", value_name = "SUBJECT")]
    pub subjects: Vec<String>,
}

/// What `show` needs.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The schema's name, and a version as in `order/2`; without one, the newest.
    #[arg(value_parser = wanted, value_name = "NAME[/VERSION]")]
    pub wanted: (String, Option<u32>),
}

/// Does what was asked for.
///
/// # Errors
/// `refused` when something is not compatible or not there; `cannot_run` when a file is wrong or NATS cannot be reached.
pub async fn run(args: SchemaArgs) -> Result<(), Failure> {
    let SchemaArgs { verb, native, bucket } = args;
    match verb {
        Verb::Check(with) if !with.against.is_empty() => check_against(&with, native.json),
        // What is wrong with a file is told before anything is asked.
        Verb::Check(with) => {
            let drafts = with.files.read()?;
            let bridge = native.connect().await?;
            let checked = check(&bridge, &bucket, &drafts).await;
            native::close(&bridge).await;
            told(&checked?, native.json)
        }
        Verb::Register(with) => {
            let mut drafts = with.files.read()?;
            if !with.subjects.is_empty() {
                drafts.iter_mut().for_each(|one| one.draft.subjects = Some(with.subjects.clone()));
            }
            let bridge = native.connect().await?;
            let registered = register(&bridge, &bucket, &drafts, native.json).await;
            native::close(&bridge).await;
            registered
        }
        Verb::List => {
            let bridge = native.connect().await?;
            let listed = list(&bridge, &bucket, native.json).await;
            native::close(&bridge).await;
            listed
        }
        Verb::Show(with) => {
            let bridge = native.connect().await?;
            let (name, version) = with.wanted;
            let schema = async { open(&bridge, &bucket).await?.get(&name, version).await.map_err(failure) };
            let schema = schema.await;
            native::close(&bridge).await;
            match (schema?, native.json) {
                (schema, true) => request::print_json(&json!(schema)),
                (schema, false) => {
                    request::print(&schema.schema);
                    if !schema.schema.ends_with('\n') {
                        request::print("\n");
                    }
                    Ok(())
                }
            }
        }
    }
}

/// A file that was read.
struct Read {
    file: PathBuf,
    name: String,
    draft: Draft,
}

/// What is not compatible about it.
struct Checked<'a> {
    read: &'a Read,
    differences: Vec<Difference>,
}

impl Files {
    fn read(&self) -> Result<Vec<Read>, Failure> {
        if self.name.is_some() && self.files.len() > 1 {
            return Err(Failure::cannot_run("--name is for one file; the names of several are theirs"));
        }
        let reads = self.files.iter().map(|file| {
            let draft = Draft { compatibility: self.compatibility, ..draft(file, self.format)? };
            let name = match &self.name {
                Some(name) => name.clone(),
                None => named(file)?,
            };
            // Compared with nothing, only what is wrong with the file itself is told.
            draft.differences(&[]).map_err(|error| in_file(file, error))?;
            Ok(Read { file: file.clone(), name, draft })
        });
        let reads: Vec<Read> = reads.collect::<Result<_, Failure>>()?;
        for (index, read) in reads.iter().enumerate() {
            if let Some(other) = reads[..index].iter().find(|other| other.name == read.name) {
                let (one, other) = (other.file.display(), read.file.display());
                return Err(Failure::cannot_run(format!("{one} and {other} are both `{}`", read.name)));
            }
        }
        Ok(reads)
    }
}

fn draft(file: &Path, given: Option<Format>) -> Result<Draft, Failure> {
    let schema = std::fs::read_to_string(file).map_err(|e| Failure::cannot_run(format!("{}: {e}", file.display())))?;
    let format = match (given, file.extension().and_then(|extension| extension.to_str())) {
        (Some(format), _) => format,
        (None, Some("json")) => Format::Json,
        (None, Some("avsc")) => Format::Avro,
        (None, Some("proto")) => Format::Protobuf,
        _ => {
            let file = file.display();
            return Err(Failure::cannot_run(format!(
                "{file}: --format is needed: its name ends with none of .json, .avsc, .proto"
            )));
        }
    };
    Ok(Draft { format, ..Draft::json(schema) })
}

// order.v2.json is of `order`.
fn named(file: &Path) -> Result<String, Failure> {
    let name = file.file_name().and_then(|name| name.to_str()).and_then(|name| name.split('.').next());
    match name.filter(|name| !name.is_empty()) {
        Some(name) => Ok(name.to_owned()),
        None => Err(Failure::cannot_run(format!("{}: --name is needed: the file's name gives none", file.display()))),
    }
}

fn check_against(with: &CheckArgs, as_json: bool) -> Result<(), Failure> {
    let [new] = &with.files.read()?[..] else {
        return Err(Failure::cannot_run("--against compares one file with older versions of it"));
    };
    let before: Vec<Draft> =
        with.against.iter().map(|file| draft(file, with.files.format)).collect::<Result<_, Failure>>()?;
    for (old, file) in before.iter().zip(&with.against) {
        old.differences(&[]).map_err(|error| in_file(file, error))?;
    }
    let differences = new.draft.differences(&before).map_err(|error| in_file(&new.file, error))?;
    told(&[Checked { read: new, differences }], as_json)
}

async fn check<'a>(bridge: &Bridge, bucket: &str, reads: &'a [Read]) -> Result<Vec<Checked<'a>>, Failure> {
    let schemas = open(bridge, bucket).await?;
    let mut all = Vec::new();
    for read in reads {
        let differences = schemas.differences(&read.name, &read.draft).await;
        all.push(Checked { read, differences: differences.map_err(|error| in_file(&read.file, error))? });
    }
    Ok(all)
}

fn told(checked: &[Checked], as_json: bool) -> Result<(), Failure> {
    if as_json {
        let all = checked.iter().map(|one| {
            json!({
                "file": one.read.file, "name": one.read.name,
                "compatible": one.differences.is_empty(), "differences": one.differences,
            })
        });
        request::print_json(&json!(all.collect::<Vec<_>>()))?;
    } else {
        for one in checked.iter().filter(|one| one.differences.is_empty()) {
            request::print(&format!("{}: {} is compatible\n", one.read.file.display(), one.read.name));
        }
        for one in checked {
            for Difference { path, rule, detail } in &one.differences {
                let path = if path.is_empty() { "/" } else { path };
                request::print(&format!("{}: {path}: {rule}: {detail}\n", one.read.file.display()));
            }
        }
    }
    match checked.iter().filter(|one| !one.differences.is_empty()).count() {
        0 => Ok(()),
        bad => Err(Failure::refused(format!("{bad} of {} not compatible with what is there", checked.len()))),
    }
}

async fn register(bridge: &Bridge, bucket: &str, reads: &[Read], as_json: bool) -> Result<(), Failure> {
    let schemas = bridge.schemas(bucket).await.map_err(failure)?;
    // All or none, as far as that can be known.
    let checked = check(bridge, bucket, reads).await?;
    if checked.iter().any(|one| !one.differences.is_empty()) {
        return told(&checked, as_json);
    }
    let mut all = Vec::new();
    for read in reads {
        let registered = schemas.register(&read.name, &read.draft).await.map_err(|error| in_file(&read.file, error))?;
        if !as_json {
            let known = if registered.known { ", as before" } else { "" };
            let (file, name) = (read.file.display(), &read.name);
            request::print(&format!("{file}: {name} is version {}{known}\n", registered.version));
        }
        all.push(json!({
            "file": read.file, "name": read.name, "version": registered.version, "known": registered.known
        }));
    }
    if as_json { request::print_json(&json!(all)) } else { Ok(()) }
}

async fn list(bridge: &Bridge, bucket: &str, as_json: bool) -> Result<(), Failure> {
    let schemas = open(bridge, bucket).await?;
    let (mut rows, mut all) = (Vec::new(), Vec::new());
    for name in schemas.names().await.map_err(failure)? {
        let newest = schemas.get(&name, None).await.map_err(failure)?;
        let subjects = if newest.subjects.is_empty() { "any subject".to_owned() } else { newest.subjects.join(", ") };
        rows.push(vec![
            name,
            format!("version {}", newest.version),
            newest.format.name().to_owned(),
            newest.compatibility.name().to_owned(),
            subjects,
        ]);
        all.push(json!({
            "name": newest.name, "version": newest.version, "format": newest.format,
            "compatibility": newest.compatibility, "subjects": newest.subjects,
        }));
    }
    if as_json {
        return request::print_json(&json!(all));
    }
    match rows.is_empty() {
        true => request::print(&format!("nothing is registered in bucket {bucket}\n")),
        false => request::print(&table(&rows)),
    }
    Ok(())
}

async fn open(bridge: &Bridge, bucket: &str) -> Result<Schemas, Failure> {
    Schemas::open(bridge.jetstream(), bucket).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound => Failure::refused(format!(
            "nothing was registered yet: there is no registry in bucket {bucket}; `nats-bridge schema register` makes it, and --bucket \
             names another one"
        )),
        _ => failure(error),
    })
}

// What the registry refuses is a "no"; what is wrong with the file is not.
fn in_file(file: &Path, error: nats_bridge::Error) -> Failure {
    let code = match error.kind() {
        ErrorKind::Conflict => 1,
        _ => 2,
    };
    Failure { code, text: format!("{}: {error}", file.display()) }
}

fn wanted(text: &str) -> Result<(String, Option<u32>), String> {
    match text.split_once('/') {
        None => Ok((text.to_owned(), None)),
        Some((name, version)) => match version.parse() {
            Ok(version) if version > 0 => Ok((name.to_owned(), Some(version))),
            _ => Err("a version is a number from 1, as in order/2".to_owned()),
        },
    }
}

fn format(text: &str) -> Result<Format, String> {
    serde_json::from_value(json!(text)).map_err(|_| "json, avro or protobuf is expected".to_owned())
}

fn compatibility(text: &str) -> Result<Compatibility, String> {
    serde_json::from_value(json!(text.to_uppercase())).map_err(|_| {
        "NONE, BACKWARD, FORWARD or FULL is expected, or one of the last three with _TRANSITIVE".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_languages_come_from_files() {
        assert_eq!(named(Path::new("a/order.v2.json")).map_err(|e| e.text), Ok("order".into()));
        assert!(named(Path::new("a/.json")).is_err());
        assert_eq!(
            (format("avro"), compatibility("full_transitive")),
            (Ok(Format::Avro), Ok(Compatibility::FullTransitive))
        );
        assert!(format("xml").is_err() && compatibility("SIDEWAYS").is_err());
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("order.txt");
        std::fs::write(&file, "{}").expect("written");
        assert!(draft(&file, None).expect_err("no language").text.contains("--format"));
        assert!(draft(&file, Some(Format::Json)).is_ok());
    }
}
