//! What a request for a change says.

use serde_json::{Map, Value};

use crate::control_api::{Backfill, Change, Failover, Refused, Rehearse, Target, Weight};
use crate::ownership::Side;

/// The longest `by` and `reason`, in bytes.
const LONGEST: usize = 1024;
/// The longest that a rehearsal may stay with RabbitMQ, in seconds.
const LONGEST_STAY: u64 = 86_400;
/// The most patterns of queue names.
const MOST_NAMES: usize = 1_000;

/// Reads the body of a request; an empty one is an empty object. `target` is `None` for `/weight`, whose target is the
/// field `percent`.
///
/// # Errors
/// `Invalid`, naming the field at fault.
pub(super) fn change(target: Option<Target>, body: &[u8]) -> Result<Change, Refused> {
    let mut fields = object(body)?;
    let to = match target {
        Some(target) => target,
        None => Target::Weight(percent(fields.remove("percent"))?),
    };
    let force = if target.is_none() { flag("force", fields.remove("force"))? } else { false };
    let unrehearsed = if target.is_none() { flag("unrehearsed", fields.remove("unrehearsed"))? } else { false };
    let by = text(&mut fields, "by")?.filter(|by| !by.is_empty()).unwrap_or_else(|| "http".to_owned());
    let reason = text(&mut fields, "reason")?.unwrap_or_default();
    match fields.keys().next() {
        None => Ok(Change { to, by, reason, force, unrehearsed, from: String::new() }),
        Some(field) => {
            let known = if target.is_none() { "percent, force, unrehearsed, by and reason" } else { "by and reason" };
            Err(Refused::invalid(field, format!("the field `{field}` is not known"), format!("the fields are {known}")))
        }
    }
}

/// Reads the body of a request for a backfill.
///
/// # Errors
/// `Invalid`, naming the field at fault.
pub(super) fn backfill(body: &[u8]) -> Result<Backfill, Refused> {
    let mut fields = object(body)?;
    let fix = "send an array of names, such as {\"queues\": [\"orders*\"]}";
    let queues = match fields.remove("queues") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(names)) if names.len() <= MOST_NAMES => {
            let name = |name: Value| match name {
                Value::String(name) => Ok(name),
                other => Err(Refused::invalid("queues", format!("`queues` has {other}"), fix)),
            };
            names.into_iter().map(name).collect::<Result<_, _>>()?
        }
        Some(_) => return Err(Refused::invalid("queues", "`queues` is not an array of at most 1000 names", fix)),
    };
    let dry_run = flag("dry_run", fields.remove("dry_run"))?;
    let by = text(&mut fields, "by")?.filter(|by| !by.is_empty()).unwrap_or_else(|| "http".to_owned());
    let reason = text(&mut fields, "reason")?.unwrap_or_default();
    match fields.keys().next() {
        None => Ok(Backfill { queues, dry_run, by, reason, from: String::new() }),
        Some(field) => {
            let known = "the fields are queues, dry_run, by and reason";
            Err(Refused::invalid(field, format!("the field `{field}` is not known"), known))
        }
    }
}

/// Reads the body of a request for a rehearsal.
///
/// # Errors
/// `Invalid`, naming the field at fault.
pub(super) fn rehearse(body: &[u8]) -> Result<Rehearse, Refused> {
    let mut fields = object(body)?;
    let stay_s = match fields.remove("stay_s") {
        None | Some(Value::Null) => 5,
        Some(value) => value.as_u64().filter(|stay| *stay <= LONGEST_STAY).ok_or_else(|| {
            Refused::invalid("stay_s", format!("`stay_s` is {value}"), "send whole seconds, 86400 at most")
        })?,
    };
    let by = text(&mut fields, "by")?.filter(|by| !by.is_empty()).unwrap_or_else(|| "http".to_owned());
    let reason = text(&mut fields, "reason")?.unwrap_or_default();
    match fields.keys().next() {
        None => Ok(Rehearse { stay_ms: stay_s * 1_000, by, reason, from: String::new() }),
        Some(field) => {
            let known = "the fields are stay_s, by and reason";
            Err(Refused::invalid(field, format!("the field `{field}` is not known"), known))
        }
    }
}

/// Reads the body of a request for a failover.
///
/// # Errors
/// `Invalid`, naming the field at fault.
pub(super) fn failover(body: &[u8]) -> Result<Failover, Refused> {
    let mut fields = object(body)?;
    let fix = "send the broker that is lost for good, such as {\"lost\": \"nats\"}";
    let lost = match fields.remove("lost") {
        None => return Err(Refused::invalid("lost", "the field `lost` is missing", fix)),
        Some(Value::String(side)) if side == "nats" => Side::Nats,
        Some(Value::String(side)) if side == "rabbit" => Side::Rabbit,
        Some(other) => {
            return Err(Refused::invalid("lost", format!("`lost` is {other}: nats or rabbit is expected"), fix));
        }
    };
    let execute = flag("execute", fields.remove("execute"))?;
    let force = flag("force", fields.remove("force"))?;
    let by = text(&mut fields, "by")?.filter(|by| !by.is_empty()).unwrap_or_else(|| "http".to_owned());
    let reason = text(&mut fields, "reason")?.unwrap_or_default();
    match fields.keys().next() {
        None => Ok(Failover { lost, execute, force, by, reason, from: String::new() }),
        Some(field) => {
            let known = "the fields are lost, execute, force, by and reason";
            Err(Refused::invalid(field, format!("the field `{field}` is not known"), known))
        }
    }
}

fn object(body: &[u8]) -> Result<Map<String, Value>, Refused> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Refused::invalid(
            "body",
            "the body is not a JSON object",
            "send an object, such as {\"reason\": \"...\"}",
        )),
        Err(error) => Err(Refused::invalid("body", format!("the body is not JSON: {error}"), "send a JSON object")),
    }
}

fn percent(value: Option<Value>) -> Result<Weight, Refused> {
    let fix = "send a number from 0 to 100 with at most two decimals, such as {\"percent\": 5}";
    let Some(value) = value else { return Err(Refused::invalid("percent", "the field `percent` is missing", fix)) };
    match value.as_f64().and_then(Weight::from_percent) {
        Some(weight) => Ok(weight),
        None => Err(Refused::invalid("percent", format!("`percent` is {value}"), fix)),
    }
}

fn flag(name: &str, value: Option<Value>) -> Result<bool, Refused> {
    match value {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(flag),
        Some(other) => Err(Refused::invalid(name, format!("`{name}` is {other}"), "send true or false")),
    }
}

fn text(fields: &mut Map<String, Value>, name: &str) -> Result<Option<String>, Refused> {
    match fields.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.len() <= LONGEST => Ok(Some(text)),
        Some(Value::String(_)) => {
            Err(Refused::invalid(name, format!("`{name}` is longer than {LONGEST} bytes"), "shorten it"))
        }
        Some(other) => Err(Refused::invalid(name, format!("`{name}` is {other}"), "send a text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_api::RefusedCode;

    #[test]
    fn an_empty_body_is_fine_where_nothing_has_to_be_said() {
        for body in [&b""[..], b" \n", b"{}", br#"{"by":null}"#] {
            let change = change(Some(Target::Rollback), body).expect("valid");
            assert_eq!((change.to, change.by.as_str(), change.reason.as_str()), (Target::Rollback, "http", ""));
        }
        let said =
            change(None, br#"{"percent": 0.25, "by": "me", "reason": "why", "force": true, "unrehearsed": true}"#)
                .expect("valid");
        let weight = Weight::from_buckets(25).expect("valid");
        let (by, reason, from) = ("me".into(), "why".into(), String::new());
        assert_eq!(said, Change { to: Target::Weight(weight), by, reason, force: true, unrehearsed: true, from });
    }

    #[test]
    fn a_failover_names_the_broker_and_changes_nothing_unless_told_to() {
        let asked = failover(br#"{"lost":"nats"}"#).expect("valid");
        assert_eq!((asked.lost, asked.execute, asked.force), (Side::Nats, false, false));
        for (body, field) in [
            ("", "lost"),
            (r#"{"lost":"kafka"}"#, "lost"),
            (r#"{"lost":"nats","execute":"yes"}"#, "execute"),
            (r#"{"lost":"rabbit","percent":5}"#, "percent"),
        ] {
            let refused = failover(body.as_bytes()).expect_err(body);
            assert_eq!((refused.code, refused.field.as_deref()), (RefusedCode::Invalid, Some(field)), "{body}");
        }
    }

    #[test]
    fn a_backfill_is_of_all_queues_unless_some_are_named() {
        let all = backfill(b"").expect("valid");
        assert_eq!((all.queues.len(), all.dry_run, all.by.as_str()), (0, false, "http"));
        assert_eq!(backfill(br#"{"queues":["a*"]}"#).expect("valid").queues, ["a*"]);
        for (body, field) in [
            (r#"{"queues":"a"}"#, "queues"),
            (r#"{"queues":[1]}"#, "queues"),
            (r#"{"dry_run":1}"#, "dry_run"),
            (r#"{"queue":"a"}"#, "queue"),
        ] {
            let refused = backfill(body.as_bytes()).expect_err(body);
            assert_eq!((refused.code, refused.field.as_deref()), (RefusedCode::Invalid, Some(field)), "{body}");
        }
    }

    #[test]
    fn a_rehearsal_stays_for_whole_seconds() {
        assert_eq!(rehearse(b"").expect("valid").stay_ms, 5_000);
        for body in [r#"{"stay_s":-1}"#, r#"{"stay_s":1.5}"#, r#"{"stay_s":86401}"#, r#"{"stay_s":"5s"}"#] {
            assert_eq!(rehearse(body.as_bytes()).expect_err(body).field.as_deref(), Some("stay_s"), "{body}");
        }
    }

    #[test]
    fn bad_input_is_refused_and_the_field_is_named() {
        let long = format!(r#"{{"reason":"{}"}}"#, "x".repeat(LONGEST + 1));
        for (target, body, field) in [
            (None, "", "percent"),
            (None, r#"{"percent":101}"#, "percent"),
            (None, r#"{"percent":-1}"#, "percent"),
            (None, r#"{"percent":0.001}"#, "percent"),
            (None, r#"{"percent":"5"}"#, "percent"),
            (None, r#"{"percent":5,"weight":5}"#, "weight"),
            (None, r#"{"percent":5,"force":"yes"}"#, "force"),
            (Some(Target::Shadow), r#"{"force":true}"#, "force"),
            (Some(Target::Rollback), r#"{"unrehearsed":true}"#, "unrehearsed"),
            (Some(Target::Shadow), r#"{"percent":5}"#, "percent"),
            (Some(Target::Shadow), r#"{"by":5}"#, "by"),
            (Some(Target::Shadow), &long, "reason"),
            (Some(Target::Shadow), "[1]", "body"),
            (Some(Target::Shadow), "{", "body"),
            (Some(Target::Shadow), "percent=5", "body"),
        ] {
            let refused = change(target, body.as_bytes()).expect_err(body);
            assert_eq!((refused.code, refused.field.as_deref()), (RefusedCode::Invalid, Some(field)), "{body}");
        }
    }
}
