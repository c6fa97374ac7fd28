//! Publishes at a rate, with a window of unconfirmed messages. What a connection took with it unconfirmed is sent again first, with the
//! same ids. A new process knows nothing of what its predecessor had not confirmed.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use clap::Args;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use crate::record::{Event, Records};
use crate::{Common, Ended, Topology, connect, delay};

/// Arguments of `publish`.
#[derive(Debug, Args)]
pub struct PublishArgs {
    #[command(flatten)]
    common: Common,
    /// The exchange to publish to.
    #[arg(long)]
    exchange: String,
    /// A routing key; may be given more than once.
    #[arg(long = "key", required = true)]
    keys: Vec<String>,
    /// Messages a second.
    #[arg(long)]
    rate: f64,
    /// Which keys and sizes follow each other.
    #[arg(long)]
    seed: u64,
    /// One of so many messages of keys that begin with `brief.` has an expiration of its own, in milliseconds.
    #[arg(long, default_value_t = 100)]
    expiration: u64,
}

#[derive(Debug, Clone)]
struct Message {
    id: String,
    key: String,
    seq: u64,
    attempt: u32,
    body: String,
}

struct Publisher {
    args: PublishArgs,
    records: Records,
    random: StdRng,
    count: u64,
    seqs: BTreeMap<String, u64>,
    /// To be sent again, oldest first.
    unsent: VecDeque<Message>,
    stop: CancellationToken,
}

/// Publishes until it is stopped and everything is confirmed.
pub async fn run(args: PublishArgs, stop: CancellationToken) -> Result<(), Ended> {
    let topology = Topology::read(&args.common.topology)?;
    let records = Records::create(&args.common.ledger, &args.common.name)?;
    let random = StdRng::seed_from_u64(args.seed);
    let mut publisher =
        Publisher { args, records, random, count: 0, seqs: BTreeMap::new(), unsent: VecDeque::new(), stop };
    let mut failures = 0;
    while !publisher.done() {
        if let Some(connection) = connect(&publisher.args.common, &mut publisher.records).await? {
            let mut waiting = BTreeMap::new();
            let session = publisher.session(&connection, &topology, &mut waiting, &mut failures).await;
            // Nobody knows whether these were stored: they are sent again with the same ids, before anything new.
            for message in waiting.into_values().rev() {
                publisher.unsent.push_front(message);
            }
            match session {
                Ok(()) => drop(connection.close(200, "done".into()).await),
                Err(why) => publisher.records.write([Event::Disconnected { why: why.to_string() }])?,
            }
        }
        if !publisher.done() {
            tokio::time::sleep(delay(failures)).await;
            failures += 1;
        }
    }
    publisher.records.write([Event::Stopped])?;
    Ok(())
}

/// What came of the message with this number.
type Answer = (u64, Result<Confirmation, lapin::Error>);

impl Publisher {
    fn done(&self) -> bool {
        self.stop.is_cancelled() && self.unsent.is_empty()
    }

    async fn session(
        &mut self,
        connection: &lapin::Connection,
        topology: &Topology,
        waiting: &mut BTreeMap<u64, Message>,
        failures: &mut usize,
    ) -> Result<(), Ended> {
        let channel = connection.create_channel().await?;
        topology.declare(&channel).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        self.records.write([Event::Connected])?;
        *failures = 0;
        let mut answers: FuturesUnordered<BoxFuture<'static, Answer>> = FuturesUnordered::new();
        let mut number = 0;
        let (mut allowance, mut last) = (0.0_f64, Instant::now());
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    let most = self.args.rate * 0.2 + 1.0;
                    allowance = (allowance + self.args.rate * last.elapsed().as_secs_f64()).min(most);
                    last = Instant::now();
                    let mut batch = Vec::new();
                    while waiting.len() + batch.len() < WINDOW {
                        let Some(message) = self.next(&mut allowance) else { break };
                        batch.push(message);
                    }
                    let exchange = &self.args.exchange;
                    self.records.write(batch.iter().map(|Message { id, key, seq, attempt, .. }| Event::Published {
                        id: id.clone(), exchange: exchange.clone(), key: key.clone(), seq: *seq, attempt: *attempt,
                    }))?;
                    // All of them wait before the first is sent: none may be forgotten when that fails.
                    let first = number + 1;
                    for message in batch {
                        number += 1;
                        waiting.insert(number, message);
                    }
                    for number in first..=number {
                        let confirm = self.publish(&channel, &waiting[&number]).await?;
                        answers.push(Box::pin(async move { (number, confirm.await) }));
                    }
                    if self.done() && waiting.is_empty() {
                        return Ok(());
                    }
                }
                Some(answer) = answers.next(), if !answers.is_empty() => {
                    let mut events = Vec::new();
                    let mut answer = Some(answer);
                    let mut wrong = None;
                    while let Some((number, outcome)) = answer {
                        let id = waiting.get(&number).map(|message| message.id.clone()).unwrap_or_default();
                        match outcome {
                            Ok(Confirmation::Ack(None)) => {
                                waiting.remove(&number);
                                events.push(Event::Confirmed { id });
                            }
                            // Sent again over a new connection, which declares everything again.
                            Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned))) => {
                                let why = returned.reply_text.to_string();
                                wrong = Some(format!("returned: {why}"));
                                events.push(Event::Returned { id, why });
                            }
                            Ok(Confirmation::Nack(None)) => {
                                wrong = Some("a publish was refused".to_owned());
                                events.push(Event::Nacked { id });
                            }
                            Ok(Confirmation::NotRequested) => wrong = Some("no confirms".to_owned()),
                            Err(error) => wrong = Some(error.to_string()),
                        }
                        answer = futures::FutureExt::now_or_never(answers.next()).flatten();
                    }
                    self.records.write(events)?;
                    if let Some(why) = wrong {
                        drop(connection.close(200, "again".into()).await);
                        return Err(why.into());
                    }
                }
            }
        }
    }

    /// The next message that may be sent now.
    fn next(&mut self, allowance: &mut f64) -> Option<Message> {
        let mut message = match self.unsent.pop_front() {
            Some(message) => message,
            None if self.stop.is_cancelled() || *allowance < 1.0 => return None,
            None => {
                *allowance -= 1.0;
                self.new_message()
            }
        };
        message.attempt += 1;
        Some(message)
    }

    fn new_message(&mut self) -> Message {
        self.count += 1;
        let key = self.args.keys[self.random.random_range(0..self.args.keys.len())].clone();
        let seq = self.seqs.entry(key.clone()).or_default();
        *seq += 1;
        let (id, seq) = (format!("{}-{}", self.args.common.name, self.count), *seq);
        let note = "x".repeat(self.random.random_range(0..400));
        let body = serde_json::json!({ "id": id, "key": key, "seq": seq, "note": note }).to_string();
        Message { id, key, seq, attempt: 0, body }
    }

    async fn publish(
        &self,
        channel: &Channel,
        message: &Message,
    ) -> Result<impl Future<Output = Result<Confirmation, lapin::Error>> + Send + use<>, lapin::Error> {
        let mut headers = FieldTable::default();
        headers.insert("seq".into(), AMQPValue::LongLongInt(message.seq as i64));
        let mut properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/json".into())
            .with_message_id(message.id.as_str().into())
            .with_headers(headers);
        if message.key.starts_with("brief.") && message.seq.is_multiple_of(3) {
            properties = properties.with_expiration(self.args.expiration.to_string().into());
        }
        let mandatory = BasicPublishOptions { mandatory: true, ..Default::default() };
        let (exchange, key) = (self.args.exchange.as_str().into(), message.key.as_str().into());
        channel.basic_publish(exchange, key, mandatory, message.body.as_bytes(), properties).await
    }
}

/// How far bursts are apart.
const TICK: Duration = Duration::from_millis(5);

/// How many messages may be unconfirmed at once.
const WINDOW: usize = 1_000;
