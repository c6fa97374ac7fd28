"""Payloads of older versions of a schema, as the version that a service knows."""

import asyncio
import json
import signal
import threading
from collections.abc import Iterator

import pytest

import nats_bridge
from nats_bridge import ConsumeOptions, Message, aio
from server import NatsServer


def prepare(server: NatsServer) -> None:
    """Two versions of ``order``, and messages of both."""
    with nats_bridge.connect(server.url) as bridge:
        bridge.ensure_stream("ORDERS", subjects=["orders.>"], unbounded=True)
        for field in ("euros", "cents"):
            schema = {
                "type": "object",
                "required": [field],
                "properties": {field: {"type": "integer", "maximum": 900}},
                "additionalProperties": False,
            }
            bridge.schemas("SCHEMAS").register("order", schema, compatibility="NONE")
    with nats_bridge.connect(server.url, publish={"schemas": "SCHEMAS"}) as bridge:
        payloads = ['{"euros": 1}', '{"euros": 13}', '{"euros": 14}', '{"euros": 15}', '{"euros": 800}', '{"cents": 2}']
        messages = [Message("orders.new", text.encode(), schema=f"order/{1 + ('cents' in text)}") for text in payloads]
        assert all(outcome.landed == "yes" for outcome in bridge.publish_many(messages))


def to_cents(payload: bytes) -> bytes:
    euros: int = json.loads(payload)["euros"]
    if euros == 13:
        raise ValueError("13 is not liked")
    if euros == 14:
        return "text"  # pyright: ignore[reportReturnType]
    if euros == 15:
        raise SystemExit
    return json.dumps({"cents": euros * 100}).encode()


OPTIONS: ConsumeOptions = {"schemas": "SCHEMAS", "upcast": {"order": {1: to_cents}}}


def check_letters(server: NatsServer) -> None:
    with nats_bridge.connect(server.url) as bridge:
        dead = {letter.payload: letter for letter in bridge.dead_letters("ORDERS_DLQ").peek()}
    assert {letter.reason for letter in dead.values()} == {"schema"}
    for payload, told in (
        (b'{"euros": 13}', "ValueError: 13 is not liked"),
        (b'{"euros": 14}', "TypeError: the step returned str, not bytes"),
        (b'{"euros": 15}', "SystemExit"),
        (b'{"euros": 800}', "80000"),
    ):
        assert told in dead.pop(payload).detail
    assert not dead


def test_older_payloads_come_as_the_newest_or_become_dead_letters_as_they_were(server: NatsServer) -> None:
    prepare(server)
    with nats_bridge.connect(server.url) as bridge, bridge.consume("ORDERS", "billing", **OPTIONS) as deliveries:
        for cents in (100, 2):
            delivery = deliveries.next(10_000)
            assert delivery is not None
            assert json.loads(delivery.payload) == {"cents": cents}
            delivery.ack(confirmed=True)
        assert deliveries.next(100) is None
    check_letters(server)


async def test_steps_run_for_asyncio_too(server: NatsServer) -> None:
    prepare(server)
    async with aio.connect(server.url) as bridge, bridge.consume("ORDERS", "billing", **OPTIONS) as deliveries:
        for cents in (100, 2):
            delivery = await deliveries.next(10_000)
            assert delivery is not None
            assert json.loads(delivery.payload) == {"cents": cents}
            await delivery.ack(confirmed=True)
        assert await deliveries.next(100) is None
    await asyncio.to_thread(check_letters, server)


def test_steps_run_for_handlers_on_several_threads(server: NatsServer) -> None:
    prepare(server)
    seen: list[int] = []
    with nats_bridge.connect(server.url) as bridge, bridge.consume("ORDERS", "billing", **OPTIONS) as consumer:

        def handle(message: nats_bridge.Received) -> None:
            seen.append(json.loads(message.payload)["cents"])
            if len(seen) == 2:
                consumer.begin_to_drain()

        runs = threading.Thread(target=lambda: consumer.run(handle, concurrency=4))
        runs.start()
        runs.join(20)
        assert not runs.is_alive()
    assert sorted(seen) == [2, 100]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as at a terminal: whoever runs this may have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_is_for_who_waits_and_not_for_the_message(server: NatsServer) -> None:
    prepare(server)
    attempts = 0

    def interrupted(payload: bytes) -> bytes:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise KeyboardInterrupt
        return to_cents(payload)

    options: ConsumeOptions = {"schemas": "SCHEMAS", "upcast": {"order": {1: interrupted}}}
    with nats_bridge.connect(server.url) as bridge, bridge.consume("ORDERS", "billing", **options) as deliveries:
        with pytest.raises(KeyboardInterrupt):
            for _ in range(50):
                delivery = deliveries.next(200)
                if delivery is not None:
                    assert json.loads(delivery.payload)["cents"] in (2, 100)
                    delivery.ack()
    with nats_bridge.connect(server.url) as bridge:
        assert b'{"euros": 1}' not in [letter.payload for letter in bridge.dead_letters("ORDERS_DLQ").peek()]


def test_what_is_no_step_is_refused_by_name(server: NatsServer) -> None:
    prepare(server)
    with nats_bridge.connect(server.url) as bridge:
        for wrong, told in (
            ({"order": {1: "no"}}, "version 1 of 'order' has a callable, not str"),
            ({"order": {-1: to_cents}}, "upcast"),
            ([to_cents], "upcast"),
        ):
            with pytest.raises(TypeError, match=told):
                bridge.consume("ORDERS", "billing", schemas="SCHEMAS", upcast=wrong)  # pyright: ignore[reportArgumentType]
        for steps, told in (({0: to_cents}, "the first version is 1"), ({1: to_cents, 3: to_cents}, "no step from version 2")):
            with pytest.raises(nats_bridge.InvalidConfig, match=told):
                bridge.consume("ORDERS", "billing", schemas="SCHEMAS", upcast={"order": steps})
        with pytest.raises(nats_bridge.InvalidConfig, match="field=upcast"):
            bridge.consume("ORDERS", "billing", upcast={"order": {1: to_cents}})
