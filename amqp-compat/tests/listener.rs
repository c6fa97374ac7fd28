//! The listener over real sockets, with a broker that does what each test wants.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use amq_protocol::frame::{AMQPFrame, WriteContext, gen_frame};
use amq_protocol::protocol::{AMQPClass, channel, connection};
use amqp_compat::AmqpError;
use amqp_compat::backend::{
    Backend, Command, Delivery, DeliveryId, Event, LINK_CAPACITY, Link, Login, Message, PublishOutcome, Reply, Topology,
};
use amqp_compat::listener::{Listener, Options};
use amqp_compat::session::Limits;
use async_trait::async_trait;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A broker that answers everything, and sends what it has in store to a consumer as fast as its credit allows.
#[derive(Default)]
struct Broker {
    /// It takes no commands after the first channel is open.
    stalls: bool,
    /// The body of each delivery, and how many of them it has.
    body: usize,
    deliveries: u64,
    delivered: Arc<AtomicUsize>,
    published: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
}

#[async_trait]
impl Backend for Broker {
    async fn open(&self, _: Login) -> Result<Link, AmqpError> {
        let (commands, mut asked) = mpsc::channel::<Command>(LINK_CAPACITY);
        let (events, taken) = mpsc::channel(LINK_CAPACITY);
        let (stalls, body, mut left) = (self.stalls, vec![b'x'; self.body], self.deliveries);
        let (delivered, published, ended) =
            (Arc::clone(&self.delivered), Arc::clone(&self.published), Arc::clone(&self.ended));
        tokio::spawn(async move {
            while let Some(command) = asked.recv().await {
                let channel = command.channel();
                let reply = match &command {
                    Command::Topology { request: Topology::QueueDeclare(declare), .. } => {
                        Reply::Queue { queue: declare.queue.clone(), message_count: 0, consumer_count: 0 }
                    }
                    _ => Reply::Done,
                };
                if command.is_request() && events.send(Event::Reply { channel, reply: Ok(reply) }).await.is_err() {
                    break;
                }
                let (tag, credit) = match command {
                    Command::OpenChannel { .. } if stalls => {
                        // As if it were busy for ever; the link stays.
                        asked.close();
                        events.closed().await;
                        break;
                    }
                    Command::Publish(publish) => {
                        published.fetch_add(1, Ordering::SeqCst);
                        let event = Event::Confirm { channel, seq: publish.seq, outcome: PublishOutcome::Stored };
                        if events.send(event).await.is_err() {
                            break;
                        }
                        continue;
                    }
                    Command::Consume { consume, .. } => (consume.consumer_tag, consume.credit),
                    Command::Credit { consumer_tag, amount, .. } => (consumer_tag, amount),
                    _ => continue,
                };
                for _ in 0..u64::from(credit).min(left) {
                    left -= 1;
                    let message = Message {
                        exchange: "".into(),
                        routing_key: "q".into(),
                        properties: Default::default(),
                        body: body.clone().into(),
                    };
                    let delivery =
                        Box::new(Delivery { id: DeliveryId(left), redelivered: false, ack_timeout: None, message });
                    let event = Event::Delivery { channel, consumer_tag: tag.clone(), delivery };
                    if events.send(event).await.is_err() {
                        break;
                    }
                    delivered.fetch_add(1, Ordering::SeqCst);
                }
            }
            ended.fetch_add(1, Ordering::SeqCst);
        });
        Ok(Link { commands, events: taken })
    }
}

struct Server {
    uri: String,
    address: std::net::SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

async fn serve(broker: Broker, options: Options) -> Server {
    let listener = Listener::bind_with("127.0.0.1:0", options).await.expect("bound");
    let address = listener.local_addr().expect("has one");
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(listener.run(Arc::new(broker), shutdown.clone()));
    Server { uri: format!("amqp://guest:guest@{address}/%2f"), address, shutdown, task }
}

async fn eventually(what: &str, check: impl Fn() -> bool) {
    for _ in 0..1500 {
        if check() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 15 s: {what}");
}

#[tokio::test]
async fn a_client_publishes_with_confirms_and_leaves() {
    let broker = Broker::default();
    let (published, ended) = (Arc::clone(&broker.published), Arc::clone(&broker.ended));
    let server = serve(broker, Options::default()).await;
    let connection = Connection::connect(&server.uri, ConnectionProperties::default()).await.expect("connected");
    let channel = connection.create_channel().await.expect("a channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirm mode");
    let mut confirms = Vec::new();
    for size in [0, 10, 4096, 200_000, 1_000_000] {
        let body = vec![b'x'; size];
        let confirm = channel
            .basic_publish("".into(), "q".into(), BasicPublishOptions::default(), &body, BasicProperties::default())
            .await
            .expect("published");
        confirms.push(confirm);
    }
    for confirm in confirms {
        assert!(confirm.await.expect("confirmed").is_ack());
    }
    connection.close(200, "bye".into()).await.expect("closed");
    assert_eq!(published.load(Ordering::SeqCst), 5);
    eventually("the link ends", || ended.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_stop_closes_connections_and_says_why() {
    let server = serve(Broker::default(), Options::default()).await;
    let mut client = raw_client(&server).await;
    // Up to the answer to channel.open, the last one.
    let mut heard = Vec::new();
    while !heard.ends_with(b"\x00\x14\x00\x0b\x00\x00\x00\x00\xce") {
        assert!(client.read_buf(&mut heard).await.expect("read") > 0);
    }
    server.shutdown.cancel();
    heard.clear();
    while !heard.windows(17).any(|bytes| bytes == b"CONNECTION_FORCED") {
        assert!(client.read_buf(&mut heard).await.expect("read") > 0, "closed without a word");
    }
    drop(client);
    server.task.await.expect("the listener ends");
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn more_connections_than_allowed_are_closed_at_once() {
    let server = serve(Broker::default(), Options { max_connections: 1, ..Options::default() }).await;
    let first = Connection::connect(&server.uri, ConnectionProperties::default()).await.expect("connected");
    let mut second = TcpStream::connect(server.address).await.expect("accepted");
    let mut answer = Vec::new();
    match second.read_to_end(&mut answer).await {
        Ok(_) => assert!(answer.is_empty()),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    first.close(200, "bye".into()).await.expect("closed");
    // The place is free again once the first is gone.
    for attempt in 0.. {
        match Connection::connect(&server.uri, ConnectionProperties::default()).await {
            Ok(_) => break,
            Err(error) if attempt > 100 => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

#[tokio::test]
async fn a_silent_client_is_sent_away() {
    let limits = Limits { handshake: Duration::from_millis(100), ..Limits::default() };
    let server = serve(Broker::default(), Options { limits, ..Options::default() }).await;
    let mut client = TcpStream::connect(server.address).await.expect("accepted");
    client.write_all(b"AMQP").await.expect("written");
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(15), client.read_to_end(&mut answer)).await.expect("closed").expect("EOF");
    assert!(answer.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_dawdles_is_sent_away_however_its_bytes_fall() {
    let limits = Limits { handshake: Duration::from_millis(100), ..Limits::default() };
    let server = serve(Broker::default(), Options { limits, ..Options::default() }).await;
    let clients = (0..100).map(|_| async {
        let mut client = TcpStream::connect(server.address).await.expect("accepted");
        // A first frame of 64 KiB that comes one byte after the other: each of them wakes the connection.
        client.write_all(b"AMQP\x00\x00\x09\x01\x01\x00\x00\x00\x01\x00\x00").await.expect("written");
        let (mut reader, mut writer) = client.into_split();
        let ended = async {
            let mut answer = Vec::new();
            // The server may reset a client that goes on talking.
            let _ = reader.read_to_end(&mut answer).await;
        };
        let talk = async {
            while writer.write_all(b"x").await.is_ok() {
                tokio::task::yield_now().await;
            }
            std::future::pending::<()>().await;
        };
        let done = async {
            tokio::select! { () = ended => {}, () = talk => {} }
        };
        tokio::time::timeout(Duration::from_secs(30), done).await.expect("the server closes it");
    });
    futures::future::join_all(clients).await;
}

fn encoded(channel: u16, class: AMQPClass) -> Vec<u8> {
    let frame = AMQPFrame::Method(channel, class);
    gen_frame(&frame)(WriteContext { write: Vec::new(), position: 0 }).expect("encodes").write
}

/// A connection up to an open channel, by bytes, so that the test decides what is read.
async fn raw_client(server: &Server) -> TcpStream {
    let con = |method| encoded(0, AMQPClass::Connection(method));
    let mut stream = TcpStream::connect(server.address).await.expect("accepted");
    let mut bytes = b"AMQP\x00\x00\x09\x01".to_vec();
    bytes.extend(con(connection::AMQPMethod::StartOk(connection::StartOk {
        client_properties: FieldTable::default(),
        mechanism: "PLAIN".into(),
        response: "\0guest\0guest".into(),
        locale: "en_US".into(),
    })));
    let tuned = connection::TuneOk { channel_max: 10, frame_max: 131_072, heartbeat: 0 };
    bytes.extend(con(connection::AMQPMethod::TuneOk(tuned)));
    bytes.extend(con(connection::AMQPMethod::Open(connection::Open { virtual_host: "/".into() })));
    bytes.extend(encoded(1, AMQPClass::Channel(channel::AMQPMethod::Open(channel::Open {}))));
    stream.write_all(&bytes).await.expect("written");
    stream
}

#[tokio::test]
async fn a_client_that_leaves_closes_its_socket_first() {
    let broker = Broker::default();
    let ended = Arc::clone(&broker.ended);
    let server = serve(broker, Options::default()).await;
    for closes_it in [true, false] {
        let mut client = raw_client(&server).await;
        let close = connection::Close { reply_code: 200, reply_text: "bye".into(), class_id: 0, method_id: 0 };
        let con = |method| encoded(0, AMQPClass::Connection(method));
        client.write_all(&con(connection::AMQPMethod::Close(close))).await.expect("written");
        let close_ok = con(connection::AMQPMethod::CloseOk(connection::CloseOk {}));
        let mut heard = Vec::new();
        while !heard.ends_with(&close_ok) {
            assert!(client.read_buf(&mut heard).await.expect("read") > 0, "the end came before close-ok");
        }
        let before = Instant::now();
        if closes_it {
            client.shutdown().await.expect("closed");
        }
        // The end comes when the client has closed its side, or takes long to do so.
        let rest = tokio::time::timeout(Duration::from_secs(30), client.read_buf(&mut heard)).await;
        assert_eq!(rest.expect("the end").expect("read"), 0);
        assert!(closes_it || before.elapsed() > Duration::from_secs(1), "the server was first");
    }
    eventually("the links end", || ended.load(Ordering::SeqCst) == 2).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_buffered_for() {
    let broker = Broker { body: 100_000, deliveries: 100_000, ..Broker::default() };
    let (delivered, ended) = (Arc::clone(&broker.delivered), Arc::clone(&broker.ended));
    let server = serve(broker, Options::default()).await;
    let mut client = raw_client(&server).await;
    use amq_protocol::frame::{AMQPFrame, WriteContext, gen_frame};
    use amq_protocol::protocol::{AMQPClass, basic};
    let consume = basic::Consume { queue: "q".into(), consumer_tag: "c".into(), no_ack: true, ..Default::default() };
    let frame = AMQPFrame::Method(1, AMQPClass::Basic(basic::AMQPMethod::Consume(consume)));
    let bytes = gen_frame(&frame)(WriteContext { write: Vec::new(), position: 0 }).expect("encodes").write;
    client.write_all(&bytes).await.expect("written");
    eventually("the first window is delivered", || delivered.load(Ordering::SeqCst) >= 500).await;
    // Its credit of 1000 does not come back while nothing is read: 10 GB are waiting, 100 MB at most are under way.
    let mut last = 0;
    for _ in 0..20 {
        last = delivered.load(Ordering::SeqCst);
        assert!(last < 2000, "{last} deliveries for a client that does not read");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // It reads again, and they go on.
    let mut sink = vec![0; 1 << 20];
    while delivered.load(Ordering::SeqCst) < last + 1000 {
        assert!(client.read(&mut sink).await.expect("read") > 0);
    }
    drop(client);
    eventually("the link ends", || ended.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_client_hears_of_a_broker_that_went_away() {
    let server = serve(Broker { stalls: true, ..Broker::default() }, Options::default()).await;
    let connection = Connection::connect(&server.uri, ConnectionProperties::default()).await.expect("connected");
    let channel = connection.create_channel().await.expect("a channel");
    // Commands that nobody takes do not block the connection: the stop is heard.
    let declare = tokio::spawn(async move {
        channel.queue_declare("q".into(), QueueDeclareOptions::default(), FieldTable::default()).await
    });
    server.shutdown.cancel();
    server.task.await.expect("the listener ends");
    assert!(declare.await.expect("no panic").is_err());
}

#[tokio::test]
async fn consumers_get_all_there_is() {
    use futures::StreamExt;
    let broker = Broker { body: 10, deliveries: 5000, ..Broker::default() };
    let server = serve(broker, Options::default()).await;
    let connection = Connection::connect(&server.uri, ConnectionProperties::default()).await.expect("connected");
    let channel = connection.create_channel().await.expect("a channel");
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut consumer =
        channel.basic_consume("q".into(), "c".into(), options, FieldTable::default()).await.expect("a consumer");
    for count in 0..5000 {
        let next = tokio::time::timeout(Duration::from_secs(15), consumer.next()).await;
        next.unwrap_or_else(|_| panic!("no delivery after {count}")).expect("not ended").expect("a delivery");
    }
}
