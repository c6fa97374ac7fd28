//! Which subjects the server takes for a stream, and which of them meet. Pure.

/// Why every server refuses a subject for a stream; none: it may be taken.
pub(super) fn refused(subject: &str) -> Option<&'static str> {
    // What the API is asked waits for no confirm.
    let own = subject == ">" || (subject.starts_with("$JS.") && !subject.starts_with("$JS.EVENT."));
    malformed(subject).or_else(|| own.then_some("it takes in the server's own API"))
}

/// Whether a server of 2.15 refuses it as its own; older ones take more of them.
pub(super) fn is_the_servers(subject: &str) -> bool {
    let event = ["$JS.EVENT.", "$SYS.ACCOUNT."].iter().any(|events| subject.starts_with(events));
    !event && ["$JS.>", "$JSC.>", "$NRG.>", "$SYS.>"].iter().any(|own| meet(subject, own))
}

/// Why it is no subject; none: it is one.
pub(super) fn malformed(subject: &str) -> Option<&'static str> {
    let tokens: Vec<&str> = subject.split('.').collect();
    let last = tokens.len() - 1;
    if subject.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Some("a subject has no spaces");
    }
    if tokens.iter().any(|token| token.is_empty()) {
        return Some("a subject's words are separated by single dots, and there is at least one");
    }
    let early = tokens.iter().enumerate().any(|(i, token)| *token == ">" && i < last);
    early.then_some("`>` is a subject's last word")
}

/// Whether a message may have a subject that both stand for.
pub(crate) fn meet(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return true,
            // `>` stands for at least one word.
            (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

/// The first two subjects of a list that meet.
pub(super) fn pair(subjects: &[String]) -> Option<(&str, &str)> {
    subjects.iter().enumerate().find_map(|(i, one)| {
        let other = subjects.get(i + 1..)?.iter().find(|other| meet(one, other))?;
        Some((one.as_str(), other.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_refuses_is_known_beforehand() {
        for subject in ["orders.>", "a", "a.*.b", "$KV.x.>", "a*.b", "$JSX.a", "$JS.EVENT.ADVISORY.>"] {
            assert_eq!(refused(subject), None, "{subject}");
        }
        for subject in ["", ".", "a..b", "a.", "a b", "a.>.b", ">", "$JS.API.X"] {
            assert!(refused(subject).is_some(), "{subject}");
        }
        for (subject, its) in
            [(">", true), ("*.b", true), ("$SYS.>", true), ("$JS.EVENT.ADVISORY.>", false), ("a.*.b", false)]
        {
            assert_eq!(is_the_servers(subject), its, "{subject}");
        }
    }

    #[test]
    fn subjects_meet_where_a_message_may_have_both() {
        for (a, b, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
            ("a.*", "*.b", true),
            ("a.>", "a", false),
            ("a.>", "*.b.c", true),
            (">", "a", true),
            ("a.*", "a.b.c", false),
        ] {
            assert_eq!((meet(a, b), meet(b, a)), (expected, expected), "{a} {b}");
        }
        assert_eq!(pair(&["a".into(), "b.c".into(), "b.*".into()]), Some(("b.c", "b.*")));
    }
}
