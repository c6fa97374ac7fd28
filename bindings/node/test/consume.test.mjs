import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { BridgeError, connect, originalName } from "nats-bridge";

import { eventually, NatsServer } from "./server.mjs";

const QUICK = { attempts: 3, firstPauseMs: 20, factor: 1, jitter: false };

/**
 * A bridge, closed after the test, and a stream with `count` messages.
 *
 * @param {import("node:test").TestContext} t
 */
async function orders(t, count = 0) {
  const server = await NatsServer.for(t);
  const bridge = await connect(server.url, { reconnectPauseMaxMs: 100 });
  t.after(() => bridge.close());
  await bridge.ensureStream("ORDERS", { subjects: ["orders.>"], unbounded: true, retention: "work_queue" });
  for (let n = 1; n <= count; n++) {
    await bridge.publish("orders.new", `order ${n}`, { id: `o-${n}` });
  }
  return { bridge, server };
}

/** @param {import("nats-bridge").Consumer} consumer */
async function some(consumer, timeoutMs = 5_000) {
  const delivery = await consumer.next({ timeoutMs });
  assert(delivery !== undefined, "a delivery was expected");
  return delivery;
}

test("what was published is delivered whole, and an ack ends it", async (t) => {
  const { bridge } = await orders(t);
  const before = Date.now() - 60_000;
  await bridge.publish("orders.new", Buffer.from([0, 255]), { id: "o-1", headers: { tenant: "acme", tag: ["a", "b"] } });
  const consumer = await bridge.consume("ORDERS", "billing");
  const delivery = await some(consumer);
  assert.deepEqual([delivery.subject, delivery.payload, delivery.id], ["orders.new", Buffer.from([0, 255]), "o-1"]);
  assert.deepEqual({ ...delivery.headers }, { tenant: ["acme"], tag: ["a", "b"], "Nats-Msg-Id": ["o-1"] });
  assert.deepEqual([delivery.header("tag"), delivery.header("none")], ["a", undefined]);
  assert.deepEqual([delivery.attempt, delivery.sequence, delivery.pending], [1, 1, 0]);
  assert(delivery.storedAt.getTime() > before && delivery.storedAt.getTime() < Date.now() + 60_000);
  assert.deepEqual([consumer.held, delivery.settled], [1, false]);
  assert.deepEqual(await delivery.ack({ confirmed: true }), { outcome: "acked" });
  assert.deepEqual([consumer.held, delivery.settled], [0, true]);
  assert.equal(await consumer.next({ timeoutMs: 100 }), undefined);
  await consumer.drain();
  assert.equal(consumer.state, "stopped");
});

test("a consumer is an async iterator that ends when it is drained, in order", async (t) => {
  const { bridge } = await orders(t, 50);
  const consumer = await bridge.consume("ORDERS", "billing");
  const seen = [];
  for await (const delivery of consumer) {
    seen.push(delivery.payload.toString());
    await delivery.ack();
    if (delivery.pending === 0) {
      await consumer.drain();
    }
  }
  assert.deepEqual(seen, Array.from({ length: 50 }, (_, n) => `order ${n + 1}`));
});

test("timers run while deliveries that are there already are handled", async (t) => {
  const { bridge } = await orders(t);
  await Promise.all(Array.from({ length: 3_000 }, (_, n) => bridge.publish("orders.new", `${n}`)));
  const consumer = await bridge.consume("ORDERS", "billing");
  let turns = 0;
  const timer = setInterval(() => (turns += 1), 1);
  let seen = 0;
  for await (const delivery of consumer) {
    seen += 1;
    await delivery.ack();
    if (delivery.pending === 0) break;
  }
  clearInterval(timer);
  assert.equal(seen, 3_000);
  assert(turns > 5, `${turns} turns`);
});

test("leaving the loop drains, and what was not handed out comes to the next consumer", async (t) => {
  const { bridge } = await orders(t, 10);
  const first = await bridge.consume("ORDERS", "billing");
  for await (const delivery of first) {
    await delivery.ack({ confirmed: true });
    break;
  }
  await eventually(() => first.state === "stopped", "the first one is drained");
  const second = await bridge.consume("ORDERS", "billing");
  const seen = new Set();
  while (seen.size < 9) {
    const delivery = await some(second, 10_000);
    seen.add(delivery.sequence);
    await delivery.ack();
  }
  assert(!seen.has(1));
  await second.drain();
});

test("a failed message is retried by policy, and then a dead letter with its headers", async (t) => {
  const { bridge } = await orders(t);
  await bridge.publish("orders.new", "bad", { id: "o-1", headers: { tenant: "acme" } });
  const consumer = await bridge.consume("ORDERS", "billing", { retry: QUICK });
  for (const attempt of [1, 2]) {
    const delivery = await some(consumer);
    assert.equal(delivery.attempt, attempt);
    assert.deepEqual(await delivery.retry(new RangeError("no such tea")), { outcome: "retried", afterMs: 20 });
  }
  assert.deepEqual(await (await some(consumer)).retry(new RangeError("no such tea")), {
    outcome: "dead_lettered",
    stream: "ORDERS_DLQ",
    sequence: 1,
  });
  await consumer.drain();
  const letters = await bridge.consume("ORDERS_DLQ", "reader");
  const letter = await some(letters);
  assert.deepEqual([letter.payload.toString(), letter.header("tenant")], ["bad", "acme"]);
  /** @type {Record<string, string>} */
  const expected = {
    Reason: "handler_error",
    Detail: "no such tea",
    Stream: "ORDERS",
    Sequence: "1",
    Subject: "orders.new",
    Consumer: "billing",
    Attempts: "3",
  };
  for (const [name, value] of Object.entries(expected)) {
    assert.equal(letter.header(`Dead-Letter-${name}`), value, name);
  }
  const original = Object.entries(letter.headers).map(([name, values]) => [originalName(name), values[0]]);
  assert.deepEqual(Object.fromEntries(original.filter(([name]) => name !== undefined)), {
    tenant: "acme",
    "Nats-Msg-Id": "o-1",
  });
  assert.equal(letter.header("Dead-Letter-Fingerprint")?.length, 16);
  await letter.ack();
  await letters.drain();
});

test("a delay of one's own replaces the policy's", async (t) => {
  const { bridge } = await orders(t, 1);
  const consumer = await bridge.consume("ORDERS", "billing");
  assert.deepEqual(await (await some(consumer)).retry("later", { delayMs: 30 }), { outcome: "retried", afterMs: 30 });
  const again = await some(consumer);
  assert.equal(again.attempt, 2);
  await assert.rejects(again.retry("later", { delayMs: -1 }), { code: "config", message: /delayMs/ });
  await again.ack();
  await consumer.drain();
});

test("deadLetter gives up at once and says why", async (t) => {
  const { bridge } = await orders(t, 1);
  const consumer = await bridge.consume("ORDERS", "billing");
  const delivery = await some(consumer);
  // @ts-expect-error there is no such reason
  await assert.rejects(delivery.deadLetter("x", { reason: "bad" }), {
    code: "config",
    message: /reason.*one of handler_error, .*crash_loop/,
  });
  const settled = await delivery.deadLetter("not an order", { reason: "schema" });
  assert.equal(settled.outcome === "dead_lettered" && settled.stream, "ORDERS_DLQ");
  const letters = await bridge.consume("ORDERS_DLQ", "reader");
  const letter = await some(letters);
  assert.equal(letter.header("Dead-Letter-Reason"), "schema");
  await letter.ack();
  await letters.drain();
  await consumer.drain();
});

test("acks that nobody waits for are handed over before anything else is asked", async (t) => {
  const { bridge } = await orders(t, 100);
  const consumer = await bridge.consume("ORDERS", "billing");
  const acks = [];
  for (let n = 0; n < 100; n++) {
    const delivery = await some(consumer);
    acks.push(delivery.ack());
    assert.equal(delivery.settled, true);
    await assert.rejects(delivery.retry("too late"), { code: "already_settled" });
  }
  assert.equal(consumer.held, 0);
  assert.deepEqual(await Promise.all(acks), Array(100).fill({ outcome: "acked" }));
  const last = await bridge.publish("orders.new", "one more");
  const delivery = await some(consumer);
  assert.deepEqual([delivery.sequence, delivery.attempt], [last.sequence, 1]);
  // Not awaited, and the connection is closed at once: it was handed over all the same.
  void delivery.ack();
  await bridge.close();
});

test("an option that does not exist is refused, and nothing is settled", async (t) => {
  const { bridge } = await orders(t, 1);
  const consumer = await bridge.consume("ORDERS", "billing");
  const delivery = await some(consumer);
  const calls = /** @type {[string, () => Promise<unknown>][]} */ ([
    // @ts-expect-error there is no such option
    ["confirm", () => delivery.ack({ confirm: true })],
    // @ts-expect-error there is no such option
    ["delay", () => delivery.retry("later", { delay: 60_000 })],
    // @ts-expect-error there is no such option
    ["because", () => delivery.deadLetter("never", { because: "schema" })],
    // @ts-expect-error there is no such option
    ["timeout", () => consumer.next({ timeout: 5 })],
    // @ts-expect-error options are an object
    ["options", () => consumer.next(5)],
    // @ts-expect-error there is no such option
    ["budget", () => consumer.drain({ budget: 5 })],
    // @ts-expect-error there is no such option
    ["budget", () => bridge.close({ budget: 5 })],
    // @ts-expect-error there is no such option
    ["keep", () => bridge.ledger("done", { keep: 1 })],
    // @ts-expect-error options are an object
    ["option 'publish'", () => connect("nats://127.0.0.1:1", { publish: 3 })],
    // @ts-expect-error servers are strings
    ["servers", () => connect(null)],
  ]);
  for (const [named, call] of calls) {
    await assert.rejects(call, { name: "TypeError", message: new RegExp(named) });
  }
  assert.equal(delivery.settled, false);
  await delivery.ack();
  await consumer.drain();
});

test("after close everything is refused as closed, and nothing lands or waits", async (t) => {
  const { bridge } = await orders(t, 1);
  const consumer = await bridge.consume("ORDERS", "billing");
  const held = await some(consumer);
  await assert.rejects(consumer.drain({ budgetMs: 50 }), { code: "timeout" });
  await bridge.close();
  await assert.rejects(consumer.next(), { code: "closed" });
  await assert.rejects(held.ack({ confirmed: true }), { code: "closed" });
  await assert.rejects(bridge.publish("orders.new", "late"), { code: "closed", landed: "no" });
  await assert.rejects(bridge.ensureStream("ZZ", { unbounded: true }), { code: "closed" });
  await assert.rejects(bridge.consume("ORDERS", "other"), { code: "closed" });
  await assert.rejects(bridge.deadLetters("ORDERS_DLQ"), { code: "closed" });
});

test("a second settle is a typed error", async (t) => {
  const { bridge } = await orders(t, 1);
  const consumer = await bridge.consume("ORDERS", "billing");
  const delivery = await some(consumer);
  await delivery.ack();
  for (const again of [() => delivery.ack(), () => delivery.retry(), () => delivery.deadLetter()]) {
    await assert.rejects(again, { name: "BridgeError", code: "already_settled", landed: "no" });
  }
  assert.equal(delivery.payload.toString(), "order 1");
  await consumer.drain();
});

/** @param {import("nats-bridge").Bridge} bridge */
async function consumerOf(bridge) {
  return bridge.consume("ORDERS", "billing");
}

test("a wrong option or stream is named", async (t) => {
  const { bridge } = await orders(t);
  await assert.rejects(bridge.consume("NOT_THERE", "billing"), { code: "not_found" });
  // @ts-expect-error there is no such option
  await assert.rejects(bridge.consume("ORDERS", "billing", { retries: 3 }), { name: "TypeError", message: /'retries'/ });
  // @ts-expect-error there is no such option
  await assert.rejects(bridge.consume("ORDERS", "billing", { retry: { attempt: 3 } }), { message: /'retry.attempt'/ });
  await assert.rejects(bridge.consume("ORDERS", "billing", { retry: { attempts: 0 } }), {
    code: "config",
    message: /attempts/,
  });
  await assert.rejects(bridge.consume("ORDERS", "billing", { maxMessages: 1.5 }), {
    name: "TypeError",
    message: "option 'maxMessages': a whole number is wanted, not number 1.5",
  });
  await assert.rejects(bridge.consume("ORDERS", "billing", { maxMessages: -1 }), { code: "config", message: /maxMessages/ });
  const more = { subjects: ["more.>"], unbounded: true };
  await assert.rejects(bridge.ensureStream("MORE", { ...more, maxAgeMs: 0.5 }), { name: "TypeError", message: /'maxAgeMs'/ });
  await assert.rejects(bridge.ensureStream("MORE", { ...more, maxAgeMs: -1 }), { code: "config", message: /maxAgeMs.*whole number/ });
  // @ts-expect-error there is no such storage
  await assert.rejects(bridge.ensureStream("MORE", { ...more, storage: "paper" }), {
    code: "config",
    message: "config: field=storage why=it is file or memory, not paper",
  });
  const reader = await consumerOf(bridge);
  await assert.rejects(reader.next({ timeoutMs: -1 }), { code: "config", message: /timeoutMs/ });
  await assert.rejects(reader.next({ timeoutMs: 0.5 }), { name: "TypeError", message: /'timeoutMs'/ });
});

test("deliveries go on after the server was away", async (t) => {
  const { bridge, server } = await orders(t, 1);
  const consumer = await bridge.consume("ORDERS", "billing", { heartbeatMs: 500 });
  await (await some(consumer)).ack({ confirmed: true });
  await server.stop();
  await server.start();
  await bridge.publish("orders.new", "order 2", { id: "o-2" });
  const delivery = await some(consumer, 15_000);
  assert.equal(delivery.payload.toString(), "order 2");
  await delivery.ack();
  await consumer.drain();
});

test("publishes are stored in the order in which they were made", async (t) => {
  const { bridge } = await orders(t);
  const stored = await Promise.all(Array.from({ length: 5_000 }, (_, n) => bridge.publish("orders.new", `${n}`)));
  assert.deepEqual(
    stored.map(({ sequence }) => sequence),
    Array.from({ length: 5_000 }, (_, n) => n + 1),
  );
});

test("after close, every next says closed", async (t) => {
  const { url } = await NatsServer.for(t);
  const bridge = await connect(url);
  await bridge.ensureStream("ORDERS", { unbounded: true });
  const consumer = await bridge.consume("ORDERS", "billing");
  await bridge.close();
  for (const _ of [1, 2, 3]) {
    await assert.rejects(consumer.next({ timeoutMs: 10_000 }), { code: "closed" });
  }
});

test("the dead-letter stream takes the room that it is given, and names it where there is none", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "nats-bridge-test-"));
  t.after(() => rmSync(folder, { recursive: true }));
  writeFileSync(join(folder, "server.conf"), "jetstream { max_file_store: 200MB, max_memory_store: 64MB }");
  const { url } = await NatsServer.for(t, "--config", join(folder, "server.conf"));
  const bridge = await connect(url);
  t.after(() => bridge.close());
  await bridge.ensureStream("ORDERS", { unbounded: true });
  await assert.rejects(bridge.consume("ORDERS", "billing"), (error) => {
    assert(error instanceof BridgeError);
    const { stream, maxBytes, field } = error.context;
    assert.deepEqual([error.code, stream, maxBytes, field], ["rejected", "ORDERS_DLQ", String(2 ** 30), "deadLetterMaxBytes"]);
    return true;
  });
  const consumer = await bridge.consume("ORDERS", "billing", { deadLetterMaxBytes: 10_000_000 });
  assert.equal(consumer.state, "running");
  // The dead letters have room, the advisories have none.
  await bridge.ensureStream("OTHER", { unbounded: true });
  const full = { deadLetterMaxBytes: 100_000_000 };
  await assert.rejects(bridge.consume("OTHER", "billing", full), (error) => {
    assert(error instanceof BridgeError);
    const { stream, field, fix } = error.context;
    assert.deepEqual([error.code, stream, field], ["rejected", "OTHER_ADVISORIES", "advisories"]);
    assert.match(fix ?? "", /turn `advisories` off/);
    return true;
  });
  await (await bridge.consume("OTHER", "billing", { ...full, advisories: false })).drain();
  await assert.rejects(bridge.consume("ORDERS", "billing", { deadLetterMaxBytes: 0 }), { code: "config", message: /deadLetterMaxBytes/ });
});

test("a stream that stores no dead letters is refused by name", async (t) => {
  const { url } = await NatsServer.for(t);
  const bridge = await connect(url);
  t.after(() => bridge.close());
  await bridge.ensureStream("ORDERS", { unbounded: true });
  await assert.rejects(async () => (await bridge.deadLetters("ORDERS")).count(), { code: "config", message: /ORDERS.*no dead letters/ });
});
