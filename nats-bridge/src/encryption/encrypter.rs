//! Encrypting what is published.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aes_gcm::Aes256Gcm;
use rand::TryRngCore;
use rand::rngs::OsRng;

use super::provider::{DataKey, Keys};
use super::{ENCRYPTED, bound, envelope};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;

/// Encrypts under the current key of [`Keys`], with a data key that serves many messages.
pub(crate) struct Encrypter {
    keys: Keys,
    current: Mutex<Option<Current>>,
}

/// A data key in use.
struct Current {
    cipher: Arc<Aes256Gcm>,
    names: Arc<str>,
    key_id: Arc<str>,
    made: Instant,
    messages: u32,
}

/// A data key serves so many messages, for so long. Initialization vectors are random: with 96 bits, two that are equal among
/// 10 000 are as good as impossible.
const MESSAGES: u32 = 10_000;
const AGE: Duration = Duration::from_secs(300);

impl Encrypter {
    pub fn new(keys: Keys) -> Self {
        Encrypter { keys, current: Mutex::new(None) }
    }

    /// Encrypts the payload, and adds the header that says how.
    ///
    /// Gives up the processor only where the provider is asked, and then nothing has happened.
    pub async fn encrypt(&self, message: &mut Message, id: Option<&str>) -> Result<()> {
        let refused = |error: Error| {
            let error = error.with("subject", &message.subject);
            match id {
                Some(id) => error.with("msg_id", id),
                None => error,
            }
        };
        let Some(known) = id else {
            let why = "an encrypted message needs an id, to which it is bound";
            return Err(refused(Error::new(ErrorKind::InvalidMessage).with("why", why)));
        };
        let (cipher, names) = self.data_key().await.map_err(refused)?;
        let headers = message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let bound = bound::text(&message.subject, known, headers);
        let iv = random().map_err(refused)?;
        let (header, payload) = envelope::encrypt(&cipher, &names, iv, &bound, &message.payload)
            .ok_or_else(|| refused(Error::new(ErrorKind::TooLarge)))?;
        message.payload = payload.into();
        message.headers.push((ENCRYPTED.to_owned(), header));
        Ok(())
    }

    async fn data_key(&self) -> Result<(Arc<Aes256Gcm>, Arc<str>)> {
        let provider = self.keys.provider();
        let wanted = provider.current().map_err(|error| error.into_error("current"))?;
        {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(key) = current.as_mut().filter(|key| key.serves(&wanted)) {
                key.messages += 1;
                return Ok((key.cipher.clone(), key.names.clone()));
            }
        }
        // Two that come here at once make one each, which costs no more than that.
        let data_key = DataKey::new(random()?);
        let wrapped = provider.wrap_key(&data_key).await.map_err(|error| error.into_error(&wanted))?;
        metrics::counter!("natsbridge_encryption_data_keys_total").increment(1);
        let (cipher, names) = (Arc::new(envelope::cipher(&data_key)), Arc::from(envelope::names(&wrapped)));
        let fresh = Current {
            cipher: Arc::clone(&cipher),
            names: Arc::clone(&names),
            key_id: wanted,
            made: Instant::now(),
            messages: 1,
        };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(fresh);
        Ok((cipher, names))
    }
}

impl Current {
    fn serves(&self, wanted: &str) -> bool {
        *self.key_id == *wanted && self.messages < MESSAGES && self.made.elapsed() < AGE
    }
}

// From the operating system: a generator of the process would go on alike in two processes after a fork.
fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = OsRng.try_fill_bytes(&mut bytes);
    filled
        .map_err(|e| Error::new(ErrorKind::Unreachable).with("why", "the system gives no random bytes").because(e))?;
    Ok(bytes)
}
