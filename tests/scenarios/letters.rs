//! The steps with dead letters.

use std::path::Path;

use nats_bridge::dead_letter::{Filter, GroupBy, Redrive};
use nats_bridge::encryption::Keyring;
use nats_bridge::{Bridge, Result};
use serde_json::{Map, Value, json};
use test_support::eventually::eventually_true;

use super::scenario::text;

/// Does a step with dead letters.
pub async fn act(bridge: &Bridge, keys: &Path, verb: &str, step: &Value) -> Result<Value> {
    assert!(["count", "groups", "letters", "show", "park", "redrive"].contains(&verb), "no such step: {step}");
    let letters = bridge.dead_letters(text(step, "stream")).await?;
    let reason = step["filter"]["reason"].as_str().map(str::to_owned);
    let filter = Filter { reason, ..Filter::default() };
    match verb {
        "count" => Ok(json!(letters.count().await?)),
        "groups" => {
            assert_eq!(step["by"], "reason");
            Ok(json!(letters.list(GroupBy::Reason, &filter).await?))
        }
        "show" => {
            let mut letter = letters.show(step["sequence"].as_u64().unwrap()).await?;
            if let Some(name) = step["decrypt"].as_str() {
                letter.payload = letter.decrypt(&Keyring::from_directory(keys.join(name))?.into()).await?;
            }
            let mut headers = Map::new();
            for (name, value) in letter.original_headers() {
                headers.entry(name).or_insert_with(|| json!([])).as_array_mut().unwrap().push(json!(value));
            }
            Ok(json!({
                "payload": String::from_utf8(letter.payload.to_vec()).unwrap(),
                "headers": headers,
                "subject": letter.original_subject(),
                "stream": letter.stream(),
                "stream_sequence": letter.original_sequence(),
                "consumer": letter.consumer(),
                "reason": letter.reason(),
                "detail": letter.detail(),
                "attempts": letter.attempts(),
                "redrives": letter.redrives(),
                "encrypted_with": letter.encrypted_with(),
            }))
        }
        "letters" => {
            let wanted = step["count"].as_u64().unwrap();
            eventually_true("there are so many letters", || async { letters.count().await.is_ok_and(|n| n == wanted) })
                .await;
            Ok(Value::Null)
        }
        "park" => Ok(json!(letters.park(&filter, |_| true).await?)),
        _ => {
            let redrive = Redrive {
                filter,
                to: step["to"].as_str().map(str::to_owned),
                dry_run: step["dry_run"] == true,
                ..Redrive::default()
            };
            Ok(json!(letters.redrive(&redrive, |_| true).await?))
        }
    }
}
