// The steps of a cutover from within the process: rehearsal, backfill, drain, log; and several sidecars.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import amqplib from "amqplib";

import { BridgeError, Sidecar } from "nats-bridge";

import { RabbitMq } from "./rabbit.mjs";
import { eventually, NatsServer } from "./server.mjs";
import { start, Traffic } from "./traffic.mjs";

/** @type {RabbitMq} */
let rabbit;
before(async () => {
  rabbit = await RabbitMq.start();
});
after(() => rabbit.stop());

/**
 * Puts messages into a durable queue that nobody consumes.
 *
 * @param {string} url
 * @param {string} queue
 * @param {number} count
 */
async function backlog(url, queue, count) {
  const connection = await amqplib.connect(url);
  const channel = await connection.createConfirmChannel();
  await channel.assertQueue(queue, { durable: true });
  for (let number = 0; number < count; number += 1) {
    channel.sendToQueue(queue, Buffer.from(String(number)), { persistent: true });
  }
  await channel.waitForConfirms();
  await connection.close();
}

test("a rollback is rehearsed, what is left drains, and the log says who", async (t) => {
  const { url: nats } = await NatsServer.for(t);
  const sidecar = await start(t, { rabbit: await rabbit.freshVhost(), nats, trustDeclared: true });
  const traffic = await Traffic.start(sidecar.url);
  await backlog(sidecar.url, "left", 3);
  await sidecar.shadow();
  assert.equal(await sidecar.rehearsal(), undefined);
  await assert.rejects(sidecar.rehearse(), { code: "wrong_phase" });
  await assert.rejects(sidecar.rehearse({ stayMs: 1_500 }), { code: "config", message: /stayMs/ });
  await sidecar.weight(50, { force: true });
  await assert.rejects(sidecar.weight(100, { force: true }), { code: "not_rehearsed" });
  const rehearsal = await sidecar.rehearse({ stayMs: 1_000, by: "ann", reason: "before 100 %" });
  assert.deepEqual([rehearsal.passed, rehearsal.problems, rehearsal.running], [true, [], false]);
  assert.deepEqual([rehearsal.by, rehearsal.weightPercent, rehearsal.confirmed > 0], ["ann", 50, true]);
  assert.deepEqual(await sidecar.rehearsal(), rehearsal);
  assert.deepEqual((await sidecar.status()).rehearsal, rehearsal);
  assert.equal((await sidecar.weight(100, { force: true, by: "bob" })).phase, "cutover");
  await traffic.goesOn();
  await traffic.finish();

  /** @type {import("nats-bridge").Drain[]} */
  const seen = [];
  const drain = await sidecar.drain({ timeoutMs: 1_200, progress: (drain) => void seen.push(drain) });
  assert.deepEqual([drain.side, drain.drained, drain.left, drain.queues.length], ["rabbit", false, 3, 1]);
  assert.deepEqual([drain.queues[0]?.name, drain.queues[0]?.stuck], ["left", "not draining: no consumer"]);
  assert(seen.length >= 2);
  await assert.rejects(sidecar.drain({ signal: AbortSignal.timeout(300) }), { code: "aborted" });
  const connection = await amqplib.connect(sidecar.url);
  await (await connection.createChannel()).consume("left", () => {}, { noAck: true });
  assert.equal((await sidecar.drain({ timeoutMs: 30_000 })).drained, true);
  await connection.close();

  const log = await sidecar.log();
  const find = (/** @type {string} */ by) => log.find((entry) => entry.by === by && entry.outcome === "done");
  assert.deepEqual([find("ann")?.what, find("ann")?.reason], ["rollback rehearse", "before 100 %"]);
  assert.deepEqual([find("bob")?.what, find("bob")?.weightPercent, find("bob")?.from], ["weight 100", 100, ""]);
  assert(log.some((entry) => entry.what === "weight 100" && entry.outcome === "refused"));
  assert.deepEqual(await sidecar.log({ last: 1 }), log.slice(0, 1));
  await assert.rejects(sidecar.log({ last: 1_001 }), { code: "config", message: /last/ });
});

test("what lay in RabbitMQ before shadow gets copies, after a dry run", async (t) => {
  const { url: nats } = await NatsServer.for(t);
  const sidecar = await start(t, { rabbit: await rabbit.freshVhost(), nats, trustDeclared: true });
  await backlog(sidecar.url, "orders", 20);
  await backlog(sidecar.url, "other", 2);
  await assert.rejects(sidecar.backfill(), { code: "wrong_phase" });
  await sidecar.shadow();
  assert.equal(await sidecar.backfillReport(), undefined);
  await assert.rejects(sidecar.backfill({ queues: ["nothing*"] }), { code: "config", message: /nothing/ });
  const looked = await sidecar.backfill({ dryRun: true });
  assert.deepEqual(
    [looked.dryRun, looked.left, looked.queues.map(({ name, held, state }) => [name, held, state])],
    [true, 22, [["orders", 20, "waiting"], ["other", 2, "waiting"]]],
  );
  /** @type {import("nats-bridge").BackfillReport[]} */
  const seen = [];
  const progress = (/** @type {import("nats-bridge").BackfillReport} */ report) => void seen.push(report);
  const report = await sidecar.backfill({ queues: ["ord*"], by: "ann", progress });
  assert.deepEqual([report.done, report.error, report.left, report.by], [true, undefined, 0, "ann"]);
  assert.deepEqual(report.queues.map(({ name, copied, had }) => [name, copied, had]), [["orders", 20, 0]]);
  assert(seen.length > 0 && seen.every(({ running }) => running));
  const again = await sidecar.backfill();
  assert.deepEqual(again.queues.map(({ name, copied, had }) => [name, copied, had]), [["orders", 0, 20], ["other", 2, 0]]);
  assert.deepEqual(await sidecar.backfillReport(), again);
  const { backfill } = await sidecar.status();
  assert.deepEqual([backfill?.copied, backfill?.had, backfill?.queuesDone], [2, 20, 2]);
});

test("several sidecars share an account, and another one leads when the first stops", async (t) => {
  const { url: nats } = await NatsServer.for(t);
  const options = { rabbit: await rabbit.freshVhost(), nats, trustDeclared: true, shared: true, httpToken: "secret" };
  const first = await start(t, options);
  const second = await start(t, options);
  const stranger = await start(t, { ...options, httpToken: "another" });
  const traffic = await Traffic.start(second.url);
  await traffic.goesOn();
  assert(second.connections >= 1);
  assert.equal((await second.shadow({ by: "ann" })).phase, "shadow");
  assert.equal((await first.status()).phase, "shadow");
  await eventually(async () => (await second.status()).sidecars?.length === 3, "all three are known");
  const known = (await second.status()).sidecars ?? [];
  assert.deepEqual(known.map(({ leads }) => leads), [true, false, false]);
  assert.equal(known[0]?.amqp, `127.0.0.1:${first.address.port}`);
  await assert.rejects(second.weight(5), { code: "gate" });
  await assert.rejects(stranger.rollback(), { code: "denied", message: /token/ });
  await second.weight(50, { force: true, unrehearsed: true });
  await traffic.goesOn();
  assert((await second.rehearse({ stayMs: 1_000 })).passed);
  assert((await second.log()).some(({ what, by }) => what === "shadow" && by === "ann"));
  await traffic.finish();
  await stranger.stop();
  await first.stop();
  assert.equal(first.state, "stopped");
  await assert.rejects(first.status(), { code: "closed" });
  const more = await Traffic.start(second.url);
  await more.goesOn();
  assert.deepEqual([(await second.status()).weightPercent, second.state], [50, "running"]);
  await more.finish();
});

test("who does not share is a conflict, and options of sharing need it", async (t) => {
  const { url: nats } = await NatsServer.for(t);
  const options = { rabbit: await rabbit.freshVhost(), nats };
  await assert.rejects(Sidecar.start({ ...options, httpToken: "secret" }), { code: "config", message: /httpToken/ });
  await assert.rejects(Sidecar.start({ ...options, advertise: "host" }), { code: "config", message: /advertise/ });
  await start(t, { ...options, shared: true });
  await assert.rejects(Sidecar.start(options), (error) => error instanceof BridgeError && error.code === "conflict" && "holder" in error.context);
});
