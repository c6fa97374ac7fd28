// Many messages in one call.

import assert from "node:assert/strict";
import { test } from "node:test";

import { BridgeError, connect } from "nats-bridge";

import { NatsServer } from "./server.mjs";

/**
 * A bridge, closed after the test, and a stream.
 *
 * @param {import("node:test").TestContext} t
 * @param {import("nats-bridge").PublishOptions} publish
 */
async function orders(t, publish = {}) {
  const server = await NatsServer.for(t);
  const bridge = await connect(server.url, { publish });
  t.after(() => bridge.close().catch(() => {}));
  await bridge.ensureStream("ORDERS", { subjects: ["orders.>"], unbounded: true });
  return { bridge, server };
}

test("many at once have each its outcome in their order", async (t) => {
  const { bridge } = await orders(t, { maxInFlight: 16 });
  /** @type {import("nats-bridge").Message[]} */
  const messages = Array.from({ length: 500 }, (_, n) => ({ subject: "orders.new", payload: `${n}` }));
  messages[7] = { subject: "orders.*", payload: "not a subject" };
  messages[8] = { subject: "orders.new", payload: Buffer.from("eight"), id: "o-8", headers: { tenant: "acme" } };
  messages[9] = { subject: "orders.new", payload: "eight", id: "o-8" };
  const outcomes = await bridge.publishMany(messages);
  assert.deepEqual(
    outcomes.flatMap(({ landed }, n) => (landed === "yes" ? [] : [n])),
    [7],
  );
  const [refused] = outcomes.splice(7, 1);
  assert(refused instanceof BridgeError);
  assert.deepEqual([refused.code, refused.landed, refused.context["subject"]], ["invalid_message", "no", "orders.*"]);
  const stored = outcomes.flatMap((outcome) => (outcome instanceof BridgeError ? [] : [outcome]));
  assert.equal(
    stored.findIndex(({ duplicate }) => duplicate),
    8,
  );
  assert.deepEqual(
    stored.filter(({ duplicate }) => !duplicate).map(({ sequence }) => sequence),
    Array.from({ length: 498 }, (_, n) => n + 1),
  );
  assert.deepEqual(await bridge.publishMany([]), []);
  const consumer = await bridge.consume("ORDERS", "reader");
  for (let n = 0; n < 9; n++) {
    const delivery = await consumer.next({ timeoutMs: 5_000 });
    if (n === 7) assert.deepEqual([delivery?.payload.toString(), delivery?.header("tenant")], ["eight", "acme"]);
    await delivery?.ack();
  }
  await consumer.drain();
});

test("of many one that is no message is refused and nothing is sent", async (t) => {
  const { bridge } = await orders(t);
  const good = { subject: "orders.new", payload: "one" };
  for (const [wrong, name] of /** @type {[any, RegExp][]} */ ([
    [{ subject: 7, payload: "x" }, /subject/],
    [{ subject: "orders.new" }, /payload/],
    [{ ...good, id: 7 }, /id/],
    [{ ...good, header: {} }, /'header'/],
    [{ ...good, headers: { a: 1 } }, /headers/],
  ])) {
    await assert.rejects(bridge.publishMany([good, wrong]), { name: "TypeError", message: name });
  }
  assert.equal((await bridge.publish("orders.new", "one")).sequence, 1);
});

test("of many the outcome of those without an answer is unknown", async (t) => {
  const { bridge, server } = await orders(t, { deadlineMs: 500, ackWaitMs: 200 });
  await server.stop();
  const messages = [1, 2, 3].map((n) => ({ subject: "orders.new", payload: "one", id: `o-${n}` }));
  const outcomes = await bridge.publishMany(messages);
  for (const outcome of outcomes) {
    assert(outcome instanceof BridgeError);
    assert.deepEqual([outcome.code, outcome.landed], ["timeout", "unknown"]);
  }
  assert.equal(outcomes.length, 3);
});
