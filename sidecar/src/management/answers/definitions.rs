//! Definitions: exported, and imported as a whole or, with a report, not.

use foldhash::{HashMap, HashMapExt};
use serde_json::{Value, json};

use super::super::broker::Broker;
use super::super::client::Client;
use super::super::documents::definitions::{self, Action, Step};
use super::super::documents::refusal::Refusal;
use super::super::documents::{user, vhost};
use super::{Answer, Request, Verb, users};

pub(super) async fn answer(
    broker: &Broker,
    request: Request<'_>,
    verb: Verb,
    vhost: Option<&str>,
) -> Result<Answer, Refusal> {
    match verb {
        Verb::Get => request.one(export(broker, vhost)?),
        Verb::Post | Verb::Put => import(broker, request, vhost).await,
        Verb::Delete => Err(Refusal::method_not_allowed()),
    }
}

fn export(broker: &Broker, only: Option<&str>) -> Result<Value, Refusal> {
    let vhosts = broker.vhosts(only)?;
    let mut document = definitions::export(&broker.declared(&vhosts), only.is_none());
    if only.is_none() {
        for (name, value) in [
            ("rabbitmq_version", document["rabbit_version"].clone()),
            ("product_name", json!("nats-bridge")),
            ("product_version", json!(env!("CARGO_PKG_VERSION"))),
            ("users", broker.backend.users().iter().map(|account| user::document(account)).collect()),
            ("vhosts", vhosts.iter().map(|name| vhost::definition(name, &broker.about(name))).collect()),
            ("permissions", Value::Array(users::permissions(broker, None, None))),
            ("topic_permissions", json!([])),
            ("global_parameters", json!([])),
        ] {
            document.insert(name.to_owned(), value);
        }
    }
    Ok(Value::Object(document))
}

async fn import(broker: &Broker, request: Request<'_>, scope: Option<&str>) -> Result<Answer, Refusal> {
    if let Some(scope) = scope {
        broker.need_vhost(scope)?;
    }
    let kind = request.headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.starts_with("multipart/") {
        let reason = "definitions are taken as JSON (`Content-Type: application/json`), not as a form".to_owned();
        return Err(Refusal { status: 415, error: "Unsupported Media Type", reason });
    }
    let plan = definitions::plan(request.fields()?, scope, broker.present())?;
    if !plan.refused.is_empty() {
        let reason = format!("nothing was imported, since this cannot be honoured: {}", plan.refused.join("; "));
        let document = json!({ "error": "bad_request", "reason": reason, "refused": plan.refused });
        return Ok(Answer::Status(400, document));
    }
    for (vhost, about) in &plan.vhosts {
        broker.backend.put_vhost(vhost, about.clone()).await.map_err(Refusal::of_change)?;
    }
    for (name, asked) in plan.users {
        broker.backend.put_user(&name, asked.password, asked.tags).await.map_err(Refusal::of_change)?;
    }
    for (vhost, user, permission) in plan.permissions {
        broker.backend.put_permission(&vhost, &user, permission).await.map_err(Refusal::of_change)?;
    }
    let mut clients: HashMap<String, Client> = HashMap::new();
    for (index, step) in plan.steps.iter().enumerate() {
        if let Err(refusal) = take(broker, request, &mut clients, step).await {
            return Ok(partly(&plan.steps, index, &refusal));
        }
    }
    for (_, client) in clients {
        client.close(&[], None).await.map_err(Refusal::of_change)?;
    }
    Ok(Answer::Done)
}

async fn take(
    broker: &Broker,
    request: Request<'_>,
    clients: &mut HashMap<String, Client>,
    step: &Step,
) -> Result<(), Refusal> {
    let topology = match &step.action {
        Action::Topology(topology) => topology.clone(),
        Action::Policy(policy) => {
            let put = broker.backend.put_policy(&step.vhost, policy.clone()).await;
            return put.map(drop).map_err(Refusal::of_change);
        }
    };
    let client = match clients.get_mut(&step.vhost) {
        Some(client) => client,
        None => {
            let client =
                Client::open(&broker.backend, request.caller, &step.vhost).await.map_err(Refusal::of_change)?;
            clients.entry(step.vhost.clone()).or_insert(client)
        }
    };
    client.change(topology).await.map_err(Refusal::of_change)
}

/// What was done and what was not. Everything was checked before, so that this is a broker that went away in the
/// middle, or somebody else's change.
fn partly(steps: &[Step], failed: usize, refusal: &Refusal) -> Answer {
    let name = |step: &Step| format!("{} in vhost '{}'", step.what, step.vhost);
    let imported: Vec<String> = steps.iter().take(failed).map(name).collect();
    let missing: Vec<String> = steps.iter().skip(failed).map(name).collect();
    let at = missing.first().map(String::as_str).unwrap_or_default();
    let reason = format!(
        "{} of {} were imported, and then not {at}: {}. Importing the same again is safe",
        imported.len(),
        steps.len(),
        refusal.reason
    );
    let document = json!({ "error": refusal.error, "reason": reason, "imported": imported, "not_imported": missing });
    Answer::Status(refusal.status, document)
}
