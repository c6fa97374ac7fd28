//! A connection inside the process: lapin at one end of a pipe, a session over a backend at the other.

use std::fmt;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::Runtime;
use async_rs::traits::{Reactor, RuntimeKit};
use async_rs::util::RuntimeParts;
use futures::{AsyncRead, AsyncWrite, Stream};
#[cfg(unix)]
use std::os::fd::{AsFd as AsSocket, AsRawFd as AsRawSocket};
#[cfg(windows)]
use std::os::windows::io::{AsRawSocket, AsSocket};
use tokio::io::{AsyncRead as _, AsyncWrite as _, DuplexStream, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::connection::inside_tokio;
use super::gateway::Gateway;
use super::uri::AMQPUri;
use super::{AsyncTcpStream, ConnectionProperties, Result};
use crate::backend::Backend;
use crate::listener::connection::{self, Client};
use crate::listener::refusals::Refusals;
use crate::session::Limits;

/// How many bytes lie in a pipe, each way, until its writer waits.
const CAPACITY: usize = 256 * 1024;

/// What a session in this process is run over.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) limits: Limits,
    /// The client's name in logs.
    pub(super) peer: String,
    /// Lives as long as the session.
    pub(super) gateway: Option<Arc<Gateway>>,
}

/// Connects lapin to the broker that `broker` gives for each attempt.
pub(super) async fn connect<RK: RuntimeKit + Send + Sync + Clone + 'static>(
    uri: AMQPUri,
    runtime: Runtime<RK>,
    broker: impl AsyncFn() -> Result<Served> + Send + Sync + 'static,
    options: ConnectionProperties,
) -> Result<lapin::Connection> {
    let inside = Runtime::new(RuntimeParts::new(runtime.clone(), Inside(runtime)));
    let connect = async move |_: AMQPUri, _: Runtime<_>| {
        // lapin calls this on a thread of its own, in the context of the runtime that it was given.
        inside_tokio()?;
        Ok(AsyncTcpStream::Plain(serve(broker().await?)))
    };
    lapin::Connection::connector(uri, inside, connect, options).await
}

/// Starts a session, and gives the client's end of its pipe.
fn serve(served: Served) -> Pipe {
    let (near, far) = tokio::io::duplex(CAPACITY);
    let (reader, writer) = tokio::io::split(far);
    let Served { backend, limits, peer, gateway } = served;
    tokio::spawn(async move {
        // It ends with its client; there is nobody else to stop it.
        let never = CancellationToken::new();
        let client = Client { reader, writer, peer, certified: None, registered: None };
        connection::serve(client, backend, Arc::new(Refusals::default()), limits, never).await;
        drop(gateway);
    });
    Pipe(near)
}

/// One end of a pipe, with the traits that lapin reads and writes by.
#[derive(Debug)]
pub(super) struct Pipe(DuplexStream);

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut read = ReadBuf::new(bytes);
        ready!(Pin::new(&mut self.0).poll_read(context, &mut read))?;
        Poll::Ready(Ok(read.filled().len()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// A runtime whose connections are pipes.
#[derive(Clone)]
struct Inside<RK: RuntimeKit>(Runtime<RK>);

impl<RK: RuntimeKit> Reactor for Inside<RK> {
    type TcpStream = Pipe;
    type Sleep = <Runtime<RK> as Reactor>::Sleep;

    fn register<H: Read + Write + AsSocket + AsRawSocket + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(&self, address: SocketAddr) -> impl Future<Output = io::Result<Pipe>> + Send + 'static {
        let text = format!("nothing is connected to {address}: this runtime has pipes only");
        std::future::ready(Err(io::Error::new(io::ErrorKind::Unsupported, text)))
    }
}

impl<RK: RuntimeKit> fmt::Debug for Inside<RK> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Inside").field(&self.0).finish()
    }
}
