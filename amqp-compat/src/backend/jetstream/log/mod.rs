//! A stream queue: a log that consumers read, each from where it likes, and that nobody takes anything out of.
//!
//! Its actor answers the same commands as that of other queues. Each consumer has a reader of its own; an acknowledgement
//! is nothing but credit for the next message.

use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::pump::{Cancelled, LastGone, NewConsumer, PumpCommand};
use super::queue::{Counts, Queue};
use crate::error::AmqpError;
use crate::model::queue::display;
use crate::model::stream::Offset;

mod reader;

const COMMANDS: usize = 1024;

/// 540 for what a stream queue does not have.
pub(crate) fn not_supported(what: &str, queue: &Queue) -> AmqpError {
    let queue = display(&queue.vhost, queue.name());
    AmqpError::not_implemented(format!("{what} not supported by stream queues {queue}"))
}

/// Starts the actor of a stream queue. It ends when it is told to stop, or when its queue's handles are gone.
pub(crate) fn start(queue: Arc<Queue>) -> mpsc::Sender<PumpCommand> {
    let (sender, mut commands) = mpsc::channel(COMMANDS);
    let mut log = Log { queue, readers: HashMap::new() };
    tokio::spawn(async move {
        while let Some(command) = commands.recv().await {
            if log.handle(command).await {
                return;
            }
        }
    });
    sender
}

struct Log {
    queue: Arc<Queue>,
    readers: HashMap<u64, Reader>,
}

struct Reader {
    consumer: NewConsumer,
    /// How many more messages it may hand out. The link gives no more than the client's prefetch.
    credit: mpsc::UnboundedSender<u32>,
    task: JoinHandle<()>,
}

impl Log {
    /// True when that was the last command.
    async fn handle(&mut self, command: PumpCommand) -> bool {
        // Who asked may have gone.
        match command {
            PumpCommand::Consume { mut consumer, answer } => {
                match self.begin(consumer.offset).await {
                    Ok(offset) => consumer.offset = offset,
                    Err(error) => {
                        let _ = answer.send(Err(error));
                        return false;
                    }
                }
                let (credit, given) = mpsc::unbounded_channel();
                let task = tokio::spawn(reader::run(self.queue.clone(), consumer.clone(), given, reader::now_ms()));
                self.readers.insert(consumer.id, Reader { consumer, credit, task });
                self.queue.set_consumers(self.readers.len());
                let _ = answer.send(Ok(()));
            }
            PumpCommand::Work { credit, .. } => {
                for (id, amount) in credit {
                    if let Some(reader) = self.readers.get(&id) {
                        let _ = reader.credit.send(amount);
                    }
                }
            }
            PumpCommand::Cancel { consumer, answer } => {
                let _ = answer.send(self.end(|other| other.id == consumer).await);
            }
            PumpCommand::Release { link, channel, answer } => {
                let is_its = |other: &NewConsumer| other.link == link && channel.is_none_or(|c| c == other.channel);
                let _ = answer.send(self.end(is_its).await);
            }
            PumpCommand::Get { answer, .. } => drop(answer.send(Err(not_supported("basic.get", &self.queue)))),
            PumpCommand::Purge { answer } => drop(answer.send(Err(not_supported("queue.purge", &self.queue)))),
            PumpCommand::Sync { answer } => drop(answer.send(())),
            PumpCommand::Counts { answer } => {
                let consumers = u32::try_from(self.readers.len()).unwrap_or(u32::MAX);
                let ready = self.queue.stored_messages().await;
                let _ = answer
                    .send(ready.map(|ready| Counts { ready, consumers, ..Counts::default() }).map_err(AmqpError::from));
            }
            PumpCommand::Stop { answer } => {
                let mut gone = Vec::new();
                for (_, Reader { consumer, task, .. }) in self.readers.drain() {
                    task.abort();
                    gone.push(Cancelled::new(consumer));
                }
                let _ = answer.send(gone);
                return true;
            }
            PumpCommand::Apply { answer } => {
                let _ = answer.send(self.queue.update_stream().await.map_err(AmqpError::from));
            }
            PumpCommand::Learn { answer } => drop(answer.send(Ok(()))),
            PumpCommand::WatchExpiry | PumpCommand::Trim => {}
        }
        false
    }

    /// Where a consumer begins that is told now that it does: what is published from here on is "next", also after a time
    /// that has not come. Left to the reader, a message that is published right after the answer could be passed over.
    async fn begin(&self, offset: Offset) -> Result<Offset, AmqpError> {
        let has_come = |seconds: u64| seconds.saturating_mul(1000) <= reader::now_ms();
        match offset {
            Offset::Next | Offset::Last => {}
            Offset::Since(seconds) if !has_come(seconds) => {}
            Offset::First | Offset::At(_) | Offset::Since(_) | Offset::Ago(_) => return Ok(offset),
        }
        let end = self.queue.stream_info().await?["state"]["last_seq"].as_u64().unwrap_or_default();
        Ok(Offset::At(if offset == Offset::Last { end.saturating_sub(1) } else { end }))
    }

    /// Ends readers; what they have handed out came before the answer.
    async fn end(&mut self, is_meant: impl Fn(&NewConsumer) -> bool) -> LastGone {
        let meant: Vec<u64> =
            self.readers.values().map(|reader| &reader.consumer).filter(|c| is_meant(c)).map(|c| c.id).collect();
        for id in &meant {
            if let Some(reader) = self.readers.remove(id) {
                reader.task.abort();
                // Aborted is what it is meant to be.
                let _ = reader.task.await;
            }
        }
        self.queue.set_consumers(self.readers.len());
        LastGone(!meant.is_empty() && self.readers.is_empty())
    }
}
