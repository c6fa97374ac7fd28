// What happens at the end of a process.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { NatsServer } from "./server.mjs";

const here = fileURLToPath(new URL(".", import.meta.url));

/**
 * Runs a script in a process of its own; gives its exit code and what it wrote.
 *
 * @param {string} script
 * @param {string} url
 */
async function run(script, url) {
  const child = spawn(process.execPath, ["--input-type=module", "--eval", script, url], { cwd: here });
  let out = "";
  child.stdout.on("data", (bytes) => (out += String(bytes)));
  child.stderr.on("data", (bytes) => (out += String(bytes)));
  const [code, signal] = /** @type {[number | null, string | null]} */ (await once(child, "close"));
  return { end: signal ?? code, out };
}

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
  const { url } = await NatsServer.for(t);
  const { end, out } = await run(
    `import { connect } from "nats-bridge";
     const bridge = await connect(process.argv[1], { publish: { noStreamWaitMs: 300 } });
     bridge.publish("nobody.listens", "one").catch((error) => console.log(error.code));`,
    url,
  );
  assert.deepEqual({ end, out }, { end: 0, out: "unreachable\n" });
});

test("process.exit in the middle of a call is clean", async (t) => {
  const { url } = await NatsServer.for(t);
  const { end, out } = await run(
    `import { connect } from "nats-bridge";
     const bridge = await connect(process.argv[1]);
     bridge.publish("nobody.listens", "one");
     setImmediate(() => process.exit(3));`,
    url,
  );
  assert.deepEqual({ end, out }, { end: 3, out: "" });
});
