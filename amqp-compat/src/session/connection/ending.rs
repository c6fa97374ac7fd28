//! How a connection ends: by its client, by its broker, by a fault, or by who runs the server.

use std::time::Instant;

use amq_protocol::protocol::connection;

use super::{FORCED_CLOSING, MAX_REFUSALS, Refusal, Session, Stage};
use crate::backend::ChannelId;
use crate::error::{AmqpError, ReplyCode};
use crate::session::channel::reply_text;
use crate::session::frame::Fault;
use crate::session::handshake;

impl Session {
    /// The broker's side has ended; no event will come.
    pub fn link_ended(&mut self, now: Instant) {
        self.shared.now = now;
        match self.stage {
            Stage::Leaving { answer } => {
                if answer {
                    self.tell(connection::AMQPMethod::CloseOk(connection::CloseOk {}));
                    self.was_left = true;
                }
                self.end();
            }
            Stage::Running => self.fail(Fault::new(ReplyCode::InternalError, "the connection to the broker is lost")),
            _ => {}
        }
    }

    /// The client's side has ended: no byte will come. What it sent is carried out before the link is dropped.
    pub fn hung_up(&mut self, now: Instant) {
        self.shared.now = now;
        match self.stage {
            Stage::Running => self.leave(false),
            Stage::Leaving { .. } => self.stage = Stage::Leaving { answer: false },
            _ => self.end(),
        }
    }

    /// The server stops: once the client's publishes have been answered, the connection is closed with 320.
    pub fn shutdown(&mut self, now: Instant) {
        self.shared.now = now;
        match self.stage {
            Stage::Running if !self.stopping => {
                self.stopping = true;
                self.deadline = Some(now + self.shared.limits.draining);
            }
            Stage::Running | Stage::Leaving { .. } | Stage::Closing | Stage::Closed => {}
            _ => self.end(),
        }
    }

    /// An operator closes the connection, with 320 and this reason; what its client has begun is not waited for.
    pub fn close_forced(&mut self, reason: &str, now: Instant) {
        self.shared.now = now;
        match self.stage {
            Stage::Running => {
                self.fail(Fault::new(ReplyCode::ConnectionForced, reason));
                self.deadline = Some(now + self.shared.limits.closing.min(FORCED_CLOSING));
            }
            Stage::Leaving { .. } | Stage::Closing | Stage::Closed => {}
            _ => self.end(),
        }
    }

    /// Closes the channels whose clients have not settled a delivery in time.
    pub(super) fn close_overdue(&mut self, now: Instant) {
        let mut over = Vec::new();
        let mut earliest: Option<Instant> = None;
        for (id, open) in &self.channels {
            match open.earliest_due() {
                Some(due) if due.at <= now => over.push((*id, due)),
                Some(due) => earliest = Some(earliest.map_or(due.at, |other| other.min(due.at))),
                None => {}
            }
        }
        self.shared.overdue.looked(earliest, now);
        for (channel, due) in over {
            self.follow(channel, Err(due.fault(channel)));
        }
    }

    pub(super) fn refused(&mut self, channel: ChannelId, fault: &Fault) {
        if self.refusals.len() < MAX_REFUSALS && !self.stopping {
            self.refusals.push(Refusal { channel, method: fault.method, error: fault.error.clone() });
        }
    }

    /// A client that does not know `connection.close` here sees the socket close, as with RabbitMQ.
    pub(super) fn refuse_login(&mut self, error: AmqpError) {
        if self.shared.capabilities.authentication_failure_close {
            let error = match error.code {
                ReplyCode::AccessRefused => handshake::refused_login(&self.mechanism),
                _ => error,
            };
            self.fail(Fault::of(error, (0, 0)));
        } else {
            self.shared.counts.connection_errors = 1;
            self.end();
        }
    }

    pub(super) fn leave(&mut self, answer: bool) {
        self.stage = Stage::Leaving { answer };
        self.deadline = Some(self.shared.now + self.shared.limits.draining);
    }

    pub(super) fn force_close(&mut self) {
        let text = "broker forced connection closure with reason 'shutdown'";
        self.fail(Fault::new(ReplyCode::ConnectionForced, text));
        // Nothing hangs on the answer; a client that does not look must not hold the stop up.
        self.deadline = Some(self.shared.now + self.shared.limits.closing.min(FORCED_CLOSING));
    }

    /// Closes the connection for an error.
    pub(super) fn fail(&mut self, fault: Fault) {
        self.fail_on(0, fault);
    }

    /// Closes the connection for an error on this channel.
    pub(super) fn fail_on(&mut self, channel: ChannelId, fault: Fault) {
        match self.stage {
            Stage::Closing | Stage::Closed => return,
            Stage::Leaving { .. } => {
                self.link_done = true;
                return;
            }
            Stage::Header => return self.end(),
            _ => {}
        }
        self.shared.counts.connection_errors = 1;
        self.refused(channel, &fault);
        let close = connection::Close {
            reply_code: fault.error.code as u16,
            reply_text: reply_text(&fault.error),
            class_id: fault.method.0,
            method_id: fault.method.1,
        };
        for open in self.channels.values_mut() {
            open.tell_last_confirms(&mut self.shared);
        }
        self.tell(connection::AMQPMethod::Close(close));
        self.stage = Stage::Closing;
        self.deadline = Some(self.shared.now + self.shared.limits.closing);
        self.clear();
    }

    pub(super) fn end(&mut self) {
        self.stage = Stage::Closed;
        self.deadline = None;
        self.clear();
    }

    pub(super) fn clear(&mut self) {
        for (_, mut open) in self.channels.drain() {
            open.take_parked(&mut self.shared);
            open.abandon(&mut self.shared);
        }
    }

    pub(super) fn stage_name(&self) -> &'static str {
        match self.stage {
            Stage::Header => "pre_init",
            Stage::Start | Stage::Authenticating => "starting",
            Stage::Tune => "tuning",
            Stage::Open | Stage::Opening => "opening",
            Stage::Running => "running",
            Stage::Leaving { .. } | Stage::Closing => "closing",
            Stage::Closed => "closed",
        }
    }
}
