//! One conversation between two gateways over core NATS: messages in both directions, each once and in order, and signs
//! of life. It ends when the other side is silent for too long.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use async_nats::{Client, Subject};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use nats_bridge::Bridge;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::window::{Came, Frame, Window};

/// How many signs of life are given in the time for which the other side may be silent.
const BEATS_IN_SILENCE: u32 = 10;
/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(100);
/// How long what has come may wait to be told of together with more.
const TOLD_AFTER: Duration = Duration::from_millis(2);
/// How many frames may have come that were not told of.
const UNTOLD: u64 = 256;
/// Messages that wait between the conversation and its user, in each direction.
const WAITING: usize = 256;
/// The largest frame; less where NATS takes less.
const FRAME: usize = 512 << 10;
const HEADER: usize = 33;

const DATA: u8 = 0;
const PART: u8 = 1;
const BEATS: u8 = 2;
const UNKNOWN: u8 = 3;

/// The user's end of a conversation.
pub(super) struct Conduit {
    /// What is to be said. Dropping it ends the conversation once everything has come to the other side.
    pub(super) out: mpsc::Sender<Bytes>,
    /// What was said by the other side; ends with the conversation.
    pub(super) inbound: mpsc::Receiver<Bytes>,
    /// The newest of our signs of life that the other side is known to have had: when it was given.
    pub(super) heard: watch::Receiver<Instant>,
    /// Ended by either side. Cancelling it ends the conversation at once.
    pub(super) ended: CancellationToken,
}

/// A frame as it is on the wire.
#[derive(Debug)]
pub(super) struct Raw {
    kind: u8,
    number: u64,
    received: u64,
    stamp: u64,
    echo: u64,
    payload: Bytes,
}

impl Raw {
    /// `None` for bytes that are no frame.
    pub(super) fn read(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() < HEADER {
            return None;
        }
        let kind = bytes.get_u8();
        let (number, received, stamp, echo) = (bytes.get_u64(), bytes.get_u64(), bytes.get_u64(), bytes.get_u64());
        Some(Self { kind, number, received, stamp, echo, payload: bytes })
    }

    /// Whether a conversation begins with it.
    pub(super) fn is_first(&self) -> bool {
        matches!(self.kind, DATA | PART) && self.number == 1
    }

    /// Whether it says that the conversation is not known.
    pub(super) fn is_refusal(&self) -> bool {
        self.kind == UNKNOWN
    }

    fn write(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEADER + self.payload.len());
        bytes.put_u8(self.kind);
        for field in [self.number, self.received, self.stamp, self.echo] {
            bytes.put_u64(field);
        }
        bytes.extend_from_slice(&self.payload);
        bytes.freeze()
    }
}

/// Tells whoever wrote to a conversation that is not known here.
pub(super) async fn refuse(client: &Client, to: Subject) {
    let raw = Raw { kind: UNKNOWN, number: 0, received: 0, stamp: 0, echo: 0, payload: Bytes::new() };
    // It fails only when the client was closed.
    let _ = client.publish(to, raw.write()).await;
}

/// Starts one end of a conversation: `to` is where the other end listens, `from` where this one does, and `frames` gives
/// what comes there. It ends when the other end has been silent for `silence`.
pub(super) fn start(
    bridge: &Bridge,
    to: Subject,
    from: Subject,
    frames: mpsc::Receiver<Raw>,
    silence: Duration,
) -> Conduit {
    let (out, said) = mpsc::channel(WAITING);
    let (heard_of, inbound) = mpsc::channel(WAITING);
    let start = Instant::now();
    let (hear, heard) = watch::channel(start);
    let ended = CancellationToken::new();
    let most = bridge.client().server_info().max_payload.saturating_sub(HEADER).clamp(1, FRAME);
    let end = End {
        bridge: bridge.clone(),
        to,
        from,
        most,
        silence,
        start,
        window: Window::default(),
        came: VecDeque::new(),
        told: 0,
        echo: 0,
        hear,
    };
    let token = ended.clone();
    tokio::spawn(async move {
        let why = end.run(said, heard_of, frames, &token).await;
        tracing::debug!(why, "a conversation between gateways has ended");
        token.cancel();
    });
    Conduit { out, inbound, heard, ended }
}

struct End {
    bridge: Bridge,
    to: Subject,
    from: Subject,
    most: usize,
    silence: Duration,
    start: Instant,
    window: Window,
    /// Messages that the user has not taken yet.
    came: VecDeque<Bytes>,
    /// Up to which frame the other side was told that it has come.
    told: u64,
    /// The newest stamp of the other side.
    echo: u64,
    hear: watch::Sender<Instant>,
}

impl End {
    async fn run(
        mut self,
        mut said: mpsc::Receiver<Bytes>,
        heard_of: mpsc::Sender<Bytes>,
        mut frames: mpsc::Receiver<Raw>,
        ended: &CancellationToken,
    ) -> &'static str {
        let mut connection = self.bridge.connection();
        let mut connects = connection.borrow_and_update().connects;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last_heard = Instant::now();
        let mut last_said = Instant::now();
        let mut tell_at: Option<Instant> = None;
        let mut is_closing = false;
        loop {
            let must_wait = !self.came.is_empty();
            tokio::select! {
                () = ended.cancelled() => {
                    self.say_last(&mut said).await;
                    return "it was ended here";
                }
                permit = heard_of.reserve(), if must_wait => {
                    let (Ok(permit), Some(message)) = (permit, self.came.pop_front()) else { return "its user has gone" };
                    permit.send(message);
                    // While we do not look, it is not the other side that is silent.
                    last_heard = Instant::now();
                }
                frame = frames.recv(), if !must_wait => {
                    let Some(frame) = frame else {
                        self.say_last(&mut said).await;
                        return "nothing can come any more";
                    };
                    if frame.is_refusal() {
                        return "the other side does not know it";
                    }
                    last_heard = Instant::now();
                    if self.take(frame) {
                        tell_at.get_or_insert(last_heard + TOLD_AFTER);
                    }
                    if self.window.received().saturating_sub(self.told) >= UNTOLD {
                        self.say(BEATS, None).await;
                        tell_at = None;
                    }
                }
                message = said.recv(), if self.window.has_room() && !is_closing => {
                    let Some(message) = message else {
                        is_closing = true;
                        continue;
                    };
                    let count = self.window.send(message, self.most, self.start.elapsed());
                    self.send_newest(count).await;
                    last_said = Instant::now();
                    tell_at = None;
                }
                () = sleep_until(tell_at), if tell_at.is_some() => {
                    self.say(BEATS, None).await;
                    tell_at = None;
                }
                changed = connection.changed() => {
                    let now = *connection.borrow_and_update();
                    if changed.is_err() || now.closed {
                        return "the connection to NATS was closed";
                    }
                    if now.connects > connects {
                        connects = now.connects;
                        self.say(BEATS, None).await;
                        self.send_newest(usize::MAX).await;
                    }
                }
                _ = tick.tick() => {
                    if last_heard.elapsed() >= self.silence {
                        return "the other side is silent";
                    }
                    if self.window.is_stuck(self.start.elapsed()) {
                        self.send_newest(usize::MAX).await;
                    }
                    if last_said.elapsed() >= self.silence / BEATS_IN_SILENCE {
                        self.say(BEATS, None).await;
                        last_said = Instant::now();
                    }
                }
            }
            if is_closing && self.window.is_empty() {
                return "everything was said";
            }
        }
    }

    /// What was not said yet; nobody waits to say it again.
    async fn say_last(&mut self, said: &mut mpsc::Receiver<Bytes>) {
        while let Ok(message) = said.try_recv() {
            let count = self.window.send(message, self.most, self.start.elapsed());
            self.send_newest(count).await;
        }
    }

    /// Takes in a frame; whether the other side is to be told of it.
    fn take(&mut self, raw: Raw) -> bool {
        self.window.heard(raw.received, self.start.elapsed());
        self.echo = self.echo.max(raw.stamp);
        if raw.echo > 0 {
            let at = self.start + Duration::from_millis(raw.echo);
            self.hear.send_if_modified(|newest| {
                let is_newer = at > *newest;
                if is_newer {
                    *newest = at;
                }
                is_newer
            });
        }
        match raw.kind {
            DATA | PART => {
                if let Came::Message(message) = self.window.receive(raw.number, raw.kind == DATA, raw.payload) {
                    self.came.push_back(message);
                }
                true
            }
            _ => false,
        }
    }

    async fn send_newest(&mut self, count: usize) {
        let frames: Vec<Frame> = self.window.newest(count).cloned().collect();
        for frame in frames {
            self.say(if frame.is_last { DATA } else { PART }, Some(frame)).await;
        }
    }

    async fn say(&mut self, kind: u8, frame: Option<Frame>) {
        let stamp = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (number, payload) = frame.map_or((0, Bytes::new()), |frame| (frame.number, frame.payload));
        let received = self.window.received();
        let raw = Raw { kind, number, received, stamp, echo: self.echo, payload };
        self.told = received;
        // It fails only when the client was closed, which ends the conversation.
        let _ = self.bridge.client().publish_with_reply(self.to.clone(), self.from.clone(), raw.write()).await;
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_as_it_went_and_other_bytes_are_none() {
        let raw = Raw { kind: DATA, number: 1, received: 7, stamp: 8, echo: 9, payload: Bytes::from_static(b"x") };
        let back = Raw::read(raw.write()).expect("a frame");
        assert!(back.is_first() && !back.is_refusal());
        assert_eq!((back.received, back.stamp, back.echo, &back.payload[..]), (7, 8, 9, &b"x"[..]));
        assert!(Raw::read(Bytes::from_static(b"hello")).is_none());
    }
}
