// Dead letters, provisioning, health, figures and the ledger.

import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { BridgeError, connect, metrics } from "nats-bridge";

import { NatsServer } from "./server.mjs";

const MANIFEST = `
[[streams]]
name = "ORDERS"
unbounded = true
[[dead_letters]]
of = "ORDERS"
[[consumers]]
stream = "ORDERS"
name = "billing"
[[buckets]]
name = "sessions"
max_bytes = 10_000_000
`;

/**
 * A bridge, closed after the test.
 *
 * @param {import("node:test").TestContext} t
 * @param {import("nats-bridge").ConnectOptions} options
 */
async function connected(t, options = {}) {
  const server = await NatsServer.for(t);
  const bridge = await connect(server.url, options);
  t.after(() => bridge.close({ budgetMs: 0 }).catch(() => {}));
  return { bridge, server };
}

/**
 * A bridge and the dead letters of `count` messages.
 *
 * @param {import("node:test").TestContext} t
 * @param {number} count
 */
async function letters(t, count) {
  const { bridge } = await connected(t);
  await bridge.ensureStream("ORDERS", { unbounded: true, retention: "work_queue" });
  await bridge.publishMany(
    Array.from({ length: count }, (_, n) => ({ subject: "orders.new", payload: Buffer.from([n, 255]), id: `o-${n}` })),
  );
  const consumer = await bridge.consume("ORDERS", "billing");
  for (let n = 0; n < count; n++) {
    const delivery = await consumer.next({ timeoutMs: 5_000 });
    await delivery?.deadLetter(new RangeError("no order"), { reason: "schema" });
  }
  await consumer.drain();
  return { bridge, dead: await bridge.deadLetters("ORDERS_DLQ") };
}

test("dead letters are seen and stay where they are", async (t) => {
  const { bridge, dead } = await letters(t, 3);
  const [group, none] = await dead.list({ by: "fingerprint" });
  assert(group !== undefined && none === undefined);
  assert.deepEqual([group.letters, group.reason, group.detail, group.consumer], [3, "schema", "no order", "billing"]);
  assert.deepEqual(await dead.list({ reason: "timeout" }), []);
  assert.deepEqual(
    (await dead.peek({ limit: 2 })).map(({ payload }) => payload),
    [Buffer.from([0, 255]), Buffer.from([1, 255])],
  );
  const some = await dead.peek({ sequences: [2, 3], fingerprint: group.key });
  assert.deepEqual(
    some.map(({ sequence }) => sequence),
    [2, 3],
  );
  const letter = await dead.show(2);
  assert.deepEqual([letter.subject, letter.stream, letter.streamSequence], ["orders.new", "ORDERS", 2]);
  assert.deepEqual([letter.headers, letter.attempts, letter.redrives], [{ "Nats-Msg-Id": ["o-1"] }, 1, 0]);
  assert(letter.storedAt.getTime() > 0);
  assert.equal(await dead.count(), 3);
  await assert.rejects(dead.show(17), { code: "not_found" });
  await assert.rejects(dead.show(0), { code: "config", message: /field=sequence why=it is at least 1/ });
  for (const reversed of /** @type {[number, number][]} */ ([[3, 2], [0, 2]])) {
    await assert.rejects(dead.peek({ sequences: reversed }), { code: "config", message: /field=sequences why=the first/ });
  }
  await assert.rejects(bridge.deadLetters("NONE_DLQ"), { code: "not_found" });
  // @ts-expect-error there is no such group
  await assert.rejects(dead.list({ by: "colour" }), { code: "config", message: /by/ });
  // @ts-expect-error there is no such filter
  await assert.rejects(dead.peek({ colour: "red" }), { name: "TypeError", message: /'colour'/ });
  // @ts-expect-error options are an object
  await assert.rejects(dead.peek(3), { name: "TypeError", message: /options.*not number/ });
  // @ts-expect-error options are an object
  await assert.rejects(dead.list("reason"), { name: "TypeError", message: /options.*not string/ });
});

test("dead letters are redriven, parked, purged and brought back", async (t) => {
  const { bridge, dead } = await letters(t, 5);
  const dir = mkdtempSync(join(tmpdir(), "nats-bridge-letters-"));
  t.after(() => rmSync(dir, { recursive: true }));
  assert.deepEqual(await dead.redrive({ dryRun: true }), { redriven: 5, failedAgain: 0, stopped: null, lastSequence: 5 });
  const done = await dead.redrive({ limit: 2, ratePerSecond: 1_000 });
  assert.deepEqual([done.redriven, done.lastSequence], [2, 2]);
  const consumer = await bridge.consume("ORDERS", "billing");
  const delivery = await consumer.next({ timeoutMs: 5_000 });
  assert.deepEqual([delivery?.payload, delivery?.id], [Buffer.from([0, 255]), "o-0#r1"]);
  assert.equal(delivery?.header("Dead-Letter-Redrives"), "1");
  await delivery?.ack();
  await consumer.drain();
  assert.equal(await dead.park({ sequences: [3, 3] }), 1);
  assert.equal(await (await bridge.deadLetters("ORDERS_DLQ_PARKED")).count(), 1);
  assert.equal(await dead.export(join(dir, "all.jsonl")), 2);
  const file = join(dir, "gone.jsonl");
  assert.equal(await dead.purge(file), 2);
  assert.equal(await dead.count(), 0);
  await assert.rejects(dead.purge(file), { code: "config", message: /file/ });
  assert.deepEqual(await dead.bringBack(file), { stored: 2, duplicates: 0 });
  await assert.rejects(dead.redrive({ ratePerSecond: 0 }), { code: "config", message: /ratePerSecond/ });
  await assert.rejects(dead.redrive({ signal: AbortSignal.abort() }), { code: "aborted", landed: "no" });
});

test("a redrive whose signal is aborted ends in order, and is carried on", async (t) => {
  const { dead } = await letters(t, 10);
  const controller = new AbortController();
  const redriving = dead.redrive({ ratePerSecond: 5, maxFailedAgain: 1, signal: controller.signal });
  setTimeout(() => controller.abort(), 50);
  const { redriven, stopped } = await redriving;
  assert.equal(stopped, "cancelled");
  assert(redriven > 0 && redriven < 10);
  assert.equal((await dead.redrive({ ratePerSecond: 1_000 })).redriven, 10 - redriven);
});

test("a manifest is planned and applied", async (t) => {
  const { bridge } = await connected(t);
  const plan = await bridge.plan(MANIFEST);
  assert.deepEqual(
    plan.changes.map(({ object, action }) => [object, action]),
    [
      ["stream ORDERS", "create"],
      ["stream ORDERS_DLQ", "create"],
      ["consumer ORDERS/billing", "create"],
      ["bucket sessions", "create"],
    ],
  );
  assert.deepEqual(await bridge.apply(MANIFEST), plan);
  assert.deepEqual((await bridge.plan(MANIFEST)).changes, []);
  const [changed] = (await bridge.plan(MANIFEST.replace("10_000_000", "20_000_000"))).changes;
  assert.deepEqual([changed?.object, changed?.action, changed?.fields], ["bucket sessions", "update", ["max_bytes"]]);
  const wrong = MANIFEST.replace("unbounded = true", 'unbounded = true\nretention = "work_queue"');
  await assert.rejects(bridge.apply(wrong), { code: "conflict", message: /retention/ });
  await assert.rejects(bridge.plan("[[streams]\n"), { code: "config", message: /line 1/ });
  await bridge.ensureBucket("sessions", { maxBytes: 10_000_000 });
});

test("a lower limit removes nothing unless it is allowed to", async (t) => {
  const { bridge } = await connected(t);
  const stream = '[[streams]]\nname = "LOGS"\nsubjects = ["logs.>"]\nunbounded = true\ndiscard = "old"\n';
  const lower = `${stream}max_messages = 1\n`;
  await bridge.apply(stream);
  await bridge.publishMany(["one", "two", "three"].map((payload) => ({ subject: "logs.new", payload })));
  const refused = await bridge.apply(lower).then(() => assert.fail("it was applied"), (/** @type {unknown} */ error) => error);
  assert.ok(refused instanceof BridgeError, String(refused));
  assert.equal(refused.code, "would_remove");
  const told = { stream: "LOGS", limit: "max_messages", is: "none", should: "1", messages: "2" };
  assert.deepEqual({ ...refused.context, ...told }, refused.context);
  assert.deepEqual((await bridge.plan(stream)).changes, []);
  // @ts-expect-error there is no such option
  await assert.rejects(bridge.apply(lower, { allow: true }), { name: "TypeError", message: /'allow'/ });
  const [changed] = (await bridge.apply(lower, { allowRemoval: true })).changes;
  assert.deepEqual(changed?.fields, ["max_messages"]);
  assert.match(changed?.cost ?? "", /removes about 2 of 3 messages/);
});

test("health says what is missing and how the lag develops", async (t) => {
  const { bridge } = await connected(t);
  await bridge.apply(MANIFEST);
  const check = bridge.healthCheck({
    streams: ["ORDERS"],
    consumers: [["ORDERS", "billing"]],
    deadLetters: ["ORDERS_DLQ"],
    maxPending: 1,
  });
  const first = await check.look();
  assert.deepEqual([first.ready, first.problems, first.mirrors], [true, [], []]);
  assert.deepEqual([first.consumers[0]?.pending, first.consumers[0]?.pendingPerSecond], [0, null]);
  await bridge.publishMany(["one", "two"].map((payload) => ({ subject: "orders.new", payload })));
  const second = await check.look();
  assert.deepEqual([second.ready, second.consumers[0]?.pending], [false, 2]);
  assert.match(second.problems[0] ?? "", /2 messages waiting/);
  assert((second.consumers[0]?.pendingPerSecond ?? 0) > 0);
  assert.equal((await bridge.healthCheck({ streams: ["NOT_THERE"] }).look()).ready, false);
  // @ts-expect-error there is no such option
  assert.throws(() => bridge.healthCheck({ stream: ["ORDERS"] }), { name: "TypeError", message: /'stream'/ });
  // @ts-expect-error streams is an array
  assert.throws(() => bridge.healthCheck({ streams: 7 }), { name: "TypeError", message: /streams/ });
});

test("figures of the connection and of the process", async (t) => {
  const { bridge, server } = await connected(t, { publish: { breaker: { tripAfterMs: 100 }, ackWaitMs: 500, deadlineMs: 1_000 } });
  await bridge.ensureStream("ORDERS", { unbounded: true });
  await bridge.publish("orders.new", "one");
  const { apiLevel, ...stats } = bridge.stats();
  assert(apiLevel >= 0);
  assert.deepEqual(stats, {
    connected: true,
    connects: 1,
    disconnects: 0,
    closed: false,
    outstanding: 0,
    breaker: "closed",
    serverVersion: bridge.serverVersion,
  });
  assert.match(metrics(), /natsbridge_connects_total/);
  await server.stop();
  await assert.rejects(bridge.publish("orders.new", "two"), { code: "timeout" });
  await assert.rejects(bridge.publish("orders.new", "three"), { code: "breaker_open", landed: "no" });
  assert.equal(bridge.stats().connected, false);
});

test("a ledger lets an effect happen once", async (t) => {
  const { bridge } = await connected(t);
  const ledger = await bridge.ledger("billing-done", { keepMs: 60_000, leaseMs: 30_000 });
  const first = await ledger.begin("order-1");
  assert.deepEqual([first.state, (await ledger.begin("order-1")).state], ["first", "elsewhere"]);
  await first.done();
  const again = await ledger.begin("order-1");
  assert.equal(again.state, "done");
  for (const ended of [first, again]) {
    await assert.rejects(ended.done(), { code: "config", message: /entry/ });
  }
  await (await ledger.begin("order-2")).undo();
  assert.equal((await ledger.begin("order-2")).state, "first");
  await assert.rejects(ledger.begin(""), { code: "invalid_message" });
});

test("schemas are registered, compared and read", async (t) => {
  const { bridge } = await connected(t);
  const schemas = await bridge.schemas("SCHEMAS");
  const first = { type: "integer", maximum: 9 };
  assert.deepEqual(await schemas.register("order", first, { subjects: ["orders.>"] }), { version: 1, known: false });
  const [difference] = await schemas.differences("order", '{"type": "integer", "maximum": 8}');
  assert.deepEqual([difference?.path, difference?.rule], ["", "MAXIMUM_DECREASED"]);
  await assert.rejects(schemas.register("order", { type: "string" }), (/** @type {import("nats-bridge").BridgeError} */ error) => {
    return error.code === "conflict" && error.context["rule"] === "TYPE_CHANGED";
  });
  await assert.rejects(schemas.register("other", "{}", { format: "protobuf" }), { code: "config" });
  const item = (/** @type {string} */ type) => `syntax = "proto3"; message Item { ${type} n = 1; }`;
  await schemas.register("item", item("int32"), { format: "protobuf" });
  const [changed] = await schemas.differences("item", item("int64"), { format: "protobuf" });
  assert.deepEqual([changed?.path, changed?.rule], ["/Item/n", "FIELD_SAME_TYPE"]);
  await schemas.setCompatibility("order", "NONE");
  assert.equal((await schemas.register("order", { type: "string" })).version, 2);
  const { version, schema, compatibility, subjects } = await schemas.get("order");
  assert.deepEqual([version, schema, compatibility, subjects], [2, '{"type":"string"}', "NONE", ["orders.>"]]);
  assert.deepEqual(await schemas.names(), ["item", "order"]);
  await assert.rejects(schemas.get("order", 3), { code: "not_found" });
});
