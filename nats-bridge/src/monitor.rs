//! A nats-server's monitoring endpoints: what it is, what it holds, who is connected, whether it is healthy.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::error::{Error, ErrorKind, Result};

/// The monitoring endpoint of one nats-server (`http: 8222` in its configuration).
///
/// Answers are given as the server wrote them; their fields are in the NATS documentation, "Monitoring".
///
/// ```no_run
/// # async fn example() -> nats_bridge::Result<()> {
/// let server = nats_bridge::Monitor::new("http://127.0.0.1:8222")?;
/// println!("{} {}", server.varz().await?["version"], server.is_healthy().await?);
/// for connection in server.connz("limit=20&sort=pending").await?["connections"].as_array().into_iter().flatten() {
///     println!("{} {}", connection["name"], connection["pending_bytes"]);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Monitor {
    host: String,
}

/// How soon a confirmed message is really on the disk of a nats-server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fsync {
    /// Nobody asked the server.
    #[default]
    Unknown,
    /// Before it is confirmed (`sync_interval: always`).
    Always,
    /// At the latest after this time; until then a power cut loses it, a killed process does not.
    Every(Duration),
}

/// How long one answer may take, and how large it may be.
const WAIT: Duration = Duration::from_secs(5);
const LARGEST: u64 = 64 << 20;

impl Monitor {
    /// Names the endpoint, as `http://HOST:PORT` or `HOST:PORT`. TLS is not spoken: let it listen on loopback.
    ///
    /// # Errors
    /// `Config`: it is not such an address.
    pub fn new(url: &str) -> Result<Monitor> {
        let host = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
        let legal = host.rsplit_once(':').is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok());
        match legal && !host.contains(['/', '@', ' ', '\r', '\n']) {
            true => Ok(Monitor { host: host.to_owned() }),
            false => Err(Error::new(ErrorKind::Config)
                .with("monitor", url.escape_debug())
                .with("why", "http://HOST:PORT is expected")),
        }
    }

    /// The server itself: version, uptime, memory, connections, slow consumers, JetStream's limits.
    ///
    /// # Errors
    /// `Unreachable`, `Timeout`: nothing answers. `Rejected`: what answers is not a nats-server's monitoring.
    pub async fn varz(&self) -> Result<Value> {
        self.json("/varz").await
    }

    /// JetStream: streams, consumers, bytes. `query` chooses, such as `streams=true&consumers=true`; it may be empty.
    ///
    /// # Errors
    /// As [`Monitor::varz`].
    pub async fn jsz(&self, query: &str) -> Result<Value> {
        self.json(&format!("/jsz?{query}")).await
    }

    /// The connections. `query` chooses, such as `limit=100&offset=200&sort=pending`; it may be empty.
    ///
    /// # Errors
    /// As [`Monitor::varz`].
    pub async fn connz(&self, query: &str) -> Result<Value> {
        self.json(&format!("/connz?{query}")).await
    }

    /// Whether the server says that it is healthy, JetStream included.
    ///
    /// # Errors
    /// As [`Monitor::varz`].
    pub async fn is_healthy(&self) -> Result<bool> {
        Ok(self.get("/healthz").await?.0 == 200)
    }

    /// How soon what the server confirms is on disk, as far as it says.
    ///
    /// # Errors
    /// As [`Monitor::varz`].
    pub async fn fsync(&self) -> Result<Fsync> {
        let varz = self.varz().await?;
        Ok(match (varz.pointer("/jetstream/config/sync_always"), varz.pointer("/jetstream/config/sync_interval")) {
            (Some(Value::Bool(true)), _) => Fsync::Always,
            (_, Some(nanos)) => nanos.as_u64().map_or(Fsync::Unknown, |n| Fsync::Every(Duration::from_nanos(n))),
            _ => Fsync::Unknown,
        })
    }

    async fn json(&self, path: &str) -> Result<Value> {
        let (status, body) = self.get(path).await?;
        let strange = |why: String| self.error(ErrorKind::Rejected, path).with("status", status).with("why", why);
        match status {
            200 => serde_json::from_slice(&body).map_err(|e| strange(e.to_string())),
            _ => Err(strange("200 was expected".into())),
        }
    }

    async fn get(&self, path: &str) -> Result<(u16, Vec<u8>)> {
        if path.contains([' ', '\r', '\n']) {
            return Err(self.error(ErrorKind::Config, path).with("why", "no white space in a query"));
        }
        let exchange = async {
            let mut socket = TcpStream::connect(&self.host).await?;
            let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.host);
            socket.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            socket.take(LARGEST).read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = match tokio::time::timeout(WAIT, exchange).await {
            Ok(answer) => answer.map_err(|e| self.error(ErrorKind::Unreachable, path).with("why", &e).because(e))?,
            Err(_) => return Err(self.error(ErrorKind::Timeout, path)),
        };
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
        let head = end.and_then(|end| answer.get(..end)).and_then(|head| std::str::from_utf8(head).ok());
        let status = head.and_then(|head| head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok());
        match (status, end) {
            (Some(status), Some(end)) => Ok((status, answer.get(end + 4..).unwrap_or_default().to_vec())),
            _ => Err(self.error(ErrorKind::Rejected, path).with("why", "the answer is not HTTP")),
        }
    }

    fn error(&self, kind: ErrorKind, path: &str) -> Error {
        Error::new(kind).with("monitor", &self.host).with("path", path)
    }
}

impl std::fmt::Display for Fsync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fsync::Unknown => f.write_str("not known"),
            Fsync::Always => f.write_str("before each confirm"),
            Fsync::Every(interval) => write!(f, "at the latest {interval:?} after the confirm"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_host_and_port() {
        assert!(Monitor::new("http://127.0.0.1:8222/").is_ok() && Monitor::new("nats-1:8222").is_ok());
        for wrong in ["", "http://", "host", "https://h:1/x", "h:p", "u:p@h:1", "h:1\r\nX: y"] {
            assert!(Monitor::new(wrong).is_err(), "{wrong:?}");
        }
    }
}
