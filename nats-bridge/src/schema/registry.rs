//! The registry: a key-value bucket with one document for each schema.

use async_nats::jetstream::kv::{CreateErrorKind, Operation, Store, UpdateErrorKind};
use async_nats::jetstream::{self, context::KeyValueErrorKind};
use futures::TryStreamExt;
use serde::Serialize;

use super::compatibility::Compatibility;
use super::document::{Document, Draft, Schema};
use crate::bridge::Bridge;
use crate::error::{Error, ErrorKind, Result};
use crate::provision::{BucketSpec, make_bucket_if_absent};

/// Named schemas and their versions. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Schemas {
    store: Store,
    max_payload: usize,
}

/// Where a schema is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Registered {
    /// Its version.
    pub version: u32,
    /// Whether it was there already.
    pub known: bool,
}

/// How often somebody else may come first before it is given up.
const TRIES: u32 = 10;

impl Bridge {
    /// Opens the registry in this bucket, which is made if it does not exist: 64 MiB, without end.
    ///
    /// # Errors
    /// `Config`: the bucket's name is not legal. Else as JetStream answers.
    pub async fn schemas(&self, bucket: impl Into<String>) -> Result<Schemas> {
        let name = bucket.into();
        let spec = BucketSpec { name: name.clone(), max_bytes: Some(64 << 20), history: 5, ..BucketSpec::default() };
        self.unless_denied(make_bucket_if_absent(self.jetstream(), &spec)).await?;
        Schemas::open(self.jetstream(), &name).await
    }
}

impl Schemas {
    /// Opens a registry that is there; [`Bridge::schemas`] makes one.
    ///
    /// # Errors
    /// `NotFound`: there is no such bucket. `Unreachable`: it cannot be looked at.
    pub async fn open(jetstream: &jetstream::Context, bucket: &str) -> Result<Schemas> {
        // What the client adds to a payload is far less than this.
        let max_payload = jetstream.client().server_info().max_payload.saturating_sub(4096);
        match jetstream.get_key_value(bucket).await {
            Ok(store) => Ok(Schemas { store, max_payload }),
            Err(error) => {
                let found = crate::api::ask(jetstream, format!("STREAM.INFO.KV_{bucket}")).await;
                let kind = match (error.kind(), found) {
                    (KeyValueErrorKind::InvalidStoreName, _) => ErrorKind::Config,
                    (_, Err(error)) => error.kind(),
                    _ => ErrorKind::Unreachable,
                };
                Err(Error::new(kind).with("schemas", bucket).with("why", &error).because(error))
            }
        }
    }

    /// Registers a schema as the next version under this name, if it is compatible. One that is there already, white space and the
    /// order of names apart, stays the version that it is; its compatibility and subjects are changed if they are given.
    ///
    /// # Errors
    /// `Config`: the name, the schema or a subject is not legal. `Unsupported`: its language. `Conflict`: it is not
    /// compatible; the error names `compatibility`, `reader` and `writer`, and the first difference by `path` and `rule`; or
    /// others register without end. `TooLarge`: all its versions are more than a message may be. Else as JetStream answers.
    pub async fn register(&self, name: &str, draft: &Draft) -> Result<Registered> {
        check_name(name)?;
        let new = draft.read(name)?;
        for _ in 0..TRIES {
            let (before, revision) = self.read(name).await?;
            let document = before.clone().unwrap_or_else(|| Document::new(draft.format));
            let (next, version) = document.with(name, draft, &new)?;
            let known = version as usize <= document.versions.len();
            if before.as_ref() == Some(&next) || self.write(name, &next, revision).await? {
                return Ok(Registered { version, known });
            }
        }
        Err(Error::new(ErrorKind::Conflict).with("schema", name).with("why", "others register without end"))
    }

    /// What would not be compatible, if this schema were registered now: the reader's and the writer's version (none is the new one)
    /// and the difference. Nothing when it would be registered.
    ///
    /// # Errors
    /// As [`Schemas::register`], but for `Conflict`.
    pub async fn differences(&self, name: &str, draft: &Draft) -> Result<Vec<super::Difference>> {
        check_name(name)?;
        let new = draft.read(name)?;
        let Some(document) = self.read(name).await?.0 else { return Ok(Vec::new()) };
        let compatibility = draft.compatibility.unwrap_or(document.compatibility);
        Ok(document.differences(compatibility, &new)?.into_iter().map(|(_, difference)| difference).collect())
    }

    /// One version, or the newest.
    ///
    /// # Errors
    /// `NotFound`: there is no such schema or version. `Unreachable`: the bucket cannot be read.
    pub async fn get(&self, name: &str, version: Option<u32>) -> Result<Schema> {
        check_name(name)?;
        let found = self.read(name).await?.0.and_then(|document| document.version(name, version));
        found.ok_or_else(|| {
            let error = Error::new(ErrorKind::NotFound).with("schema", name);
            match version {
                Some(version) => error.with("version", version),
                None => error,
            }
        })
    }

    /// The names of all schemas, in their order.
    ///
    /// # Errors
    /// `Unreachable`: the bucket cannot be read.
    pub async fn names(&self) -> Result<Vec<String>> {
        let keys = self.store.keys().await.map_err(|e| self.error(e))?;
        let mut names: Vec<String> = keys.try_collect().await.map_err(|e| self.error(e))?;
        names.sort();
        Ok(names)
    }

    /// Changes what new versions owe to older ones; those that are there are not looked at.
    ///
    /// # Errors
    /// As [`Schemas::get`]; `Conflict`: others change it without end.
    pub async fn set_compatibility(&self, name: &str, compatibility: Compatibility) -> Result<()> {
        check_name(name)?;
        for _ in 0..TRIES {
            let (document, revision) = self.read(name).await?;
            let document = document.ok_or_else(|| Error::new(ErrorKind::NotFound).with("schema", name))?;
            if self.write(name, &Document { compatibility, ..document }, revision).await? {
                return Ok(());
            }
        }
        Err(Error::new(ErrorKind::Conflict).with("schema", name).with("why", "others change it without end"))
    }

    async fn read(&self, name: &str) -> Result<(Option<Document>, Option<u64>)> {
        let entry = self.store.entry(name).await.map_err(|e| self.error(e))?;
        let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else { return Ok((None, None)) };
        let document = serde_json::from_slice(&entry.value).map_err(|e| {
            Error::new(ErrorKind::Config)
                .with("schema", name)
                .with("why", format!("its entry in the bucket is not legal: {e}"))
        })?;
        Ok((Some(document), Some(entry.revision)))
    }

    // False: somebody else was first.
    async fn write(&self, name: &str, document: &Document, revision: Option<u64>) -> Result<bool> {
        // Texts and lists always serialise.
        let value = serde_json::to_vec(document).unwrap_or_default();
        if value.len() > self.max_payload {
            return Err(Error::new(ErrorKind::TooLarge).with("schema", name).with("bytes", value.len()));
        }
        match revision {
            Some(revision) => match self.store.update(name, value.into(), revision).await {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
                Err(error) => Err(self.error(error)),
            },
            None => match self.store.create(name, value.into()).await {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(self.error(error)),
            },
        }
    }

    fn error(&self, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::new(ErrorKind::Unreachable).with("schemas", &self.store.name).with("why", &error).because(error)
    }
}

/// A key of the bucket, and a part of the header.
pub(super) fn check_name(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let dots = name.starts_with('.') || name.ends_with('.') || name.contains("..");
    match (1..=200).contains(&name.len()) && name.bytes().all(plain) && !dots {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Config)
            .with("schema", name.escape_debug())
            .with("why", "a schema's name has letters, digits, `.` between others, `_` and `-`, at most 200")),
    }
}
