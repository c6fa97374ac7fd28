use amqp_compat::ReplyCode;
use amqp_compat::backend::{Backend, Command, Event, Login, Outcome, QueueDeclare, Reply, Topology};
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;

use crate::client::{Client, body, exchange, login, queue, table, text, until_counts};
use crate::{alone, backend, backend_with, one_lease};

fn delete(name: &str, if_unused: bool, if_empty: bool) -> Topology {
    Topology::QueueDelete { queue: name.into(), if_unused, if_empty }
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_vhost_are_refused_with_rabbitmqs_codes() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let error = backend.open(Login { password: "x".into(), ..login() }).await.expect_err("refused");
    assert_eq!(error.code, ReplyCode::AccessRefused);
    let error = backend.open(Login { vhost: "x".into(), ..login() }).await.expect_err("refused");
    assert_eq!(error.to_string(), "NOT_ALLOWED - vhost 'x' not found");
}

#[tokio::test]
async fn durable_topology_and_messages_survive_a_new_gateway_and_the_rest_does_not() {
    let server = NatsServer::start();
    {
        let backend = alone(&server).await;
        let mut client = Client::open(&*backend).await;
        client.topology(Topology::ExchangeDeclare(exchange("x", "topic"))).await.expect("declared");
        client.declare(queue("d.1")).await;
        client.declare(QueueDeclare { durable: false, ..queue("t") }).await;
        client.bind("x", "d.1", "a.#").await;
        client.bind("x", "t", "a.#").await;
        client.store("x", "a.b", "kept").await;
    }
    let backend = alone(&server).await;
    let mut client = Client::open(&*backend).await;
    assert_eq!(client.counts("d.1").await, (1, 0));
    let passive = Topology::QueueDeclare(QueueDeclare { passive: true, ..queue("t") });
    assert_eq!(client.topology(passive).await.expect_err("gone").code, ReplyCode::NotFound);
    client.store("x", "a.c", "new").await;
    assert_eq!(client.counts("d.1").await, (2, 0));
    assert_eq!(body(&client.get("d.1").await.expect("a message").delivery), "kept");
}

#[tokio::test]
async fn what_clients_had_says_so_after_a_restart_of_the_gateway_and_what_they_had_not_does_not() {
    let server = NatsServer::start();
    let config = one_lease(&server).await;
    // Given back before the restart; held at the restart; given back while the consumer was being made anew.
    for (queue_name, gives_back, loses_consumer) in
        [("back", true, false), ("held", false, false), ("gone", true, true)]
    {
        {
            let backend = backend_with(&server, config.clone()).await;
            let mut client = Client::open(&*backend).await;
            client.declare(queue(queue_name)).await;
            for n in 0..4 {
                client.store("", queue_name, n.to_string()).await;
            }
            for _ in 0..3 {
                assert!(!client.get(queue_name).await.expect("a message").delivery.redelivered);
            }
            if gives_back {
                client.close().await;
                let mut other = Client::open(&*backend).await;
                until_counts(&mut other, queue_name, (4, 0)).await;
            }
        }
        let bridge = nats_bridge::Bridge::connect(server.url()).await.expect("connected");
        let stream = bridge.jetstream().get_stream(format!("AQ_=2F_{queue_name}")).await.expect("a stream");
        // It ends by itself, in this process; another process would not be started beside it.
        eventually_true("the former gateway asks for nothing any more", || async {
            stream.consumer_info("amqp").await.is_ok_and(|info| info.num_waiting == 0)
        })
        .await;
        if loses_consumer {
            stream.delete_consumer("amqp").await.expect("deleted");
        }
        let backend = backend_with(&server, config.clone()).await;
        let mut client = Client::open(&*backend).await;
        for n in 0..4 {
            let delivery = client.get(queue_name).await.expect("a message").delivery;
            assert_eq!(body(&delivery), n.to_string());
            assert_eq!(delivery.redelivered, n < 3 || loses_consumer, "{n} of {queue_name}");
            client.settle(&[&delivery], Outcome::Ack).await;
        }
        assert_eq!(client.counts(queue_name).await.0, 0);
    }
}

#[tokio::test]
async fn purge_removes_ready_messages_and_leaves_what_clients_hold() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    let purge = || Topology::QueuePurge { queue: "q".into() };
    for n in 0..10 {
        client.store("", "q", n.to_string()).await;
    }
    let held = client.get("q").await.expect("a message").delivery;
    assert!(matches!(client.topology(purge()).await, Ok(Reply::MessageCount(9))));
    assert_eq!(client.counts("q").await, (0, 0));
    client.settle(&[&held], Outcome::Requeue).await;
    assert_eq!(client.counts("q").await, (1, 0));
    assert_eq!(body(&client.get("q").await.expect("it was held").delivery), "0");
    client.store("", "q", "x").await;
    assert!(matches!(client.topology(purge()).await, Ok(Reply::MessageCount(1))));
}

#[tokio::test]
async fn a_purge_does_not_count_what_was_acknowledged_before_it() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    for _ in 0..100 {
        client.store("", "q", "x").await;
        let got = client.get("q").await.expect("a message").delivery;
        client.settle(&[&got], Outcome::Ack).await;
        let purged = client.topology(Topology::QueuePurge { queue: "q".into() }).await;
        assert!(matches!(purged, Ok(Reply::MessageCount(0))), "{purged:?}");
    }
}

#[tokio::test]
async fn delete_says_how_many_went_and_minds_its_conditions() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.store("", "q", "x").await;
    let error = client.topology(delete("q", false, true)).await.expect_err("refused");
    assert_eq!(error.to_string(), "PRECONDITION_FAILED - queue 'q' in vhost '/' not empty");
    client.consume("q", "c", 0).await;
    let error = client.topology(delete("q", true, false)).await.expect_err("refused");
    assert_eq!(error.to_string(), "PRECONDITION_FAILED - queue 'q' in vhost '/' in use");
    assert!(matches!(client.topology(delete("q", false, false)).await, Ok(Reply::MessageCount(1))));
    let cancelled = |event: &Event| matches!(event, Event::ConsumerCancelled { .. });
    client.next("the consumer is told", cancelled, drop).await;
    assert!(matches!(client.topology(delete("q", false, false)).await, Ok(Reply::MessageCount(0))));
}

#[tokio::test]
async fn a_queue_declared_again_is_another_queue() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    for round in 0..5 {
        client.declare(queue("q")).await;
        client.bind("amq.fanout", "q", "").await;
        for n in 0..3 {
            client.store("amq.fanout", "", format!("{round}.{n}")).await;
        }
        let got = client.get("q").await.expect("a message").delivery;
        assert_eq!((body(&got), got.redelivered), (format!("{round}.0"), false));
        client.topology(delete("q", false, false)).await.expect("deleted");
        // A settlement of the old queue must not touch the new one.
        client.declare(queue("q")).await;
        client.store("amq.fanout", "", "not bound any more").await;
        assert_eq!(client.counts("q").await, (0, 0));
        client.store("", "q", "new").await;
        client.settle(&[&got], Outcome::Ack).await;
        let new = client.get("q").await.expect("it is there").delivery;
        assert_eq!((body(&new), new.redelivered), ("new".into(), false));
        client.topology(delete("q", false, false)).await.expect("deleted");
    }
}

#[tokio::test]
async fn an_exclusive_queue_is_locked_and_goes_with_its_connection() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut owner = Client::open(&*backend).await;
    let mut other = Client::open(&*backend).await;
    let exclusive = QueueDeclare { exclusive: true, durable: false, ..queue("") };
    let (name, ..) = owner.declare(exclusive).await;
    assert!(name.starts_with("amq.gen-"), "{name}");
    let passive = || Topology::QueueDeclare(QueueDeclare { passive: true, ..queue(&name) });
    assert_eq!(other.topology(passive()).await.expect_err("locked").code, ReplyCode::ResourceLocked);
    other.store("", &name, "others may publish to it").await;
    assert_eq!(owner.counts(&name).await, (1, 0));
    owner.close().await;
    test_support::eventually::eventually_true("the queue goes", || async {
        let mut asking = Client::open(&*backend).await;
        asking.topology(passive()).await.is_err_and(|error| error.code == ReplyCode::NotFound)
    })
    .await;
}

#[tokio::test]
async fn an_auto_delete_queue_goes_with_its_last_consumer() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(QueueDeclare { auto_delete: true, ..queue("q") }).await;
    client.consume("q", "a", 1).await;
    client.consume("q", "b", 1).await;
    client.done(Command::Cancel { channel: 1, consumer_tag: "a".into() }).await;
    assert_eq!(client.counts("q").await, (0, 1));
    client.done(Command::Cancel { channel: 1, consumer_tag: "b".into() }).await;
    let passive = Topology::QueueDeclare(QueueDeclare { passive: true, ..queue("q") });
    assert_eq!(client.topology(passive).await.expect_err("gone").code, ReplyCode::NotFound);
}

#[tokio::test]
async fn streams_keep_the_times_to_live_that_an_earlier_gateway_let_the_server_have() {
    let server = NatsServer::start();
    let config = one_lease(&server).await;
    let stream_queue = || QueueDeclare { arguments: table(&[("x-queue-type", text("stream"))]), ..queue("log") };
    {
        let backend = backend_with(&server, config.clone()).await;
        let mut client = Client::open(&*backend).await;
        client.declare(queue("empty")).await;
        client.declare(queue("full")).await;
        client.declare(stream_queue()).await;
        client.store("", "full", "kept").await;
    }
    let bridge = nats_bridge::Bridge::connect(server.url()).await.expect("connected");
    let stream = async |queue: &str| {
        bridge.jetstream().get_stream(format!("AQ_=2F_{queue}")).await.expect("a stream").cached_info().clone()
    };
    let mut before = Vec::new();
    for queue in ["empty", "full", "log"] {
        let info = stream(queue).await;
        assert!(!info.config.allow_message_ttl, "{queue}: costs memory and is not used");
        let config = async_nats::jetstream::stream::Config { allow_message_ttl: true, ..info.config };
        // A server of 2.10 passes over it.
        let updated = bridge.jetstream().update_stream(config).await.expect("updated");
        assert_eq!(updated.config.allow_message_ttl, bridge.api_level() >= 1, "{queue}");
        before.push((updated.config.allow_message_ttl, info.created));
    }
    let backend = backend_with(&server, config).await;
    let mut client = Client::open(&*backend).await;
    client.declare(stream_queue()).await;
    assert_eq!(body(&client.get("full").await.expect("a message").delivery), "kept");
    for (queue, before) in ["empty", "full", "log"].into_iter().zip(before) {
        let info = stream(queue).await;
        assert_eq!((info.config.allow_message_ttl, info.created), before, "{queue} is the same stream");
    }
}
