// What happens at the end of a process.

import assert from "node:assert/strict";
import { test } from "node:test";

import { run } from "./process.mjs";
import { NatsServer } from "./server.mjs";

test("an open connection does not keep the process running", async (t) => {
  const { url } = await NatsServer.for(t);
  const { end, out } = await run(
    `import { connect } from "nats-bridge";
     const bridge = await connect(process.argv[1]);
     await bridge.ensureStream("ORDERS", { unbounded: true });
     console.log((await bridge.publish("orders.new", "one")).sequence);`,
    url,
  );
  assert.deepEqual({ end, out }, { end: 0, out: "1\n" });
});

test("a call that waits keeps it running", async (t) => {
  const server = await NatsServer.for(t);
  const { end, out } = await run(
    `import { connect } from "nats-bridge";
     const bridge = await connect(process.argv[1], { publish: { deadlineMs: 500 } });
     await bridge.ensureStream("ORDERS", { unbounded: true });
     process.kill(Number(process.argv[2]), "SIGKILL");
     setTimeout(() => bridge.publish("orders.new", "one").catch((error) => console.log(error.code)), 100);`,
    server.url,
    String(server.pid),
  );
  assert.deepEqual({ end, out }, { end: 0, out: "timeout\n" });
});

test("process.exit in the middle of a call is clean", async (t) => {
  const { url } = await NatsServer.for(t);
  const { end, out } = await run(
    `import { connect } from "nats-bridge";
     const bridge = await connect(process.argv[1]);
     await bridge.ensureStream("ORDERS", { unbounded: true });
     const deliveries = await bridge.consume("ORDERS", "billing");
     deliveries.next();
     setImmediate(() => process.exit(3));`,
    url,
  );
  assert.deepEqual({ end, out }, { end: 3, out: "" });
});

test("the wait for a delivery keeps it running, and a signal ends it", async (t) => {
  const { url } = await NatsServer.for(t);
  const { end, out } = await run(
    `import { connect } from "nats-bridge";
     const bridge = await connect(process.argv[1]);
     await bridge.ensureStream("ORDERS", { unbounded: true });
     setTimeout(() => bridge.publish("orders.new", "late"), 300).unref();
     process.once("SIGTERM", () => deliveries.drain());
     const deliveries = await bridge.consume("ORDERS", "billing");
     for await (const delivery of deliveries) {
       console.log(delivery.payload.toString());
       await delivery.ack();
       process.kill(process.pid, "SIGTERM");
     }
     console.log("drained");`,
    url,
  );
  assert.deepEqual({ end, out }, { end: 0, out: "late\ndrained\n" });
});

test("what is held at the end of the process does not crash it", async (t) => {
  const { url } = await NatsServer.for(t);
  const { end, out } = await run(
    `import { connect } from "nats-bridge";
     const bridge = await connect(process.argv[1]);
     await bridge.ensureStream("ORDERS", { unbounded: true });
     await bridge.publish("orders.new", "one");
     globalThis.consumer = await bridge.consume("ORDERS", "billing");
     globalThis.delivery = await consumer.next();
     console.log(delivery.attempt);`,
    url,
  );
  assert.deepEqual({ end, out }, { end: 0, out: "1\n" });
});

test("worker threads have connections of their own, and end", async (t) => {
  const { url } = await NatsServer.for(t);
  const { end, out } = await run(
    `import { once } from "node:events";
     import { Worker } from "node:worker_threads";
     const script = \`
       const { connect } = require("nats-bridge");
       const { workerData } = require("node:worker_threads");
       connect(workerData).then(async (bridge) => {
         await bridge.ensureStream("ORDERS", { unbounded: true });
         await bridge.publish("orders.new", "one", { id: "o-1" });
         await bridge.close();
       });\`;
     for (let n = 0; n < 3; n++) {
       const worker = new Worker(script, { eval: true, execArgv: [], workerData: process.argv[1] });
       console.log((await once(worker, "exit"))[0]);
     }`,
    url,
  );
  assert.deepEqual({ end, out }, { end: 0, out: "0\n0\n0\n" });
});

test("many connections leave no descriptor behind", async (t) => {
  const { url } = await NatsServer.for(t);
  const { end, out } = await run(
    `import { existsSync, readdirSync } from "node:fs";
     import { connect } from "nats-bridge";
     const files = () => readdirSync(existsSync("/proc/self/fd") ? "/proc/self/fd" : "/dev/fd").length;
     async function cycle() {
       const bridge = await connect(process.argv[1]);
       await bridge.ensureStream("ORDERS", { unbounded: true });
       const consumer = await bridge.consume("ORDERS", "billing");
       await consumer.next({ timeoutMs: 0 });
       await consumer.drain();
       await bridge.close();
     }
     for (let n = 0; n < 10; n++) await cycle();
     const before = files();
     for (let n = 0; n < 100; n++) await cycle();
     const end = Date.now() + 5000;
     while (files() > before + 5 && Date.now() < end) await new Promise((done) => setTimeout(done, 20));
     console.log(files() <= before + 5 ? "none" : \`\${before} -> \${files()}\`);`,
    url,
  );
  assert.deepEqual({ end, out }, { end: 0, out: "none\n" });
});
