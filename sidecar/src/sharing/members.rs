//! Which sidecars live: each answers a question that the one that leads asks every second. Nothing is kept, so nothing is stale.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use amqp_compat::backend::jetstream::lease::Holder;
use futures::StreamExt;
use nats_bridge::Bridge;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::relay::Relay;
use crate::control::{Cutover, Store};
use crate::control_api::SidecarStatus;

/// Where the question is asked.
const SUBJECT: &str = "nats-bridge.sidecars";
/// How often, and how long answers are taken.
const EVERY: Duration = Duration::from_secs(1);
const ANSWERS: Duration = Duration::from_millis(400);
/// How many are listed.
const MOST: usize = 256;

/// What a sidecar says of itself.
enum Own {
    /// It follows: the epoch that it has read, and its relay.
    Following(Arc<AtomicU64>, Relay),
    /// It leads.
    Leading(Weak<Cutover>),
}

/// The tasks that ask and answer; they end with it.
pub(crate) struct Members {
    own: Arc<Mutex<Own>>,
    all: watch::Receiver<Vec<SidecarStatus>>,
    _tasks: JoinSet<()>,
}

impl Members {
    /// Begins to answer, and to ask once this sidecar leads.
    pub(super) fn start(bridge: &Bridge, here: &Holder, store: Store, relay: Relay) -> Self {
        let mut tasks = JoinSet::new();
        let epoch = Arc::new(AtomicU64::new(0));
        tasks.spawn(read_epochs(store, Arc::clone(&epoch)));
        let own = Arc::new(Mutex::new(Own::Following(epoch, relay)));
        let (tell, all) = watch::channel(Vec::new());
        tasks.spawn(answer(bridge.clone(), here.clone(), Arc::clone(&own)));
        tasks.spawn(ask(bridge.clone(), here.clone(), Arc::clone(&own), tell));
        Self { own, all, _tasks: tasks }
    }

    /// This sidecar leads from now on.
    pub(super) fn leads(&self, cutover: &Arc<Cutover>) {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = Own::Leading(Arc::downgrade(cutover));
    }

    /// All that live, once this one leads.
    pub(super) fn all(&self) -> watch::Receiver<Vec<SidecarStatus>> {
        self.all.clone()
    }
}

fn describe(here: &Holder, own: &Mutex<Own>) -> Option<SidecarStatus> {
    let (leads, epoch, connections) = match &*own.lock().unwrap_or_else(PoisonError::into_inner) {
        Own::Following(epoch, relay) => (false, epoch.load(Ordering::Relaxed), relay.clients()),
        Own::Leading(cutover) => {
            let cutover = cutover.upgrade()?;
            let shared = cutover.shared();
            (true, shared.order().fences.epoch(), shared.connections.load(Ordering::Relaxed))
        }
    };
    let reached = here.sidecar.clone().unwrap_or_default();
    Some(SidecarStatus {
        host: here.host.clone(),
        pid: here.pid,
        since: here.since.clone(),
        leads,
        epoch,
        connections,
        amqp: reached.amqp,
        http: reached.http,
    })
}

/// Reads the epoch in force from the state, for as long as it is asked for.
async fn read_epochs(store: Store, epoch: Arc<AtomicU64>) {
    let (written, mut heard) = mpsc::channel(16);
    let watched = async {
        loop {
            if let Err(error) = store.watch(&written).await {
                tracing::debug!(error, "the state cannot be watched for now");
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    let noted = async {
        while let Some((state, _)) = heard.recv().await {
            epoch.store(state.epoch, Ordering::Relaxed);
        }
    };
    tokio::join!(watched, noted);
}

async fn answer(bridge: Bridge, here: Holder, own: Arc<Mutex<Own>>) {
    loop {
        if let Ok(mut asked) = bridge.client().subscribe(SUBJECT).await {
            while let Some(question) = asked.next().await {
                let answer = describe(&here, &own).and_then(|own| serde_json::to_vec(&own).ok());
                if let (Some(reply), Some(answer)) = (question.reply, answer) {
                    // Who is not heard is asked again.
                    let _ = bridge.client().publish(reply, answer.into()).await;
                }
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn ask(bridge: Bridge, here: Holder, own: Arc<Mutex<Own>>, tell: watch::Sender<Vec<SidecarStatus>>) {
    loop {
        tokio::time::sleep(EVERY).await;
        let Some(itself) = describe(&here, &own).filter(|own| own.leads) else { continue };
        let mut all = answers(&bridge).await;
        // Several may be in one process.
        let known = |one: &SidecarStatus| (one.pid, one.since.clone(), one.amqp.clone());
        all.retain(|other| known(other) != known(&itself));
        all.sort_by(|a, b| (&a.host, a.pid).cmp(&(&b.host, b.pid)));
        all.insert(0, itself);
        tell.send_replace(all);
    }
}

async fn answers(bridge: &Bridge) -> Vec<SidecarStatus> {
    let mut all = Vec::new();
    let client = bridge.client();
    let inbox = client.new_inbox();
    let Ok(mut answered) = client.subscribe(inbox.clone()).await else { return all };
    if client.publish_with_reply(SUBJECT, inbox, Vec::new().into()).await.is_err() {
        return all;
    }
    let heard = async {
        while let Some(answer) = answered.next().await {
            if all.len() < MOST {
                all.extend(serde_json::from_slice::<SidecarStatus>(&answer.payload).ok());
            }
        }
    };
    // The time is always used up: nobody knows how many there are.
    let _ = tokio::time::timeout(ANSWERS, heard).await;
    all
}
