import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { inspect } from "node:util";

import * as esm from "nats-bridge";
import { AmqpListener, BridgeError, connect, openOutbox } from "nats-bridge";

import { NatsServer } from "./server.mjs";

test("require and import give the same classes", () => {
  const cjs = /** @type {Record<string, unknown>} */ (createRequire(import.meta.url)("nats-bridge"));
  const names = Object.keys(cjs).filter((name) => name !== "__esModule");
  assert.deepEqual(names.toSorted(), Object.keys(esm).toSorted());
  for (const name of names) {
    assert.equal(cjs[name], /** @type {Record<string, unknown>} */ (esm)[name]);
  }
});

test("nobody at the address is unreachable and temporary", async () => {
  await assert.rejects(connect("nats://127.0.0.1:1", { connectTimeoutMs: 500 }), (error) => {
    assert(error instanceof BridgeError && error instanceof Error);
    assert.deepEqual([error.name, error.code, error.landed, error.isTemporary], ["BridgeError", "unreachable", "no", true]);
    assert.match(error.stack ?? "", /connect\.test\.mjs/);
    return true;
  });
});

test("a bad option is named", async (t) => {
  const { url } = await NatsServer.for(t);
  // @ts-expect-error there is no such option
  await assert.rejects(connect(url, { nam: "x" }), { name: "TypeError", message: /'nam'/ });
  // @ts-expect-error there is no such option
  await assert.rejects(connect(url, { publish: { window: 3 } }), { name: "TypeError", message: /'publish.window'/ });
  // @ts-expect-error a name is a string
  await assert.rejects(connect(url, { name: 3 }), { name: "TypeError", message: /name/ });
  await assert.rejects(connect(url, { connectTimeoutMs: -1 }), { code: "config", message: /connectTimeoutMs/ });
  await assert.rejects(connect(url, { connectTimeoutMs: NaN }), { name: "TypeError", message: /connectTimeoutMs/ });
  await assert.rejects(connect(url, { publish: { maxInFlight: 0 } }), { code: "config", message: /field=publish.maxInFlight why=it is 1 to/ });
  await assert.rejects(connect(url, { user: "me" }), { code: "config", message: /password/ });
});

test("a login comes from a file that is read for each connection", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "nats-bridge-login-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const file = join(folder, "secret");
  writeFileSync(file, "wrong\n");
  const one = await NatsServer.for(t, "--user", "orders", "--pass", "right");
  await assert.rejects(connect(one.url, { user: "orders", passwordFile: file }), { code: "denied" });
  writeFileSync(file, "right\n");
  const two = await NatsServer.for(t, "--auth", "right");
  for (const bridge of [
    await connect(one.url, { user: "orders", passwordFile: file }),
    await connect(two.url, { tokenFile: file }),
  ]) {
    await bridge.ensureStream("ORDERS", { unbounded: true });
    await bridge.close();
  }
  await assert.rejects(connect(two.url, { nkeyFile: file }), { code: "config", message: /nkey/ });
});

test("two ways to log in, or half of one, are refused", async (t) => {
  const { url } = await NatsServer.for(t);
  await assert.rejects(connect(url, { token: "t", nkeyFile: "f" }), { code: "config", message: /field=nkeyFile.*token is given too/ });
  await assert.rejects(connect(url, { passwordFile: "f" }), { code: "config", message: /field=passwordFile.*user/ });
});

test("several servers are an array or separated by commas", async (t) => {
  const { url } = await NatsServer.for(t);
  for (const servers of [[url, "nats://127.0.0.1:1"], `nats://127.0.0.1:1, ${url}`]) {
    const bridge = await connect(servers);
    assert.match(bridge.serverVersion, /^2\./);
    await bridge.close();
  }
});

test("a closed bridge says so, and closing twice is fine", async (t) => {
  const { url } = await NatsServer.for(t);
  const bridge = await connect(url);
  await bridge.ensureStream("ORDERS", { unbounded: true });
  await bridge.close();
  assert.deepEqual([bridge.stats().closed, bridge.stats().connected], [true, false]);
  await bridge.close();
  await assert.rejects(bridge.publish("orders.new", "one"), { code: "closed" });
});

test("a wrong stream is refused and names the option", async (t) => {
  const { url } = await NatsServer.for(t);
  const bridge = await connect(url);
  await assert.rejects(bridge.ensureStream("ORDERS"), { code: "config", message: /field=maxBytes/ });
  // @ts-expect-error replicas is a number
  await assert.rejects(bridge.ensureStream("ORDERS", { replicas: "three" }), { name: "TypeError", message: /option 'replicas'/ });
  // @ts-expect-error there is no such option
  await assert.rejects(bridge.ensureStream("ORDERS", { subject: "x" }), { name: "TypeError", message: /'subject'/ });
  await bridge.ensureStream("ORDERS", { unbounded: true });
  await bridge.ensureStream("ORDERS", { unbounded: true });
  await assert.rejects(bridge.ensureStream("ORDERS", { unbounded: true, retention: "work_queue" }), { code: "conflict" });
  await assert.rejects(bridge.ensureConsumer("NOT_THERE", "billing"), { code: "not_found" });
  await bridge.close();
});

test("objects say what they are, and no secret", async (t) => {
  const { url } = await NatsServer.for(t);
  const bridge = await connect(url);
  await bridge.ensureStream("ORDERS", { subjects: ["orders.>"], unbounded: true });
  assert.match(inspect(bridge), /^Bridge \{ connected, server: 2\./);
  await bridge.publish("orders.new", "one", { id: "o-1" });
  const consumer = await bridge.consume("ORDERS", "billing");
  const delivery = await consumer.next();
  assert.equal(inspect(delivery), "Delivery { orders.new, sequence: 1, attempt: 1, id: o-1, 3 bytes }");
  assert.equal(inspect(consumer), "Consumer { ORDERS/billing, running, held: 1 }");
  await delivery?.ack();
  const folder = mkdtempSync(join(tmpdir(), "nats-bridge-test-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const outbox = await openOutbox(join(folder, "outbox"));
  assert.match(inspect(outbox), /^Outbox \{ waiting: 0, refused: 0, bytes: \d+ \}$/);
  await outbox.close();
  await bridge.close();
  assert(inspect(bridge).startsWith("Bridge { closed, "), inspect(bridge));
  const listener = await AmqpListener.start({ nats: url, users: { app: "secret" } });
  assert.match(inspect(listener), /^AmqpListener \{ running, 127\.0\.0\.1:\d+, connections: 0 \}$/);
  await listener.stop();
});

test("a value of another type is named, with what was given and what is wanted", async (t) => {
  const { url } = await NatsServer.for(t);
  const named = (/** @type {RegExp} */ message) => ({ name: "TypeError", message });
  // @ts-expect-error it is a number
  await assert.rejects(connect(url, { connectTimeoutMs: "5s" }), named(/^option 'connectTimeoutMs': a whole number is wanted, not string$/));
  // @ts-expect-error it is a number
  await assert.rejects(connect(url, { publish: { attempts: true } }), named(/^option 'publish.attempts': a whole number is wanted, not boolean true$/));
  const bridge = await connect(url);
  t.after(() => bridge.close());
  await bridge.ensureStream("ORDERS", { unbounded: true });
  // @ts-expect-error they are strings
  await assert.rejects(bridge.consume("ORDERS", "billing", { filterSubjects: [7] }), named(/^option 'filterSubjects': an array of strings is wanted, not an array$/));
  // @ts-expect-error it is a number
  await assert.rejects(bridge.consume("ORDERS", "billing", { retry: { attempts: "3" } }), named(/^option 'retry.attempts': a whole number is wanted/));
  // @ts-expect-error it is a string
  await assert.rejects(bridge.consume("ORDERS", 7), named(/^argument 'name': a string is wanted, not number 7$/));
  const consumer = await bridge.consume("ORDERS", "billing");
  // @ts-expect-error it is a number
  await assert.rejects(consumer.next({ timeoutMs: "1" }), named(/^option 'timeoutMs': a whole number is wanted/));
});
