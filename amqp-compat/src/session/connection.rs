//! The life of a connection.

mod ending;
mod frames;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use amq_protocol::protocol::{AMQPClass, connection};
use amq_protocol::types::{FieldTable, ShortString};
use bytes::BytesMut;
use foldhash::{HashMap, HashMapExt};

use super::channel::{Channel, Shared};
use super::counts::Counts;
use super::description::Description;
use super::frame::{self, Fault};
use super::handshake::{self, Capabilities, PROPOSED, Tuned};
use super::heartbeat::Heartbeat;
use super::limits::Limits;
use super::overdue::Watch;
use crate::backend::{ChannelId, Command, Event, Login};
use crate::codec::Output;
use crate::error::{AmqpError, ReplyCode};

/// One AMQP connection, without its socket and without its broker.
///
/// Its driver feeds it [`Session::read`], [`Session::event`] and [`Session::tick`], calls [`Session::flush`] at the end
/// of each batch, sends [`Session::commands`] to the broker in order and writes [`Session::take_output`] to the client.
/// When [`Session::takes_input`] or [`Session::takes_events`] say no, the driver stops reading that side until they say
/// yes again; this is how every buffer in here is bounded ([`Limits`]).
#[derive(Debug)]
pub struct Session {
    stage: Stage,
    /// End of the handshake, of closing, or of draining.
    deadline: Option<Instant>,
    /// Input can no longer be understood.
    deaf: bool,
    /// The broker's side may be dropped.
    link_done: bool,
    stopping: bool,
    /// The client's close was answered.
    was_left: bool,
    ask: Option<Ask>,
    asking: bool,
    login: Login,
    /// Whom the client's certificate names, where it may log in by that.
    certified: Option<String>,
    mechanism: String,
    tuned: Tuned,
    heartbeat: Heartbeat,
    channels: HashMap<ChannelId, Channel>,
    shared: Shared,
    refusals: Vec<Refusal>,
}

/// What a session has closed a channel, or its connection, for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The channel; 0 for the connection as a whole.
    pub channel: ChannelId,
    /// Class and method id of what the client asked; 0, 0 when it was nothing that it asked.
    pub method: (u16, u16),
    /// What the client was told.
    pub error: AmqpError,
}

/// How many refusals are kept until the driver takes them; what is more is not told, only counted ([`Counts`]).
const MAX_REFUSALS: usize = 16;

/// What a session needs its driver to do before it goes on; answered by [`Session::answered`].
#[derive(Debug)]
pub enum Ask {
    /// Check a login ([`crate::backend::Backend::authenticate`]); its vhost is not known yet and empty.
    Authenticate(Login),
    /// Open the link ([`crate::backend::Backend::open`]).
    Open(Login),
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The protocol header is due.
    Header,
    /// `connection.start-ok` is due.
    Start,
    /// The login is checked.
    Authenticating,
    /// `connection.tune-ok` is due.
    Tune,
    /// `connection.open` is due.
    Open,
    /// The link is being opened.
    Opening,
    /// In use.
    Running,
    /// The client leaves; what it began is finished. `answer`: it waits for `connection.close-ok`.
    Leaving { answer: bool },
    /// The server has closed it, and waits for `connection.close-ok`.
    Closing,
    /// Over.
    Closed,
}

impl Session {
    /// A connection that was just accepted from `peer`. Made up consumer tags contain `token`, which should be unique.
    pub fn new(peer: String, token: &str, limits: Limits, now: Instant) -> Self {
        let login = Login {
            vhost: String::new(),
            user: String::new(),
            password: String::new(),
            certificate: None,
            client_properties: FieldTable::default(),
            peer,
        };
        Self {
            stage: Stage::Header,
            deadline: Some(now + limits.handshake),
            deaf: false,
            link_done: false,
            stopping: false,
            was_left: false,
            ask: None,
            asking: false,
            login,
            certified: None,
            mechanism: String::new(),
            tuned: PROPOSED,
            heartbeat: Heartbeat::new(now),
            channels: HashMap::new(),
            refusals: Vec::new(),
            shared: Shared {
                now,
                overdue: Watch::default(),
                output: Output::default(),
                commands: VecDeque::new(),
                generation: 0,
                unwritten: Vec::new(),
                touched: Vec::new(),
                assembling: 0,
                publishes: 0,
                publish_bytes: 0,
                parked: 0,
                tag_prefix: token.to_owned(),
                next_key: 0,
                user: String::new(),
                capabilities: Capabilities::default(),
                frame_max: PROPOSED.frame_max as usize,
                limits,
                counts: Counts::default(),
            },
        }
    }

    /// Takes the client's bytes off `input`, as many as it can work on; an incomplete frame stays.
    pub fn read(&mut self, input: &mut BytesMut, now: Instant) {
        self.shared.now = now;
        self.heartbeat.received(now);
        while self.takes_input() {
            if self.deaf {
                input.clear();
                return;
            }
            if self.stage == Stage::Header {
                if !self.protocol_header(input) {
                    return;
                }
                continue;
            }
            let frame_max = match self.stage {
                Stage::Start | Stage::Tune => handshake::FRAME_MIN,
                _ => self.tuned.frame_max,
            };
            match frame::decode(input, frame_max as usize) {
                Ok(Some(frame)) => self.frame(frame),
                Ok(None) => return,
                Err(fault) => {
                    self.deaf = true;
                    self.fail(fault);
                }
            }
        }
    }

    /// Whether [`Session::read`] would take anything now.
    pub fn takes_input(&self) -> bool {
        let shared = &self.shared;
        let limits = &shared.limits;
        let listens = match self.stage {
            Stage::Header | Stage::Start | Stage::Tune | Stage::Open => true,
            Stage::Authenticating | Stage::Opening | Stage::Leaving { .. } | Stage::Closed => false,
            Stage::Running => !self.stopping,
            Stage::Closing => return true,
        };
        listens
            && !self.asking
            && shared.commands.len() < limits.max_commands
            && shared.publishes < limits.max_publishes
            && shared.publish_bytes < limits.max_publish_bytes
            && shared.parked < limits.max_parked
            && shared.output.len() < limits.max_output * 4
    }

    /// Whether it can take more events now.
    pub fn takes_events(&self) -> bool {
        self.shared.output.len() < self.shared.limits.max_output
    }

    /// What the driver has to do; each is given out once.
    pub fn take_ask(&mut self) -> Option<Ask> {
        self.ask.take()
    }

    /// The answer to the last [`Ask`].
    pub fn answered(&mut self, answer: Result<(), AmqpError>, now: Instant) {
        self.shared.now = now;
        self.asking = false;
        match (self.stage, answer) {
            (Stage::Authenticating, Ok(())) => {
                self.stage = Stage::Tune;
                let Tuned { channel_max, frame_max, heartbeat } = PROPOSED;
                self.tell(connection::AMQPMethod::Tune(connection::Tune { channel_max, frame_max, heartbeat }));
            }
            (Stage::Authenticating, Err(error)) => self.refuse_login(error),
            (Stage::Opening, Ok(())) => {
                self.stage = Stage::Running;
                self.deadline = None;
                self.heartbeat.start(self.tuned.heartbeat, now);
                self.tell(connection::AMQPMethod::OpenOk(connection::OpenOk {}));
            }
            // A backend that could not tell before.
            (Stage::Opening, Err(error)) if error.code == ReplyCode::AccessRefused => self.refuse_login(error),
            (Stage::Opening, Err(error)) => self.fail(Fault::of(error, (10, 40))),
            _ => {}
        }
    }

    /// Takes an event of the broker.
    pub fn event(&mut self, event: Event, now: Instant) {
        self.shared.now = now;
        if !matches!(self.stage, Stage::Running | Stage::Leaving { .. }) {
            return;
        }
        let shared = &mut self.shared;
        match event {
            Event::Reply { channel, reply } => {
                let Some(open) = self.channels.get_mut(&channel) else { return };
                let next = open.reply(reply, shared);
                self.follow(channel, next);
                self.resume(channel);
            }
            Event::Confirm { channel, seq, outcome } => {
                if let Some(open) = self.channels.get_mut(&channel) {
                    let next = open.confirm(seq, outcome, shared);
                    self.follow(channel, next);
                    self.resume(channel);
                }
            }
            Event::Returned { channel, error, message } => {
                if let Some(open) = self.channels.get_mut(&channel) {
                    open.returned(&error, *message, shared);
                }
            }
            Event::Delivery { channel, consumer_tag, delivery } => {
                if let Some(open) = self.channels.get_mut(&channel)
                    && self.stage == Stage::Running
                {
                    open.deliver(&consumer_tag, delivery, shared);
                }
            }
            Event::ConsumerCancelled { channel, consumer_tag } => {
                if let Some(open) = self.channels.get_mut(&channel) {
                    open.cancelled(consumer_tag, shared);
                }
            }
            Event::ChannelFailed { channel, error } => {
                if let Some(open) = self.channels.get_mut(&channel) {
                    let fault = Fault::of(error, open.culprit());
                    self.follow(channel, Err(fault));
                }
            }
            Event::Blocked { reason } => {
                if shared.capabilities.blocked {
                    let reason = ShortString::from(reason.chars().take(60).collect::<String>());
                    self.tell(connection::AMQPMethod::Blocked(connection::Blocked { reason }));
                }
            }
            Event::Unblocked => {
                if shared.capabilities.blocked {
                    self.tell(connection::AMQPMethod::Unblocked(connection::Unblocked {}));
                }
            }
            Event::Closed { error } => match self.stage {
                Stage::Leaving { .. } => self.link_done = true,
                _ => self.fail(Fault::of(error, (0, 0))),
            },
        }
    }

    /// What can be told of it now.
    pub fn describe(&self) -> Description {
        let mut channels: Vec<_> = self.channels.values().map(Channel::describe).collect();
        channels.sort_by_key(|channel| channel.number);
        Description {
            is_running: self.is_running(),
            user: self.login.user.clone(),
            vhost: self.login.vhost.clone(),
            mechanism: self.mechanism.clone(),
            client_properties: self.login.client_properties.clone(),
            channel_max: self.tuned.channel_max,
            frame_max: self.tuned.frame_max,
            heartbeat: self.tuned.heartbeat,
            counts: self.counts(),
            channels,
        }
    }

    /// Does what is due by time.
    pub fn tick(&mut self, now: Instant) {
        self.shared.now = now;
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            match self.stage {
                Stage::Running => self.force_close(),
                // Once more for a broker that does not end its side.
                Stage::Leaving { .. } if !self.link_done => {
                    self.link_done = true;
                    self.deadline = Some(now + self.shared.limits.closing);
                }
                _ => self.end(),
            }
        }
        if !matches!(self.stage, Stage::Running) {
            return;
        }
        if !self.takes_input() {
            // It is not the client who is silent.
            self.heartbeat.received(now);
        }
        if self.heartbeat.peer_is_gone(now) {
            self.shared.counts.connection_errors = 1;
            self.end();
        } else if self.heartbeat.send_due(now) {
            self.heartbeat.sent(now);
            self.shared.output.heartbeat();
        }
        if self.shared.overdue.is_due(now) {
            self.close_overdue(now);
        }
    }

    /// When [`Session::tick`] has something to do, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let (heartbeat, overdue) = match self.stage {
            Stage::Running => (self.heartbeat.deadline(), self.shared.overdue.next()),
            _ => (None, None),
        };
        [self.deadline, heartbeat, overdue].into_iter().flatten().min()
    }

    /// Ends a batch of reads and events: confirms, acknowledgements and credit are put together here.
    pub fn flush(&mut self) {
        let mut touched = std::mem::take(&mut self.shared.touched);
        for id in touched.drain(..) {
            if let Some(open) = self.channels.get_mut(&id) {
                open.flush(&mut self.shared);
            }
        }
        if self.shared.touched.is_empty() {
            self.shared.touched = touched;
        }
        if self.stopping && self.stage == Stage::Running && self.shared.publishes == 0 {
            self.force_close();
        }
        if matches!(self.stage, Stage::Leaving { .. })
            && !self.link_done
            && self.channels.values().all(Channel::is_idle)
        {
            for open in self.channels.values_mut() {
                open.settle_all_sent(&mut self.shared);
            }
            self.link_done = true;
        }
    }

    /// What is to be sent to the broker, oldest first; the driver takes it from the front.
    pub fn commands(&mut self) -> &mut VecDeque<Command> {
        &mut self.shared.commands
    }

    /// How many bytes [`Session::take_output`] has.
    pub fn output_len(&self) -> usize {
        self.shared.output.len()
    }

    /// Takes what is to be written to the client into `buffer`, which must be empty. The driver calls
    /// [`Session::written`] when all of it has gone, and only then takes more.
    pub fn take_output(&mut self, buffer: &mut Vec<u8>, now: Instant) {
        self.shared.output.swap(buffer);
        self.shared.generation += 1;
        self.heartbeat.sent(now);
    }

    /// All that was taken is written: deliveries that need no acknowledgement are done.
    pub fn written(&mut self) {
        for id in std::mem::take(&mut self.shared.unwritten) {
            if let Some(open) = self.channels.get_mut(&id) {
                open.written(&mut self.shared);
            }
        }
    }

    /// Whether the driver shall drop the link's commands, once all of [`Session::commands`] are sent.
    pub fn is_link_done(&self) -> bool {
        self.link_done || matches!(self.stage, Stage::Closing | Stage::Closed)
    }

    /// Whether the connection is over; the driver writes what is left and closes the socket.
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Closed
    }

    /// Whether the client has closed the connection, and was answered. It closes the socket then, as with RabbitMQ: to one
    /// that meets the end of the socket first, that end is a failure.
    pub fn was_left(&self) -> bool {
        self.was_left
    }

    /// Whether the connection is open for use.
    pub fn is_running(&self) -> bool {
        self.stage == Stage::Running
    }

    /// Lets the client log in by its certificate, as the user that it names. Before it says anything.
    pub fn offer_external(&mut self, name: String) {
        self.certified = Some(name);
    }

    /// Who is logged in, and where; for logs.
    pub fn login(&self) -> &Login {
        &self.login
    }

    /// What was refused since the last call, oldest first; for logs. What a stop closes is not among it.
    pub fn take_refusals(&mut self) -> Vec<Refusal> {
        std::mem::take(&mut self.refusals)
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        Counts { channels: self.channels.len() as u64, ..self.shared.counts }
    }

    fn ask(&mut self, ask: Ask) {
        self.ask = Some(ask);
        self.asking = true;
    }

    fn tell(&mut self, method: connection::AMQPMethod) {
        self.shared.output.method(0, AMQPClass::Connection(method));
    }
}

/// How long a server that stops waits for `connection.close-ok`.
const FORCED_CLOSING: Duration = Duration::from_secs(2);
