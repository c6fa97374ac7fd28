//! The core's errors as JSON texts, from which `lib/errors.ts` makes a `BridgeError`.

use nats_bridge::{Error, ErrorKind, Landed};
use nats_bridge_verbs::{Fault, spelled, type_text};
use serde_json::json;

use crate::options::camel;

/// The rejection for an error of the core.
pub fn from_core(error: &Error) -> napi::Error {
    let (text, context) = spelled(error, camel);
    build(error.kind().name(), error.landed(), error.is_temporary(), &text, &context)
}

/// The same for one of many messages, with its place among them.
pub fn of_message(index: usize, error: &Error) -> napi::Error {
    let (text, mut context) = spelled(error, camel);
    context.push(("index".to_owned(), index.to_string()));
    let text = format!("messages[{index}]: {text}");
    build(error.kind().name(), error.landed(), error.is_temporary(), &text, &context)
}

/// The rejection for an argument that the core was not asked about because its type cannot hold it.
pub fn invalid(field: &str, why: &str) -> napi::Error {
    let context = pairs([("field", field), ("why", why)]);
    build(ErrorKind::Config.name(), Landed::No, false, &format!("config: field={field} why={why}"), &context)
}

/// The rejection for a verb that failed.
pub fn from_fault(fault: &Fault) -> napi::Error {
    match fault {
        Fault::Argument { field, why } => invalid(&camel(field), why),
        Fault::Type { option, why } => {
            napi::Error::new(napi::Status::InvalidArg, type_text("option", &camel(option), why.as_deref()))
        }
        Fault::Core(error) => from_core(error),
        Fault::Told { code, text, context } => {
            let context: Vec<_> = context.iter().map(|(key, value)| (camel(key), value.clone())).collect();
            build(code, Landed::No, false, text, &context)
        }
    }
}

fn pairs<const N: usize>(context: [(&str, &str); N]) -> [(String, String); N] {
    context.map(|(key, value)| (key.to_owned(), value.to_owned()))
}

/// The rejection for something that ended by itself.
pub fn closed(why: &str) -> napi::Error {
    let context = pairs([("why", why)]);
    build(ErrorKind::Closed.name(), Landed::No, false, &format!("closed: {why}"), &context)
}

/// The rejection for a second settle of one delivery.
pub fn already_settled(subject: &str, sequence: u64) -> napi::Error {
    let context = pairs([("subject", subject), ("sequence", &sequence.to_string())]);
    let text = format!("already settled: subject={subject} sequence={sequence}");
    build(ErrorKind::AlreadySettled.name(), Landed::No, false, &text, &context)
}

fn build(code: &str, landed: Landed, temporary: bool, text: &str, context: &[(String, String)]) -> napi::Error {
    let context: serde_json::Map<_, _> = context.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    let error = json!({
        "code": code, "landed": landed.name(), "temporary": temporary, "text": text, "context": context,
    });
    napi::Error::from_reason(error.to_string())
}
