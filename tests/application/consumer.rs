//! Works on one queue: writes down what it is given, then acknowledges, rejects or gives back. Which of them is in the message, so that it
//! is the same every time.

use std::time::Duration;

use clap::Args;
use futures::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, BasicRejectOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::record::{Died, Event, Outcome, Records};
use crate::{Common, Ended, Topology, connect, delay};

/// Arguments of `consume`.
#[derive(Debug, Args)]
pub struct ConsumeArgs {
    #[command(flatten)]
    common: Common,
    /// The queue to work on.
    #[arg(long)]
    queue: String,
    /// How many deliveries it may hold.
    #[arg(long, default_value_t = 100)]
    prefetch: u16,
    /// Rejects one of so many messages, for good.
    #[arg(long)]
    reject_every: Option<u64>,
    /// Gives one of so many messages back when it comes for the first time.
    #[arg(long)]
    requeue_every: Option<u64>,
    /// How long the work on each message takes.
    #[arg(long, default_value_t = 0)]
    work_ms: u64,
}

#[derive(Debug, Deserialize)]
struct Body {
    id: String,
    key: String,
    seq: u64,
}

/// Works until it is stopped.
pub async fn run(args: ConsumeArgs, stop: CancellationToken) -> Result<(), Ended> {
    let topology = Topology::read(&args.common.topology)?;
    let mut records = Records::create(&args.common.ledger, &args.common.name)?;
    let mut failures = 0;
    while !stop.is_cancelled() {
        if let Some(connection) = connect(&args.common, &mut records).await? {
            match session(&args, &connection, &topology, &mut records, &stop, &mut failures).await {
                Ok(()) => drop(connection.close(200, "done".into()).await),
                Err(why) => records.write([Event::Disconnected { why: why.to_string() }])?,
            }
        }
        if !stop.is_cancelled() {
            tokio::time::sleep(delay(failures)).await;
            failures += 1;
        }
    }
    records.write([Event::Stopped])?;
    Ok(())
}

async fn session(
    args: &ConsumeArgs,
    connection: &lapin::Connection,
    topology: &Topology,
    records: &mut Records,
    stop: &CancellationToken,
    failures: &mut usize,
) -> Result<(), Ended> {
    let channel = connection.create_channel().await?;
    topology.declare(&channel).await?;
    channel.basic_qos(args.prefetch, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(args.queue.as_str().into(), "".into(), options, FieldTable::default()).await?;
    records.write([Event::Connected])?;
    *failures = 0;
    let tag = consumer.tag();
    let mut deliveries = consumer.ready_chunks(64);
    loop {
        let chunk = tokio::select! {
            biased;
            () = stop.cancelled() => {
                channel.basic_cancel(tag, BasicCancelOptions::default()).await?;
                return Ok(());
            }
            chunk = deliveries.next() => chunk.ok_or("the consumer was cancelled")?,
        };
        let chunk: Vec<Delivery> = chunk.into_iter().collect::<Result<_, _>>()?;
        if args.work_ms == 0 {
            // What is written down may not have been settled; what is settled has always been written down.
            let ended: Vec<_> = chunk.iter().map(|delivery| (judge(args, delivery), delivery)).collect();
            records.write(ended.iter().map(|((event, _), _)| event.clone()))?;
            for ((_, outcome), delivery) in ended {
                settle(delivery, outcome).await?;
            }
        } else {
            for delivery in &chunk {
                tokio::time::sleep(Duration::from_millis(args.work_ms)).await;
                let (event, outcome) = judge(args, delivery);
                records.write([event])?;
                settle(delivery, outcome).await?;
            }
        }
    }
}

/// An ack of lapin's was seen never to end when its connection ended in the same moment: then this application connects again.
async fn settle(delivery: &Delivery, outcome: Outcome) -> Result<(), Ended> {
    let settled = async {
        match outcome {
            Outcome::Ack => delivery.ack(BasicAckOptions::default()).await,
            Outcome::Reject => delivery.reject(BasicRejectOptions { requeue: false }).await,
            Outcome::Requeue => delivery.nack(BasicNackOptions { requeue: true, multiple: false }).await,
        }
    };
    tokio::time::timeout(Duration::from_secs(20), settled)
        .await
        .map_err(|_| "a settlement was not sent within 20 s")??;
    Ok(())
}

fn judge(args: &ConsumeArgs, delivery: &Delivery) -> (Event, Outcome) {
    let body: Result<Body, _> = serde_json::from_slice(&delivery.data);
    let intact = body.as_ref().is_ok_and(|body| is_intact(body, delivery));
    let Body { id, key, seq } = body.unwrap_or_else(|why| Body { id: why.to_string(), key: String::new(), seq: 0 });
    let one_in = |every: Option<u64>, at: u64| every.is_some_and(|every| seq % every == at);
    let outcome = if one_in(args.reject_every, 1) {
        Outcome::Reject
    } else if one_in(args.requeue_every, 2) && !delivery.redelivered {
        Outcome::Requeue
    } else {
        Outcome::Ack
    };
    let (queue, redelivered) = (args.queue.clone(), delivery.redelivered);
    let died = died(delivery);
    (Event::Delivered { queue, id, key, seq, redelivered, intact, outcome, died }, outcome)
}

/// Whether everything arrived as it was published, and nothing was added but what a dead letter has.
fn is_intact(body: &Body, delivery: &Delivery) -> bool {
    let properties = &delivery.properties;
    let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(|text| text.as_str().to_owned());
    let headers = properties.headers().as_ref().map(|headers| headers.inner());
    // What RabbitMQ itself adds to dead letters, and to what a quorum queue delivers again.
    let added = headers.is_some_and(|headers| {
        let brokers =
            |name: &str| matches!(name, "seq" | "x-death" | "x-delivery-count") || name.starts_with("x-first-death-");
        !headers.keys().all(|name| brokers(name.as_str()))
    });
    let seq = headers.and_then(|headers| headers.get("seq"));
    delivery.routing_key.as_str() == body.key
        && text(properties.message_id()).as_deref() == Some(body.id.as_str())
        && text(properties.content_type()).as_deref() == Some("application/json")
        && *properties.delivery_mode() == Some(2)
        && matches!(seq, Some(AMQPValue::LongLongInt(seq)) if *seq == body.seq as i64)
        && !added
}

/// Where and why the message died last.
fn died(delivery: &Delivery) -> Option<Died> {
    let headers = delivery.properties.headers().as_ref()?;
    let AMQPValue::FieldArray(deaths) = headers.inner().get("x-death")? else { return None };
    let AMQPValue::FieldTable(last) = deaths.as_slice().first()? else { return None };
    let text = |name: &str| match last.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        other => format!("{other:?}"),
    };
    Some(Died { queue: text("queue"), reason: text("reason") })
}
