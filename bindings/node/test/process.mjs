// A script in a process of its own.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));

/**
 * Runs a script in a process of its own; gives its exit code and what it wrote.
 *
 * @param {string} script
 * @param {string[]} given
 */
export async function run(script, ...given) {
  const child = spawn(process.execPath, ["--expose-gc", "--input-type=module", "--eval", script, ...given], { cwd: here });
  let out = "";
  child.stdout.on("data", (bytes) => (out += String(bytes)));
  child.stderr.on("data", (bytes) => (out += String(bytes)));
  const [code, signal] = /** @type {[number | null, string | null]} */ (await once(child, "close"));
  return { end: signal ?? code, out };
}
