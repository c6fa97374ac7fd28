//! The headers exchange: a binding's arguments against a message's headers.
//!
//! Source of the rules: RabbitMQ documentation, "Exchanges", headers exchange, and RabbitMQ 3.10 observed: integers of
//! any width are compared by value, a binding argument without a value asks for presence only, arguments that begin
//! with `x-` count for `all-with-x` and `any-with-x` alone.

use amq_protocol::types::{AMQPValue, FieldTable, ShortString};

use super::arguments::{TypeClass, same_value, type_name};
use super::erlang;
use super::vhost::Target;
use crate::error::{AmqpError, ReplyCode};

/// How the arguments of a binding are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Match {
    All,
    Any,
}

/// One binding of a headers exchange.
#[derive(Debug, Clone)]
pub struct HeadersBinding {
    target: Target,
    combine: Match,
    wanted: Vec<(ShortString, AMQPValue)>,
    /// The arguments as they were given, to find it again.
    arguments: FieldTable,
}

/// The bindings of one headers exchange.
#[derive(Debug, Clone, Default)]
pub struct HeadersTable {
    bindings: Vec<HeadersBinding>,
}

impl HeadersTable {
    /// Adds a binding whose arguments [`check`] has accepted.
    pub fn insert(&mut self, arguments: &FieldTable, target: Target) {
        let (combine, with_x) = read_match(arguments).unwrap_or((Match::All, false));
        let wanted = arguments
            .inner()
            .iter()
            .filter(|(name, _)| match name.as_str() {
                "x-match" => false,
                name => with_x || !name.starts_with("x-"),
            })
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        self.bindings.push(HeadersBinding { target, combine, wanted, arguments: arguments.clone() });
    }

    /// Takes away one binding that was inserted.
    pub fn remove(&mut self, arguments: &FieldTable, target: Target) {
        if let Some(index) = self.bindings.iter().position(|b| b.target == target && b.arguments == *arguments) {
            self.bindings.swap_remove(index);
        }
    }

    /// Calls `found` with every target that wants a message with these headers.
    pub fn route(&self, headers: Option<&FieldTable>, mut found: impl FnMut(Target)) {
        for binding in &self.bindings {
            let is_met = |(name, wanted): &(ShortString, AMQPValue)| {
                headers.and_then(|headers| headers.inner().get(name)).is_some_and(|value| satisfies(wanted, value))
            };
            let matched = match binding.combine {
                Match::All => binding.wanted.iter().all(is_met),
                Match::Any => binding.wanted.iter().any(is_met),
            };
            if matched {
                found(binding.target);
            }
        }
    }
}

/// Whether the arguments of a binding to a headers exchange are valid.
///
/// # Errors
/// `PreconditionFailed` with RabbitMQ's text for an `x-match` that is none.
pub fn check(arguments: &FieldTable) -> Result<(), AmqpError> {
    read_match(arguments).map(|_| ())
}

fn read_match(arguments: &FieldTable) -> Result<(Match, bool), AmqpError> {
    let how = arguments.inner().get("x-match");
    let wrong = |before: &str, after: &str| {
        let value = how.map(|value| erlang::term(value, before.len())).unwrap_or_default();
        AmqpError::new(ReplyCode::PreconditionFailed, format!("{before}{value}{after}"))
    };
    match how {
        None => Ok((Match::All, false)),
        Some(AMQPValue::LongString(text)) => match text.as_bytes() {
            b"all" => Ok((Match::All, false)),
            b"any" => Ok((Match::Any, false)),
            b"all-with-x" => Ok((Match::All, true)),
            b"any-with-x" => Ok((Match::Any, true)),
            _ => Err(wrong("Invalid x-match field value ", "; expected all, any, all-with-x, or any-with-x")),
        },
        Some(other) => {
            let before = format!("Invalid x-match field type {} (value ", type_name(other));
            Err(wrong(&before, "); expected longstr"))
        }
    }
}

fn satisfies(wanted: &AMQPValue, value: &AMQPValue) -> bool {
    matches!(wanted, AMQPValue::Void) || (TypeClass::of(wanted) == TypeClass::of(value) && same_value(wanted, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert((*name).into(), value.clone());
        }
        table
    }

    fn text(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    fn check_route(binding: &[(&str, AMQPValue)], headers: &[(&str, AMQPValue)], expected: bool) {
        let mut bindings = HeadersTable::default();
        bindings.insert(&table(binding), Target::Queue(1));
        let mut found = false;
        bindings.route(Some(&table(headers)), |_| found = true);
        assert_eq!(found, expected, "{binding:?} against {headers:?}");
    }

    #[test]
    fn all_any_and_their_x_forms() {
        let ab = [("a", text("1")), ("b", text("2"))];
        check_route(&ab, &ab, true);
        check_route(&ab, &[("a", text("1"))], false);
        check_route(&[("x-match", text("any")), ("a", text("1")), ("b", text("2"))], &[("b", text("2"))], true);
        check_route(&[("x-match", text("any")), ("a", text("1"))], &[("a", text("2"))], false);
        check_route(&[("x-match", text("all")), ("x-k", text("1")), ("a", text("1"))], &[("a", text("1"))], true);
        check_route(&[("x-match", text("all-with-x")), ("x-k", text("1"))], &[("a", text("1"))], false);
        check_route(&[("x-match", text("any-with-x")), ("x-k", text("1"))], &[("x-k", text("1"))], true);
        check_route(&[("x-match", text("any")), ("x-k", text("1"))], &[("x-k", text("1"))], false);
    }

    #[test]
    fn an_empty_binding_matches_everything_with_all_and_nothing_with_any() {
        check_route(&[], &[("a", text("1"))], true);
        check_route(&[("x-match", text("all"))], &[], true);
        check_route(&[("x-match", text("any"))], &[("a", text("1"))], false);
    }

    #[test]
    fn integers_compare_by_value_and_void_by_presence() {
        check_route(&[("n", AMQPValue::LongInt(5))], &[("n", AMQPValue::ShortShortInt(5))], true);
        check_route(&[("n", AMQPValue::LongInt(5))], &[("n", text("5"))], false);
        check_route(&[("n", AMQPValue::Float(1.5))], &[("n", AMQPValue::Double(1.5))], true);
        check_route(&[("n", AMQPValue::Void)], &[("n", text("anything"))], true);
        check_route(&[("n", AMQPValue::Void)], &[("m", text("anything"))], false);
    }

    #[test]
    fn an_invalid_x_match_is_refused_with_rabbitmqs_text() {
        let error = super::check(&table(&[("x-match", text("foo"))])).expect_err("invalid");
        assert_eq!(
            error.to_string(),
            "PRECONDITION_FAILED - Invalid x-match field value <<\"foo\">>; expected all, any, all-with-x, or any-with-x"
        );
        let error = super::check(&table(&[("x-match", AMQPValue::LongInt(1))])).expect_err("invalid");
        assert_eq!(
            error.to_string(),
            "PRECONDITION_FAILED - Invalid x-match field type signedint (value 1); expected longstr"
        );
    }
}
