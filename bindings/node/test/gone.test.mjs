// A server that is killed, or hangs: every call ends with a typed error, and the process ends with its script.

import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { run } from "./process.mjs";
import { NatsServer } from "./server.mjs";

const SCRIPT = `
import assert from "node:assert/strict";
import { AmqpListener, connect, openOutbox } from "nats-bridge";
const [url, server, how, path] = process.argv.slice(1);
const bridge = await connect(url, { requestTimeoutMs: 1_000, publish: { deadlineMs: 1_500 } });
await bridge.ensureStream("ORDERS", { unbounded: true });
for (let n = 0; n < 3; n++) await bridge.publish("orders.new", String(n));
const consumer = await bridge.consume("ORDERS", "billing");
const held = await consumer.next({ timeoutMs: 10_000 });
const letters = await bridge.deadLetters("ORDERS_DLQ");
const ledger = await bridge.ledger("LEDGER", { keepMs: 60_000, leaseMs: 60_000 });
const check = bridge.healthCheck({ streams: ["ORDERS"] });
const outbox = await openOutbox(path);
await outbox.start(bridge);
const listener = await AmqpListener.start({ nats: url });
process.kill(Number(server), how);
assert(!bridge.stats().closed);
// A signal may reach the server after the next answer has left it.
for (const until = Date.now() + 10_000; (await check.look()).ready; ) assert(Date.now() < until, "ready");
await outbox.put("orders.new", "kept");
await listener.stop();
const away = ["timeout", "unreachable"];
// Not awaited: it keeps the process no longer than its time.
const left = bridge.publish("orders.new", "not awaited").catch((error) => error.code);
for (const [name, call, codes] of [
  ["publish", () => bridge.publish("orders.new", "x"), ["timeout"]],
  ["ensureStream", () => bridge.ensureStream("OTHER", { unbounded: true }), away],
  ["consume", () => bridge.consume("ORDERS", "other"), away],
  ["deadLetters", () => bridge.deadLetters("ORDERS_DLQ"), away],
  ["count", () => letters.count(), away],
  ["ledger", () => ledger.begin("o-1"), away],
  ["drain", () => consumer.drain({ budgetMs: 500 }), ["timeout"]],
  ["ack", () => held.ack({ confirmed: true }), ["timeout"]],
  ["outbox", () => outbox.drain({ budgetMs: 500 }), ["timeout"]],
  ["close outbox", () => outbox.close({ budgetMs: 500 }), ["timeout"]],
]) {
  const code = await call().then(() => "nothing", (error) => error.code);
  assert(codes.includes(code), name + ": " + code);
}
assert.equal(await left, "timeout");
const [outcome] = await bridge.publishMany([{ subject: "orders.new", payload: "x" }]);
assert.deepEqual([outcome.code, outcome.landed], ["timeout", "unknown"]);
assert.equal(await consumer.next({ timeoutMs: 10 }), undefined);
for await (const delivery of consumer) assert.fail(delivery.subject);
await bridge.close({ budgetMs: 1_000 });
await assert.rejects(bridge.publish("orders.new", "x"), { code: "closed", landed: "no" });
console.log("through");
`;

for (const how of ["SIGKILL", "SIGSTOP"]) {
  test(`every call ends after ${how} of the server, and so does the process`, async (t) => {
    const server = await NatsServer.for(t);
    const folder = mkdtempSync(join(tmpdir(), "nats-bridge-test-"));
    t.after(() => rmSync(folder, { recursive: true, force: true }));
    const { end, out } = await run(SCRIPT, server.url, String(server.pid), how, join(folder, "outbox"));
    assert.deepEqual({ end, out }, { end: 0, out: "through\n" });
  });
}
