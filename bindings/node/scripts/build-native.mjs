// Builds the addon with cargo, in the workspace's own target folder, and copies it beside package.json.
//
// usage: node scripts/build-native.mjs [--release]
import { spawnSync } from "node:child_process";
import { copyFileSync, renameSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/**
 * The lines of cargo's JSON that are read here.
 * @typedef {{ reason: string, target?: { name: string }, filenames?: string[] }} CargoMessage
 */

const here = dirname(dirname(fileURLToPath(import.meta.url)));
const profile = process.argv.includes("--release") ? ["--release"] : [];
const cargo = spawnSync(
  process.env["CARGO"] ?? "cargo",
  // Without its symbols it is a quarter of the size.
  ["rustc", "--lib", "--package", "nats-bridge-node", "--message-format", "json-render-diagnostics", ...profile, "--", "-C", "strip=symbols"],
  { cwd: here, stdio: ["ignore", "pipe", "inherit"], encoding: "utf8", maxBuffer: 256 * 1024 * 1024 },
);
if (cargo.error) {
  console.error(`cannot start cargo: ${cargo.error.message}; Rust is needed, see https://rustup.rs`);
  process.exit(1);
}
if (cargo.status !== 0) {
  process.exit(cargo.status ?? 1);
}

// Cargo says where the library is: the target folder may be anywhere.
const library = cargo.stdout
  .split("\n")
  .filter((line) => line.startsWith("{"))
  .map((line) => /** @type {CargoMessage} */ (JSON.parse(line)))
  .filter((message) => message.reason === "compiler-artifact" && message.target?.name === "nats_bridge_node")
  .flatMap((message) => message.filenames ?? [])
  .find((file) => /\.(so|dylib|dll)$/.test(file));
if (library === undefined) {
  console.error("cargo built no library for nats-bridge-node");
  process.exit(1);
}

// Replaced in one step: a process that has the old file loaded keeps it.
const addon = join(here, `nats-bridge.${process.platform}-${process.arch}.node`);
copyFileSync(library, `${addon}.new`);
renameSync(`${addon}.new`, addon);
console.log(addon);
