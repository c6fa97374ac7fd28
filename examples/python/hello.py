"""Hello: publish, recognise a duplicate, consume, retry, dead-letter. `hello.py [nats://127.0.0.1:4222]`"""

import sys
import uuid

import nats_bridge

url = sys.argv[1] if len(sys.argv) > 1 else "nats://127.0.0.1:4222"
order = f"order-17-{uuid.uuid4()}"  # an id of its own for each run: one is remembered for two minutes
with nats_bridge.connect(url) as bridge:
    bridge.ensure_stream("HELLO", subjects=["hello.>"], retention="work_queue", max_bytes=1 << 20)
    stored = bridge.publish("hello.orders", b"order 17", id=order)
    again = bridge.publish("hello.orders", b"order 17", id=order)
    print(f"stored at {stored.stream}/{stored.sequence}, sent again: duplicate={again.duplicate}")
    bridge.publish("hello.orders", b"order 18, which nobody can handle")
    with bridge.consume("HELLO", "billing", retry={"attempts": 3, "first_pause_ms": 100}) as deliveries:
        for delivery in deliveries:
            print(f"attempt {delivery.attempt}: {delivery.payload.decode()}")
            if b"nobody" not in delivery.payload:
                delivery.ack()
            elif (settled := delivery.retry("no such customer")).outcome == "dead_lettered":
                print(f"given up, kept at {settled.stream}/{settled.sequence}")
                deliveries.drain()
