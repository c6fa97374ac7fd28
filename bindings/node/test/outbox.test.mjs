// The outbox on disk.

import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { connect, openOutbox } from "nats-bridge";

import { NatsServer } from "./server.mjs";

/**
 * A directory, removed after the test.
 *
 * @param {import("node:test").TestContext} t
 */
function directory(t) {
  const dir = mkdtempSync(join(tmpdir(), "nats-bridge-outbox-"));
  t.after(() => rmSync(dir, { recursive: true }));
  return dir;
}

test("an outbox takes messages without NATS and publishes them in order", async (t) => {
  const path = join(directory(t), "orders.outbox");
  const first = await openOutbox(path, { maxEntries: 5, region: "eu" });
  const queued = await first.put("orders.new", "0", { id: "o-0", headers: { tenant: ["acme"] } });
  assert.equal(queued.id, "o-0");
  const many = await first.putMany([
    { subject: "orders.new", payload: "1" },
    { subject: "orders.new", payload: Buffer.from("2") },
  ]);
  assert(many.every(({ number, id }) => number > queued.number && id.startsWith("msg_eu_")));
  const { waiting, refused, bytes, oldestMs } = first.status();
  assert.deepEqual([waiting, refused, bytes > 0, oldestMs !== null], [3, 0, true, true]);
  const three = ["a", "b", "c"].map((payload) => ({ subject: "orders.new", payload }));
  await assert.rejects(first.putMany(three), { code: "outbox_full", landed: "no", isTemporary: true, message: /bound=maxEntries/ });
  await assert.rejects(openOutbox(path), { code: "in_use" });
  await assert.rejects(first.drain({ budgetMs: 0 }), { code: "timeout" });
  await assert.rejects(first.close({ budgetMs: 0 }), { code: "timeout", context: { waiting: "3" } });

  // It is in the file.
  const server = await NatsServer.for(t);
  const bridge = await connect(server.url);
  t.after(() => bridge.close({ budgetMs: 0 }).catch(() => {}));
  await bridge.ensureStream("ORDERS", { subjects: ["orders.>"], unbounded: true });
  const second = await openOutbox(path);
  await second.start(bridge);
  await assert.rejects(second.start(bridge), { code: "conflict" });
  await second.drain();
  const consumer = await bridge.consume("ORDERS", "billing");
  for (const payload of ["0", "1", "2"]) {
    const delivery = await consumer.next({ timeoutMs: 5_000 });
    assert.equal(delivery?.payload.toString(), payload);
    await delivery?.ack();
  }
  await consumer.drain();
  await second.close();
  await assert.rejects(second.put("orders.new", "x"), { code: "closed" });
});

test("what is refused is kept and listed", async (t) => {
  const server = await NatsServer.for(t);
  const bridge = await connect(server.url);
  t.after(() => bridge.close({ budgetMs: 0 }).catch(() => {}));
  const outbox = await openOutbox(join(directory(t), "a"), { noStreamWaitMs: 50, firstPauseMs: 10, maxPauseMs: 50 });
  await outbox.start(bridge);
  const { number } = await outbox.put("nobody.listens", Buffer.from([0, 255]), { id: "o-1", headers: { tenant: "acme" } });
  const other = await outbox.put("nobody.hears", "2");
  await outbox.drain({ budgetMs: 20_000 });
  const [one] = await outbox.refused({ first: number, limit: 1 });
  assert(one !== undefined);
  assert.deepEqual([one.id, one.subject, one.payload, one.reason], ["o-1", "nobody.listens", Buffer.from([0, 255]), "not_found"]);
  assert.deepEqual([one.headers, one.landed, one.refusedAt >= one.putAt], [[["tenant", "acme"]], "no", true]);
  await bridge.ensureStream("NOBODY", { subjects: ["nobody.>"], unbounded: true });
  assert((await outbox.retry(number)) > other.number);
  await outbox.discard(other.number);
  await assert.rejects(outbox.discard(other.number), { code: "not_found" });
  await outbox.drain();
  assert.deepEqual(await outbox.refused(), []);
  await outbox.close();
});

test("wrong files and options are named", async (t) => {
  const dir = directory(t);
  writeFileSync(join(dir, "notes.txt"), "Buy milk.\n".repeat(1_000));
  await assert.rejects(openOutbox(join(dir, "notes.txt")), { code: "corrupt", message: /notes\.txt/ });
  await assert.rejects(openOutbox(join(dir, "no", "such", "directory")), { code: "disk" });
  await assert.rejects(openOutbox(join(dir, "a"), { maxEntries: 0 }), { code: "config", message: /field=maxEntries/ });
  // @ts-expect-error there is no such option
  await assert.rejects(openOutbox(join(dir, "a"), { maxSize: 1 }), { name: "TypeError", message: /'maxSize'/ });
  const outbox = await openOutbox(join(dir, "a"));
  await assert.rejects(outbox.put("orders.*", "1"), { code: "invalid_message" });
  // @ts-expect-error a payload is bytes or text
  await assert.rejects(outbox.put("orders.new", 7), { name: "TypeError", message: /payload/ });
  await outbox.close();
});

test("an outbox that is closed already is closed", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "nats-bridge-test-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const outbox = await openOutbox(join(folder, "outbox"));
  await outbox.put("orders.new", "one");
  await assert.rejects(outbox.close({ budgetMs: 100 }), { code: "timeout" });
  await outbox.close({ budgetMs: 100 });
});
