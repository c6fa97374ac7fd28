//! One encrypted message: a JSON Web Encryption whose ciphertext and tag are the payload. Pure.
//!
//! Source: RFC 7516 "JSON Web Encryption", sections 3.1, 5.1 and 5.2; RFC 7518 "JSON Web Algorithms", section 5.3.

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::provider::{DataKey, Wrapped};

/// What the header of an encrypted message says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Envelope<'a> {
    /// The protected header as it stands there.
    protected: &'a str,
    /// Protected header and encrypted key as they stand there: they name a data key.
    pub names: &'a str,
    pub wrapped: Wrapped,
    iv: [u8; IV],
}

/// Bytes of an initialization vector.
pub(super) const IV: usize = 12;
/// Bytes of the header's value that are looked at; a longer one is refused.
const LONGEST: usize = 4096;
const CONTENT_ENCRYPTION: &str = "A256GCM";

#[derive(Serialize, Deserialize)]
struct Protected {
    alg: String,
    enc: String,
    kid: String,
    /// Whatever must be understood is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crit: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zip: Option<serde_json::Value>,
}

/// A data key, ready to use.
pub(super) fn cipher(key: &DataKey) -> Aes256Gcm {
    Aes256Gcm::new(key.bytes().into())
}

/// The first two parts of the header's value, which are the same for all messages of one data key.
pub(super) fn names(wrapped: &Wrapped) -> String {
    let protected = Protected {
        alg: wrapped.algorithm.clone(),
        enc: CONTENT_ENCRYPTION.to_owned(),
        kid: wrapped.key_id.clone(),
        crit: None,
        zip: None,
    };
    // Three strings always serialise.
    let protected = serde_json::to_string(&protected).unwrap_or_default();
    format!("{}.{}", URL_SAFE_NO_PAD.encode(protected), URL_SAFE_NO_PAD.encode(&wrapped.bytes))
}

/// Encrypts: gives the header's value and the payload. `iv` must be used once with one key. None: the payload is longer than the
/// algorithm allows.
pub(super) fn encrypt(
    cipher: &Aes256Gcm,
    names: &str,
    iv: [u8; IV],
    bound: &str,
    payload: &[u8],
) -> Option<(String, Vec<u8>)> {
    let protected = names.split('.').next().unwrap_or_default();
    let aad = associated_data(protected, bound);
    let ciphertext = cipher.encrypt((&iv).into(), Payload { msg: payload, aad: aad.as_bytes() }).ok()?;
    Some((format!("{names}.{}", URL_SAFE_NO_PAD.encode(iv)), ciphertext))
}

impl Envelope<'_> {
    /// Reads the header's value; the error says what is wrong with it.
    pub fn read(header: &str) -> Result<Envelope<'_>, &'static str> {
        if header.len() > LONGEST {
            return Err("the header is too long");
        }
        let mut parts = header.split('.');
        let (Some(protected), Some(key), Some(iv), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("the header has not three parts");
        };
        let decoded = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| "a part of the header is not base64url");
        let said: Protected = serde_json::from_slice(&decoded(protected)?)
            .map_err(|_| "the protected header is not an object with alg, enc and kid")?;
        if said.enc != CONTENT_ENCRYPTION {
            return Err("enc is not A256GCM");
        }
        if said.crit.is_some() || said.zip.is_some() {
            return Err("crit and zip are not understood");
        }
        let iv = decoded(iv)?.try_into().map_err(|_| "the initialization vector has not 12 bytes")?;
        Ok(Envelope {
            protected,
            names: &header[..protected.len() + 1 + key.len()],
            wrapped: Wrapped { algorithm: said.alg, key_id: said.kid, bytes: decoded(key)? },
            iv,
        })
    }

    /// Decrypts. None: something was altered, or is not of this message.
    pub fn decrypt(&self, cipher: &Aes256Gcm, bound: &str, payload: &[u8]) -> Option<Vec<u8>> {
        let aad = associated_data(self.protected, bound);
        cipher.decrypt((&self.iv).into(), Payload { msg: payload, aad: aad.as_bytes() }).ok()
    }
}

fn associated_data(protected: &str, bound: &str) -> String {
    format!("{protected}.{}", URL_SAFE_NO_PAD.encode(bound))
}

/// The name of the key-encryption key that a message's header [`ENCRYPTED`](super::ENCRYPTED) names; none if it is not such a
/// header.
pub fn key_id(header: &str) -> Option<String> {
    Envelope::read(header).ok().map(|envelope| envelope.wrapped.key_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wrapped() -> Wrapped {
        Wrapped { algorithm: "A256KW".into(), key_id: "2026-11".into(), bytes: vec![7; 40] }
    }

    proptest! {
        #[test]
        fn what_was_encrypted_opens_and_shows_nothing_of_the_payload(
            key in any::<[u8; 32]>(), iv in any::<[u8; IV]>(), bound in "\\PC{0,30}",
            payload in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let cipher = cipher(&DataKey::new(key));
            let (header, ciphertext) = encrypt(&cipher, &names(&wrapped()), iv, &bound, &payload).unwrap();
            let envelope = Envelope::read(&header).unwrap();
            prop_assert_eq!(&envelope.wrapped, &wrapped());
            prop_assert_eq!(envelope.names, names(&wrapped()));
            prop_assert_eq!(ciphertext.len(), payload.len() + 16);
            prop_assert!(payload.len() < 4 || !ciphertext.windows(payload.len()).any(|part| part == payload));
            prop_assert_eq!(envelope.decrypt(&cipher, &bound, &ciphertext), Some(payload));
        }

        #[test]
        fn whatever_bit_is_flipped_it_is_refused(
            key in any::<[u8; 32]>(), payload in proptest::collection::vec(any::<u8>(), 0..60), bit in any::<prop::sample::Index>()
        ) {
            let cipher = cipher(&DataKey::new(key));
            let (header, mut ciphertext) = encrypt(&cipher, &names(&wrapped()), [9; IV], "orders.new\no-17\n", &payload).unwrap();
            let bit = bit.index((header.len() + ciphertext.len()) * 8);
            let mut changed = header.clone().into_bytes();
            match bit < changed.len() * 8 {
                true => changed[bit / 8] ^= 1 << (bit % 8),
                false => ciphertext[bit / 8 - header.len()] ^= 1 << (bit % 8),
            }
            let Ok(header) = String::from_utf8(changed) else { return Ok(()) };
            if let Ok(envelope) = Envelope::read(&header) {
                // The wrapped key is what unwrapping looks at.
                let same_key = envelope.wrapped == wrapped();
                prop_assert!(!same_key || envelope.decrypt(&cipher, "orders.new\no-17\n", &ciphertext).is_none());
            }
        }

        #[test]
        fn another_key_or_another_message_is_refused(
            key in any::<[u8; 32]>(), other in any::<[u8; 32]>(), bound in "[a-z]{1,9}", elsewhere in "[a-z]{1,9}"
        ) {
            prop_assume!(key != other && bound != elsewhere);
            let right = cipher(&DataKey::new(key));
            let (header, ciphertext) = encrypt(&right, &names(&wrapped()), [0; IV], &bound, b"17").unwrap();
            let envelope = Envelope::read(&header).unwrap();
            prop_assert_eq!(envelope.decrypt(&right, &elsewhere, &ciphertext), None);
            prop_assert_eq!(envelope.decrypt(&cipher(&DataKey::new(other)), &bound, &ciphertext), None);
        }

        #[test]
        fn no_header_panics(text in "\\PC{0,60}|[A-Za-z0-9_-]{0,20}\\.[A-Za-z0-9_-]{0,20}\\.[A-Za-z0-9_-]{0,20}") {
            let _ = Envelope::read(&text);
        }
    }

    // Made with Python's cryptography 50 and opened by jwcrypto 1.6 as a JSON Web Encryption.
    #[test]
    fn a_message_that_other_software_made_opens_and_is_made_alike() {
        let bytes = |first: u8| std::array::from_fn(|i| first + i as u8);
        let header = "eyJhbGciOiJBMjU2S1ciLCJlbmMiOiJBMjU2R0NNIiwia2lkIjoiMjAyNi0xMSJ9.\
            BPijw8MC07C36UsU3Pha0dppzXQFbteQfTy0n7J3maQQTbBY8pAa2w.QEFCQ0RFRkdISUpL";
        let ciphertext = "b976d2f33413b729680367557798d46731879395bede34601bc4509d";
        let envelope = Envelope::read(header).unwrap();
        let mut key = [0; 32];
        aes_kw::KekAes256::from(bytes(0)).unwrap(&envelope.wrapped.bytes, &mut key).unwrap();
        assert_eq!(key, bytes(32));
        let cipher = cipher(&DataKey::new(key));
        let bound = "orders.new\norder-17\ncontent-type:application/json\n";
        let made = encrypt(
            &cipher,
            &names(&envelope.wrapped),
            std::array::from_fn(|i| 64 + i as u8),
            bound,
            br#"{"order":17}"#,
        );
        let (made_header, made) = made.unwrap();
        assert_eq!(made_header, header);
        assert_eq!(made.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), ciphertext);
        assert_eq!(envelope.decrypt(&cipher, bound, &made).as_deref(), Some(&br#"{"order":17}"#[..]));
    }

    #[test]
    fn a_header_that_is_not_understood_is_refused() {
        let with = |protected: &str| format!("{}.AA.AAAAAAAAAAAAAAAA", URL_SAFE_NO_PAD.encode(protected));
        assert!(Envelope::read(&with(r#"{"alg":"A256KW","enc":"A256GCM","kid":"a"}"#)).is_ok());
        for (protected, why) in [
            (r#"{"alg":"A256KW","enc":"A128GCM","kid":"a"}"#, "enc is not"),
            (r#"{"alg":"A256KW","enc":"A256GCM","kid":"a","zip":"DEF"}"#, "crit and zip"),
            (r#"{"alg":"A256KW","enc":"A256GCM","kid":"a","crit":["x"]}"#, "crit and zip"),
            (r#"{"enc":"A256GCM","kid":"a"}"#, "not an object with"),
        ] {
            assert!(Envelope::read(&with(protected)).unwrap_err().contains(why), "{protected}");
        }
        assert!(Envelope::read("a.b").is_err() && Envelope::read("a.b.c.d").is_err() && Envelope::read("").is_err());
        assert!(Envelope::read(&"a".repeat(LONGEST + 1)).is_err());
        assert_eq!(key_id(&with(r#"{"alg":"A256KW","enc":"A256GCM","kid":"a"}"#)).as_deref(), Some("a"));
    }
}
