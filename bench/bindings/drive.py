"""One round of one Python client: publishes, or consumes and acks, and prints seconds and CPU seconds as JSON.

usage: drive.py CLIENT WORK URL MESSAGES SIZE WINDOW
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable

CLIENT, WORK, URL = sys.argv[1:4]
MESSAGES, SIZE, WINDOW = (int(text) for text in sys.argv[4:7])
BODY = b"x" * SIZE
QUEUE = "bench"
# How many windows a call that publishes many is given.
GIVEN = 10

Took = tuple[float, float]


class Clock:
    """The wall clock, and the CPU time of this process."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def took(self) -> Took:
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


def ids() -> list[str]:
    return [f"bench-message-{n:022}" for n in range(MESSAGES)]


def ours_many() -> Took:
    import nats_bridge

    # The window slides over what is given at once, at most as many messages as are in flight.
    with nats_bridge.connect(URL, publish={"max_in_flight": WINDOW}) as bridge:
        clock = Clock()
        named = ids()
        for begin in range(0, MESSAGES, GIVEN * WINDOW):
            some = [nats_bridge.Message("bench.x", BODY, id) for id in named[begin : begin + GIVEN * WINDOW]]
            assert all(outcome.landed == "yes" for outcome in bridge.publish_many(some))
        return clock.took()


def ours_each() -> Took:
    import nats_bridge

    with nats_bridge.connect(URL) as bridge:
        clock = Clock()
        for id in ids():
            bridge.publish("bench.x", BODY, id=id)
        return clock.took()


def ours_consume() -> Took:
    import nats_bridge

    with nats_bridge.connect(URL) as bridge, bridge.consume("BENCH", "bench", max_messages=WINDOW) as deliveries:
        clock = Clock()
        for n in range(1, MESSAGES + 1):
            delivery = next(deliveries)
            assert len(delivery.payload) == SIZE
            # The last one is confirmed: all acks before it have been taken then.
            delivery.ack(confirmed=n == MESSAGES)
        return clock.took()


def ours_consume_aio() -> Took:
    from nats_bridge import aio

    async def consume() -> Took:
        async with aio.connect(URL) as bridge, bridge.consume("BENCH", "bench", max_messages=WINDOW) as deliveries:
            clock = Clock()
            for n in range(1, MESSAGES + 1):
                delivery = await deliveries.next()
                assert delivery is not None and len(delivery.payload) == SIZE
                await delivery.ack(confirmed=n == MESSAGES)
            return clock.took()

    return asyncio.run(consume())


def nats_py_many() -> Took:
    import nats

    async def publish() -> Took:
        client = await nats.connect(URL)
        js = client.jetstream()
        clock = Clock()
        named = ids()
        for begin in range(0, MESSAGES, WINDOW):
            some = named[begin : begin + WINDOW]
            await asyncio.gather(*[js.publish("bench.x", BODY, headers={"Nats-Msg-Id": id}) for id in some])
        took = clock.took()
        await client.close()
        return took

    return asyncio.run(publish())


def nats_py_consume() -> Took:
    import nats

    async def consume() -> Took:
        client = await nats.connect(URL)
        js = client.jetstream()
        pull = await js.pull_subscribe("bench.>", durable="bench", stream="BENCH")
        clock = Clock()
        taken = 0
        while taken < MESSAGES:
            for message in await pull.fetch(min(WINDOW, MESSAGES - taken), timeout=30):
                taken += 1
                assert len(message.data) == SIZE
                await (message.ack_sync() if taken == MESSAGES else message.ack())
        took = clock.took()
        await client.close()
        return took

    return asyncio.run(consume())


def pika_each() -> Took:
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(URL))
    channel = connection.channel()
    channel.queue_declare(QUEUE, durable=True)
    channel.confirm_delivery()
    properties = pika.BasicProperties(delivery_mode=2)
    clock = Clock()
    for _ in range(MESSAGES):
        channel.basic_publish("", QUEUE, BODY, properties)
    took = clock.took()
    connection.close()
    return took


def pika_consume() -> Took:
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(URL))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=WINDOW)
    clock = Clock()
    taken = 0
    for method, _, body in channel.consume(QUEUE):
        assert len(body) == SIZE
        channel.basic_ack(method.delivery_tag)
        taken += 1
        if taken == MESSAGES:
            break
    # Its answer comes behind the acks.
    channel.queue_declare(QUEUE, passive=True)
    took = clock.took()
    channel.cancel()
    connection.close()
    return took


DRIVES: dict[tuple[str, str], Callable[[], Took]] = {
    ("ours", "many"): ours_many,
    ("ours", "each"): ours_each,
    ("ours", "consume"): ours_consume,
    ("ours-aio", "consume"): ours_consume_aio,
    ("nats-py", "many"): nats_py_many,
    ("nats-py", "consume"): nats_py_consume,
    ("pika", "each"): pika_each,
    ("pika", "consume"): pika_consume,
}

seconds, cpu_seconds = DRIVES[CLIENT, WORK]()
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds}))
