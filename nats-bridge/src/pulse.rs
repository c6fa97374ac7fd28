//! Whether a connection that has gone quiet still lives.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use async_nats::{Client, Request, RequestErrorKind};

/// How long an answer may take before the connection is taken for dead, and how long until it is asked again.
const WAIT: Duration = Duration::from_secs(1);

/// Asks the server for a sign of life, and makes the connection anew when there is none.
///
/// A connection that is half open (a machine that vanished, a firewall that forgot it) looks healthy until two pings went
/// unanswered, which is 20 to 30 s by default. Whoever misses an answer earlier has it looked at here.
#[derive(Debug)]
pub(crate) struct Pulse {
    client: Client,
    asked: Mutex<Option<Instant>>,
}

impl Pulse {
    pub fn new(client: Client) -> Self {
        Pulse { client, asked: Mutex::new(None) }
    }

    /// Looks, at most once at a time; makes the connection anew when JetStream's API does not answer within a second.
    pub async fn feel(&self) {
        if !self.may_ask(Instant::now()) {
            return;
        }
        if self.answers().await {
            return;
        }
        tracing::warn!("the connection to NATS is open and nothing answers; connecting anew");
        metrics::counter!("natsbridge_forced_reconnects_total").increment(1);
        // A full command channel: then the client's own pings must notice.
        let _ = tokio::time::timeout(WAIT, self.client.force_reconnect()).await;
    }

    /// Asks for a sign of life: whether one came. Then the server has read what was sent before.
    pub async fn answers(&self) -> bool {
        let request = Request::new().payload(Default::default()).timeout(Some(WAIT));
        let answer = self.client.send_request("$JS.API.INFO", request).await;
        !matches!(&answer, Err(error) if error.kind() == RequestErrorKind::TimedOut)
    }

    fn may_ask(&self, now: Instant) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let free = asked.is_none_or(|asked| now.duration_since(asked) > 3 * WAIT);
        if free {
            *asked = Some(now);
        }
        free
    }
}
