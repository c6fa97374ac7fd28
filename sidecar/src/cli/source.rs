//! Where RabbitMQ's topology is taken from: an export of its definitions, or its management API.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use super::Failure;
use crate::assess::inventory::Inventory;
use crate::assess::live::{Answers, Live};
use crate::assess::{Way, digest};
use crate::control::Management;
use crate::plan::Settings;

/// Where a management URL is taken from when no flag names an input.
const MANAGEMENT: &str = "NATS_BRIDGE_RABBIT_MANAGEMENT";

/// Queues, without what nobody looks at: it is most of the answer.
const QUEUES: &str = "/api/queues?columns=vhost,name,durable,auto_delete,exclusive,arguments,messages,message_bytes,consumers,\
     message_stats.publish_details.rate,message_stats.deliver_get_details.rate";

/// Which RabbitMQ.
#[derive(Debug, Clone, Args)]
pub struct Source {
    /// RabbitMQ's definitions, as `rabbitmqctl export_definitions FILE` or `GET /api/definitions` exports them.
    #[arg(long, value_name = "FILE", conflicts_with = "rabbit_management")]
    pub definitions: Option<PathBuf>,
    /// RabbitMQ's management API, as `http://USER:PASSWORD@HOST:15672`; the user needs the `administrator` tag. It tells also
    /// what lies in queues, who is connected and who consumes. Without this flag and --definitions:
    /// $NATS_BRIDGE_RABBIT_MANAGEMENT.
    #[arg(long, value_name = "URL")]
    pub rabbit_management: Option<String>,
}

/// What moves, and how: of `assess`, `plan` and `verify`.
#[derive(Debug, Clone, Args)]
pub struct Move {
    /// Which RabbitMQ.
    #[command(flatten)]
    pub source: Source,
    /// Look at this vhost alone; may be given more than once. An export of one vhost does not name it: this does.
    #[arg(long = "vhost", value_name = "NAME")]
    pub vhosts: Vec<String>,
    /// How the applications are to move: a sidecar refuses a few things, and has no policies.
    #[arg(long, value_enum, default_value_t = Way::Sidecar)]
    pub way: Way,
    /// How many servers are to hold a durable classic queue. Give `sidecar` or `serve` the same number.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub replicas: u8,
}

impl Move {
    /// Reads what moves.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub(super) async fn read(&self) -> Result<Input, Failure> {
        self.source.read(&self.vhosts).await
    }

    /// How.
    pub(super) fn settings(&self) -> Settings {
        Settings { way: self.way, replicas: self.replicas }
    }
}

impl Source {
    /// Reads it. `vhosts` are those to look at, or none for all.
    ///
    /// # Errors
    /// `cannot_run`, naming the flag at fault.
    pub(super) async fn read(&self, vhosts: &[String]) -> Result<Input, Failure> {
        let asked = self.rabbit_management.clone().or_else(|| std::env::var(MANAGEMENT).ok());
        match (&self.definitions, asked) {
            (Some(path), _) => file(path, vhosts),
            (None, Some(url)) => management(&url, vhosts).await,
            (None, None) => Err(Failure::cannot_run(
                "give --definitions FILE or --rabbit-management http://USER:PASSWORD@HOST:15672",
            )),
        }
    }
}

/// The flags with which `serve` has these vhosts; none for the one that it has anyway.
pub(super) fn vhost_flags<'a>(vhosts: impl Iterator<Item = &'a String> + Clone) -> String {
    match vhosts.clone().all(|vhost| vhost == "/") {
        true => String::new(),
        false => vhosts.map(|vhost| format!(" --vhost '{vhost}'")).collect(),
    }
}

/// What was read.
pub(super) struct Input {
    pub(super) inventory: Inventory,
    /// Where it comes from, without a password.
    pub(super) source: String,
    pub(super) digest: String,
}

/// Reads an export of definitions.
fn file(path: &Path, vhosts: &[String]) -> Result<Input, Failure> {
    let failed = |why: &dyn std::fmt::Display| Failure::cannot_run(format!("--definitions {}: {why}", path.display()));
    let text = std::fs::read(path).map_err(|error| failed(&error))?;
    let document: Value = serde_json::from_slice(&text).map_err(|error| failed(&format!("not JSON: {error}")))?;
    let digest = digest::of(&document);
    let inventory = Inventory::read(document, vhosts).map_err(|why| wrong(&why).unwrap_or_else(|| failed(&why)))?;
    Ok(Input { inventory, source: path.display().to_string(), digest })
}

/// Asks RabbitMQ's management API; nothing is changed there.
async fn management(url: &str, vhosts: &[String]) -> Result<Input, Failure> {
    let failed = |why: String| Failure::cannot_run(format!("--rabbit-management: {why}"));
    let management = Management::from_url(url).map_err(failed)?;
    let definitions = management
        .ask("/api/definitions")
        .await
        .map_err(|why| failed(format!("{why}; definitions are shown to users with the `administrator` tag")))?;
    let answers = Answers {
        definitions,
        // Bindings first: their ends are then in the lists that follow, unless they went meanwhile.
        bindings: management.ask("/api/bindings").await.map_err(failed)?,
        exchanges: management.ask("/api/exchanges").await.map_err(failed)?,
        queues: management.ask(QUEUES).await.map_err(failed)?,
        connections: management.ask("/api/connections").await.map_err(failed)?,
        consumers: management.ask("/api/consumers").await.map_err(failed)?,
    };
    let document = answers.definitions();
    let digest = digest::of(&document);
    let mut inventory = Inventory::read(document, vhosts).map_err(|why| wrong(&why).unwrap_or_else(|| failed(why)))?;
    inventory.live = Some(Live::read(&answers, |vhost| inventory.vhosts.contains_key(vhost)));
    Ok(Input { inventory, source: management.to_string(), digest })
}

/// An unknown vhost: the fault of the flag that names it, not of the one that names the input.
fn wrong(why: &str) -> Option<Failure> {
    why.starts_with("--vhost").then(|| Failure::cannot_run(why))
}
