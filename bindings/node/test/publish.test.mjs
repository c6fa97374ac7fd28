import assert from "node:assert/strict";
import { test } from "node:test";

import { BridgeError, connect } from "nats-bridge";

import { NatsServer } from "./server.mjs";

/** @param {import("nats-bridge").Bridge} bridge */
async function orders(bridge) {
  await bridge.ensureStream("ORDERS", { subjects: ["orders.>"], maxBytes: 1 << 26, maxAgeMs: 24 * 3600 * 1000 });
}

test("publish says where the message is stored", async (t) => {
  const server = await NatsServer.for(t);
  const bridge = await connect(server.url);
  await orders(bridge);
  const first = await bridge.publish("orders.new", "one", { id: "o-1" });
  const second = await bridge.publish("orders.new", Buffer.from("two"), { headers: { tenant: "acme", tag: ["a", "b"] } });
  assert.deepEqual(first, { stream: "ORDERS", sequence: 1, duplicate: false, id: "o-1", landed: "yes" });
  assert.equal(second.sequence, 2);
  await bridge.close();
});

test("a resend with the same id is stored once", async (t) => {
  const server = await NatsServer.for(t);
  const bridge = await connect(server.url);
  await orders(bridge);
  await bridge.publish("orders.new", "one", { id: "o-1" });
  assert.deepEqual(await bridge.publish("orders.new", "one", { id: "o-1" }), {
    stream: "ORDERS",
    sequence: 1,
    duplicate: true,
    id: "o-1",
    landed: "yes",
  });
  assert.equal((await bridge.publish("orders.new", "one", { id: "o-2" })).sequence, 2);
  await bridge.close();
});

test("without an id one is made, and false sends none", async (t) => {
  const server = await NatsServer.for(t);
  const bridge = await connect(server.url);
  await orders(bridge);
  assert.match((await bridge.publish("orders.new", "one")).id ?? "", /^msg_/);
  assert.equal((await bridge.publish("orders.new", "one", { id: false })).id, undefined);
  await bridge.close();
});

test("the payload is what it was when publish was called", async (t) => {
  const server = await NatsServer.for(t);
  const bridge = await connect(server.url);
  await orders(bridge);
  const payload = Buffer.from("before");
  const stored = bridge.publish("orders.new", payload);
  payload.fill("x");
  assert.equal((await stored).sequence, 1);
  await bridge.close();
});

test("a message that cannot be sent names what is wrong with it", async (t) => {
  const server = await NatsServer.for(t);
  const bridge = await connect(server.url);
  await orders(bridge);
  await assert.rejects(bridge.publish("orders.*", "one"), { code: "invalid_message", landed: "no", message: /subject/ });
  await assert.rejects(bridge.publish("orders.new", "one", { headers: { "Nats-Msg-Id": "x" } }), {
    code: "invalid_message",
    message: /Nats-Msg-Id/,
  });
  await assert.rejects(bridge.publish("orders.new", "one", { id: "" }), { code: "invalid_message", message: /id/ });
  await assert.rejects(bridge.publish("orders.new", new Uint8Array(2 << 20)), { code: "too_large" });
  // @ts-expect-error a payload is bytes or a string
  await assert.rejects(bridge.publish("orders.new", 7), { name: "TypeError", message: /payload/ });
  // @ts-expect-error a header's value is a string
  await assert.rejects(bridge.publish("orders.new", "one", { headers: { a: 1 } }), { name: "TypeError", message: /'a'/ });
  for (const headers of [new Map([["trace", "1"]]), "trace: 1", [["trace", "1"]]]) {
    // @ts-expect-error headers are a plain object
    await assert.rejects(bridge.publish("orders.new", "one", { headers }), { name: "TypeError", message: /headers/ });
  }
  // @ts-expect-error an id is a string
  await assert.rejects(bridge.publish("orders.new", "one", { id: 7 }), { name: "TypeError", message: /^id/ });
  // @ts-expect-error there is no such option
  await assert.rejects(bridge.publish("orders.new", "one", { ids: "7" }), { name: "TypeError", message: /'ids'/ });
  await bridge.close();
});

test("a subject that no stream takes is not found at once, and nothing landed", async (t) => {
  const server = await NatsServer.for(t);
  const bridge = await connect(server.url, { publish: { noStreamWaitMs: 50_000 } });
  const began = Date.now();
  await assert.rejects(bridge.publish("nobody.listens", "one"), (error) => {
    assert(error instanceof BridgeError);
    assert.deepEqual([error.code, error.landed, error.context["subject"]], ["not_found", "no", "nobody.listens"]);
    assert.match(error.message, /subject=nobody.listens/);
    assert.match(error.message, /ensureStream/);
    return true;
  });
  assert(Date.now() - began < 20_000);
  await bridge.close();
});

test("a full stream is rejected, and nothing landed", async (t) => {
  const server = await NatsServer.for(t);
  const bridge = await connect(server.url);
  await bridge.ensureStream("SMALL", { maxMessages: 1, unbounded: true });
  await bridge.publish("small.a", "one");
  await assert.rejects(bridge.publish("small.a", "two"), { code: "rejected", landed: "no" });
  await bridge.close();
});

test("a server that is gone leaves the outcome unknown", async (t) => {
  const server = await NatsServer.for(t);
  const bridge = await connect(server.url, { publish: { deadlineMs: 500, ackWaitMs: 200 } });
  await orders(bridge);
  await bridge.publish("orders.new", "one", { id: "o-1" });
  await server.stop();
  await assert.rejects(bridge.publish("orders.new", "two", { id: "o-2" }), (error) => {
    assert(error instanceof BridgeError);
    assert.deepEqual([error.code, error.landed, error.context.msgId], ["timeout", "unknown", "o-2"]);
    assert.match(error.message, / msgId=o-2( |$)/);
    assert.deepEqual(Object.keys(error.context).filter((key) => key.includes("_")), []);
    return true;
  });
  await bridge.close();
});

test("a server that comes back gets what was published meanwhile", async (t) => {
  const server = await NatsServer.for(t);
  const bridge = await connect(server.url, { reconnectPauseMaxMs: 100 });
  await orders(bridge);
  await server.stop();
  const stored = bridge.publish("orders.new", "one", { id: "o-1" });
  await server.start();
  assert.equal((await stored).sequence, 1);
  await bridge.close();
});

test("half of a character is refused by name, for what would be put in its place makes different ids alike", async (t) => {
  const { url } = await NatsServer.for(t);
  const bridge = await connect(url);
  t.after(() => bridge.close());
  await bridge.ensureStream("ORDERS", { subjects: ["orders.>"], unbounded: true });
  const half = "pay-\ud800";
  for (const [field, publish] of /** @type {[string, () => Promise<unknown>][]} */ ([
    ["subject", () => bridge.publish(`orders.${half}`, "one")],
    ["payload", () => bridge.publish("orders.new", half)],
    ["id", () => bridge.publish("orders.new", "one", { id: half })],
    ["headers['tenant']", () => bridge.publish("orders.new", "one", { headers: { tenant: ["a", half] } })],
  ])) {
    await assert.rejects(publish(), (error) => error instanceof BridgeError && error.code === "invalid_message" && error.context["field"] === field);
  }
  const many = bridge.publishMany([{ subject: "orders.new", payload: "one" }, { subject: "orders.new", payload: half }]);
  await assert.rejects(many, { code: "invalid_message", message: /^messages\[1\]: / });
  assert.equal((await bridge.publish("orders.new", "whole \u{1f375}", { id: "pay-\u{1f375}" })).sequence, 1, "nothing was stored before");
  // @ts-expect-error it is no signal
  await assert.rejects(bridge.publish("orders.new", "one", { signal: 5 }), { name: "TypeError", message: /'signal': an AbortSignal is wanted/ });
});

test("what is wrong with one of many is said with its place", async (t) => {
  const { url } = await NatsServer.for(t);
  const bridge = await connect(url);
  t.after(() => bridge.close());
  await bridge.ensureStream("ORDERS", { subjects: ["orders.>"], unbounded: true });
  const good = { subject: "orders.new", payload: "one" };
  const [, refused] = await bridge.publishMany([good, { subject: "or ders", payload: "two" }]);
  assert(refused instanceof BridgeError && refused.code === "invalid_message");
  assert.deepEqual([refused.context["index"], refused.message.startsWith("messages[1]: ")], ["1", true]);
  // @ts-expect-error it is no payload
  await assert.rejects(bridge.publishMany([good, { subject: "orders.new", payload: 7 }]), { name: "TypeError", message: /^messages\[1\]: payload/ });
});
