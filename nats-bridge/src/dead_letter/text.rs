//! Text that goes into headers: bounded, on one line, without credentials. Pure.

/// At most this many bytes of detail are kept.
pub(crate) const DETAIL_MAX: usize = 512;

/// One line of at most [`DETAIL_MAX`] bytes: credentials in URLs removed, control characters and `\` escaped, cut at a
/// character with `...` at the end.
pub(crate) fn detail(text: &str) -> String {
    let mut out = String::new();
    for character in redacted(text).chars() {
        let before = out.len();
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => out.push(c),
        }
        if out.len() > DETAIL_MAX - 3 {
            out.truncate(before);
            out.push_str("...");
            break;
        }
    }
    out
}

// `scheme://user:password@host` becomes `scheme://***@host`.
fn redacted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        let end =
            tail.find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | '<' | '>')).unwrap_or(tail.len());
        let (authority, tail) = tail.split_at(end);
        match authority.rfind('@') {
            Some(at) => {
                out.push_str("***");
                out.push_str(&authority[at..]);
            }
            None => out.push_str(authority),
        }
        rest = tail;
    }
    out.push_str(rest);
    out
}

/// 16 hexadecimal digits that are the same for the same parts.
pub(crate) fn fingerprint(parts: &[&str]) -> String {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn credentials_do_not_reach_a_header() {
        assert_eq!(detail("connect postgres://a:s3cret@db/x failed"), "connect postgres://***@db/x failed");
        assert_eq!(detail("http://h/ and nats://tok@h"), "http://h/ and nats://***@h");
        assert_eq!(detail("a\r\nX: 1\\"), "a\\r\\nX: 1\\\\");
    }

    proptest! {
        #[test]
        fn any_detail_is_one_short_legal_header_value(text in "\\PC{0,600}|[\\x00-\\x1f:/@a]{0,600}") {
            let line = detail(&text);
            prop_assert!(line.len() <= DETAIL_MAX);
            prop_assert!(!line.chars().any(char::is_control));
            prop_assert!(line.parse::<async_nats::HeaderValue>().is_ok());
        }
    }
}
