//! AMQP names as NATS subject tokens, stream names and key-value keys.
//!
//! A token keeps `[A-Za-z0-9_-]` and writes every other byte as `=` and two upper-case hexadecimal digits, so that it
//! is readable for ordinary names, legal everywhere (ADR-6 `limited-term`), and decodes to exactly one name.
//! Percent-encoding is avoided on purpose: nats-server mishandled `%` in consumer names until mid-2026 (#8301).

use std::fmt::Write as _;

use xxhash_rust::xxh3::xxh3_128;

/// The longest stream name made from a readable token, in bytes; longer ones are hashed. NATS allows 255, and the name
/// is part of API subjects and of directory names.
pub const MAX_STREAM_NAME: usize = 200;

/// The prefix of every stream that holds an AMQP queue.
pub const STREAM_PREFIX: &str = "AQ_";

/// The prefix of the subject of every AMQP queue.
pub const SUBJECT_PREFIX: &str = "aq";

/// The token of a whole name: one subject token, `=_` for the empty name, `.` escaped.
pub fn token(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    push_token(&mut out, name.as_bytes());
    out
}

/// The name that [`token`] was given, or `None` for what is not a token or not UTF-8.
pub fn untoken(token: &str) -> Option<String> {
    String::from_utf8(untoken_bytes(token)?).ok()
}

/// A routing key as subject tokens: words stay words, `=-` is the key without words, `=_` the empty word.
///
/// The longest result for AMQP's 255 bytes is 767 bytes.
pub fn routing_key(key: &str) -> String {
    if key.is_empty() {
        return "=-".to_owned();
    }
    let mut out = String::with_capacity(key.len());
    for (index, word) in key.split('.').enumerate() {
        if index > 0 {
            out.push('.');
        }
        push_token(&mut out, word.as_bytes());
    }
    out
}

/// The routing key that [`routing_key`] was given, or `None` for what is none.
pub fn from_routing_key(tokens: &str) -> Option<String> {
    if tokens == "=-" {
        return Some(String::new());
    }
    let mut out = Vec::with_capacity(tokens.len());
    for (index, word) in tokens.split('.').enumerate() {
        if index > 0 {
            out.push(b'.');
        }
        out.extend(untoken_bytes(word)?);
    }
    String::from_utf8(out).ok()
}

/// A vhost's token: as [`token`], with `_` escaped as well, so that it ends at the first `_` of a stream name.
pub fn vhost_token(vhost: &str) -> String {
    token(vhost).replace('_', "=5F").replace("==5F", "=_")
}

/// The stream of a queue: `AQ_<vhost>_<queue>`, or with a 128-bit hash of the queue's name where that is too long.
///
/// The hash can collide; the backend compares the names in the stream's metadata before it uses the stream.
pub fn stream(vhost: &str, queue: &str) -> String {
    let vhost = short(&vhost_token(vhost), MAX_STREAM_NAME / 2);
    let room = MAX_STREAM_NAME - STREAM_PREFIX.len() - vhost.len() - 1;
    format!("{STREAM_PREFIX}{vhost}_{}", short(&token(queue), room))
}

/// The stream of a queue whose name had another stream a moment ago: [`stream`] and `=g` with a number.
///
/// nats-server 2.10.25 to 2.15.1 delete a stream's files after they have answered the request: a stream that is made
/// under the same name at once may come up with the old messages.
pub fn next_stream(vhost: &str, queue: &str, number: u64) -> String {
    format!("{}=g{number:x}", stream(vhost, queue))
}

/// The subject of a queue: `aq.<vhost>.<queue>`. A native NATS client may publish to it.
pub fn subject(vhost: &str, queue: &str) -> String {
    format!("{SUBJECT_PREFIX}.{}.{}", vhost_token(vhost), token(queue))
}

/// The key-value bucket of a vhost's topology.
pub fn topology_bucket(vhost: &str) -> String {
    // A bucket's name has no `=`.
    format!("AMQP_TOPO_{}", short(&token(vhost).replace('=', "-x"), 128).replace('=', "-x"))
}

/// A token of at most `room` bytes: the token itself, or `=h` and 32 hexadecimal digits of its hash.
///
/// `=h` is no escape (its second character is not an upper-case digit), so a hashed name cannot equal a plain one.
pub fn short(token: &str, room: usize) -> String {
    if token.len() <= room {
        return token.to_owned();
    }
    format!("=h{:032x}", xxh3_128(token.as_bytes()))
}

fn push_token(out: &mut String, word: &[u8]) {
    if word.is_empty() {
        out.push_str("=_");
        return;
    }
    for &byte in word {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' {
            out.push(char::from(byte));
        } else {
            // Writing to a `String` cannot fail.
            let _ = write!(out, "={byte:02X}");
        }
    }
}

fn untoken_bytes(token: &str) -> Option<Vec<u8>> {
    if token == "=_" {
        return Some(Vec::new());
    }
    if token.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(token.len());
    let mut bytes = token.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'=' => out.push(upper_hex(bytes.next()?)? << 4 | upper_hex(bytes.next()?)?),
            b'_' | b'-' => out.push(byte),
            _ if byte.is_ascii_alphanumeric() => out.push(byte),
            _ => return None,
        }
    }
    Some(out)
}

fn upper_hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_names_stay_readable() {
        assert_eq!(token("orders-eu_1"), "orders-eu_1");
        assert_eq!(token("a b.c"), "a=20b=2Ec");
        assert_eq!(token(""), "=_");
        assert_eq!(routing_key("orders.new.eu"), "orders.new.eu");
        assert_eq!(routing_key(""), "=-");
        assert_eq!(routing_key("a..*.#"), "a.=_.=2A.=23");
        assert_eq!(subject("/", "orders"), "aq.=2F.orders");
        assert_eq!(stream("/", "orders"), "AQ_=2F_orders");
        assert_eq!(topology_bucket("/"), "AMQP_TOPO_-x2F");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for bad in ["", "a.b", "=", "=2", "=2f", "=zz", "a b", ">", "*"] {
            assert_eq!(untoken(bad), None, "{bad}");
        }
        assert_eq!(from_routing_key("a..b"), None);
    }

    #[test]
    fn two_vhosts_never_share_a_stream() {
        assert_ne!(stream("a_b", "c"), stream("a", "b_c"));
        assert_ne!(stream("a", "_b"), stream("a_", "b"));
        assert_ne!(stream("", "b"), stream("_", "b"));
        assert_ne!(next_stream("a", "b", 1), stream("a", "b=g1"));
    }

    #[test]
    fn a_long_name_is_hashed_and_differs_from_every_plain_one() {
        let long = stream("/", &"ü".repeat(127));
        assert!(long.len() <= MAX_STREAM_NAME, "{long}");
        assert!(long.starts_with("AQ_=2F_=h"));
        assert_ne!(long, stream("/", &"ö".repeat(127)));
        assert_eq!(untoken(long.trim_start_matches("AQ_=2F_")), None);
    }

    proptest! {
        #[test]
        fn every_name_comes_back(name in "\\PC{0,80}") {
            prop_assert_eq!(untoken(&token(&name)), Some(name));
        }

        #[test]
        fn every_key_comes_back_and_is_a_legal_subject(key in "[a-c.*#> \\r\\n=_üA-F0-9-]{0,80}") {
            let tokens = routing_key(&key);
            prop_assert!(tokens.split('.').all(|t| !t.is_empty()));
            prop_assert!(tokens.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-=".contains(&b)), "{}", tokens);
            prop_assert_eq!(from_routing_key(&tokens), Some(key));
        }

        #[test]
        fn different_queues_have_different_streams(a in "\\PC{0,100}", b in "\\PC{0,100}") {
            prop_assert_eq!(a == b, stream("/", &a) == stream("/", &b));
            prop_assert!(stream(&a, &b).len() <= MAX_STREAM_NAME);
        }

        #[test]
        fn vhosts_come_back(vhost in "\\PC{0,40}") {
            prop_assert_eq!(untoken(&vhost_token(&vhost)), Some(vhost));
        }
    }
}
