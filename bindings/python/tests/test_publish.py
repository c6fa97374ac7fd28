import mmap

import pytest

import nats_bridge
from nats_bridge import Bridge, Published
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
        with pytest.raises(TypeError, match="id"):
            bridge.publish("orders.new", b"one", id=7)  # pyright: ignore[reportArgumentType]


def test_no_stream_on_the_subject_is_unreachable_and_nothing_landed(server: NatsServer) -> None:
    with nats_bridge.connect(server.url, publish={"no_stream_wait_ms": 100}) as bridge:
        with pytest.raises(nats_bridge.Unreachable) as raised:
            bridge.publish("nobody.listens", b"one")
    assert raised.value.landed == "no"
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
