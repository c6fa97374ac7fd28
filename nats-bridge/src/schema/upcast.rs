//! Up-casters: payloads of older versions, as the newest version that a handler knows.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;

use super::registry::check_name;
use crate::error::{Error, ErrorKind, Result};

/// Steps from a version of a schema to the next one, for streams that are replayed: version 1 becomes 2, and 2 becomes 3.
///
/// A consumer with them ([`ConsumeConfig::upcast`](crate::ConsumeConfig::upcast)) hands out what is older than the last step's outcome as that outcome:
/// each payload is checked against the version that its message names, goes through the steps, and is checked against the version
/// that it has then. What comes out at the wrong version, has no step, fails in one, or does not fit becomes a dead letter with reason
/// `schema`, as it was stored. What is as new as the last step's outcome, or newer, is handed out as it is.
///
/// ```
/// use nats_bridge::ConsumeConfig;
/// use nats_bridge::schema::Upcasters;
/// use serde_json::{Value, json};
///
/// // Version 2 of `order` has cents, and version 3 a currency.
/// let steps = Upcasters::new()
///     .step("order", 1, |payload| {
///         let mut order: Value = serde_json::from_slice(payload).map_err(|e| e.to_string())?;
///         let euros = order["euros"].take().as_i64().ok_or("euros is not a number")?;
///         Ok(json!({"id": order["id"], "cents": euros * 100}).to_string().into())
///     })
///     .step("order", 2, |payload| {
///         let mut order: Value = serde_json::from_slice(payload).map_err(|e| e.to_string())?;
///         order["currency"] = "EUR".into();
///         Ok(order.to_string().into())
///     });
/// let config = ConsumeConfig {
///     schemas: Some("SCHEMAS".into()),
///     upcast: Some(steps),
///     ..ConsumeConfig::new("ORDERS", "billing")
/// };
/// # let _ = config;
/// ```
#[derive(Clone, Default)]
pub struct Upcasters {
    /// By schema and the version that they begin with.
    steps: BTreeMap<(String, u32), Step>,
    /// Steps that were given twice.
    twice: Vec<(String, u32)>,
}

type Step = Arc<dyn Fn(&[u8]) -> std::result::Result<Bytes, String> + Send + Sync>;

impl Upcasters {
    /// No steps.
    pub fn new() -> Upcasters {
        Upcasters::default()
    }

    /// Adds the step from this version of a schema to the next. It is called with a payload that fits its version, possibly more than
    /// once for a message; its error text goes into the dead letter.
    #[must_use]
    pub fn step(
        mut self,
        schema: impl Into<String>,
        from: u32,
        step: impl Fn(&[u8]) -> std::result::Result<Bytes, String> + Send + Sync + 'static,
    ) -> Upcasters {
        let key = (schema.into(), from);
        if self.steps.insert(key.clone(), Arc::new(step)).is_some() {
            self.twice.push(key);
        }
        self
    }

    /// Whether each schema's steps follow one another.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |schema: &str, why: String| Error::setting("upcast", why).with("schema", schema);
        if let Some((schema, from)) = self.twice.first() {
            return Err(wrong(schema, format!("there are two steps from version {from}")));
        }
        let mut before: Option<&(String, u32)> = None;
        for key @ (schema, from) in self.steps.keys() {
            check_name(schema)?;
            if *from == 0 || *from == u32::MAX {
                return Err(wrong(schema, format!("there is no step from version {from}: the first version is 1")));
            }
            if let Some((other, last)) = before
                && other == schema
                && last + 1 != *from
            {
                return Err(wrong(schema, format!("there is no step from version {}", last + 1)));
            }
            before = Some(key);
        }
        Ok(())
    }

    /// The version that this one becomes; none when it stays what it is.
    pub(super) fn target(&self, schema: &str, version: u32) -> Option<u32> {
        let steps = self.steps.range((schema.to_owned(), 0)..=(schema.to_owned(), u32::MAX));
        let target = steps.last().map(|((_, from), _)| from + 1)?;
        (version < target).then_some(target)
    }

    /// Takes a payload from a version up to another.
    pub(super) fn run(&self, schema: &str, from: u32, to: u32, payload: &[u8]) -> Result<Bytes> {
        let mut payload = Bytes::copy_from_slice(payload);
        for version in from..to {
            let failed = |why: String| {
                Error::new(ErrorKind::Schema)
                    .with("schema", format!("{schema}/{version}"))
                    .with("upcast_to", version + 1)
                    .with("why", why)
            };
            let Some(step) = self.steps.get(&(schema.to_owned(), version)) else {
                return Err(failed("there is no step from this version".into()));
            };
            payload = match catch_unwind(AssertUnwindSafe(|| step(&payload))) {
                Ok(Ok(next)) => next,
                Ok(Err(why)) => return Err(failed(why)),
                Err(_) => return Err(failed("the step panicked".into())),
            };
        }
        Ok(payload)
    }
}

impl fmt::Debug for Upcasters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.steps.keys().map(|(schema, from)| format!("{schema}/{from}"))).finish()
    }
}

// The same steps, not steps that do the same.
impl PartialEq for Upcasters {
    fn eq(&self, other: &Upcasters) -> bool {
        let same = |((key, step), (other_key, other))| key == other_key && Arc::ptr_eq(step, other);
        self.steps.len() == other.steps.len() && self.steps.iter().zip(&other.steps).all(same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(letter: u8) -> impl Fn(&[u8]) -> std::result::Result<Bytes, String> + Send + Sync {
        move |payload| match payload {
            b"bad" => Err("it is bad".into()),
            b"worse" => panic!("on purpose"),
            _ => Ok([payload, &[letter]].concat().into()),
        }
    }

    #[test]
    fn steps_are_chained_up_to_the_last_one() {
        let steps =
            Upcasters::new().step("order", 2, append(b'3')).step("order", 3, append(b'4')).step("a", 1, append(b'2'));
        assert!(steps.check().is_ok() && steps == steps.clone() && steps != Upcasters::new());
        assert_eq!(
            [1, 2, 3, 4, 9].map(|version| steps.target("order", version)),
            [Some(4), Some(4), Some(4), None, None]
        );
        assert_eq!((steps.target("other", 1), steps.target("a", 1)), (None, Some(2)));
        assert_eq!(steps.run("order", 2, 4, b"x").unwrap(), "x34");
        for (from, payload, why) in [(1, &b"x"[..], "no step"), (2, b"bad", "it is bad"), (3, b"worse", "panicked")] {
            let error = steps.run("order", from, 4, payload).unwrap_err();
            assert!(error.kind() == ErrorKind::Schema && error.to_string().contains(why), "{error}");
            assert!(error.to_string().contains(&format!("schema=order/{from}")), "{error}");
        }
    }

    #[test]
    fn steps_that_leave_a_gap_are_refused() {
        let wrong = |steps: Upcasters| steps.check().unwrap_err().to_string();
        let step = |steps: Upcasters, from| steps.step("order", from, append(b'x'));
        assert!(wrong(step(step(Upcasters::new(), 1), 3)).contains("no step from version 2"));
        assert!(wrong(step(step(Upcasters::new(), 1), 1)).contains("two steps from version 1"));
        assert!(wrong(step(Upcasters::new(), 0)).contains("version 0"));
        assert!(wrong(Upcasters::new().step("no name", 1, append(b'x'))).contains("no name"));
    }
}
