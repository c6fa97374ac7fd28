//! Key-encryption keys from files or from the environment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aes_kw::KekAes256;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use zeroize::Zeroizing;

use super::provider::{DataKey, KeyError, KeyProvider, Wrapped};
use crate::error::{Error, ErrorKind, Result};

/// Named key-encryption keys of 256 bits. They wrap data keys by AES Key Wrap (RFC 3394, `A256KW`).
#[derive(Debug)]
pub struct Keyring {
    directory: Option<PathBuf>,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    keys: Keyset,
    looked: Instant,
}

/// Keys by name, and which of them new messages go under.
#[derive(Debug, Clone)]
struct Keyset {
    keys: BTreeMap<Arc<str>, DataKey>,
    current: Arc<str>,
}

/// The file that names the current key.
const CURRENT: &str = "current";
/// How old what was read may become before a message that is to be encrypted has it looked at again.
const LOOK_AFTER: Duration = Duration::from_secs(1);
const ALGORITHM: &str = "A256KW";

impl Keyring {
    /// Keys from a directory with one file for each key: its name is the key's (letters, digits, `.`, `_`, `-`), its content 32
    /// bytes in base64 (`openssl rand -base64 32`). Names that begin with a dot are passed over.
    ///
    /// New messages go under the key that the file `current` names; without such a file under the last one by name, so that a
    /// rotation is one file more. A consumer needs a new key before a publisher does: where files do not come everywhere at
    /// once, bring the key first and change `current` later.
    ///
    /// Files are read again when a message names a key that is not known, and at most once a second while messages are
    /// encrypted. What cannot be read then leaves the keys as they were, is logged and counted
    /// (`natsbridge_encryption_keys_unread_total`); so does another key under a name that had one. A file that is gone takes its
    /// key away: what is encrypted under it cannot be decrypted any more.
    ///
    /// # Errors
    /// `Config`: the directory cannot be read, has no key, or one that is not legal; the text names the file, and never its
    /// content.
    pub fn from_directory(path: impl Into<PathBuf>) -> Result<Keyring> {
        let path = path.into();
        let keys = read_directory(&path)?;
        Ok(Keyring { directory: Some(path), held: Mutex::new(Held { keys, looked: Instant::now() }) })
    }

    /// Keys from an environment variable: `name:key` with the key in base64, several joined by commas; new messages go under
    /// the last one. It is read once.
    ///
    /// # Errors
    /// `Config`: the variable is not set, or is not of that form; the text never has a key in it.
    pub fn from_env(variable: &str) -> Result<Keyring> {
        let wrong = |why: String| wrong(format!("env:{variable}"), why);
        let value = std::env::var(variable).map_err(|e| wrong(e.to_string()))?;
        let keys = read_text(&Zeroizing::new(value)).map_err(wrong)?;
        Ok(Keyring { directory: None, held: Mutex::new(Held { keys, looked: Instant::now() }) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_again(&self, held: &mut Held) {
        let Some(directory) = &self.directory else { return };
        held.looked = Instant::now();
        let read = read_directory(directory).and_then(|fresh| held.keys.replaced_by(fresh, directory));
        match read {
            Ok(keys) => {
                if keys.current != held.keys.current {
                    tracing::info!(
                        from = &*held.keys.current,
                        to = &*keys.current,
                        "new messages go under another key"
                    );
                }
                held.keys = keys;
            }
            Err(error) => {
                metrics::counter!("natsbridge_encryption_keys_unread_total").increment(1);
                tracing::error!(%error, "the keys cannot be read again; those that were read before stay in use");
            }
        }
    }
}

impl KeyProvider for Keyring {
    fn current(&self) -> Result<Arc<str>, KeyError> {
        let mut held = self.lock();
        if held.looked.elapsed() >= LOOK_AFTER {
            self.read_again(&mut held);
        }
        Ok(held.keys.current.clone())
    }

    fn wrap_key<'a>(&'a self, data_key: &'a DataKey) -> BoxFuture<'a, Result<Wrapped, KeyError>> {
        let keys = &self.lock().keys;
        let wrapped = match keys.keys.get(&keys.current) {
            Some(kek) => wrap(&keys.current, kek, data_key),
            None => Err(KeyError::Unknown),
        };
        ready(wrapped).boxed()
    }

    fn unwrap_key<'a>(&'a self, wrapped: &'a Wrapped) -> BoxFuture<'a, Result<DataKey, KeyError>> {
        let mut held = self.lock();
        if !held.keys.keys.contains_key(&*wrapped.key_id) {
            self.read_again(&mut held);
        }
        let data_key = match held.keys.keys.get(&*wrapped.key_id) {
            Some(kek) => unwrap(kek, wrapped),
            None => Err(KeyError::Unknown),
        };
        ready(data_key).boxed()
    }
}

fn wrap(key_id: &str, kek: &DataKey, data_key: &DataKey) -> Result<Wrapped, KeyError> {
    let mut bytes = vec![0; 40];
    KekAes256::from(*kek.bytes()).wrap(data_key.bytes(), &mut bytes).map_err(|e| KeyError::Refused(e.to_string()))?;
    Ok(Wrapped { algorithm: ALGORITHM.to_owned(), key_id: key_id.to_owned(), bytes })
}

fn unwrap(kek: &DataKey, wrapped: &Wrapped) -> Result<DataKey, KeyError> {
    if wrapped.algorithm != ALGORITHM {
        return Err(KeyError::Refused("alg is not A256KW".into()));
    }
    let mut bytes = Zeroizing::new([0; 32]);
    KekAes256::from(*kek.bytes())
        .unwrap(&wrapped.bytes, &mut *bytes)
        .map_err(|_| KeyError::Refused("the wrapped key was altered, or the key is another one of that name".into()))?;
    Ok(DataKey::new(*bytes))
}

impl Keyset {
    // A name means one key for ever: another one under it would make what was encrypted before unreadable, unnoticed.
    fn replaced_by(&self, fresh: Keyset, directory: &Path) -> Result<Keyset> {
        let changed = fresh
            .keys
            .iter()
            .find(|(name, key)| self.keys.get(*name).is_some_and(|known| known.bytes() != key.bytes()));
        match changed {
            Some((name, _)) => {
                Err(wrong(directory.display(), format!("{name} is another key now; give it another name")))
            }
            None => Ok(fresh),
        }
    }
}

fn read_directory(path: &Path) -> Result<Keyset> {
    let wrong = |why: String| wrong(path.display(), why);
    let (mut keys, mut current) = (BTreeMap::new(), None);
    for entry in std::fs::read_dir(path).map_err(|e| wrong(e.to_string()))? {
        let entry = entry.map_err(|e| wrong(e.to_string()))?;
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| wrong(format!("{name:?} is not a name")))?;
        // Followed: mounted secrets are links.
        if name.starts_with('.') || std::fs::metadata(entry.path()).is_ok_and(|found| !found.is_file()) {
            continue;
        }
        let content = std::fs::read_to_string(entry.path()).map_err(|e| wrong(format!("{name}: {e}")))?;
        let content = Zeroizing::new(content);
        match name == CURRENT {
            true => current = Some(content.trim().to_owned()),
            false => drop(keys.insert(legal(name).map_err(wrong)?, key(name, &content).map_err(wrong)?)),
        }
    }
    let last = keys.keys().next_back().cloned().ok_or_else(|| wrong("there is no key in it".into()))?;
    let current = match current {
        None => last,
        Some(named) => match keys.get_key_value(&*named) {
            Some((name, _)) => name.clone(),
            None => return Err(wrong(format!("{CURRENT} names {named:?}, which is not there"))),
        },
    };
    Ok(Keyset { keys, current })
}

fn read_text(text: &str) -> Result<Keyset, String> {
    let (mut keys, mut last) = (BTreeMap::new(), None);
    for part in text.split(',').map(str::trim) {
        let (name, content) = part.split_once(':').ok_or("it is name:key, several joined by commas")?;
        let name = legal(name)?;
        if keys.insert(name.clone(), key(&name, content)?).is_some() {
            return Err(format!("{name} is there twice"));
        }
        last = Some(name);
    }
    match last {
        Some(current) => Ok(Keyset { keys, current }),
        None => Err("there is no key in it".into()),
    }
}

fn legal(name: &str) -> Result<Arc<str>, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    match (1..=100).contains(&name.len()) && name.bytes().all(plain) && name != CURRENT {
        true => Ok(name.into()),
        false => {
            Err(format!("{name:?} is not a key's name: letters, digits, `.`, `_`, `-`, at most 100, not {CURRENT}"))
        }
    }
}

fn key(name: &str, content: &str) -> Result<DataKey, String> {
    let decoded = STANDARD.decode(content.trim()).map(Zeroizing::new);
    let bytes = decoded.ok().and_then(|bytes| <[u8; 32]>::try_from(&bytes[..]).ok());
    // What is wrong with it could show a part of it.
    bytes.map(DataKey::new).ok_or_else(|| format!("{name} is not 32 bytes in base64 (openssl rand -base64 32)"))
}

fn wrong(place: impl std::fmt::Display, why: String) -> Error {
    Error::new(ErrorKind::Config).with("keys", place).with("why", why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kept(directory: &Path, name: &str, byte: u8) {
        std::fs::write(directory.join(name), format!("{}\n", STANDARD.encode([byte; 32]))).unwrap();
    }

    fn unwrapped(keyring: &Keyring, wrapped: &Wrapped) -> Result<DataKey, KeyError> {
        keyring.unwrap_key(wrapped).now_or_never().unwrap()
    }

    fn wrapped(keyring: &Keyring, data_key: &DataKey) -> Wrapped {
        keyring.wrap_key(data_key).now_or_never().unwrap().unwrap()
    }

    // Reads again without waiting for a second to pass.
    fn look(keyring: &Keyring) {
        keyring.read_again(&mut keyring.lock());
    }

    #[test]
    fn a_further_file_is_a_rotation_and_older_messages_still_open() {
        let directory = tempfile::tempdir().unwrap();
        kept(directory.path(), "2026-10", 1);
        std::fs::create_dir(directory.path().join("..data")).unwrap();
        let keyring = Keyring::from_directory(directory.path()).unwrap();
        let older = wrapped(&keyring, &DataKey::new([5; 32]));
        kept(directory.path(), "2026-11", 2);
        look(&keyring);
        assert_eq!(&*keyring.current().unwrap(), "2026-11");
        assert_eq!(wrapped(&keyring, &DataKey::new([6; 32])).key_id, "2026-11");
        assert_eq!(unwrapped(&keyring, &older).unwrap().bytes(), &[5; 32]);
        // `current` says otherwise.
        std::fs::write(directory.path().join(CURRENT), "2026-10\n").unwrap();
        look(&keyring);
        assert_eq!(&*keyring.current().unwrap(), "2026-10");
    }

    #[test]
    fn a_key_that_is_not_known_is_looked_for_and_one_that_is_gone_is_unknown() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        kept(ours.path(), "a", 1);
        kept(theirs.path(), "b", 2);
        let keyring = Keyring::from_directory(ours.path()).unwrap();
        let foreign = wrapped(&Keyring::from_directory(theirs.path()).unwrap(), &DataKey::new([7; 32]));
        assert_eq!(unwrapped(&keyring, &foreign).unwrap_err(), KeyError::Unknown);
        kept(ours.path(), "b", 2);
        assert_eq!(unwrapped(&keyring, &foreign).unwrap().bytes(), &[7; 32]);
        std::fs::remove_file(ours.path().join("b")).unwrap();
        look(&keyring);
        assert_eq!(unwrapped(&keyring, &foreign).unwrap_err(), KeyError::Unknown);
    }

    #[test]
    fn what_cannot_be_read_again_leaves_the_keys_as_they_were() {
        let directory = tempfile::tempdir().unwrap();
        kept(directory.path(), "a", 1);
        let keyring = Keyring::from_directory(directory.path()).unwrap();
        for (name, content) in [("b", "not a key"), ("a", &*STANDARD.encode([9; 32])), (CURRENT, "nobody")] {
            std::fs::write(directory.path().join(name), content).unwrap();
            look(&keyring);
            assert_eq!(&*keyring.current().unwrap(), "a");
            assert_eq!(keyring.lock().keys.keys["a"].bytes(), &[1; 32], "{name}");
            std::fs::remove_file(directory.path().join(name)).unwrap();
            kept(directory.path(), "a", 1);
        }
    }

    #[test]
    fn what_is_not_a_key_is_refused_by_name_and_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let refused = || Keyring::from_directory(directory.path()).unwrap_err().to_string();
        assert!(refused().contains("no key"), "{}", refused());
        std::fs::write(directory.path().join("k1"), "c2VjcmV0").unwrap();
        assert!(refused().contains("k1 is not 32 bytes") && !refused().contains("c2VjcmV0"), "{}", refused());
        std::fs::rename(directory.path().join("k1"), directory.path().join("k 1")).unwrap();
        assert!(refused().contains("k 1"), "{}", refused());
        assert!(Keyring::from_directory("/nowhere/at/all").is_err());
        let key = STANDARD.encode([3; 32]);
        let (text, twice) = (format!("a:{key}, b:{key}"), format!("a:{key},a:{key}"));
        assert_eq!(&*read_text(&text).unwrap().current, "b");
        for wrong in ["", "a", "a:b", ":", &*twice] {
            assert!(read_text(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_wrapped_key_that_was_altered_is_refused(
            kek in any::<[u8; 32]>(), data in any::<[u8; 32]>(), bit in 0usize..320, length in 0usize..60
        ) {
            let kek = DataKey::new(kek);
            let wrapped = wrap("a", &kek, &DataKey::new(data)).unwrap();
            let opened = unwrap(&kek, &wrapped).unwrap();
            prop_assert_eq!(opened.bytes(), &data);
            let mut altered = wrapped.clone();
            altered.bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(unwrap(&kek, &altered).is_err());
            let (short, other) = (Wrapped { bytes: vec![1; length], ..wrapped.clone() }, Wrapped { algorithm: "dir".into(), ..wrapped });
            prop_assert!(unwrap(&kek, &short).is_err() && unwrap(&kek, &other).is_err());
        }
    }
}
