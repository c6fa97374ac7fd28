import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { NatsServer } from "./server.mjs";

const run = promisify(execFile);
const { resolve } = createRequire(import.meta.url);
const examples = fileURLToPath(new URL("../../../examples/node", import.meta.url));
const amqplib = fileURLToPath(new URL("../node_modules/amqplib", import.meta.url));
/** The package that is tested: this one, or one that was packed and installed. */
const here = dirname(resolve("nats-bridge/package.json"));

/**
 * A folder as a user has it, with the package in `node_modules`.
 *
 * @param {import("node:test").TestContext} t
 */
function folder(t) {
  const made = mkdtempSync(join(tmpdir(), "nats-bridge-example-"));
  t.after(() => rmSync(made, { recursive: true, force: true }));
  mkdirSync(join(made, "node_modules"));
  symlinkSync(here, join(made, "node_modules", "nats-bridge"), "dir");
  symlinkSync(amqplib, join(made, "node_modules", "amqplib"), "dir");
  return made;
}

test("hello does what it says", async (t) => {
  const { url } = await NatsServer.for(t);
  const file = join(folder(t), "hello.mjs");
  cpSync(join(examples, "hello.mjs"), file);
  assert.deepEqual(await run(process.execPath, [file, url]), {
    stdout: `stored at HELLO/1, sent again: duplicate=true
attempt 1: order 17
attempt 1: order 18, which nobody can handle
attempt 2: order 18, which nobody can handle
attempt 3: order 18, which nobody can handle
given up, kept at HELLO_DLQ/1
`,
    stderr: "",
  });
});

test("the code of the README runs", async (t) => {
  const { url } = await NatsServer.for(t);
  const made = folder(t);
  const all = readFileSync(join(here, "README.md"), "utf8").split("```js\n").slice(1);
  // Those that need RabbitMQ as well are run in sidecar.test.mjs.
  const blocks = all.filter((block) => !block.includes(":5672"));
  assert(blocks.length > 4);
  const isCommonJs = (/** @type {string} */ code) => code.includes("require(");
  assert(blocks.some(isCommonJs));
  // Whoever tries it tries it again.
  for (const [n, block] of [...blocks.slice(0, 1), ...blocks].entries()) {
    const file = join(made, `block-${n}.${isCommonJs(block.split("```")[0] ?? "") ? "cjs" : "mjs"}`);
    writeFileSync(file, (block.split("```")[0] ?? "").replaceAll("nats://127.0.0.1:4222", url));
    assert.equal((await run(process.execPath, [file])).stderr, "");
  }
});
