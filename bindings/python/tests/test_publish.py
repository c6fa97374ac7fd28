import mmap
import time

import pytest

import nats_bridge
from nats_bridge import Bridge, Error, Message, Published, aio
from server import NatsServer

DAY_MS = 24 * 3600 * 1000


def orders(bridge: Bridge) -> None:
    bridge.ensure_stream("ORDERS", subjects=["orders.>"], max_bytes=1 << 26, max_age_ms=DAY_MS)


def test_publish_says_where_the_message_is_stored(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge)
        first = bridge.publish("orders.new", b"one", id="o-1")
        second = bridge.publish("orders.new", b"two", id="o-2", headers={"tenant": "acme", "tag": ["a", "b"]})
    assert (first.stream, first.sequence, first.duplicate, first.id) == ("ORDERS", 1, False, "o-1")
    assert second.sequence == 2


def test_a_resend_with_the_same_id_is_stored_once(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge)
        first = bridge.publish("orders.new", b"one", id="o-1")
        again = bridge.publish("orders.new", b"one", id="o-1")
        other = bridge.publish("orders.new", b"one", id="o-2")
    assert again.duplicate
    assert again.sequence == first.sequence
    assert (other.duplicate, other.sequence) == (False, 2)


def test_without_an_id_one_is_made_and_false_sends_none(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge)
        made = bridge.publish("orders.new", b"one")
        none = bridge.publish("orders.new", b"one", id=False)
    assert made.id is not None
    assert made.id.startswith("msg_")
    assert none.id is None


@pytest.mark.parametrize("size", [0, 100, 100_000])
def test_any_buffer_of_bytes_is_a_payload(server: NatsServer, size: int) -> None:
    with nats_bridge.connect(server.url) as bridge, mmap.mmap(-1, size + 1) as mapped:
        orders(bridge)
        for payload in (b"x" * size, bytearray(size), memoryview(bytes(size)), mapped):
            assert bridge.publish("orders.new", payload).stream == "ORDERS"


def test_published_compares_and_shows_its_fields(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge)
        stored = bridge.publish("orders.new", b"one", id="o-1")
    assert repr(stored) == "Published(stream='ORDERS', sequence=1, duplicate=False, id='o-1')"
    match stored:
        case Published(stream, sequence, duplicate, id):
            assert (stream, sequence, duplicate, id) == ("ORDERS", 1, False, "o-1")
    assert stored == stored
    assert stored != "o-1"


def test_a_message_that_cannot_be_sent_names_what_is_wrong_with_it(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge)
        with pytest.raises(nats_bridge.InvalidMessage, match="subject") as raised:
            bridge.publish("orders.*", b"one")
        assert (raised.value.code, raised.value.landed) == ("invalid_message", "no")
        with pytest.raises(nats_bridge.InvalidMessage, match="Nats-Msg-Id"):
            bridge.publish("orders.new", b"one", headers={"Nats-Msg-Id": "x"})
        with pytest.raises(nats_bridge.InvalidMessage, match="id"):
            bridge.publish("orders.new", b"one", id="")
        with pytest.raises(nats_bridge.TooLarge):
            bridge.publish("orders.new", bytes(2 << 20))
        with pytest.raises(TypeError, match="payload"):
            bridge.publish("orders.new", "text")  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match="headers"):
            bridge.publish("orders.new", b"one", headers={"a": 1})  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match="argument 'subject': str is wanted, not int"):
            bridge.publish(3, b"one")  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match="argument 'headers': a mapping is wanted, not int"):
            bridge.publish("orders.new", b"one", headers=3)  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match="argument 'schema': str or None is wanted, not int"):
            bridge.publish("orders.new", b"one", schema=3)  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match="argument 'stream': str is wanted, not int"):
            bridge.consume(3, "billing")  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match="argument 'replicas': a whole number from 0 to 255 is wanted, not a text"):
            bridge.ensure_stream("A", replicas="three")  # pyright: ignore[reportArgumentType]
        with pytest.raises(nats_bridge.InvalidConfig, match="field=storage why=it is file or memory, not paper"):
            bridge.ensure_stream("A", storage="paper")  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match="id"):
            bridge.publish("orders.new", b"one", id=7)  # pyright: ignore[reportArgumentType]


def test_a_subject_that_no_stream_takes_is_not_found_at_once_and_nothing_landed(server: NatsServer) -> None:
    with nats_bridge.connect(server.url, publish={"no_stream_wait_ms": 50_000}) as bridge:
        began = time.monotonic()
        with pytest.raises(nats_bridge.NotFound, match="subject=nobody.listens.*ensure_stream") as raised:
            bridge.publish("nobody.listens", b"one")
        assert time.monotonic() - began < 20
    assert (raised.value.landed, raised.value.is_temporary) == ("no", False)
    assert raised.value.context["subject"] == "nobody.listens"


def test_a_full_stream_is_rejected_and_nothing_landed(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        bridge.ensure_stream("SMALL", max_messages=1, unbounded=True)
        bridge.publish("small.a", b"one")
        with pytest.raises(nats_bridge.Rejected) as raised:
            bridge.publish("small.a", b"two")
    assert raised.value.landed == "no"


def test_a_server_that_is_gone_leaves_the_outcome_unknown(server: NatsServer) -> None:
    with nats_bridge.connect(server.url, publish={"deadline_ms": 500, "ack_wait_ms": 200}) as bridge:
        orders(bridge)
        bridge.publish("orders.new", b"one", id="o-1")
        server.stop()
        with pytest.raises(nats_bridge.Timeout) as raised:
            bridge.publish("orders.new", b"two", id="o-2")
    assert (raised.value.code, raised.value.landed) == ("timeout", "unknown")
    assert raised.value.context["msg_id"] == "o-2"


def test_a_server_that_comes_back_gets_what_was_published_meanwhile(server: NatsServer) -> None:
    with nats_bridge.connect(server.url, reconnect_pause_max_ms=100) as bridge:
        orders(bridge)
        server.stop()
        server.start()
        assert bridge.publish("orders.new", b"one", id="o-1").sequence == 1


def many(count: int) -> list[Message | tuple[str, bytes]]:
    plain: list[Message | tuple[str, bytes]] = [("orders.new", str(n).encode()) for n in range(count)]
    plain[7] = Message("orders.*", b"not a subject")
    plain[8] = Message("orders.new", b"eight", id="o-8", headers={"tenant": "acme"})
    plain[9] = Message("orders.new", b"eight", id="o-8")
    return plain


def check(outcomes: list[Published | Error]) -> None:
    assert [n for n, outcome in enumerate(outcomes) if outcome.landed != "yes"] == [7]
    refused = outcomes.pop(7)
    assert isinstance(refused, nats_bridge.InvalidMessage)
    assert (refused.landed, refused.context["subject"]) == ("no", "orders.*")
    stored = [outcome for outcome in outcomes if isinstance(outcome, Published)]
    assert [outcome.duplicate for outcome in stored].index(True) == 8
    sequences = [outcome.sequence for outcome in stored if not outcome.duplicate]
    assert sequences == list(range(1, len(outcomes)))


def test_many_at_once_have_each_its_outcome_in_their_order(server: NatsServer) -> None:
    with nats_bridge.connect(server.url, publish={"max_in_flight": 16}) as bridge:
        orders(bridge)
        check(bridge.publish_many(many(500)))
        assert bridge.publish_many([]) == []


async def test_many_at_once_with_asyncio_have_each_its_outcome_in_their_order(server: NatsServer) -> None:
    async with aio.connect(server.url, publish={"max_in_flight": 16}) as bridge:
        await bridge.ensure_stream("ORDERS", unbounded=True)
        check(await bridge.publish_many(message for message in many(500)))


def test_of_many_one_that_is_no_message_is_named_and_nothing_is_sent(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge)
        for wrong, name in ((("orders.new",), "messages"), ((7, b"x"), "subject"), (("orders.new", "text"), "payload")):
            with pytest.raises(TypeError, match=rf"messages\[1\].*'{name}'"):
                bridge.publish_many([("orders.new", b"one"), wrong])  # pyright: ignore[reportArgumentType]
        assert bridge.publish("orders.new", b"one").sequence == 1


def test_of_many_the_outcome_of_those_without_an_answer_is_unknown(server: NatsServer) -> None:
    with nats_bridge.connect(server.url, publish={"deadline_ms": 500, "ack_wait_ms": 200}) as bridge:
        orders(bridge)
        server.stop()
        outcomes = bridge.publish_many([Message("orders.new", b"one", id=f"o-{n}") for n in range(3)])
        assert [(outcome.landed, isinstance(outcome, nats_bridge.Timeout)) for outcome in outcomes] == [("unknown", True)] * 3


def test_a_payload_arrives_as_it_was_when_it_was_published(server: NatsServer) -> None:
    whole = bytes(range(256)) * 64
    mutable = bytearray(whole)
    with nats_bridge.connect(server.url) as bridge:
        orders(bridge)
        views = [whole, memoryview(whole)[100:9_000], memoryview(whole)[::2], memoryview(mutable)[5:], mutable]
        wanted = [bytes(view) for view in views]
        bridge.publish_many([("orders.new", view) for view in views])
        mutable[:] = bytes(len(mutable))
        with bridge.consume("ORDERS", "reader") as deliveries:
            for payload in wanted:
                delivery = deliveries.next(5_000)
                assert delivery is not None
                assert delivery.payload == payload
                delivery.ack()


def test_what_is_wrong_with_one_of_many_is_said_with_its_place(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        bridge.ensure_stream("ORDERS", subjects=["orders.>"], unbounded=True)
        outcomes = bridge.publish_many([("orders.new", b"one"), ("or ders", b"two")])
        assert isinstance(outcomes[1], nats_bridge.InvalidMessage), outcomes
        assert outcomes[1].context["index"] == "1" and str(outcomes[1]).startswith("messages[1]: ")
        with pytest.raises(TypeError, match=r"messages\[1\].*payload"):
            bridge.publish_many([("orders.new", b"one"), ("orders.new", 7)])  # pyright: ignore[reportArgumentType]
