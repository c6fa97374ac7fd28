"""What a consumer is promised."""

import pika
import pika.exceptions
import pytest


def fill(channel, queue, count, **arguments):
    channel.queue_declare(queue, durable=True, **arguments)
    channel.confirm_delivery()
    for number in range(count):
        channel.basic_publish("", queue, str(number).encode(), pika.BasicProperties(delivery_mode=2))


def take(channel, queue, count, **options):
    """The next `count` deliveries; the consumer is cancelled, what came beyond them goes back."""
    taken = []
    for method, _properties, body in channel.consume(queue, inactivity_timeout=20, **options):
        assert method is not None, f"only {len(taken)} of {count} came"
        taken.append((method, body))
        if len(taken) == count:
            break
    return taken


def test_messages_come_in_order_and_an_acked_one_never_again(connect, name):
    channel = connect().channel()
    fill(channel, name, 200)
    taken = take(channel, name, 200)
    assert [int(body) for _, body in taken] == list(range(200))
    assert not any(method.redelivered for method, _ in taken)
    channel.basic_ack(taken[-1][0].delivery_tag, multiple=True)
    channel.cancel()
    channel.connection.close()
    assert connect().channel().queue_declare(name, passive=True).method.message_count == 0


def test_what_was_not_acked_comes_again_flagged_when_the_connection_ends(connect, name):
    first = connect().channel()
    fill(first, name, 10)
    first.basic_qos(prefetch_count=5)
    taken = take(first, name, 5)
    for method, _ in taken[:2]:
        first.basic_ack(method.delivery_tag)
    first.connection.close()
    second = connect().channel()
    again = take(second, name, 8)
    assert sorted(int(body) for _, body in again) == list(range(2, 10))
    flagged = {int(body) for method, body in again if method.redelivered}
    # 5 and 6 may have been on their way when the two acks made room for them.
    assert {2, 3, 4} <= flagged <= {2, 3, 4, 5, 6}


def test_prefetch_limits_what_is_on_its_way(connect, name):
    channel = connect().channel()
    fill(channel, name, 20)
    channel.basic_qos(prefetch_count=3)
    received = []
    channel.basic_consume(name, lambda _ch, method, _properties, _body: received.append(method.delivery_tag))
    limit = 20
    while len(received) < 3 and limit:
        channel.connection.process_data_events(time_limit=0.25)
        limit -= 1
    channel.connection.process_data_events(time_limit=0.5)
    assert len(received) == 3
    channel.basic_ack(received[-1], multiple=True)
    limit = 20
    while len(received) < 6 and limit:
        channel.connection.process_data_events(time_limit=0.25)
        limit -= 1
    assert len(received) == 6


def test_nack_with_requeue_brings_it_back_flagged_and_reject_without_drops_it(channel, name):
    fill(channel, name, 2)
    method, _properties, body = channel.basic_get(name)
    assert (body, method.redelivered) == (b"0", False)
    channel.basic_nack(method.delivery_tag, requeue=True)
    again = [get(channel, name) for _ in range(2)]
    assert sorted((body, method.redelivered) for method, body in again) == [(b"0", True), (b"1", False)]
    for method, _ in again:
        channel.basic_reject(method.delivery_tag, requeue=False)
    assert channel.queue_purge(name).method.message_count == 0
    assert channel.basic_get(name) == (None, None, None)


def get(channel, queue):
    """The next message, which may be on its way back into the queue."""
    for _ in range(100):
        method, _properties, body = channel.basic_get(queue)
        if method is not None:
            return method, body
        channel.connection.process_data_events(time_limit=0.05)
    raise AssertionError("no message came within 5 s")


def test_an_unknown_delivery_tag_is_a_precondition_failure(channel, name):
    fill(channel, name, 1)
    channel.basic_ack(99)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
        channel.queue_declare(name, passive=True)
    assert caught.value.reply_code == 406


def test_two_consumers_share_a_queue_and_each_message_goes_to_one(connect, name):
    fill(connect().channel(), name, 100)
    received = {0: [], 1: []}
    connections = []
    for number in received:
        channel = connect().channel()
        channel.basic_qos(prefetch_count=1)

        def work(channel, method, _properties, body, number=number):
            received[number].append(int(body))
            channel.basic_ack(method.delivery_tag)

        channel.basic_consume(name, work)
        connections.append(channel.connection)
    for _ in range(400):
        for connection in connections:
            connection.process_data_events(time_limit=0.02)
        if len(received[0]) + len(received[1]) >= 100:
            break
    assert sorted(received[0] + received[1]) == list(range(100))
    assert received[0] and received[1]


def test_purge_and_delete_tell_how_many_messages_they_removed(channel, name):
    fill(channel, name, 7)
    assert channel.queue_purge(name).method.message_count == 7
    fill(channel, name, 3)
    assert channel.queue_delete(name).method.message_count == 3
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
        channel.queue_declare(name, passive=True)
    assert caught.value.reply_code == 404


def test_a_deleted_queue_cancels_its_consumer(connect, name):
    channel = connect().channel()
    channel.queue_declare(name, durable=True)
    cancelled = []
    channel.add_on_cancel_callback(lambda frame: cancelled.append(frame.method.consumer_tag))
    tag = channel.basic_consume(name, lambda *_: None)
    connect().channel().queue_delete(name)
    for _ in range(100):
        channel.connection.process_data_events(time_limit=0.05)
        if cancelled:
            break
    assert cancelled == [tag]


def test_a_request_gets_its_answer_through_a_queue_that_the_server_named(connect, name):
    server = connect().channel()
    server.queue_declare(name)

    def answer(channel, method, properties, body):
        channel.basic_publish(
            "", properties.reply_to, body.upper(), pika.BasicProperties(correlation_id=properties.correlation_id)
        )
        channel.basic_ack(method.delivery_tag)

    server.basic_consume(name, answer)
    client = connect().channel()
    answers = client.queue_declare("", exclusive=True).method.queue
    received = []
    client.basic_consume(answers, lambda _ch, _m, properties, body: received.append((properties, body)), auto_ack=True)
    client.basic_publish("", name, b"hello", pika.BasicProperties(reply_to=answers, correlation_id="7"))
    for _ in range(100):
        server.connection.process_data_events(time_limit=0.05)
        client.connection.process_data_events(time_limit=0.05)
        if received:
            break
    ((properties, body),) = received
    assert (properties.correlation_id, body) == ("7", b"HELLO")
