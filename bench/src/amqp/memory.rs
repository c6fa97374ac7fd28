//! Resident memory of both sides, as the operating system says: what a connection and a queue take, and what a queue full of messages does.

use std::time::{Duration, Instant};

use lapin::options::{ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionProperties};

use super::drive::{self, Drive};
use super::servers::{Profile, Servers};
use super::workload::{Kind, Memory, Shape};
use super::{AmqpArgs, AnyError};
use crate::report::Figure;

/// What is there before anything is counted, so that no code is loaded and no pool is made by what is.
const WARM_UP: usize = 10;

/// Memory by the name of the program, in bytes, of one side.
type Resident = Vec<(String, u64)>;

/// Fills both sides, one after the other, and compares what they take more than before (of messages: what they take in all).
///
/// # Errors
/// When a broker refuses a connection, a queue or a message.
pub async fn measure(servers: &Servers, profile: Profile, kind: Memory, args: &AmqpArgs) -> Result<Figure, AnyError> {
    let count = match kind {
        Memory::Connection => args.connections,
        Memory::Queue(_) if profile == Profile::Three => args.queues / 10,
        Memory::Queue(_) => args.queues,
        Memory::Queued(_) => args.queued,
    }
    .max(1);
    let size = args.sizes.first().copied().unwrap_or(128);
    let drive = Drive { messages: count, size, window: args.window, prefetch: args.prefetch };
    let mut sides = Vec::new();
    for (side, url) in [&servers.listener, &servers.rabbit].into_iter().enumerate() {
        let mut held = Held::open(url).await?;
        held.add(kind, "warm", Drive { messages: WARM_UP, ..drive }).await?;
        let before = settled(servers, side).await;
        let begun = Instant::now();
        held.add(kind, "bench", drive).await?;
        let took = begun.elapsed();
        let after = settled(servers, side).await;
        held.close().await?;
        eprintln!(
            "{:<50} {:>8}: {:.1} MiB before, {:.1} MiB after {count} ({:.1} s to make)",
            format!("{}: {}", profile.name(), kind.name()),
            ["listener", "RabbitMQ"][side],
            mib(&before),
            mib(&after),
            took.as_secs_f64()
        );
        sides.push((before, after));
    }
    let of = |(before, after): &(Resident, Resident)| match kind {
        Memory::Queued(_) => mib(after),
        _ => (mib(after) - mib(before)).max(0.0) * 1024.0 / count as f64,
    };
    let (ours, peer) = (of(&sides[0]), of(&sides[1]));
    let mut extra = Vec::new();
    for (who, (before, after)) in ["listener", "RabbitMQ"].into_iter().zip(&sides) {
        for (program, bytes) in after {
            let earlier = before.iter().find(|(name, _)| name == program).map_or(0, |(_, bytes)| *bytes);
            let shown = |bytes: f64| bytes / f64::from(1 << 20);
            extra.push((format!("MiB before, {program} ({who})"), shown(earlier as f64)));
            extra.push((format!("MiB more, {program} ({who})"), shown(*bytes as f64 - earlier as f64)));
        }
    }
    Ok(Figure {
        name: format!("{}: {}", profile.name(), kind.name()),
        detail: match kind {
            Memory::Queued(_) => format!("{count} messages of {size} B; all memory of a side"),
            _ => format!("{count} of them; what a side takes more than before, for each"),
        },
        unit: if matches!(kind, Memory::Queued(_)) { "MiB" } else { "KiB" },
        ours,
        peer_name: "RabbitMQ".into(),
        peer,
        ratio: peer / ours.max(0.001),
        extra,
    })
}

/// What a broker is made to hold.
struct Held {
    url: String,
    connections: Vec<(Connection, Channel)>,
    queues: Vec<ShortString>,
}

impl Held {
    async fn open(url: &str) -> Result<Self, AnyError> {
        let mut held = Self { url: url.to_owned(), connections: Vec::new(), queues: Vec::new() };
        held.connect().await?;
        Ok(held)
    }

    async fn connect(&mut self) -> Result<(), AnyError> {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        self.connections.push((connection, channel));
        Ok(())
    }

    async fn declare(&mut self, kind: Kind, name: String) -> Result<ShortString, AnyError> {
        let name = ShortString::from(name);
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.name().into()));
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        self.connections[0].1.queue_declare(name.clone(), options, arguments).await?;
        self.queues.push(name.clone());
        Ok(name)
    }

    async fn add(&mut self, what: Memory, prefix: &str, drive: Drive) -> Result<(), AnyError> {
        match what {
            Memory::Connection => {
                for _ in 0..drive.messages {
                    self.connect().await?;
                }
            }
            Memory::Queue(kind) => {
                for number in 0..drive.messages {
                    self.declare(kind, format!("{prefix}-memory-{number}")).await?;
                }
            }
            Memory::Queued(kind) => {
                let queue = self.declare(kind, format!("{prefix}-memory")).await?;
                let channel = self.connections[0].0.create_channel().await?;
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                let nameless = ShortString::default();
                drive::write(&channel, 0, drive, Shape::single(kind), &nameless, &queue, Instant::now()).await?;
                channel.close(200, "done".into()).await?;
            }
        }
        Ok(())
    }

    async fn close(self) -> Result<(), AnyError> {
        for queue in &self.queues {
            self.connections[0].1.queue_delete(queue.clone(), QueueDeleteOptions::default()).await?;
        }
        for (connection, _channel) in &self.connections {
            connection.close(200, "done".into()).await?;
        }
        Ok(())
    }
}

/// Waits until a side's memory no longer moves by a hundredth within 3 s (at most 30 s), and gives it.
async fn settled(servers: &Servers, side: usize) -> Resident {
    let deadline = Instant::now() + Duration::from_secs(30);
    let read = || servers.resident()[side].clone();
    let mut last = read();
    loop {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let now = read();
        if (mib(&now) - mib(&last)).abs() < mib(&last) / 100.0 || Instant::now() > deadline {
            return now;
        }
        last = now;
    }
}

fn mib(resident: &Resident) -> f64 {
    resident.iter().map(|(_, bytes)| *bytes as f64).sum::<f64>() / f64::from(1 << 20)
}
