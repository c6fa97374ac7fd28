// What a process fetched and did not hand out is another one's as soon as it is left, not after `ackWaitMs`.

import assert from "node:assert/strict";
import { test } from "node:test";

import { connect } from "nats-bridge";

import { run } from "./process.mjs";
import { NatsServer } from "./server.mjs";

const COUNT = 200;

/** @param {import("node:test").TestContext} t */
async function orders(t) {
  const server = await NatsServer.for(t);
  const bridge = await connect(server.url);
  t.after(() => bridge.close());
  await bridge.ensureStream("ORDERS", { subjects: ["orders.>"], unbounded: true, retention: "work_queue" });
  const messages = Array.from({ length: COUNT }, (_, n) => ({ subject: "orders.new", payload: `${n}` }));
  await bridge.publishMany(messages);
  return { bridge, server };
}

/**
 * All but `taken` are there, at their first attempt; well within `ackWaitMs`, which is a minute.
 *
 * @param {import("nats-bridge").Bridge} bridge
 * @param {number} taken
 */
async function theRestIsThere(bridge, taken) {
  const consumer = await bridge.consume("ORDERS", "billing", { ackWaitMs: 60_000 });
  const seen = new Set();
  while (seen.size < COUNT - taken) {
    const delivery = await consumer.next({ timeoutMs: 20_000 });
    assert(delivery !== undefined, `${seen.size} of ${COUNT - taken} came`);
    assert.equal(delivery.attempt, 1);
    seen.add(delivery.sequence);
    await delivery.ack();
  }
  await consumer.drain();
}

for (const [how, leave] of /** @type {[string, string][]} */ ([
  ["break", "break;"],
  ["return", "return;"],
  ["throw", "throw new Error('enough');"],
])) {
  test(`a process that ends after ${how} out of a loop gives back what it has not begun`, async (t) => {
    const { bridge, server } = await orders(t);
    const { end, out } = await run(
      `import { connect } from "nats-bridge";
       const bridge = await connect(process.argv[1]);
       async function work() {
         for await (const delivery of await bridge.consume("ORDERS", "billing", { ackWaitMs: 60_000 })) {
           await delivery.ack({ confirmed: true });
           ${leave}
         }
       }
       await work().catch((error) => console.log(error.message));
       process.kill(process.pid, "SIGKILL");`,
      server.url,
    );
    assert.deepEqual({ end, out }, { end: "SIGKILL", out: leave.includes("throw") ? "enough\n" : "" });
    await theRestIsThere(bridge, 1);
  });
}

test("leaving a loop does not wait for what is not settled, which can still be", async (t) => {
  const { bridge } = await orders(t);
  const consumer = await bridge.consume("ORDERS", "billing", { ackWaitMs: 60_000 });
  let kept;
  for await (const delivery of consumer) {
    kept = delivery;
    break;
  }
  assert.deepEqual([consumer.held, consumer.state], [1, "draining"]);
  await kept?.ack({ confirmed: true });
  await theRestIsThere(bridge, 1);
});

test("a bridge that is closed gives back what its consumers have not begun", async (t) => {
  const { bridge, server } = await orders(t);
  {
    const left = await connect(server.url);
    const consumer = await left.consume("ORDERS", "billing", { ackWaitMs: 60_000 });
    await (await consumer.next())?.ack({ confirmed: true });
    await left.close();
    await assert.rejects(consumer.next(), { code: "closed" });
  }
  await theRestIsThere(bridge, 1);
});

test("what came for an aborted wait goes back when the bridge is closed", async (t) => {
  const { bridge, server } = await orders(t);
  const left = await connect(server.url);
  const consumer = await left.consume("ORDERS", "billing", { ackWaitMs: 60_000 });
  const enough = new AbortController();
  const waits = consumer.next({ signal: enough.signal });
  // The event loop is busy until all has come: the delivery waits for it.
  while (consumer.held < COUNT) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10);
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100);
  enough.abort();
  await assert.rejects(waits, { code: "aborted" });
  await left.close();
  await theRestIsThere(bridge, 0);
});
