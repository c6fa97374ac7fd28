//! What is heard, and where it is written down.

use amq_protocol::protocol::basic::{self, AMQPProperties};
use amq_protocol::protocol::{AMQPClass, channel, connection, queue};
use amq_protocol::types::ShortString;

use super::{CONTROL, Held, Run};
use crate::client::{Heard, What};
use crate::render;
use crate::transcript::Place;

impl Run {
    pub(super) async fn take(&mut self, Heard { connection: number, life, channel: id, what }: Heard) {
        let place = (number, id);
        let Some(connection) = self.connections.get_mut(&number).filter(|connection| connection.life == life) else {
            return;
        };
        match what {
            What::End => {
                self.log.wrong.push(format!("c{number}: the socket was closed"));
                self.forget(number);
            }
            What::Method(AMQPClass::Connection(method)) => {
                let is_over = match &method {
                    connection::AMQPMethod::Close(_) => {
                        let ok = connection::AMQPMethod::CloseOk(connection::CloseOk {});
                        connection.client.method(0, AMQPClass::Connection(ok));
                        connection.client.flush().await;
                        true
                    }
                    method => matches!(method, connection::AMQPMethod::CloseOk(_)),
                };
                self.reply(place, render::method(&AMQPClass::Connection(method)));
                if is_over {
                    self.forget(number);
                }
            }
            What::Method(AMQPClass::Channel(channel::AMQPMethod::Close(close))) => {
                let ok = channel::AMQPMethod::CloseOk(channel::CloseOk {});
                connection.client.method(id, AMQPClass::Channel(ok));
                connection.client.flush().await;
                let calls = connection.channels.remove(&id).unwrap_or_default().calls;
                if id == CONTROL {
                    self.told.code = close.reply_code;
                    if let Some((AMQPClass::Queue(queue::AMQPMethod::Declare(declare)), _)) = calls.front() {
                        self.queues.remove(&declare.queue);
                    }
                    return;
                }
                self.reply(place, render::method(&AMQPClass::Channel(channel::AMQPMethod::Close(close))));
            }
            What::Method(class) => self.method(place, class),
            What::Message(method, properties, body) => self.message(place, method, &properties, &body),
        }
    }

    fn method(&mut self, place: Place, class: AMQPClass) {
        let (number, id) = place;
        let Some(channel) = self.connections.get_mut(&number).and_then(|c| c.channels.get_mut(&id)) else {
            self.log.wrong.push(format!("on closed channel c{number}/{id}: {}", render::method(&class)));
            return;
        };
        match &class {
            AMQPClass::Basic(basic::AMQPMethod::Ack(basic::Ack { delivery_tag, multiple })) => {
                return self.confirmed(place, *delivery_tag, *multiple, true);
            }
            AMQPClass::Basic(basic::AMQPMethod::Nack(basic::Nack { delivery_tag, multiple, .. })) => {
                return self.confirmed(place, *delivery_tag, *multiple, false);
            }
            AMQPClass::Basic(basic::AMQPMethod::Cancel(cancel)) => {
                channel.consumers.remove(&cancel.consumer_tag);
                let consumer = self.named(cancel.consumer_tag.as_str());
                if !self.log.cancels.entry(place).or_default().insert(consumer.clone()) {
                    self.log.wrong.push(format!("c{number}/{id}: '{consumer}' is cancelled twice"));
                }
                self.events += 1;
                return;
            }
            _ => {}
        }
        // Consuming is answered by the queue, and may be overtaken.
        let asked = channel.calls.iter().position(|(call, _)| is_answer(call, &class));
        let Some((call, quiet)) = asked.and_then(|at| channel.calls.remove(at)) else {
            self.log.wrong.push(format!("c{number}/{id}: not asked for: {}", render::method(&class)));
            return;
        };
        match &class {
            AMQPClass::Queue(queue::AMQPMethod::DeclareOk(ok)) => {
                self.told.consumers = ok.consumer_count;
                if ok.queue.as_str().starts_with("amq.gen-")
                    && !self.made_up.iter().any(|name| name == ok.queue.as_str())
                {
                    self.made_up.push(ok.queue.to_string());
                }
                if let AMQPClass::Queue(queue::AMQPMethod::Declare(declare)) = call
                    && !(declare.passive && self.queues.contains_key(&ok.queue))
                    && !is_reply_name(ok.queue.as_str())
                {
                    self.queues.insert(ok.queue.clone(), declare.exclusive.then_some(number));
                }
            }
            AMQPClass::Basic(basic::AMQPMethod::ConsumeOk(ok)) => {
                if ok.consumer_tag.as_str().starts_with("amq.ctag-") {
                    self.made_up.push(ok.consumer_tag.to_string());
                }
                let no_ack = matches!(&call, AMQPClass::Basic(basic::AMQPMethod::Consume(consume)) if consume.no_ack);
                channel.consumers.insert(ok.consumer_tag.clone(), no_ack);
            }
            AMQPClass::Basic(basic::AMQPMethod::CancelOk(ok)) => {
                channel.consumers.remove(&ok.consumer_tag);
            }
            AMQPClass::Channel(channel::AMQPMethod::CloseOk(_)) => {
                if let Some(connection) = self.connections.get_mut(&number) {
                    connection.channels.remove(&id);
                }
            }
            _ => {}
        }
        if quiet {
            return;
        }
        match class {
            AMQPClass::Basic(basic::AMQPMethod::ConsumeOk(_) | basic::AMQPMethod::CancelOk(_)) => {
                self.events += 1;
                let text = self.named(&render::method(&class));
                self.log.consuming.entry(place).or_default().push(text);
            }
            class => self.reply(place, render::method(&class)),
        }
    }

    fn confirmed(&mut self, place: Place, tag: u64, multiple: bool, acked: bool) {
        self.events += 1;
        let Some(channel) = self.channel(place) else { return };
        let tags: Vec<u64> = match multiple {
            true => (1..=tag).filter(|tag| !channel.confirmed.contains(tag)).collect(),
            false => vec![tag],
        };
        for tag in tags {
            let Some(channel) = self.channel(place) else { return };
            if tag > channel.published || !channel.confirmed.insert(tag) {
                self.log.wrong.push(format!("{place:?}: publish {tag} is confirmed, and should not be"));
                continue;
            }
            let log = if acked { &mut self.log.acked } else { &mut self.log.nacked };
            log.entry(place).or_default().insert(tag);
        }
    }

    fn message(&mut self, place: Place, method: basic::AMQPMethod, properties: &AMQPProperties, body: &[u8]) {
        use basic::AMQPMethod as M;
        self.events += 1;
        let step = self.step;
        if let Some(name) = properties.reply_to().as_ref().map(ShortString::as_str)
            && is_reply_name(name)
            && !self.requests.iter().any(|known| known == name)
        {
            self.requests.push(name.to_owned());
            self.made_up.push(name.to_owned());
        }
        let made_up = self.made_up.clone();
        let content = format!("{}{}", render::body(body), render::properties(properties));
        let Some(channel) = self.channel(place) else {
            self.log.wrong.push(format!("a message on closed channel {place:?}: {content}"));
            return;
        };
        let came_by = |exchange, key, redelivered: bool| {
            let again = if redelivered { " redelivered" } else { "" };
            format!("{content} by '{}' key '{}'{again}", render::here(exchange), render::here(key))
        };
        match method {
            M::Deliver(basic::Deliver { consumer_tag, delivery_tag, redelivered, exchange, routing_key }) => {
                channel.highest_tag = channel.highest_tag.max(delivery_tag);
                let consumer = named(&made_up, consumer_tag.as_str());
                let known = channel.consumers.get(&consumer_tag).copied();
                if known == Some(false) {
                    channel.held.push(Held { step, consumer: consumer.clone(), tag: delivery_tag });
                }
                if known.is_none() {
                    self.log.wrong.push(format!("{place:?}: '{consumer}' does not consume and gets {content}"));
                }
                let text = self.named(&came_by(&exchange, &routing_key, redelivered));
                self.log.deliveries.entry(place).or_default().push((consumer, delivery_tag, text));
            }
            M::GetOk(basic::GetOk { delivery_tag, redelivered, exchange, routing_key, message_count }) => {
                channel.highest_tag = channel.highest_tag.max(delivery_tag);
                let is_get = |call: &AMQPClass| matches!(call, AMQPClass::Basic(M::Get(_)));
                let asked = channel.calls.iter().position(|(call, _)| is_get(call));
                let call = asked.and_then(|at| channel.calls.remove(at));
                if !matches!(&call, Some((AMQPClass::Basic(M::Get(get)), _)) if get.no_ack) {
                    channel.held.push(Held { step, consumer: "get".to_owned(), tag: delivery_tag });
                }
                let text = self.named(&came_by(&exchange, &routing_key, redelivered));
                let text = format!("{text}, {message_count} left");
                self.log.deliveries.entry(place).or_default().push(("get".to_owned(), delivery_tag, text.clone()));
                self.log.replies.entry(place).or_default().push(format!("basic.get-ok {text}"));
            }
            M::Return(basic::Return { reply_code, reply_text, exchange, routing_key }) => {
                let late = channel.bodies.iter().any(|(n, other)| other == body && channel.confirmed.contains(n));
                let late = if late && !body.is_empty() { " AFTER ITS CONFIRM" } else { "" };
                let text =
                    format!("basic.return {reply_code} {reply_text} {}{late}", came_by(&exchange, &routing_key, false));
                let text = self.named(&text);
                self.log.returns.entry(place).or_default().push(text);
            }
            _ => self.log.wrong.push(format!("a message with {method:?}")),
        }
    }

    fn reply(&mut self, place: Place, text: String) {
        self.events += 1;
        let text = self.named(&text);
        self.log.replies.entry(place).or_default().push(text);
    }

    fn named(&self, text: &str) -> String {
        named(&self.made_up, text)
    }
}

/// Whether it is the answer to this method.
fn is_answer(call: &AMQPClass, answer: &AMQPClass) -> bool {
    let (asked, answered) = (call.get_amqp_method_id(), answer.get_amqp_method_id());
    // get-empty, and exchange.unbind-ok.
    let special = matches!((call.get_amqp_class_id(), asked, answered), (60, 70, 72) | (40, 40, 51));
    call.get_amqp_class_id() == answer.get_amqp_class_id() && (answered == asked + 1 || special)
}

/// A text with numbers in place of made up names.
fn named(made_up: &[String], text: &str) -> String {
    let names = made_up.iter().enumerate();
    let text = names.fold(text.to_owned(), |text, (number, name)| text.replace(name, &format!("made-up-{number}")));
    // One that was refused is known from the refusal alone.
    let mut parts = text.split("amq.gen-");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + "made-up" + part.find('\'').map_or("", |end| &part[end..]))
}

/// Whether a direct reply goes to this name.
fn is_reply_name(name: &str) -> bool {
    name.starts_with("amq.rabbitmq.reply-to.")
}
