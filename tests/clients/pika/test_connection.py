"""What a connection is promised."""

import pika
import pika.exceptions
import pytest


def test_a_wrong_password_is_refused(connect):
    with pytest.raises(pika.exceptions.ProbableAuthenticationError) as caught:
        connect(credentials=pika.PlainCredentials("guest", "wrong"))
    assert "403" in str(caught.value)


def test_an_unknown_vhost_is_refused(connect):
    with pytest.raises(pika.exceptions.ProbableAccessDeniedError) as caught:
        connect(virtual_host="nowhere")
    assert "(530)" in str(caught.value)


def test_an_idle_connection_lives_on_its_heartbeats(connect):
    connection = connect(heartbeat=1)
    connection.process_data_events(time_limit=3.5)
    assert connection.channel().is_open


def test_an_exclusive_queue_belongs_to_its_connection(connect, name):
    owner = connect()
    owner.channel().queue_declare(name, exclusive=True)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
        connect().channel().basic_consume(name, lambda *_: None)
    assert caught.value.reply_code == 405
    owner.close()
    assert connect().channel().queue_declare(name).method.message_count == 0


def test_declaring_a_queue_otherwise_than_it_is_is_a_precondition_failure(connect, name):
    connection = connect()
    connection.channel().queue_declare(name, durable=True)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
        connection.channel().queue_declare(name, durable=False)
    assert caught.value.reply_code == 406
    assert connection.channel().is_open


def test_confirmed_messages_survive_a_kill_of_the_listener_and_its_nats_server(own_server, name):
    connection = pika.BlockingConnection(pika.URLParameters(own_server.url))
    channel = connection.channel()
    channel.queue_declare(name, durable=True)
    channel.confirm_delivery()
    for number in range(50):
        channel.basic_publish("", name, str(number).encode(), pika.BasicProperties(delivery_mode=2))
    own_server.kill()
    own_server.start()
    connection = pika.BlockingConnection(pika.URLParameters(own_server.url))
    channel = connection.channel()
    bodies = []
    for method, _properties, body in channel.consume(name, auto_ack=True, inactivity_timeout=20):
        assert method is not None, f"only {len(bodies)} of 50 came"
        bodies.append(int(body))
        if len(bodies) == 50:
            break
    assert bodies == list(range(50))
    connection.close()
    own_server.stop()
