//! A program for lapin, moved to JetStream by one line. `lapin [nats://127.0.0.1:4222 | amqp://guest:guest@127.0.0.1:5672/%2f]`

// Before: use lapin::{...};
use amqp_compat::client::{
    BasicProperties, Confirmation, Connection, ConnectionProperties, Result, options::*, types::*,
};
use futures::StreamExt;

#[tokio::main]
async fn main() -> Result<()> {
    let uri = std::env::args().nth(1).unwrap_or_else(|| "nats://127.0.0.1:4222".into());
    let connection = Connection::connect(&uri, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    channel.queue_declare("hello".into(), QueueDeclareOptions::durable(), FieldTable::default()).await?;

    let mandatory = BasicPublishOptions { mandatory: true, ..Default::default() };
    let (mut confirmed, mut returned) = (0, 0);
    for (queue, order) in [("hello", "17"), ("hello", "18"), ("nobody", "19"), ("hello", "20")] {
        let properties = BasicProperties::default().with_delivery_mode(2);
        let publish = channel.basic_publish("".into(), queue.into(), mandatory, order.as_bytes(), properties).await?;
        match publish.await? {
            Confirmation::Ack(None) => confirmed += 1,
            Confirmation::Ack(Some(_)) => returned += 1,
            refused => panic!("order {order} is not stored: {refused:?}"),
        }
    }

    channel.basic_qos(10, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut consumer = channel.basic_consume("hello".into(), "".into(), options, FieldTable::default()).await?;
    let mut delivered = 0;
    while delivered < confirmed
        && let Some(delivery) = consumer.next().await
    {
        let delivery = delivery?;
        println!("  order {}", String::from_utf8_lossy(&delivery.data));
        delivery.ack(BasicAckOptions::default()).await?;
        delivered += 1;
    }

    println!("confirmed: {confirmed}\nreturned:  {returned}\ndelivered: {delivered}");
    channel.queue_delete("hello".into(), QueueDeleteOptions::default()).await?;
    connection.close(200, "done".into()).await
}
