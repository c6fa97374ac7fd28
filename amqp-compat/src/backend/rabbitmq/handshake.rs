//! Connecting: TCP, TLS, login, tuning, `connection.open`.

use std::sync::Arc;

use amq_protocol::protocol::{AMQPClass, connection};
use amq_protocol::types::{AMQPValue, FieldTable, ShortString};
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::config::{RabbitMqConfig, Tls};
use super::connection::Tuned;
use super::errors::{from_close, unexpected};
use super::wire::{self, Frame};
use crate::backend::Login;
use crate::codec::Output;
use crate::error::{AmqpError, ReplyCode};

/// The largest frame that is accepted, and the limit during the handshake.
const FRAME_MAX: u32 = 131_072;

/// A TCP connection, with or without TLS.
pub(super) type Stream = Box<dyn Socket>;

/// What a [`Stream`] can do.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// A connection that is ready for channels.
pub(super) struct Upstream {
    /// The socket.
    pub(super) stream: Stream,
    /// What was read already.
    pub(super) input: BytesMut,
    /// What was agreed on.
    pub(super) tuned: Tuned,
}

/// A connection whose login RabbitMQ took, and whose limits are still to be agreed on.
pub(super) struct LoggedIn {
    talk: Talk,
    tune: connection::Tune,
}

impl std::fmt::Debug for LoggedIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoggedIn").field("tune", &self.tune).finish_non_exhaustive()
    }
}

/// Connects and logs in, up to `connection.tune`.
///
/// # Errors
/// RabbitMQ's own answer where it gave one, else `InternalError`. The socket is closed.
pub(super) async fn login(config: &RabbitMqConfig, login: &Login) -> Result<LoggedIn, AmqpError> {
    let stream = connect(config).await?;
    let mut talk = Talk { stream, input: BytesMut::with_capacity(64 * 1024), out: Output::default() };
    talk.out.protocol_header();
    talk.flush().await?;

    let connection::AMQPMethod::Start(start) = talk.hear().await? else {
        return Err(unexpected("no 'connection.start'"));
    };
    if !String::from_utf8_lossy(start.mechanisms.as_bytes()).split(' ').any(|name| name == "PLAIN") {
        let text = format!("RabbitMQ offers no PLAIN login, only: {}", start.mechanisms);
        return Err(AmqpError::new(ReplyCode::AccessRefused, text));
    }
    talk.say(connection::AMQPMethod::StartOk(connection::StartOk {
        client_properties: client_properties(login),
        mechanism: "PLAIN".into(),
        response: format!("\0{}\0{}", login.user, login.password).into_bytes().into(),
        locale: "en_US".into(),
    }))
    .await?;

    let connection::AMQPMethod::Tune(tune) = talk.hear().await? else { return Err(unexpected("no 'connection.tune'")) };
    Ok(LoggedIn { talk, tune })
}

impl LoggedIn {
    /// Agrees on limits and opens the vhost.
    ///
    /// # Errors
    /// RabbitMQ's own answer where it gave one, else `InternalError`. The socket is closed.
    pub(super) async fn open(self, config: &RabbitMqConfig, vhost: &str) -> Result<Upstream, AmqpError> {
        let Self { mut talk, tune } = self;
        let virtual_host = ShortString::try_new(vhost)
            .map_err(|_| AmqpError::new(ReplyCode::NotAllowed, "the vhost's name is longer than 255 bytes"))?;
        let tuned = agree(&tune, config);
        talk.say(connection::AMQPMethod::TuneOk(connection::TuneOk {
            channel_max: tuned.channel_max,
            frame_max: tuned.frame_max as u32,
            heartbeat: tuned.heartbeat,
        }))
        .await?;
        talk.say(connection::AMQPMethod::Open(connection::Open { virtual_host })).await?;
        match talk.hear().await? {
            connection::AMQPMethod::OpenOk(_) => Ok(Upstream { stream: talk.stream, input: talk.input, tuned }),
            _ => Err(unexpected("no 'connection.open-ok'")),
        }
    }
}

/// Ours is the lower value of each; 0 means "no limit" (AMQP 0-9-1, `connection.tune`).
fn agree(tune: &connection::Tune, config: &RabbitMqConfig) -> Tuned {
    let lower = |theirs: u32, ours: u32| if theirs == 0 || ours == 0 { theirs.max(ours) } else { theirs.min(ours) };
    let heartbeat = u32::try_from(config.heartbeat.as_secs()).unwrap_or(u32::MAX);
    Tuned {
        channel_max: if tune.channel_max == 0 { u16::MAX } else { tune.channel_max },
        frame_max: lower(tune.frame_max, FRAME_MAX) as usize,
        heartbeat: u16::try_from(lower(tune.heartbeat.into(), heartbeat)).unwrap_or(u16::MAX),
    }
}

/// The client's own properties, so that RabbitMQ shows the application, but what this connection can do.
fn client_properties(login: &Login) -> FieldTable {
    let mut capabilities = FieldTable::default();
    for capability in [
        "authentication_failure_close",
        "basic.nack",
        "connection.blocked",
        "consumer_cancel_notify",
        "exchange_exchange_bindings",
        "publisher_confirms",
    ] {
        capabilities.insert(capability.into(), AMQPValue::Boolean(true));
    }
    let mut properties = login.client_properties.clone();
    properties.insert("capabilities".into(), AMQPValue::FieldTable(capabilities));
    if !properties.contains_key("connection_name") {
        let name = format!("nats-bridge for {}", login.peer);
        properties.insert("connection_name".into(), AMQPValue::LongString(name.into_bytes().into()));
    }
    properties
}

async fn connect(config: &RabbitMqConfig) -> Result<Stream, AmqpError> {
    let unreachable = |error: std::io::Error| {
        AmqpError::new(ReplyCode::InternalError, format!("RabbitMQ at {config} cannot be reached: {error}"))
    };
    let socket = TcpStream::connect((config.host.as_str(), config.port)).await.map_err(unreachable)?;
    socket.set_nodelay(true).map_err(unreachable)?;
    let Some(tls) = &config.tls else { return Ok(Box::new(socket)) };
    let failed = |why: String| AmqpError::new(ReplyCode::InternalError, format!("TLS to RabbitMQ at {config}: {why}"));
    let client = tls_client(tls).map_err(failed)?;
    let name = ServerName::try_from(config.host.clone()).map_err(|e| failed(e.to_string()))?;
    match TlsConnector::from(Arc::new(client)).connect(name, socket).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(failed(error.to_string())),
    }
}

fn tls_client(tls: &Tls) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match &tls.ca_file {
        Some(file) => {
            let read = |e| format!("{}: {e}", file.display());
            for certificate in CertificateDer::pem_file_iter(file).map_err(read)? {
                roots.add(certificate.map_err(read)?).map_err(|e| format!("{}: {e}", file.display()))?;
            }
        }
        None => {
            let loaded = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(loaded.certs);
        }
    }
    if roots.is_empty() {
        return Err(match &tls.ca_file {
            Some(file) => format!("{} holds no certificate", file.display()),
            None => "the system trusts no authority: name one with ?cacertfile=".to_owned(),
        });
    }
    // The provider is named: with none chosen for the process, rustls would panic.
    ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_root_certificates(roots).with_no_client_auth())
        .map_err(|e| e.to_string())
}

/// A conversation of methods on channel 0.
struct Talk {
    stream: Stream,
    input: BytesMut,
    out: Output,
}

impl Talk {
    async fn say(&mut self, method: connection::AMQPMethod) -> Result<(), AmqpError> {
        self.out.method(0, AMQPClass::Connection(method));
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), AmqpError> {
        let mut bytes = Vec::new();
        self.out.swap(&mut bytes);
        self.stream.write_all(&bytes).await.map_err(broke_off)
    }

    /// The next method. A `connection.close` is agreed to, and is an error.
    async fn hear(&mut self) -> Result<connection::AMQPMethod, AmqpError> {
        loop {
            match wire::decode(&mut self.input, FRAME_MAX as usize)? {
                Some(Frame::Method(0, AMQPClass::Connection(connection::AMQPMethod::Close(close)))) => {
                    // It closes either way.
                    let _ = self.say(connection::AMQPMethod::CloseOk(connection::CloseOk {})).await;
                    return Err(from_close(close.reply_code, close.reply_text.as_str()));
                }
                Some(Frame::Method(0, AMQPClass::Connection(method))) => return Ok(method),
                Some(Frame::Heartbeat) => {}
                Some(_) => return Err(unexpected("a frame of a channel before 'connection.open-ok'")),
                None => {
                    if self.stream.read_buf(&mut self.input).await.map_err(broke_off)? == 0 {
                        return Err(broke_off(std::io::ErrorKind::UnexpectedEof.into()));
                    }
                }
            }
        }
    }
}

fn broke_off(error: std::io::Error) -> AmqpError {
    AmqpError::new(ReplyCode::InternalError, format!("RabbitMQ broke off the connection during login: {error}"))
}
