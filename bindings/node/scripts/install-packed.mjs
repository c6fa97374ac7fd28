// Packs this package as it would be published, installs the tarball in a folder of its own, and puts the tests beside it: what
// `npm test` in that folder tests is what a user gets.
//
// usage: node scripts/install-packed.mjs FOLDER
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(dirname(fileURLToPath(import.meta.url)));
const [given] = process.argv.slice(2);
if (given === undefined) {
  console.error("usage: node scripts/install-packed.mjs FOLDER");
  process.exit(2);
}
const folder = resolve(given);

/** @param {string} cwd @param {string[]} args */
function npm(cwd, ...args) {
  const ran = spawnSync("npm", args, { cwd, stdio: ["ignore", "pipe", "inherit"], encoding: "utf8" });
  if (ran.status !== 0) {
    console.error(`npm ${args.join(" ")} failed`);
    process.exit(1);
  }
  return ran.stdout;
}

rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });
const [packed] = /** @type {{ filename: string, size: number }[]} */ (
  JSON.parse(npm(here, "pack", "--ignore-scripts", "--json", "--pack-destination", folder))
);
if (packed === undefined) {
  console.error("npm packed nothing");
  process.exit(1);
}
console.log(`${packed.filename}: ${(packed.size / 1e6).toFixed(1)} MB`);
const { scripts } = /** @type {{ scripts: { test: string } }} */ (JSON.parse(readFileSync(join(here, "package.json"), "utf8")));
writeFileSync(join(folder, "package.json"), JSON.stringify({ private: true, scripts: { test: scripts.test } }));
npm(folder, "install", "--offline", "--no-audit", "--no-fund", "--no-save", join(folder, packed.filename));
// What only the tests need.
symlinkSync(join(here, "node_modules", "amqplib"), join(folder, "node_modules", "amqplib"), "dir");
cpSync(join(here, "test"), join(folder, "test"), { recursive: true });
