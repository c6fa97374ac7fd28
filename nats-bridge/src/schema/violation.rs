//! What is wrong with a payload. Pure.

use crate::error::{Error, ErrorKind};

/// What does not fit, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// A JSON Pointer into the payload; empty for the whole.
    pub path: String,
    /// The value there.
    pub value: Option<String>,
    /// What is wrong with it, without the value.
    pub why: String,
}

/// Characters of a value that are shown.
const SHOWN: usize = 100;

impl Violation {
    /// The error. Without the value where the payload is encrypted: an error goes to logs, and into the headers of a dead letter.
    pub fn into_error(self, schema: &str, show_value: bool) -> Error {
        let error = Error::new(ErrorKind::Schema)
            .with("schema", schema)
            .with("path", if self.path.is_empty() { "/" } else { &self.path });
        let error = match self.value.filter(|_| show_value) {
            Some(value) => error.with("value", excerpt(&value)),
            None => error,
        };
        error.with("why", self.why)
    }
}

fn excerpt(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}
