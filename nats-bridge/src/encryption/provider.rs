//! Where key-encryption keys come from.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use zeroize::Zeroizing;

use super::keyring::Keyring;
use crate::error::{Error, ErrorKind, Result};

/// Wraps and unwraps data keys under key-encryption keys, which have names.
///
/// A provider may be remote: what it unwraps is kept for 10 minutes, and it is asked to wrap once in 10 000 messages or 5
/// minutes.
pub trait KeyProvider: Send + Sync + 'static {
    /// The name of the key that new messages go under, as far as it is known here. Asked for each message: it must be
    /// quick.
    ///
    /// # Errors
    /// See [`KeyError`].
    fn current(&self) -> Result<Arc<str>, KeyError>;

    /// Wraps a data key under the current key.
    fn wrap_key<'a>(&'a self, data_key: &'a DataKey) -> BoxFuture<'a, Result<Wrapped, KeyError>>;

    /// Unwraps what [`wrap_key`](KeyProvider::wrap_key) wrapped, now or earlier, here or elsewhere. What came with a message may
    /// have been made up by anybody: it must be authenticated.
    fn unwrap_key<'a>(&'a self, wrapped: &'a Wrapped) -> BoxFuture<'a, Result<DataKey, KeyError>>;
}

/// A key for payloads: 256 bits. Overwritten when it is dropped, and not shown.
#[derive(Clone)]
pub struct DataKey(Zeroizing<[u8; 32]>);

/// A data key under a key-encryption key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapped {
    /// How it was wrapped, as JSON Web Algorithms (RFC 7518) name it, such as `A256KW`.
    pub algorithm: String,
    /// The key-encryption key's name.
    pub key_id: String,
    /// The wrapped key.
    pub bytes: Vec<u8>,
}

/// Why a provider did not do as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyError {
    /// It has no such key.
    Unknown,
    /// It cannot be asked at present, for this reason; a consumer waits until it can.
    Unavailable(String),
    /// It refuses the wrapped key, for this reason: altered, or of an algorithm that it does not know.
    Refused(String),
}

/// A [`KeyProvider`]. Clones share it.
#[derive(Clone)]
pub struct Keys(Arc<dyn KeyProvider>);

impl DataKey {
    /// A key with these bytes.
    pub fn new(bytes: [u8; 32]) -> DataKey {
        DataKey(Zeroizing::new(bytes))
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(***)")
    }
}

impl Keys {
    /// Keys of this provider.
    pub fn new(provider: impl KeyProvider) -> Keys {
        Keys(Arc::new(provider))
    }

    /// Keys from where `source` says: `env:NAME` is [`Keyring::from_env`], all else the path of [`Keyring::from_directory`].
    ///
    /// # Errors
    /// `Config`: as those say.
    pub fn from_source(source: &str) -> Result<Keys> {
        match source.strip_prefix("env:") {
            Some(name) => Keyring::from_env(name).map(Keys::from),
            None => Keyring::from_directory(source).map(Keys::from),
        }
    }

    pub(super) fn provider(&self) -> &dyn KeyProvider {
        &*self.0
    }
}

impl From<Keyring> for Keys {
    fn from(keyring: Keyring) -> Self {
        Keys::new(keyring)
    }
}

impl PartialEq for Keys {
    /// Whether they are the same provider.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.current() {
            Ok(current) => write!(f, "Keys(current {current:?})"),
            Err(error) => write!(f, "Keys({error:?})"),
        }
    }
}

impl KeyError {
    pub(super) fn into_error(self, key_id: &str) -> Error {
        match self {
            KeyError::Unknown => Error::new(ErrorKind::UnknownKey).with("key", key_id),
            KeyError::Unavailable(why) => Error::new(ErrorKind::Unreachable).with("key", key_id).with("why", why),
            KeyError::Refused(why) => Error::new(ErrorKind::Decrypt).with("key", key_id).with("why", why),
        }
    }
}
