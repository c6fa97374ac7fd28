// An `AbortSignal` ends what waits, and nothing is lost by it.

import assert from "node:assert/strict";
import { test } from "node:test";

import { AmqpListener, BridgeError, connect } from "nats-bridge";

import { run } from "./process.mjs";
import { eventually, NatsServer } from "./server.mjs";

/**
 * A bridge, closed after the test, and a stream.
 *
 * @param {import("node:test").TestContext} t
 */
async function orders(t) {
  const server = await NatsServer.for(t);
  const bridge = await connect(server.url);
  t.after(() => bridge.close({ budgetMs: 0 }).catch(() => {}));
  await bridge.ensureStream("ORDERS", { subjects: ["orders.>"], unbounded: true, retention: "work_queue" });
  return { bridge, server };
}

test("what was aborted before is not begun", async (t) => {
  const { bridge } = await orders(t);
  const signal = AbortSignal.abort(new Error("enough"));
  const refused = { name: "BridgeError", code: "aborted", landed: "no", cause: signal.reason };
  await assert.rejects(connect("nats://127.0.0.1:1", { signal }), refused);
  await assert.rejects(AmqpListener.start({ nats: "nats://127.0.0.1:1", signal }), refused);
  await assert.rejects(bridge.publish("orders.new", "one", { signal }), refused);
  await assert.rejects(bridge.publishMany([], { signal }), refused);
  await assert.rejects(bridge.consume("ORDERS", "billing", { signal }), refused);
  const consumer = await bridge.consume("ORDERS", "billing");
  await assert.rejects(consumer.next({ signal }), refused);
  await assert.rejects(consumer.run(() => {}, { signal }), refused);
  assert.equal((await bridge.publish("orders.new", "two")).sequence, 1);
  await consumer.drain();
});

test("a publish that is aborted may have landed", async (t) => {
  const { bridge, server } = await orders(t);
  await server.stop();
  for (const work of [
    () => bridge.publish("orders.new", "one", { signal: AbortSignal.timeout(50) }),
    () => bridge.publishMany([{ subject: "orders.new", payload: "one" }], { signal: AbortSignal.timeout(50) }),
  ]) {
    await assert.rejects(work, (error) => {
      assert(error instanceof BridgeError && error.cause instanceof DOMException);
      assert.deepEqual([error.code, error.landed, error.cause.name], ["aborted", "unknown", "TimeoutError"]);
      return true;
    });
  }
});

test("a connect that is aborted leaves no connection", async (t) => {
  // It takes connections and says nothing, as a server that hangs.
  const { createServer } = await import("node:net");
  /** @type {Set<import("node:net").Socket>} */
  const sockets = new Set();
  const silent = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => sockets.delete(socket));
  });
  await new Promise((/** @type {(value: void) => void} */ resolve) => silent.listen(0, "127.0.0.1", resolve));
  t.after(() => silent.close());
  const { port } = /** @type {import("node:net").AddressInfo} */ (silent.address());
  const options = { connectTimeoutMs: 300, signal: AbortSignal.timeout(50) };
  await assert.rejects(connect(`nats://127.0.0.1:${port}`, options), { code: "aborted", landed: "no" });
  await eventually(() => sockets.size === 0, "the attempt ends");
});

test("a wait that is aborted loses no delivery, costs no attempt and keeps the order", async (t) => {
  const { bridge } = await orders(t);
  const consumer = await bridge.consume("ORDERS", "billing");
  for (let n = 0; n < 200; n++) {
    const controller = new AbortController();
    const waits = consumer.next({ signal: controller.signal });
    const aborted = waits.then(
      (delivery) => delivery,
      () => undefined,
    );
    await bridge.publish("orders.new", `${n}`);
    // The delivery is on its way, has arrived, or is still to come.
    controller.abort();
    const delivery = (await aborted) ?? (await consumer.next({ timeoutMs: 5_000 }));
    assert.deepEqual([delivery?.payload.toString(), delivery?.attempt], [`${n}`, 1]);
    await delivery?.ack();
  }
  await consumer.drain();
});

test("what came for an aborted wait does not hold up a drain", async (t) => {
  const { bridge } = await orders(t);
  const consumer = await bridge.consume("ORDERS", "billing");
  const controller = new AbortController();
  const waits = consumer.next({ signal: controller.signal }).catch(() => undefined);
  await bridge.publish("orders.new", "one");
  controller.abort();
  await (await waits)?.ack();
  await consumer.drain({ budgetMs: 3_000 });
  assert.equal(consumer.held, 0);
});

test("aborting the signal of a consumer drains it", async (t) => {
  const { bridge } = await orders(t);
  await bridge.publish("orders.new", "one");
  const controller = new AbortController();
  const seen = [];
  for await (const delivery of await bridge.consume("ORDERS", "billing", { signal: controller.signal })) {
    seen.push(delivery.payload.toString());
    await delivery.ack();
    controller.abort();
  }
  assert.deepEqual(seen, ["one"]);
});

test("a connection that is made after its signal has told is closed, and nobody is bothered", async (t) => {
  const server = await NatsServer.for(t);
  // An unhandled rejection would end the process otherwise.
  const { end, out } = await run(
    `import { connect } from "nats-bridge";
     for (let ms = 0; ms < 4; ms += 1) {
       await connect(process.argv[1], { signal: AbortSignal.timeout(ms) }).then(
         (bridge) => bridge.close(),
         (error) => { if (error.code !== "aborted") throw error; },
       );
     }`,
    server.url,
  );
  assert.deepEqual({ end, out }, { end: 0, out: "" });
});
