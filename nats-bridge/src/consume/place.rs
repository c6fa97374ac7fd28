//! Where a delivered message comes from, read from its ack subject. Pure.

/// What the ack subject of a delivery says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// How often it was delivered, this time included.
    pub delivered: u64,
    pub stream_sequence: u64,
    /// When the stream stored it, nanoseconds since 1970.
    pub stored_at: i128,
    /// Messages that the consumer has still to deliver.
    pub pending: u64,
}

/// Reads `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>[.<token>]`
/// with 9, 11 or 12 words. None: it is not an ack subject.
///
/// Source: NATS ADR-15 "JetStream Subscribe Workflow".
pub(crate) fn read(reply: &str) -> Option<Place> {
    let rest = reply.strip_prefix("$JS.ACK.")?;
    let words = 2 + rest.bytes().filter(|b| *b == b'.').count() + 1;
    // With a domain, two words come before the stream; the twelfth word is a random token at the end.
    let skip = match words {
        9 => 2,
        11 | 12 => 4,
        _ => return None,
    };
    let mut words = rest.split('.').skip(skip);
    let delivered = words.next()?.parse().ok()?;
    let stream_sequence = words.next()?.parse().ok()?;
    let _consumer_sequence = words.next()?;
    let stored_at = i128::from(words.next()?.parse::<i64>().ok()?);
    let pending = words.next()?.parse().ok()?;
    Some(Place { delivered, stream_sequence, stored_at, pending })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ack_subjects_of_all_versions_are_read() {
        let place = Place { delivered: 2, stream_sequence: 17, stored_at: 1700, pending: 4 };
        assert_eq!(read("$JS.ACK.ORDERS.billing.2.17.9.1700.4"), Some(place));
        assert_eq!(read("$JS.ACK.hub.acc.ORDERS.billing.2.17.9.1700.4"), Some(place));
        assert_eq!(read("$JS.ACK._.acc.ORDERS.billing.2.17.9.1700.4.xyz"), Some(place));
        assert_eq!(read("$JS.ACK.ORDERS.billing.2.17.9.1700"), None);
        assert_eq!(read("_INBOX.a.b"), None);
    }

    proptest! {
        #[test]
        fn no_subject_panics(text in "(\\$JS\\.ACK\\.)?[a-z0-9.]{0,60}") {
            let _ = read(&text);
        }
    }
}
