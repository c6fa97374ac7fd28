//! A raw AMQP connection: what is written is exactly what the program says, what is heard comes as it came.

use std::net::SocketAddr;

use amq_protocol::frame::parsing::parse_content_header;
use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, WriteContext, gen_frame};
use amq_protocol::protocol::basic::{self, AMQPProperties};
use amq_protocol::protocol::{AMQPClass, channel, connection, parse_class};
use amq_protocol::types::{AMQPValue, FieldTable};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::UnboundedSender;

use crate::program::PLACE;

const OVERHEAD: usize = 8;
const END: u8 = 0xCE;

/// What a connection heard.
#[derive(Debug)]
pub struct Heard {
    pub connection: usize,
    /// Tells the lives of a connection apart: one that was closed is opened again.
    pub life: usize,
    pub channel: u16,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    Method(AMQPClass),
    Message(basic::AMQPMethod, Box<AMQPProperties>, Vec<u8>),
    /// The socket is closed.
    End,
}

/// The writing half; the reading half is a task that tells what it hears.
#[derive(Debug)]
pub struct Client {
    out: OwnedWriteHalf,
    unsent: Vec<u8>,
    prefix: String,
    frame_max: usize,
}

impl Client {
    /// Connects and logs in as guest.
    pub async fn open(
        server: SocketAddr,
        vhost: &str,
        prefix: &str,
        (connection, life): (usize, usize),
        heard: UnboundedSender<Heard>,
    ) -> Client {
        assert_eq!(prefix.len(), PLACE.len());
        let stream = TcpStream::connect(server).await.expect("the server accepts");
        stream.set_nodelay(true).expect("set");
        let (read, out) = stream.into_split();
        let mut reader = Reader { read, input: Vec::new(), prefix: prefix.to_owned() };
        // A small one and a usual one, so that bodies are cut in different ways.
        let frame_max: u32 = if connection == 1 { 4096 } else { 131_072 };
        let mut client = Client { out, unsent: Vec::new(), prefix: prefix.to_owned(), frame_max: frame_max as usize };
        client.unsent.extend_from_slice(b"AMQP\x00\x00\x09\x01");
        client.flush().await;
        reader.expect((10, 10)).await;
        client.say(connection::AMQPMethod::StartOk(connection::StartOk {
            client_properties: properties(),
            mechanism: "PLAIN".into(),
            response: b"\0guest\0guest".to_vec().into(),
            locale: "en_US".into(),
        }));
        client.flush().await;
        reader.expect((10, 30)).await;
        client.say(connection::AMQPMethod::TuneOk(connection::TuneOk { channel_max: 100, frame_max, heartbeat: 0 }));
        client.say(connection::AMQPMethod::Open(connection::Open { virtual_host: vhost.into() }));
        client.flush().await;
        reader.expect((10, 41)).await;
        tokio::spawn(reader.run(connection, life, heard));
        client
    }

    fn say(&mut self, method: connection::AMQPMethod) {
        self.method(0, AMQPClass::Connection(method));
    }

    pub fn method(&mut self, channel: u16, class: AMQPClass) {
        self.frame(&AMQPFrame::Method(channel, class));
    }

    /// A message's header and body.
    pub fn content(&mut self, channel: u16, properties: AMQPProperties, body: &[u8]) {
        let header = AMQPContentHeader { class_id: 60, body_size: body.len() as u64, properties };
        self.frame(&AMQPFrame::Header(channel, header));
        for part in body.chunks(self.frame_max - OVERHEAD) {
            self.frame(&AMQPFrame::Body(channel, part.to_vec()));
        }
    }

    fn frame(&mut self, frame: &AMQPFrame) {
        let context = WriteContext { write: Vec::new(), position: 0 };
        let mut bytes = gen_frame(frame)(context).expect("writing to a Vec does not fail").write;
        if !matches!(frame, AMQPFrame::Body(..)) {
            replace(&mut bytes, PLACE.as_bytes(), self.prefix.as_bytes());
        }
        self.unsent.extend_from_slice(&bytes);
    }

    /// Writes what was said. A server that has hung up is heard to have done so.
    pub async fn flush(&mut self) {
        let _ = self.out.write_all(&self.unsent).await;
        self.unsent.clear();
    }
}

fn properties() -> FieldTable {
    let mut capabilities = FieldTable::default();
    for name in ["authentication_failure_close", "basic.nack", "consumer_cancel_notify", "publisher_confirms"] {
        capabilities.insert(name.into(), AMQPValue::Boolean(true));
    }
    let mut properties = FieldTable::default();
    properties.insert("capabilities".into(), AMQPValue::FieldTable(capabilities));
    properties
}

struct Reader {
    read: OwnedReadHalf,
    input: Vec<u8>,
    prefix: String,
}

impl Reader {
    /// The next frame: type, channel, payload. `None` at the end.
    async fn frame(&mut self) -> Option<(u8, u16, Vec<u8>)> {
        loop {
            if let Some(head) = self.input.first_chunk::<7>() {
                let channel = u16::from_be_bytes([head[1], head[2]]);
                let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
                if self.input.len() >= size + OVERHEAD {
                    assert_eq!(self.input[7 + size], END, "the end of a frame");
                    let (kind, mut payload) = (head[0], self.input[7..7 + size].to_vec());
                    self.input.drain(..size + OVERHEAD);
                    if kind != 3 {
                        replace(&mut payload, self.prefix.as_bytes(), PLACE.as_bytes());
                    }
                    return Some((kind, channel, payload));
                }
            }
            if self.read.read_buf(&mut self.input).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn expect(&mut self, (class, method): (u16, u16)) {
        let (_, _, payload) = self.frame().await.expect("the login is answered");
        let [c, c2, m, m2] = *payload.first_chunk().expect("a method");
        assert_eq!((u16::from_be_bytes([c, c2]), u16::from_be_bytes([m, m2])), (class, method));
    }

    async fn run(mut self, connection: usize, life: usize, heard: UnboundedSender<Heard>) {
        // What is due after a method with content, by channel.
        let mut open: Vec<Content> = Vec::new();
        while let Some((kind, channel, payload)) = self.frame().await {
            let what = match kind {
                1 => match parse_class(&payload[..]) {
                    Ok((_, AMQPClass::Basic(method))) if has_content(&method) => {
                        open.push(Content {
                            channel,
                            method,
                            rest: None,
                            properties: Box::default(),
                            body: Vec::new(),
                        });
                        continue;
                    }
                    Ok((_, class)) => What::Method(class),
                    Err(_) => match close(&payload) {
                        Some(class) => What::Method(class),
                        None => {
                            eprintln!("a method cannot be read: {payload:?}");
                            break;
                        }
                    },
                },
                8 => continue,
                _ => {
                    let at = open.iter().position(|content| content.channel == channel).expect("content is due");
                    let content = &mut open[at];
                    if kind == 2 {
                        let (_, header) = parse_content_header(&payload[..]).expect("a header that can be read");
                        content.rest = Some(header.body_size as usize);
                        *content.properties = header.properties;
                    } else {
                        content.body.extend_from_slice(&payload);
                    }
                    if content.rest != Some(content.body.len()) {
                        continue;
                    }
                    let Content { method, properties, body, .. } = open.remove(at);
                    What::Message(method, properties, body)
                }
            };
            let _ = heard.send(Heard { connection, life, channel, what });
        }
        let _ = heard.send(Heard { connection, life, channel: 0, what: What::End });
    }
}

/// A message that is on its way.
struct Content {
    channel: u16,
    method: basic::AMQPMethod,
    /// The length of the body, once the header is there.
    rest: Option<usize>,
    properties: Box<AMQPProperties>,
    body: Vec<u8>,
}

/// A close whose text RabbitMQ has cut within a character, without what is left of that.
fn close(payload: &[u8]) -> Option<AMQPClass> {
    let (head, rest) = payload.split_at_checked(7)?;
    let (text, ids) = rest.split_at_checked(usize::from(head[6]))?;
    let &[class, class2, method, method2] = ids else { return None };
    let reply_code = u16::from_be_bytes([head[4], head[5]]);
    let reply_text = String::from_utf8_lossy(text).replace('\u{FFFD}', "").into();
    let (class_id, method_id) = (u16::from_be_bytes([class, class2]), u16::from_be_bytes([method, method2]));
    match head[..4] {
        [0, 20, 0, 40] => Some(AMQPClass::Channel(channel::AMQPMethod::Close(channel::Close {
            reply_code,
            reply_text,
            class_id,
            method_id,
        }))),
        [0, 10, 0, 50] => Some(AMQPClass::Connection(connection::AMQPMethod::Close(connection::Close {
            reply_code,
            reply_text,
            class_id,
            method_id,
        }))),
        _ => None,
    }
}

fn has_content(method: &basic::AMQPMethod) -> bool {
    use basic::AMQPMethod as M;
    matches!(method, M::Deliver(_) | M::GetOk(_) | M::Return(_))
}

fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    for at in 0..bytes.len().saturating_sub(from.len() - 1) {
        let place = &mut bytes[at..at + from.len()];
        if place == from {
            place.copy_from_slice(to);
        }
    }
}
