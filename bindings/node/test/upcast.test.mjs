// Payloads of older versions of a schema, as the version that a service knows.

import assert from "node:assert/strict";
import { test } from "node:test";

import { BridgeError, connect } from "nats-bridge";

import { run } from "./process.mjs";
import { NatsServer } from "./server.mjs";

/**
 * Two versions of `order`, messages of both, and a connection.
 *
 * @param {import("node:test").TestContext} t
 * @param {readonly string[]} payloads
 */
async function prepared(t, payloads) {
  const server = await NatsServer.for(t);
  const setUp = await connect(server.url);
  await setUp.ensureStream("ORDERS", { subjects: ["orders.>"], unbounded: true });
  const schemas = await setUp.schemas("SCHEMAS");
  for (const field of ["euros", "cents"]) {
    const properties = { [field]: { type: "integer", maximum: 900 } };
    const schema = { type: "object", required: [field], properties, additionalProperties: false };
    await schemas.register("order", schema, { compatibility: "NONE" });
  }
  await setUp.close();
  const bridge = await connect(server.url, { publish: { schemas: "SCHEMAS" } });
  t.after(() => bridge.close({ budgetMs: 0 }).catch(() => {}));
  for (const payload of payloads) {
    await bridge.publish("orders.new", payload, { schema: payload.includes("cents") ? "order/2" : "order/1" });
  }
  return { bridge, server };
}

/** @param {Buffer} payload */
function toCents(payload) {
  const { euros } = /** @type {{ euros: number }} */ (JSON.parse(payload.toString()));
  if (euros === 13) {
    throw new RangeError("13 is not liked");
  }
  if (euros === 14) {
    return /** @type {string} */ (/** @type {unknown} */ (Promise.resolve("{}")));
  }
  return JSON.stringify({ cents: euros * 100 });
}

const UPCAST = { schemas: "SCHEMAS", upcast: { order: { 1: toCents } } };

test("older payloads come as the newest, or become dead letters as they were", async (t) => {
  const older = ['{"euros":1}', '{"euros":13}', '{"euros":14}', '{"euros":800}', '{"euros":3}'];
  const { bridge } = await prepared(t, [...older, '{"cents":2}']);
  const consumer = await bridge.consume("ORDERS", "billing", UPCAST);
  for (const cents of [100, 300, 2]) {
    const delivery = await consumer.next({ timeoutMs: 10_000 });
    assert.ok(delivery);
    assert.deepEqual(JSON.parse(delivery.payload.toString()), { cents });
    await delivery.ack({ confirmed: true });
  }
  assert.equal(await consumer.next({ timeoutMs: 100 }), undefined);
  const letters = await (await bridge.deadLetters("ORDERS_DLQ")).peek();
  const dead = new Map(letters.map((letter) => [letter.payload.toString(), letter]));
  assert.deepEqual([...dead.keys()].sort(), ['{"euros":13}', '{"euros":14}', '{"euros":800}']);
  for (const [payload, told] of [
    ['{"euros":13}', "RangeError: 13 is not liked"],
    ['{"euros":14}', "not Promise"],
    ['{"euros":800}', "80000"],
  ]) {
    const letter = dead.get(String(payload));
    assert.equal(letter?.reason, "schema");
    assert.ok(letter.detail.includes(String(told)), letter.detail);
  }
});

test("steps run for iteration and for handlers", async (t) => {
  const { bridge } = await prepared(t, Array.from({ length: 9 }, (_, n) => JSON.stringify({ euros: n % 9 })));
  /** @type {number[]} */
  const seen = [];
  const consumer = await bridge.consume("ORDERS", "iterates", UPCAST);
  for await (const delivery of consumer) {
    seen.push(/** @type {{ cents: number }} */ (JSON.parse(delivery.payload.toString())).cents);
    await delivery.ack();
    if (seen.length === 9) {
      void consumer.drain();
    }
  }
  assert.deepEqual(seen, [0, 100, 200, 300, 400, 500, 600, 700, 800]);

  /** @type {number[]} */
  const handled = [];
  const worker = await bridge.consume("ORDERS", "handles", UPCAST);
  await worker.run(
    (message) => {
      handled.push(/** @type {{ cents: number }} */ (JSON.parse(message.payload.toString())).cents);
      if (handled.length === 9) {
        void worker.drain();
      }
    },
    { concurrency: 4 },
  );
  assert.deepEqual(handled.toSorted((a, b) => a - b), seen);
});

test("a process that ends in the middle of a step makes no dead letter of its message", async (t) => {
  const { bridge, server } = await prepared(t, ['{"euros":1}', '{"euros":2}']);
  const { end } = await run(
    `import { connect } from "nats-bridge";
     const bridge = await connect(process.argv[1]);
     const upcast = { order: { 1: () => process.exit(3) } };
     const consumer = await bridge.consume("ORDERS", "billing", { schemas: "SCHEMAS", upcast });
     await consumer.next();`,
    server.url,
  );
  assert.equal(end, 3);
  assert.equal(await (await bridge.deadLetters("ORDERS_DLQ")).count(), 0);
});

test("what is no step is refused by name", async (t) => {
  const { bridge } = await prepared(t, []);
  for (const [wrong, told] of [
    [{ order: { 1: "no" } }, /version 1 of 'order' has a function, not string/],
    [{ order: { 0: toCents } }, /'0' of 'order' is no version/],
    [{ order: [toCents] }, /an object of versions of 'order'/],
    [new Map(), /an object of schemas, not Map/],
  ]) {
    const upcast = /** @type {import("nats-bridge").Upcast} */ (wrong);
    const pattern = /** @type {RegExp} */ (told);
    await assert.rejects(bridge.consume("ORDERS", "billing", { schemas: "SCHEMAS", upcast }), { name: "TypeError", message: pattern });
  }
  await assert.rejects(
    bridge.consume("ORDERS", "billing", { schemas: "SCHEMAS", upcast: { order: { 1: toCents, 3: toCents } } }),
    (error) => error instanceof BridgeError && error.code === "config" && /no step from version 2/.test(error.message),
  );
  await assert.rejects(
    bridge.consume("ORDERS", "billing", { upcast: { order: { 1: toCents } } }),
    (error) => error instanceof BridgeError && error.context["field"] === "upcast",
  );
});
