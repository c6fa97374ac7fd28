//! What a client sends, frame by frame: for the connection itself, or for one of its channels.

use amq_protocol::protocol::{AMQPClass, channel, connection};
use bytes::BytesMut;

use super::{Ask, Session, Stage};
use crate::backend::ChannelId;
use crate::codec::PROTOCOL_HEADER;
use crate::error::{AmqpError, ReplyCode};
use crate::session::channel::{Channel, Next, Phase, ids};
use crate::session::frame::{Fault, Frame};
use crate::session::handshake::{self, Capabilities};

impl Session {
    /// Answers whether a whole protocol header was there.
    pub(super) fn protocol_header(&mut self, input: &mut BytesMut) -> bool {
        let there = input.len().min(PROTOCOL_HEADER.len());
        if input[..there] != PROTOCOL_HEADER[..there] {
            input.clear();
            self.shared.output.protocol_header();
            self.end();
            return false;
        }
        if there < PROTOCOL_HEADER.len() {
            return false;
        }
        let _ = input.split_to(there);
        self.stage = Stage::Start;
        self.shared.output.method(0, handshake::start(self.certified.is_some()));
        true
    }

    pub(super) fn frame(&mut self, frame: Frame) {
        if self.stage == Stage::Closing {
            match frame {
                Frame::Method(0, AMQPClass::Connection(connection::AMQPMethod::CloseOk(_))) => self.end(),
                // Both sides have closed it at the same time.
                Frame::Method(0, AMQPClass::Connection(connection::AMQPMethod::Close(_))) => {
                    self.tell(connection::AMQPMethod::CloseOk(connection::CloseOk {}));
                    self.end();
                }
                _ => {}
            }
            return;
        }
        if matches!(frame, Frame::Heartbeat) {
            return;
        }
        let outcome = match frame.channel() {
            0 => self.connection_frame(frame),
            _ if self.stage != Stage::Running => {
                Err(Fault::new(ReplyCode::ChannelError, "the connection is not open yet"))
            }
            channel => {
                self.channel_frame(channel, frame);
                Ok(())
            }
        };
        if let Err(fault) = outcome {
            self.fail(fault);
        }
    }

    fn connection_frame(&mut self, frame: Frame) -> Result<(), Fault> {
        use connection::AMQPMethod as M;
        let class = match frame {
            Frame::Method(_, class) => class,
            Frame::Refused(_, fault) => return Err(fault),
            Frame::Header(..) | Frame::BadHeader(..) | Frame::Body(..) | Frame::Heartbeat => {
                return Err(Fault::new(ReplyCode::UnexpectedFrame, "content on channel 0"));
            }
        };
        let method = ids(&class);
        let unexpected = |stage| {
            let text = format!("unexpected method in connection state {stage}");
            Err(Fault::of(AmqpError::new(ReplyCode::ChannelError, text), method))
        };
        let AMQPClass::Connection(class) = class else { return unexpected(self.stage_name()) };
        match (self.stage, class) {
            (Stage::Start, M::StartOk(ok)) => {
                self.shared.capabilities = Capabilities::of(&ok.client_properties);
                self.login.client_properties = ok.client_properties;
                self.mechanism = ok.mechanism.to_string();
                let credentials = match (self.mechanism.as_str(), &self.certified) {
                    ("EXTERNAL", Some(name)) => {
                        self.login.certificate = Some(name.clone());
                        Ok((name.clone(), String::new()))
                    }
                    (mechanism, _) => handshake::credentials(mechanism, &ok.response),
                };
                match credentials {
                    Ok((user, password)) => {
                        self.shared.user.clone_from(&user);
                        self.login.user = user;
                        self.login.password = password;
                        self.stage = Stage::Authenticating;
                        self.ask(Ask::Authenticate(self.login.clone()));
                    }
                    Err(error) if error.code == ReplyCode::AccessRefused => self.refuse_login(error),
                    Err(error) => return Err(Fault::of(error, method)),
                }
            }
            (Stage::Tune, M::TuneOk(ok)) => {
                self.tuned = handshake::tune(&ok)?;
                self.shared.frame_max = self.tuned.frame_max as usize;
                self.stage = Stage::Open;
            }
            (Stage::Open, M::Open(open)) => {
                self.login.vhost = open.virtual_host.to_string();
                self.stage = Stage::Opening;
                self.ask(Ask::Open(self.login.clone()));
            }
            (Stage::Running, M::Close(_)) => self.leave(true),
            // As in RabbitMQ for users with passwords: what was let in stays in, whatever the new secret is.
            (Stage::Running, M::UpdateSecret(_)) => {
                self.tell(M::UpdateSecretOk(connection::UpdateSecretOk {}));
            }
            // A client may leave before it is in.
            (Stage::Start | Stage::Tune | Stage::Open, M::Close(_)) => {
                self.tell(M::CloseOk(connection::CloseOk {}));
                self.end();
            }
            _ => return unexpected(self.stage_name()),
        }
        Ok(())
    }

    /// A channel's frame, and whatever follows from it.
    fn channel_frame(&mut self, channel: ChannelId, frame: Frame) {
        if let Some(open) = self.channels.get_mut(&channel) {
            let next = open.frame(frame, &mut self.shared);
            self.follow(channel, next);
            return;
        }
        match frame {
            Frame::Method(_, AMQPClass::Channel(channel::AMQPMethod::Open(_))) => {
                let max = usize::from(self.tuned.channel_max);
                if self.channels.len() >= max {
                    let text = format!(
                        "number of channels opened ({}) has reached the negotiated channel_max ({max})",
                        self.channels.len()
                    );
                    return self.fail(Fault::of(AmqpError::new(ReplyCode::NotAllowed, text), (20, 10)));
                }
                self.channels.insert(channel, Channel::open(channel, &mut self.shared));
            }
            // The answer to a close that has crossed the client's own.
            Frame::Method(_, AMQPClass::Channel(channel::AMQPMethod::CloseOk(_))) => {}
            frame => {
                let method = match &frame {
                    Frame::Method(_, class) => ids(class),
                    Frame::Refused(_, fault) => fault.method,
                    Frame::Header(..) | Frame::BadHeader(..) | Frame::Body(..) | Frame::Heartbeat => (0, 0),
                };
                let error = AmqpError::new(ReplyCode::ChannelError, "expected 'channel.open'");
                self.fail(Fault::of(error, method));
            }
        }
    }

    /// Does what a channel's frame or reply made necessary.
    pub(super) fn follow(&mut self, channel: ChannelId, next: Result<Next, Fault>) {
        match next {
            Ok(Next::Stay) => {}
            Ok(Next::Remove) => {
                if let Some(mut closed) = self.channels.remove(&channel) {
                    let parked = closed.take_parked(&mut self.shared);
                    closed.abandon(&mut self.shared);
                    for frame in parked {
                        if self.stage != Stage::Closing {
                            self.channel_frame(channel, frame);
                        }
                    }
                }
            }
            Err(fault) if fault.error.code.closes_connection() => self.fail_on(channel, fault),
            Err(fault) => {
                if let Some(open) = self.channels.get_mut(&channel) {
                    let is_news = !matches!(open.phase, Phase::Refused | Phase::Settling);
                    open.refuse(&fault, &mut self.shared);
                    if is_news {
                        self.shared.counts.channel_errors += 1;
                        self.refused(channel, &fault);
                    }
                }
            }
        }
    }

    /// Works on a channel's parked frames until one of them has to be waited for.
    pub(super) fn resume(&mut self, channel: ChannelId) {
        while matches!(self.stage, Stage::Running | Stage::Leaving { .. })
            && let Some(open) = self.channels.get_mut(&channel)
            && let Some(frame) = open.next_parked(&mut self.shared)
        {
            let next = open.frame(frame, &mut self.shared);
            self.follow(channel, next);
        }
    }
}
