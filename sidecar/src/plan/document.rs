//! A plan as a file: what is to be declared, by vhost, with a digest that changes with it.

use amqp_compat::mapping::name;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::things::{Key, Kind, Things};
use super::wanted::{LeftOut, Settings, Wanted};
use crate::assess::Way;
use crate::assess::inventory::binding_name;

/// The form of these files.
const FORM: u64 = 1;

/// What is to be declared, where it comes from, and for which gateway.
#[derive(Debug)]
pub struct Plan {
    /// For which gateway.
    pub settings: Settings,
    /// The vhosts that it is about, those without anything included.
    pub vhosts: Vec<String>,
    /// What is to be declared.
    pub things: Things,
    /// What only applications can declare.
    pub by_applications: Things,
    /// The digest of all that; the same plan has the same one.
    pub digest: String,
}

impl Plan {
    /// The plan for what is wanted.
    pub fn new(wanted: &Wanted, vhosts: Vec<String>, settings: Settings) -> Self {
        let (things, by_applications) = (wanted.things.clone(), wanted.by_applications.clone());
        let mut plan = Self { settings, vhosts, things, by_applications, digest: String::new() };
        plan.digest = digest(&plan.content());
        plan
    }

    /// The file. `origin` says where it comes from and `left_out` what is not in it; both are for who reads it.
    pub fn json(&self, origin: &Value, left_out: &[LeftOut]) -> Value {
        let mut document = json!({ "digest": self.digest, "made_from": origin, "totals": self.totals() });
        document["left_out"] = left_out.iter().map(left_out_json).collect();
        if let (Some(document), Value::Object(content)) = (document.as_object_mut(), self.content()) {
            document.extend(content);
        }
        document
    }

    /// What it comes to.
    pub fn totals(&self) -> Value {
        let count = |kind: Kind| self.things.keys().filter(|key| key.kind == kind).count();
        let queues = || self.things.iter().filter(|(key, _)| key.kind == Kind::Queue).map(|(_, queue)| queue);
        let copies = queues().filter_map(|queue| queue["stream"]["num_replicas"].as_u64()).sum::<u64>();
        json!({
            "policies": count(Kind::Policy) + count(Kind::OperatorPolicy),
            "exchanges": count(Kind::Exchange),
            "queues": count(Kind::Queue),
            "bindings": count(Kind::Binding),
            "streams": queues().filter(|queue| queue["stream"].is_object()).count(),
            "consumers": queues().filter(|queue| queue["consumer"].is_string()).count(),
            "stream_copies": copies,
        })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong with it; that it was changed after it was made.
    pub fn read(document: &Value) -> Result<Self, String> {
        if document["plan"] != FORM {
            return Err(format!("not a plan of this form: `plan` is {}, not {FORM}", document["plan"]));
        }
        let way = match document["way"].as_str() {
            Some("sidecar") => Way::Sidecar,
            Some("serve") => Way::Serve,
            _ => return Err(format!("`way` is {}, not \"sidecar\" or \"serve\"", document["way"])),
        };
        let replicas = document["replicas"].as_u64().and_then(|replicas| u8::try_from(replicas).ok());
        let replicas = replicas.filter(|replicas| (1..=5).contains(replicas)).ok_or("`replicas` is not from 1 to 5")?;
        let mut plan = Self {
            settings: Settings { way, replicas },
            vhosts: Vec::new(),
            things: Things::new(),
            by_applications: Things::new(),
            digest: document["digest"].as_str().unwrap_or_default().to_owned(),
        };
        let vhosts = document["vhosts"].as_array().ok_or("`vhosts` is not a list")?;
        for (index, vhost) in vhosts.iter().enumerate() {
            let name = vhost["name"].as_str().ok_or_else(|| format!("vhosts[{index}]: `name` is not a text"))?;
            plan.vhosts.push(name.to_owned());
            read_things(&vhost["declare"], name, &mut plan.things).map_err(|why| format!("vhosts[{index}]: {why}"))?;
            read_things(&vhost["left_to_applications"], name, &mut plan.by_applications)
                .map_err(|why| format!("vhosts[{index}]: {why}"))?;
        }
        let now = digest(&plan.content());
        if now != plan.digest {
            return Err(format!(
                "it was changed after it was made: its digest is {now}, and it says {}; make another one with `plan`",
                document["digest"]
            ));
        }
        Ok(plan)
    }

    /// All that the digest is of.
    fn content(&self) -> Value {
        let vhosts = self.vhosts.iter().map(|vhost| {
            json!({
                "name": vhost,
                "topology_bucket": name::topology_bucket(vhost),
                "declare": lists(&self.things, vhost),
                "left_to_applications": lists(&self.by_applications, vhost),
            })
        });
        json!({
            "plan": FORM,
            "way": self.settings.way.name(),
            "replicas": self.settings.replicas,
            "vhosts": vhosts.collect::<Vec<_>>(),
        })
    }
}

/// The things of a vhost, in lists by kind.
fn lists(things: &Things, vhost: &str) -> Value {
    let of = |kind: Kind| {
        let each = things.iter().filter(|(key, _)| key.vhost == *vhost && key.kind == kind);
        each.map(|(_, thing)| thing.clone()).collect::<Vec<_>>()
    };
    let lists = Kind::ALL.into_iter().map(|kind| (kind.list().to_owned(), Value::Array(of(kind))));
    Value::Object(lists.filter(|(_, list)| list.as_array().is_some_and(|list| !list.is_empty())).collect())
}

fn read_things(lists: &Value, vhost: &str, things: &mut Things) -> Result<(), String> {
    let empty = Map::new();
    for (name, list) in lists.as_object().unwrap_or(&empty) {
        let kind = Kind::ALL.into_iter().find(|kind| kind.list() == name);
        let kind = kind.ok_or_else(|| format!("'{name}' is not known"))?;
        for (index, thing) in list.as_array().ok_or_else(|| format!("'{name}' is not a list"))?.iter().enumerate() {
            let name = name_of(kind, thing).ok_or_else(|| format!("{name}[{index}] has no name"))?;
            things.insert(Key::new(vhost, kind, name), thing.clone());
        }
    }
    Ok(())
}

/// The name of a thing by its document.
fn name_of(kind: Kind, thing: &Value) -> Option<String> {
    if kind != Kind::Binding {
        return thing["name"].as_str().map(str::to_owned);
    }
    let of = |field: &str| thing[field].as_str();
    let (source, destination) = (of("source")?, of("destination")?);
    let (to, key) = (of("destination_type")?, of("routing_key")?);
    Some(binding_name(source, to, destination, key, &thing["arguments"]))
}

fn left_out_json(left: &LeftOut) -> Value {
    let mut document = left.key.json();
    document["why"] = json!(left.why);
    document["refused"] = json!(left.is_refused);
    document
}

/// serde_json keeps the fields of an object in the order of their names.
fn digest(content: &Value) -> String {
    let hex: String = Sha256::digest(content.to_string()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
