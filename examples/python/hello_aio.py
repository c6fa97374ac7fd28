"""Hello for asyncio: the same as hello.py. `hello_aio.py [nats://127.0.0.1:4222]`"""

import asyncio
import sys
import uuid

from nats_bridge import aio


async def main(url: str) -> None:
    order = f"order-17-{uuid.uuid4()}"  # an id of its own for each run: one is remembered for two minutes
    async with aio.connect(url) as bridge:
        await bridge.ensure_stream("HELLO", subjects=["hello.>"], retention="work_queue", max_bytes=1 << 20)
        stored = await bridge.publish("hello.orders", b"order 17", id=order)
        again = await bridge.publish("hello.orders", b"order 17", id=order)
        print(f"stored at {stored.stream}/{stored.sequence}, sent again: duplicate={again.duplicate}")
        await bridge.publish("hello.orders", b"order 18, which nobody can handle")
        async with bridge.consume("HELLO", "billing", retry={"attempts": 3, "first_pause_ms": 100}) as deliveries:
            async for delivery in deliveries:
                print(f"attempt {delivery.attempt}: {delivery.payload.decode()}")
                if b"nobody" not in delivery.payload:
                    await delivery.ack()
                elif (settled := await delivery.retry("no such customer")).outcome == "dead_lettered":
                    print(f"given up, kept at {settled.stream}/{settled.sequence}")
                    await deliveries.drain()


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "nats://127.0.0.1:4222"))
