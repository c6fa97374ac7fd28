// What the core logs reaches the handler of the application.

import assert from "node:assert/strict";
import { test } from "node:test";

import { connect, onLog } from "nats-bridge";

import { run } from "./process.mjs";
import { eventually, NatsServer } from "./server.mjs";

const ORDERS = { subjects: ["orders.>"], unbounded: true };

test("a failed delivery is told of, with its fields, until the handler is taken away", async (t) => {
  const { url } = await NatsServer.for(t);
  /** @type {import("nats-bridge").LogRecord[]} */
  const records = [];
  onLog((record) => void records.push(record));
  t.after(() => onLog(undefined));
  const bridge = await connect(url);
  t.after(() => bridge.close());
  await bridge.ensureStream("ORDERS", ORDERS);
  await bridge.publish("orders.new", "one");
  const consumer = await bridge.consume("ORDERS", "billing", { retry: { firstPauseMs: 1, jitter: false } });
  await (await consumer.next())?.retry("not now");
  const failed = () => records.find(({ name, fields }) => name === "nats_bridge.consume" && fields["attempt"] === "1");
  await eventually(() => failed() !== undefined, "the retry is told of");
  const record = failed();
  assert(record !== undefined);
  assert.equal(record.level, "info");
  assert.match(record.message, /^a delivery failed and will be tried again .*stream=ORDERS/);
  assert.deepEqual([record.fields["stream"], record.fields["consumer"]], ["ORDERS", "billing"]);
  assert(Math.abs(record.at.getTime() - Date.now()) < 60_000);

  onLog((record) => void records.push(record), { level: "error" });
  records.length = 0;
  await (await consumer.next())?.retry("not now");
  await (await consumer.next())?.ack();
  await consumer.drain();
  assert.deepEqual(records, []);
});

test("a handler that is no function and a level that does not exist are named", () => {
  for (const wrong of [5, null, {}]) {
    // @ts-expect-error it is no function
    assert.throws(() => onLog(wrong), { name: "TypeError", message: /argument 'handler': a function is wanted/ });
  }
  // @ts-expect-error there is no such level
  assert.throws(() => onLog(() => {}, { level: "loud" }), { code: "config", message: /level/ });
  onLog(undefined);
});

test("a handler does not keep the process running, and has what was logged at its end", async (t) => {
  const { url } = await NatsServer.for(t);
  const { end, out } = await run(
    `import { connect, onLog } from "nats-bridge";
     onLog(({ name, fields }) => fields.object && console.log(name, fields.object));
     const bridge = await connect(process.argv[1]);
     await bridge.ensureStream("ORDERS", { unbounded: true });
     process.exit();`,
    url,
  );
  assert.deepEqual({ end, out }, { end: 0, out: "nats_bridge.provision stream ORDERS\n" });
});

test("what a handler throws is an uncaught exception, and the others are told all the same", async (t) => {
  const { url } = await NatsServer.for(t);
  const { end, out } = await run(
    `import { connect, onLog } from "nats-bridge";
     process.on("uncaughtException", ({ message }) => console.log(message));
     onLog(({ fields }) => {
       if (fields.object) throw new Error(fields.object);
     });
     const bridge = await connect(process.argv[1]);
     await bridge.ensureStream("ONE", { unbounded: true });
     await bridge.ensureStream("TWO", { unbounded: true });
     setTimeout(() => {}, 200);`,
    url,
  );
  assert.deepEqual({ end, out }, { end: 0, out: "stream ONE\nstream TWO\n" });
});

test("after a thread that was given the records has ended, another one is given them", async (t) => {
  const { url } = await NatsServer.for(t);
  const { end, out } = await run(
    `import { once } from "node:events";
     import { Worker } from "node:worker_threads";
     import { connect, onLog } from "nats-bridge";
     const work = \`import { parentPort, workerData } from "node:worker_threads";
       import { connect, onLog } from "nats-bridge";
       onLog(() => {});
       const bridge = await connect(workerData);
       await bridge.ensureStream("WORKER", { unbounded: true });
       parentPort.postMessage("ready");
       setInterval(() => {}, 1000);\`;
     for (const round of [1, 2]) {
       const worker = new Worker(work, { eval: true, workerData: process.argv[1] });
       await once(worker, "message");
       try { onLog(() => {}); } catch (error) { console.log(error.code); }
       await worker.terminate();
     }
     onLog(({ fields }) => fields.object && console.log(fields.object));
     const bridge = await connect(process.argv[1]);
     await bridge.ensureStream("ORDERS", { unbounded: true });
     process.exit();`,
    url,
  );
  assert.deepEqual({ end, out }, { end: 0, out: "config\nconfig\nstream ORDERS\n" });
});
