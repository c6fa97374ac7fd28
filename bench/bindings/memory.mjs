// What the Node package keeps: memory over many messages, memory and handles over many connections. Ends with 1 when it grows.
//
// usage: node --expose-gc --max-semi-space-size=2 memory.mjs URL MESSAGES CYCLES
import { readdirSync } from "node:fs";

import { connect } from "nats-bridge";

const [url = "", messages = 0, cycles = 0] = process.argv.slice(-3).map((text, n) => (n === 0 ? text : Number(text)));
const window = 1_000;
const samples = 20;
// What an allocator may keep, and what a leak of 3 bytes a message would be over 10 000 000.
const mayGrow = 32 * 2 ** 20;
// Files and threads that are made when they are needed first.
const mayCome = 2;
const body = Buffer.alloc(128);
const consumes = { maxMessages: window, advisories: false };

/** Bytes of memory, open files, threads. */
async function handles() {
  // What is collected is let go of a turn later.
  for (let n = 0; n < 3; n++) {
    globalThis.gc?.();
    await new Promise((turn) => setImmediate(turn));
  }
  return [process.memoryUsage().rss, readdirSync("/proc/self/fd").length, readdirSync("/proc/self/task").length];
}

const mib = (bytes) => (bytes / 2 ** 20).toFixed(1);

const same = (before, after) => after[1] <= before[1] + mayCome && after[2] <= before[2] + mayCome;

async function judge(what, before) {
  let after = await handles();
  // A socket that was closed is let go of a moment later.
  for (const end = Date.now() + 5_000; !same(before, after) && Date.now() < end; ) {
    after = await handles();
  }
  const grown = after[0] - before[0];
  const flat = grown <= mayGrow && same(before, after);
  const counts = `files ${before[1]} -> ${after[1]}, threads ${before[2]} -> ${after[2]}`;
  console.log(`${what}: ${flat ? "flat" : "GROWS"}: memory ${mib(grown)} MiB (may: ${mib(mayGrow)}), ${counts}`);
  return flat;
}

const bridge = await connect(url);
await bridge.ensureStream("MEMORY", {
  subjects: ["memory.>"],
  retention: "work_queue",
  maxBytes: 256 * 2 ** 20,
  duplicateWindowMs: 1_000,
});
const consumer = await bridge.consume("MEMORY", "memory", consumes);
const [began, turns] = [performance.now(), messages / window];
let before;
for (let number = 1; number <= turns; number++) {
  const some = Array.from({ length: window }, (_, n) => ({ subject: "memory.x", payload: body, id: `${number}-${n}` }));
  if (!(await bridge.publishMany(some)).every(({ landed }) => landed === "yes")) throw new Error("one was refused");
  for (let n = 0; n < window; n++) {
    const delivery = await consumer.next();
    await delivery.ack({ confirmed: n === window - 1 });
  }
  if (before === undefined && number >= turns / 10) before = await handles();
  if (number % Math.max(1, Math.floor(turns / samples)) === 0) {
    const taken = number * window;
    const rate = Math.round((taken / (performance.now() - began)) * 1e3);
    console.log(`  node ${String(taken).padStart(10)} messages, ${mib((await handles())[0])} MiB, ${rate}/s`);
  }
}
let flat = await judge(`node, ${messages} messages`, before);
await consumer.drain();
await bridge.close();

async function cycle() {
  const bridge = await connect(url);
  await bridge.publish("memory.x", body);
  const consumer = await bridge.consume("MEMORY", "memory", consumes);
  await (await consumer.next()).ack();
  await consumer.drain();
  await bridge.close();
}

// V8 does not see what an object of the addon weighs, and lets many gather before it collects them: asked now and then, it shows
// whether any are kept.
async function many(count) {
  for (let n = 1; n <= count; n++) {
    await cycle();
    if (n % 100 === 0) await handles();
  }
}
await many(Math.max(20, cycles / 10));
before = await handles();
await many(cycles);
flat = (await judge(`node, ${cycles} connections`, before)) && flat;
process.exitCode = flat ? 0 : 1;
