//! A user's permission in one vhost.

use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};

use crate::error::{AmqpError, ReplyCode};

/// How many bytes a compiled pattern may take.
const PATTERN_BYTES: usize = 1 << 20;

/// The pattern that every name matches, as RabbitMQ's tools write it.
const EVERYTHING: &str = ".*";

/// The name of the default exchange where permissions are looked up.
const DEFAULT_EXCHANGE: &str = "amq.default";

/// What one may do with something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Right {
    /// Declare and delete it.
    Configure,
    /// Publish to it, and bind it to where messages come from.
    Write,
    /// Consume from it, purge it, and bind to it what messages go to.
    Read,
}

/// What permissions are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Thing {
    /// An exchange.
    Exchange,
    /// A queue.
    Queue,
}

/// The names that a user may configure, write to and read from in one vhost.
#[derive(Debug, Clone, PartialEq)]
pub struct Permission {
    configure: Pattern,
    write: Pattern,
    read: Pattern,
}

#[derive(Debug, Clone)]
struct Pattern {
    text: Arc<str>,
    /// `None` for all names.
    matcher: Option<Regex>,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Pattern {
    fn new(field: &str, text: &str) -> Result<Self, String> {
        let matcher = match text {
            EVERYTHING => None,
            // As RabbitMQ has it: no name at all, since every name contains nothing.
            "" => Some("^$"),
            text => Some(text),
        };
        let compiled = |pattern: &str| {
            // Bytes, as RabbitMQ matches them.
            let built = RegexBuilder::new(pattern).unicode(false).size_limit(PATTERN_BYTES).build();
            built.map_err(|error| {
                let reason = error.to_string().replace('\n', " ");
                format!("{field}: '{text}' is no regular expression, or uses what is not honoured: {reason}")
            })
        };
        Ok(Self { text: text.into(), matcher: matcher.map(compiled).transpose()? })
    }

    fn allows(&self, name: &str) -> bool {
        let name = if name.is_empty() { DEFAULT_EXCHANGE } else { name };
        self.matcher.as_ref().is_none_or(|matcher| matcher.is_match(name.as_bytes()))
    }
}

impl Permission {
    /// A permission of three regular expressions, found anywhere in a name; an empty one allows nothing.
    ///
    /// # Errors
    /// Which of them is none, and why.
    pub fn new(configure: &str, write: &str, read: &str) -> Result<Self, String> {
        Ok(Self {
            configure: Pattern::new("configure", configure)?,
            write: Pattern::new("write", write)?,
            read: Pattern::new("read", read)?,
        })
    }

    /// Everything is allowed.
    pub fn everything() -> Self {
        let all = Pattern { text: EVERYTHING.into(), matcher: None };
        Self { configure: all.clone(), write: all.clone(), read: all }
    }

    /// The regular expressions: configure, write, read.
    pub fn patterns(&self) -> [&str; 3] {
        [&self.configure, &self.write, &self.read].map(|pattern| &*pattern.text)
    }

    /// Whether it allows this; an empty name is the default exchange.
    pub fn allows(&self, right: Right, name: &str) -> bool {
        match right {
            Right::Configure => self.configure.allows(name),
            Right::Write => self.write.allows(name),
            Right::Read => self.read.allows(name),
        }
    }

    /// Refuses what it does not allow, with RabbitMQ's text.
    ///
    /// # Errors
    /// `AccessRefused`.
    pub fn check(&self, right: Right, thing: Thing, name: &str, (user, vhost): (&str, &str)) -> Result<(), AmqpError> {
        if self.allows(right, name) {
            return Ok(());
        }
        Err(refused(thing, name, (user, vhost)))
    }
}

/// RabbitMQ's refusal.
pub(super) fn refused(thing: Thing, name: &str, (user, vhost): (&str, &str)) -> AmqpError {
    let (what, name) = match thing {
        Thing::Exchange if name.is_empty() => ("exchange", DEFAULT_EXCHANGE),
        Thing::Exchange => ("exchange", name),
        Thing::Queue => ("queue", name),
    };
    let text = format!("access to {what} '{name}' in vhost '{vhost}' refused for user '{user}'");
    AmqpError::new(ReplyCode::AccessRefused, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_found_anywhere_in_a_name_and_an_empty_one_nowhere() {
        let permission = Permission::new("^own\\.", "", ".*").expect("valid");
        for (right, name, allowed) in [
            (Right::Configure, "own.q", true),
            (Right::Configure, "not.own.q", false),
            (Right::Write, "own.q", false),
            (Right::Write, "", false),
            (Right::Read, "anything", true),
            (Right::Read, "", true),
        ] {
            assert_eq!(permission.allows(right, name), allowed, "{right:?} {name}");
        }
        let default = Permission::new("", "^amq\\.default$", "").expect("valid");
        assert!(default.allows(Right::Write, ""));
        assert_eq!(permission.patterns(), ["^own\\.", "", ".*"]);
    }

    #[test]
    fn a_pattern_that_cannot_be_honoured_is_named() {
        let refused = Permission::new(".*", "(?=x)", ".*").expect_err("look-ahead");
        assert!(refused.starts_with("write: '(?=x)' is no regular expression"), "{refused}");
    }

    #[test]
    fn what_is_not_allowed_is_refused_in_rabbitmqs_words() {
        let nothing = Permission::new("", "", "").expect("valid");
        let text = |thing, name| nothing.check(Right::Write, thing, name, ("u", "/")).expect_err("refused").text;
        assert_eq!(text(Thing::Queue, "q"), "access to queue 'q' in vhost '/' refused for user 'u'");
        assert_eq!(text(Thing::Exchange, ""), "access to exchange 'amq.default' in vhost '/' refused for user 'u'");
    }
}
