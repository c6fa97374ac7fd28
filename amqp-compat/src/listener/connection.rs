//! One connection's task: a stream (a socket, or a pipe inside the process), a session and a link.
//!
//! The loop never waits for one of its sides alone: reading, writing, sending commands and taking events are branches of
//! one `select!`, each switched off while the session cannot take more of it. So a slow client stops its events, a slow
//! broker stops its reads, and neither can block the other.

use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream, SelectAll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use ulid::Ulid;

use super::figures::Figures;
use super::refusals::Refusals;
use super::registry::{Question, Registered};
use super::tls::{self, Spoken, Tls};
use crate::backend::{Backend, Command, Event, Link};
use crate::error::AmqpError;
use crate::push::{Pushed, push};
use crate::session::{Ask, Limits, Session};

/// How many bytes are read at once.
const READ: usize = 64 * 1024;

/// How many bytes may wait to be decoded; more than the largest frame.
const MAX_INPUT: usize = 256 * 1024;

/// How many events are taken at once.
const EVENTS: usize = 256;

/// How long the last bytes may take to be written, and the client to close its side.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long a client whose close was answered may take to close the socket.
const LEAVING: Duration = Duration::from_secs(5);

/// Serves one connection to its end, by TLS where there is a configuration for it.
pub(super) async fn serve_socket(
    (stream, tls): (TcpStream, Option<Arc<Tls>>),
    peer: SocketAddr,
    backend: Arc<dyn Backend>,
    refusals: Arc<Refusals>,
    registered: Registered,
    limits: Limits,
    shutdown: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%peer, %error, "cannot switch Nagle's algorithm off");
    }
    let peer = peer.to_string();
    let registered = Some(registered);
    // The limit of a handshake counts here too: a client that says nothing holds its place no longer.
    let spoken = tokio::select! {
        spoken = tokio::time::timeout(limits.handshake, tls::spoken(&stream)) => spoken,
        () = shutdown.cancelled() => return,
    };
    let Ok(Ok(spoken)) = spoken else {
        debug!(%peer, "a client said nothing");
        return;
    };
    let Some(tls) = tls else {
        if spoken == Spoken::Tls {
            warn!(%peer, "a client speaks TLS on the port for plain AMQP: its URL has to be amqp://, or to name the port of --listen-tls");
        }
        let (reader, writer) = stream.into_split();
        let client = Client { reader, writer, peer, certified: None, registered };
        return serve(client, backend, refusals, limits, shutdown).await;
    };
    if spoken != Spoken::Tls {
        // Without a word: whatever it is told in plain text, it may answer with its password.
        warn!(%peer, "a client speaks no TLS on the port for it: its URL has to be amqps://, or to name the port of --listen");
        return;
    }
    let handshake = TlsAcceptor::from(tls.current()).accept(stream);
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(limits.handshake, handshake) => shaken,
        () = shutdown.cancelled() => return,
    };
    match shaken {
        Ok(Ok(stream)) => {
            let certified = tls::common_name(stream.get_ref().1.peer_certificates());
            let (reader, writer) = tokio::io::split(stream);
            let client = Client { reader, writer, peer, certified, registered };
            serve(client, backend, refusals, limits, shutdown).await;
        }
        Ok(Err(error)) => warn!(%peer, %error, "a TLS handshake failed"),
        Err(_) => warn!(%peer, "a TLS handshake took too long"),
    }
}

/// Who is served: a stream, and what is said of it.
pub(crate) struct Client<R, W> {
    /// What it sends.
    pub(crate) reader: R,
    /// What it is sent.
    pub(crate) writer: W,
    /// Its address, for logs.
    pub(crate) peer: String,
    /// Whom its certificate names, if it showed one.
    pub(crate) certified: Option<String>,
    /// Its place in the list of connections, if it is in one.
    pub(crate) registered: Option<Registered>,
}

/// Serves one connection to its end, over whatever its client is at the other end of.
pub(crate) async fn serve<R, W>(
    client: Client<R, W>,
    backend: Arc<dyn Backend>,
    refusals: Arc<Refusals>,
    limits: Limits,
    shutdown: CancellationToken,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let Client { reader, writer, peer, certified, registered } = client;
    let mut session = Session::new(peer.clone(), &Ulid::new().to_string(), limits, Instant::now());
    if let Some(name) = certified.filter(|_| backend.takes_certificates()) {
        session.offer_external(name);
    }
    let mut task = Task {
        session,
        backend,
        refusals,
        figures: Figures::open(),
        peer,
        reader,
        writer,
        input: BytesMut::new(),
        ended: false,
        dead: false,
        writing: Vec::new(),
        written: 0,
        unflushed: false,
        commands: None,
        events: None,
        waiting: VecDeque::new(),
    };
    task.run(signals(registered, shutdown.clone())).await;
    task.last_words(shutdown).await;
}

struct Task<R, W> {
    session: Session,
    backend: Arc<dyn Backend>,
    refusals: Arc<Refusals>,
    figures: Figures,
    peer: String,
    reader: R,
    writer: W,
    input: BytesMut,
    /// The client has closed its side.
    ended: bool,
    /// The stream takes no more bytes.
    dead: bool,
    /// What is being written, and how much of it has gone.
    writing: Vec<u8>,
    written: usize,
    /// Bytes may lie in the stream itself, as TLS does it.
    unflushed: bool,
    commands: Option<mpsc::Sender<Command>>,
    events: Option<mpsc::Receiver<Event>>,
    /// Events that are taken and not worked on.
    waiting: VecDeque<Event>,
}

/// What a connection hears besides its client and its link.
enum Signal {
    /// Somebody wants to know something of it, or to close it.
    Asked(Question),
    /// The listener shuts down; heard once.
    Stop,
}

/// All that it is to hear. A branch of `select!` is looked at twice for every message that passes; what is in here only when it has woken the task.
fn signals(registered: Option<Registered>, shutdown: CancellationToken) -> SelectAll<BoxStream<'static, Signal>> {
    let stop = stream::once(shutdown.cancelled_owned()).map(|()| Signal::Stop);
    let mut all = stream::select_all([stop.boxed()]);
    if let Some(registered) = registered {
        let questions = stream::unfold(registered, async |mut registered| {
            Some((Signal::Asked(registered.next().await), registered))
        });
        all.push(questions.boxed());
    }
    all
}

/// What an [`Ask`] came to.
type Answer = Result<Option<Link>, AmqpError>;

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Task<R, W> {
    async fn run(&mut self, mut signals: SelectAll<BoxStream<'static, Signal>>) {
        let mut asked: Option<Pin<Box<dyn Future<Output = Answer> + Send>>> = None;
        let mut batch = Vec::with_capacity(EVENTS);
        let alarm = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(alarm);
        while !self.work() {
            if let Some(ask) = self.session.take_ask() {
                asked = Some(answer(Arc::clone(&self.backend), ask));
            }
            // An alarm that rings early does no harm; moving it for each byte would cost. One that is set to a time that
            // has passed is elapsed at once and must still be heard.
            let deadline = self.session.deadline().map(tokio::time::Instant::from_std);
            if let Some(deadline) = deadline
                && (deadline < alarm.deadline() || alarm.is_elapsed())
            {
                alarm.as_mut().reset(deadline);
            }
            let reads = !self.ended && self.session.takes_input() && self.input.len() < MAX_INPUT;
            let takes = self.waiting.is_empty() && self.session.takes_events();
            let pushes = self.written < self.writing.len() || self.unflushed;
            let sends = !self.session.commands().is_empty();
            tokio::select! {
                read = read(&mut self.reader, &mut self.input), if reads => match read {
                    Ok(1..) => {}
                    Ok(0) => self.ended = true,
                    Err(error) => {
                        debug!(peer = %self.peer, %error, "an AMQP client's socket failed");
                        // Nothing can be written either.
                        self.give_up_writing();
                    }
                },
                taken = take(&mut self.events, &mut batch), if takes && self.events.is_some() => {
                    if taken == 0 {
                        self.events = None;
                        self.session.link_ended(Instant::now());
                    }
                    self.waiting.extend(batch.drain(..));
                }
                pushed = push(&mut self.writer, &self.writing[self.written..]), if pushes => match pushed {
                    Pushed::Wrote(wrote) => self.wrote(wrote),
                    Pushed::Flushed(flushed) => self.flushed(flushed),
                },
                open = room(&self.commands), if sends && self.commands.is_some() => {
                    if !open {
                        self.commands = None;
                    }
                }
                answer = wait(&mut asked), if asked.is_some() => {
                    asked = None;
                    self.answered(answer);
                }
                () = &mut alarm, if deadline.is_some() => self.session.tick(Instant::now()),
                Some(signal) = signals.next() => match signal {
                    Signal::Asked(question) => self.asked(question),
                    Signal::Stop => self.session.shutdown(Instant::now()),
                },
            }
        }
    }

    fn asked(&mut self, question: Question) {
        match question {
            // Who asked may have gone.
            Question::Describe(answer) => drop(answer.send(self.session.describe())),
            Question::Close(reason) => {
                info!(peer = %self.peer, reason, "closing an AMQP connection for an operator");
                self.session.close_forced(&reason, Instant::now());
            }
        }
    }

    /// Does all that can be done without waiting; answers whether the connection is over.
    fn work(&mut self) -> bool {
        let now = Instant::now();
        loop {
            while self.session.takes_events()
                && let Some(event) = self.waiting.pop_front()
            {
                self.session.event(event, now);
            }
            if !self.input.is_empty() {
                self.session.read(&mut self.input, now);
            }
            if self.ended && self.session.takes_input() {
                // All that the client has sent is worked on; what is left is no whole frame.
                self.input.clear();
                self.session.hung_up(now);
            }
            self.session.flush();
            self.send();
            if !self.write(now) {
                break;
            }
        }
        self.figures.tell(self.session.counts());
        for refusal in self.session.take_refusals() {
            self.refusals.tell(&self.peer, self.session.login(), &refusal, now);
        }
        self.session.is_over()
    }

    /// Sends the commands that the link has room for.
    fn send(&mut self) {
        let commands = self.session.commands();
        match &self.commands {
            Some(_) if commands.is_empty() => {}
            Some(link) => {
                let amount = commands.len().min(link.capacity());
                match link.try_reserve_many(amount) {
                    Ok(permits) => {
                        for (permit, command) in permits.zip(commands.drain(..amount)) {
                            permit.send(command);
                        }
                    }
                    Err(mpsc::error::TrySendError::Full(())) => {}
                    // The link's last event says why.
                    Err(mpsc::error::TrySendError::Closed(())) => commands.clear(),
                }
            }
            None => commands.clear(),
        }
        if commands.is_empty() && self.session.is_link_done() {
            self.commands = None;
        }
    }

    /// Writes what the socket takes; answers whether something became possible by that.
    fn write(&mut self, now: Instant) -> bool {
        if self.writing.is_empty() && self.session.output_len() > 0 {
            self.session.take_output(&mut self.writing, now);
        }
        if self.dead {
            // Never written: nothing that was in there is settled for the client.
            self.writing.clear();
        }
        if self.writing.is_empty() {
            return false;
        }
        // Nobody is woken by these; `run` waits for room with the write that it selects.
        let mut context = Context::from_waker(Waker::noop());
        while self.written < self.writing.len() {
            match Pin::new(&mut self.writer).poll_write(&mut context, &self.writing[self.written..]) {
                Poll::Ready(wrote) => self.wrote(wrote),
                Poll::Pending => return false,
            }
            if self.dead {
                return false;
            }
        }
        match Pin::new(&mut self.writer).poll_flush(&mut context) {
            Poll::Ready(flushed) => self.flushed(flushed),
            // `run` waits for it.
            Poll::Pending => self.unflushed = true,
        }
        if self.dead {
            return false;
        }
        self.writing.clear();
        self.written = 0;
        // A large delivery must not keep its room for the life of the connection.
        self.writing.shrink_to(MAX_INPUT);
        self.session.written();
        true
    }

    fn wrote(&mut self, wrote: std::io::Result<usize>) {
        match wrote {
            Ok(0) => self.give_up_writing(),
            Ok(count) => self.written += count,
            Err(error) => {
                debug!(peer = %self.peer, %error, "an AMQP client's socket failed");
                self.give_up_writing();
            }
        }
    }

    fn flushed(&mut self, flushed: std::io::Result<()>) {
        self.unflushed = false;
        if let Err(error) = flushed {
            debug!(peer = %self.peer, %error, "an AMQP client's socket failed");
            self.give_up_writing();
        }
    }

    /// The client will not hear anything any more: no delivery counts as written from here on.
    fn give_up_writing(&mut self) {
        self.writing.clear();
        self.written = 0;
        self.unflushed = false;
        self.dead = true;
        self.ended = true;
        self.session.hung_up(Instant::now());
    }

    fn answered(&mut self, answer: Answer) {
        let login = self.session.login();
        let (user, vhost) = (login.user.clone(), login.vhost.clone());
        let outcome = match answer {
            Ok(link) => {
                if let Some(Link { commands, events }) = link {
                    info!(peer = %self.peer, user, vhost, "AMQP connection opened");
                    self.commands = Some(commands);
                    self.events = Some(events);
                }
                Ok(())
            }
            Err(error) => {
                // The vhost comes after the login: until then there is none to name.
                let vhost = Some(vhost).filter(|vhost| !vhost.is_empty());
                warn!(peer = %self.peer, user, vhost, %error, "AMQP connection refused");
                Err(error)
            }
        };
        let is_told = outcome.is_err();
        self.session.answered(outcome, Instant::now());
        if is_told {
            self.session.take_refusals();
        }
    }

    /// Writes what is left, closes the socket, and lets the client close its side, so that it can read what was written.
    async fn last_words(mut self, shutdown: CancellationToken) {
        let mut sink = [0; 4096];
        let words = async {
            if !self.dead && (self.session.output_len() > 0 || !self.writing.is_empty()) {
                self.writer.write_all(&self.writing[self.written..]).await?;
                let mut rest = Vec::new();
                self.session.take_output(&mut rest, Instant::now());
                self.writer.write_all(&rest).await?;
            }
            self.writer.flush().await
        };
        let mut ended = tokio::time::timeout(LAST_WORDS, words).await;
        if self.session.was_left() && matches!(ended, Ok(Ok(()))) {
            let its_end = async { while !matches!(self.reader.read(&mut sink).await, Ok(0) | Err(_)) {} };
            tokio::select! {
                () = its_end => {}
                () = tokio::time::sleep(LEAVING) => {}
                () = shutdown.cancelled() => {}
            }
        }
        if matches!(ended, Ok(Ok(()))) {
            let end = async {
                self.writer.shutdown().await?;
                while self.reader.read(&mut sink).await? > 0 {}
                Ok(())
            };
            ended = tokio::time::timeout(LAST_WORDS, end).await;
        }
        if let Ok(Err(error)) = ended {
            debug!(peer = %self.peer, %error, "an AMQP client was gone before the last words");
        }
        debug!(peer = %self.peer, "AMQP connection closed");
    }
}

/// Reads into `input`.
///
/// # Cancel safety
/// Cancel safe: nothing is read when it is dropped.
async fn read(reader: &mut (impl AsyncRead + Unpin), input: &mut BytesMut) -> std::io::Result<usize> {
    if input.capacity() - input.len() < READ / 4 {
        input.reserve(READ);
    }
    reader.read_buf(input).await
}

/// Takes events, as many as there are; 0 when the link has ended.
///
/// # Cancel safety
/// Cancel safe, as `recv_many` is.
async fn take(events: &mut Option<mpsc::Receiver<Event>>, batch: &mut Vec<Event>) -> usize {
    match events {
        Some(events) => events.recv_many(batch, EVENTS).await,
        None => std::future::pending().await,
    }
}

/// Waits until the link has room for a command; `false` when it is gone.
async fn room(commands: &Option<mpsc::Sender<Command>>) -> bool {
    match commands {
        Some(commands) => commands.reserve().await.is_ok(),
        None => std::future::pending().await,
    }
}

async fn wait(asked: &mut Option<Pin<Box<dyn Future<Output = Answer> + Send>>>) -> Answer {
    match asked {
        Some(asked) => asked.await,
        None => std::future::pending().await,
    }
}

fn answer(backend: Arc<dyn Backend>, ask: Ask) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
    Box::pin(async move {
        match ask {
            Ask::Authenticate(login) => backend.authenticate(&login).await.map(|()| None),
            Ask::Open(login) => backend.open(login).await.map(Some),
        }
    })
}
