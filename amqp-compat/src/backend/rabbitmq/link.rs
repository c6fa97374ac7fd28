//! The task of one upstream connection.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWrite as _, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::{Instant, MissedTickBehavior};

use super::connection::{Connection, Ended, Tuned};
use super::errors::lost;
use super::handshake::{Stream, Upstream};
use super::wire;
use crate::backend::{Command, Event};
use crate::push::{Pushed, push};

/// With more than this many bytes on their way to RabbitMQ no further command is taken.
const WRITE_LIMIT: usize = 1 << 20;
/// With more than this many publishes unconfirmed no further command is taken.
const UNCONFIRMED_LIMIT: usize = 1 << 16;
/// With more than this many bytes of deliveries waiting for credit RabbitMQ is not read. Only consumers without a prefetch
/// limit can come this far; as with RabbitMQ itself, they then hold up their whole connection.
const BACKLOG_LIMIT: usize = 32 << 20;
/// How many commands are taken at once.
const BATCH: usize = 256;
/// How much is read at once, in bytes.
const READ: usize = 64 * 1024;
/// How long RabbitMQ may take to agree to the end of a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs one link until the session drops it or RabbitMQ is gone.
///
/// It never waits for one side while the other could go on: with events that the session does not take, RabbitMQ is no
/// longer read, but commands still are; with bytes that RabbitMQ does not take it is the other way round.
pub(super) async fn run(upstream: Upstream, mut commands: Receiver<Command>, events: Sender<Event>) {
    let Upstream { stream, input, tuned } = upstream;
    let (reader, writer) = tokio::io::split(stream);
    let mut link = Link {
        connection: Connection::new(tuned),
        reader,
        writer,
        input,
        writing: Vec::new(),
        written: 0,
        said: false,
        unflushed: false,
        deaf: false,
        closing: None,
    };
    let ended = link.drive(tuned, &mut commands, &events).await;
    let Link { mut connection, mut writer, .. } = link;
    if let Ended::ByThem(error) = ended {
        // Our `connection.close-ok`, if it can still be said.
        let mut rest = Vec::new();
        connection.out.swap(&mut rest);
        let _ = tokio::time::timeout(Duration::from_millis(250), writer.write_all(&rest)).await;
        drop(writer);
        tracing::debug!(%error, "the link to RabbitMQ ended");
        commands.close();
        connection.lost(&error, std::iter::from_fn(|| commands.try_recv().ok()));
        for event in connection.events {
            if events.send(event).await.is_err() {
                break;
            }
        }
    }
}

struct Link {
    connection: Connection,
    reader: ReadHalf<Stream>,
    writer: WriteHalf<Stream>,
    input: BytesMut,
    writing: Vec<u8>,
    written: usize,
    // Whether anything was written since the last look for heartbeats.
    said: bool,
    // Whether bytes may lie in the stream itself, as TLS does it.
    unflushed: bool,
    // Whether nobody takes events any more.
    deaf: bool,
    // When to stop waiting for the end; set once the session has dropped the link and all it said was taken.
    closing: Option<Instant>,
}

impl Link {
    async fn drive(&mut self, tuned: Tuned, commands: &mut Receiver<Command>, events: &Sender<Event>) -> Ended {
        let mut batch = Vec::with_capacity(BATCH);
        let heartbeat = Duration::from_secs(u64::from(tuned.heartbeat));
        // An interval of zero does not exist; without heartbeats it is never looked at.
        let mut tick = tokio::time::interval((heartbeat / 2).max(Duration::from_millis(500)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.reset();
        let mut heard = Instant::now();
        loop {
            if let Err(ended) = self.take_frames(tuned.frame_max) {
                return ended;
            }
            if !self.hand_over(events) {
                // The session has gone. What it said before still counts: the end comes when that was taken.
                self.deaf = true;
                commands.close();
            }
            if let Err(ended) = self.write() {
                return ended;
            }
            let waiting = !self.connection.events.is_empty();
            let may_read = !waiting && (self.connection.backlog() < BACKLOG_LIMIT || self.closing.is_some());
            let may_command = self.closing.is_none()
                && self.connection.out.len() < WRITE_LIMIT
                && self.connection.unconfirmed() < UNCONFIRMED_LIMIT;
            tokio::select! {
                count = commands.recv_many(&mut batch, BATCH), if may_command => {
                    if count == 0 {
                        self.start_closing();
                    }
                    self.connection.commands(batch.drain(..));
                }
                read = self.reader.read_buf(&mut self.input), if may_read => {
                    match read {
                        Ok(0) => return Ended::ByThem(lost("it was closed")),
                        Ok(_) => heard = Instant::now(),
                        Err(error) => return Ended::ByThem(lost(error)),
                    }
                }
                pushed = push(&mut self.writer, &self.writing[self.written..]), if self.unflushed || !self.writing.is_empty() => {
                    let done = match pushed {
                        Pushed::Wrote(wrote) => self.wrote(wrote),
                        Pushed::Flushed(flushed) => self.flushed(flushed),
                    };
                    if let Err(ended) = done {
                        return ended;
                    }
                }
                permit = events.reserve(), if waiting => {
                    // No permit: the session has gone; see above, in the next round.
                    if let (Ok(permit), Some(event)) = (permit, self.connection.events.pop_front()) {
                        permit.send(event);
                    }
                }
                now = tick.tick(), if !heartbeat.is_zero() => {
                    if !may_read {
                        // What was not read cannot have been missed.
                        heard = now;
                    } else if now.duration_since(heard) > 2 * heartbeat {
                        let error = format!("missed heartbeats from RabbitMQ, timeout: {}s", 2 * tuned.heartbeat);
                        return Ended::ByThem(lost(error));
                    }
                    if !self.said && self.writing.is_empty() {
                        self.connection.out.heartbeat();
                    }
                    self.said = false;
                }
                () = tokio::time::sleep_until(self.closing.unwrap_or_else(Instant::now)), if self.closing.is_some() => {
                    return Ended::ByUs;
                }
            }
        }
    }

    /// Decodes what was read.
    fn take_frames(&mut self, frame_max: usize) -> Result<(), Ended> {
        while let Some(frame) = wire::decode(&mut self.input, frame_max).map_err(Ended::ByThem)? {
            self.connection.frame(frame)?;
        }
        self.input.reserve(READ);
        Ok(())
    }

    /// Writes what RabbitMQ takes now. Nobody is woken by that; `drive` waits for room with the write that it selects.
    fn write(&mut self) -> Result<(), Ended> {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if self.written == self.writing.len() {
                self.writing.clear();
                self.writing.shrink_to(4 * WRITE_LIMIT);
                self.written = 0;
                self.connection.out.swap(&mut self.writing);
            }
            if self.writing.is_empty() {
                if self.unflushed
                    && let Poll::Ready(flushed) = Pin::new(&mut self.writer).poll_flush(&mut context)
                {
                    self.flushed(flushed)?;
                }
                return Ok(());
            }
            match Pin::new(&mut self.writer).poll_write(&mut context, &self.writing[self.written..]) {
                Poll::Ready(wrote) => self.wrote(wrote)?,
                Poll::Pending => return Ok(()),
            }
        }
    }

    fn wrote(&mut self, wrote: std::io::Result<usize>) -> Result<(), Ended> {
        match wrote {
            Ok(0) => Err(Ended::ByThem(lost("it takes no bytes"))),
            Ok(count) => {
                self.written += count;
                (self.said, self.unflushed) = (true, true);
                Ok(())
            }
            Err(error) => Err(Ended::ByThem(lost(error))),
        }
    }

    fn flushed(&mut self, flushed: std::io::Result<()>) -> Result<(), Ended> {
        self.unflushed = false;
        flushed.map_err(|error| Ended::ByThem(lost(error)))
    }

    /// Hands over as many events as fit; false when nobody takes them any more.
    fn hand_over(&mut self, events: &Sender<Event>) -> bool {
        if self.deaf || self.closing.is_some() {
            self.connection.events.clear();
        }
        while let Some(event) = self.connection.events.pop_front() {
            match events.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(event)) => {
                    self.connection.events.push_front(event);
                    return true;
                }
                Err(TrySendError::Closed(_)) => return false,
            }
        }
        true
    }

    fn start_closing(&mut self) {
        if self.closing.is_none() {
            self.closing = Some(Instant::now() + CLOSE_TIMEOUT);
            self.connection.close();
            self.connection.events.clear();
        }
    }
}
