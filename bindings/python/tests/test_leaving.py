"""What a process fetched and did not hand out is another one's as soon as it is left, not after ``ack_wait_ms``."""

import asyncio
import time
from collections.abc import Iterator

import pytest

import nats_bridge
from nats_bridge import Bridge, Closed, Delivery, Message, aio
from server import NatsServer

COUNT = 200


@pytest.fixture
def bridge(server: NatsServer) -> Iterator[Bridge]:
    with nats_bridge.connect(server.url) as bridge:
        bridge.ensure_stream("ORDERS", subjects=["orders.>"], unbounded=True, retention="work_queue")
        bridge.publish_many([Message("orders.new", b"%d" % n) for n in range(COUNT)])
        yield bridge


def the_rest_is_there(bridge: Bridge, taken: int) -> None:
    """All but ``taken`` are there, at their first attempt; well within ``ack_wait_ms``, which is a minute."""
    seen: set[int] = set()
    with bridge.consume("ORDERS", "billing", ack_wait_ms=60_000) as deliveries:
        while len(seen) < COUNT - taken:
            delivery = deliveries.next(20_000)
            assert delivery is not None, f"{len(seen)} of {COUNT - taken} came"
            assert delivery.attempt == 1
            seen.add(delivery.sequence)
            delivery.ack()


def test_a_bridge_that_is_closed_gives_back_what_its_consumers_have_not_begun(server: NatsServer, bridge: Bridge) -> None:
    with nats_bridge.connect(server.url) as left:
        consumer = left.consume("ORDERS", "billing", ack_wait_ms=60_000)
        for delivery in consumer:
            delivery.ack(confirmed=True)
            break
    with pytest.raises(Closed):
        consumer.next()
    the_rest_is_there(bridge, 1)


def test_an_exception_out_of_a_block_gives_back_and_does_not_wait_for_what_is_not_settled(bridge: Bridge) -> None:
    kept: list[Delivery] = []
    deliveries = bridge.consume("ORDERS", "billing", ack_wait_ms=60_000)
    with pytest.raises(RuntimeError, match="enough"), deliveries:
        for delivery in deliveries:
            kept.append(delivery)
            raise RuntimeError("enough")
    assert (deliveries.held, deliveries.state) == (1, "draining")
    kept[0].ack(confirmed=True)
    the_rest_is_there(bridge, 1)


def test_the_same_for_asyncio(server: NatsServer, bridge: Bridge) -> None:
    async def close() -> None:
        async with aio.connect(server.url) as left:
            consumer = await left.consume("ORDERS", "billing", ack_wait_ms=60_000)
            async for delivery in consumer:
                await delivery.ack(confirmed=True)
                break

    async def leave() -> None:
        async with aio.connect(server.url) as left:
            async with left.consume("ORDERS", "billing", ack_wait_ms=60_000) as consumer:
                async for delivery in consumer:
                    await delivery.ack(confirmed=True)
                    raise RuntimeError("enough")

    asyncio.run(close())
    with pytest.raises(RuntimeError, match="enough"):
        asyncio.run(leave())
    the_rest_is_there(bridge, 2)


def test_what_came_for_a_cancelled_wait_goes_back_when_the_bridge_is_closed(server: NatsServer, bridge: Bridge) -> None:
    async def leave() -> int:
        left = await aio.connect(server.url)
        consumer = await left.consume("ORDERS", "billing", ack_wait_ms=60_000)
        waits = asyncio.ensure_future(consumer.next())
        await asyncio.sleep(0)
        # The event loop is busy until all has come: the delivery waits for it.
        while consumer.held < COUNT:
            time.sleep(0.01)
        time.sleep(0.1)
        waits.cancel()
        taken = 0
        try:
            # It was there at once, before it could be cancelled.
            delivery = await waits
            assert delivery is not None
            await delivery.ack(confirmed=True)
            taken = 1
        except asyncio.CancelledError:
            pass
        await left.close()
        return taken

    the_rest_is_there(bridge, asyncio.run(leave()))
