//! The connections that a listener has, for those who look at them or close one.
//!
//! An entry holds what never changes and a way to ask the connection's task. What changes is told by the task when it is
//! asked, so that messages pay nothing for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};

use crate::session::Description;

/// How many questions may wait at one connection; who asks one more waits for room.
const QUESTIONS: usize = 16;

/// How long a connection may take to answer; its task never waits for one thing alone.
const PATIENCE: Duration = Duration::from_secs(5);

/// The connections of a listener, in the order in which they came. A clone shows the same ones.
#[derive(Debug, Clone, Default)]
pub struct Connections {
    entries: Arc<Mutex<BTreeMap<u64, Arc<Connection>>>>,
    next: Arc<AtomicU64>,
}

/// A connection of a listener.
#[derive(Debug)]
pub struct Connection {
    /// Its name as in RabbitMQ: `PEER:PORT -> HOST:PORT`.
    pub name: String,
    /// The client's address.
    pub peer: SocketAddr,
    /// The address that the client connected to.
    pub local: SocketAddr,
    /// Whether it is encrypted.
    pub is_tls: bool,
    /// When it came.
    pub since: SystemTime,
    questions: mpsc::Sender<Question>,
}

/// What a connection's task is asked.
#[derive(Debug)]
pub(super) enum Question {
    /// To describe the connection.
    Describe(oneshot::Sender<Description>),
    /// To close it for this reason.
    Close(String),
}

impl Connections {
    /// All connections.
    pub fn all(&self) -> Vec<Arc<Connection>> {
        self.entries().values().cloned().collect()
    }

    /// The connection with this name.
    pub fn named(&self, name: &str) -> Option<Arc<Connection>> {
        self.entries().values().find(|connection| connection.name == name).cloned()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a connection, until the answer is dropped.
    pub(super) fn add(&self, peer: SocketAddr, local: SocketAddr, is_tls: bool) -> Registered {
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let name = format!("{peer} -> {local}");
        let connection = Connection { name, peer, local, is_tls, since: SystemTime::now(), questions };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.entries().insert(number, Arc::new(connection));
        Registered { of: self.clone(), number, asked }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Connection>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// What can be told of it now; `None` when it is gone.
    pub async fn describe(&self) -> Option<Description> {
        let asked = async {
            let (answer, told) = oneshot::channel();
            self.questions.send(Question::Describe(answer)).await.ok()?;
            told.await.ok()
        };
        tokio::time::timeout(PATIENCE, asked).await.ok()?
    }

    /// Closes it with 320 `CONNECTION_FORCED` and this reason. Nothing happens to one that is gone.
    pub async fn close(&self, reason: &str) {
        let _ = tokio::time::timeout(PATIENCE, self.questions.send(Question::Close(reason.to_owned()))).await;
    }
}

/// The place of one connection in the list, given up when dropped.
#[derive(Debug)]
pub(crate) struct Registered {
    of: Connections,
    number: u64,
    asked: mpsc::Receiver<Question>,
}

impl Registered {
    /// The next question.
    ///
    /// # Cancel safety
    /// Cancel safe, as `recv` is.
    pub(super) async fn next(&mut self) -> Question {
        match self.asked.recv().await {
            Some(question) => question,
            // The list holds a sender for as long as this place is held.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.of.entries().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_is_listed_while_it_is_there_and_answers_nothing_afterwards() {
        let connections = Connections::default();
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let first = connections.add(address(1), address(5672), false);
        let second = connections.add(address(2), address(5672), false);
        let names: Vec<String> = connections.all().iter().map(|connection| connection.name.clone()).collect();
        assert_eq!(names, ["127.0.0.1:1 -> 127.0.0.1:5672", "127.0.0.1:2 -> 127.0.0.1:5672"]);
        let gone = connections.named("127.0.0.1:1 -> 127.0.0.1:5672").expect("is there");
        drop(first);
        assert_eq!(connections.len(), 1);
        assert!(gone.describe().await.is_none());
        gone.close("nobody hears it").await;
        drop(second);
        assert!(connections.is_empty());
    }
}
