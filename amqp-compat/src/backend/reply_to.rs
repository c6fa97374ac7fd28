//! Direct reply-to: answers that go from one channel to another without a queue between them.
//!
//! A client consumes from the pseudo queue `amq.rabbitmq.reply-to` and names it in the `reply_to` of its requests, where
//! it becomes a name of its own. What is published to the default exchange with that name goes to the client's channel,
//! at most once: it is kept nowhere, and dropped when the client is gone or its link has no room.
//!
//! Source: RabbitMQ, "Direct Reply-to"; codes and texts are those of RabbitMQ 3.10.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::ShortString;
use foldhash::{HashMap, HashMapExt};
use tokio::sync::mpsc;

use super::{ChannelId, Consume, Delivery, DeliveryId, Event, Message, Reply};
use crate::error::{AmqpError, ReplyCode};
use crate::model::dead_letter::split_bcc;
use crate::model::vhost::{extra_keys, no_queue, without_line_ends};

/// The pseudo queue.
const QUEUE: &str = "amq.rabbitmq.reply-to";

/// What the names begin with that clients are answered under; RabbitMQ's own do not.
const OWN: &str = "amq.rabbitmq.reply-to.nb-";

/// Whether a queue's name is that of the pseudo queue.
pub fn is_pseudo_queue(name: &str) -> bool {
    name == QUEUE
}

/// Whether somebody's answers go to this name, here or in RabbitMQ.
pub fn is_reply_name(name: &str) -> bool {
    name.strip_prefix(QUEUE).is_some_and(|rest| rest.starts_with('.'))
}

/// Whether this is a name that was made up here.
pub fn is_own_name(name: &str) -> bool {
    name.starts_with(OWN)
}

/// The number of the gateway whose client waits for answers under this name, where several gateways share an account.
pub fn gateway_of(name: &str) -> Option<u32> {
    name.strip_prefix(OWN)?.split_once('-')?.0.parse().ok()
}

/// Who waits for answers, over all links.
#[derive(Debug, Default)]
pub struct Replies {
    waiting: Mutex<HashMap<ShortString, Waiting>>,
    count: AtomicUsize,
    /// Among several gateways: the number of this one, and where answers for clients of others go.
    among: Option<(u32, mpsc::Sender<(String, Message)>)>,
}

#[derive(Debug)]
struct Waiting {
    channel: ChannelId,
    tag: ShortString,
    events: mpsc::Sender<Event>,
    /// Whether an answer has been dropped, so that the log says it once.
    has_missed: bool,
}

impl Replies {
    /// Those of the gateway with this number, among several; `elsewhere` takes answers for clients of others. What it has no
    /// room for is dropped.
    pub fn among(number: u32, elsewhere: mpsc::Sender<(String, Message)>) -> Self {
        Self { among: Some((number, elsewhere)), ..Self::default() }
    }

    /// A name that cannot be guessed: whoever knows it can answer.
    fn make_name(&self) -> ShortString {
        match &self.among {
            Some((number, _)) => ShortString::from(format!("{OWN}{number}-{}", ulid::Ulid::new())),
            None => ShortString::from(format!("{OWN}{}", ulid::Ulid::new())),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<ShortString, Waiting>> {
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Hands a message to those whose names are among its keys. It is published all the same: what it is worth to queues,
    /// to `mandatory` and to confirms does not change.
    pub fn deliver(&self, message: &Message) {
        let nobody_waits = self.count.load(Ordering::Acquire) == 0 && self.among.is_none();
        if nobody_waits || !message.exchange.as_str().is_empty() {
            return;
        }
        // Headers that are no lists were refused before.
        let mut keys = extra_keys(&message.properties).unwrap_or_default();
        keys.push(message.routing_key.as_str());
        keys.retain(|key| is_own_name(key));
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            self.hand(key, message);
        }
    }

    /// Hands a message to who waits under this name.
    pub(crate) fn hand(&self, name: &str, message: &Message) {
        let mut message = message.clone();
        if let Some((properties, _)) = split_bcc(&message.properties) {
            message.properties = properties;
        }
        let mut waiting = self.waiting();
        let Some(one) = waiting.get_mut(name) else {
            if let Some((number, elsewhere)) = &self.among
                && gateway_of(name).is_some_and(|other| other != *number)
                && elsewhere.try_send((name.to_owned(), message)).is_err()
            {
                tracing::warn!("direct replies to clients of other gateways are dropped: they are too many");
            }
            return;
        };
        let delivery = Delivery { id: DeliveryId::DIRECT, redelivered: false, ack_timeout: None, message };
        let (channel, consumer_tag) = (one.channel, one.tag.clone());
        let event = Event::Delivery { channel, consumer_tag, delivery: Box::new(delivery) };
        if let Err(mpsc::error::TrySendError::Full(_)) = one.events.try_send(event)
            && !std::mem::replace(&mut one.has_missed, true)
        {
            tracing::warn!(channel, tag = %one.tag, "direct replies are dropped: their client does not take them");
        }
    }

    pub(crate) fn is_waiting(&self, name: &str) -> bool {
        self.waiting().contains_key(name)
    }

    fn add(&self, name: ShortString, one: Waiting) {
        let mut waiting = self.waiting();
        waiting.insert(name, one);
        self.count.store(waiting.len(), Ordering::Release);
    }

    fn remove(&self, name: &ShortString) {
        let mut waiting = self.waiting();
        waiting.remove(name);
        self.count.store(waiting.len(), Ordering::Release);
    }
}

/// What one link has to do with direct replies. Its consumers end with it.
#[derive(Debug)]
pub struct ReplyConsumers {
    replies: Arc<Replies>,
    /// Nothing once the client is gone: as long as anybody can still tell it something, its link has not ended.
    events: Option<mpsc::Sender<Event>>,
    /// Tag and name, one at most for each channel.
    consumers: HashMap<ChannelId, (ShortString, ShortString)>,
}

impl ReplyConsumers {
    /// Those of a link that tells its client through `events`.
    pub fn new(replies: Arc<Replies>, events: mpsc::Sender<Event>) -> Self {
        Self { replies, events: Some(events), consumers: HashMap::new() }
    }

    /// Starts a channel's consumer of the pseudo queue.
    ///
    /// # Errors
    /// `PreconditionFailed` for one that would acknowledge, and for a second one.
    pub fn consume(&mut self, channel: ChannelId, consume: &Consume) -> Result<(), AmqpError> {
        let refuse = |text| Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
        if !consume.no_ack {
            return refuse("reply consumer cannot acknowledge");
        }
        if self.consumers.contains_key(&channel) {
            return refuse("reply consumer already set");
        }
        let Some(events) = self.events.clone() else { return Ok(()) };
        let name = self.replies.make_name();
        let tag = consume.consumer_tag.clone();
        let one = Waiting { channel, tag: tag.clone(), events, has_missed: false };
        self.replies.add(name.clone(), one);
        self.consumers.insert(channel, (tag, name));
        Ok(())
    }

    /// Ends a consumer; says whether it was one.
    pub fn cancel(&mut self, channel: ChannelId, tag: &ShortString) -> bool {
        match self.consumers.get(&channel) {
            Some((own, _)) if own == tag => self.close(channel),
            _ => return false,
        }
        true
    }

    /// A channel is closed.
    pub fn close(&mut self, channel: ChannelId) {
        if let Some((_, name)) = self.consumers.remove(&channel) {
            self.replies.remove(&name);
        }
    }

    /// The client is gone: nobody tells it anything any more.
    pub fn end(&mut self) {
        self.consumers.drain().for_each(|(_, (_, name))| self.replies.remove(&name));
        self.events = None;
    }

    /// What a declaration of this name is answered, if it is the pseudo queue's or begins like it: so a server finds out
    /// whether its client is still there.
    pub fn declare(&self, vhost: &str, name: &str) -> Option<Result<Reply, AmqpError>> {
        let name = without_line_ends(name);
        if !name.starts_with(QUEUE) {
            return None;
        }
        Some(match is_pseudo_queue(&name) || self.replies.is_waiting(&name) {
            true => {
                let queue = ShortString::try_new(name.as_str()).unwrap_or_default();
                Ok(Reply::Queue { queue, message_count: 0, consumer_count: 1 })
            }
            false => Err(no_queue(vhost, &name)),
        })
    }

    /// Puts the channel's own name into a request that wants to be answered directly.
    ///
    /// # Errors
    /// `PreconditionFailed` when the channel has no consumer for the answer.
    pub fn name(&self, channel: ChannelId, properties: &mut AMQPProperties) -> Result<(), AmqpError> {
        if !properties.reply_to().as_ref().is_some_and(|reply_to| is_pseudo_queue(reply_to.as_str())) {
            return Ok(());
        }
        let Some((_, name)) = self.consumers.get(&channel) else {
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, "fast reply consumer does not exist"));
        };
        *properties = std::mem::take(properties).with_reply_to(name.clone());
        Ok(())
    }

    /// Hands a message to those whose names are among its keys: [`Replies::deliver`].
    pub fn deliver(&self, message: &Message) {
        self.replies.deliver(message);
    }
}

impl Drop for ReplyConsumers {
    fn drop(&mut self) {
        self.end();
    }
}
