// Hello: publish, recognise a duplicate, consume, retry, dead-letter. `node hello.mjs [nats://127.0.0.1:4222]`
import { randomUUID } from "node:crypto";
import { connect } from "nats-bridge";

const bridge = await connect(process.argv[2] ?? "nats://127.0.0.1:4222");
const id = `order-17-${randomUUID()}`; // of its own for each run: one is remembered for two minutes
await bridge.ensureStream("HELLO", { subjects: ["hello.>"], retention: "work_queue", maxBytes: 1 << 20 });
const stored = await bridge.publish("hello.orders", "order 17", { id });
const again = await bridge.publish("hello.orders", "order 17", { id });
console.log(`stored at ${stored.stream}/${stored.sequence}, sent again: duplicate=${again.duplicate}`);
await bridge.publish("hello.orders", "order 18, which nobody can handle");

const deliveries = await bridge.consume("HELLO", "billing", { retry: { attempts: 3, firstPauseMs: 100 } });
for await (const delivery of deliveries) {
  console.log(`attempt ${delivery.attempt}: ${delivery.payload}`);
  if (!delivery.payload.includes("nobody")) {
    await delivery.ack();
    continue;
  }
  const settled = await delivery.retry("no such customer");
  if (settled.outcome === "dead_lettered") {
    console.log(`given up, kept at ${settled.stream}/${settled.sequence}`);
    break;
  }
}
await bridge.close();
