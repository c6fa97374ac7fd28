//! What is said: methods, messages, settlements, and the last look at a queue.

use amq_protocol::protocol::basic::{self, AMQPProperties};
use amq_protocol::protocol::{AMQPClass, channel, confirm, queue, tx};
use amq_protocol::types::{FieldTable, ShortString};

use super::{Held, Run};
use crate::program::{Answer, Publish, Settle, Which, is_answered};
use crate::transcript::Place;

impl Run {
    /// Says a method, and keeps in mind what it means for its channel.
    pub(super) fn call(&mut self, (number, id): Place, class: AMQPClass, quiet: bool) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.client.method(id, class.clone());
        if let AMQPClass::Channel(channel::AMQPMethod::Open(_)) = &class {
            connection.channels.entry(id).or_default();
        }
        let Some(channel) = connection.channels.get_mut(&id) else {
            // On a channel that is not open: it ends the connection.
            connection.closing = true;
            return;
        };
        match &class {
            AMQPClass::Confirm(confirm::AMQPMethod::Select(_)) => channel.confirms = true,
            AMQPClass::Tx(tx::AMQPMethod::Select(_)) => drop(channel.transaction.get_or_insert_default()),
            AMQPClass::Tx(tx::AMQPMethod::Commit(_)) => channel.transaction.iter_mut().for_each(Vec::clear),
            AMQPClass::Tx(tx::AMQPMethod::Rollback(_)) => {
                let back: Vec<_> = channel.transaction.iter_mut().flat_map(std::mem::take).collect();
                channel.held.extend(back);
            }
            AMQPClass::Basic(basic::AMQPMethod::Recover(_) | basic::AMQPMethod::RecoverAsync(_)) => {
                channel.held.clear()
            }
            AMQPClass::Basic(basic::AMQPMethod::Consume(consume)) if consume.nowait => {
                channel.consumers.insert(consume.consumer_tag.clone(), consume.no_ack);
            }
            AMQPClass::Queue(queue::AMQPMethod::Declare(declare)) if declare.nowait => {
                let owner = declare.exclusive.then_some(number);
                self.queues.entry(declare.queue.clone()).or_insert(owner);
            }
            _ => {}
        }
        if is_answered(&class) {
            channel.calls.push_back((class, quiet));
        }
    }

    pub(super) fn publish(&mut self, (number, id): Place, publish: &Publish) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.closing |= !connection.channels.contains_key(&id);
        let body = publish.body();
        connection.client.method(id, AMQPClass::Basic(basic::AMQPMethod::Publish(publish.method.clone())));
        connection.client.content(id, publish.properties.clone(), &body);
        if let Some(channel) = connection.channels.get_mut(&id)
            && channel.confirms
        {
            channel.published += 1;
            channel.bodies.insert(channel.published, body);
        }
    }

    /// Answers a request, if one came.
    pub(super) fn answer(&mut self, place: Place, Answer { to, number, mandatory, asks }: Answer) {
        let Some(name) = self.requests.get(to % self.requests.len().max(1)) else { return };
        let name = ShortString::from(name.as_str());
        if asks {
            return self.call(place, passive(&name), false);
        }
        let method = basic::Publish { exchange: "".into(), routing_key: name, mandatory, immediate: false };
        self.publish(place, &Publish { method, properties: AMQPProperties::default(), number, size: 4 });
    }

    pub(super) fn settle(&mut self, place: Place, settle: Settle) {
        let multiple = settle.is_multiple();
        let Some(channel) = self.channel(place) else { return };
        let tag = match settle.which {
            Which::Unknown => channel.highest_tag + 1000,
            Which::Zero => 0,
            Which::Again => match channel.last_settled {
                Some(tag) => tag,
                None => return,
            },
            Which::Held(nth) => {
                // In an order that does not depend on who of several was served first.
                channel.held.sort_by(|a, b| (a.step, &a.consumer, a.tag).cmp(&(b.step, &b.consumer, b.tag)));
                let Some(chosen) = channel.held.get(nth % channel.held.len().max(1)) else { return };
                let peers = channel.held.iter().filter(|held| held.step == chosen.step);
                match multiple && peers.clone().any(|held| held.consumer != chosen.consumer) {
                    true => peers.map(|held| held.tag).max().unwrap_or(chosen.tag),
                    false => chosen.tag,
                }
            }
        };
        let is_meant = |held: &Held| held.tag == tag || (multiple && (tag == 0 || held.tag <= tag));
        let settled: Vec<_> = channel.held.extract_if(.., |held| is_meant(held)).collect();
        if let Some(last) = settled.last() {
            channel.last_settled = Some(last.tag);
        }
        if let Some(transaction) = &mut channel.transaction {
            transaction.extend(settled);
        }
        let class = AMQPClass::Basic(settle.method(tag));
        self.call(place, class, false);
    }

    /// Says what is in a queue, takes it all out, and deletes the queue.
    pub(super) async fn drain(&mut self, place: Place, name: &ShortString) {
        self.call(place, passive(name), false);
        self.flush().await;
        self.wait("a declare's answer", |run| run.is_answered(place)).await;
        loop {
            let before = self.events;
            let get = basic::Get { queue: name.clone(), no_ack: true };
            if self.channel(place).is_none() {
                return;
            }
            self.call(place, AMQPClass::Basic(basic::AMQPMethod::Get(get)), false);
            self.flush().await;
            self.wait("a get's answer", |run| run.is_answered(place)).await;
            let got = self.log.deliveries.get(&place).map_or(0, Vec::len);
            let empty =
                self.log.replies.get(&place).is_some_and(|lines| lines.last().is_some_and(|l| l.ends_with("empty")));
            if empty || self.events == before || got > 1000 {
                break;
            }
        }
        let delete = queue::Delete { queue: name.clone(), if_unused: false, if_empty: false, nowait: false };
        self.call(place, AMQPClass::Queue(queue::AMQPMethod::Delete(delete)), false);
    }
}

pub(super) fn passive(name: &ShortString) -> AMQPClass {
    AMQPClass::Queue(queue::AMQPMethod::Declare(queue::Declare {
        queue: name.clone(),
        passive: true,
        durable: false,
        exclusive: false,
        auto_delete: false,
        nowait: false,
        arguments: FieldTable::default(),
    }))
}
