//! Which versions have to read what which others wrote. Pure.

use serde::{Deserialize, Serialize};

/// What a new version owes to those before it. The names and their meanings are those of Confluent's Schema Registry.
///
/// ```
/// # use nats_bridge::schema::Compatibility;
/// assert_eq!(Compatibility::default(), Compatibility::Backward);
/// assert_eq!(Compatibility::FullTransitive.name(), "FULL_TRANSITIVE");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Compatibility {
    /// Nothing.
    None,
    /// It reads what the one before wrote: consumers are upgraded first.
    #[default]
    Backward,
    /// It reads what each one before wrote: for streams that are replayed.
    BackwardTransitive,
    /// The one before reads what it writes: publishers are upgraded first.
    Forward,
    /// Each one before reads what it writes.
    ForwardTransitive,
    /// Both of the one before.
    Full,
    /// Both of each one before.
    FullTransitive,
}

/// Two versions of which one has to read what the other wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair<T> {
    pub reader: T,
    pub writer: T,
}

impl Compatibility {
    /// Its name, as Confluent's Schema Registry writes it: `BACKWARD`.
    pub fn name(self) -> &'static str {
        match self {
            Compatibility::None => "NONE",
            Compatibility::Backward => "BACKWARD",
            Compatibility::BackwardTransitive => "BACKWARD_TRANSITIVE",
            Compatibility::Forward => "FORWARD",
            Compatibility::ForwardTransitive => "FORWARD_TRANSITIVE",
            Compatibility::Full => "FULL",
            Compatibility::FullTransitive => "FULL_TRANSITIVE",
        }
    }

    /// What has to be looked at before `new` comes behind `before`, the newest first.
    pub(super) fn pairs<T: Copy>(self, new: T, before: &[T]) -> Vec<Pair<T>> {
        use Compatibility::{Backward, BackwardTransitive, Forward, ForwardTransitive, Full, FullTransitive};
        let newest = before.len().saturating_sub(1);
        let looked_at = match self {
            Compatibility::None => &[],
            Backward | Forward | Full => &before[newest..],
            BackwardTransitive | ForwardTransitive | FullTransitive => before,
        };
        let backward = matches!(self, Backward | BackwardTransitive | Full | FullTransitive);
        let forward = matches!(self, Forward | ForwardTransitive | Full | FullTransitive);
        let mut pairs = Vec::new();
        for old in looked_at.iter().rev().copied() {
            pairs.extend(backward.then_some(Pair { reader: new, writer: old }));
            pairs.extend(forward.then_some(Pair { reader: old, writer: new }));
        }
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Confluent, "Schema Evolution and Compatibility", the table of compatibility types; 3 is new.
    #[test]
    fn each_type_looks_at_what_confluent_says() {
        let of = |compatibility: Compatibility| -> Vec<(u32, u32)> {
            compatibility.pairs(3, &[1, 2]).into_iter().map(|pair| (pair.reader, pair.writer)).collect()
        };
        for (compatibility, expected) in [
            (Compatibility::None, &[][..]),
            (Compatibility::Backward, &[(3, 2)]),
            (Compatibility::BackwardTransitive, &[(3, 2), (3, 1)]),
            (Compatibility::Forward, &[(2, 3)]),
            (Compatibility::ForwardTransitive, &[(2, 3), (1, 3)]),
            (Compatibility::Full, &[(3, 2), (2, 3)]),
            (Compatibility::FullTransitive, &[(3, 2), (2, 3), (3, 1), (1, 3)]),
        ] {
            assert_eq!(of(compatibility), expected, "{}", compatibility.name());
            assert_eq!(compatibility.pairs(1, &[]), []);
            let json = serde_json::to_string(&compatibility).unwrap();
            assert_eq!(json, format!("\"{}\"", compatibility.name()));
        }
    }
}
