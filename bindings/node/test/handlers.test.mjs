// Handlers over deliveries.

import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

import { connect, GiveUp } from "nats-bridge";

import { NatsServer } from "./server.mjs";

const QUICK = { attempts: 3, firstPauseMs: 20, factor: 1, jitter: false };

/**
 * A bridge, closed after the test, and a stream with `count` messages of `keys` keys.
 *
 * @param {import("node:test").TestContext} t
 */
async function orders(t, count = 0, keys = 1) {
  const server = await NatsServer.for(t);
  const bridge = await connect(server.url);
  t.after(() => bridge.close().catch(() => {}));
  await bridge.ensureStream("ORDERS", { subjects: ["orders.>"], unbounded: true, retention: "work_queue" });
  await bridge.publishMany(
    Array.from({ length: count }, (_, n) => ({ subject: `orders.c${n % keys}`, payload: `${n}` })),
  );
  return bridge;
}

/** @param {import("nats-bridge").Received} message */
const number = (message) => Number(message.payload.toString());

test("messages of one key are handled in order, and keys side by side", async (t) => {
  const bridge = await orders(t, 140, 10);
  const consumer = await bridge.consume("ORDERS", "billing", { retry: QUICK });
  /** @type {number[]} */
  const seen = [];
  let [letters, running, most] = [0, 0, 0];
  const controller = new AbortController();
  await consumer.run(
    async (message) => {
      running += 1;
      most = Math.max(most, running);
      await pause(2);
      running -= 1;
      if (number(message) % 7 === 0 && message.attempt === 1) {
        throw new RangeError("not yet");
      }
      if (number(message) % 7 === 1) letters += 1;
      else seen.push(number(message));
      if (seen.length + letters === 140) controller.abort();
      if (number(message) % 7 === 1) {
        throw new GiveUp("no order", { reason: "schema" });
      }
    },
    { concurrency: 4, key: (message) => message.subject, signal: controller.signal },
  );
  await consumer.drain();
  assert.deepEqual([seen.length, letters], [120, 20]);
  for (let key = 0; key < 10; key++) {
    const ofKey = seen.filter((n) => n % 10 === key);
    assert.deepEqual(
      ofKey,
      ofKey.toSorted((a, b) => a - b),
    );
  }
  assert(most >= 2 && most <= 4, `${most} at once`);
  const reader = await bridge.consume("ORDERS_DLQ", "reader");
  const letter = await reader.next({ timeoutMs: 5_000 });
  assert.deepEqual(
    [letter?.header("Dead-Letter-Reason"), letter?.header("Dead-Letter-Attempts")],
    ["schema", "1"],
  );
  await letter?.ack();
  await reader.drain();
});

test("what a handler or a key throws follows the policy", async (t) => {
  const bridge = await orders(t, 2, 2);
  const consumer = await bridge.consume("ORDERS", "billing", { retry: QUICK });
  /** @type {number[]} */
  const attempts = [];
  const runs = consumer.run(
    (message) => {
      attempts.push(message.attempt);
      throw new RangeError("no such order");
    },
    {
      concurrency: 2,
      key: (message) => {
        if (message.subject === "orders.c1") throw new TypeError("no customer");
        return message.subject;
      },
    },
  );
  const reader = await bridge.consume("ORDERS_DLQ", "reader");
  const details = new Set();
  while (details.size < 2) {
    const letter = await reader.next({ timeoutMs: 10_000 });
    assert(letter !== undefined, "a letter was expected");
    assert.equal(letter.header("Dead-Letter-Reason"), "handler_error");
    details.add(letter.header("Dead-Letter-Detail"));
    await letter.ack();
  }
  await reader.drain();
  await consumer.drain();
  await runs;
  assert.deepEqual(attempts, [1, 2, 3]);
  assert.deepEqual([...details].toSorted(), ["no customer", "no such order"]);
});

test("a drain waits for handlers, and what was not begun is for others", async (t) => {
  const bridge = await orders(t, 10);
  const consumer = await bridge.consume("ORDERS", "billing");
  /** @type {number[]} */
  const handled = [];
  let goOn = () => {};
  const mayGoOn = new Promise((/** @type {(value: void) => void} */ resolve) => (goOn = resolve));
  let began = () => {};
  const begun = new Promise((/** @type {(value: void) => void} */ resolve) => (began = resolve));
  const runs = consumer.run(
    async (message) => {
      began();
      await mayGoOn;
      handled.push(number(message));
    },
    { concurrency: 2 },
  );
  await begun;
  await assert.rejects(consumer.drain({ budgetMs: 100 }), { code: "timeout" });
  goOn();
  await consumer.drain();
  await runs;
  assert.deepEqual([consumer.state, await consumer.next({ timeoutMs: 0 })], ["stopped", undefined]);
  const others = await bridge.consume("ORDERS", "billing");
  const rest = new Set();
  while (rest.size < 10 - handled.length) {
    const delivery = await others.next({ timeoutMs: 10_000 });
    assert(delivery !== undefined, "a delivery was expected");
    rest.add(number(delivery));
    await delivery.ack();
  }
  assert(handled.every((n) => !rest.has(n)));
  await others.drain();
});

test("a consumer has one taker, and its concurrency has bounds", async (t) => {
  const bridge = await orders(t);
  const consumer = await bridge.consume("ORDERS", "billing");
  for (const concurrency of [0, 2_000]) {
    await assert.rejects(consumer.run(() => {}, { concurrency }), { code: "config", message: /concurrency/ });
  }
  await assert.rejects(consumer.run(() => {}, { concurrency: 1.5 }), { name: "TypeError", message: /'concurrency'/ });
  // @ts-expect-error there is no such option
  await assert.rejects(consumer.run(() => {}, { parallel: 2 }), { name: "TypeError", message: /'parallel'/ });
  const runs = consumer.run(() => {});
  // Its first turn of the event loop takes it.
  await pause(0);
  await assert.rejects(consumer.run(() => {}), { code: "config", message: /run/ });
  assert.equal(await consumer.next({ timeoutMs: 0 }), undefined);
  await consumer.drain();
  await runs;
});

test("timers run while a handler that does not wait is busy", async (t) => {
  const bridge = await orders(t, 3_000);
  const consumer = await bridge.consume("ORDERS", "billing");
  let [turns, seen] = [0, 0];
  const timer = setInterval(() => (turns += 1), 1);
  const controller = new AbortController();
  await consumer.run(
    () => {
      seen += 1;
      if (seen === 3_000) controller.abort();
    },
    { concurrency: 16, signal: controller.signal },
  );
  clearInterval(timer);
  assert.equal(seen, 3_000);
  assert(turns > 5, `${turns} turns`);
});

test("a reason that is none costs a retry, and neither the process nor the run", async (t) => {
  const bridge = await orders(t, 2);
  const consumer = await bridge.consume("ORDERS", "billing", { retry: { ...QUICK, attempts: 2 } });
  const controller = new AbortController();
  let handled = 0;
  await consumer.run(
    (message) => {
      handled += 1;
      if (handled === 4) controller.abort();
      if (number(message) === 0) {
        // @ts-expect-error there is no such reason
        throw new GiveUp("x", { reason: "bogus" });
      }
      throw Object.assign(new GiveUp("y"), { reason: "bogus" });
    },
    { concurrency: 2, key: (message) => message.subject, signal: controller.signal },
  );
  await consumer.drain();
  const letters = await (await bridge.deadLetters("ORDERS_DLQ")).peek();
  assert.deepEqual(
    letters.map((letter) => letter.reason),
    ["handler_error", "handler_error"],
  );
});

test("what is no function handles nothing", async (t) => {
  const bridge = await orders(t, 1);
  const consumer = await bridge.consume("ORDERS", "billing");
  // @ts-expect-error a handler is a function
  await assert.rejects(consumer.run("x"), { name: "TypeError", message: /handler.*string/ });
  // @ts-expect-error a key is a function
  await assert.rejects(consumer.run(() => {}, { key: "subject" }), { name: "TypeError", message: /key.*string/ });
  // @ts-expect-error a key is not awaited
  await assert.rejects(consumer.run(() => {}, { key: async () => "k" }), { name: "TypeError", message: /key.*async/ });
  for (const lazy of [function* () {}, async function* () {}]) {
    await assert.rejects(consumer.run(lazy), { name: "TypeError", message: /handler.*yield/ });
  }
  const delivery = await consumer.next({ timeoutMs: 5_000 });
  assert.equal(delivery?.attempt, 1);
  await delivery?.ack();
  await consumer.drain();
});

test("a handler that returns a generator has not done its work", async (t) => {
  const bridge = await orders(t, 1);
  const consumer = await bridge.consume("ORDERS", "billing", { retry: { ...QUICK, attempts: 1 } });
  const controller = new AbortController();
  const running = consumer.run(() => (function* () {})(), { signal: controller.signal });
  const letters = await bridge.consume("ORDERS_DLQ", "reader");
  const letter = await letters.next({ timeoutMs: 10_000 });
  assert.match(letter?.header("Dead-Letter-Detail") ?? "", /returned a generator/);
  await letter?.ack();
  controller.abort();
  await running;
});
