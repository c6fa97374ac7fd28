//! Decrypting what was stored.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aes_gcm::Aes256Gcm;
use bytes::Bytes;
use foldhash::HashMap;

use super::envelope::{self, Envelope};
use super::provider::{Keys, Wrapped};
use super::{ENCRYPTED, bound};
use crate::error::{Error, ErrorKind, Result};

/// Decrypts with [`Keys`], and keeps the data keys that it was given for a while.
pub(crate) struct Decrypter {
    keys: Keys,
    known: Mutex<Known>,
}

/// A message as it was stored.
pub(crate) struct Parts<'a> {
    pub subject: &'a str,
    /// The id under which it was published first.
    pub id: Option<&'a str>,
    pub headers: Vec<(&'a str, &'a str)>,
    pub payload: &'a Bytes,
}

/// A message that was decrypted.
#[derive(Debug, Clone)]
pub(crate) struct Decrypted {
    pub payload: Bytes,
    /// The key-encryption key; none for one that was not encrypted.
    pub key_id: Option<Arc<str>>,
}

/// A data key that the provider has to be asked for.
#[derive(Debug, Clone)]
pub(crate) struct WrappedKey {
    names: String,
    wrapped: Wrapped,
}

#[derive(Default)]
struct Known {
    keys: HashMap<String, DataKeyInUse>,
    order: VecDeque<String>,
}

#[derive(Clone)]
struct DataKeyInUse {
    cipher: Arc<Aes256Gcm>,
    key_id: Arc<str>,
    since: Instant,
}

/// How many data keys are kept, and for how long: a key that was taken away is not used much longer.
const KEYS: usize = 1024;
const KEPT: Duration = Duration::from_secs(600);

impl Decrypter {
    pub fn new(keys: Keys) -> Self {
        Decrypter { keys, known: Mutex::default() }
    }

    /// Decrypts with a data key that is known here; `Err(Ok(key))`: that key has to be [fetched](Decrypter::fetch) first.
    ///
    /// # Errors
    /// `Decrypt`: it is not encrypted, or was altered, or is not of this message.
    pub fn decrypt(&self, message: &Parts<'_>) -> Result<Decrypted, Result<WrappedKey, Error>> {
        let refused = |why: &'static str| Err(Err(Error::new(ErrorKind::Decrypt).with("why", why)));
        let mut stated = message.headers.iter().filter(|(name, _)| *name == ENCRYPTED).map(|(_, value)| *value);
        let Some(header) = stated.next() else { return refused("it is not encrypted") };
        if stated.next().is_some() {
            return refused("it has two headers that say how it is encrypted");
        }
        let envelope = match Envelope::read(header) {
            Ok(envelope) => envelope,
            Err(why) => return refused(why),
        };
        let Some(id) = message.id else { return refused("it has no id, to which it would be bound") };
        let Some(key) = self.find(envelope.names) else {
            return Err(Ok(WrappedKey { names: envelope.names.to_owned(), wrapped: envelope.wrapped }));
        };
        let bound = bound::text(message.subject, id, message.headers.iter().copied());
        match envelope.decrypt(&key.cipher, &bound, message.payload) {
            Some(payload) => Ok(Decrypted { payload: payload.into(), key_id: Some(key.key_id) }),
            None => Err(Err(Error::new(ErrorKind::Decrypt)
                .with("key", key.key_id)
                .with("why", "payload, subject, id or a content header is not the one that was published"))),
        }
    }

    /// Has a data key unwrapped.
    ///
    /// # Errors
    /// `UnknownKey`: the key-encryption key is not there. `Decrypt`: the wrapped key was altered. `Unreachable`: the provider is
    /// away.
    pub async fn fetch(&self, key: &WrappedKey) -> Result<()> {
        let key_id = &key.wrapped.key_id;
        let data_key = self.keys.provider().unwrap_key(&key.wrapped).await.map_err(|error| error.into_error(key_id))?;
        let fresh = DataKeyInUse {
            cipher: Arc::new(envelope::cipher(&data_key)),
            key_id: key_id.as_str().into(),
            since: Instant::now(),
        };
        let mut known = self.lock();
        if known.keys.insert(key.names.clone(), fresh).is_none() {
            known.order.push_back(key.names.clone());
        }
        while known.order.len() > KEYS
            && let Some(oldest) = known.order.pop_front()
        {
            known.keys.remove(&oldest);
        }
        Ok(())
    }

    /// Decrypts one message, whatever has to be asked for it.
    pub async fn decrypt_now(&self, message: &Parts<'_>) -> Result<Decrypted> {
        loop {
            match self.decrypt(message) {
                Ok(decrypted) => return Ok(decrypted),
                Err(Err(error)) => return Err(error),
                Err(Ok(key)) => self.fetch(&key).await?,
            }
        }
    }

    fn find(&self, names: &str) -> Option<DataKeyInUse> {
        self.lock().keys.get(names).filter(|key| key.since.elapsed() < KEPT).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
