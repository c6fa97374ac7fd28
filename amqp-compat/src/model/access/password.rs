//! Passwords, as they are kept.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq as _;

/// How a password is hashed: salt, 4 bytes, then the hash of salt and password (RabbitMQ's guide "Passwords").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hashing {
    /// `rabbit_password_hashing_sha256`, RabbitMQ's default.
    #[default]
    Sha256,
    /// `rabbit_password_hashing_sha512`
    Sha512,
}

impl Hashing {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Hashing::Sha256 => "rabbit_password_hashing_sha256",
            Hashing::Sha512 => "rabbit_password_hashing_sha512",
        }
    }

    /// The one of this name.
    ///
    /// # Errors
    /// Which there are.
    pub fn from_name(name: &str) -> Result<Self, String> {
        let known = [Hashing::Sha256, Hashing::Sha512];
        known.into_iter().find(|each| each.name() == name).ok_or_else(|| {
            format!(
                "hashing_algorithm '{name}' is not honoured; {} and {} are",
                Hashing::Sha256.name(),
                Hashing::Sha512.name()
            )
        })
    }

    fn hash(self, salt: &[u8], password: &str) -> Vec<u8> {
        fn of<D: Digest>(salt: &[u8], password: &str) -> Vec<u8> {
            [salt, &D::new().chain_update(salt).chain_update(password).finalize()[..]].concat()
        }
        match self {
            Hashing::Sha256 => of::<Sha256>(salt, password),
            Hashing::Sha512 => of::<Sha512>(salt, password),
        }
    }

    /// The bytes of a hash, salt included.
    fn length(self) -> usize {
        SALT + match self {
            Hashing::Sha256 => 32,
            Hashing::Sha512 => 64,
        }
    }
}

const SALT: usize = 4;

/// What a user logs in with: the hash of its password.
#[derive(Clone, PartialEq)]
pub struct Password {
    hashing: Hashing,
    /// Salt and hash.
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Password {
    /// The hash of a password, with a salt that should be random. `None` for an empty password: nobody logs in with one, as
    /// in RabbitMQ.
    pub fn new(hashing: Hashing, password: &str, salt: [u8; SALT]) -> Option<Self> {
        (!password.is_empty()).then(|| Self { hashing, bytes: hashing.hash(&salt, password) })
    }

    /// A hash as RabbitMQ's definitions have it, in base64.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_hash(hashing: Hashing, text: &str) -> Result<Self, String> {
        let bytes = STANDARD.decode(text).map_err(|error| format!("password_hash is not base64: {error}"))?;
        if bytes.len() != hashing.length() {
            let (name, length, is) = (hashing.name(), hashing.length(), bytes.len());
            return Err(format!("password_hash has {is} bytes, and one of {name} has {length}"));
        }
        Ok(Self { hashing, bytes })
    }

    /// How it is hashed.
    pub fn hashing(&self) -> Hashing {
        self.hashing
    }

    /// The hash as RabbitMQ's definitions have it, in base64.
    pub fn hash(&self) -> String {
        STANDARD.encode(&self.bytes)
    }

    /// Whether it is the one that a client sent.
    pub fn is(&self, sent: &str) -> bool {
        let salt = self.bytes.get(..SALT).unwrap_or_default();
        !sent.is_empty() && bool::from(self.hashing.hash(salt, sent).ct_eq(&self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_of_rabbitmqs_knows_its_password() {
        let hash = "eBUYjg8UChvIIDLLB3wTlYm+gttRS0vI/OXL13Ijr/uuZqXZ";
        let password = Password::from_hash(Hashing::Sha256, hash).expect("a hash");
        assert!(password.is("guest") && !password.is("Guest") && !password.is(""));
        assert_eq!(password.hash(), hash);
    }

    #[test]
    fn a_hash_read_back_is_the_same() {
        for hashing in [Hashing::Sha256, Hashing::Sha512] {
            let password = Password::new(hashing, "secret", [1, 2, 3, 4]).expect("not empty");
            assert!(password.is("secret") && !password.is("secrets") && !password.is(""));
            let named = Hashing::from_name(password.hashing().name()).expect("known");
            assert_eq!(Password::from_hash(named, &password.hash()), Ok(password));
        }
        assert_eq!(Password::new(Hashing::Sha256, "", [0; 4]), None);
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        let refused = |hash| Password::from_hash(Hashing::Sha256, hash).expect_err("refused");
        assert!(refused("no base64!").starts_with("password_hash is not base64"));
        assert_eq!(refused("AAAA"), "password_hash has 3 bytes, and one of rabbit_password_hashing_sha256 has 36");
        assert!(Hashing::from_name("rabbit_password_hashing_md5").is_err());
    }
}
