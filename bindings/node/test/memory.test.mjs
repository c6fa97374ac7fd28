// A small run of what `cargo xtask bench bindings --memory` does at length: memory and handles stay what they are.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { run } from "./process.mjs";
import { NatsServer } from "./server.mjs";

test("messages and connections leave nothing behind", async (t) => {
  const { url } = await NatsServer.for(t);
  const program = readFileSync(new URL("../../../bench/bindings/memory.mjs", import.meta.url), "utf8");
  const { end, out } = await run(program, url, "10000", "50");
  assert.equal(end, 0, out);
  assert.equal(out.split(": flat: ").length, 3, out);
});
