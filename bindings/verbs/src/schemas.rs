//! What can be done with a registry of schemas.

use nats_bridge::Bridge;
use nats_bridge::schema::{Compatibility, Draft, Format};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Fault, read};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    bucket: String,
    name: Option<String>,
    version: Option<u32>,
    schema: Option<String>,
    format: Option<Format>,
    compatibility: Option<Compatibility>,
    subjects: Option<Vec<String>>,
}

/// Does what `verb` says.
pub(crate) async fn ask(core: &Bridge, verb: &str, arguments: &str) -> Result<Value, Fault> {
    let given: Arguments = read(arguments)?;
    let schemas = core.schemas(&given.bucket).await?;
    let name = || given.name.clone().ok_or_else(|| Fault::argument("name", "it is needed"));
    let draft = || {
        Ok::<Draft, Fault>(Draft {
            schema: given.schema.clone().ok_or_else(|| Fault::argument("schema", "it is needed"))?,
            format: given.format.unwrap_or_default(),
            compatibility: given.compatibility,
            subjects: given.subjects.clone(),
        })
    };
    Ok(match verb {
        "open" => Value::Null,
        "register" => json!(schemas.register(&name()?, &draft()?).await?),
        "differences" => json!(schemas.differences(&name()?, &draft()?).await?),
        "get" => json!(schemas.get(&name()?, given.version).await?),
        "names" => json!(schemas.names().await?),
        "set_compatibility" => {
            let compatibility = given.compatibility.ok_or_else(|| Fault::argument("compatibility", "it is needed"))?;
            schemas.set_compatibility(&name()?, compatibility).await?;
            Value::Null
        }
        _ => return Err(Fault::argument("verb", format!("there is no verb '{verb}' of schemas"))),
    })
}
