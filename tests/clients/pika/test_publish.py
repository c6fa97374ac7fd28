"""What a publisher is promised."""

import pika
import pika.exceptions
import pytest

PERSISTENT = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent.value)


def test_a_confirmed_message_is_in_the_queue(channel, name):
    channel.queue_declare(name, durable=True)
    channel.confirm_delivery()
    for number in range(20):
        channel.basic_publish("", name, str(number).encode(), PERSISTENT, mandatory=True)
    assert channel.queue_declare(name, passive=True).method.message_count == 20


def test_a_mandatory_message_without_a_queue_is_returned(channel, name):
    channel.confirm_delivery()
    with pytest.raises(pika.exceptions.UnroutableError) as caught:
        channel.basic_publish("", name, b"to nobody", mandatory=True)
    (returned,) = caught.value.messages
    assert returned.body == b"to nobody"
    assert (returned.method.reply_code, returned.method.reply_text) == (312, "NO_ROUTE")


def test_a_message_without_a_queue_is_dropped_and_confirmed_when_not_mandatory(channel, name):
    channel.confirm_delivery()
    channel.basic_publish("", name, b"to nobody")


def test_publishing_to_an_unknown_exchange_closes_the_channel_and_not_the_connection(channel, name):
    channel.basic_publish(name, "key", b"")
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
        channel.queue_declare("", exclusive=True)
    assert caught.value.reply_code == 404
    assert channel.connection.channel().is_open


def test_topic_bindings_decide_which_queues_get_a_message(channel, name):
    channel.exchange_declare(name, exchange_type="topic", durable=True)
    patterns = {"all": "#", "eu": "order.eu.*", "new": "order.*.new", "none": "invoice.#"}
    for queue, pattern in patterns.items():
        channel.queue_declare(f"{name}.{queue}", durable=True)
        channel.queue_bind(f"{name}.{queue}", name, pattern)
    channel.confirm_delivery()
    for key in ("order.eu.new", "order.us.new", "order.eu.paid", "order.eu", "stock"):
        channel.basic_publish(name, key, key.encode(), PERSISTENT)
    counts = {
        queue: channel.queue_declare(f"{name}.{queue}", passive=True).method.message_count for queue in patterns
    }
    assert counts == {"all": 5, "eu": 2, "new": 2, "none": 0}


def test_a_fanout_exchange_gives_every_queue_a_copy_and_unbind_ends_it(channel, name):
    channel.exchange_declare(name, exchange_type="fanout")
    queues = [channel.queue_declare("", exclusive=True).method.queue for _ in range(3)]
    for queue in queues:
        channel.queue_bind(queue, name)
    channel.confirm_delivery()
    channel.basic_publish(name, "", b"one")
    channel.queue_unbind(queues[0], name)
    channel.basic_publish(name, "", b"two")
    counts = [channel.queue_declare(queue, passive=True).method.message_count for queue in queues]
    assert counts == [1, 2, 2]


def test_properties_and_headers_arrive_as_they_were_sent(channel, name):
    channel.queue_declare(name, durable=True)
    sent = pika.BasicProperties(
        content_type="application/json",
        content_encoding="utf-8",
        headers={"text": "größer", "number": -7, "big": 2**40, "flag": True, "nested": {"list": [1, "two"]}},
        delivery_mode=2,
        priority=3,
        correlation_id="c-1",
        reply_to="answers",
        message_id="m-1",
        timestamp=1_700_000_000,
        type="order.created",
        user_id="guest",
        app_id="shop",
    )
    channel.confirm_delivery()
    channel.basic_publish("", name, b'{"a": 1}', sent)
    method, received, body = channel.basic_get(name, auto_ack=True)
    assert (method.exchange, method.routing_key, method.redelivered) == ("", name, False)
    assert body == b'{"a": 1}'
    assert received == sent


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 700_000])
def test_a_body_of_any_number_of_frames_arrives_whole(channel, name, size):
    channel.queue_declare(name, durable=True)
    body = bytes(number % 251 for number in range(size))
    channel.confirm_delivery()
    channel.basic_publish("", name, body, PERSISTENT)
    assert channel.basic_get(name, auto_ack=True)[2] == body
