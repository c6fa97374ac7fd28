import asyncio
import gc
import weakref

import pytest

import nats_bridge
from nats_bridge import aio
from server import NatsServer, eventually


async def test_a_resend_with_the_same_id_is_stored_once(server: NatsServer) -> None:
    async with aio.connect(server.url) as bridge:
        await bridge.ensure_stream("ORDERS", unbounded=True)
        first = await bridge.publish("orders.new", b"one", id="o-1")
        again = await bridge.publish("orders.new", b"one", id="o-1")
    assert (first.sequence, first.duplicate) == (1, False)
    assert (again.sequence, again.duplicate) == (1, True)


async def test_many_publishes_wait_at_once_and_are_stored_in_their_order(server: NatsServer) -> None:
    async with aio.connect(server.url) as bridge:
        await bridge.ensure_stream("ORDERS", unbounded=True)
        stored = await asyncio.gather(*[bridge.publish("orders.new", b"x", id=f"o-{n}") for n in range(5_000)])
    assert [published.sequence for published in stored] == list(range(1, 5_001))


async def test_connect_can_be_awaited_and_closing_twice_is_fine(server: NatsServer) -> None:
    bridge = await aio.connect(server.url)
    await bridge.close()
    await bridge.close()
    with pytest.raises(nats_bridge.Closed):
        await bridge.publish("orders.new", b"one")


async def test_errors_are_those_of_the_other_face(server: NatsServer) -> None:
    with pytest.raises(nats_bridge.Unreachable):
        await aio.connect("nats://127.0.0.1:1", connect_timeout_ms=500)
    with pytest.raises(TypeError, match="'nam'"):
        await aio.connect(server.url, nam="x")  # pyright: ignore[reportCallIssue]
    async with aio.connect(server.url, publish={"deadline_ms": 500, "ack_wait_ms": 200}) as bridge:
        await bridge.ensure_stream("ORDERS", unbounded=True)
        server.stop()
        with pytest.raises(nats_bridge.Timeout) as raised:
            await bridge.publish("orders.new", b"two", id="o-2")
    assert raised.value.landed == "unknown"


async def test_a_cancelled_publish_ends_and_leaves_the_bridge_working(server: NatsServer) -> None:
    async with aio.connect(server.url, reconnect_pause_max_ms=100) as bridge:
        await bridge.ensure_stream("ORDERS", unbounded=True)
        server.stop()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bridge.publish("orders.new", b"one", id="o-1"), 0.1)
        server.start()
        # What was cancelled may be stored all the same.
        assert (await bridge.publish("orders.new", b"one", id="o-1")).sequence == 1


async def test_the_loop_runs_while_a_call_waits(server: NatsServer) -> None:
    async with aio.connect(server.url, publish={"deadline_ms": 500}) as bridge:
        server.stop()
        waits = asyncio.ensure_future(bridge.publish("orders.new", b"one"))
        turns = 0
        while not waits.done():
            turns += 1
            await asyncio.sleep(0.01)
        assert turns > 10
        assert isinstance(waits.exception(), nats_bridge.Timeout)


def test_a_loop_that_ended_is_let_go(server: NatsServer) -> None:
    async def once() -> "weakref.ref[asyncio.AbstractEventLoop]":
        async with aio.connect(server.url) as bridge:
            await bridge.ensure_stream("ORDERS", unbounded=True)
        return weakref.ref(asyncio.get_running_loop())

    loops = [asyncio.run(once()) for _ in range(5)]

    def gone() -> bool:
        gc.collect()
        return all(loop() is None for loop in loops)

    eventually(gone, "no loop is kept alive")


async def test_a_failed_message_is_retried_by_policy_and_then_a_dead_letter(server: NatsServer) -> None:
    async with aio.connect(server.url) as bridge:
        await bridge.ensure_stream("ORDERS", unbounded=True, retention="work_queue")
        await bridge.publish("orders.new", b"bad", id="o-1")
        retry: nats_bridge.RetryPolicy = {"attempts": 2, "first_pause_ms": 20, "jitter": False}
        async with bridge.consume("ORDERS", "billing", retry=retry) as deliveries:
            outcomes: list[str] = []
            async for delivery in deliveries:
                outcomes.append((await delivery.retry(ValueError("no"))).outcome)
                with pytest.raises(nats_bridge.AlreadySettled):
                    await delivery.ack()
                if delivery.attempt == 2:
                    break
            assert outcomes == ["retried", "dead_lettered"]
        async for letter in bridge.consume("ORDERS_DLQ", "reader"):
            assert (letter.payload, letter.header("Dead-Letter-Reason")) == (b"bad", "handler_error")
            await letter.ack()
            break


async def test_all_are_delivered_in_order_while_other_tasks_run(server: NatsServer) -> None:
    async with aio.connect(server.url) as bridge:
        await bridge.ensure_stream("ORDERS", unbounded=True, retention="work_queue")
        await asyncio.gather(*[bridge.publish("orders.new", str(n).encode()) for n in range(2_000)])
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.ensure_future(others())
        seen: list[int] = []
        async with bridge.consume("ORDERS", "billing") as deliveries:
            async for delivery in deliveries:
                seen.append(int(delivery.payload))
                await delivery.ack()
                if delivery.pending == 0:
                    await deliveries.drain()
        other.cancel()
        assert seen == list(range(2_000))
        assert turns > 20


async def test_a_cancelled_wait_loses_no_delivery_and_costs_no_attempt(server: NatsServer) -> None:
    async with aio.connect(server.url) as bridge:
        await bridge.ensure_stream("ORDERS", unbounded=True, retention="work_queue")
        async with bridge.consume("ORDERS", "billing") as deliveries:
            seen: list[int] = []
            for n in range(200):
                waits = asyncio.ensure_future(deliveries.next())
                await asyncio.sleep(0)
                await bridge.publish("orders.new", str(n).encode())
                # The delivery is on its way, has arrived, or is still to come.
                waits.cancel()
                try:
                    delivery = await waits
                except asyncio.CancelledError:
                    delivery = await deliveries.next(5_000)
                assert delivery is not None
                assert delivery.attempt == 1
                seen.append(int(delivery.payload))
                await delivery.ack()
            assert seen == list(range(200))


async def test_a_timeout_of_next_is_none(server: NatsServer) -> None:
    async with aio.connect(server.url) as bridge:
        await bridge.ensure_stream("ORDERS", unbounded=True)
        consumer = await bridge.consume("ORDERS", "billing")
        assert await consumer.next(50) is None
        assert consumer.state == "running"
        await consumer.drain()
        assert (consumer.state, consumer.held, consumer.trouble) == ("stopped", 0, None)
