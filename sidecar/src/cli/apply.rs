//! `nats-bridge apply`: declares on JetStream what a plan says, by the gateway's own code. Only says so without `--execute`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use amqp_compat::backend::jetstream::{JetStreamBackend, JetStreamConfig, Lease};
use amqp_compat::error::AmqpError;
use clap::Args;
use foldhash::{HashMap, HashMapExt};
use nats_bridge::Bridge;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::lease::take_lease;
use super::native::{Native, bar, close};
use super::source::{Source, vhost_flags};
use super::{Failure, request, signals, topology};
use crate::assess::Way;
use crate::management::client::{Caller, Client};
use crate::management::documents::definitions::Action;
use crate::plan::{Difference, How, Key, Plan, Things, Wanted, compare, steps};

/// Arguments of `apply`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nats-bridge apply plan.json --rabbit-management http://USER:PASSWORD@rabbit:15672 --nats nats://nats:4222 --execute

It refuses a plan that was changed after it was made, one that RabbitMQ's topology no longer agrees with, and a NATS account
that a gateway serves now: apply before `sidecar` or `serve` starts. What is there already is left alone, but for the stream of an
empty queue that has other settings: as when a gateway starts, it is made anew. Running it again is safe.

Exit codes: 0 done, 1 refused, 2 it could not be done, or not all of it.")]
pub struct ApplyArgs {
    /// The plan, as `plan --out FILE` has written it.
    #[arg(value_name = "FILE")]
    pub plan: PathBuf,
    /// The RabbitMQ that the plan was made from.
    #[command(flatten)]
    pub source: Source,
    /// Do it; else it is only said what would be done.
    #[arg(long)]
    pub execute: bool,
    /// Which NATS.
    #[command(flatten)]
    pub native: Native,
}

/// Declares what is missing.
///
/// # Errors
/// `refused` for a plan that may not be applied; `cannot_run`, naming what is at fault.
pub async fn run(args: ApplyArgs) -> Result<(), Failure> {
    let plan = read(&args.plan)?;
    still_true(&args.source, &plan).await?;
    let bridge = args.native.connect().await?;
    let outcome = match args.execute {
        true => execute(&args, &plan, &bridge).await,
        false => to_do(&plan, &bridge).await.map(Some),
    };
    let (_, reduced) = topology::fitted(plan.things.clone(), plan.settings, &bridge);
    close(&bridge).await;
    // Stopped before anything was done.
    let Some(to_do) = outcome? else { return Ok(()) };
    match args.native.json {
        true => {
            let mut document = document(&plan, &to_do, args.execute);
            document["with_fewer_replicas"] = json!(reduced);
            request::print_json(&document)
        }
        false => {
            if reduced > 0 {
                request::print(&format!("{}\n", topology::on_one(reduced, plan.settings)));
            }
            request::print(&shown(&plan, &to_do, args.execute));
            Ok(())
        }
    }
}

fn read(path: &Path) -> Result<Plan, Failure> {
    let named = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let text = std::fs::read(path).map_err(|error| Failure::cannot_run(named(&error)))?;
    let document: Value =
        serde_json::from_slice(&text).map_err(|error| Failure::cannot_run(named(&format!("not JSON: {error}"))))?;
    Plan::read(&document).map_err(|why| Failure::refused(named(&why)))
}

/// Refuses a plan that RabbitMQ no longer agrees with.
async fn still_true(source: &Source, plan: &Plan) -> Result<(), Failure> {
    let input = source.read(&plan.vhosts).await.map_err(|failure| match failure.text.strip_prefix("--vhost ") {
        Some(gone) => Failure::refused(format!("RabbitMQ is not as it was when the plan was made: vhost {gone}")),
        None => failure,
    })?;
    let now = Plan::new(&Wanted::of(&input.inventory, plan.settings), plan.vhosts.clone(), plan.settings);
    if now.digest == plan.digest {
        return Ok(());
    }
    let all = |plan: &Plan| -> Things { plan.things.clone().into_iter().chain(plan.by_applications.clone()).collect() };
    let differences = compare(&all(plan), &all(&now));
    for difference in &differences {
        eprintln!("{difference}");
    }
    let count = differences.len();
    Err(Failure::refused(format!(
        "RabbitMQ is not as it was when the plan was made ({count} differences): make another one with `plan`"
    )))
}

/// What there is to do.
struct ToDo {
    /// What is to be declared.
    missing: Vec<Key>,
    /// Queues that are there, with streams that have other settings.
    reshaped: Vec<Difference>,
}

/// # Errors
/// `refused` when something of that name is there and is another one.
async fn to_do(plan: &Plan, bridge: &Bridge) -> Result<ToDo, Failure> {
    let found = topology::look(bridge, &plan.vhosts).await?;
    let (wanted, _) = topology::fitted(plan.things.clone(), plan.settings, bridge);
    let differences = compare(&wanted, &found);
    let conflicts: Vec<&Difference> = differences.iter().filter(|difference| difference.is_conflict()).collect();
    if !conflicts.is_empty() {
        for conflict in &conflicts {
            eprintln!("{conflict}");
        }
        return Err(Failure::refused(format!(
            "{} of the plan are on JetStream already, and are others: delete them there, or change RabbitMQ's",
            conflicts.len()
        )));
    }
    let (missing, others): (Vec<_>, Vec<_>) =
        differences.into_iter().partition(|difference| difference.how == How::Missing);
    Ok(ToDo {
        missing: missing.into_iter().map(|difference| difference.key).collect(),
        reshaped: others.into_iter().filter(|difference| difference.how != How::Extra).collect(),
    })
}

/// `None` when it was stopped before anything was done.
async fn execute(args: &ApplyArgs, plan: &Plan, bridge: &Bridge) -> Result<Option<ToDo>, Failure> {
    let shutdown = CancellationToken::new();
    signals::cancel(&shutdown)?;
    let Some(lease) = take_lease(bridge, &args.native.nats, &shutdown).await? else { return Ok(None) };
    let done = declare_all(plan, bridge, &lease, &shutdown).await;
    lease.release().await;
    done.map(Some)
}

async fn declare_all(
    plan: &Plan,
    bridge: &Bridge,
    lease: &Lease,
    shutdown: &CancellationToken,
) -> Result<ToDo, Failure> {
    // Only who has the lease may rely on what it sees.
    let to_do = to_do(plan, bridge).await?;
    let missing = &to_do.missing;
    let mut config =
        JetStreamConfig { vhosts: plan.vhosts.clone(), lease: Some(lease.clone()), ..plan.settings.config() };
    if topology::is_one_server(bridge) {
        // It would be found out for each queue.
        config.quorum_replicas = config.replicas;
    }
    let failed = |error: AmqpError| Failure::cannot_run(format!("--nats: {error}"));
    let backend = JetStreamBackend::connect(bridge.clone(), config).await.map_err(failed)?;
    let mut clients = HashMap::new();
    let bar = bar(missing.len() as u64, "declaring");
    for (index, key) in missing.iter().enumerate() {
        let so_far = || format!("{index} of {} are declared; running it again is safe", missing.len());
        if shutdown.is_cancelled() {
            return Err(Failure::cannot_run(format!("stopped: {}", so_far())));
        }
        let action = plan.things.get(key).map(|thing| steps::action(key, thing)).transpose();
        if let Some(action) = action.map_err(|why| Failure::cannot_run(format!("{why}; {}", so_far())))? {
            let done = declare(&backend, &mut clients, key, action).await;
            done.map_err(|error| Failure::cannot_run(format!("{key}: {error}; {}", so_far())))?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    for (_, client) in clients {
        client.close(&[], None).await.map_err(failed)?;
    }
    Ok(to_do)
}

async fn declare(
    backend: &Arc<JetStreamBackend>,
    clients: &mut HashMap<String, Client>,
    key: &Key,
    action: Action,
) -> Result<(), AmqpError> {
    let topology = match action {
        Action::Policy(policy) => return backend.put_policy(&key.vhost, policy).await.map(drop),
        Action::Topology(topology) => topology,
    };
    if !clients.contains_key(&key.vhost) {
        // The first of the default users; a backend behind RabbitMQ lets anybody in.
        let caller = Caller { user: "guest".to_owned(), password: "guest".to_owned() };
        clients.insert(key.vhost.clone(), Client::open(backend, &caller, &key.vhost).await?);
    }
    match clients.get_mut(&key.vhost) {
        Some(client) => client.change(topology).await,
        None => Ok(()),
    }
}

fn document(plan: &Plan, to_do: &ToDo, is_done: bool) -> Value {
    let missing = &to_do.missing;
    json!({
        "digest": plan.digest,
        "executed": is_done,
        "in_plan": plan.things.len(),
        "declared": if is_done { missing.iter().map(Key::json).collect() } else { Vec::new() },
        "would_declare": if is_done { Vec::new() } else { missing.iter().map(Key::json).collect() },
        "there_already": plan.things.len() - missing.len(),
        "other_streams": to_do.reshaped.iter().map(Difference::json).collect::<Vec<_>>(),
    })
}

/// How many names are shown; `--json` has all.
const SHOWN: usize = 20;

fn shown(plan: &Plan, ToDo { missing, reshaped }: &ToDo, is_done: bool) -> String {
    let word = if is_done { "declared" } else { "would declare" };
    let mut text = String::new();
    for key in missing.iter().take(SHOWN) {
        let _ = writeln!(text, "{word} {key}");
    }
    if missing.len() > SHOWN {
        let _ = writeln!(text, "{word} {} more (--json names all)", missing.len() - SHOWN);
    }
    for difference in reshaped.iter().take(SHOWN) {
        let _ = writeln!(text, "{difference}");
    }
    if !reshaped.is_empty() {
        let word = if is_done { "was" } else { "would be" };
        let _ = writeln!(text, "a stream with other settings {word} made anew where its queue is empty, else kept");
    }
    let there = plan.things.len() - missing.len();
    let _ = writeln!(text, "{word} {} of {}; {there} there already", missing.len(), plan.things.len());
    let _ = match (is_done, missing.is_empty()) {
        (false, false) => writeln!(text, "nothing was changed: add --execute"),
        (false, true) => writeln!(text, "nothing is to be done"),
        (true, _) => writeln!(
            text,
            "next: nats-bridge verify, then start `{}` with --replicas {}{}",
            plan.settings.way.name(),
            plan.settings.replicas,
            match plan.settings.way {
                Way::Sidecar => String::new(),
                Way::Serve => vhost_flags(plan.vhosts.iter()),
            }
        ),
    };
    text
}
