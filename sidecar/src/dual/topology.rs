//! The client's topology over two sides, and what of it JetStream does not have.

use amqp_compat::backend::{ChannelId, Command, QueueDeclare, Reply, Topology};
use amqp_compat::error::{AmqpError, ReplyCode};

use super::channel::{Asked, Request};
use super::engine::Engine;
use super::half::Presence;
use super::lane::Purpose;
use crate::control_api::Phase;
use crate::ownership::Side;

impl Engine {
    pub(super) fn topology_step(
        &mut self,
        side: Side,
        channel: ChannelId,
        mut request: Request,
        reply: Result<Reply, AmqpError>,
    ) {
        let Asked::Topology(topology) = &mut request.asked else { return };
        let Some(first) = request.first.take() else {
            let reply = match reply {
                Ok(reply) => reply,
                Err(error) => return self.answer(channel, Err(error)),
            };
            if let (Topology::QueueDeclare(declare), Reply::Queue { queue, .. }) = (&mut *topology, &reply) {
                declare.queue = queue.clone();
            }
            if Self::is_about_replies(topology) {
                return self.answer(channel, Ok(reply));
            }
            let topology = topology.clone();
            self.note(channel, &topology);
            let follower = side.other();
            match self.half(follower).presence {
                Presence::Attached if self.waits_for(follower) => {
                    request.waiting[follower.index()] = true;
                    request.first = Some(reply);
                    let command = Command::Topology { channel, request: topology };
                    self.half_mut(follower).request(command, Purpose::Client(request.number));
                    self.park(channel, request);
                }
                Presence::Attached => {
                    let purpose = Purpose::Topology(Box::new(topology.clone()));
                    self.half_mut(follower).request(Command::Topology { channel, request: topology }, purpose);
                    self.answer(channel, Ok(reply));
                }
                Presence::Lost => {
                    self.replay(follower, channel, topology);
                    self.answer(channel, Ok(reply));
                }
                Presence::Gone => self.answer(channel, Ok(reply)),
            }
            return;
        };
        let topology = topology.clone();
        self.is_discarded(&topology);
        match reply {
            Ok(second) => {
                self.is_mapped(&topology);
                let both = self.sum(&topology, first, second);
                self.answer(channel, Ok(both));
            }
            Err(error) if self.client_goes_on(&topology, &error) => {
                self.not_mapped(&topology, &error);
                self.answer(channel, Ok(first));
            }
            Err(error) => self.answer(channel, Err(error)),
        }
    }

    /// The side that follows has answered: what it was given meanwhile may have been purged or deleted as well.
    pub(super) fn is_discarded(&mut self, topology: &Topology) {
        if let Topology::QueuePurge { queue } | Topology::QueueDelete { queue, .. } = topology {
            let name = self.queue_name(queue);
            self.shared.integrity().discarded(&name);
        }
    }

    /// Both sides' counts, without the fences in them.
    fn sum(&mut self, topology: &Topology, first: Reply, second: Reply) -> Reply {
        let fences = match topology {
            Topology::QueueDeclare(QueueDeclare { queue, .. })
            | Topology::QueuePurge { queue }
            | Topology::QueueDelete { queue, .. } => {
                let name = self.queue_name(queue);
                let view = self.shared.order().fences.view(&name);
                view.map_or(0, |v| v.fences[0] + v.fences[1])
            }
            _ => 0,
        };
        let fences = u32::try_from(fences).unwrap_or(u32::MAX);
        match (first, second) {
            (
                Reply::Queue { queue, message_count: a, consumer_count },
                Reply::Queue { message_count: b, consumer_count: c, .. },
            ) => Reply::Queue {
                queue,
                message_count: a.saturating_add(b).saturating_sub(fences),
                // A consumer through the sidecar is on both sides.
                consumer_count: consumer_count.max(c),
            },
            (Reply::MessageCount(a), Reply::MessageCount(b)) => {
                Reply::MessageCount(a.saturating_add(b).saturating_sub(fences))
            }
            (first, _) => first,
        }
    }

    /// Whether a refusal of the side that follows leaves the client untouched.
    fn client_goes_on(&self, topology: &Topology, error: &AmqpError) -> bool {
        let only_asks = match topology {
            Topology::QueueDeclare(declare) => declare.passive,
            Topology::ExchangeDeclare(declare) => declare.passive,
            _ => takes_away(topology) && error.code == ReplyCode::NotFound,
        };
        only_asks || self.phase() < Phase::Canary
    }

    /// Keeps in mind what the leading side has made.
    fn note(&mut self, channel: ChannelId, topology: &Topology) {
        let now = self.shared.now();
        match topology {
            Topology::QueueDeclare(declare) => {
                let name = self.queue_name(&declare.queue);
                self.register(&name, now);
                if !declare.passive {
                    self.shared.declared(&name, may_lose(declare));
                }
                if (declare.exclusive || declare.auto_delete) && !declare.passive {
                    if declare.exclusive {
                        self.own_queues.insert(declare.queue.clone());
                    }
                    if !self.own.iter().any(|(_, t)| t == topology) && self.own.len() < 8192 {
                        self.own.push((channel, topology.clone()));
                    }
                }
            }
            Topology::QueueBind(binding)
                if self
                    .own
                    .iter()
                    .any(|(_, t)| matches!(t, Topology::QueueDeclare(d) if d.queue == binding.destination))
                    && self.own.len() < 8192 =>
            {
                self.own.push((channel, topology.clone()));
            }
            Topology::QueueUnbind(binding) => {
                // What is on its way may have been routed before or after.
                let name = self.queue_name(&binding.destination);
                self.shared.integrity().discarded(&name);
                self.own.retain(|(_, t)| !matches!(t, Topology::QueueBind(b) if b == binding));
            }
            Topology::QueueDelete { queue, .. } => {
                let name = self.queue_name(queue);
                let actions = self.shared.order().fences.forget(&name);
                self.shared.act(actions);
                self.shared.queue_gone(&self.vhost, queue.as_str());
                self.shared.discarded(&name);
                self.own_queues.remove(queue);
                self.own.retain(|(_, t)| match t {
                    Topology::QueueDeclare(d) => d.queue != *queue,
                    Topology::QueueBind(b) => b.destination != *queue,
                    _ => true,
                });
            }
            Topology::QueuePurge { queue } => {
                let name = self.queue_name(queue);
                let actions = {
                    let mut order = self.shared.order();
                    let consumed = order.consumers.contains_key(&name);
                    order.fences.purged(&name, consumed)
                };
                self.shared.act(actions);
                self.shared.discarded(&name);
            }
            Topology::ExchangeDelete { exchange, .. } => {
                self.shared.mapped(&self.vhost, "exchange", exchange.as_str());
            }
            Topology::ExchangeDeclare(_)
            | Topology::ExchangeBind(_)
            | Topology::ExchangeUnbind(_)
            | Topology::QueueBind(_) => {}
        }
    }

    /// Keeps topology for a side that is lost.
    pub(super) fn replay(&mut self, side: Side, channel: ChannelId, topology: Topology) {
        let half = self.half_mut(side);
        if half.replay.len() < super::half::Half::REPLAY_MOST {
            half.replay.push_back((channel, topology));
        } else {
            let (kind, name) = named(&topology);
            let reason = "NATS was away for too long; connect the application again so that it declares it once more";
            self.shared.unmapped(&self.vhost, kind, &name, reason);
        }
    }

    pub(super) fn is_mapped(&self, topology: &Topology) {
        let (kind, name) = named(topology);
        self.shared.mapped(&self.vhost, kind, &name);
    }

    pub(super) fn not_mapped(&self, topology: &Topology, error: &AmqpError) {
        if takes_away(topology) {
            return;
        }
        let (kind, name) = named(topology);
        let reason = if error.code == ReplyCode::NotFound {
            format!(
                "{error}; JetStream knows only what was declared through the sidecar: let the application that owns it declare it"
            )
        } else {
            error.to_string()
        };
        tracing::warn!(vhost = %self.vhost, kind, name, reason, "JetStream does not have it");
        self.shared.unmapped(&self.vhost, kind, &name, reason);
    }
}

/// Whether messages of a queue may go without having been delivered.
fn may_lose(declare: &QueueDeclare) -> bool {
    ["x-message-ttl", "x-expires", "x-max-length", "x-max-length-bytes", "x-delivery-limit"]
        .iter()
        .any(|name| declare.arguments.contains_key(name))
}

/// Whether it only takes something away: when it is not there, that is done.
fn takes_away(topology: &Topology) -> bool {
    match topology {
        Topology::ExchangeDelete { .. }
        | Topology::ExchangeUnbind(_)
        | Topology::QueueUnbind(_)
        | Topology::QueuePurge { .. }
        | Topology::QueueDelete { .. } => true,
        Topology::ExchangeDeclare(_)
        | Topology::ExchangeBind(_)
        | Topology::QueueDeclare(_)
        | Topology::QueueBind(_) => false,
    }
}

/// What it is called in the list of unmapped things.
fn named(topology: &Topology) -> (&'static str, String) {
    match topology {
        Topology::ExchangeDeclare(declare) => ("exchange", declare.exchange.to_string()),
        Topology::ExchangeDelete { exchange, .. } => ("exchange", exchange.to_string()),
        Topology::QueueDeclare(QueueDeclare { queue, .. })
        | Topology::QueuePurge { queue }
        | Topology::QueueDelete { queue, .. } => ("queue", queue.to_string()),
        Topology::ExchangeBind(b) | Topology::ExchangeUnbind(b) | Topology::QueueBind(b) | Topology::QueueUnbind(b) => {
            ("binding", format!("{} -> {} ({})", b.source, b.destination, b.routing_key))
        }
    }
}
