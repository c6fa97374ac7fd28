//! Vhosts: what a request says of one, and what is shown of it.

use amqp_compat::backend::jetstream::About;
use serde_json::{Map, Value, json};

use super::fields::{Fields, wrong};
use super::refusal::Refusal;

/// What a request or a definition says of a vhost, in the forms of RabbitMQ 3.10 and of later ones (`metadata`).
///
/// # Errors
/// 400 for a field that is malformed, or asks for what is not honoured.
pub(in crate::management) fn about(fields: &Fields) -> Result<About, Refusal> {
    let metadata = match fields.get("metadata") {
        Some(metadata) => Fields::of(metadata.clone(), "field 'metadata'")?,
        None => Fields::default(),
    };
    if fields.flag("tracing", false)? {
        return Err(Refusal::bad_request("field 'tracing': tracing is not honoured"));
    }
    if let Some(limits) = fields.get("limits").filter(|limits| **limits != json!([]) && **limits != json!({})) {
        return Err(Refusal::bad_request(format!("field 'limits': limits of vhosts are not honoured: {limits}")));
    }
    let mut about = About::default();
    for fields in [&metadata, fields] {
        let kind = fields.text("default_queue_type")?;
        if !["", "undefined", "classic"].contains(&kind) {
            let reason =
                format!("field 'default_queue_type': '{kind}' is not honoured; queues are classic unless they say");
            return Err(Refusal::bad_request(reason));
        }
        if !fields.text("description")?.is_empty() {
            about.description = fields.text("description")?.to_owned();
        }
        if let Some(tags) = fields.get("tags") {
            about.tags = read_tags(tags)?;
        }
    }
    Ok(about)
}

/// A list, or a text with commas.
fn read_tags(tags: &Value) -> Result<Vec<String>, Refusal> {
    let malformed = || wrong("not_a_list", "tags", tags);
    match tags {
        Value::String(text) => {
            Ok(text.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(str::to_owned).collect())
        }
        Value::Array(items) => {
            items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(malformed)).collect()
        }
        _ => Err(malformed()),
    }
}

/// A vhost in an export.
pub(in crate::management) fn definition(name: &str, about: &About) -> Value {
    let mut document = Map::from_iter([("name".to_owned(), json!(name))]);
    if *about != About::default() {
        document.insert("description".to_owned(), json!(about.description));
        document.insert("tags".to_owned(), json!(about.tags));
    }
    Value::Object(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(document: Value) -> Result<About, Refusal> {
        about(&Fields::of(document, "the body").expect("an object"))
    }

    #[test]
    fn what_is_said_of_a_vhost_is_read_in_every_form_and_comes_back() {
        let expected = About { description: "for tests".into(), tags: vec!["a".into(), "b".into()] };
        for document in [
            json!({ "description": "for tests", "tags": "a, b" }),
            json!({ "description": "for tests", "tags": ["a", "b"], "tracing": "false" }),
            json!({ "metadata": { "description": "for tests", "tags": ["a", "b"] }, "limits": [] }),
            definition("v", &expected),
        ] {
            assert_eq!(read(document.clone()).expect("valid"), expected, "{document}");
        }
        assert_eq!(read(json!({ "default_queue_type": "undefined" })).expect("valid"), About::default());
        assert_eq!(definition("v", &About::default()), json!({ "name": "v" }));
    }

    #[test]
    fn what_is_not_honoured_is_named() {
        for (document, field) in [
            (json!({ "tracing": true }), "'tracing'"),
            (json!({ "metadata": { "default_queue_type": "quorum" } }), "'default_queue_type'"),
            (json!({ "limits": { "max-queues": 5 } }), "'limits'"),
            (json!({ "tags": 5 }), "'tags'"),
        ] {
            let refusal = read(document).expect_err("refused");
            assert!(refusal.status == 400 && refusal.reason.contains(field), "{refusal:?}");
        }
    }
}
