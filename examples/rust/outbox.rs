//! A message that is sent if, and only if, a transaction is committed. `outbox [postgresql://...] [nats://127.0.0.1:4222]`

use std::error::Error;
use std::time::Duration;

use nats_bridge::outbox::postgres::{self, NoTls, Relay, RelayConfig};
use nats_bridge::{Bridge, Message, StreamSpec};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let database = args.next().unwrap_or_else(|| "postgresql://postgres@127.0.0.1:5432/postgres".into());
    let bridge = Bridge::connect(args.next().unwrap_or_else(|| "nats://127.0.0.1:4222".into())).await?;
    bridge
        .ensure_stream(&StreamSpec { max_bytes: Some(1 << 20), unbounded: true, ..StreamSpec::new("PAID", ["paid.>"]) })
        .await?;
    let (mut client, connection) = tokio_postgres::connect(&database, NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute(postgres::TABLE).await?;
    client.batch_execute("CREATE TABLE IF NOT EXISTS paid (id TEXT)").await?;

    for (order, fails) in [("order-17", false), ("order-18", true), ("order-19", false)] {
        let transaction = client.transaction().await?;
        transaction.execute("INSERT INTO paid VALUES ($1)", &[&order]).await?;
        postgres::put(&transaction, order, Message::new(format!("paid.{order}"), order)).await?;
        match fails {
            true => transaction.rollback().await?,
            false => transaction.commit().await?,
        }
    }
    let relay = Relay::start(&bridge, RelayConfig::new(database), NoTls).await?;
    relay.status().wait_for(|status| status.sent >= 2).await?;
    relay.stop(Duration::from_secs(5)).await?;

    let stored = bridge.jetstream().get_stream("PAID").await?.cached_info().state.messages;
    println!("in the table:  {}", client.query_one("SELECT count(*) FROM paid", &[]).await?.get::<_, i64>(0));
    println!("in the stream: {stored}");
    bridge.jetstream().delete_stream("PAID").await?;
    client.batch_execute("DROP TABLE paid").await?;
    bridge.close(Duration::from_secs(5)).await?;
    Ok(())
}
