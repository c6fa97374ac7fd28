//! Methods, properties and values for people to read, and to compare.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use amq_protocol::protocol::basic::{self, AMQPProperties};
use amq_protocol::protocol::{AMQPClass, channel, confirm, connection, exchange, queue};
use amq_protocol::types::{AMQPValue, FieldTable, ShortString};

use crate::program::PLACE;

/// A name or text without the run's prefix.
pub fn here(name: &ShortString) -> String {
    name.as_str().replace(PLACE, "")
}

/// A method with all of its fields.
pub fn method(class: &AMQPClass) -> String {
    use basic::AMQPMethod as B;
    use exchange::AMQPMethod as X;
    use queue::AMQPMethod as Q;
    let name = name(class);
    match class {
        AMQPClass::Basic(class) => match class {
            B::Qos(m) => format!("{name} {}{}", m.prefetch_count, flags(&[(m.global, "global")])),
            B::Consume(m) => {
                let flags = flags(&[
                    (m.no_local, "no_local"),
                    (m.no_ack, "no_ack"),
                    (m.exclusive, "exclusive"),
                    (m.nowait, "nowait"),
                ]);
                format!("{name} '{}' tag '{}'{flags}{}", here(&m.queue), m.consumer_tag, table(&m.arguments))
            }
            B::ConsumeOk(m) => format!("{name} '{}'", m.consumer_tag),
            B::Cancel(m) => format!("{name} '{}'{}", m.consumer_tag, flags(&[(m.nowait, "nowait")])),
            B::CancelOk(m) => format!("{name} '{}'", m.consumer_tag),
            B::Get(m) => format!("{name} '{}'{}", here(&m.queue), flags(&[(m.no_ack, "no_ack")])),
            B::Recover(m) => format!("{name}{}", flags(&[(m.requeue, "requeue")])),
            B::RecoverAsync(m) => format!("{name}{}", flags(&[(m.requeue, "requeue")])),
            B::QosOk(_) | B::RecoverOk(_) | B::GetEmpty(_) => name,
            other => format!("{name} {other:?}"),
        },
        AMQPClass::Exchange(class) => match class {
            X::Declare(m) => {
                let flags = flags(&[
                    (m.passive, "passive"),
                    (m.durable, "durable"),
                    (m.auto_delete, "auto_delete"),
                    (m.internal, "internal"),
                    (m.nowait, "nowait"),
                ]);
                format!("{name} '{}' {}{flags}{}", here(&m.exchange), m.kind, table(&m.arguments))
            }
            X::Delete(m) => {
                let flags = flags(&[(m.if_unused, "if_unused"), (m.nowait, "nowait")]);
                format!("{name} '{}'{flags}", here(&m.exchange))
            }
            X::Bind(m) => {
                format!("{name} {}", binding(&m.destination, &m.source, &m.routing_key, m.nowait, &m.arguments))
            }
            X::Unbind(m) => {
                format!("{name} {}", binding(&m.destination, &m.source, &m.routing_key, m.nowait, &m.arguments))
            }
            X::DeclareOk(_) | X::DeleteOk(_) | X::BindOk(_) | X::UnbindOk(_) => name,
        },
        AMQPClass::Queue(class) => match class {
            Q::Declare(m) => {
                let flags = flags(&[
                    (m.passive, "passive"),
                    (m.durable, "durable"),
                    (m.exclusive, "exclusive"),
                    (m.auto_delete, "auto_delete"),
                    (m.nowait, "nowait"),
                ]);
                format!("{name} '{}'{flags}{}", here(&m.queue), table(&m.arguments))
            }
            Q::DeclareOk(m) => {
                format!("{name} '{}' messages {} consumers {}", here(&m.queue), m.message_count, m.consumer_count)
            }
            Q::Bind(m) => format!("{name} {}", binding(&m.queue, &m.exchange, &m.routing_key, m.nowait, &m.arguments)),
            Q::Unbind(m) => format!("{name} {}", binding(&m.queue, &m.exchange, &m.routing_key, false, &m.arguments)),
            Q::Purge(m) => format!("{name} '{}'{}", here(&m.queue), flags(&[(m.nowait, "nowait")])),
            Q::PurgeOk(m) => format!("{name} {}", m.message_count),
            Q::Delete(m) => {
                let flags = flags(&[(m.if_unused, "if_unused"), (m.if_empty, "if_empty"), (m.nowait, "nowait")]);
                format!("{name} '{}'{flags}", here(&m.queue))
            }
            Q::DeleteOk(m) => format!("{name} {}", m.message_count),
            Q::BindOk(_) | Q::UnbindOk(_) => name,
        },
        AMQPClass::Channel(channel::AMQPMethod::Close(m)) if m.reply_code != 0 => {
            close(&name, m.reply_code, &m.reply_text, m.class_id, m.method_id)
        }
        AMQPClass::Connection(connection::AMQPMethod::Close(m)) if m.reply_code != 0 => {
            close(&name, m.reply_code, &m.reply_text, m.class_id, m.method_id)
        }
        AMQPClass::Channel(channel::AMQPMethod::Flow(m)) => format!("{name}{}", flags(&[(m.active, "active")])),
        AMQPClass::Confirm(confirm::AMQPMethod::Select(m)) => format!("{name}{}", flags(&[(m.nowait, "nowait")])),
        _ => name,
    }
}

fn close(name: &str, code: u16, text: &ShortString, class: u16, method: u16) -> String {
    format!("{name} {code} \"{}\" for {class}.{method}", here(text))
}

fn binding(to: &ShortString, from: &ShortString, key: &ShortString, nowait: bool, arguments: &FieldTable) -> String {
    let (nowait, arguments) = (flags(&[(nowait, "nowait")]), table(arguments));
    format!("'{}' from '{}' key '{}'{nowait}{arguments}", here(to), here(from), here(key))
}

fn flags(flags: &[(bool, &str)]) -> String {
    flags.iter().filter(|(is, _)| *is).fold(String::new(), |text, (_, name)| text + " " + name)
}

/// `class.method`, as AMQP writes it.
fn name(class: &AMQPClass) -> String {
    let debug = match class {
        AMQPClass::Basic(m) => format!("basic {m:?}"),
        AMQPClass::Channel(m) => format!("channel {m:?}"),
        AMQPClass::Connection(m) => format!("connection {m:?}"),
        AMQPClass::Exchange(m) => format!("exchange {m:?}"),
        AMQPClass::Queue(m) => format!("queue {m:?}"),
        AMQPClass::Confirm(m) => format!("confirm {m:?}"),
        AMQPClass::Tx(m) => format!("tx {m:?}"),
        AMQPClass::Access(m) => format!("access {m:?}"),
    };
    let (class, method) = debug.split_once(' ').unwrap_or_default();
    let method = method.split('(').next().unwrap_or_default();
    let mut text = format!("{class}.");
    for (at, letter) in method.char_indices() {
        if at > 0 && letter.is_uppercase() {
            text.push('-');
        }
        text.extend(letter.to_lowercase());
    }
    text
}

/// The properties that are there, in AMQP's order.
pub fn properties(properties: &AMQPProperties) -> String {
    let mut text = String::new();
    let mut put = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = write!(text, " {name}={value}");
        }
    };
    let word = |value: &Option<ShortString>| value.as_ref().map(|value| format!("'{}'", here(value)));
    put("content_type", word(properties.content_type()));
    put("content_encoding", word(properties.content_encoding()));
    put("headers", properties.headers().as_ref().map(entries));
    put("delivery_mode", properties.delivery_mode().map(|value| value.to_string()));
    put("priority", properties.priority().map(|value| value.to_string()));
    put("correlation_id", word(properties.correlation_id()));
    put("reply_to", word(properties.reply_to()));
    put("expiration", word(properties.expiration()));
    put("message_id", word(properties.message_id()));
    put("timestamp", properties.timestamp().map(|value| value.to_string()));
    put("type", word(properties.kind()));
    put("user_id", word(properties.user_id()));
    put("app_id", word(properties.app_id()));
    put("cluster_id", word(properties.cluster_id()));
    text
}

/// A body: whole when it is short, else its beginning, its length and a sum over all of it.
pub fn body(body: &[u8]) -> String {
    let begin = String::from_utf8_lossy(&body[..body.len().min(8)]).into_owned();
    if body.len() <= 8 {
        return format!("\"{begin}\"");
    }
    let sum = body.iter().fold(0_u32, |sum, byte| sum.rotate_left(5) ^ u32::from(*byte));
    format!("\"{begin}…\" of {} bytes, sum {sum:08x}", body.len())
}

fn table(table: &FieldTable) -> String {
    if table.inner().is_empty() { String::new() } else { format!(" {}", entries(table)) }
}

fn entries(table: &FieldTable) -> String {
    let is_death = table.inner().contains_key("reason");
    let all = table.inner().iter().map(|(key, item)| match item {
        // When a message died is not the same on both; that it was just now is.
        AMQPValue::Timestamp(at) if is_death && key.as_str() == "time" && is_recent(*at) => "time: now".to_owned(),
        item => format!("{}: {}", here(key), value(item)),
    });
    let all: Vec<_> = all.collect();
    format!("{{{}}}", all.join(", "))
}

fn value(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(text) => format!("'{}'", text.to_string().replace(PLACE, "")),
        AMQPValue::FieldTable(table) => entries(table),
        AMQPValue::FieldArray(array) => {
            let all: Vec<_> = array.as_slice().iter().map(self::value).collect();
            format!("[{}]", all.join(", "))
        }
        other => format!("{other:?}"),
    }
}

fn is_recent(at: u64) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    now.abs_diff(at) < 600
}
