//! What is asked: over all vhosts, queues and connections of one broker.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use amqp_compat::AmqpError;
use amqp_compat::backend::jetstream::{About, JetStreamBackend, QueueCounts};
use amqp_compat::listener::{Connection, Connections, Tls};
use amqp_compat::model::access::Account;
use amqp_compat::model::policy::Scope;
use amqp_compat::model::queue::QueueDefinition;
use amqp_compat::session::Description;
use foldhash::{HashMap, HashMapExt};
use futures::StreamExt as _;
use serde_json::Value;

use super::Shown;
use super::documents::broker::{Identity, Place, Totals};
use super::documents::connection::Seen;
use super::documents::definitions::{Declared, Present};
use super::documents::listing::Listing;
use super::documents::queue::{self, COUNTED};
use super::documents::refusal::Refusal;
use super::documents::rights;

/// How many queues or connections are asked at once for one request.
const AT_ONCE: usize = 32;

/// A broker, for those who look at it.
#[derive(Debug, Clone)]
pub(super) struct Broker {
    pub(super) backend: Arc<JetStreamBackend>,
    pub(super) connections: Connections,
    /// Those of AMQPS.
    pub(super) certificates: Option<Arc<Tls>>,
    pub(super) identity: Arc<Identity>,
    since: Instant,
    /// Who looks at it.
    viewer: Arc<Account>,
}

impl Broker {
    pub(super) fn new(shown: Shown, http: SocketAddr) -> Self {
        let Shown { backend, connections, amqp, amqps } = shown;
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = if host.trim().is_empty() { "localhost" } else { host.trim() };
        let identity = Identity {
            node: format!("nats-bridge@{host}"),
            amqp: place(amqp),
            amqps: amqps.as_ref().map(|(address, _)| place(*address)),
            http: place(http),
            pid: std::process::id(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
        };
        let certificates = amqps.map(|(_, certificates)| certificates);
        // Until somebody asks, nobody looks.
        let viewer = Arc::new(Account::nobody());
        Self { backend, connections, certificates, identity: Arc::new(identity), since: Instant::now(), viewer }
    }

    /// The broker as this user sees it.
    pub(super) fn seen_by(&self, viewer: Arc<Account>) -> Self {
        Self { viewer, ..self.clone() }
    }

    /// Who looks at it.
    pub(super) fn viewer(&self) -> &Account {
        &self.viewer
    }

    fn may_see(&self, vhost: &str) -> bool {
        rights::sees_all_vhosts(&self.viewer) || self.viewer.permission(vhost).is_some()
    }

    /// This vhost, or all that the caller may see.
    ///
    /// # Errors
    /// 404 when there is no such vhost; 401 when it is not for the caller to see.
    pub(super) fn vhosts(&self, only: Option<&str>) -> Result<Vec<String>, Refusal> {
        let all = self.backend.vhosts().into_iter();
        match only {
            None => Ok(all.filter(|name| self.may_see(name)).collect()),
            Some(only) => {
                let found: Vec<String> = all.filter(|name| name == only).collect();
                if found.is_empty() {
                    return Err(Refusal::object_not_found());
                }
                if !self.may_see(only) {
                    return Err(Refusal::not_authorised("User not authorised to access virtual host"));
                }
                Ok(found)
            }
        }
    }

    /// Refuses a vhost that is not there, for a change.
    pub(super) fn need_vhost(&self, name: &str) -> Result<(), Refusal> {
        self.vhosts(Some(name)).map(drop).map_err(|refusal| match refusal.status {
            404 => Refusal::vhost_not_found(),
            _ => refusal,
        })
    }

    /// What these vhosts have.
    pub(super) fn declared(&self, vhosts: &[String]) -> BTreeMap<String, Declared> {
        let of = |vhost: &String| {
            let declared = Declared {
                exchanges: self.backend.exchanges(vhost).unwrap_or_default(),
                queues: self.backend.queues(vhost).unwrap_or_default(),
                bindings: self.backend.bindings(vhost),
                policies: [Scope::User, Scope::Operator].map(|scope| self.backend.policies(vhost, scope)).concat(),
            };
            (vhost.clone(), declared)
        };
        vhosts.iter().map(of).collect()
    }

    /// What an import meets.
    pub(super) fn present(&self) -> Present<'_> {
        let vhosts = self.backend.vhosts();
        let about = vhosts.iter().map(|name| (name.clone(), self.about(name))).collect();
        let fixed = self.backend.may_change_vhosts().err().map(|error| error.text);
        Present {
            vhosts: self.declared(&vhosts),
            about,
            fixed,
            users: self.backend.users(),
            given: self.backend.given_users(),
        }
    }

    /// What is said of a vhost.
    pub(super) fn about(&self, vhost: &str) -> About {
        self.backend.about_vhost(vhost).unwrap_or_default()
    }

    /// The list of queues, arranged; only those that are shown, or sorted by their counts, are counted.
    pub(super) async fn queues(&self, vhosts: &[String], listing: &Listing) -> Result<Value, Refusal> {
        let mut all = Vec::new();
        for vhost in vhosts {
            let queues = self.backend.queues(vhost).unwrap_or_default();
            all.extend(queues.iter().map(|queue| self.queue(vhost, queue)));
        }
        if listing.sorts_by(&COUNTED) {
            let all = self.counted(all).await;
            return Ok(listing.answer(listing.arrange(all)?));
        }
        let mut arranged = listing.arrange(all)?;
        if listing.shows(&COUNTED) {
            arranged.items = self.counted(arranged.items).await;
        }
        Ok(listing.answer(arranged))
    }

    /// A queue's document, without what is in it.
    pub(super) fn queue(&self, vhost: &str, queue: &QueueDefinition) -> Value {
        queue::document(vhost, &self.identity.node, queue, &self.backend.applied_to_queue(vhost, queue))
    }

    /// Adds to each queue's document what is in it. Where JetStream does not answer, the counts are left out.
    async fn counted(&self, documents: Vec<Value>) -> Vec<Value> {
        let counted = futures::stream::iter(documents).map(|mut document| {
            let backend = Arc::clone(&self.backend);
            let name = |field: &str| document[field].as_str().unwrap_or_default().to_owned();
            let (vhost, name) = (name("vhost"), name("name"));
            async move {
                if let Ok(Some(counts)) = backend.counts(&vhost, &name).await {
                    queue::count(&mut document, &counts);
                }
                document
            }
        });
        counted.buffered(AT_ONCE).collect().await
    }

    /// The messages of these vhosts; `None` when JetStream does not answer.
    pub(super) async fn messages(&self, vhosts: &[String]) -> Option<QueueCounts> {
        let names = vhosts.iter().flat_map(|vhost| {
            let queues = self.backend.queues(vhost).unwrap_or_default();
            queues.into_iter().map(move |queue| (vhost.clone(), queue.name))
        });
        let names: Vec<_> = names.collect();
        let mut counts = futures::stream::iter(names)
            .map(|(vhost, queue)| {
                let backend = Arc::clone(&self.backend);
                async move { backend.counts(&vhost, &queue).await }
            })
            .buffer_unordered(AT_ONCE);
        let mut sum = QueueCounts::default();
        while let Some(counted) = counts.next().await {
            // A queue that was deleted meanwhile has none.
            let QueueCounts { ready, unacknowledged, consumers } = counted.ok()?.unwrap_or_default();
            sum.ready = sum.ready.saturating_add(ready);
            sum.unacknowledged = sum.unacknowledged.saturating_add(unacknowledged);
            sum.consumers = sum.consumers.saturating_add(consumers);
        }
        Some(sum)
    }

    /// What is in a queue; `None` when it is not there.
    pub(super) async fn counts(&self, vhost: &str, name: &str) -> Result<Option<QueueCounts>, AmqpError> {
        self.backend.counts(vhost, name).await
    }

    /// How much there is of everything.
    pub(super) async fn totals(&self) -> Totals {
        let vhosts = self.vhosts(None).unwrap_or_default();
        let mut totals = Totals { messages: self.messages(&vhosts).await, ..Totals::default() };
        for vhost in &vhosts {
            totals.exchanges += self.backend.exchanges(vhost).map_or(0, |exchanges| exchanges.len());
            totals.queues += self.backend.queues(vhost).map_or(0, |queues| queues.len());
        }
        for (_, described) in self.running(None).await {
            totals.connections += 1;
            totals.channels += described.channels.len();
            totals.consumers += described.channels.iter().map(|channel| channel.consumers.len()).sum::<usize>();
        }
        totals
    }

    /// The connections that are open for use and that the caller may see, of one vhost or of all.
    pub(super) async fn running(&self, vhost: Option<&str>) -> Vec<(Arc<Connection>, Description)> {
        let mut running = self.open(vhost).await;
        running.retain(|(_, described)| self.is_own_or_seen(described));
        running
    }

    fn is_own_or_seen(&self, described: &Description) -> bool {
        rights::sees_all_connections(&self.viewer) || described.user == self.viewer.name
    }

    async fn open(&self, vhost: Option<&str>) -> Vec<(Arc<Connection>, Description)> {
        let asked = futures::stream::iter(self.connections.all()).map(describe);
        let all: Vec<Option<(Arc<Connection>, Description)>> = asked.buffered(AT_ONCE).collect().await;
        let shown = |described: &Description| vhost.is_none_or(|vhost| described.vhost == vhost);
        all.into_iter().flatten().filter(|(_, described)| described.is_running && shown(described)).collect()
    }

    /// The connection with this name.
    ///
    /// # Errors
    /// 404 when there is none; 401 when it is not for the caller to see.
    pub(super) async fn connection(&self, name: &str) -> Result<(Arc<Connection>, Description), Refusal> {
        let found = self.connections.named(name).ok_or_else(Refusal::object_not_found)?;
        let described = describe(found).await.filter(|(_, told)| told.is_running);
        let (connection, described) = described.ok_or_else(Refusal::object_not_found)?;
        if !self.is_own_or_seen(&described) {
            return Err(Refusal::not_authorised("User not authorised to access object"));
        }
        Ok((connection, described))
    }

    /// A connection as documents need it.
    pub(super) fn seen<'a>(&'a self, connection: &'a Connection, described: &'a Description) -> Seen<'a> {
        Seen { node: &self.identity.node, connection, described }
    }

    /// The consumers of one vhost or of all, of one queue or of all.
    pub(super) async fn consumers(&self, vhost: Option<&str>, queue: Option<&str>) -> Vec<Value> {
        let mut running = self.open(vhost).await;
        running.retain(|(_, described)| self.may_see(&described.vhost));
        // The place of each queue with a single active consumer, and how many it has.
        let mut rivals: HashMap<(&str, &str), usize> = HashMap::new();
        for (_, described) in &running {
            for consumer in described.channels.iter().flat_map(|channel| &channel.consumers) {
                *rivals.entry((&described.vhost, consumer.queue.as_str())).or_default() += 1;
            }
        }
        let is_served = |vhost: &str, queue: &str| {
            let definition = self.backend.queue(vhost, queue)?;
            let alone = rivals.get(&(vhost, queue)).is_none_or(|count| *count == 1);
            (alone || !definition.settings.single_active_consumer).then_some(true)
        };
        let mut documents = Vec::new();
        for (connection, described) in &running {
            let seen = self.seen(connection, described);
            for channel in &described.channels {
                for consumer in &channel.consumers {
                    let name = consumer.queue.as_str();
                    if queue.is_none_or(|queue| queue == name) {
                        documents.push(seen.consumer(channel, consumer, is_served(&described.vhost, name)));
                    }
                }
            }
        }
        documents
    }

    /// The node's document.
    pub(super) fn node(&self) -> Value {
        let uptime = u64::try_from(self.since.elapsed().as_millis()).unwrap_or_default();
        self.identity.node(uptime, self.backend.alarm())
    }
}

fn place(address: SocketAddr) -> Place {
    Place { ip: address.ip().to_string(), port: address.port() }
}

async fn describe(connection: Arc<Connection>) -> Option<(Arc<Connection>, Description)> {
    let described = connection.describe().await?;
    Some((connection, described))
}
