use lapin::options::*;
use lapin::types::FieldTable;
use lapin::{BasicProperties, Confirmation};

use crate::servers::{Client, Failure, both, table, text};

/// Everything that the plug-in checks; what is accepted and what is refused, with which words.
async fn declarations_and_bindings(client: &Client) -> Vec<Result<(), Failure>> {
    let mut seen = Vec::new();
    let on = |header: &str, property: &str| {
        let arguments = [("hash-header", text(header)), ("hash-property", text(property))];
        table(&arguments.into_iter().filter(|(_, value)| *value != text("-")).collect::<Vec<_>>())
    };
    for (index, (header, property)) in
        [("-", "-"), ("h", "-"), ("-", "message_id"), ("-", "app_id"), ("h", "message_id"), ("", "-")]
            .iter()
            .enumerate()
    {
        seen.push(client.exchange(&format!("x{index}"), "x-consistent-hash", on(header, property)).await);
    }
    // What is hashed is not compared when it is declared again.
    seen.push(client.exchange("x0", "x-consistent-hash", on("h", "-")).await);
    seen.push(client.exchange("x0", "direct", FieldTable::default()).await);
    client.queue("q", FieldTable::default()).await.expect("declared");
    for key in ["abc", "", "1.5", " 1", "1 ", "0", "-1", "-0", "é", "+2", "01"] {
        seen.push(client.bind("x0", "q", key).await);
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consistent_hash_exchange_checks_what_rabbitmqs_checks_in_its_words() {
    let (rabbit, ours, _server) = both().await;
    let expected = declarations_and_bindings(&rabbit).await;
    let seen = declarations_and_bindings(&ours).await;
    assert_eq!(seen, expected);
    assert!(seen.iter().any(Result::is_ok) && seen.iter().any(Result::is_err));
}

/// How 600 keys, and then 60 messages of one key, are spread over queues of weights 1, 1 and 4; and whether a message is
/// returned from an exchange without bindings.
async fn spread(client: &Client) -> (Vec<u32>, Vec<u32>, bool) {
    client.exchange("x", "x-consistent-hash", FieldTable::default()).await.expect("declared");
    let channel = client.channel().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("selected");
    let publish = async |key: &str, mandatory: bool| {
        let options = BasicPublishOptions { mandatory, ..Default::default() };
        let sent = channel.basic_publish("x".into(), key.into(), options, b"", BasicProperties::default()).await;
        sent.expect("sent").await.expect("confirmed")
    };
    let returned = matches!(publish("k", true).await, Confirmation::Ack(Some(_)));
    for (queue, weight) in [("a", "1"), ("b", "1"), ("c", "4")] {
        client.queue(queue, FieldTable::default()).await.expect("declared");
        client.bind("x", queue, weight).await.expect("bound");
    }
    let counts = async || {
        let mut counts = Vec::new();
        for queue in ["a", "b", "c"] {
            let purged = channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await;
            counts.push(purged.expect("purged"));
        }
        counts
    };
    for key in 0..600 {
        publish(&key.to_string(), false).await;
    }
    let many = counts().await;
    for _ in 0..60 {
        publish("one", false).await;
    }
    (many, counts().await, returned)
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_spread_by_weight_and_one_key_stays_on_one_queue() {
    let (rabbit, ours, _server) = both().await;
    for (client, which) in [(rabbit, "RabbitMQ"), (ours, "ours")] {
        let (many, one, returned) = spread(&client).await;
        assert!(returned, "{which}: nothing is bound");
        assert_eq!(many.iter().sum::<u32>(), 600, "{which}: one queue each");
        // Five standard deviations of a fair draw: of 100 of 600, and of 400 of 600.
        let fair = [(100, 46), (100, 46), (400, 58)];
        assert!(many.iter().zip(fair).all(|(n, (mean, slack))| n.abs_diff(mean) <= slack), "{which}: {many:?}");
        assert_eq!(one.iter().max(), Some(&60), "{which}: {one:?}");
    }
}
