//! Checking payloads against what the registry has, with what was read of it kept for a while.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::HashMap;

use super::SCHEMA;
use super::document::Schema;
use super::language::Language;
use super::registry::{Schemas, check_name};
use super::upcast::Upcasters;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;

/// Checks payloads, for a publisher or a consumer.
pub(crate) struct Checker {
    schemas: Schemas,
    known: Mutex<Known>,
}

/// A version that the registry has to be asked for; the newest when none is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    name: String,
    version: Option<u32>,
}

#[derive(Default)]
struct Known {
    versions: HashMap<String, Arc<Compiled>>,
    order: VecDeque<String>,
    newest: HashMap<String, (u32, Instant)>,
}

struct Compiled {
    /// Name and version, as the header has them.
    id: String,
    schema: Schema,
    language: Language,
    read: Instant,
}

/// How many versions are kept.
const VERSIONS: usize = 1024;
/// How long the newest version is taken for the newest.
const NEWEST: Duration = Duration::from_secs(30);
/// How long subjects are taken for what the registry says. A version's text never changes.
const READ: Duration = Duration::from_secs(300);

impl Checker {
    pub fn new(schemas: Schemas) -> Self {
        Checker { schemas, known: Mutex::default() }
    }

    /// Checks a message that is to be published, and adds the header that names its schema.
    pub async fn admit(&self, message: &mut Message, id: Option<&str>) -> Result<()> {
        let admitted = self.look(message).await;
        let schema = admitted.map_err(|error| {
            let error = error.with("subject", &message.subject);
            match id {
                Some(id) => error.with("msg_id", id),
                None => error,
            }
        })?;
        message.headers.push((SCHEMA.to_owned(), schema));
        Ok(())
    }

    async fn look(&self, message: &Message) -> Result<String> {
        if message.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(SCHEMA)) {
            let why = "name the schema apart from the headers: it is checked and put there";
            return Err(Error::new(ErrorKind::InvalidMessage).with("header", SCHEMA).with("why", why));
        }
        let Some(wanted) = &message.schema else {
            return Err(Error::new(ErrorKind::Schema).with("why", "it names no schema"));
        };
        let named = Named::read(wanted)?;
        let compiled = match self.find(&named) {
            Some(compiled) => compiled,
            None => {
                self.fetch(&named).await?;
                // It was read a moment ago.
                self.find(&named).ok_or_else(|| Error::new(ErrorKind::NotFound).with("schema", wanted))?
            }
        };
        // Here the publisher's own payload is shown to the publisher.
        compiled.check(&message.subject, &message.payload, true)?;
        Ok(compiled.id.clone())
    }

    /// Checks a message that was stored; `Err(Ok(named))`: that version has to be [fetched](Checker::fetch) first.
    ///
    /// # Errors
    /// `Schema`: it names none, or does not fit.
    pub fn check(
        &self,
        stated: &[&str],
        subject: &str,
        payload: &[u8],
        show_value: bool,
    ) -> Result<(), Result<Named, Error>> {
        let refused = |why: &'static str| Err(Err(Error::new(ErrorKind::Schema).with("why", why)));
        let header = match stated {
            [header] => header,
            [] => return refused("it names no schema"),
            _ => return refused("it names more than one schema"),
        };
        let named = Named::read(header)
            .map_err(|_| Err(Error::new(ErrorKind::Schema).with("why", "its schema's name is not legal")))?;
        if named.version.is_none() {
            return refused("it names no version of its schema");
        }
        let Some(compiled) = self.find(&named) else { return Err(Ok(named)) };
        compiled.check(subject, payload, show_value).map_err(Err)
    }

    /// A stored message's payload as the version that the steps lead to, and that version; none when it stays what it is. `Err(Ok(named))`: that
    /// version has to be [fetched](Checker::fetch) first.
    ///
    /// # Errors
    /// `Schema`: a step is missing or fails, or what comes out does not fit.
    pub fn upcast(
        &self,
        steps: &Upcasters,
        stated: &str,
        subject: &str,
        payload: &[u8],
        show_value: bool,
    ) -> Result<Option<(Bytes, String)>, Result<Named, Error>> {
        // It was checked, so it is legal.
        let Ok(Named { name, version: Some(version) }) = Named::read(stated) else { return Ok(None) };
        let Some(target) = steps.target(&name, version) else { return Ok(None) };
        let id = format!("{name}/{target}");
        let named = Named { name, version: Some(target) };
        let Some(compiled) = self.find(&named) else { return Err(Ok(named)) };
        let payload = steps.run(&named.name, version, target, payload).map_err(Err)?;
        compiled.check(subject, &payload, show_value).map_err(|error| Err(error.with("upcast_from", version)))?;
        Ok(Some((payload, id)))
    }

    /// Reads a version from the registry.
    ///
    /// # Errors
    /// `NotFound`: there is no such version. `Unreachable`: the registry is away.
    pub async fn fetch(&self, named: &Named) -> Result<()> {
        let schema = match self.schemas.get(&named.name, named.version).await {
            Ok(schema) => schema,
            // What was read before does as long as the registry is away.
            Err(error) if error.is_temporary() && self.keep(named) => return Ok(()),
            Err(error) => return Err(error),
        };
        let language =
            Language::read(schema.format, &schema.schema).map_err(|error| error.with("schema", &schema.name))?;
        let id = format!("{}/{}", schema.name, schema.version);
        let mut known = self.lock();
        if named.version.is_none() {
            known.newest.insert(schema.name.clone(), (schema.version, Instant::now()));
        }
        let compiled = Arc::new(Compiled { id: id.clone(), schema, language, read: Instant::now() });
        if known.versions.insert(id.clone(), compiled).is_none() {
            known.order.push_back(id);
        }
        while known.order.len() > VERSIONS
            && let Some(oldest) = known.order.pop_front()
        {
            if let Some(gone) = known.versions.remove(&oldest) {
                known.newest.remove(&gone.schema.name);
            }
        }
        Ok(())
    }

    fn find(&self, named: &Named) -> Option<Arc<Compiled>> {
        let known = self.lock();
        let version = match named.version {
            Some(version) => version,
            None => known.newest.get(&named.name).filter(|(_, read)| read.elapsed() < NEWEST)?.0,
        };
        known
            .versions
            .get(&format!("{}/{version}", named.name))
            .filter(|compiled| compiled.read.elapsed() < READ)
            .cloned()
    }

    // Takes what is known for fresh again; false: nothing is.
    fn keep(&self, named: &Named) -> bool {
        let mut known = self.lock();
        let now = Instant::now();
        let version = match (named.version, known.newest.get_mut(&named.name)) {
            (Some(version), _) => version,
            (None, Some((version, read))) => {
                *read = now;
                *version
            }
            (None, None) => return false,
        };
        let Some(compiled) = known.versions.get_mut(&format!("{}/{version}", named.name)) else { return false };
        let Compiled { id, schema, .. } = &**compiled;
        let Ok(language) = Language::read(schema.format, &schema.schema) else { return false };
        *compiled = Arc::new(Compiled { id: id.clone(), schema: schema.clone(), language, read: now });
        true
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Compiled {
    fn check(&self, subject: &str, payload: &[u8], show_value: bool) -> Result<()> {
        if !self.schema.may_be_on(subject) {
            return Err(Error::new(ErrorKind::Schema)
                .with("schema", &self.id)
                .with("why", format!("it is for messages on {}", self.schema.subjects.join(", "))));
        }
        self.language.check(payload).map_err(|violation| violation.into_error(&self.id, show_value))
    }
}

impl Named {
    /// Reads `name` or `name/version`.
    fn read(text: &str) -> Result<Named> {
        let (name, version) = match text.split_once('/') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        check_name(name)?;
        let version = match version.map(str::parse) {
            None => None,
            Some(Ok(version)) if version > 0 => Some(version),
            Some(_) => {
                let why = "a version is a number from 1";
                return Err(Error::new(ErrorKind::Config).with("schema", text.escape_debug()).with("why", why));
            }
        };
        Ok(Named { name: name.to_owned(), version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_is_named_with_or_without_a_version() {
        let named = |text: &str| Named::read(text).map(|named| (named.name, named.version)).map_err(|e| e.kind());
        assert_eq!(named("order"), Ok(("order".into(), None)));
        assert_eq!(named("order.created/12"), Ok(("order.created".into(), Some(12))));
        for wrong in ["", "/1", "order/", "order/0", "order/-1", "order/1/2", "a b", "a..b", ".a"] {
            assert_eq!(named(wrong), Err(ErrorKind::Config), "{wrong:?}");
        }
    }
}
