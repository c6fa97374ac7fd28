import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import * as esm from "nats-bridge";
import { BridgeError, connect } from "nats-bridge";

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
  await assert.rejects(connect(url, { publish: { window: 3 } }), { name: "TypeError", message: /'window'/ });
  // @ts-expect-error a name is a string
  await assert.rejects(connect(url, { name: 3 }), { name: "TypeError", message: /name/ });
  await assert.rejects(connect(url, { connectTimeoutMs: -1 }), { code: "config", message: /connectTimeoutMs/ });
  await assert.rejects(connect(url, { connectTimeoutMs: NaN }), { code: "config", message: /connectTimeoutMs/ });
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
