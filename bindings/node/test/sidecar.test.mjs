// amqplib, unmodified, through the sidecar inside the process, on a real RabbitMQ and a real nats-server.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { after, before, test } from "node:test";

import { AmqpListener, BridgeError, Sidecar } from "nats-bridge";

import { run } from "./process.mjs";
import { RabbitMq } from "./rabbit.mjs";
import { eventually, NatsServer } from "./server.mjs";
import { start, Traffic } from "./traffic.mjs";

/** @type {RabbitMq} */
let rabbit;
before(async () => {
  rabbit = await RabbitMq.start();
});
after(() => rabbit.stop());

test("amqplib goes to JetStream and back, nothing is lost, and nobody else takes the account", async (t) => {
  const { url: nats } = await NatsServer.for(t);
  const vhost = await rabbit.freshVhost();
  const sidecar = await start(t, {
    rabbit: vhost,
    nats,
    rabbitManagement: rabbit.management,
    gateSoakMs: 0,
    gateMessages: 20,
    gateLatencyFactor: 1000,
  });
  // These wait for a while, in case the first one is dead.
  const seconds = Promise.allSettled([Sidecar.start({ rabbit: vhost, nats }), AmqpListener.start({ nats })]);
  const traffic = await Traffic.start(sidecar.url);
  await traffic.goesOn();
  assert.equal((await sidecar.status()).phase, "observe");
  await assert.rejects(sidecar.weight(50), (error) => {
    assert(error instanceof BridgeError);
    assert.deepEqual([error.code, error.landed], ["wrong_phase", "no"]);
    assert.match(error.context["fix"] ?? "", /shadow/);
    return true;
  });

  const adopted = await sidecar.shadow({ by: "me", reason: "compare" });
  assert.deepEqual([adopted.changed, adopted.phase, adopted.by, adopted.reason], [true, "shadow", "me", "compare"]);
  await traffic.goesOn();
  await eventually(async () => (await sidecar.gate()).mayGoOn, "the gate says yes", 40);
  const { parity, unmapped } = await sidecar.status();
  assert.deepEqual([parity.length, parity[0]?.queue, parity[0]?.missing, parity[0]?.extra, unmapped], [1, "billing", 0, 0, []]);
  assert((parity[0]?.matched ?? 0) >= 20);

  assert.equal((await sidecar.weight(50)).phase, "canary");
  await traffic.goesOn();
  assert.equal((await sidecar.weight(100, { force: true, unrehearsed: true })).phase, "cutover");
  await traffic.goesOn();
  const { faults, sides, weightPercent } = await sidecar.status();
  assert.deepEqual(faults, { corrupted: 0, dropped: 0, reordered: 0, duplicated: 0 });
  assert(sides.nats.connected && sides.nats.delivered >= 40 && weightPercent === 100);

  const back = await sidecar.rollback({ reason: "enough" });
  assert.deepEqual([back.phase, back.weightPercent], ["shadow", 0]);
  await traffic.goesOn();
  await traffic.finish();
  const changes = await sidecar.changes();
  assert.deepEqual(changes.slice(0, 3).map((change) => change.weightPercent), [0, 100, 50]);

  for (const second of await seconds) {
    assert(second.status === "rejected" && second.reason instanceof BridgeError);
    assert(second.reason.code === "conflict" && "holder" in second.reason.context);
  }
});

test("the gate says no with reasons, and refusals are typed", async (t) => {
  const { url: nats } = await NatsServer.for(t);
  const sidecar = await start(t, { rabbit: await rabbit.freshVhost(), nats, trustDeclared: true });
  assert.equal((await sidecar.shadow()).changed, true);
  assert.equal((await sidecar.shadow()).changed, false);
  const verdict = await sidecar.gate();
  assert(!verdict.mayGoOn && verdict.reasons.length > 0);
  await assert.rejects(sidecar.weight(5), { code: "gate" });
  await assert.rejects(sidecar.weight(101), { code: "config", message: /percent/ });
  await assert.rejects(sidecar.detach(), { code: "wrong_phase" });
  await sidecar.stop();
  await assert.rejects(sidecar.shadow(), { code: "closed" });
});

test("what is wrong is a typed error that names the option", async (t) => {
  const { url: nats } = await NatsServer.for(t);
  const url = await rabbit.freshVhost();
  const named = (/** @type {string} */ field) => (/** @type {unknown} */ error) =>
    error instanceof BridgeError && error.code === "config" && error.context["field"] === field;
  await assert.rejects(Sidecar.start({ rabbit: "http://nowhere", nats }), named("rabbit"));
  await assert.rejects(Sidecar.start({ rabbit: url, nats, otlpEndpoint: "collector:4317" }), named("otlpEndpoint"));
  // @ts-expect-error it is a number
  await assert.rejects(Sidecar.start({ rabbit: url, nats, fenceTimeoutMs: "long" }), { name: "TypeError", message: /'fenceTimeoutMs'/ });
  // @ts-expect-error there is no such option
  await assert.rejects(Sidecar.start({ rabbit: url, nats, weight: 7 }), { name: "TypeError", message: /'weight'/ });
  const nobody = { rabbit: url.replace("guest:guest", "nobody:nothing"), nats };
  await assert.rejects(Sidecar.start(nobody), { code: "denied", message: /RabbitMQ refused user 'nobody'/ });
});

test("a sidecar alone does not keep the process running, and exit is clean", async (t) => {
  const { url } = await NatsServer.for(t);
  const script = `import { Sidecar } from "nats-bridge";
     const sidecar = await Sidecar.start({ nats: process.argv[1], rabbit: ${JSON.stringify(await rabbit.freshVhost())} });
     console.log((await sidecar.status()).phase);`;
  assert.deepEqual(await run(script, url), { end: 0, out: "observe\n" });
});

test("the code of the README that needs RabbitMQ runs", async (t) => {
  const { url } = await NatsServer.for(t);
  const readme = readFileSync(join(dirname(createRequire(import.meta.url).resolve("nats-bridge/package.json")), "README.md"), "utf8");
  const [block, ...others] = readme.split("```js\n").filter((block) => block.includes(":5672"));
  assert(block !== undefined && others.length === 0);
  const script = (block.split("```")[0] ?? "")
    .replace("nats://127.0.0.1:4222", url)
    .replace("amqp://guest:guest@127.0.0.1:5672/%2f", await rabbit.freshVhost());
  const { end, out } = await run(script, url);
  assert.match(out, /^gate \S+\nshadow /);
  assert.equal(end, 0);
});
