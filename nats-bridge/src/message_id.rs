//! Ids by which a stream recognises a message that it has stored before.

use std::sync::Mutex;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind, Result};

/// Which id a message carries, in the header `Nats-Msg-Id`.
///
/// A stream stores a second message with an id that it has seen inside its duplicate window (2 minutes unless set
/// otherwise) not again. It compares ids only, not subjects: one event published to two subjects of one stream needs
/// two ids. Source: NATS documentation, "Message Deduplication".
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum MessageId {
    /// A fresh one made at publish time, sortable by time: `msg_{ulid}`, or `msg_{region}_{ulid}` with a region
    /// configured. It makes the SDK's own resends safe; it cannot recognise a second `publish` call of the application.
    #[default]
    Generated,
    /// This one; not empty, no control characters.
    Given(String),
    /// None: nothing is recognised. A publish without an answer is then reported as unknown and not sent again.
    None,
}

impl MessageId {
    /// An id made of the fields that identify the event, the same for the same fields: 32 hexadecimal digits.
    ///
    /// It is the first half of SHA-256 over each field's length and bytes, so `["ab", "c"]` and `["a", "bc"]` differ and
    /// nobody can craft a field to collide with somebody else's message.
    pub fn derived<F: AsRef<[u8]>>(fields: impl IntoIterator<Item = F>) -> MessageId {
        let mut hash = Sha256::new();
        for field in fields {
            let field = field.as_ref();
            hash.update((field.len() as u64).to_be_bytes());
            hash.update(field);
        }
        let digest = hash.finalize();
        MessageId::Given(digest[..16].iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Refuses a region that is not letters, digits and `-`.
pub(crate) fn check_region(region: Option<&str>) -> Result<()> {
    match region {
        Some(region) if region.is_empty() || !region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') => {
            Err(Error::new(ErrorKind::Config).with("region", region).with("allowed", "letters, digits, -"))
        }
        _ => Ok(()),
    }
}

/// Makes sortable ids: each is greater than the one before, also within a millisecond.
pub(crate) struct Generator {
    prefix: String,
    ulids: Mutex<ulid::Generator>,
}

impl Generator {
    pub(crate) fn new(region: Option<&str>) -> Self {
        let prefix = match region {
            Some(region) => format!("msg_{region}_"),
            None => "msg_".to_owned(),
        };
        Generator { prefix, ulids: Mutex::new(ulid::Generator::new()) }
    }

    pub(crate) fn generate(&self) -> String {
        let now = SystemTime::now();
        let ulid = {
            let mut ulids = self.ulids.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            // It only fails when 2^80 ids were made in one millisecond.
            ulids.generate_from_datetime(now).unwrap_or_else(|_| ulid::Ulid::from_datetime(now))
        };
        let mut digits = [0; ulid::ULID_LEN];
        let digits = ulid.array_to_str(&mut digits);
        let mut id = String::with_capacity(self.prefix.len() + digits.len());
        id.push_str(&self.prefix);
        id.push_str(digits);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn generated_ids_rise_and_carry_the_region() {
        let generator = Generator::new(Some("eu-1"));
        let ids: Vec<String> = (0..1000).map(|_| generator.generate()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(ids[0].starts_with("msg_eu-1_"));
        assert_eq!(ids[0].len(), "msg_eu-1_".len() + 26);
    }

    #[test]
    fn a_derived_id_stays_the_same_for_ever() {
        assert_eq!(MessageId::derived(["order", "17"]), MessageId::Given("20ee3eaf339af59768a31912a7d504d0".into()));
    }

    proptest! {
        #[test]
        fn ids_are_equal_exactly_when_the_fields_are(
            a in proptest::collection::vec("[ab]{0,2}", 0..4), b in proptest::collection::vec("[ab]{0,2}", 0..4)
        ) {
            prop_assert_eq!(MessageId::derived(&a) == MessageId::derived(&b), a == b);
        }
    }
}
