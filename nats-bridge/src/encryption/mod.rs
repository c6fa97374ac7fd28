//! Envelope encryption: payloads are encrypted before they leave the process, and decrypted where they are consumed.
//!
//! - [`Keys`]: where keys come from; given to [`PublishConfig::encrypt`](crate::PublishConfig::encrypt) and
//!   [`ConsumeConfig::decrypt`](crate::ConsumeConfig::decrypt).
//! - [`Keyring`]: keys from a directory of files, read again when it changes, or from an environment variable.
//! - [`KeyProvider`]: keys from elsewhere, such as a key management service.
//!
//! Each payload is encrypted with AES-256-GCM under a data key, which is fresh every 10 000 messages or 5 minutes and is
//! itself encrypted ("wrapped") by a named key-encryption key. Rotation is a further key-encryption key: new messages go under
//! the new one, and older ones open as long as theirs is there. Ids are given before encryption, so that duplicates are
//! recognised as before.
//!
//! **What stays readable:** subject, id, all headers, and the size of the payload. Headers whose names begin with `Content-`,
//! and `Schema`, are bound to the payload with the subject and the id: none of them can be changed, nor the payload put into
//! another message, without its being refused. Other headers can be changed by whoever may write to the stream. A stream that
//! changes subjects (a subject transform) makes its messages unreadable.
//!
//! **What cannot be decrypted** is never handed out and never acked: it becomes a dead letter with reason `decrypt`, as it was
//! stored, at once; redriven when the key is there, it opens. While a provider is away the consumer waits
//! ([`ConsumerState::Paused`](crate::ConsumerState::Paused)).
//!
//! **Format:** JSON Web Encryption (RFC 7516). The header [`ENCRYPTED`] has the first three parts of the compact form (protected
//! header, encrypted key, initialization vector); the payload is the ciphertext and the 16 bytes of the tag; `aad` is
//! subject, id and bound headers, each on a line. Any JOSE library opens it.
//!
//! ```no_run
//! # async fn example() -> nats_bridge::Result<()> {
//! use nats_bridge::encryption::{Keyring, Keys};
//! use nats_bridge::{Bridge, Config, ConsumeConfig, Message, PublishConfig};
//!
//! // One file for each key, named as the key: openssl rand -base64 32 > /run/secrets/keys/2026-11
//! let keys = Keys::from(Keyring::from_directory("/run/secrets/keys")?);
//! let publish = PublishConfig { encrypt: Some(keys.clone()), ..PublishConfig::default() };
//! let bridge = Bridge::connect_with(Config { publish, ..Config::default() }).await?;
//! bridge.publish(Message::new("orders.new", "17").id("order-17")).await?;
//!
//! let config = ConsumeConfig { decrypt: Some(keys), ..ConsumeConfig::new("ORDERS", "billing") };
//! let mut consumer = bridge.consume(config).await?;
//! while let Some(delivery) = consumer.next().await? {
//!     println!("{:?} under {:?}", delivery.payload(), delivery.key_id());
//!     delivery.ack().await?;
//! }
//! # Ok(())
//! # }
//! ```

mod bound;
mod decrypter;
mod encrypter;
mod envelope;
mod keyring;
mod provider;

pub(crate) use decrypter::{Decrypted, Decrypter, Parts, WrappedKey};
pub(crate) use encrypter::Encrypter;
pub use envelope::key_id;
pub use keyring::Keyring;
pub use provider::{DataKey, KeyError, KeyProvider, Keys, Wrapped};

/// The header of an encrypted message: protected header, encrypted key and initialization vector of a JSON Web Encryption.
pub const ENCRYPTED: &str = "Encrypted";
